//! Replacement policies: what a unit's past says about its future.

mod aged;
mod pinned;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use aged::AgedLfu;
pub use pinned::Pinned;

/// Ranks units by their past use.
///
/// Times are in tokens and never run backwards for one unit. A key must not change while its unit
/// is not touched: the table keeps units in an index that is ordered by key, so that a victim is
/// found in O(log n). (Policies whose scores decay have such keys all the same: see [`Lrfu`].)
pub trait Policy {
    /// How many units it remembers; the table numbers them `layer * n_experts + expert`.
    fn n_units(&self) -> usize;

    /// `unit` was used at `now_tokens`.
    fn touch(&mut self, unit: usize, now_tokens: f64);

    /// The rank of `unit`: the unit with the lowest key gives way first. Negative infinity for a
    /// unit that was never touched. Equal keys are ordered by unit number.
    fn key(&self, unit: usize) -> f64;

    /// Goes on from what another one of its kind remembers, in its own way.
    fn adopt(&mut self, memory: Self)
    where
        Self: Sized,
    {
        *self = memory;
    }
}

/// Half-life of a use in [`Lrfu`], in tokens, for a model whose router chooses `n_used` of
/// `n_experts`: four times as long as it takes until an expert is chosen again, on average. That is
/// long enough to tell frequent ones from others, and short enough to follow a change of subject.
pub fn half_life_tokens(n_experts: u32, n_used: u32) -> f64 {
    let interval = f64::from(n_experts) / f64::from(n_used.max(1));
    (HALF_LIFE_INTERVALS * interval).clamp(HALF_LIFE_MIN, HALF_LIFE_MAX)
}

/// On routing of the demo model (32 experts, 4 used), 32 tokens are as good as 48 or 64 in answers of
/// 1,200 tokens, and miss 2 to 12% less than 64 where the subject changes every 200; 16 miss more
/// in long answers.
const HALF_LIFE_INTERVALS: f64 = 4.0;
const HALF_LIFE_MIN: f64 = 16.0;
const HALF_LIFE_MAX: f64 = 128.0;

/// Least recently used goes first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lru {
    last: Vec<Option<f64>>,
}

impl Lru {
    /// A history of `n_units` units that were never used.
    pub fn new(n_units: usize) -> Self {
        Self { last: vec![None; n_units] }
    }
}

impl Policy for Lru {
    fn n_units(&self) -> usize {
        self.last.len()
    }

    fn touch(&mut self, unit: usize, now_tokens: f64) {
        self.last[unit] = Some(now_tokens);
    }

    fn key(&self, unit: usize) -> f64 {
        self.last[unit].unwrap_or(f64::NEG_INFINITY)
    }
}

/// Least frequently used goes first; it never forgets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lfu {
    count: Vec<u64>,
}

impl Lfu {
    /// A history of `n_units` units that were never used.
    pub fn new(n_units: usize) -> Self {
        Self { count: vec![0; n_units] }
    }
}

impl Policy for Lfu {
    fn n_units(&self) -> usize {
        self.count.len()
    }

    fn touch(&mut self, unit: usize, _now_tokens: f64) {
        self.count[unit] = self.count[unit].saturating_add(1);
    }

    fn key(&self, unit: usize) -> f64 {
        match self.count[unit] {
            0 => f64::NEG_INFINITY,
            count => count as f64,
        }
    }
}

/// Least recently and frequently used goes first (Lee et al., "LRFU: a spectrum of policies that
/// subsumes the least recently used and least frequently used policies", IEEE Transactions on
/// Computers 50(12), 2001).
///
/// Each use counts 1 and loses half of its weight every `half_life` tokens: at a use at time `t`,
/// `c = 1 + c * 2^(-(t - last) / half_life)` and `last = t`. At any later time `t` the score is
/// `c * 2^(-(t - last) / half_life)`; its logarithm is `log2(c) + last / half_life` less a term
/// that is the same for all units, so `log2(c) + last / half_life` orders units at every time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lrfu {
    half_life_tokens: f64,
    /// Per unit the score at its last use (0 if never used), and the time of that, in tokens.
    units: Vec<(f64, f64)>,
}

impl Lrfu {
    /// A history of `n_units` units that were never used; `half_life_tokens` is taken as at least
    /// 1 (below that the policy is [`Lru`]).
    pub fn new(n_units: usize, half_life_tokens: f64) -> Self {
        Self { half_life_tokens: half_life_tokens.max(1.0), units: vec![(0.0, 0.0); n_units] }
    }
}

impl Policy for Lrfu {
    fn n_units(&self) -> usize {
        self.units.len()
    }

    fn touch(&mut self, unit: usize, now_tokens: f64) {
        let (score, last) = &mut self.units[unit];
        *score = 1.0 + *score * (-(now_tokens - *last) / self.half_life_tokens).exp2();
        *last = now_tokens;
    }

