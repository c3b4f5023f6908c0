//! From a path and a budget to a model that is ready to generate.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypura_gguf as gguf;
use hypura_io as io;
use hypura_llama as llama;
use hypura_llama::tiered::{self, PoolSpec, StreamMemory};
use hypura_plan::{self as plan, Mode, Plan, PlanError};

use crate::attention::{self, Attention};
use crate::estimate::plan_layout;
use crate::gpu::{self, Chosen, GpuChoice};
use crate::history::HistoryFile;
use crate::hot::Opened;
use crate::machine;
use crate::options::{LoadError, LoadOptions, Progress};
use crate::params::{context_params, n_seq};
use crate::pools::{SlotLayout, fit_pools};
use crate::stream::{Shared, StreamStats, Streamer};
use crate::streamed::Streamed;
use crate::trace::Recorder;

/// A model that is ready.
pub struct Loaded {
    /// The file's description.
    pub gguf: gguf::Model,
    /// What was planned, with the pools as they were made.
    pub plan: Plan,
    /// llama.cpp's context, with the model in it.
    pub context: llama::Context,
    /// Compute threads.
    pub threads: u32,
    /// How the resident weights lie.
    pub layout: llama::Layout,
    /// Time for all of it.
    pub load_time: Duration,
    /// Name of the GPU that computes, if one does.
    pub gpu: Option<String>,
    /// The most that copies to it were measured at, in bytes per second.
    pub link_bytes_per_s: Option<f64>,
    /// Bytes of weights read while loading, and how many of them belong to streamed tensors.
    pub load_stats: tiered::LoadStats,
    pub(crate) stream: Option<Arc<Shared>>,
    pub(crate) attention: Option<Attention>,
    /// Requests that are computed together, and that wait beside them, at most.
    pub(crate) parallel: usize,
    pub(crate) queue_max: usize,
}

impl Loaded {
    /// What streaming has done since the model was loaded.
    pub fn stream_stats(&self) -> StreamStats {
        self.stream.as_ref().map(|shared| shared.stats()).unwrap_or_default()
    }
}

/// Kept free beside what was measured: allocations that come later (sampling, tokenizing, the
/// allocator's own).
const HEADROOM_BYTES: u64 = 12 << 20;

/// What buffers of a GPU may be larger than planned: its driver rounds up, and more is planned for
/// the driver itself than it was seen to take.
const GPU_HEADROOM_BYTES: u64 = 4 << 20;

/// Room in the ring for placing matrices on whole blocks.
const RING_SLACK_BYTES: u64 = 4 * 4096;

