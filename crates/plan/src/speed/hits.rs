//! How often a token's experts are found in their slots: assumed, or counted in a replay.

#[cfg(test)]
use crate::inventory::SizeClass;
use crate::plan::{Plan, Pool};

/// Share of slots among units, and the share of lookups that hit: what frequency and recency
/// together reached on the routing of the demo model (about 80% at 55%), straight lines between.
/// Models with less uniform routing do better, others worse.
pub const HIT_RATE_CURVE: [(f64, f64); 5] =
    [(0.0, 0.0), (0.25, 0.5), (0.55, 0.82), (0.75, 0.93), (1.0, 1.0)];

/// The hit rate of [`HIT_RATE_CURVE`] for a share of slots, 0 to 1.
pub fn assumed_hit_rate(share: f64) -> f64 {
    for pair in HIT_RATE_CURVE.windows(2) {
        if let &[(x0, y0), (x1, y1)] = pair
            && share <= x1
        {
            return y0 + (y1 - y0) * ((share - x0) / (x1 - x0)).clamp(0.0, 1.0);
        }
    }
    1.0
}

/// The assumed hit rate of one class: never more than if all its slots held what is asked for.
#[cfg(test)]
pub(crate) fn class_hit_rate(class: &SizeClass, slots: u64) -> f64 {
    Lookups::of_class(class, slots).assumed()
}

/// What is known of the router's choices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Routing<'a> {
    /// Nothing: hit rates are those of [`HIT_RATE_CURVE`].
    Assumed,
    /// A recording was replayed with the plan's slots. Per pool of the plan: in how many cases of
    /// one token in one layer 0, 1, 2 and so on of its experts were missing.
    Replayed(&'a [Vec<u64>]),
}

/// How likely a token in one layer misses 0, 1, 2 and so on of its experts; adds up to 1.
pub(super) type Misses = Vec<f64>;

/// Experts that are looked up in layers of one shape.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookups {
    pub(super) n_layers: u64,
    pub(super) n_experts: u64,
    /// Experts of one token in one layer.
    pub(super) n_used: u64,
    pub(super) slots: u64,
}

impl Lookups {
    #[cfg(test)]
    fn of_class(class: &SizeClass, slots: u64) -> Lookups {
        let (n_experts, n_used) = (class.n_experts, class.n_used);
        Lookups { n_layers: class.layers.len() as u64, n_experts, n_used, slots }
    }

    /// Of each pool: the lookups of all pools of its shape together, since slots that don't divide
    /// evenly make no difference.
    pub(super) fn of_pools(plan: &Plan) -> Vec<Lookups> {
        let slots: Vec<u32> = plan.pools.iter().map(|pool| pool.slots).collect();
        Self::of_pools_with(plan, &slots)
    }

    /// The same with other numbers of slots, one per pool.
    pub(super) fn of_pools_with(plan: &Plan, slots: &[u32]) -> Vec<Lookups> {
        let alike = |a: &Pool, b: &Pool| {
            (&a.parts, a.n_experts, a.n_used) == (&b.parts, b.n_experts, b.n_used)
        };
        let of = |pool: &Pool| {
            let mut lookups = Lookups {
                n_layers: 0,
                n_experts: pool.n_experts.into(),
                n_used: pool.n_used.into(),
                slots: 0,
            };
            for (other, &slots) in plan.pools.iter().zip(slots) {
                if alike(pool, other) {
                    lookups.n_layers += other.layers.len() as u64;
                    lookups.slots += u64::from(slots);
                }
            }
            lookups
        };
        plan.pools.iter().map(of).collect()
    }

    pub(super) fn n_units(&self) -> u64 {
        self.n_experts.saturating_mul(self.n_layers)
    }

    /// The hit rate if routing were uniform.
    pub(super) fn share(&self) -> f64 {
        (self.slots as f64 / self.n_units().max(1) as f64).min(1.0)
    }

    /// The hit rate of the curve.
    pub(super) fn assumed(&self) -> f64 {
        let most = self.share() * self.n_experts as f64 / self.n_used.max(1) as f64;
        assumed_hit_rate(self.share()).min(most)
    }

    /// As if each expert missed for itself with the same probability: the binomial distribution.
    pub(super) fn misses(&self, hit_rate: f64) -> Misses {
        let (hit, miss) = (hit_rate.clamp(0.0, 1.0), 1.0 - hit_rate.clamp(0.0, 1.0));
        // Pascal's triangle, one expert at a time.
        let mut chances = vec![1.0];
        for _ in 0..self.n_used {
            let mut next = vec![0.0; chances.len() + 1];
            for (k, chance) in chances.iter().enumerate() {
                for (at, factor) in [(k, hit), (k + 1, miss)] {
                    if let Some(sum) = next.get_mut(at) {
                        *sum += chance * factor;
                    }
                }
            }
            chances = next;
        }
        chances
    }
}

/// The distribution that was counted; `None` if nothing was.
pub(super) fn counted(counts: &[u64]) -> Option<Misses> {
    let all: u64 = counts.iter().sum();
    (all > 0).then(|| counts.iter().map(|&count| count as f64 / all as f64).collect())
}

/// Experts that are missing on average.
pub(super) fn mean(misses: &Misses) -> f64 {
    misses.iter().enumerate().map(|(k, chance)| k as f64 * chance).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve() {
        for (share, rate) in HIT_RATE_CURVE {
            assert!((assumed_hit_rate(share) - rate).abs() < 1e-12);
        }
        assert!((assumed_hit_rate(0.4) - 0.66).abs() < 1e-12);
        assert!((assumed_hit_rate(2.0) - 1.0).abs() < 1e-12);
        // Concave, as the division among classes supposes.
        let slopes: Vec<f64> =
            HIT_RATE_CURVE.windows(2).map(|p| (p[1].1 - p[0].1) / (p[1].0 - p[0].0)).collect();
        assert!(slopes.is_sorted_by(|a, b| a >= b), "{slopes:?}");
    }

    #[test]
    fn distributions() {
        let lookups = Lookups { n_layers: 1, n_experts: 8, n_used: 2, slots: 4 };
        // Two experts that each hit in 3 of 4 cases.
        let misses = lookups.misses(0.75);
        for (chance, expected) in misses.iter().zip([0.5625, 0.375, 0.0625]) {
            assert!((chance - expected).abs() < 1e-12, "{misses:?}");
        }
        assert!((mean(&misses) - 0.5).abs() < 1e-12);
        assert_eq!(lookups.misses(1.0), [1.0, 0.0, 0.0]);
        assert_eq!(lookups.misses(0.0), [0.0, 0.0, 1.0]);
        assert_eq!(counted(&[6, 0, 2]), Some(vec![0.75, 0.0, 0.25]));
        assert_eq!(counted(&[0, 0]), None);
        // With a slot for one of two, no more than half can hit, whatever the curve says.
        let tight = Lookups { n_layers: 1, n_experts: 2, n_used: 2, slots: 1 };
        assert!((tight.assumed() - 0.5).abs() < 1e-12);
    }
}
