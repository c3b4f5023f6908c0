//! The architectures, each with the keys and tensors that `src/models/NAME.cpp` of llama.cpp asks
//! for.

use super::build::{Build, N_VOCAB};
use super::{Mix, Recipe};

const fn recipe(name: &'static str, summary: &'static str, build: fn(&mut Build)) -> Recipe {
    Recipe { name, summary, default_mix: Mix::Q8_0, build }
}

pub(super) const RECIPES: &[Recipe] = &[
    recipe("llama", "dense", llama),
    recipe("qwen3", "dense, input and output embeddings shared", qwen3),
    recipe("gemma3", "dense, sliding window in every other layer, GELU", gemma3),
    recipe("llama-moe", "8 experts of which 2 (Mixtral)", llama_moe),
    recipe("qwen3moe", "16 experts of which 4", qwen3moe),
    recipe("qwen2moe", "12 experts of which 4, a gated shared expert, attention biases", qwen2moe),
    recipe(
        "deepseek2",
        "latent attention, a leading dense layer, shared experts, biased sigmoid routing",
        |build| deepseek2(build, false),
    ),
    recipe("deepseek2-fused", "as deepseek2, gate and up of the experts in one tensor", |build| {
        deepseek2(build, true);
    }),
    Recipe {
        name: "gpt-oss",
        summary: "biases everywhere, attention sinks, sliding window, MXFP4 experts",
        default_mix: Mix::MXFP4,
        build: gpt_oss,
    },
    recipe("qwen3next", "hybrid: recurrent layers and one of attention; experts", qwen3next),
    recipe("qwen35moe", "hybrid as qwen3next, gate and up of the experts in one tensor", qwen35moe),
];

/// How decisively a random router chooses: routing must not hang on rounding.
const ROUTER_GAIN: f32 = 3.0;
/// Spreads the logits, so that tokens differ clearly.
const OUTPUT_GAIN: f32 = 2.0;

fn llama(b: &mut Build) {
    b.transformer("llama", 3);
    embeddings(b);
    output(b);
    for layer in 0..3 {
        let p = format!("blk.{layer}.");
        b.norm(&format!("{p}attn_norm.weight"), b.sizes.n_embd);
        attention(b, &p, 1);
        b.norm(&format!("{p}ffn_norm.weight"), b.sizes.n_embd);
        dense_ffn(b, &p);
    }
}

fn qwen3(b: &mut Build) {
    b.transformer("qwen3", 3);
    tied_embeddings(b);
    for layer in 0..3 {
        let p = format!("blk.{layer}.");
        b.norm(&format!("{p}attn_norm.weight"), b.sizes.n_embd);
        attention(b, &p, 1);
        qk_norms(b, &p);
        b.norm(&format!("{p}ffn_norm.weight"), b.sizes.n_embd);
        dense_ffn(b, &p);
    }
}

fn gemma3(b: &mut Build) {
    b.transformer("gemma3", 4);
    b.key("attention.sliding_window", 32u32);
    b.key("attention.sliding_window_pattern", vec![true, false, true, false]);
    tied_embeddings(b);
    for layer in 0..4 {
        let p = format!("blk.{layer}.");
        b.norm(&format!("{p}attn_norm.weight"), b.sizes.n_embd);
        attention(b, &p, 1);
        qk_norms(b, &p);
        b.norm(&format!("{p}post_attention_norm.weight"), b.sizes.n_embd);
        b.norm(&format!("{p}ffn_norm.weight"), b.sizes.n_embd);
        dense_ffn(b, &p);
        b.norm(&format!("{p}post_ffw_norm.weight"), b.sizes.n_embd);
    }
}

/// Mixtral has no key for the width of an expert: it is that of the feed-forward network.
fn llama_moe(b: &mut Build) {
    b.transformer("llama", 3);
    b.size("feed_forward_length", b.sizes.n_ff_exp);
    b.size("expert_count", 8);
    b.size("expert_used_count", 2);
    embeddings(b);
    output(b);
    for layer in 0..3 {
        let p = format!("blk.{layer}.");
        b.norm(&format!("{p}attn_norm.weight"), b.sizes.n_embd);
        attention(b, &p, 1);
        b.norm(&format!("{p}ffn_norm.weight"), b.sizes.n_embd);
        router(b, &p, 8);
        experts(b, &p, 8, false);
    }
}

fn qwen3moe(b: &mut Build) {
    b.transformer("qwen3moe", 3);
    let n_expert = expert_keys(b, 16, 4);
    embeddings(b);
    output(b);
    for layer in 0..3 {
        let p = format!("blk.{layer}.");
        b.norm(&format!("{p}attn_norm.weight"), b.sizes.n_embd);
        attention(b, &p, 1);
        qk_norms(b, &p);
        b.norm(&format!("{p}ffn_norm.weight"), b.sizes.n_embd);
        router(b, &p, n_expert);
        experts(b, &p, n_expert, false);
    }
}

