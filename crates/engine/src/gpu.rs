//! The GPUs that compute: which ones, and how much of their memory.

mod slots;

use std::path::Path;
use std::sync::Once;

pub(crate) use slots::{fit_slots, split, taken_bytes};

use hypura_gguf as gguf;
use hypura_llama::{self as llama, Gpu, GpuError};
use hypura_plan::memory::GPU_DRIVER_HOST_BYTES;
use hypura_plan::{BandwidthPoint, GpuRates, GpuRequest, Mode, Plan};

use hypura_profile::{GpuSpeed, Profile, keep_gpu};

use crate::load::make_plan;
use crate::machine::{self, Survey, library, now_unix_s};
use crate::options::{LoadError, LoadOptions};
use crate::stream::AssistCost;

/// Which GPU computes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GpuChoice {
    /// None.
    #[default]
    Off,
    /// Of those that there are, as few as hold the model; all, if they don't.
    Auto,
    /// The one with this name of ggml's, such as `CUDA0`, or several, divided by commas.
    Named(String),
}

impl GpuChoice {
    /// The GPUs that there are to choose from, best first, or those that were named.
    ///
    /// # Errors
    /// When there is none, or not the one that was named.
    pub fn gpus(&self) -> Result<Vec<Gpu>, GpuError> {
        match self {
            GpuChoice::Off => Ok(Vec::new()),
            GpuChoice::Auto => {
                let mut gpus = Gpu::all()?;
                gpus.sort_by_key(|gpu| std::cmp::Reverse(gpu.memory_free_bytes));
                gpus.truncate(llama::DEVICES_MAX);
                Ok(gpus)
            }
            GpuChoice::Named(names) => names.split(',').map(Gpu::named).collect(),
        }
    }
}

/// Names of the products, in one line.
#[must_use]
pub fn gpu_names(gpus: &[Gpu]) -> String {
    let names: Vec<&str> = gpus.iter().map(|gpu| gpu.description.as_str()).collect();
    match names.as_slice() {
        [first, rest @ ..] if !rest.is_empty() && rest.iter().all(|name| name == first) => {
            format!("{} × {first}", names.len())
        }
        _ => names.join(" + "),
    }
}

/// The first name that is there more than once.
fn named_twice<'a>(names: &[&'a str]) -> Option<&'a str> {
    let is_again = |(i, name): (usize, &&'a str)| names[..i].contains(name).then_some(*name);
    names.iter().enumerate().find_map(is_again)
}

/// Of the free memory of a GPU, one part in this many is left to others, and never less than
/// `MARGIN_BYTES_MIN`.
const MARGIN_SHARE: u64 = 16;
const MARGIN_BYTES_MIN: u64 = 256 << 20;

/// GPUs and what of them may be used.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// There is one at least.
    pub(crate) gpus: Vec<Gpu>,
    /// Bytes of each one's memory.
    pub(crate) budget_bytes: Vec<u64>,
    /// How fast the first one is, if that was measured; the others are taken to be like it.
    speed: Option<GpuSpeed>,
}

/// A measurement that is older is made again, in seconds.
const SPEED_AGE_MAX_S: u64 = 30 * 24 * 60 * 60;

