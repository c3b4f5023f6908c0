//! The plan: plain data.

use hypura_gguf::ExpertPart;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::number::total;
use crate::speed::Speed;

/// Where everything goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plan {
    /// How weights are held.
    pub mode: Mode,
    /// Per tensor of the model.
    pub placements: Vec<Placement>,
    /// The layers that have experts, in the model's order: what a layer index of a slot table
    /// means. Empty unless the mode is [`Mode::ExpertStreaming`].
    pub expert_layers: Vec<ExpertLayer>,
    /// The pools of slots.
    pub pools: Vec<Pool>,
    /// Bytes of the ring that dense matrices stream through, 0 if none does.
    pub ring_bytes: u64,
    /// Tokens of context, a multiple of 256.
    pub n_ctx: u32,
    /// Most tokens of one call (llama.cpp's logical batch).
    pub n_batch: u32,
    /// Tokens of a micro-batch.
    pub n_ubatch: u32,
    /// Bytes by purpose.
    pub bytes: Breakdown,
    /// Bytes at the peak of loading, which is over before the context is made.
    pub load_peak_bytes: u64,
    /// The expected speed.
    pub speed: Speed,
    /// Each choice in one sentence.
    pub why: Vec<String>,
    /// The smallest budget that works with this context and these settings, in bytes; with a GPU,
    /// with its budget too.
    pub smallest_bytes: u64,
    /// The budget that was planned for, in bytes.
    pub budget_bytes: u64,
    /// What lies in the memory of the GPU that computes; `None` where the CPU does. With a GPU,
    /// [`Self::placements`] say where a tensor is for that device ([`Placement::Resident`]: in GPU
    /// memory, but for the tables of the input, which llama.cpp looks up in main memory), and
    /// [`Self::bytes`], [`Self::pools`], [`Self::ring_bytes`] and the budgets go on describing main
    /// memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuPlan>,
    /// Indices of the tensors with [`Placement::Ring`] whose bytes stay in main memory, in the
    /// model's order: they are copied to the GPU's ring from there. The others are read from storage,
    /// through the ring of [`Self::ring_bytes`] in main memory. Empty without a GPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_matrices: Vec<usize>,
}

/// What lies in GPU memory, on all GPUs together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuPlan {
    /// GPUs that layers are divided among.
    pub devices: u32,
    /// The budget of GPU memory that was planned for.
    pub budget_bytes: u64,
    /// Bytes by purpose: `base` is the drivers' contexts, and of several GPUs what their layers can't
    /// fill evenly; `work` the buffers of passes; `io_buffers` and `kv_tiers` are 0.
    pub bytes: Breakdown,
    /// Slots per pool of [`Plan::pools`].
    pub slots: Vec<u32>,
    /// Bytes of the ring that dense matrices stream through on each GPU, 0 if none does.
    pub ring_bytes: u64,
    /// Slots of each GPU that belong to no layer: experts without one pass through them.
    pub transit_slots: u32,
    /// The smallest budget of GPU memory that works with this context and these settings.
    pub smallest_bytes: u64,
}

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All weights are in memory.
    FullResident,
    /// Experts live in slots (and dense matrices may stream too).
    ExpertStreaming,
    /// Dense matrices stream through a ring.
    DenseStreaming,
}

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// In memory, whole.
    Resident,
    /// Its experts in the slots of a pool.
    ExpertPool {
        /// Index in [`Plan::pools`].
        pool: u32,
    },
    /// Streamed whole through the ring, in the model's order, for every token or batch.
    Ring,
    /// On storage; the rows of a batch's tokens are read.
    Rows,
    /// On storage, and never read: what it computes is not used.
    Unused,
}

/// One of an expert's matrices, in the order in which they lie in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Part {
    Gate,
    Up,
    Down,
    GateUp,
}

impl From<ExpertPart> for Part {
    fn from(part: ExpertPart) -> Self {
        match part {
            ExpertPart::Gate => Self::Gate,
            ExpertPart::Up => Self::Up,
            ExpertPart::Down => Self::Down,
            ExpertPart::GateUp => Self::GateUp,
        }
    }
}

