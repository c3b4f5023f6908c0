//! Bytes of the attention state, by the model's real geometry.
//!
//! Formulas of llama.cpp: `llama_kv_cache::llama_kv_cache` (`llama-kv-cache.cpp`) for K and V,
//! `llama_kv_cache_iswa` (`llama-kv-cache-iswa.cpp`) for sliding windows, and
//! `llama_memory_recurrent` (`llama-memory-recurrent.cpp`) for recurrent state, all with
//! `kv_unified = true`: the sequences share one context. The elements of a row and of a state
//! (`llama-hparams.cpp`) come from [`Hparams`].

use hypura_gguf::Hparams;
use serde::{Deserialize, Serialize};

use crate::number::{pad, product, total};
use crate::request::Request;

/// llama.cpp rounds a context up to a multiple of this many tokens (`llama-context.cpp`).
pub const CTX_ALIGN_TOKENS: u64 = 256;
/// Recurrent state is kept in f32.
const STATE_ELEMENT_BYTES: u64 = 4;

/// Bytes of the attention state by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvBytes {
    /// Keys and values of layers that see the whole context.
    pub attention: u64,
    /// Keys and values of layers with a sliding window.
    pub sliding: u64,
    /// State of recurrent layers.
    pub recurrent: u64,
}

impl KvBytes {
    /// All of it.
    pub fn total(&self) -> u64 {
        total([self.attention, self.sliding, self.recurrent])
    }
}

/// Bytes of the attention state for a context of `n_ctx` tokens and micro-batches of `n_ubatch`.
pub fn kv_bytes(hparams: &Hparams, request: &Request, n_ctx: u64, n_ubatch: u64) -> KvBytes {
    let cells_sliding = sliding_cells(hparams, request, n_ctx, n_ubatch);
    let value_max =
        (0..hparams.n_layer).map(|layer| hparams.value_row_elements(layer)).max().unwrap_or(0);
    let mut bytes = KvBytes::default();
    for layer in 0..hparams.n_layer {
        let key = request.kv_type_k.row_bytes(hparams.key_row_elements(layer));
        let value = hparams.value_row_elements(layer);
        // Without flash attention V is stored transposed, and all layers take the widest one's room.
        let value = if request.flash_attention || value == 0 { value } else { value_max };
        let row = key.saturating_add(request.kv_type_v.row_bytes(value));
        let is_sliding = flag(&hparams.is_sliding, layer);
        if is_sliding {
            bytes.sliding = bytes.sliding.saturating_add(product([row, cells_sliding]));
        } else {
            bytes.attention = bytes.attention.saturating_add(product([row, n_ctx]));
        }
        if let (true, Some(state)) = (flag(&hparams.is_recurrent, layer), &hparams.recurrent) {
            let elements = state.conv_state_elements.saturating_add(state.state_elements);
            let state = product([elements, STATE_ELEMENT_BYTES, u64::from(request.n_seq.max(1))]);
            bytes.recurrent = bytes.recurrent.saturating_add(state);
        }
    }
    bytes
}

/// Bytes of keys and values of one token in all layers, as they are written to blocks.
pub fn token_bytes(hparams: &Hparams, request: &Request) -> u64 {
    total((0..hparams.n_layer).map(|layer| {
        let key = request.kv_type_k.row_bytes(hparams.key_row_elements(layer));
        key.saturating_add(request.kv_type_v.row_bytes(hparams.value_row_elements(layer)))
    }))
}

/// Bytes of recurrent state of one sequence: a checkpoint.
pub fn checkpoint_bytes(hparams: &Hparams) -> u64 {
    let one = Request { n_seq: 1, ..Request::default() };
    kv_bytes(hparams, &one, CTX_ALIGN_TOKENS, 1).recurrent
}

/// Cells that a layer with a sliding window keeps; 0 if no layer has one.
pub(crate) fn sliding_cells(
    hparams: &Hparams,
    request: &Request,
    n_ctx: u64,
    n_ubatch: u64,
) -> u64 {
    match hparams.sliding_window {
        None => 0,
        Some(_) if request.full_sliding_windows => n_ctx,
        Some(window) => {
            let seen = product([u64::from(window), u64::from(request.n_seq.max(1))]);
            pad(n_ctx.min(seen.saturating_add(n_ubatch)), CTX_ALIGN_TOKENS)
        }
    }
}

fn flag(flags: &[bool], layer: u32) -> bool {
    flags.get(layer as usize).copied().unwrap_or(false)
}
