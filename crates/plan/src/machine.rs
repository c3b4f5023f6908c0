//! What a plan has to know of the machine.

use serde::{Deserialize, Serialize};

/// A machine as it was measured, or as it is described. A rate of 0 means not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Bytes of memory that are free for this process.
    pub free_memory_bytes: u64,
    /// Cores that are really free.
    pub cores: u32,
    /// Bandwidth of the drive that holds the model, at several read sizes and depths.
    pub storage: Vec<BandwidthPoint>,
    /// Seconds that one small random read takes.
    pub read_latency_s: f64,
    /// Bytes per second that all cores together copy in memory.
    pub copy_bytes_per_s: f64,
    /// Bytes of weights per second that one token's matrix-vector products get through.
    pub decode_weight_bytes_per_s: f64,
    /// Floating-point operations per second of a batch's matrix products.
    pub prompt_flops_per_s: f64,
}

/// Bandwidth at one read size and depth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BandwidthPoint {
    /// Bytes of one read.
    pub read_bytes: u64,
    /// Reads under way at a time.
    pub depth: u32,
    /// Bytes per second.
    pub bytes_per_s: f64,
}

/// What a slow NVMe drive reads, for a machine whose drive was not measured.
pub(crate) const ASSUMED_STORAGE_BYTES_PER_S: f64 = 1e9;
/// What two cores stream through matrix-vector products, for a machine that was not measured.
pub(crate) const ASSUMED_DECODE_BYTES_PER_S: f64 = 1e10;
/// What two cores with AVX2 do in quantized matrix products, for a machine that was not measured.
pub(crate) const ASSUMED_PROMPT_FLOPS: f64 = 1e11;
/// What one core copies, for a machine that was not measured.
pub(crate) const ASSUMED_COPY_BYTES_PER_S: f64 = 5e9;

/// What a budget leaves free by default: this share of the free memory ...
const MARGIN_SHARE: u64 = 10;
/// ... but at least this much, for the page cache and the programs beside us.
const MARGIN_MIN_BYTES: u64 = 512 << 20;

impl Machine {
    /// The budget where the user names none: what is free, less a margin.
    pub fn default_budget_bytes(&self) -> u64 {
        let free = self.free_memory_bytes;
        free.saturating_sub((free / MARGIN_SHARE).max(MARGIN_MIN_BYTES))
    }

    /// Bytes per second of reads of `read_bytes`, `depth` at a time; `None` if the drive was not
    /// measured.
    ///
    /// It takes the measurements of the largest depth up to `depth` (or else the smallest), goes
    /// straight from point to point over the logarithm of the size, and keeps the last bandwidth for
    /// larger reads. Reads smaller than the smallest measured one take as long as that one.
    pub fn storage_bytes_per_s(&self, read_bytes: u64, depth: u32) -> Option<f64> {
        let usable = |point: &&BandwidthPoint| point.bytes_per_s > 0.0 && point.read_bytes > 0;
        let depths = self.storage.iter().filter(usable).map(|point| point.depth);
        let depth = depths.clone().filter(|&d| d <= depth).max().or_else(|| depths.min())?;
        let mut points: Vec<&BandwidthPoint> =
            self.storage.iter().filter(usable).filter(|point| point.depth == depth).collect();
        points.sort_by_key(|point| point.read_bytes);
        let size = read_bytes.max(1) as f64;
        let (first, last) = (*points.first()?, *points.last()?);
        if read_bytes <= first.read_bytes {
            return Some(first.bytes_per_s * size / first.read_bytes as f64);
        }
        for pair in points.windows(2) {
            if let [low, high] = pair
                && read_bytes <= high.read_bytes
            {
                let span = (high.read_bytes as f64 / low.read_bytes as f64).ln();
                let at = if span > 0.0 { (size / low.read_bytes as f64).ln() / span } else { 1.0 };
                return Some(low.bytes_per_s + (high.bytes_per_s - low.bytes_per_s) * at);
            }
        }
        Some(last.bytes_per_s)
    }

    /// What was not measured, in words; empty if everything was.
    pub(crate) fn unmeasured(&self) -> Vec<&'static str> {
        [
            (self.storage_bytes_per_s(1, 1).is_none(), "the drive"),
            (self.decode_weight_bytes_per_s <= 0.0, "the speed of decoding"),
            (self.prompt_flops_per_s <= 0.0, "the speed of prompts"),
            (self.copy_bytes_per_s <= 0.0, "the speed of copying"),
        ]
        .into_iter()
        .filter_map(|(is_missing, what)| is_missing.then_some(what))
        .collect()
    }
}

/// `rate` if it was measured, else `assumed`.
pub(crate) fn or_assumed(rate: f64, assumed: f64) -> f64 {
    if rate > 0.0 && rate.is_finite() { rate } else { assumed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_budget() {
        for (free, budget) in [(100 << 30, 90 << 30), (1 << 30, 512 << 20), (1 << 20, 0)] {
            let machine = Machine { free_memory_bytes: free, ..Machine::default() };
            assert_eq!(machine.default_budget_bytes(), budget);
        }
    }

    #[test]
    fn bandwidth_between_points() {
        let point =
            |read_bytes, depth, bytes_per_s| BandwidthPoint { read_bytes, depth, bytes_per_s };
        let machine = Machine {
            storage: vec![
                point(1 << 20, 1, 2e9),
                point(1 << 12, 1, 1e8),
                point(1 << 12, 8, 8e8),
                point(1 << 20, 8, 3e9),
            ],
            ..Machine::default()
        };
        let check = |read_bytes, depth, expected: f64| {
            let found = machine.storage_bytes_per_s(read_bytes, depth).expect("it was measured");
            assert!((found - expected).abs() < 1.0, "{read_bytes} x {depth}: {found}");
        };
        check(1 << 12, 1, 1e8);
        check(1 << 11, 1, 5e7);
        check(1 << 16, 1, 1.05e9);
        check(1 << 30, 1, 2e9);
        check(1 << 12, 64, 8e8);
        check(1 << 12, 7, 1e8);
        check(1 << 20, 8, 3e9);
        assert_eq!(Machine::default().storage_bytes_per_s(1, 1), None);
    }
}
