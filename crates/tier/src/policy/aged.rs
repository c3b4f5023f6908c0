//! Frequency that is forgotten in steps.

use super::Policy;

/// Least frequently used goes first, and all counts are halved after each period (aging by halving:
/// Robinson and Devarakonda, "Data cache management using frequency-based replacement", ACM
/// SIGMETRICS 1990).
///
/// In place of halving all counts when period `p` begins, a use in it weighs `2^p`: the order is the
/// same, and the key of a unit that is not touched stays.
#[derive(Clone, Debug, PartialEq)]
pub struct AgedLfu {
    period_tokens: f64,
    /// Per unit the count at its last use (0 if never used), and the period of that.
    units: Vec<(f64, f64)>,
}

impl AgedLfu {
    /// A history of `n_units` units that were never used; `period_tokens` is taken as at least 1.
    pub fn new(n_units: usize, period_tokens: f64) -> Self {
        Self { period_tokens: period_tokens.max(1.0), units: vec![(0.0, 0.0); n_units] }
    }
}

impl Policy for AgedLfu {
    fn n_units(&self) -> usize {
        self.units.len()
    }

    fn touch(&mut self, unit: usize, now_tokens: f64) {
        let now = (now_tokens / self.period_tokens).floor();
        let (count, period) = &mut self.units[unit];
        *count = 1.0 + *count * (*period - now).exp2();
        *period = now;
    }

    fn key(&self, unit: usize) -> f64 {
        let (count, period) = self.units[unit];
        // log2(0) is negative infinity: never used, first to go.
        count.log2() + period
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_worth_half_a_period_later() {
        let mut policy = AgedLfu::new(3, 10.0);
        for now in [0.0, 1.0, 2.0] {
            policy.touch(0, now); // three uses in period 0
        }
        policy.touch(1, 11.0); // one in period 1, worth two of period 0
        assert!(policy.key(0) > policy.key(1));
        policy.touch(1, 12.0);
        assert!(policy.key(0) < policy.key(1));
        assert_eq!(policy.key(2), f64::NEG_INFINITY);
        // Within a period it is a plain count, however long ago the use was.
        policy.touch(0, 19.0);
        assert!((policy.key(0) - (2.5_f64.log2() + 1.0)).abs() < 1e-12);
    }
}
