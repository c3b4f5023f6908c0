//! The machine, as a plan needs to know it.

use std::path::Path;
use std::time::SystemTime;

use hypura_plan::{BandwidthPoint, Machine};
use hypura_profile::{
    Device, DeviceKind, Effort, Profile, Query, Storage, load_or_probe, probe_cpu, probe_memory,
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
}

/// Of the free memory, one part in this many is left to others, and never less than
/// `MARGIN_BYTES_MIN`.
const MARGIN_SHARE: u64 = 16;
const MARGIN_BYTES_MIN: u64 = 256 << 20;

/// Weights that one core gets through per second in matrix-vector products, in bytes: seen with
/// Q4 and Q8 weights on x86-64 with AVX-512, two cores, all in memory.
const DECODE_BYTES_PER_S_PER_CORE: f64 = 4.2e9;
/// Operations that one core does per second in quantized matrix products, likewise.
const PROMPT_FLOPS_PER_CORE: f64 = 4e10;

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
        let cores = f64::from(threads);
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
                read_latency_s: storage
                    .and_then(|s| s.small_read.as_ref())
                    .map_or(0.0, |latency| latency.p50_s),
                copy_bytes_per_s: profile.memory_copy.bytes_per_s,
                decode_weight_bytes_per_s: cores * DECODE_BYTES_PER_S_PER_CORE,
                prompt_flops_per_s: cores * PROMPT_FLOPS_PER_CORE,
            },
            threads,
            default_budget_bytes: free.saturating_sub(margin),
        }
    }
}

/// Surveys this machine for the model at `path`. Measurements are kept in `cache_dir`; without one,
/// only what costs nothing is looked up.
pub fn survey(path: &Path, cache_dir: Option<&Path>, threads: Option<u32>) -> Survey {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if let Some(cache_dir) = cache_dir {
        let query = Query {
            cache_dir,
            model_file: Some(path),
            devices: devices(),
            effort: Effort::Quick,
            refresh: false,
            now_unix_s: now.as_secs(),
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
                return Survey::of_profile(&loaded.profile, storage.as_ref(), threads);
            }
            Err(error) => tracing::warn!("this machine can't be measured: {error}"),
        }
    }
    unmeasured(threads)
}

/// What costs nothing to find out.
fn unmeasured(threads: Option<u32>) -> Survey {
    let threads = threads.or_else(|| probe_cpu().ok().map(|cpu| cpu.cores_free)).unwrap_or(1);
    let free = probe_memory().map_or(0, |memory| memory.free_for_us());
    Survey {
        machine: Machine {
            free_memory_bytes: free,
            cores: threads,
            decode_weight_bytes_per_s: f64::from(threads) * DECODE_BYTES_PER_S_PER_CORE,
            prompt_flops_per_s: f64::from(threads) * PROMPT_FLOPS_PER_CORE,
            ..Machine::default()
        },
        threads: threads.max(1),
        default_budget_bytes: free.saturating_sub((free / MARGIN_SHARE).max(MARGIN_BYTES_MIN)),
    }
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
