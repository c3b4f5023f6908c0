//! Bytes beside weights and attention state: what a micro-batch needs while it is computed, and what
//! the process takes anyhow.
//!
//! These are estimates, meant to lie a little above the truth: ggml's allocator decides in the end.

use hypura_gguf::{Hparams, Model, Role};

use crate::inventory::Inventory;
use crate::kv::{kv_bytes, sliding_cells};
use crate::number::{product, total};
use crate::request::Request;

/// The process without any model: code, stacks, the allocator, ggml's tables.
pub const BASE_BYTES: u64 = 40 << 20;
/// One entry of the vocabulary in llama.cpp: its text, its token data, two hash tables, merges.
pub const VOCABULARY_ENTRY_BYTES: u64 = 200;
/// Buffers of a read engine for what can't land in place: those of `hypura_io::EngineConfig`'s default
/// (eight pieces of 1 MiB, the blocks around them, and small ones), rounded up.
pub const IO_BUFFERS_BYTES: u64 = 11 << 20;
/// Scratch of one thread in ggml's CPU backend: 512 KiB of its tiled matrix product (`tiled.h`), and
/// as much again for flash attention's tiles (`ggml_graph_plan` in `ggml-cpu.c`).
pub const THREAD_SCRATCH_BYTES: u64 = 1 << 20;
/// What a GPU's driver, its kernels and its library handles take of GPU memory before any tensor is
/// there: assumed, not measured.
pub const GPU_BASE_BYTES: u64 = 512 << 20;
/// Pinned pieces of main memory through which weights go to the GPU.
pub const GPU_STAGING_BYTES: u64 = 64 << 20;
/// ggml's graph holds up to 8 nodes per tensor of the model (`graph_max_nodes` in
/// `llama-context.cpp`), in three copies (last, reserved, scheduler) of about 512 bytes.
pub const GRAPH_BYTES_PER_TENSOR: u64 = 8 * 3 * 512;
/// What ggml's allocator loses to alignment and order, in percent of the compute buffer.
pub const COMPUTE_MARGIN_PERCENT: u64 = 15;
/// What the driver and ggml's backend of a GPU take of main memory: a process with the demo model on
/// an H200 (CUDA 13) was so much larger than one on the CPU.
pub const GPU_DRIVER_HOST_BYTES: u64 = 420 << 20;
/// Rows per token of a pass over some of a layer's experts (`pass_bytes` in `hypura-llama`).
const PASS_ROWS_FACTOR: u64 = 2;
/// A group of a pass on a GPU has places for so many rows at least: eight abreast in nine columns.
const GROUP_ROWS_MIN: u64 = 8 * 9;
/// Bytes of one row mapping in the CPU's `MUL_MAT_ID` (`mmid_row_mapping` in `ggml-cpu.c`).
const ROW_MAPPING_BYTES: u64 = 8;
/// `MUL_MAT_ID` on the CPU also counts rows and chunks per expert: 8 bytes and one cache line.
const EXPERT_COUNTERS_BYTES: u64 = 8 + 64;
/// Most bytes that a row's element takes after its conversion for a dot product (F16; Q8_0 and Q8_K
/// take less).
const CONVERTED_ELEMENT_BYTES: u64 = 2;

/// What a micro-batch needs, besides weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// Attention state (its sliding part depends on the micro-batch).
    pub kv: u64,
    /// The compute buffer and the logits.
    pub compute: u64,
    /// The CPU backend's work buffer, and the buffers of passes.
    pub work: u64,
}

impl Scratch {
    /// All of it.
    pub fn total(&self) -> u64 {
        total([self.kv, self.compute, self.work])
    }
}

/// What the process takes before any weight is loaded, without I/O buffers.
pub fn base_bytes(hparams: &Hparams) -> u64 {
    let vocabulary = product([u64::from(hparams.n_vocab.unwrap_or(0)), VOCABULARY_ENTRY_BYTES]);
    BASE_BYTES.saturating_add(vocabulary)
}

/// The widths that decide how large buffers are.
#[derive(Clone, Debug)]
pub(crate) struct Widths {
    hparams: Hparams,
    n_tensors: u64,
    n_embd: u64,
    /// Query heads of the layer with most.
    n_head: u64,
    /// All query heads of a token, plus its keys and values, plus the result.
    attention: u64,
    /// Of the widest dense (or shared) feed-forward network.
    ff: u64,
    /// Of the widest expert.
    ff_expert: u64,
    n_expert: u64,
    n_used: u64,
    /// Elements of recurrent layers: width of their inner state, and one state.
    recurrent: (u64, u64),
}