fn qwen2moe(b: &mut Build) {
    b.transformer("qwen2moe", 3);
    let n_expert = expert_keys(b, 12, 4);
    let n_ff_shared = 2 * b.sizes.n_ff_exp;
    b.size("expert_shared_feed_forward_length", n_ff_shared);
    embeddings(b);
    output(b);
    for layer in 0..3 {
        let p = format!("blk.{layer}.");
        b.norm(&format!("{p}attn_norm.weight"), b.sizes.n_embd);
        attention(b, &p, 1);
        attention_biases(b, &p);
        b.norm(&format!("{p}ffn_norm.weight"), b.sizes.n_embd);
        router(b, &p, n_expert);
        experts(b, &p, n_expert, false);
        b.vector(&format!("{p}ffn_gate_inp_shexp.weight"), &[b.sizes.n_embd], 0.0, 0.1);
        shared_expert(b, &p, n_ff_shared);
    }
}

/// As the newest converter writes it: K and V decompressed by `attn_k_b` and `attn_v_b`, the cache
/// holding one latent "head" of rank + rope values.
fn deepseek2(b: &mut Build, is_fused: bool) {
    const N_LAYER: u32 = 3;
    const N_SHARED: u64 = 2;
    const ROPE: u64 = 32;
    b.transformer("deepseek2", N_LAYER);
    let n_expert = expert_keys(b, 8, 3);
    let s = b.sizes;
    let (nope, value, query_rank) = (s.head, s.head, s.rank);
    b.key("leading_dense_block_count", 1u32);
    b.size("expert_shared_count", N_SHARED);
    b.key("expert_weights_scale", 1.5f32);
    b.key("expert_weights_norm", true);
    b.key("expert_gating_func", 2u32); // sigmoid
    b.key("attention.head_count_kv", 1u32);
    b.size("attention.q_lora_rank", query_rank);
    b.size("attention.kv_lora_rank", s.rank);
    b.size("attention.key_length", s.rank + ROPE);
    b.size("attention.value_length", s.rank);
    b.size("attention.key_length_mla", nope + ROPE);
    b.size("attention.value_length_mla", value);
    b.size("rope.dimension_count", ROPE);
    embeddings(b);
    output(b);
    for layer in 0..N_LAYER {
        let p = format!("blk.{layer}.");
        b.norm(&format!("{p}attn_norm.weight"), s.n_embd);
        b.matrix(&format!("{p}attn_q_a.weight"), &[s.n_embd, query_rank], 1.0);
        b.norm(&format!("{p}attn_q_a_norm.weight"), query_rank);
        b.matrix(&format!("{p}attn_q_b.weight"), &[query_rank, s.n_head * (nope + ROPE)], 1.0);
        b.matrix(&format!("{p}attn_kv_a_mqa.weight"), &[s.n_embd, s.rank + ROPE], 1.0);
        b.norm(&format!("{p}attn_kv_a_norm.weight"), s.rank);
        b.matrix(&format!("{p}attn_k_b.weight"), &[nope, s.rank, s.n_head], 1.0);
        b.matrix(&format!("{p}attn_v_b.weight"), &[s.rank, value, s.n_head], 1.0);
        b.matrix(&format!("{p}attn_output.weight"), &[s.n_head * value, s.n_embd], 1.0);
        b.norm(&format!("{p}ffn_norm.weight"), s.n_embd);
        if layer == 0 {
            dense_ffn(b, &p);
            continue;
        }
        router(b, &p, n_expert);
        b.vector(&format!("{p}exp_probs_b.bias"), &[n_expert], 0.0, 0.05);
        experts(b, &p, n_expert, is_fused);
        shared_expert(b, &p, N_SHARED * s.n_ff_exp);
    }
}

fn gpt_oss(b: &mut Build) {
    b.transformer("gpt-oss", 4);
    let n_expert = expert_keys(b, 16, 4);
    let s = b.sizes;
    b.key("attention.sliding_window", 32u32);
    b.key("rope.scaling.type", "yarn");
    b.key("rope.scaling.factor", 4f32);
    b.key("rope.scaling.original_context_length", 1024u32);
    embeddings(b);
    output(b);
    for layer in 0..4 {
        let p = format!("blk.{layer}.");
        b.norm(&format!("{p}attn_norm.weight"), s.n_embd);
        attention(b, &p, 1);
        attention_biases(b, &p);
        b.vector(&format!("{p}attn_output.bias"), &[s.n_embd], 0.0, 0.1);
        b.vector(&format!("{p}attn_sinks.weight"), &[s.n_head], 0.0, 1.0);
        b.norm(&format!("{p}post_attention_norm.weight"), s.n_embd);
        router(b, &p, n_expert);
        b.vector(&format!("{p}ffn_gate_inp.bias"), &[n_expert], 0.0, 0.1);
        experts(b, &p, n_expert, false);
        b.vector(&format!("{p}ffn_gate_exps.bias"), &[s.n_ff_exp, n_expert], 0.0, 0.1);
        b.vector(&format!("{p}ffn_up_exps.bias"), &[s.n_ff_exp, n_expert], 0.0, 0.1);
        b.vector(&format!("{p}ffn_down_exps.bias"), &[s.n_embd, n_expert], 0.0, 0.1);
    }
}