impl Chosen {
    /// The GPUs that were asked for; `None` without any.
    ///
    /// # Errors
    /// When they were asked for by name and are not there, or the weights are arranged for a CPU.
    pub(crate) fn of(options: &LoadOptions, is_hot: bool) -> Result<Option<Chosen>, LoadError> {
        let choice = &options.gpu;
        let gpus = match choice.gpus() {
            _ if *choice == GpuChoice::Off => return Ok(None),
            _ if is_hot && *choice == GpuChoice::Auto => return Ok(None),
            _ if is_hot => return Err(LoadError::HotOnGpu),
            Err(GpuError::None) if *choice == GpuChoice::Auto => return Ok(None),
            gpus => gpus?,
        };
        let names: Vec<&str> =
            gpus.iter().filter(|gpu| !gpu.is_emulated()).map(|gpu| gpu.name.as_str()).collect();
        if let Some(name) = named_twice(&names) {
            return Err(GpuError::Twice(name.to_owned()).into());
        }
        if let Some(gpu) = gpus.iter().find(|gpu| gpu.is_unified())
            && gpus.len() > 1
        {
            return Err(GpuError::Unified(gpu.name.clone()).into());
        }
        if gpus.len() > llama::DEVICES_MAX {
            return Err(GpuError::TooMany(gpus.len()).into());
        }
        if let Some(gpu) = gpus.iter().find(|gpu| !gpu.launches_graphs()) {
            // Plans are made more than once.
            static SAID: Once = Once::new();
            let name = &gpu.name;
            SAID.call_once(|| {
                tracing::warn!(
                    "the backend of {name} was built without GGML_CUDA_GRAPHS: tokens take longer, \
                     of small models twice as long (README, \"Packaging\")"
                );
            });
        }
        let budget = |gpu: &Gpu| {
            let free = gpu.memory_free_bytes;
            let margin = (free / MARGIN_SHARE).max(MARGIN_BYTES_MIN);
            let budget_bytes = options.gpu_memory_bytes.unwrap_or(free.saturating_sub(margin));
            if budget_bytes > free && !gpu.is_emulated() && budget_bytes < 1 << 60 {
                let (name, free) = (&gpu.name, free >> 20);
                tracing::warn!("the GPU memory budget is more than the {free} MiB free on {name}");
            }
            budget_bytes
        };
        let budget_bytes = gpus.iter().map(budget).collect();
        Ok(Some(Chosen { gpus, budget_bytes, speed: None }))
    }

    /// The same with the first GPUs only, `n` of them.
    fn first(&self, n: usize) -> Chosen {
        let mut chosen = self.clone();
        chosen.gpus.truncate(n);
        chosen.budget_bytes.truncate(n);
        chosen
    }

