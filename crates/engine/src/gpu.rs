//! The GPU that computes: which one, and how much of its memory.

use std::path::Path;

use hypura_gguf as gguf;
use hypura_llama::{self as llama, Gpu, GpuError};
use hypura_plan::memory::GPU_DRIVER_HOST_BYTES;
use hypura_plan::{self as plan, BandwidthPoint, GpuRates, GpuRequest, Plan};

use hypura_profile::{GpuSpeed, Profile, keep_gpu};

use crate::machine::{self, Survey, library, now_unix_s};
use crate::options::{LoadError, LoadOptions};
use crate::stream::AssistCost;

/// Which GPU computes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GpuChoice {
    /// None.
    #[default]
    Off,
    /// The first one, if there is one that a model can use.
    Auto,
    /// The one with this name of ggml's, such as `CUDA0`.
    Named(String),
}

/// Of the free memory of a GPU, one part in this many is left to others, and never less than
/// `MARGIN_BYTES_MIN`.
const MARGIN_SHARE: u64 = 16;
const MARGIN_BYTES_MIN: u64 = 256 << 20;

/// A GPU and what of it may be used.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) gpu: Gpu,
    /// Bytes of its memory.
    pub(crate) budget_bytes: u64,
    /// How fast it is, if that was measured.
    speed: Option<GpuSpeed>,
}

/// A measurement that is older is made again, in seconds.
const SPEED_AGE_MAX_S: u64 = 30 * 24 * 60 * 60;

impl Chosen {
    /// The GPU that was asked for; `None` without one.
    ///
    /// # Errors
    /// When it was asked for by name and is not there, or the weights are arranged for a CPU.
    pub(crate) fn of(options: &LoadOptions, is_hot: bool) -> Result<Option<Chosen>, LoadError> {
        let gpu = match &options.gpu {
            GpuChoice::Off => return Ok(None),
            GpuChoice::Auto if is_hot => return Ok(None),
            GpuChoice::Auto => match Gpu::first() {
                Ok(gpu) => gpu,
                Err(GpuError::None) => return Ok(None),
                Err(error) => return Err(error.into()),
            },
            GpuChoice::Named(_) if is_hot => return Err(LoadError::HotOnGpu),
            GpuChoice::Named(name) => Gpu::named(name)?,
        };
        let free = gpu.memory_free_bytes;
        let margin = (free / MARGIN_SHARE).max(MARGIN_BYTES_MIN);
        let budget_bytes = options.gpu_memory_bytes.unwrap_or(free.saturating_sub(margin));
        if budget_bytes > free && !gpu.is_emulated() && budget_bytes < 1 << 60 {
            tracing::warn!("the GPU memory budget is more than the {} MiB free now", free >> 20);
        }
        Ok(Some(Chosen { gpu, budget_bytes, speed: None }))
    }

    /// What it has memory of its own for; `None` if it computes with ours.
    pub(crate) fn request(&self) -> Option<GpuRequest> {
        (!self.gpu.is_unified()).then_some(GpuRequest { memory_bytes: self.budget_bytes })
    }

    /// Of a GPU that computes with our memory: what of it it can use, in bytes.
    pub(crate) fn working_set_bytes(&self) -> Option<u64> {
        self.gpu.is_unified().then_some(self.budget_bytes)
    }

    /// Finds out how fast it is, the first time and then every month; it takes a second.
    pub(crate) fn measure(&mut self, profile: &mut Profile, cache_dir: &Path) {
        let (library, now) = (library(), now_unix_s());
        let is_it = |speed: &&GpuSpeed| {
            (&speed.library, &speed.name, &speed.description)
                == (&library, &self.gpu.name, &self.gpu.description)
                && now.checked_sub(speed.taken_unix_s).is_some_and(|age| age <= SPEED_AGE_MAX_S)
        };
        self.speed = profile.gpus.iter().find(is_it).cloned();
        if self.speed.is_some() || self.gpu.is_emulated() || self.gpu.is_unified() {
            return;
        }
        match llama::calibrate::gpu(&self.gpu) {
            Ok(measured) => {
                let speed = GpuSpeed {
                    library,
                    name: self.gpu.name.clone(),
                    description: self.gpu.description.clone(),
                    host_to_device: measured.host_to_device,
                    device_to_host_bytes_per_s: measured.device_to_host_bytes_per_s,
                    decode_bytes_per_s: measured.decode_bytes_per_s,
                    prompt_flops_per_s: measured.prompt_flops_per_s,
                    taken_unix_s: now,
                };
                if let Err(error) = keep_gpu(cache_dir, profile, speed.clone()) {
                    tracing::debug!("{error}");
                }
                self.speed = Some(speed);
            }
            Err(error) => tracing::debug!("the GPU was not measured: {error}"),
        }
    }

    /// What is known of its speed.
    fn rates(&self) -> GpuRates {
        let host_bytes = if self.gpu.is_emulated() { 0 } else { GPU_DRIVER_HOST_BYTES };
        let name = self.gpu.description.clone();
        let mut rates = GpuRates { name, host_bytes, ..GpuRates::default() };
        if let Some(speed) = &self.speed {
            let point = |&(read_bytes, bytes_per_s): &(u64, f64)| BandwidthPoint {
                read_bytes,
                depth: 1,
                bytes_per_s,
            };
            rates.host_to_device = speed.host_to_device.iter().map(point).collect();
            rates.memory_bytes_per_s = speed.decode_bytes_per_s;
            rates.prompt_flops_per_s = speed.prompt_flops_per_s;
        }
        if self.gpu.is_emulated() {
            // Slow, so that there is a reason for everything that a slow link is a reason for.
            let bytes_per_s = 1e9;
            rates.host_to_device =
                vec![BandwidthPoint { read_bytes: 1 << 20, depth: 1, bytes_per_s }];
        }
        rates
    }
}

