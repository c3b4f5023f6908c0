//! What llama.cpp is told of a plan.

use hypura_gguf as gguf;
use hypura_llama as llama;
use hypura_plan::{KvType, Plan};

use crate::options::LoadOptions;

/// What llama.cpp's context is made with.
pub(crate) fn context_params(
    gguf: &gguf::Model,
    plan: &Plan,
    options: &LoadOptions,
) -> llama::ContextParams {
    // Pooled embeddings need an output of every token.
    let architecture = gguf.metadata.str("general.architecture").unwrap_or_default();
    let pooling = gguf.metadata.u64(&format!("{architecture}.pooling_type"));
    let is_pooled = pooling.is_some_and(|pooling| pooling > 0);
    llama::ContextParams {
        n_ctx: plan.n_ctx,
        n_batch: plan.n_batch,
        n_ubatch: plan.n_ubatch,
        n_seq_max: n_seq(options),
        n_outputs_max: if options.all_outputs || is_pooled { 0 } else { n_seq(options) },
        flash_attention: options.flash_attention,
        type_k: kv_type(options.kv_type_k),
        type_v: kv_type(options.kv_type_v),
        ..llama::ContextParams::default()
    }
}

/// Sequences of a context: blocks of attention state are made and read with one more.
pub(crate) fn n_seq(options: &LoadOptions) -> u32 {
    let scratch = if options.kv.is_some() { llama::SCRATCH_SEQUENCES } else { 0 };
    options.parallel.max(1) + scratch
}

/// ggml's numbers of the types.
fn kv_type(ty: KvType) -> u32 {
    match ty {
        KvType::F16 => gguf::GgmlType::F16.id(),
        KvType::Q8_0 => gguf::GgmlType::Q8_0.id(),
        KvType::Q4_0 => gguf::GgmlType::Q4_0.id(),
    }
}
