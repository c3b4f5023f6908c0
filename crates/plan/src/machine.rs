//! What a plan has to know of the machine.

use hypura_gguf::GgmlType;
use serde::{Deserialize, Serialize};

use crate::request::Layout;
use crate::speed::Product;

/// A machine as it was measured, or as it is described. A rate of 0 means not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Bytes of memory that are free for this process.
    pub free_memory_bytes: u64,
    /// Cores that are really free.
    pub cores: u32,
    /// Bandwidth of the drive that holds the model, at several read sizes and depths.
    pub storage: Vec<BandwidthPoint>,
    /// Whether the drive was measured just now. What was measured earlier says less: drives are
    /// shared, and have good and bad hours.
    #[serde(default)]
    pub storage_is_fresh: bool,
    /// Seconds that one small random read takes.
    pub read_latency_s: f64,
    /// How fast matrix products are.
    #[serde(default)]
    pub compute: Vec<ComputeRate>,
    /// Seconds that a step of a graph takes, however little it computes.
    #[serde(default)]
    pub step_s: f64,
    /// The GPU, if it was measured.
    #[serde(default)]
    pub gpu: Option<GpuRates>,
}

/// A GPU as it was measured, or as it is described. A rate of 0, or no points, means not measured;
/// then these are assumed, all seen on one H200 over PCIe 5 x16: copies of 52 GB/s at 4.5 MB and of
/// 42 GB/s at 0.56 MB, 30 TFLOP/s of prompt products (512 tokens of a model of experts in Q8_0 in
/// 11.7 ms), and 12 µs per layer; and 1 TB/s of its memory's 4.8, as decoding reads it in small
/// pieces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuRates {
    /// What it calls itself.
    pub name: String,
    /// Bytes per second that the device reads its own memory with while it decodes.
    pub memory_bytes_per_s: f64,
    /// Operations per second of a prompt's products: two per weight and token.
    pub prompt_flops_per_s: f64,
    /// Bandwidth of copies from pinned host memory by their size; their depth is 1.
    pub host_to_device: Vec<BandwidthPoint>,
    /// Seconds that our walk adds per layer, where weights are not all in the device's memory.
    pub layer_s: f64,
    /// Bytes of main memory that its driver and library take.
    #[serde(default)]
    pub host_bytes: u64,
}

impl GpuRates {
    /// Whether what computing rests on was measured.
    pub(crate) fn is_compute_measured(&self) -> bool {
        [self.memory_bytes_per_s, self.prompt_flops_per_s].iter().all(|&rate| rate > 0.0)
    }

    /// Bytes per second of a copy of `bytes` from pinned host memory to the device, measured or
    /// assumed; between points and beyond them as [`Machine::storage_bytes_per_s`].
    pub fn copy_bytes_per_s(&self, bytes: u64) -> f64 {
        let measured = bytes_per_s_at(self.host_to_device.iter(), bytes);
        let assumed = || bytes_per_s_at(ASSUMED_HOST_TO_DEVICE.iter(), bytes);
        or_assumed(measured.or_else(assumed).unwrap_or(0.0), ASSUMED_COPY_BYTES_PER_S)
    }

    /// The most bytes per second that copies to the device were measured at, of any size; `None` if
    /// none were.
    pub fn link_bytes_per_s(&self) -> Option<f64> {
        let rates = self.host_to_device.iter().map(|point| point.bytes_per_s);
        rates.max_by(f64::total_cmp).filter(|rate| *rate > 0.0)
    }

    /// Bytes per second that the device reads its own memory with while it decodes, measured or
    /// assumed.
    pub fn decode_bytes_per_s(&self) -> f64 {
        or_assumed(self.memory_bytes_per_s, ASSUMED_GPU_MEMORY_BYTES_PER_S)
    }

    pub(crate) fn prompt_ops_per_s(&self) -> f64 {
        or_assumed(self.prompt_flops_per_s, ASSUMED_GPU_PROMPT_FLOPS)
    }

    pub(crate) fn walk_s_per_layer(&self) -> f64 {
        or_assumed(self.layer_s, ASSUMED_GPU_LAYER_S)
    }
}

/// How fast matrix products with weights of one kind are, on all cores together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComputeRate {
    /// Name of the type, such as `Q4_K`.
    pub ty: String,
    /// How the weights lie.
    pub layout: Layout,
    /// The kind of product.
    pub product: Product,
    /// Elements of a row of the weights that were measured.
    pub n_in: u64,
    /// Bytes of weights per second that one token's products get through.
    pub decode_bytes_per_s: f64,
    /// Operations per second of a prompt's products: two per weight and token.
    pub prompt_flops_per_s: f64,
}

