//! From a path and a budget to a model that is ready to generate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypura_gguf as gguf;
use hypura_io as io;
use hypura_llama as llama;
use hypura_llama::tiered::{self, PoolSpec, StreamKind, StreamMemory, StreamedTensor};
use hypura_plan::{self as plan, KvType, Mode, Part, Placement, Plan, PlanError};
use hypura_tier::TraceShape;

use crate::machine;
use crate::stream::{
    ExpertLayer, MatrixSource, PartSource, RowSource, Shared, Sources, StreamStats, Streamer,
};
use crate::trace::Recorder;

/// Makes the engine that reads streamed weights; tests put a faulty one here.
pub type ReaderFactory = Arc<dyn Fn() -> Result<Box<dyn io::ReadEngine>, String> + Send + Sync>;

/// What to load, and within what.
#[derive(Clone)]
pub struct LoadOptions {
    /// Bytes that the whole process may take; `None` is what is free, less a margin.
    pub memory_bytes: Option<u64>,
    /// Bytes that the weights alone may take.
    pub weights_memory_bytes: Option<u64>,
    /// Tokens of context.
    pub ctx_tokens: u32,
    /// Tokens of a micro-batch; `None` lets the planner choose.
    pub ubatch_tokens: Option<u32>,
    /// Compute threads; `None` is as many as there are free cores.
    pub threads: Option<u32>,
    /// The layout of resident weights.
    pub layout: llama::Layout,
    /// Types of the attention state.
    pub kv_type_k: KvType,
    /// As above.
    pub kv_type_v: KvType,
    /// The attention kernel.
    pub flash_attention: llama::FlashAttention,
    /// Give logits for every token of a prompt, not only the last.
    pub all_outputs: bool,
    /// Record the routing here.
    pub trace: Option<PathBuf>,
    /// Where measurements of this machine are kept; `None` keeps and makes none.
    pub profile_dir: Option<PathBuf>,
    /// Reads streamed weights.
    pub reader: ReaderFactory,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            memory_bytes: None,
            weights_memory_bytes: None,
            ctx_tokens: 4096,
            ubatch_tokens: None,
            threads: None,
            layout: llama::Layout::Fast,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
            flash_attention: llama::FlashAttention::Auto,
            all_outputs: false,
            trace: None,
            profile_dir: None,
            reader: Arc::new(|| {
                let pool = io::PreadPool::new(io::PoolConfig::default());
                pool.map(|pool| Box::new(pool) as _).map_err(|error| error.to_string())
            }),
        }
    }
}

