//! What the user asks for.

use serde::{Deserialize, Serialize};

/// The budget and the shape of the work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Bytes that the whole process may take.
    pub memory_bytes: u64,
    /// Bytes that weights alone may take, slots and ring included; `None` for no limit of their own.
    pub weights_memory_bytes: Option<u64>,
    /// Tokens of context, all sequences together; at least 1.
    pub ctx_tokens: u32,
    /// Whether a context longer than the model was trained for is cut to that.
    pub cap_ctx_to_trained: bool,
    /// Tokens of a micro-batch; `None` lets the planner choose, 32 to 512.
    pub ubatch_tokens: Option<u32>,
    /// Type of the keys in the KV cache.
    pub kv_type_k: KvType,
    /// Type of the values in the KV cache; a quantized one needs flash attention.
    pub kv_type_v: KvType,
    /// Sequences that share the context; at least 1.
    pub n_seq: u32,
    /// Whether layers with a sliding window keep the whole context all the same (needed where any
    /// block of it may be restored).
    pub full_sliding_windows: bool,
    /// The weight layout.
    pub layout: Layout,
    /// Whether attention is computed without storing its score matrix.
    pub flash_attention: bool,
    /// What everything but weights was measured to take with this micro-batch, in bytes, in place
    /// of the estimate; only for plans that stream.
    pub measured_other_bytes: Option<u64>,
    /// Bytes that the tiers of attention state take beside the context: blocks on their way, and
    /// those that are kept in memory.
    pub kv_tier_bytes: u64,
    /// Names of tensors that must be resident, whatever could be done with them otherwise.
    pub pinned: Vec<String>,
    /// The GPU that computes; `None` where the CPU does. With one, [`Self::memory_bytes`] and
    /// [`Self::weights_memory_bytes`] are about main memory alone, and [`Self::layout`] is not
    /// asked.
    #[serde(default)]
    pub gpu: Option<GpuRequest>,
    /// Experts of a layer that the GPU will hold at most; `None` for no limit but its memory. With
    /// fewer than there are, experts stream even if everything fits.
    #[serde(default)]
    pub gpu_slots_max: Option<u32>,
}

/// What may be taken of the GPU that computes, or of those that do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRequest {
    /// Bytes of GPU memory that may be used, on all GPUs together.
    pub memory_bytes: u64,
    /// GPUs that the model's layers are divided among.
    #[serde(default = "one")]
    pub devices: u32,
}

fn one() -> u32 {
    1
}

impl Default for Request {
    /// 4,096 tokens in F16 for one sequence, with flash attention, in no memory at all.
    fn default() -> Self {
        Self {
            memory_bytes: 0,
            weights_memory_bytes: None,
            ctx_tokens: 4096,
            cap_ctx_to_trained: true,
            ubatch_tokens: None,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
            n_seq: 1,
            full_sliding_windows: false,
            layout: Layout::Plain,
            flash_attention: true,
            measured_other_bytes: None,
            kv_tier_bytes: 0,
            pinned: Vec::new(),
            gpu: None,
            gpu_slots_max: None,
        }
    }
}

/// Type of the elements of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// Half precision: 2 bytes per element.
    F16,
    /// Blocks of 32 elements in 34 bytes.
    Q8_0,
    /// Blocks of 32 elements in 18 bytes.
    Q4_0,
}

impl KvType {
    /// Bytes of a row of `elements`, whole blocks.
    pub const fn row_bytes(self, elements: u64) -> u64 {
        match self {
            Self::F16 => elements.saturating_mul(2),
            Self::Q8_0 => elements.div_ceil(32).saturating_mul(34),
            Self::Q4_0 => elements.div_ceil(32).saturating_mul(18),
        }
    }
}

/// How weights lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// As in the file.
    Plain,
    /// Resident tensors in the order that the device's kernels like best, where they have one.
    Fast,
}