impl Widths {
    pub(crate) fn of(model: &Model, hparams: &Hparams, inventory: &Inventory) -> Self {
        let widest = |is_it: &dyn Fn(Role) -> bool| {
            let tensors = model.tensors.iter().filter(|tensor| is_it(tensor.role));
            tensors.map(|tensor| tensor.dims[0].max(tensor.dims[1])).max().unwrap_or(0)
        };
        let n_head = u64::from(hparams.n_head.iter().copied().max().unwrap_or(0));
        let n_head_kv = u64::from(hparams.n_head_kv.iter().copied().max().unwrap_or(0));
        let key = hparams.key_length.max(hparams.key_length_swa);
        let value = hparams.value_length.max(hparams.value_length_swa);
        let (key, value) = (u64::from(key), u64::from(value));
        Self {
            n_tensors: model.tensors.len() as u64,
            n_embd: hparams.n_embd.into(),
            n_head,
            attention: total([
                product([2, n_head, key]),
                product([n_head_kv, key.saturating_add(value)]),
                product([n_head, value]),
            ]),
            ff: widest(&|role| matches!(role, Role::DenseFfn | Role::SharedExpert)),
            ff_expert: inventory.expert_width,
            n_expert: inventory.classes.iter().map(|class| class.n_experts).max().unwrap_or(0),
            n_used: inventory.classes.iter().map(|class| class.n_used).max().unwrap_or(0),
            recurrent: hparams.recurrent.map_or((0, 0), |state| {
                (u64::from(state.ssm_inner_size).max(hparams.n_embd.into()), state.state_elements)
            }),
            hparams: hparams.clone(),
        }
    }

    /// What a micro-batch of `n_ubatch` tokens needs. `largest_pool` is the number of experts that
    /// one `MUL_MAT_ID` sees as its weights (slots of a pool, or experts of a layer), and `passes`
    /// whether matmuls may be done some experts at a time.
    pub(crate) fn scratch(
        &self,
        request: &Request,
        cores: u32,
        n_ctx: u64,
        n_ubatch: u64,
        largest_pool: u64,
        passes: bool,
    ) -> Scratch {
        Scratch {
            kv: kv_bytes(&self.hparams, request, n_ctx, n_ubatch).total(),
            compute: self.compute_bytes(request, n_ctx, n_ubatch),
            work: self.work_bytes(cores, n_ubatch, largest_pool, passes),
        }
    }

    /// What a micro-batch needs of the memory of a GPU that computes. There is one copy of the
    /// logits, no row mapping and no converted row.
    pub(crate) fn gpu_scratch(
        &self,
        request: &Request,
        n_ctx: u64,
        n_ubatch: u64,
        passes: bool,
    ) -> Scratch {
        Scratch {
            kv: kv_bytes(&self.hparams, request, n_ctx, n_ubatch).total(),
            compute: with_margin(self.buffer_bytes(request, n_ctx, n_ubatch)),
            work: if passes { self.group_bytes(n_ubatch) } else { 0 },
        }
    }

    /// What a micro-batch needs of main memory where a GPU computes: ggml's graph, what goes to the
    /// GPU (the mask and the embedded tokens), and the logits, as they arrive and copied out.
    pub(crate) fn host_compute_bytes(&self, request: &Request, n_ctx: u64, n_ubatch: u64) -> u64 {
        let embedded = product([n_ubatch, self.n_embd, 4]);
        let inputs = self.mask_bytes(request, n_ctx, n_ubatch).saturating_add(embedded);
        let logits = self.logits_bytes(request);
        total([with_margin(inputs), self.graph_bytes(), logits, logits])
    }

    /// The compute buffer holds what is alive at the same time in the widest place of the graph:
    /// the mask (`build_attn_inp_kq_mask` in `llama-graph.cpp`: f16 with flash attention, else f32,
    /// one for the context and one for the windows), the residual and its norm, and then either
    /// attention or a feed-forward network, in f32. `n_outputs_max` of the context is taken to be
    /// the number of sequences: with llama.cpp's default, logits of a whole batch are reserved.
    fn compute_bytes(&self, request: &Request, n_ctx: u64, n_ubatch: u64) -> u64 {
        let buffer = self.buffer_bytes(request, n_ctx, n_ubatch);
        // The logits once more: they are copied out of the compute buffer.
        total([with_margin(buffer), self.graph_bytes(), self.logits_bytes(request)])
    }