    fn key(&self, unit: usize) -> f64 {
        let (score, last) = self.units[unit];
        // log2(0) is negative infinity: never used, first to go.
        score.log2() + last / self.half_life_tokens
    }

    fn adopt(&mut self, memory: Self) {
        // Times are in tokens, whatever the half-life was.
        self.units = memory.units;
    }
}

/// A policy's memory with the shape that it belongs to, to be kept from one run to the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History<P> {
    /// Layers that have experts.
    pub n_layers: u32,
    /// Experts of each layer.
    pub n_experts: u32,
    /// The time at which it was taken, in tokens; a table that imports it goes on from there.
    pub now_tokens: u64,
    /// The policy with its memory.
    pub policy: P,
}

/// Why a history can't be used with a table. The table is as before.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// It was taken with a model of another shape.
    #[error(
        "the routing history is of {found_layers} layers of {found_experts} experts, but the model \
         has {layers} of {experts}: delete the history"
    )]
    Shape {
        /// Layers in the history.
        found_layers: u32,
        /// Experts per layer in the history.
        found_experts: u32,
        /// Layers of the table.
        layers: u32,
        /// Experts per layer of the table.
        experts: u32,
    },
    /// The policy's memory is damaged.
    #[error("the routing history is damaged at unit {unit}: delete the history")]
    Damaged {
        /// The first unit whose memory makes no sense, or the number of units if that is wrong.
        unit: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses `(unit, time)` in order, and expects this order of units, first victim first.
    fn check(mut policy: impl Policy, uses: &[(usize, f64)], expected: &[usize]) {
        for &(unit, now) in uses {
            policy.touch(unit, now);
        }
        let mut order: Vec<usize> = (0..policy.n_units()).collect();
        order.sort_by(|&a, &b| policy.key(a).total_cmp(&policy.key(b)).then(a.cmp(&b)));
        assert_eq!(order, expected);
    }

    #[test]
    fn orders() {
        // Unit 0: four early uses; unit 1: one late use; unit 2: two uses in between; 3: never.
        let uses = [(0, 1.0), (0, 2.0), (0, 3.0), (0, 4.0), (2, 20.0), (2, 21.0), (1, 30.0)];
        check(Lru::new(4), &uses, &[3, 0, 2, 1]);
        check(Lfu::new(4), &uses, &[3, 1, 2, 0]);
        check(Lrfu::new(4, 1e6), &uses, &[3, 1, 2, 0]);
        check(Lrfu::new(4, 1.0), &uses, &[3, 0, 2, 1]);
        // In between, scores of units 0, 1, 2 at time 30: 0.37, 1, 0.88; then 0.92, 1, 1.21.
        check(Lrfu::new(4, 8.0), &uses, &[3, 0, 2, 1]);
        check(Lrfu::new(4, 13.0), &uses, &[3, 0, 1, 2]);
    }

    /// The time-invariant key orders units as the decayed scores of the paper do, at any time.
    #[test]
    fn lrfu_key_orders_as_the_decayed_score() {
        let half_life = 10.0;
        let mut policy = Lrfu::new(8, half_life);
        let mut uses: Vec<Vec<f64>> = vec![Vec::new(); 8];
        let mut state = 7_u64;
        for step in 0..200_u32 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let unit = usize::try_from((state >> 33) % 8).expect("below 8");
            policy.touch(unit, f64::from(step));
            uses[unit].push(f64::from(step));
            let now = f64::from(step) + 3.0;
            let score = |unit: usize| -> f64 {
                uses[unit].iter().map(|used| (-(now - used) / half_life).exp2()).sum()
            };
            for a in 0..8 {
                for b in 0..8 {
                    if score(a) > score(b) * (1.0 + 1e-9) {
                        assert!(policy.key(a) > policy.key(b), "step {step}: units {a} and {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn half_lives_follow_how_often_an_expert_is_chosen() {
        assert_eq!(half_life_tokens(32, 4), 32.0);
        assert_eq!(half_life_tokens(128, 8), 64.0);
        assert_eq!([half_life_tokens(8, 2), half_life_tokens(512, 1)], [16.0, 128.0]);
        assert_eq!(half_life_tokens(32, 0), 128.0, "not known");
    }

    /// Uses are remembered with their times, and forgotten as fast as the one that goes on forgets.
    #[test]
    fn what_is_adopted_is_forgotten_at_the_own_pace() {
        let mut slow = Lrfu::new(2, 1e6);
        for now in 0..3 {
            slow.touch(0, f64::from(now));
        }
        slow.touch(1, 30.0);
        assert!(slow.key(0) > slow.key(1), "three uses weigh more than one");
        let mut quick = Lrfu::new(2, 4.0);
        quick.adopt(slow);
        assert!(quick.key(0) < quick.key(1), "they are long ago");
    }
}
