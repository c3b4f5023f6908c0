//! How long things took.

use std::time::Duration;

/// Bounds for what people wait for: from a small prompt in memory to a long one that streams.
const SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0,
];
/// Bounds for one token.
const TOKEN_SECONDS: &[f64] =
    &[0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// Counts by upper bound, as Prometheus wants them.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One for each bound and one for what is above; not yet summed up.
    counts: Vec<u64>,
    sum_s: f64,
}

impl Histogram {
    pub(super) fn seconds() -> Histogram {
        Histogram::new(SECONDS)
    }

    pub(super) fn token_seconds() -> Histogram {
        Histogram::new(TOKEN_SECONDS)
    }

    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum_s: 0.0 }
    }

    pub(super) fn add(&mut self, took: Duration) {
        let took_s = took.as_secs_f64();
        let place = self.bounds.partition_point(|&bound| bound < took_s);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.sum_s += took_s;
    }

    pub(super) fn sum_s(&self) -> f64 {
        self.sum_s
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Each bound with how many were at most that; the last bound is infinity.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(&self.counts).scan(0, |sum, (bound, count)| {
            *sum += count;
            Some((bound, *sum))
        })
    }
}