    fn buffer_bytes(&self, request: &Request, n_ctx: u64, n_ubatch: u64) -> u64 {
        let n_seq = u64::from(request.n_seq.max(1));
        let mask = self.mask_bytes(request, n_ctx, n_ubatch);
        let scores =
            if request.flash_attention { 0 } else { product([n_ctx, n_ubatch, self.n_head, 4]) };

        let experts = product([
            self.n_used,
            self.n_embd.saturating_add(self.ff_expert.saturating_mul(3).max(self.n_embd)),
        ]);
        let ff = total([experts, self.ff.saturating_mul(3), self.n_expert.saturating_mul(3)]);
        let (inner, state) = self.recurrent;
        let recurrent = inner.saturating_mul(8);
        let widest = self.attention.max(ff).max(recurrent);
        let activations =
            product([n_ubatch, 4, self.n_embd.saturating_mul(3).saturating_add(widest)]);
        let states = product([state, n_seq, 4, 3]);
        total([mask, scores, activations, states, self.logits_bytes(request)])
    }

    fn mask_bytes(&self, request: &Request, n_ctx: u64, n_ubatch: u64) -> u64 {
        let cells = n_ctx.saturating_add(sliding_cells(&self.hparams, request, n_ctx, n_ubatch));
        let mask_element = if request.flash_attention { 2 } else { 4 };
        product([cells, n_ubatch, mask_element])
    }

    fn logits_bytes(&self, request: &Request) -> u64 {
        let n_seq = u64::from(request.n_seq.max(1));
        product([n_seq, u64::from(self.hparams.n_vocab.unwrap_or(0)), 4])
    }

    fn graph_bytes(&self) -> u64 {
        product([self.n_tensors, GRAPH_BYTES_PER_TENSOR])
    }

    /// `ggml_graph_plan` in `ggml-cpu.c`: the converted rows of the widest product, and for
    /// `MUL_MAT_ID` a row mapping per expert, expert used and token. A pass gathers the rows of its
    /// experts and holds their results, for at most `PASS_ROWS_FACTOR` rows per token.
    fn work_bytes(&self, cores: u32, n_ubatch: u64, largest_pool: u64, passes: bool) -> u64 {
        let expert_rows = product([self.n_used, n_ubatch]);
        let dense_row = self.n_embd.max(self.ff).max(self.attention).max(self.recurrent.0);
        let expert_row = self.ff_expert.max(self.n_embd);
        let converted = product([n_ubatch, dense_row]).max(product([expert_rows, expert_row]));
        let converted = converted.saturating_mul(CONVERTED_ELEMENT_BYTES);
        let gathered = if passes { self.gathered_bytes(n_ubatch) } else { 0 };
        let threads = product([u64::from(cores.max(1)), THREAD_SCRATCH_BYTES]);
        total([converted, self.routing_bytes(n_ubatch, largest_pool), gathered, threads])
    }

    /// On a GPU a group of experts is done from the gathered rows to the last product: twice as many
    /// rows as there are tokens (`staged/passes/rows.rs` in `hypura-llama`). All groups of a layer have
    /// tables (`tables.rs`), of four words for a row, twice as many rows as choices and one group more.
    fn group_bytes(&self, n_ubatch: u64) -> u64 {
        let row = total([product([self.ff_expert, 3]), product([self.n_embd, 2])]);
        let rows = n_ubatch.saturating_mul(2).max(GROUP_ROWS_MIN);
        let table_rows = product([n_ubatch, self.n_used, 2]).saturating_add(rows);
        product([rows, row, 4]).saturating_add(product([table_rows, 4, 4]))
    }

    fn gathered_bytes(&self, n_ubatch: u64) -> u64 {
        let rows = product([self.n_used.min(PASS_ROWS_FACTOR), n_ubatch]);
        product([rows, self.n_embd.saturating_add(self.ff_expert), 4])
    }

    /// The part of the work buffer that grows with the pool.
    pub(crate) fn routing_bytes(&self, n_ubatch: u64, largest_pool: u64) -> u64 {
        let mapping = product([self.n_used, n_ubatch, ROW_MAPPING_BYTES]);
        product([largest_pool, mapping.saturating_add(EXPERT_COUNTERS_BYTES)])
    }
}

fn with_margin(buffer: u64) -> u64 {
    buffer.saturating_add(buffer / 100 * COMPUTE_MARGIN_PERCENT)
}