    /// Takes so many bytes of each GPU's budget away.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        for budget in &mut self.budget_bytes {
            *budget = budget.saturating_sub(bytes);
        }
    }

    pub(crate) fn is_emulated(&self) -> bool {
        self.gpus.iter().any(Gpu::is_emulated)
    }

    fn is_unified(&self) -> bool {
        self.gpus.iter().any(Gpu::is_unified)
    }

    fn total_bytes(&self) -> u64 {
        self.budget_bytes.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }

    /// What they have memory of their own for; `None` if they compute with ours.
    pub(crate) fn request(&self) -> Option<GpuRequest> {
        let devices = u32::try_from(self.gpus.len()).unwrap_or(1);
        (!self.is_unified()).then(|| GpuRequest { memory_bytes: self.total_bytes(), devices })
    }

    /// Of a GPU that computes with our memory: what of it it can use, in bytes.
    pub(crate) fn working_set_bytes(&self) -> Option<u64> {
        self.is_unified().then(|| self.total_bytes())
    }

    /// Names of the products.
    pub(crate) fn description(&self) -> String {
        gpu_names(&self.gpus)
    }

    /// Finds out how fast it is, the first time and then every month; it takes a second.
    pub(crate) fn measure(&mut self, profile: &mut Profile, cache_dir: &Path) {
        let (library, now) = (library(), now_unix_s());
        let Some(gpu) = self.gpus.first() else { return };
        let is_it = |speed: &&GpuSpeed| {
            (&speed.library, &speed.name, &speed.description)
                == (&library, &gpu.name, &gpu.description)
                && now.checked_sub(speed.taken_unix_s).is_some_and(|age| age <= SPEED_AGE_MAX_S)
        };
        self.speed = profile.gpus.iter().find(is_it).cloned();
        if self.speed.is_some() || gpu.is_emulated() || gpu.is_unified() {
            return;
        }
        match llama::calibrate::gpu(gpu) {
            Ok(measured) => {
                let speed = GpuSpeed {
                    library,
                    name: gpu.name.clone(),
                    description: gpu.description.clone(),
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
        let host_bytes = if self.is_emulated() { 0 } else { GPU_DRIVER_HOST_BYTES };
        let name = self.description();
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
        if self.is_emulated() {
            // Slow, so that there is a reason for everything that a slow link is a reason for.
            let bytes_per_s = 1e9;
            rates.host_to_device =
                vec![BandwidthPoint { read_bytes: 1 << 20, depth: 1, bytes_per_s }];
        }
        rates
    }
}

impl Survey {
    /// With GPUs that compute.
    pub(crate) fn with_gpu(mut self, chosen: Option<Chosen>) -> Survey {
        self.machine.gpu = chosen.as_ref().filter(|chosen| !chosen.is_unified()).map(Chosen::rates);
        self.gpu = chosen;
        self
    }

    /// Of several GPUs as few as hold the model whole, by the plan that they give: a token passes
    /// through one after the other, so more of them are no faster.
    ///
    /// # Errors
    /// Those of `make_plan`, for all of them together.
    pub(crate) fn with_fewest_gpus(
        self,
        make_plan: impl Fn(&Survey) -> Result<Plan, LoadError>,
    ) -> Survey {
        let Some(chosen) = &self.gpu else { return self };
        for n in 1..chosen.gpus.len() {
            let fewer = self.clone().with_gpu(Some(chosen.first(n)));
            if make_plan(&fewer).is_ok_and(|plan| plan.mode == Mode::FullResident) {
                return fewer;
            }
        }
        self
    }

    /// The GPUs that compute, none if the CPU does.
    pub(crate) fn gpus(&self) -> &[Gpu] {
        self.gpu.as_ref().map_or(&[], |chosen| &chosen.gpus)
    }

    pub(crate) fn has_emulated_gpu(&self) -> bool {
        self.gpu.as_ref().is_some_and(Chosen::is_emulated)
    }

    /// Whether GPUs with memory of their own compute.
    pub(crate) fn has_discrete_gpu(&self) -> bool {
        self.gpu.as_ref().is_some_and(|chosen| !chosen.is_unified())
    }
}

/// Waking the CPU's threads and bringing its rows to the GPU, in seconds; seen with 16 cores and an
/// H200.
const ASSIST_S: f64 = 30e-6;
/// Kernels of one layer's experts, in seconds, however little they read; seen with an H200.
const KERNELS_S: f64 = 20e-6;

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
    Some(cost_of(rates, slice, decode))
}

/// For slices of so many bytes, and what the CPU gets through in bytes per second.
fn cost_of(rates: &GpuRates, slice_bytes: u64, cpu_bytes_per_s: f64) -> AssistCost {
    AssistCost {
        copy_s_per_byte: 1.0 / rates.copy_bytes_per_s(slice_bytes),
        compute_s_per_byte: 1.0 / cpu_bytes_per_s,
        fixed_s: ASSIST_S,
        device_s_per_byte: 1.0 / rates.decode_bytes_per_s(),
        kernels_s: KERNELS_S,
    }
}

/// Surveys this machine for a model, with the GPUs that were asked for.
///
/// # Errors
/// As [`Chosen::of`].
pub(crate) fn survey(
    path: &Path,
    model: &gguf::Model,
    options: &LoadOptions,
    is_hot: bool,
) -> Result<Survey, LoadError> {
    let dir = options.profile_dir.as_deref();
    let (surveyed, mut profile) = machine::survey_with(path, dir, options.threads, false);
    add(surveyed, profile.as_mut(), model, options, is_hot)
}

/// Adds the GPUs that were asked for to a survey; their speed is found in the profile, or measured.
///
/// # Errors
/// As [`Chosen::of`].
pub(crate) fn add(
    surveyed: Survey,
    profile: Option<&mut Profile>,
    model: &gguf::Model,
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
    let surveyed = surveyed.with_gpu(chosen);
    Ok(match options.gpu {
        GpuChoice::Auto => surveyed.with_fewest_gpus(|with| make_plan(model, with, options, &[])),
        _ => surveyed,
    })
}

#[cfg(test)]
mod tests {
    use hypura_plan::GpuRates;

    use super::{cost_of, named_twice};

    #[test]
    fn a_gpu_that_was_not_measured_is_as_fast_as_is_assumed() {
        let cost = cost_of(&GpuRates::default(), 4_456_448, 80e9);
        // A single one is sooner computed where it lies; of two, one is copied meanwhile.
        let bytes = 13_369_344;
        assert_eq!([1, 2, 3].map(|n| cost.host_share(n, 4, bytes)), [1, 1, 2]);
        assert_eq!(cost.guessed_slices(4, bytes, 4_456_448), 2);
    }

    #[test]
    fn a_gpu_that_is_named_twice_is_found() {
        assert_eq!(named_twice(&["CUDA0", "CUDA1", "CUDA0"]), Some("CUDA0"));
        assert_eq!(named_twice(&["CUDA0", "CUDA1"]), None);
        assert_eq!(named_twice(&[]), None);
    }
}