impl Survey {
    /// With a GPU that computes.
    pub(crate) fn with_gpu(mut self, chosen: Option<Chosen>) -> Survey {
        self.machine.gpu =
            chosen.as_ref().filter(|chosen| !chosen.gpu.is_unified()).map(Chosen::rates);
        self.gpu = chosen;
        self
    }

    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref().map(|chosen| &chosen.gpu)
    }

    /// The GPU, if it has memory of its own.
    pub(crate) fn discrete_gpu(&self) -> Option<&Gpu> {
        self.gpu().filter(|gpu| !gpu.is_unified())
    }
}

/// Slots of each expert layer on the GPU, now that what else it holds is known: `taken_bytes`. All
/// layers of a pool get the same number, between what a token uses and all there are.
///
/// # Errors
/// When a token's experts don't fit beside it.
pub(crate) fn fit_slots(
    plan: &mut Plan,
    taken_bytes: u64,
    slots_max: Option<u32>,
) -> Result<Vec<u32>, LoadError> {
    let Some(gpu) = &mut plan.gpu else { return Ok(Vec::new()) };
    let budget_bytes = gpu.budget_bytes;
    let layers = |pool: &plan::Pool| pool.layers.len() as u64;
    let bytes_of = |per_layer: &[u32]| -> u64 {
        let pools = plan.pools.iter().zip(per_layer);
        pools.map(|(pool, &n)| u64::from(n) * layers(pool) * pool.slot_bytes).sum()
    };
    let least: Vec<u32> = plan.pools.iter().map(|pool| pool.n_used).collect();
    let needed_bytes = taken_bytes + bytes_of(&least);
    if needed_bytes > budget_bytes {
        return Err(LoadError::GpuBudgetTooSmall { needed_bytes, budget_bytes });
    }
    let available = budget_bytes - taken_bytes;
    // Every pool the same share of its experts.
    let share = |share: f64| -> Vec<u32> {
        let pools = plan.pools.iter();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a u32
        pools
            .map(|pool| {
                let wanted = (f64::from(pool.n_experts) * share) as u32;
                let most = slots_max.unwrap_or(u32::MAX).clamp(pool.n_used, pool.n_experts);
                wanted.clamp(pool.n_used, most)
            })
            .collect()
    };
    let (mut low, mut high) = (0.0, 1.0);
    let mut per_layer = least;
    for _ in 0..24 {
        let middle = if high == 1.0 && low == 0.0 { 1.0 } else { (low + high) / 2.0 };
        let slots = share(middle);
        if bytes_of(&slots) <= available {
            per_layer = slots;
            low = middle;
            if middle == 1.0 {
                break;
            }
        } else {
            high = if middle == 1.0 { 0.999_999 } else { middle };
        }
    }
    gpu.slots = plan
        .pools
        .iter()
        .zip(&per_layer)
        .map(|(pool, &n)| n * u32::try_from(pool.layers.len()).unwrap_or(u32::MAX))
        .collect();
    gpu.bytes.expert_slots = bytes_of(&per_layer);
    let of_layer = |layer: &plan::ExpertLayer| per_layer.get(layer.pool as usize).copied();
    Ok(plan.expert_layers.iter().map(|layer| of_layer(layer).unwrap_or(0)).collect())
}

/// Waking the CPU's threads and bringing its rows to the GPU, in seconds; seen with 16 cores and an
/// H200.
const ASSIST_S: f64 = 30e-6;

/// What copying and computing an expert cost; `None` without a GPU or experts.
pub(crate) fn assist_cost(
    model: &gguf::Model,
    plan: &Plan,
    surveyed: &Survey,
) -> Option<AssistCost> {
    let rates = surveyed.machine.gpu.as_ref()?;
    let slice = plan.pools.iter().flat_map(|pool| &pool.parts).map(|part| part.bytes).max()?;
    let expert = plan.expert_layers.first()?.tensors.first()?;
    let tensor = model.tensors.get(expert.tensor)?;
    let decode = surveyed.machine.expert_bytes_per_s(tensor.ty, tensor.dims[0]);
    Some(AssistCost {
        copy_s_per_byte: 1.0 / rates.copy_bytes_per_s(slice),
        compute_s_per_byte: 1.0 / decode,
        fixed_s: ASSIST_S,
    })
}

/// Surveys this machine for a model, with the GPU that was asked for.
///
/// # Errors
/// As [`Chosen::of`].
pub(crate) fn survey(
    path: &Path,
    options: &LoadOptions,
    is_hot: bool,
) -> Result<Survey, LoadError> {
    let dir = options.profile_dir.as_deref();
    let (surveyed, mut profile) = machine::survey_with(path, dir, options.threads, false);
    add(surveyed, profile.as_mut(), options, is_hot)
}

/// Adds the GPU that was asked for to a survey; its speed is found in the profile, or measured.
///
/// # Errors
/// As [`Chosen::of`].
pub(crate) fn add(
    surveyed: Survey,
    profile: Option<&mut Profile>,
    options: &LoadOptions,
    is_hot: bool,
) -> Result<Survey, LoadError> {
    let mut chosen = Chosen::of(options, is_hot)?;
    if chosen.is_none() && (options.gpu_memory_bytes.is_some() || options.cpu_assists) {
        tracing::warn!("no GPU computes: --gpu-memory and --cpu-assist change nothing");
    }
    let dir = options.profile_dir.as_deref();
    if let (Some(chosen), Some(profile), Some(dir)) = (&mut chosen, profile, dir) {
        chosen.measure(profile, dir);
    }
    Ok(surveyed.with_gpu(chosen))
}
