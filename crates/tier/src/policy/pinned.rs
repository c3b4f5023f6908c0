//! Favourites that don't give way.

use super::Policy;

/// What a pin adds to a unit's key: more tokens than any run has, and few enough that the order of
/// pinned units among each other is not rounded away.
const PIN_BONUS: f64 = 1e9;

/// Favourites stay, the others are ranked by another policy.
///
/// Favourites are known from the start, or learned: the most used units up to some time. A pin that
/// is learned takes effect at the unit's next use, as keys of untouched units must not change. If
/// only favourites are left to choose from, one of them gives way all the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Pinned<P> {
    inner: P,
    /// Whether each unit is a favourite.
    is_pinned: Vec<bool>,
    /// Key of each unit at its last use.
    keys: Vec<f64>,
    learning: Option<Learning>,
}

#[derive(Clone, Debug, PartialEq)]
struct Learning {
    until_tokens: f64,
    uses: Vec<u64>,
    /// Units of one group compete for its pins; all groups are of this size.
    group_units: usize,
    pins_per_group: usize,
}

impl<P: Policy> Pinned<P> {
    /// Pins the most used units by `uses` (one number per unit): of each group of `group_units`
    /// units in a row, `pins_per_group`. Units without uses are never pinned. A group is a layer,
    /// or all units.
    pub fn known(inner: P, uses: &[u64], group_units: usize, pins_per_group: usize) -> Self {
        let n_units = inner.n_units();
        let mut is_pinned = favourites(uses, group_units, pins_per_group);
        is_pinned.resize(n_units, false);
        Self { inner, is_pinned, keys: vec![f64::NEG_INFINITY; n_units], learning: None }
    }

    /// Learns from all uses before `until_tokens` which units to pin; see [`known`](Self::known).
    pub fn learned(inner: P, until_tokens: f64, group_units: usize, pins_per_group: usize) -> Self {
        let n_units = inner.n_units();
        let uses = vec![0; n_units];
        Self {
            inner,
            is_pinned: vec![false; n_units],
            keys: vec![f64::NEG_INFINITY; n_units],
            learning: Some(Learning { until_tokens, uses, group_units, pins_per_group }),
        }
    }
}

impl<P: Policy> Policy for Pinned<P> {
    fn n_units(&self) -> usize {
        self.inner.n_units()
    }

    fn touch(&mut self, unit: usize, now_tokens: f64) {
        if let Some(learning) = &mut self.learning {
            if now_tokens < learning.until_tokens {
                learning.uses[unit] += 1;
            } else {
                let Learning { uses, group_units, pins_per_group, .. } = learning;
                self.is_pinned = favourites(uses, *group_units, *pins_per_group);
                self.learning = None;
            }
        }
        self.inner.touch(unit, now_tokens);
        let bonus = if self.is_pinned[unit] { PIN_BONUS } else { 0.0 };
        self.keys[unit] = self.inner.key(unit) + bonus;
    }

    fn key(&self, unit: usize) -> f64 {
        self.keys[unit]
    }
}

/// Which units are the most used of their group; of equally used ones the first.
fn favourites(uses: &[u64], group_units: usize, pins_per_group: usize) -> Vec<bool> {
    let mut is_favourite = vec![false; uses.len()];
    let group_units = group_units.max(1);
    for (group, uses) in uses.chunks(group_units).enumerate() {
        let mut order: Vec<usize> = (0..uses.len()).filter(|&i| uses[i] > 0).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(uses[i]), i));
        for i in order.into_iter().take(pins_per_group) {
            is_favourite[group * group_units + i] = true;
        }
    }
    is_favourite
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lru;

    #[test]
    fn favourites_of_groups() {
        let uses = [3, 9, 9, 0, 0, 1];
        assert_eq!(favourites(&uses, 6, 2), [false, true, true, false, false, false]);
        assert_eq!(favourites(&uses, 3, 1), [false, true, false, false, false, true]);
        assert_eq!(favourites(&uses, 3, 9), [true, true, true, false, false, true]);
    }

    #[test]
    fn known_pins_outrank_whatever_came_later() {
        let mut policy = Pinned::known(Lru::new(3), &[0, 5, 0], 3, 1);
        for (unit, now) in [(1, 1.0), (0, 2.0), (2, 3.0)] {
            policy.touch(unit, now);
        }
        assert!(policy.key(1) > policy.key(2) && policy.key(2) > policy.key(0));
    }

    #[test]
    fn learned_pins_begin_with_the_next_use() {
        let mut policy = Pinned::learned(Lru::new(3), 10.0, 3, 1);
        for (unit, now) in [(1, 1.0), (1, 2.0), (0, 3.0)] {
            policy.touch(unit, now);
        }
        let before = policy.key(1);
        assert!(policy.key(0) > before);
        policy.touch(2, 11.0);
        assert_eq!(policy.key(1), before, "a key stays while its unit is not touched");
        policy.touch(1, 12.0);
        policy.touch(0, 13.0);
        assert!(policy.key(1) > policy.key(0));
    }
}
