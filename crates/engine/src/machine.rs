//! The machine, as a plan needs to know it.

use std::path::Path;
use std::time::SystemTime;

use hypura_plan::{BandwidthPoint, ComputeRate, Layout, Machine, Product};
use hypura_profile::{
    Compute, Device, DeviceKind, Effort, Profile, Query, Storage, load_or_probe, probe_cpu,
    probe_memory,
};

/// What a plan needs to know of a machine, and what was decided for it.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The machine.
    pub machine: Machine,
    /// Compute threads.
    pub threads: u32,
    /// The budget when none is given: what is free, less a margin.
    pub default_budget_bytes: u64,
    /// The GPU that computes, if one does.
    pub(crate) gpu: Option<crate::gpu::Chosen>,
}

/// Of the free memory, one part in this many is left to others, and never less than
/// `MARGIN_BYTES_MIN`.
const MARGIN_SHARE: u64 = 16;
const MARGIN_BYTES_MIN: u64 = 256 << 20;

/// A measurement of the drive that is not older tells how it is now, in seconds.
const FRESH_S: u64 = 120;

/// How layouts and products are called in a profile.
const LAYOUTS: [(&str, Layout); 2] = [("plain", Layout::Plain), ("fast", Layout::Fast)];
const PRODUCTS: [(&str, Product); 2] = [("matrix", Product::Matrix), ("experts", Product::Experts)];

impl Survey {
    /// From a profile: of this machine, or of a described one. `storage` is the drive to plan with;
    /// without it the profile's newest one.
    pub fn of_profile(
        profile: &Profile,
        storage: Option<&Storage>,
        threads: Option<u32>,
    ) -> Survey {
        let newest = || profile.storage.iter().max_by_key(|s| s.taken_unix_s);
        let storage = storage.or_else(newest);
        let threads = threads.unwrap_or(profile.cpu.cores_free).max(1);
        let free = profile.memory.free_for_us();
        let margin = (free / MARGIN_SHARE).max(MARGIN_BYTES_MIN);
        let points = storage.map(|s| s.points.as_slice()).unwrap_or_default();
        let steps = profile.compute_steps.iter().filter(|step| step.threads == threads);
        Survey {
            machine: Machine {
                free_memory_bytes: free,
                cores: threads,
                storage: points
                    .iter()
                    .map(|p| BandwidthPoint {
                        read_bytes: p.read_bytes,
                        depth: p.depth,
                        bytes_per_s: p.bytes_per_s,
                    })
                    .collect(),
                storage_is_fresh: storage
                    .is_some_and(|storage| now_unix_s().abs_diff(storage.taken_unix_s) <= FRESH_S),
                read_latency_s: storage
                    .and_then(|s| s.small_read.as_ref())
                    .map_or(0.0, |latency| latency.p50_s),
                compute: rates(&profile.compute, threads),
                step_s: steps.max_by_key(|s| s.taken_unix_s).map_or(0.0, |step| step.seconds),
                gpu: None,
            },
            threads,
            default_budget_bytes: free.saturating_sub(margin),
            gpu: None,
        }
    }
}

/// Surveys this machine for the model at `path`. Measurements are kept in `cache_dir`; without one,
/// only what costs nothing is looked up. The speed of computing is taken from there, and never
/// measured here.
pub fn survey(path: &Path, cache_dir: Option<&Path>, threads: Option<u32>) -> Survey {
    survey_with(path, cache_dir, threads, false).0
}

/// The same, with the profile that it is from; `probe` measures the drive now, and thoroughly.
pub(crate) fn survey_with(
    path: &Path,
    cache_dir: Option<&Path>,
    threads: Option<u32>,
    probe: bool,
) -> (Survey, Option<Profile>) {
    let Some(cache_dir) = cache_dir else { return (unmeasured(threads), None) };
    let query = Query {
        cache_dir,
        model_file: Some(path),
        devices: devices(),
        effort: if probe { Effort::Full } else { Effort::Quick },
        refresh: probe,
        now_unix_s: now_unix_s(),
    };
    match load_or_probe(&query) {
        Ok(loaded) => {
            if let Err(error) = &loaded.saved {
                tracing::debug!("{error}");
            }
            let storage = loaded.storage.and_then(|storage| {
                storage.inspect_err(|e| tracing::debug!("the drive was not measured: {e}")).ok()
            });
            let storage = storage.filter(|s| !s.points.is_empty());
            let mut profile = loaded.profile;
            let library = library();
            profile.compute.retain(|measured| measured.library == library);
            profile.compute_steps.retain(|measured| measured.library == library);
            (Survey::of_profile(&profile, storage.as_ref(), threads), Some(profile))
        }
        Err(error) => {
            tracing::warn!("this machine can't be measured: {error}");
            (unmeasured(threads), None)
        }
    }
}

/// What costs nothing to find out.
fn unmeasured(threads: Option<u32>) -> Survey {
    let threads = threads.or_else(|| probe_cpu().ok().map(|cpu| cpu.cores_free)).unwrap_or(1);
    let free = probe_memory().map_or(0, |memory| memory.free_for_us());
    Survey {
        machine: Machine { free_memory_bytes: free, cores: threads, ..Machine::default() },
        threads: threads.max(1),
        default_budget_bytes: free.saturating_sub((free / MARGIN_SHARE).max(MARGIN_BYTES_MIN)),
        gpu: None,
    }
}

/// What of a profile was measured with this many threads.
fn rates(measured: &[Compute], threads: u32) -> Vec<ComputeRate> {
    let rate = |measured: &Compute| {
        let kind = &measured.kind;
        let (_, layout) = LAYOUTS.iter().find(|(name, _)| *name == kind.layout)?;
        let (_, product) = PRODUCTS.iter().find(|(name, _)| *name == kind.product)?;
        Some(ComputeRate {
            ty: kind.ty.clone(),
            layout: *layout,
            product: *product,
            n_in: kind.n_in,
            decode_bytes_per_s: measured.decode_bytes_per_s,
            prompt_flops_per_s: measured.prompt_flops_per_s,
        })
    };
    measured.iter().filter(|measured| measured.threads == threads).filter_map(rate).collect()
}

/// How a profile calls a layout and a product.
pub(crate) fn names(layout: Layout, product: Product) -> (&'static str, &'static str) {
    let layout = LAYOUTS.iter().find(|(_, of)| *of == layout).map_or("", |(name, _)| name);
    let product = PRODUCTS.iter().find(|(_, of)| *of == product).map_or("", |(name, _)| name);
    (layout, product)
}

/// What computes, with its version: measurements of another one say nothing.
pub(crate) fn library() -> String {
    format!("llama.cpp {}", hypura_llama::version())
}

pub(crate) fn now_unix_s() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// The compute devices that ggml found, as a profile describes them.
pub fn devices() -> Vec<Device> {
    hypura_llama::devices()
        .into_iter()
        .map(|device| Device {
            name: device.name,
            description: device.description,
            kind: if device.is_cpu { DeviceKind::Cpu } else { DeviceKind::Gpu },
            memory_total_bytes: device.memory_total_bytes,
            memory_free_bytes: device.memory_free_bytes,
        })
        .collect()
}