/// Why a model could not be made ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file is not a model that can be read.
    #[error(transparent)]
    Open(#[from] gguf::OpenError),
    /// There is no plan for this budget.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file could not be opened for streaming.
    #[error(transparent)]
    File(#[from] io::OpenError),
    /// A file changed while it was loaded.
    #[error(transparent)]
    Changed(#[from] io::ChangedError),
    /// llama.cpp refused the model.
    #[error(transparent)]
    Llama(#[from] llama::LoadError),
    /// llama.cpp refused the context.
    #[error(transparent)]
    Context(#[from] llama::ContextError),
    /// The model can't generate text.
    #[error("this model computes embeddings or needs an encoder; it can't generate text")]
    NotGenerative,
    /// The buffers turned out larger than planned.
    #[error(
        "a memory budget of {budget_bytes} bytes is too small: this model's buffers need \
         {needed_bytes} bytes"
    )]
    BudgetTooSmall {
        /// What would do.
        needed_bytes: u64,
        /// The budget.
        budget_bytes: u64,
    },
    /// All weights were loaded, and what is in memory now is more than the budget.
    #[error("keeping the whole model in memory needs {needed_bytes} bytes; use a larger --memory")]
    ResidentTooLarge {
        /// What would do.
        needed_bytes: u64,
    },
    /// A trace was asked for, and no experts are streamed.
    #[error("there is nothing to trace: no experts are streamed; use a smaller --memory")]
    NothingToTrace,
    /// The trace can't be written.
    #[error("{0}")]
    Trace(String),
    /// Something else went wrong.
    #[error("{0}")]
    Other(String),
}

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
    /// Bytes of weights read while loading, and how many of them belong to streamed tensors.
    pub load_stats: tiered::LoadStats,
    pub(crate) stream: Option<Arc<Shared>>,
}

impl Loaded {
    /// What streaming has done since the model was loaded.
    pub fn stream_stats(&self) -> StreamStats {
        self.stream.as_ref().map(|shared| shared.stats()).unwrap_or_default()
    }
}

/// What is told while loading: a share from 0 to 1; answers whether to go on.
pub type Progress<'a> = &'a mut dyn FnMut(f32) -> bool;

/// Kept free beside what was measured: allocations that come later (sampling, tokenizing, the
/// allocator's own).
const HEADROOM_BYTES: u64 = 12 << 20;

/// What the CPU's MUL_MAT_ID keeps per expert of a pool, token and choice (`mmid_row_mapping` in
/// ggml-cpu.c).
const ROW_MAPPING_BYTES: u64 = 8;

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
    let model = gguf::Model::open(path)?;
    let surveyed = machine::survey(path, options.profile_dir.as_deref(), options.threads);
    let free = surveyed.machine.free_memory_bytes;
    // Somewhat more may be had: a control group of just this size counts us already.
    let most = free + free / 16;
    if free > 0 && options.memory_bytes.is_some_and(|bytes| bytes > most) {
        let free_mib = free >> 20;
        tracing::warn!("the memory budget is more than the {free_mib} MiB that are free now");
    }
    let mut pinned = Vec::new();
    let mut options = options.clone();
    loop {
        let options = &mut options;
        let plan = make_plan(&model, &surveyed, options, &pinned)?;
        tracing::debug!(mode = ?plan.mode, bytes = ?plan.bytes, "planned");
        let weights = plan.bytes.resident_weights;
        let made = if plan.mode == Mode::FullResident {
            let source = llama::plain::Source::Direct;
            load_resident(path, source, &plan, &surveyed, options, progress)
                .and_then(|parts| check_resident(parts, &model))
        } else {
            load_streamed(&model, plan, &surveyed, options, progress)
        };
        match made {
            Ok(parts) => {
                let info = parts.context.model().info();
                if info.has_encoder || !info.has_decoder {
                    return Err(LoadError::NotGenerative);
                }
                return Ok(parts.into_loaded(model, &surveyed, options, begin));
            }
            Err(LoadError::ResidentTooLarge { needed_bytes })
                if options.weights_memory_bytes.is_none() =>
            {
                tracing::info!(needed_bytes, "does not fit after all: streaming");
                options.weights_memory_bytes = Some(weights.saturating_sub(1));
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

/// Plans without loading.
///
/// # Errors
/// As [`load`], as far as the plan goes.
pub fn plan_only(path: &Path, options: &LoadOptions) -> Result<(gguf::Model, Plan), LoadError> {
    let model = gguf::Model::open(path)?;
    let surveyed = machine::survey(path, options.profile_dir.as_deref(), options.threads);
    let plan = make_plan(&model, &surveyed, options, &[])?;
    Ok((model, plan))
}

/// Plans for a machine that was surveyed before, or described.
///
/// # Errors
/// As [`plan_only`].
pub fn estimate(
    path: &Path,
    survey: &machine::Survey,
    options: &LoadOptions,
) -> Result<Plan, LoadError> {
    make_plan(&gguf::Model::open(path)?, survey, options, &[])
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
    let model = gguf::Model::open(path)?;
    let surveyed = machine::survey(path, None, options.threads);
    let unlimited = LoadOptions { memory_bytes: Some(1 << 60), ..options.clone() };
    let plan = make_plan(&model, &surveyed, &unlimited, &[])?;
    let parts = load_resident(path, source, &plan, &surveyed, options, progress)?;
    Ok(parts.into_loaded(model, &surveyed, options, begin))
}

fn make_plan(
    model: &gguf::Model,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    pinned: &[String],
) -> Result<Plan, LoadError> {
    let request = plan::Request {
        memory_bytes: options.memory_bytes.unwrap_or(surveyed.default_budget_bytes),
        weights_memory_bytes: options.weights_memory_bytes,
        ctx_tokens: options.ctx_tokens,
        ubatch_tokens: options.ubatch_tokens,
        kv_type_k: options.kv_type_k,
        kv_type_v: options.kv_type_v,
        layout: match options.layout {
            llama::Layout::Plain => plan::Layout::Plain,
            llama::Layout::Fast => plan::Layout::Fast,
        },
        flash_attention: options.flash_attention != llama::FlashAttention::Off,
        pinned: pinned.to_vec(),
        ..plan::Request::default()
    };
    Ok(plan::plan(model, &surveyed.machine, &request)?)
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
        Loaded {
            gguf,
            plan: self.plan,
            context: self.context,
            threads: surveyed.threads,
            layout: options.layout,
            load_time: begin.elapsed(),
            load_stats: self.load_stats,
            stream: self.stream,
        }
    }
}

fn context_params(plan: &Plan, options: &LoadOptions) -> llama::ContextParams {
    llama::ContextParams {
        n_ctx: plan.n_ctx,
        n_batch: plan.n_batch,
        n_ubatch: plan.n_ubatch,
        n_outputs_max: if options.all_outputs { 0 } else { 1 },
        flash_attention: options.flash_attention,
        type_k: kv_type(options.kv_type_k),
        type_v: kv_type(options.kv_type_v),
        ..llama::ContextParams::default()
    }
}

/// ggml's numbers of the types.
fn kv_type(ty: KvType) -> u32 {
    match ty {
        KvType::F16 => gguf::GgmlType::F16.id(),
        KvType::Q8_0 => gguf::GgmlType::Q8_0.id(),
        KvType::Q4_0 => gguf::GgmlType::Q4_0.id(),
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
    source: llama::plain::Source,
    plan: &Plan,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<Parts, LoadError> {
    let model = llama::plain::load(path, source, options.layout, progress)?;
    let threads = threadpool(surveyed, POLL_RESIDENT)?;
    let context = llama::Context::new(&model, &context_params(plan, options), &threads)?;
    let load_stats = tiered::LoadStats::default();
    Ok(Parts { plan: plan.clone(), context, stream: None, load_stats })
}

/// With all weights in memory: whether the budget holds now that the buffers are there.
fn check_resident(parts: Parts, model: &gguf::Model) -> Result<Parts, LoadError> {
    let bytes = &parts.plan.bytes;
    let needed_bytes = llama::process::rss_bytes() + bytes.compute + bytes.work;
    tracing::debug!(needed_bytes, weights = model.weight_bytes(), "loaded whole");
    if needed_bytes > parts.plan.budget_bytes {
        return Err(LoadError::ResidentTooLarge { needed_bytes });
    }
    Ok(parts)
}

fn load_streamed(
    gguf: &gguf::Model,
    mut plan: Plan,
    surveyed: &machine::Survey,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<Parts, LoadError> {
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
    let streamed = Streamed::of(gguf, &plan)?;
    let reader = || (options.reader)().map_err(LoadError::Other);
    let (model, load_stats) = tiered::load(tiered::TieredParams {
        model: gguf,
        files: files.clone(),
        reader: reader()?,
        streamed: &streamed.tensors,
        layout: options.layout,
        progress,
    })?;
    for file in &files {
        file.check_unchanged()?;
    }
    let internal = || LoadError::Other("internal error: no tiered device".into());
    let device = Arc::clone(model.tiered().ok_or_else(internal)?);
    llama::process::trim();
    let before_context = llama::process::rss_bytes();
    let threads = threadpool(surveyed, POLL_STREAMED)?;
    let context = llama::Context::new(&model, &context_params(&plan, options), &threads)?;
    let misused = device.misused();
    if !misused.is_empty() {
        return Err(llama::LoadError::Unstreamable { names: misused }.into());
    }
    let made = device.allocated().contexts_bytes;
    tracing::debug!(planned = plan.bytes.kv + plan.bytes.compute, made, "context made");
    let fixed = llama::process::rss_bytes().max(before_context + device.allocated().contexts_bytes)
        + plan.bytes.work
        + plan.bytes.io_buffers
        + plan.bytes.ring
        + RING_SLACK_BYTES
        + HEADROOM_BYTES;
    fit_pools(&mut plan, fixed, options.weights_memory_bytes)?;
    let mut sources = streamed.sources;
    sources.slots = plan.pools.iter().map(|pool| pool.slots).collect();
    let spec = PoolSpec {
        slots: sources.slots.clone(),
        pool_of_layer: sources.layers.iter().map(|layer| layer.pool).collect(),
        ring_bytes: match plan.bytes.ring {
            0 => 0,
            ring => usize::try_from(ring + RING_SLACK_BYTES).unwrap_or(usize::MAX),
        },
        n_ubatch: plan.n_ubatch as usize,
        n_used_max: plan.expert_layers.iter().map(|l| l.n_used as usize).max().unwrap_or(0),
    };
    let memory = StreamMemory::new(&model, &spec).map_err(LoadError::Other)?;
    let recorder = recorder(&plan, options)?;
    let streamer = Streamer::new(sources, Arc::clone(&memory), reader()?, files, recorder);
    let mut streamer = streamer.map_err(LoadError::Other)?;
    streamer.set_abort_flag(context.abort_flag());
    let stream = streamer.shared();
    device.attach(memory, Box::new(streamer));
    Ok(Parts { plan, context, stream: Some(stream), load_stats })
}

fn recorder(plan: &Plan, options: &LoadOptions) -> Result<Option<Recorder>, LoadError> {
    let Some(path) = &options.trace else { return Ok(None) };
    let largest = |f: fn(&plan::ExpertLayer) -> u32| plan.expert_layers.iter().map(f).max();
    let (Some(n_experts), Some(top_k)) = (largest(|l| l.n_experts), largest(|l| l.n_used)) else {
        return Err(LoadError::NothingToTrace);
    };
    let n_layers = u32::try_from(plan.expert_layers.len()).unwrap_or(u32::MAX);
    let shape = TraceShape { n_layers, n_experts, top_k };
    Recorder::create(path, shape).map(Some).map_err(LoadError::Trace)
}

/// Now that all other buffers are there and measured, gives the pools what is left of the budget:
/// fewer slots than planned when the estimate was too low, more when it was too high. Each slot
/// counts with the CPU's row mappings for it.
fn fit_pools(
    plan: &mut Plan,
    fixed_bytes: u64,
    weights_memory_bytes: Option<u64>,
) -> Result<(), LoadError> {
    let budget_bytes = plan.budget_bytes;
    let n_ubatch = u64::from(plan.n_ubatch);
    let cost =
        |pool: &plan::Pool| pool.slot_bytes + u64::from(pool.n_used) * n_ubatch * ROW_MAPPING_BYTES;
    let units = |pool: &plan::Pool| {
        pool.n_experts.saturating_mul(u32::try_from(pool.layers.len()).unwrap_or(u32::MAX))
    };
    let needed_bytes =
        plan.pools.iter().map(|p| u64::from(p.n_used) * cost(p)).sum::<u64>() + fixed_bytes;
    if needed_bytes > budget_bytes {
        return Err(LoadError::BudgetTooSmall { needed_bytes, budget_bytes });
    }
    let cap = weights_memory_bytes
        .map(|cap| cap.saturating_sub(plan.bytes.resident_weights + plan.bytes.ring))
        .unwrap_or(u64::MAX);
    let available = (budget_bytes - fixed_bytes).min(cap);
    let planned: u64 = plan.pools.iter().map(|p| u64::from(p.slots) * cost(p)).sum();
    // Every pool by the same factor, whole slots, between what a token needs and what there is.
    let factor = available as f64 / planned.max(1) as f64;
    for pool in &mut plan.pools {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped below
        let wanted = (f64::from(pool.slots) * factor) as u32;
        pool.slots = wanted.min(units(pool)).max(pool.n_used);
    }
    let taken = |plan: &Plan| plan.pools.iter().map(|p| u64::from(p.slots) * cost(p)).sum::<u64>();
    while taken(plan) > available {
        // Raising small pools to their minimum took too much from the others.
        let spare = plan.pools.iter_mut().filter(|p| p.slots > p.n_used).max_by_key(|p| p.slots);
        let Some(pool) = spare else { break };
        pool.slots -= 1;
    }
    let mut left = available.saturating_sub(taken(plan));
    for pool in &mut plan.pools {
        let more = u32::try_from(left / cost(pool).max(1)).unwrap_or(u32::MAX);
        let more = more.min(units(pool).saturating_sub(pool.slots));
        pool.slots += more;
        left -= u64::from(more) * cost(pool);
    }
    plan.bytes.expert_slots = plan.pools.iter().map(|p| u64::from(p.slots) * p.slot_bytes).sum();
    Ok(())
}

/// The streamed tensors of a plan, as llama.cpp has to treat them and as they are read.
struct Streamed {
    tensors: Vec<StreamedTensor>,
    sources: Sources,
}

impl Streamed {
    fn of(gguf: &gguf::Model, plan: &Plan) -> Result<Streamed, LoadError> {
        let too_large = || LoadError::Other("a tensor is larger than the address space".into());
        let mut tensors = Vec::new();
        let mut sources = Sources::default();
        for (layer, of) in plan.expert_layers.iter().enumerate() {
            let layer = u32::try_from(layer).unwrap_or(u32::MAX);
            let mut parts = Vec::new();
            for expert in &of.tensors {
                let tensor = &gguf.tensors[expert.tensor];
                let part = part_number(expert.part);
                let slice = tensor.expert_bytes().ok_or_else(too_large)?;
                parts.push(PartSource {
                    part,
                    file: tensor.file,
                    offset: tensor.offset,
                    slice_bytes: usize::try_from(slice).map_err(|_| too_large())?,
                });
                let kind = StreamKind::Experts { layer, part };
                tensors.push(StreamedTensor { name: tensor.name.clone(), kind });
            }
            // What is needed last is read last.
            parts.sort_by_key(|p| p.part == part_number(Part::Down));
            sources.layers.push(ExpertLayer { pool: of.pool, parts });
            sources.n_experts = sources.n_experts.max(of.n_experts);
        }
        for (tensor, placement) in gguf.tensors.iter().zip(&plan.placements) {
            let kind = match placement {
                Placement::Resident | Placement::ExpertPool { .. } | Placement::Unused => continue,
                Placement::Ring => {
                    let index = u32::try_from(sources.matrices.len()).unwrap_or(u32::MAX);
                    sources.matrices.push(MatrixSource {
                        file: tensor.file,
                        offset: tensor.offset,
                        bytes: usize::try_from(tensor.bytes).map_err(|_| too_large())?,
                    });
                    StreamKind::Matrix { index }
                }
                Placement::Rows if sources.rows.is_some() => {
                    return Err(LoadError::Other("internal error: two tables by rows".into()));
                }
                Placement::Rows => {
                    sources.rows = Some(RowSource {
                        file: tensor.file,
                        offset: tensor.offset,
                        n_rows: tensor.dims[1],
                    });
                    StreamKind::Rows
                }
            };
            tensors.push(StreamedTensor { name: tensor.name.clone(), kind });
        }
        Ok(Streamed { tensors, sources })
    }
}

/// The number of a part, as in [`hypura_tier::Parts`].
fn part_number(part: Part) -> u8 {
    match part {
        Part::Gate => 0,
        Part::Up => 1,
        Part::Down => 2,
        Part::GateUp => 3,
    }
}
