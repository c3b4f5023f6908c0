//! Bytes of the attention state of real models, against sums done by hand.

mod common;

use hypura_gguf::Model;
use hypura_plan::kv::{KvBytes, kv_bytes};
use hypura_plan::{KvType, Request};

const CTX: u64 = 8192;

#[track_caller]
fn check(model: &Model, request: &Request, attention: u64, sliding: u64, recurrent: u64) {
    let found = kv_bytes(&model.hparams(), request, CTX, 512);
    assert_eq!(found, KvBytes { attention, sliding, recurrent }, "{}", model.architecture());
}

#[test]
fn grouped_query_attention() {
    let f16 = Request::default();
    // 96 KiB per token: 48 layers of 4 heads of 128, K and V.
    check(&common::qwen3_30b_a3b(), &f16, 98_304 * CTX, 0, 0);
    // 320 KiB per token: 80 layers of 8 heads of 128.
    check(&common::llama_70b(), &f16, 327_680 * CTX, 0, 0);
    check(&common::mixtral_8x7b(), &f16, 131_072 * CTX, 0, 0);
    let quantized =
        Request { kv_type_k: KvType::Q8_0, kv_type_v: KvType::Q4_0, ..Request::default() };
    // 512 elements are 16 blocks of 34 and 18 bytes.
    check(&common::qwen3_30b_a3b(), &quantized, 48 * 16 * (34 + 18) * CTX, 0, 0);
}

/// Keys are the compressed rank and the rotated part; values are a view of them.
#[test]
fn latent_attention() {
    check(&common::deepseek_v2_lite(), &Request::default(), 27 * (512 + 64) * 2 * CTX, 0, 0);
}

#[test]
fn sliding_windows() {
    let request = Request::default();
    // Every sixth of 62 layers sees everything; the others keep 1024 + 512 tokens.
    let row = 16 * 128 * 2 * 2;
    check(&common::gemma3_27b(), &request, 10 * row * CTX, 52 * row * 1536, 0);
    // Every second of 24; 128 + 512 tokens are padded to 768.
    let row = 8 * 64 * 2 * 2;
    check(&common::gpt_oss_20b(), &request, 12 * row * CTX, 12 * row * 768, 0);
    let two = Request { n_seq: 4, ..Request::default() };
    check(&common::gpt_oss_20b(), &two, 12 * row * CTX, 12 * row * 1024, 0);
    let full = Request { full_sliding_windows: true, ..Request::default() };
    check(&common::gpt_oss_20b(), &full, 12 * row * CTX, 12 * row * CTX, 0);
}

/// Qwen3-Next: three of four layers keep a state in f32 instead of keys and values.
#[test]
fn hybrid() {
    let model = common::Builder::new("qwen3next")
        .keys(&[
            ("block_count", 48),
            ("embedding_length", 2048),
            ("attention.head_count", 16),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 256),
            ("attention.value_length", 256),
            ("full_attention_interval", 4),
            ("ssm.conv_kernel", 4),
            ("ssm.state_size", 128),
            ("ssm.inner_size", 4096),
            ("ssm.group_count", 16),
            ("ssm.time_step_rank", 32),
        ])
        .build();
    let state = 3 * (4096 + 2 * 16 * 128) + 128 * 4096;
    let attention = 12 * 2 * 256 * 2 * 2 * CTX;
    check(&model, &Request::default(), attention, 0, 36 * state * 4);
    let three = Request { n_seq: 3, ..Request::default() };
    check(&model, &three, attention, 0, 3 * 36 * state * 4);
}