/// Plans and loads the model at `path` (a GGUF file, or the first of a split set).
///
/// # Errors
/// When the file is no sound model, the budget is too small, or llama.cpp refuses it.
pub fn load(
    path: &Path,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<Loaded, LoadError> {
    let begin = Instant::now();
    let opened = Opened::open(path)?;
    opened.check(options.layout)?;
    let surveyed = gpu::survey(path, opened.model(), options, opened.hot().is_some())?;
    let has_gpu = !surveyed.gpus().is_empty();
    let without = surveyed.clone().with_gpu(None);
    match load_on(path, opened, surveyed, options, progress, begin) {
        Err(LoadError::Plan(PlanError::GpuBudgetTooSmall { smallest_bytes, .. }))
            if has_gpu && options.gpu == GpuChoice::Auto && options.gpu_memory_bytes.is_none() =>
        {
            let smallest_mib = smallest_bytes.div_ceil(1 << 20);
            tracing::warn!(
                "the GPU has too little free memory for this model ({smallest_mib} MiB are \
                 needed): the CPU computes"
            );
            load_on(path, Opened::open(path)?, without, options, progress, begin)
        }
        other => other,
    }
}

/// As [`load`], on a machine that was surveyed.
fn load_on(
    path: &Path,
    opened: Opened,
    surveyed: machine::Survey,
    options: &LoadOptions,
    progress: Progress<'_>,
    begin: Instant,
) -> Result<Loaded, LoadError> {
    let model = opened.model();
    let free = surveyed.machine.free_memory_bytes;
    // Somewhat more may be had: a control group of just this size counts us already.
    let most = free + free / 16;
    if free > 0 && options.memory_bytes.is_some_and(|bytes| bytes > most) {
        let free_mib = free >> 20;
        tracing::warn!("the memory budget is more than the {free_mib} MiB that are free now");
    }
    let fingerprint = match &options.kv {
        Some(kv) if kv.keeps_something() => {
            // Reading the whole model is no way to find out that it does not fit.
            make_plan(model, &surveyed, options, &[])?;
            attention::fingerprint(model, options, progress)?
        }
        _ => String::new(),
    };
    let mut pinned = Vec::new();
    let mut options = options.clone();
    let (mut short_bytes, mut gpu_short_bytes) = (0, 0);
    let mut surveyed = surveyed;
    loop {
        let options = &mut options;
        let plan = make_plan(model, &surveyed, options, &pinned)?;
        tracing::debug!(mode = ?plan.mode, bytes = ?plan.bytes, "planned");
        let weights = plan.bytes.resident_weights;
        let is_dense = plan.mode == Mode::DenseStreaming && plan.gpu.is_none();
        let made = if is_dense && options.weights_memory_bytes.is_none() {
            measured(&opened, plan, &surveyed, options, &pinned, short_bytes)
                .and_then(|plan| load_streamed(&opened, plan, &surveyed, options, progress))
        } else if plan.mode == Mode::FullResident {
            let made = match &opened {
                Opened::Plain(_) => {
                    let source = llama::plain::Source::Direct;
                    load_resident(path, model, source, &plan, &surveyed, options, progress)
                }
                Opened::Hot(_) => load_hot(&opened, plan, &surveyed, options, progress),
            };
            made.and_then(|parts| check_resident(parts, model, options.occupied_bytes))
        } else {
            load_streamed(&opened, plan, &surveyed, options, progress)
        };
        match made {
            Ok(parts) => {
                let info = parts.context.model().info();
                if info.has_encoder || !info.has_decoder {
                    return Err(LoadError::NotGenerative);
                }
                let mut loaded = parts.into_loaded(opened.into_model(), &surveyed, options, begin);
                let Loaded { context, gguf, plan, .. } = &mut loaded;
                loaded.attention =
                    attention::open(context, gguf, plan, &surveyed, options, &fingerprint);
                return Ok(loaded);
            }
            Err(LoadError::ResidentTooLarge { needed_bytes })
                if options.weights_memory_bytes.is_none() =>
            {
                tracing::info!(needed_bytes, "does not fit after all: streaming");
                options.weights_memory_bytes = Some(weights.saturating_sub(1));
            }
            // Buffers of a GPU can be measured only when they are made.
            Err(LoadError::GpuBudgetTooSmall { needed_bytes, budget_bytes })
                if gpu_short_bytes == 0 =>
            {
                gpu_short_bytes = needed_bytes.saturating_sub(budget_bytes) + GPU_HEADROOM_BYTES;
                tracing::info!(gpu_short_bytes, "the GPU holds more than expected: planning again");
                if let Some(chosen) = &mut surveyed.gpu {
                    chosen.shrink(gpu_short_bytes);
                }
            }
            // What the allocator and threads keep differs from one load to the next, more so in a
            // process that does other things as well.
            Err(LoadError::BudgetTooSmall { needed_bytes, budget_bytes })
                if is_dense && short_bytes == 0 && options.weights_memory_bytes.is_none() =>
            {
                short_bytes = needed_bytes.saturating_sub(budget_bytes) + HEADROOM_BYTES;
                tracing::info!(short_bytes, "buffers are larger than measured: planning again");
                llama::process::trim();
            }
            Err(LoadError::Llama(llama::LoadError::Unstreamable { names }))
                if !names.iter().all(|name| pinned.contains(name)) =>
            {
                tracing::info!("kept resident, as llama.cpp uses them otherwise: {names:?}");
                pinned.extend(names);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Bytes that a model may take where nothing is said: what is free now, less a margin.
pub fn free_bytes(path: &Path, options: &LoadOptions) -> u64 {
    machine::survey(path, options.profile_dir.as_deref(), options.threads).default_budget_bytes
}

/// Plans without loading.
///
/// # Errors
/// As [`load`], as far as the plan goes.
pub fn plan_only(path: &Path, options: &LoadOptions) -> Result<(gguf::Model, Plan), LoadError> {
    let opened = Opened::open(path)?;
    let surveyed = gpu::survey(path, opened.model(), options, opened.hot().is_some())?;
    let model = opened.into_model();
    let plan = make_plan(&model, &surveyed, options, &[])?;
    Ok((model, plan))
}

/// Loads with llama.cpp's own loader, whatever the budget: what everything is compared with.
///
/// # Errors
/// As [`load`].
pub fn load_baseline(
    path: &Path,
    source: llama::plain::Source,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<Loaded, LoadError> {
    let begin = Instant::now();
    let Opened::Plain(model) = Opened::open(path)? else { return Err(LoadError::HotBaseline) };
    let surveyed = machine::survey(path, None, options.threads);
    let unlimited = LoadOptions {
        memory_bytes: Some(1 << 60),
        gpu_memory_bytes: Some(1 << 60),
        ..options.clone()
    };
    let surveyed = surveyed.with_gpu(Chosen::of(&unlimited, false)?);
    let plan = make_plan(&model, &surveyed, &unlimited, &[])?;
    let parts = load_resident(path, &model, source, &plan, &surveyed, options, progress)?;
    Ok(parts.into_loaded(model, &surveyed, options, begin))
}

pub(crate) fn make_plan(
    model: &gguf::Model,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    pinned: &[String],
) -> Result<Plan, LoadError> {
    let request = request(model, surveyed, options, pinned);
    Ok(plan::plan(model, &surveyed.machine, &request)?)
}

fn request(
    model: &gguf::Model,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    pinned: &[String],
) -> plan::Request {
    let has_copies = surveyed.has_discrete_gpu();
    let of_blocks = |kv| attention::Sizes::of(model, options, kv, has_copies);
    let sizes = options.kv.as_ref().map(of_blocks);
    let memory_bytes = options.memory_bytes.unwrap_or(surveyed.default_budget_bytes);
    let most = surveyed.gpu.as_ref().and_then(Chosen::working_set_bytes);
    let memory_bytes = most.map_or(memory_bytes, |most| memory_bytes.min(most));
    plan::Request {
        n_seq: n_seq(options),
        kv_tier_bytes: sizes.map_or(0, |sizes| sizes.memory_bytes()),
        memory_bytes,
        weights_memory_bytes: options.weights_memory_bytes,
        ctx_tokens: options.ctx_tokens,
        ubatch_tokens: options.ubatch_tokens,
        kv_type_k: options.kv_type_k,
        kv_type_v: options.kv_type_v,
        layout: plan_layout(options.layout),
        flash_attention: options.flash_attention != llama::FlashAttention::Off,
        pinned: pinned.to_vec(),
        gpu: surveyed.gpu.as_ref().and_then(Chosen::request),
        gpu_slots_max: options.gpu_slots_max,
        ..plan::Request::default()
    }
}

/// The plan for a model of which whole matrices stream, with what everything but weights really
/// takes: the model is loaded with nothing in memory that can stream, which reads next to nothing,
/// and its buffers are made and measured. The estimate has to lie above the truth for every model,
/// and each byte too much would be read again for every token. `short_bytes` is what an earlier try
/// lacked.
fn measured(
    opened: &Opened,
    plan: Plan,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    pinned: &[String],
    short_bytes: u64,
) -> Result<Plan, LoadError> {
    let ask = plan::Request {
        ubatch_tokens: Some(plan.n_ubatch),
        ..request(opened.model(), surveyed, options, pinned)
    };
    let smallest = |memory_bytes| {
        let ask = plan::Request { memory_bytes, ..ask.clone() };
        plan::plan(opened.model(), &surveyed.machine, &ask)
    };
    let bare = match smallest(0) {
        Err(PlanError::BudgetTooSmall { smallest_bytes, .. }) => smallest(smallest_bytes)?,
        other => other?,
    };
    if bare.mode != Mode::DenseStreaming {
        return Ok(plan);
    }
    let (begin, before) = (Instant::now(), llama::process::rss_bytes());
    let made = prepare(opened, &bare, surveyed, options, &mut |_| true)?;
    let other = made.fixed_bytes.saturating_sub(bare.bytes.resident_weights + bare.bytes.ring);
    drop(made);
    llama::process::trim();
    tracing::debug!(
        other,
        planned = plan.bytes.total() - plan.bytes.resident_weights - plan.bytes.ring,
        elapsed = ?begin.elapsed(),
        left = llama::process::rss_bytes().saturating_sub(before),
        "measured"
    );
    let ask = plan::Request { measured_other_bytes: Some(other + short_bytes), ..ask };
    Ok(plan::plan(opened.model(), &surveyed.machine, &ask)?)
}

struct Parts {
    plan: Plan,
    context: llama::Context,
    stream: Option<Arc<Shared>>,
    load_stats: tiered::LoadStats,
}

impl Parts {
    fn into_loaded(
        self,
        gguf: gguf::Model,
        surveyed: &machine::Survey,
        options: &LoadOptions,
        begin: Instant,
    ) -> Loaded {
        let mut plan = self.plan;
        // Pools were fitted to what is really left of the budget.
        let layout = plan_layout(options.layout);
        let routing = plan::Routing::Assumed;
        plan.speed = plan::forecast(&gguf, &plan, &surveyed.machine, layout, routing).speed;
        Loaded {
            gguf,
            plan,
            context: self.context,
            threads: surveyed.threads,
            // A GPU has its weights as they are in the file.
            layout: if surveyed.has_discrete_gpu() && !surveyed.has_emulated_gpu() {
                llama::Layout::Plain
            } else {
                options.layout
            },
            load_time: begin.elapsed(),
            gpu: surveyed.gpu.as_ref().map(Chosen::description),
            link_bytes_per_s: surveyed
                .machine
                .gpu
                .as_ref()
                .and_then(plan::GpuRates::link_bytes_per_s),
            load_stats: self.load_stats,
            stream: self.stream,
            attention: None,
            parallel: options.parallel.max(1) as usize,
            queue_max: options.queue_max,
        }
    }
}

fn threadpool(surveyed: &machine::Survey, poll: u32) -> Result<Arc<llama::Threadpool>, LoadError> {
    let pool = llama::Threadpool::new(surveyed.threads, poll);
    pool.map(Arc::new).ok_or_else(|| LoadError::Other("no memory for compute threads".into()))
}

/// How eagerly idle compute threads spin between graphs, in ggml's scale of 0 to 100. Resident:
/// ggml's own default. Streamed: the cores are wanted for reading while nobody computes.
const POLL_RESIDENT: u32 = 50;
const POLL_STREAMED: u32 = 0;

fn load_resident(
    path: &Path,
    gguf: &gguf::Model,
    source: llama::plain::Source,
    plan: &Plan,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<Parts, LoadError> {
    let split = gpu::split(gguf, plan, surveyed);
    let on = match surveyed.gpus() {
        [] => llama::plain::On::Cpu,
        _ if surveyed.has_emulated_gpu() => llama::plain::On::Cpu,
        gpus if options.experts_on_cpu => llama::plain::On::GpuWithExpertsOnCpu(gpus),
        gpus => match options.gpu_layers {
            Some(n) => llama::plain::On::GpuForLayers(gpus, n),
            None => llama::plain::On::Gpu(gpus, &split),
        },
    };
    let model = llama::plain::load(path, source, options.layout, on, progress)?;
    let threads = threadpool(surveyed, POLL_RESIDENT)?;
    let params = context_params(gguf, plan, options);
    let context = llama::Context::new(&model, &params, &threads)?;
    let load_stats = tiered::LoadStats::default();
    Ok(Parts { plan: plan.clone(), context, stream: None, load_stats })
}

/// As [`load_resident`], for a hot file.
fn load_hot(
    opened: &Opened,
    plan: Plan,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<Parts, LoadError> {
    let Prepared { context, load_stats, .. } = prepare(opened, &plan, surveyed, options, progress)?;
    Ok(Parts { plan, context, stream: None, load_stats })
}

/// With all weights in memory: whether the budget holds now that the buffers are there.
fn check_resident(
    parts: Parts,
    model: &gguf::Model,
    occupied_bytes: u64,
) -> Result<Parts, LoadError> {
    let bytes = &parts.plan.bytes;
    let own_bytes = llama::process::rss_bytes().saturating_sub(occupied_bytes);
    let needed_bytes = own_bytes + bytes.compute + bytes.work + bytes.kv_tiers;
    tracing::debug!(needed_bytes, weights = model.weight_bytes(), "loaded whole");
    if needed_bytes > parts.plan.budget_bytes {
        return Err(LoadError::ResidentTooLarge { needed_bytes });
    }
    Ok(parts)
}

/// A model whose streamed weights have no memory yet.
struct Prepared {
    context: llama::Context,
    device: Arc<tiered::Tiered>,
    split: llama::Split,
    streamed: Streamed,
    files: Vec<Arc<io::File>>,
    load_stats: tiered::LoadStats,
    /// What the process takes beside expert slots, once it computes.
    fixed_bytes: u64,
    /// What each GPU holds beside expert slots, once it computes.
    device_bytes: Vec<u64>,
}

fn prepare(
    opened: &Opened,
    plan: &Plan,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<Prepared, LoadError> {
    let gguf = opened.model();
    let files = gguf
        .files
        .iter()
        .map(|file| io::File::open(&file.path).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    for (file, described) in files.iter().zip(&gguf.files) {
        if file.len() != described.len {
            let path = described.path.display();
            return Err(LoadError::Other(format!("{path} changed while it was opened; try again")));
        }
    }
    let streamed = Streamed::of(opened, plan)?;
    let split = gpu::split(gguf, plan, surveyed);
    let (model, load_stats) = tiered::load(tiered::TieredParams {
        model: gguf,
        hot: opened.hot(),
        files: files.clone(),
        reader: (options.reader)().map_err(LoadError::Other)?,
        streamed: &streamed.tensors,
        layout: options.layout,
        gpus: surveyed.gpus(),
        split: &split,
        cpu_assists: options.cpu_assists,
        progress,
    })?;
    for file in &files {
        file.check_unchanged()?;
    }
    let internal = || LoadError::Other("internal error: no tiered device".into());
    let device = Arc::clone(model.tiered().ok_or_else(internal)?);
    llama::process::trim();
    // What a GPU that is none keeps in our memory is its own.
    let is_emulated = surveyed.has_emulated_gpu();
    let lent = || if is_emulated { device.allocated().total() } else { 0 };
    let own_bytes = || llama::process::rss_bytes().saturating_sub(options.occupied_bytes + lent());
    let before_context = own_bytes();
    let is_streamed = plan.mode != Mode::FullResident;
    let is_idle = is_streamed && !options.cpu_assists;
    let threads = threadpool(surveyed, if is_idle { POLL_STREAMED } else { POLL_RESIDENT })?;
    let params = context_params(gguf, plan, options);
    let context = llama::Context::new(&model, &params, &threads)?;
    let misused = device.misused();
    if !misused.is_empty() {
        return Err(llama::LoadError::Unstreamable { names: misused }.into());
    }
    let made = device.allocated().contexts_bytes;
    tracing::debug!(planned = plan.bytes.kv + plan.bytes.compute, made, "context made");
    let contexts_bytes = if surveyed.has_discrete_gpu() { 0 } else { made };
    let fixed_bytes = own_bytes().max(before_context + contexts_bytes)
        + plan.bytes.work
        + plan.bytes.io_buffers
        + plan.bytes.kv_tiers
        + plan.bytes.ring
        + RING_SLACK_BYTES
        + HEADROOM_BYTES;
    let allocated = device.allocated_each();
    let allocated = allocated.iter().map(|a| a.total().saturating_sub(GPU_HEADROOM_BYTES));
    let device_bytes = gpu::taken_bytes(plan, &allocated.collect::<Vec<_>>());
    let made =
        Prepared { context, device, split, streamed, files, load_stats, fixed_bytes, device_bytes };
    Ok(made)
}

fn load_streamed(
    opened: &Opened,
    mut plan: Plan,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<Parts, LoadError> {
    let Prepared { context, device, split, streamed, files, load_stats, fixed_bytes, device_bytes } =
        prepare(opened, &plan, surveyed, options, progress)?;
    let budgets = surveyed.gpu.as_ref().map_or(&[][..], |chosen| &chosen.budget_bytes);
    let device_slots =
        gpu::fit_slots(&mut plan, budgets, &device_bytes, &split, options.gpu_slots_max)?;
    let layout = SlotLayout::of(&streamed.sources, &files);
    fit_pools(&mut plan, fixed_bytes, &layout, options.weights_memory_bytes)?;
    let mut sources = streamed.sources;
    sources.slots = plan.pools.iter().map(|pool| pool.slots).collect();
    sources.device_slots.clone_from(&device_slots);
    sources.has_several_devices = surveyed.gpus().len() > 1;
    sources.device_ring_bytes = match plan.gpu.as_ref().map_or(0, |gpu| gpu.ring_bytes) {
        0 => 0,
        ring => usize::try_from(ring + RING_SLACK_BYTES).unwrap_or(usize::MAX),
    };
    let spec = PoolSpec {
        slots: sources.slots.clone(),
        pool_of_layer: sources.layers.iter().map(|layer| layer.pool).collect(),
        ring_bytes: match plan.bytes.ring {
            0 => 0,
            ring => usize::try_from(ring + RING_SLACK_BYTES).unwrap_or(usize::MAX),
        },
        n_ubatch: plan.n_ubatch as usize,
        block: layout.block,
        phases: layout.phases,
        n_used_max: plan.expert_layers.iter().map(|l| l.n_used as usize).max().unwrap_or(0),
        device_slots,
        device_transit_slots: plan.gpu.as_ref().map_or(0, |gpu| gpu.transit_slots),
        device_ring_bytes: sources.device_ring_bytes,
        store_bytes: sources.store_bytes(),
    };
    let memory = StreamMemory::new(context.model(), &spec).map_err(LoadError::Other)?;
    let recorder = Recorder::of(&plan, options)?;
    let reader = (options.reader)().map_err(LoadError::Other)?;
    let mut streamer =
        Streamer::new(sources, Arc::clone(&memory), reader, files, recorder, options.speculate)
            .map_err(LoadError::Other)?;
    streamer.set_abort_flag(context.abort_flag());
    let cost = gpu::assist_cost(opened.model(), &plan, surveyed);
    if let Some(cost) = &cost {
        streamer.set_link(1.0 / cost.copy_s_per_byte, surveyed.has_emulated_gpu());
    }
    streamer.set_assist(cost.filter(|_| options.cpu_assists));
    streamer.fill_store(progress).map_err(|error| match error {
        tiered::ResidencyError::Aborted => LoadError::Llama(llama::LoadError::Cancelled),
        other => LoadError::Other(other.to_string()),
    })?;
    if let Some(folder) = &options.history_dir {
        streamer.set_history(HistoryFile::of(folder, opened.model()));
    }
    let stream = streamer.shared();
    if options.keep_segments {
        stream.keep_segments();
    }
    device.attach(memory, Box::new(streamer));
    Ok(Parts { plan, context, stream: Some(stream), load_stats })
}