/// The rates to reckon with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    pub(crate) decode_bytes_per_s: f64,
    pub(crate) prompt_flops_per_s: f64,
    /// Whether just this kind of product was measured.
    pub(crate) is_measured: bool,
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
/// What one core streams through matrix-vector products, for a machine that was not measured: seen
/// on x86-64 cores with AVX2 and slow memory. Faster ones do twice as much.
pub(crate) const ASSUMED_DECODE_BYTES_PER_S_PER_CORE: f64 = 5e9;
/// What one core with AVX2 does in quantized matrix products, for a machine that was not measured.
pub(crate) const ASSUMED_PROMPT_FLOPS_PER_CORE: f64 = 4e10;
/// What a step of a graph takes, for a machine that was not measured.
pub(crate) const ASSUMED_STEP_S: f64 = 1e-6;

/// What copies from pinned memory reach on an H200 over PCIe 5 x16, by their size.
const ASSUMED_HOST_TO_DEVICE: [BandwidthPoint; 2] = [
    BandwidthPoint { read_bytes: 560_000, depth: 1, bytes_per_s: ASSUMED_COPY_BYTES_PER_S },
    BandwidthPoint { read_bytes: 4_500_000, depth: 1, bytes_per_s: 52e9 },
];
const ASSUMED_COPY_BYTES_PER_S: f64 = 42e9;
/// What a token's products get through of a GPU's memory: far below what data sheets say, because
/// each reads little.
const ASSUMED_GPU_MEMORY_BYTES_PER_S: f64 = 1e12;
/// What an H200 did in a micro-batch of 512 tokens with experts in Q8_0: 4.1e11 operations in 11.7
/// ms.
const ASSUMED_GPU_PROMPT_FLOPS: f64 = 3e13;
/// What one more submission, copy of ids and wait per layer took on an H200, with stable graphs.
const ASSUMED_GPU_LAYER_S: f64 = 12e-6;

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
    /// It goes straight from point to point over the logarithms of size and depth, and keeps the
    /// last bandwidth for larger reads and for depths beyond the measured ones. Reads smaller than
    /// the smallest measured one take as long as that one.
    pub fn storage_bytes_per_s(&self, read_bytes: u64, depth: u32) -> Option<f64> {
        let usable = |point: &&BandwidthPoint| point.bytes_per_s > 0.0 && point.read_bytes > 0;
        let depths = || self.storage.iter().filter(usable).map(|point| point.depth);
        let below = depths().filter(|&d| d <= depth).max().or_else(|| depths().min())?;
        let above = depths().filter(|&d| d >= depth).min().or_else(|| depths().max())?;
        let low = self.storage_at(read_bytes, below)?;
        if above <= below {
            return Some(low);
        }
        let high = self.storage_at(read_bytes, above)?;
        let span = (f64::from(above) / f64::from(below.max(1))).ln();
        let at = (f64::from(depth.max(1)) / f64::from(below.max(1))).ln() / span;
        Some(low + (high - low) * at.clamp(0.0, 1.0))
    }

    /// As above, at a depth that was measured.
    fn storage_at(&self, read_bytes: u64, depth: u32) -> Option<f64> {
        bytes_per_s_at(self.storage.iter().filter(|point| point.depth == depth), read_bytes)
    }

    /// Bytes per second of long reads in order, many at a time, measured or assumed.
    pub fn stream_bytes_per_s(&self) -> f64 {
        let measured = self.storage_bytes_per_s(1 << 20, 16).unwrap_or(0.0);
        or_assumed(measured, ASSUMED_STORAGE_BYTES_PER_S)
    }

    /// Operations per second of a prompt's products of whatever kind: the slowest that was measured,
    /// or what is assumed.
    pub(crate) fn prompt_flops_per_s(&self) -> f64 {
        let measured = self.compute.iter().map(|rate| rate.prompt_flops_per_s);
        let slowest = measured.filter(|&rate| rate > 0.0).min_by(f64::total_cmp);
        let cores = f64::from(self.cores.max(1));
        slowest.unwrap_or(cores * ASSUMED_PROMPT_FLOPS_PER_CORE)
    }

    /// The rates of one kind of product: measured with rows of about this length; else those of the
    /// same type in another layout or product; else assumed.
    pub(crate) fn rates(&self, ty: GgmlType, layout: Layout, product: Product, n_in: u64) -> Rates {
        let usable = |rate: &&ComputeRate| {
            rate.ty == ty.name() && rate.decode_bytes_per_s > 0.0 && rate.prompt_flops_per_s > 0.0
        };
        let distance =
            |rate: &ComputeRate| (rate.n_in.max(1) as f64 / n_in.max(1) as f64).ln().abs();
        let nearest = |a: &&ComputeRate, b: &&ComputeRate| distance(a).total_cmp(&distance(b));
        let of_type = self.compute.iter().filter(usable);
        let same = of_type.clone().filter(|rate| (rate.layout, rate.product) == (layout, product));
        if let Some(rate) = same.min_by(nearest) {
            let &ComputeRate { decode_bytes_per_s, prompt_flops_per_s, .. } = rate;
            return Rates { decode_bytes_per_s, prompt_flops_per_s, is_measured: true };
        }
        if let Some(rate) = of_type.min_by(nearest) {
            let &ComputeRate { decode_bytes_per_s, prompt_flops_per_s, .. } = rate;
            return Rates { decode_bytes_per_s, prompt_flops_per_s, is_measured: false };
        }
        let cores = f64::from(self.cores.max(1));
        Rates {
            decode_bytes_per_s: cores * ASSUMED_DECODE_BYTES_PER_S_PER_CORE,
            prompt_flops_per_s: cores * ASSUMED_PROMPT_FLOPS_PER_CORE,
            is_measured: false,
        }
    }

    /// Bytes of experts per second that the CPU gets through for one token, as they lie in the file;
    /// measured or assumed.
    pub fn expert_bytes_per_s(&self, ty: GgmlType, n_in: u64) -> f64 {
        self.rates(ty, Layout::Plain, Product::Experts, n_in).decode_bytes_per_s
    }

    /// What was not measured, in words; empty if everything was.
    pub(crate) fn unmeasured(&self) -> Vec<&'static str> {
        [
            (self.storage_bytes_per_s(1, 1).is_none(), "the drive"),
            (self.compute.is_empty(), "the speed of computing"),
        ]
        .into_iter()
        .filter_map(|(is_missing, what)| is_missing.then_some(what))
        .collect()
    }
}

