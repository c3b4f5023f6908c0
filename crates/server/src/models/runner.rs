//! A loaded model, as the server sees it.

use std::sync::Arc;
use std::time::Duration;

use hypura_chat::ChatTemplate;
use hypura_engine::llama::Token;
use hypura_engine::{EmbedReply, EngineStatus, GenerateRequest, Refused, Sink, Ticket};
use hypura_hub::Entry;

use super::ModelError;

/// What a loaded model is.
pub struct Facts {
    /// The model's chat template; ChatML where it brings none.
    pub template: ChatTemplate,
    /// Tokens of context for one request.
    pub n_ctx: usize,
    /// Requests that are computed together at most.
    pub parallel: usize,
    /// Whether it generates text (an embedding model does not).
    pub generates: bool,
    /// Numbers of one embedding.
    pub embedding_length: usize,
    /// Bytes that it takes of the budget.
    pub memory_bytes: u64,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Its architecture, such as `qwen3moe`.
    pub architecture: String,
    /// How it was loaded, such as `full-resident`.
    pub mode: String,
    /// Time that loading took.
    pub load_time: Duration,
    /// Where its bytes are planned to be.
    pub tiers: Tiers,
}

/// Where a model's bytes are planned to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tiers {
    /// Weights that stay in GPU memory; 0 where the CPU computes.
    pub vram_weights_bytes: u64,
    /// Slots of experts, and the ring that whole matrices pass through, in GPU memory.
    pub vram_slots_bytes: u64,
    /// Attention state in GPU memory.
    pub vram_kv_bytes: u64,
    /// Buffers in GPU memory, the driver's own included.
    pub vram_buffers_bytes: u64,
    /// GPUs that this is divided among; 0 where the CPU computes.
    pub gpus: u32,
    /// Weights that stay in memory.
    pub ram_weights_bytes: u64,
    /// Slots of experts, and the ring that whole matrices pass through.
    pub ram_slots_bytes: u64,
    /// Attention state in the context.
    pub ram_kv_bytes: u64,
    /// Buffers for computing and reading.
    pub ram_buffers_bytes: u64,
    /// Weights that are read from the drive as they are needed: those that stay in no memory.
    pub drive_weights_bytes: u64,
    /// The cold tier's cap; 0 if there is none.
    pub kv_cold_bytes_max: u64,
}

impl Tiers {
    /// All that is in GPU memory.
    pub fn vram_bytes(&self) -> u64 {
        let parts = [self.vram_weights_bytes, self.vram_slots_bytes, self.vram_kv_bytes];
        parts.into_iter().fold(self.vram_buffers_bytes, u64::saturating_add)
    }

    /// What each of its GPUs has of that, about.
    pub fn vram_bytes_of_each(&self) -> u64 {
        self.vram_bytes().div_ceil(u64::from(self.gpus.max(1)))
    }
}

/// A loaded model. Tests put a scripted one here.
pub trait Runner: Send + Sync + 'static {
    /// What it is.
    fn facts(&self) -> &Facts;

    /// Turns text into tokens; `add_special` adds what the model wants around a text, once.
    fn tokenize(&self, text: &str, add_special: bool) -> Vec<Token>;

    /// Whether tokens spell just these bytes, control tokens written out.
    fn spells(&self, tokens: &[Token], text: &str) -> bool;

    /// The bytes of a token, control tokens written out.
    fn piece(&self, token: Token) -> Vec<u8>;

    /// Whether text is always cut at this token: what stands before and after it is tokenized
    /// apart.
    fn is_boundary(&self, token: Token) -> bool;

    /// Begins an answer. Dropping the ticket ends it within a token.
    ///
    /// # Errors
    /// When too many wait, or the engine has stopped.
    fn generate(&self, request: GenerateRequest, sink: Sink) -> Result<Ticket, Refused>;

    /// Computes the embedding of each input.
    ///
    /// # Errors
    /// As [`Runner::generate`].
    fn embed(&self, inputs: Vec<Vec<Token>>, reply: EmbedReply) -> Result<Ticket, Refused>;

    /// Its numbers now.
    fn status(&self) -> EngineStatus;

    /// Waits until attention state is written, at most so long. Blocks.
    fn settle(&self, at_most: Duration);
}

/// Loads models. Blocks: it is called on a thread of its own.
pub trait Loader: Send + Sync + 'static {
    /// What the model needs of memory with this context, and what is free.
    ///
    /// # Errors
    /// When the file is no sound model.
    fn needs(&self, entry: &Entry, want: &Want) -> Result<Needs, ModelError>;

    /// Loads it within this budget.
    ///
    /// # Errors
    /// When it is no sound model, or memory does not suffice.
    fn load(
        &self,
        entry: &Entry,
        want: &Want,
        budget: Budget,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Arc<dyn Runner>, ModelError>;
}

/// How a client wants a model loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Want {
    /// Tokens of context for one request; `None` is the server's default.
    pub num_ctx: Option<u32>,
}

/// What a model, or all models together, may take; `None` is what is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes of each GPU's memory.
    pub gpu_memory_bytes: Option<u64>,
}

/// What a model needs of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// With all weights in memory; with a GPU, all that it computes with in its own.
    pub resident_bytes: u64,
    /// What could be had now, if nothing was unloaded.
    pub free_bytes: u64,
    /// The same of GPU memory; 0 where the CPU computes.
    pub vram_resident_bytes: u64,
    /// See [`Needs::free_bytes`].
    pub vram_free_bytes: u64,
    /// GPUs that [`Needs::vram_resident_bytes`] are divided among; 0 where the CPU computes.
    pub gpus: u32,
}