/// A layer's experts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertLayer {
    /// The model's layer number.
    pub block: u32,
    /// Index in [`Plan::pools`].
    pub pool: u32,
    /// Experts.
    pub n_experts: u32,
    /// Experts that a token uses.
    pub n_used: u32,
    /// Its tensors, in the order of the pool's parts.
    pub tensors: Vec<ExpertTensor>,
}

/// One tensor of a layer's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertTensor {
    /// Which matrix.
    pub part: Part,
    /// Index in the model's tensors.
    pub tensor: usize,
}

/// Slots of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Indices in [`Plan::expert_layers`].
    pub layers: Vec<u32>,
    /// What a slot holds.
    pub parts: Vec<PoolPart>,
    /// Bytes of a slot: those of its parts together.
    pub slot_bytes: u64,
    /// Slots.
    pub slots: u32,
    /// Experts of each of its layers.
    pub n_experts: u32,
    /// Most experts that a token uses in one of its layers.
    pub n_used: u32,
}

/// One part of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolPart {
    /// Which matrix.
    pub part: Part,
    /// Its bytes.
    pub bytes: u64,
}

/// Bytes by purpose, while the model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breakdown {
    /// Weights that stay in memory.
    pub resident_weights: u64,
    /// Slots for experts.
    pub expert_slots: u64,
    /// The ring for dense matrices.
    pub ring: u64,
    /// Transit slots, see [`GpuPlan::transit_slots`].
    #[serde(default)]
    pub transit: u64,
    /// The attention state.
    pub kv: u64,
    /// Blocks of attention state beside the context.
    #[serde(default)]
    pub kv_tiers: u64,
    /// Compute buffers and logits.
    pub compute: u64,
    /// The backend's work buffer, and the buffers of passes.
    pub work: u64,
    /// Buffers for direct reads.
    pub io_buffers: u64,
    /// The process itself and the vocabulary.
    pub base: u64,
}

impl Breakdown {
    /// All of it; never above the budget.
    pub fn total(&self) -> u64 {
        total([
            self.weights(),
            self.transit,
            self.kv,
            self.kv_tiers,
            self.compute,
            self.work,
            self.io_buffers,
            self.base,
        ])
    }

    /// What weights take that are there for longer than they pass through, in whatever form.
    pub fn weights(&self) -> u64 {
        total([self.resident_weights, self.expert_slots, self.ring])
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The budget can't hold what has to be in memory.
    #[error(
        "a memory budget of {budget_bytes} bytes is too small for this model with a context of \
         {n_ctx} tokens: use at least {smallest_bytes} bytes, or a smaller context"
    )]
    BudgetTooSmall {
        /// The smallest budget that works with these settings.
        smallest_bytes: u64,
        /// The budget.
        budget_bytes: u64,
        /// Tokens of context.
        n_ctx: u32,
    },
    /// The GPU's budget can't hold what has to be in its memory.
    #[error(
        "a GPU memory budget of {budget_bytes} bytes is too small for this model with a context of \
         {n_ctx} tokens: use at least {smallest_bytes} bytes, a smaller context, or `--gpu off`"
    )]
    GpuBudgetTooSmall {
        /// The smallest budget of each GPU's memory that works with these settings.
        smallest_bytes: u64,
        /// The budget of each.
        budget_bytes: u64,
        /// Tokens of context.
        n_ctx: u32,
    },
    /// The weights' own budget can't hold those that have to be in memory.
    #[error(
        "a weights budget of {budget_bytes} bytes is too small for this model: use at least \
         {smallest_bytes} bytes"
    )]
    WeightsBudgetTooSmall {
        /// The smallest weights budget that works.
        smallest_bytes: u64,
        /// The weights budget.
        budget_bytes: u64,
    },
    /// A number of tokens or sequences of 0.
    #[error("{what} is 0: use at least 1")]
    Zero {
        /// What is 0.
        what: &'static str,
    },
    /// A quantized V cache was asked for without flash attention, which llama.cpp refuses.
    #[error("a quantized V cache needs flash attention: switch it on, or use f16 for V")]
    QuantizedValuesNeedFlashAttention,
    /// A size of the model is beyond what a plan can hold.
    #[error("the model has {what} of {value}, which is beyond every known model: check the file")]
    Absurd {
        /// Which size.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}
