//! What to load and within what, and why it may fail.

use std::path::PathBuf;
use std::sync::Arc;

use hypura_gguf as gguf;
use hypura_io as io;
use hypura_llama as llama;
use hypura_plan::{KvType, PlanError};
use hypura_profile::FingerprintError;

use crate::attention::KvOptions;
use crate::gpu::GpuChoice;
use crate::optimize::OtherCpu;

/// Makes the engine that reads streamed weights; tests put a faulty one here.
pub type ReaderFactory = Arc<dyn Fn() -> Result<Box<dyn io::ReadEngine>, String> + Send + Sync>;

/// Makes engines of this kind.
pub fn reader(config: io::EngineConfig) -> ReaderFactory {
    Arc::new(move || io::open_engine(config).map_err(|error| error.to_string()))
}

/// What to load, and within what.
#[derive(Clone)]
pub struct LoadOptions {
    /// Bytes that the whole process may take; `None` is what is free, less a margin.
    pub memory_bytes: Option<u64>,
    /// Bytes of the process that belong to others, such as another model: they don't count here.
    pub occupied_bytes: u64,
    /// Bytes that the weights alone may take.
    pub weights_memory_bytes: Option<u64>,
    /// The GPU that computes.
    pub gpu: GpuChoice,
    /// Bytes of its memory that may be used; `None` is what is free, less a margin.
    pub gpu_memory_bytes: Option<u64>,
    /// Experts of a layer that the GPU holds at most, whatever the budget; for measuring.
    pub gpu_slots_max: Option<u32>,
    /// The CPU computes experts that lie in memory, beside the GPU, where that is sooner than
    /// copying them. It rounds otherwise, so the answer then depends on what lies where.
    pub cpu_assists: bool,
    /// Of [`crate::load_baseline`] on a GPU: the CPU computes all experts, as without us.
    pub experts_on_cpu: bool,
    /// Likewise: the GPU computes so many of the last layers, the output counted, and the CPU the
    /// others.
    pub gpu_layers: Option<u32>,
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
    /// Where attention state is kept beside the context; `None` keeps it there alone.
    pub kv: Option<KvOptions>,
    /// Requests that are computed together at most; they share the context.
    pub parallel: u32,
    /// Requests that wait beside them at most.
    pub queue_max: usize,
    /// Give logits for every token of a prompt, not only the last.
    pub all_outputs: bool,
    /// Read experts ahead of their router, by a guess.
    pub speculate: bool,
    /// The folder in which routing histories are kept from one run to the next; `None` keeps none.
    pub history_dir: Option<PathBuf>,
    /// Keep what each layer of a run computes and misses, for [`crate::RunStats::decode_segments`].
    pub keep_segments: bool,
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
            occupied_bytes: 0,
            weights_memory_bytes: None,
            gpu: GpuChoice::Off,
            gpu_memory_bytes: None,
            gpu_slots_max: None,
            cpu_assists: false,
            experts_on_cpu: false,
            gpu_layers: None,
            ctx_tokens: 4096,
            ubatch_tokens: None,
            threads: None,
            layout: llama::Layout::Fast,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
            flash_attention: llama::FlashAttention::Auto,
            kv: None,
            parallel: 1,
            queue_max: 64,
            all_outputs: false,
            speculate: true,
            history_dir: None,
            keep_segments: false,
            trace: None,
            profile_dir: None,
            // Measured: docs/performance.md, "Reads".
            reader: reader(io::EngineConfig {
                kind: io::EngineKind::Pread,
                ..io::EngineConfig::default()
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
    /// The file is a hot file that can't be read.
    #[error(transparent)]
    Hot(#[from] gguf::hot::HotError),
    /// The file is a hot file made on another kind of CPU.
    #[error(transparent)]
    OtherCpu(#[from] OtherCpu),
    /// The file is a hot file, whose weights can't be had as they were.
    #[error(
        "this optimised model has only the fast layout of its weights; use --layout fast, or run \
         the original model"
    )]
    HotLayout,
    /// The file is a hot file, which llama.cpp's own loader does not know.
    #[error(
        "llama.cpp's own loader can't read an optimised model; run the original model, or leave \
         out --baseline"
    )]
    HotBaseline,
    /// There is no plan for this budget.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file could not be opened for streaming.
    #[error(transparent)]
    File(#[from] io::OpenError),
    /// A file changed while it was loaded.
    #[error(transparent)]
    Changed(#[from] io::ChangedError),
    /// The model could not be read to its end, to tell it from all others.
    #[error(transparent)]
    Fingerprint(FingerprintError),
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
    /// The buffers on the GPU turned out larger than planned.
    #[error(
        "a GPU memory budget of {budget_bytes} bytes is too small: this model's buffers need \
         {needed_bytes} bytes there"
    )]
    GpuBudgetTooSmall {
        /// What would do.
        needed_bytes: u64,
        /// The budget.
        budget_bytes: u64,
    },
    /// There is no such GPU.
    #[error(transparent)]
    Gpu(#[from] llama::GpuError),
    /// A hot file's weights are arranged for a CPU.
    #[error(
        "this optimised model is arranged for a CPU; run the original model on the GPU, or use \
         --gpu off"
    )]
    HotOnGpu,
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

/// What is told while loading: a share from 0 to 1; answers whether to go on.
pub type Progress<'a> = &'a mut dyn FnMut(f32) -> bool;