fn qwen3next(b: &mut Build) {
    hybrid(b, "qwen3next", false, |b, p, delta| {
        let n_beta_alpha = 2 * delta.n_v_head;
        b.matrix(&format!("{p}ssm_ba.weight"), &[b.sizes.n_embd, n_beta_alpha], 1.0);
    });
}

fn qwen35moe(b: &mut Build) {
    hybrid(b, "qwen35moe", true, |b, p, delta| {
        b.matrix(&format!("{p}ssm_beta.weight"), &[b.sizes.n_embd, delta.n_v_head], 1.0);
        b.matrix(&format!("{p}ssm_alpha.weight"), &[b.sizes.n_embd, delta.n_v_head], 1.0);
    });
}

/// Heads of a gated delta net.
#[derive(Clone, Copy)]
struct DeltaNet {
    head: u64,
    n_k_head: u64,
    n_v_head: u64,
    kernel: u64,
}

/// Three recurrent layers, then one of gated attention, each with experts and a shared expert.
fn hybrid(
    b: &mut Build,
    arch: &'static str,
    is_fused: bool,
    beta_alpha: fn(&mut Build, &str, DeltaNet),
) {
    const N_LAYER: u32 = 4;
    let delta = DeltaNet { head: 32, n_k_head: 2, n_v_head: 4, kernel: 4 };
    b.transformer(arch, N_LAYER);
    let n_expert = expert_keys(b, 8, 3);
    let s = b.sizes;
    let n_rotated = s.head / 2;
    b.size("expert_shared_feed_forward_length", s.n_ff_exp);
    b.size("rope.dimension_count", n_rotated);
    if arch == "qwen35moe" {
        // Rotated pairs for time, height, width and nothing.
        let pairs = i32::try_from(n_rotated / 2).unwrap_or(0);
        let side = pairs * 3 / 8;
        b.key("rope.dimension_sections", vec![pairs - 2 * side, side, side, 0]);
    }
    b.size("full_attention_interval", 4);
    b.size("ssm.conv_kernel", delta.kernel);
    b.size("ssm.inner_size", delta.head * delta.n_v_head);
    b.size("ssm.state_size", delta.head);
    b.size("ssm.time_step_rank", delta.n_v_head);
    b.size("ssm.group_count", delta.n_k_head);
    embeddings(b);
    output(b);
    for layer in 0..N_LAYER {
        let p = format!("blk.{layer}.");
        b.norm(&format!("{p}attn_norm.weight"), s.n_embd);
        if layer % 4 == 3 {
            // Q comes with a gate of its own size.
            attention(b, &p, 2);
            qk_norms(b, &p);
        } else {
            delta_net(b, &p, delta);
            beta_alpha(b, &p, delta);
        }
        b.norm(&format!("{p}post_attention_norm.weight"), s.n_embd);
        router(b, &p, n_expert);
        experts(b, &p, n_expert, is_fused);
        b.vector(&format!("{p}ffn_gate_inp_shexp.weight"), &[s.n_embd], 0.0, 0.1);
        shared_expert(b, &p, s.n_ff_exp);
    }
}

fn delta_net(b: &mut Build, p: &str, delta: DeltaNet) {
    let n_embd = b.sizes.n_embd;
    let (keys, values) = (delta.head * delta.n_k_head, delta.head * delta.n_v_head);
    b.matrix(&format!("{p}attn_qkv.weight"), &[n_embd, 2 * keys + values], 1.0);
    b.matrix(&format!("{p}attn_gate.weight"), &[n_embd, values], 1.0);
    b.matrix_f32(&format!("{p}ssm_conv1d.weight"), &[delta.kernel, 2 * keys + values], 1.0);
    b.vector(&format!("{p}ssm_dt.bias"), &[delta.n_v_head], 0.0, 0.5);
    // The decay: -exp(A_log), so that the state forgets.
    b.vector(&format!("{p}ssm_a"), &[delta.n_v_head], -1.0, 0.2);
    b.norm(&format!("{p}ssm_norm.weight"), delta.head);
    b.matrix(&format!("{p}ssm_out.weight"), &[values, n_embd], 1.0);
}