/// Straight from point to point over the logarithm of the size; `None` without a usable point.
fn bytes_per_s_at<'a>(
    points: impl Iterator<Item = &'a BandwidthPoint>,
    read_bytes: u64,
) -> Option<f64> {
    let usable = |point: &&BandwidthPoint| point.bytes_per_s > 0.0 && point.read_bytes > 0;
    let mut points: Vec<&BandwidthPoint> = points.filter(usable).collect();
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
        // A third of the way from 1 to 8, by logarithms.
        check(1 << 12, 2, 1e8 + 7e8 / 3.0);
        check(1 << 20, 4, 2e9 + 1e9 * 2.0 / 3.0);
        check(1 << 20, 8, 3e9);
        assert_eq!(Machine::default().storage_bytes_per_s(1, 1), None);
    }

    #[test]
    fn rates_of_the_nearest_kind() {
        let rate = |ty: &str, layout, product, n_in, decode_bytes_per_s| ComputeRate {
            ty: ty.to_owned(),
            layout,
            product,
            n_in,
            decode_bytes_per_s,
            prompt_flops_per_s: 10.0 * decode_bytes_per_s,
        };
        let machine = Machine {
            cores: 2,
            compute: vec![
                rate("Q4_K", Layout::Plain, Product::Matrix, 256, 1.0),
                rate("Q4_K", Layout::Plain, Product::Matrix, 4096, 2.0),
                rate("Q4_K", Layout::Fast, Product::Matrix, 4096, 3.0),
                rate("Q6_K", Layout::Plain, Product::Experts, 512, 0.0),
            ],
            ..Machine::default()
        };
        let check = |ty, layout, product, n_in, expected: (f64, bool)| {
            let rates = machine.rates(ty, layout, product, n_in);
            assert_eq!((rates.decode_bytes_per_s, rates.is_measured), expected, "{ty} {n_in}");
        };
        let (q4, q6) = (GgmlType::Q4_K, GgmlType::Q6_K);
        check(q4, Layout::Plain, Product::Matrix, 300, (1.0, true));
        check(q4, Layout::Plain, Product::Matrix, 2048, (2.0, true));
        check(q4, Layout::Fast, Product::Matrix, 1, (3.0, true));
        check(q4, Layout::Plain, Product::Experts, 256, (1.0, false));
        check(q6, Layout::Plain, Product::Experts, 512, (1e10, false));
    }
}