fn embeddings(b: &mut Build) {
    let n_embd = b.sizes.n_embd;
    // Lookups are not sums: the gain makes up for the scale of a sum.
    let gain = 1.0 / crate::blocks::inverse_root(n_embd);
    b.matrix("token_embd.weight", &[n_embd, N_VOCAB], gain);
}

fn output(b: &mut Build) {
    b.norm("output_norm.weight", b.sizes.n_embd);
    b.matrix("output.weight", &[b.sizes.n_embd, N_VOCAB], OUTPUT_GAIN);
}

/// Embeddings that serve as output too.
fn tied_embeddings(b: &mut Build) {
    b.matrix("token_embd.weight", &[b.sizes.n_embd, N_VOCAB], OUTPUT_GAIN);
    b.norm("output_norm.weight", b.sizes.n_embd);
}

/// Q, K, V and output; Q is `q_times` as wide as the heads.
fn attention(b: &mut Build, p: &str, q_times: u64) {
    let s = b.sizes;
    let (n_q, n_kv) = (s.head * s.n_head, s.head * s.n_head_kv);
    b.matrix(&format!("{p}attn_q.weight"), &[s.n_embd, q_times * n_q], 1.0);
    b.matrix(&format!("{p}attn_k.weight"), &[s.n_embd, n_kv], 1.0);
    b.matrix(&format!("{p}attn_v.weight"), &[s.n_embd, n_kv], 1.0);
    b.matrix(&format!("{p}attn_output.weight"), &[n_q, s.n_embd], 1.0);
}

fn attention_biases(b: &mut Build, p: &str) {
    let s = b.sizes;
    b.vector(&format!("{p}attn_q.bias"), &[s.head * s.n_head], 0.0, 0.1);
    b.vector(&format!("{p}attn_k.bias"), &[s.head * s.n_head_kv], 0.0, 0.1);
    b.vector(&format!("{p}attn_v.bias"), &[s.head * s.n_head_kv], 0.0, 0.1);
}

fn qk_norms(b: &mut Build, p: &str) {
    b.norm(&format!("{p}attn_q_norm.weight"), b.sizes.head);
    b.norm(&format!("{p}attn_k_norm.weight"), b.sizes.head);
}

fn dense_ffn(b: &mut Build, p: &str) {
    let (n_embd, n_ff) = (b.sizes.n_embd, b.sizes.n_ff);
    b.matrix(&format!("{p}ffn_gate.weight"), &[n_embd, n_ff], 1.0);
    b.matrix(&format!("{p}ffn_up.weight"), &[n_embd, n_ff], 1.0);
    b.matrix(&format!("{p}ffn_down.weight"), &[n_ff, n_embd], 1.0);
}

/// Sets the keys of the experts; returns how many there are.
fn expert_keys(b: &mut Build, n_expert: u64, n_used: u64) -> u64 {
    let n_expert = b.n_expert(n_expert);
    b.size("expert_count", n_expert);
    b.size("expert_used_count", n_used);
    b.size("expert_feed_forward_length", b.sizes.n_ff_exp);
    n_expert
}

fn router(b: &mut Build, p: &str, n_expert: u64) {
    b.matrix_f32(&format!("{p}ffn_gate_inp.weight"), &[b.sizes.n_embd, n_expert], ROUTER_GAIN);
}

fn experts(b: &mut Build, p: &str, n_expert: u64, is_fused: bool) {
    let (n_embd, n_ff) = (b.sizes.n_embd, b.sizes.n_ff_exp);
    if is_fused {
        b.matrix(&format!("{p}ffn_gate_up_exps.weight"), &[n_embd, 2 * n_ff, n_expert], 1.5);
    } else {
        b.matrix(&format!("{p}ffn_gate_exps.weight"), &[n_embd, n_ff, n_expert], 1.5);
        b.matrix(&format!("{p}ffn_up_exps.weight"), &[n_embd, n_ff, n_expert], 1.5);
    }
    b.matrix(&format!("{p}ffn_down_exps.weight"), &[n_ff, n_embd, n_expert], 1.5);
}

fn shared_expert(b: &mut Build, p: &str, n_ff: u64) {
    let n_embd = b.sizes.n_embd;
    b.matrix(&format!("{p}ffn_gate_shexp.weight"), &[n_embd, n_ff], 1.0);
    b.matrix(&format!("{p}ffn_up_shexp.weight"), &[n_embd, n_ff], 1.0);
    b.matrix(&format!("{p}ffn_down_shexp.weight"), &[n_ff, n_embd], 1.0);
}
