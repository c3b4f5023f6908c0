//! Models as lists of tensors, shaped like real ones, and a machine.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::Path;

use hypura_gguf::{GgmlType, Metadata, Model, Value, Writer};
use hypura_plan::{BandwidthPoint, ComputeRate, Layout, Machine, Plan, Product, Request};

use GgmlType::{F32, MXFP4, Q4_0, Q4_K, Q6_K, Q8_0};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Builds a model tensor by tensor, without any data.
pub(crate) struct Builder {
    architecture: &'static str,
    metadata: Metadata,
    tensors: Vec<(String, GgmlType, Vec<u64>)>,
}

impl Builder {
    pub(crate) fn new(architecture: &'static str) -> Self {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", architecture);
        Self { architecture, metadata, tensors: Vec::new() }
    }

    pub(crate) fn key(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.metadata.insert(format!("{}.{key}", self.architecture), value);
        self
    }

    pub(crate) fn keys(self, keys: &[(&str, u32)]) -> Self {
        keys.iter().fold(self, |builder, &(key, value)| builder.key(key, value))
    }

    pub(crate) fn tensor(mut self, name: impl Into<String>, ty: GgmlType, dims: &[u64]) -> Self {
        self.tensors.push((name.into(), ty, dims.to_vec()));
        self
    }

    /// `blk.N.stem.weight` for each stem.
    pub(crate) fn block(self, layer: u32, tensors: &[(&str, GgmlType, &[u64])]) -> Self {
        tensors.iter().fold(self, |builder, (stem, ty, dims)| {
            builder.tensor(format!("blk.{layer}.{stem}.weight"), *ty, dims)
        })
    }

    pub(crate) fn build(self) -> Model {
        let mut writer = Writer::new(self.metadata, 32).expect("an alignment that is allowed");
        for (name, ty, dims) in &self.tensors {
            writer.add_tensor(name, *ty, dims).expect("a tensor that is allowed");
        }
        Model::from_writer(&writer, Path::new("model.gguf"))
    }
}

/// Attention with norms, as in most models: widths of query, key and value, and result.
fn attention(builder: Builder, layer: u32, n_embd: u64, q: u64, kv: u64, ty: GgmlType) -> Builder {
    builder.block(
        layer,
        &[
            ("attn_norm", F32, &[n_embd]),
            ("attn_q", ty, &[n_embd, q]),
            ("attn_k", ty, &[n_embd, kv]),
            ("attn_v", ty, &[n_embd, kv]),
            ("attn_output", ty, &[q, n_embd]),
            ("ffn_norm", F32, &[n_embd]),
        ],
    )
}

pub(crate) fn qwen3_30b_a3b() -> Model {
    let mut builder = Builder::new("qwen3moe")
        .keys(&[
            ("block_count", 48),
            ("context_length", 40960),
            ("embedding_length", 2048),
            ("attention.head_count", 32),
            ("attention.head_count_kv", 4),
            ("attention.key_length", 128),
            ("attention.value_length", 128),
            ("expert_count", 128),
            ("expert_used_count", 8),
            ("expert_feed_forward_length", 768),
        ])
        .tensor("token_embd.weight", Q4_K, &[2048, 151_936])
        .tensor("output_norm.weight", F32, &[2048])
        .tensor("output.weight", Q6_K, &[2048, 151_936]);
    for layer in 0..48 {
        // Q4_K_M: half of the down projections are Q6_K, so there are two size classes.
        let down = if !(6..42).contains(&layer) || layer % 3 == 2 { Q6_K } else { Q4_K };
        builder = attention(builder, layer, 2048, 4096, 512, Q4_K).block(
            layer,
            &[
                ("ffn_gate_inp", F32, &[2048, 128]),
                ("ffn_gate_exps", Q4_K, &[2048, 768, 128]),
                ("ffn_up_exps", Q4_K, &[2048, 768, 128]),
                ("ffn_down_exps", down, &[768, 2048, 128]),
            ],
        );
    }
    builder.build()
}

pub(crate) fn mixtral_8x7b() -> Model {
    let mut builder = Builder::new("llama")
        .keys(&[
            ("block_count", 32),
            ("context_length", 32768),
            ("embedding_length", 4096),
            ("feed_forward_length", 14336),
            ("attention.head_count", 32),
            ("attention.head_count_kv", 8),
            ("expert_count", 8),
            ("expert_used_count", 2),
        ])
        .tensor("token_embd.weight", Q4_0, &[4096, 32000])
        .tensor("output_norm.weight", F32, &[4096])
        .tensor("output.weight", Q6_K, &[4096, 32000]);
    for layer in 0..32 {
        builder = attention(builder, layer, 4096, 4096, 1024, Q4_0).block(
            layer,
            &[
                ("ffn_gate_inp", F32, &[4096, 8]),
                ("ffn_gate_exps", Q4_0, &[4096, 14336, 8]),
                ("ffn_up_exps", Q4_0, &[4096, 14336, 8]),
                ("ffn_down_exps", Q4_0, &[14336, 4096, 8]),
            ],
        );
    }
    builder.build()
}

pub(crate) fn llama_70b() -> Model {
    let mut builder = Builder::new("llama")
        .keys(&[
            ("block_count", 80),
            ("context_length", 131_072),
            ("embedding_length", 8192),
            ("feed_forward_length", 28672),
            ("attention.head_count", 64),
            ("attention.head_count_kv", 8),
        ])
        .tensor("token_embd.weight", Q4_0, &[8192, 128_256])
        .tensor("output_norm.weight", F32, &[8192])
        .tensor("output.weight", Q6_K, &[8192, 128_256]);
    for layer in 0..80 {
        builder = attention(builder, layer, 8192, 8192, 1024, Q4_0).block(
            layer,
            &[
                ("ffn_gate", Q4_0, &[8192, 28672]),
                ("ffn_up", Q4_0, &[8192, 28672]),
                ("ffn_down", Q4_0, &[28672, 8192]),
            ],
        );
    }
    builder.build()
}

pub(crate) fn deepseek_v2_lite() -> Model {
    let mut builder = Builder::new("deepseek2")
        .keys(&[
            ("block_count", 27),
            ("context_length", 163_840),
            ("embedding_length", 2048),
            ("feed_forward_length", 10944),
            ("attention.head_count", 16),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 576),
            ("attention.value_length", 512),
            ("attention.key_length_mla", 192),
            ("attention.value_length_mla", 128),
            ("attention.kv_lora_rank", 512),
            ("rope.dimension_count", 64),
            ("expert_count", 64),
            ("expert_used_count", 6),
            ("expert_shared_count", 2),
            ("expert_feed_forward_length", 1408),
            ("leading_dense_block_count", 1),
        ])
        .tensor("token_embd.weight", Q4_0, &[2048, 102_400])
        .tensor("output_norm.weight", F32, &[2048])
        .tensor("output.weight", Q8_0, &[2048, 102_400]);
    for layer in 0..27 {
        builder = builder.block(
            layer,
            &[
                ("attn_norm", F32, &[2048]),
                ("attn_q", Q4_0, &[2048, 3072]),
                ("attn_kv_a_mqa", Q4_0, &[2048, 576]),
                ("attn_kv_a_norm", F32, &[512]),
                ("attn_k_b", Q4_0, &[128, 512, 16]),
                ("attn_v_b", Q4_0, &[512, 128, 16]),
                ("attn_output", Q4_0, &[2048, 2048]),
                ("ffn_norm", F32, &[2048]),
            ],
        );
        builder = if layer == 0 {
            builder.block(
                layer,
                &[
                    ("ffn_gate", Q4_0, &[2048, 10944]),
                    ("ffn_up", Q4_0, &[2048, 10944]),
                    ("ffn_down", Q4_0, &[10944, 2048]),
                ],
            )
        } else {
            builder.block(
                layer,
                &[
                    ("ffn_gate_inp", F32, &[2048, 64]),
                    ("ffn_gate_exps", Q4_0, &[2048, 1408, 64]),
                    ("ffn_up_exps", Q4_0, &[2048, 1408, 64]),
                    ("ffn_down_exps", Q4_0, &[1408, 2048, 64]),
                    ("ffn_gate_shexp", Q4_0, &[2048, 2816]),
                    ("ffn_up_shexp", Q4_0, &[2048, 2816]),
                    ("ffn_down_shexp", Q4_0, &[2816, 2048]),
                ],
            )
        };
    }
    builder.build()
}

pub(crate) fn gpt_oss_20b() -> Model {
    let mut builder = Builder::new("gpt-oss")
        .keys(&[
            ("block_count", 24),
            ("context_length", 131_072),
            ("embedding_length", 2880),
            ("attention.head_count", 64),
            ("attention.head_count_kv", 8),
            ("attention.key_length", 64),
            ("attention.value_length", 64),
            ("attention.sliding_window", 128),
            ("expert_count", 32),
            ("expert_used_count", 4),
            ("expert_feed_forward_length", 2880),
        ])
        .tensor("token_embd.weight", Q8_0, &[2880, 201_088])
        .tensor("output_norm.weight", F32, &[2880])
        .tensor("output.weight", Q8_0, &[2880, 201_088]);
    for layer in 0..24 {
        builder = attention(builder, layer, 2880, 4096, 512, Q8_0)
            .block(
                layer,
                &[
                    ("attn_sinks", F32, &[64]),
                    ("ffn_gate_inp", F32, &[2880, 32]),
                    ("ffn_gate_exps", MXFP4, &[2880, 2880, 32]),
                    ("ffn_up_exps", MXFP4, &[2880, 2880, 32]),
                    ("ffn_down_exps", MXFP4, &[2880, 2880, 32]),
                ],
            )
            .tensor(format!("blk.{layer}.ffn_gate_exps.bias"), F32, &[2880, 32])
            .tensor(format!("blk.{layer}.ffn_up_exps.bias"), F32, &[2880, 32])
            .tensor(format!("blk.{layer}.ffn_down_exps.bias"), F32, &[2880, 32]);
    }
    builder.build()
}

pub(crate) fn gemma3_27b() -> Model {
    let mut builder = Builder::new("gemma3")
        .keys(&[
            ("block_count", 62),
            ("context_length", 131_072),
            ("embedding_length", 5376),
            ("feed_forward_length", 21504),
            ("attention.head_count", 32),
            ("attention.head_count_kv", 16),
            ("attention.key_length", 128),
            ("attention.value_length", 128),
            ("attention.sliding_window", 1024),
        ])
        // Tied: there is no output matrix.
        .tensor("token_embd.weight", Q6_K, &[5376, 262_144])
        .tensor("output_norm.weight", F32, &[5376]);
    for layer in 0..62 {
        builder = attention(builder, layer, 5376, 4096, 2048, Q4_0).block(
            layer,
            &[
                ("ffn_gate", Q4_0, &[5376, 21504]),
                ("ffn_up", Q4_0, &[5376, 21504]),
                ("ffn_down", Q4_0, &[21504, 5376]),
            ],
        );
    }
    builder.build()
}

/// The demo model, its experts `widen` times as wide.
pub(crate) fn demo(widen: u64) -> Model {
    let width = 256 * widen;
    let mut builder = Builder::new("qwen3moe")
        .keys(&[
            ("block_count", 8),
            ("context_length", 2048),
            ("embedding_length", 256),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 64),
            ("attention.value_length", 64),
            ("expert_count", 32),
            ("expert_used_count", 4),
        ])
        .tensor("token_embd.weight", Q6_K, &[256, 8192])
        .tensor("output_norm.weight", F32, &[256]);
    for layer in 0..8 {
        builder = attention(builder, layer, 256, 256, 128, Q4_K).block(
            layer,
            &[
                ("ffn_gate_inp", F32, &[256, 32]),
                ("ffn_gate_exps", Q4_K, &[256, width, 32]),
                ("ffn_up_exps", Q4_K, &[256, width, 32]),
                ("ffn_down_exps", Q4_K, &[width, 256, 32]),
            ],
        );
    }
    builder.build()
}

/// Many experts so small that their bookkeeping counts.
pub(crate) fn small_experts() -> Model {
    let mut builder = Builder::new("qwen3moe")
        .keys(&[
            ("block_count", 16),
            ("context_length", 256),
            ("embedding_length", 64),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("expert_count", 256),
            ("expert_used_count", 8),
        ])
        .tensor("token_embd.weight", Q8_0, &[64, 512])
        .tensor("output_norm.weight", F32, &[64]);
    for layer in 0..16 {
        builder = attention(builder, layer, 64, 64, 32, Q8_0).block(
            layer,
            &[
                ("ffn_gate_inp", F32, &[64, 256]),
                ("ffn_gate_up_exps", Q8_0, &[64, 32, 256]),
                ("ffn_down_exps", Q8_0, &[32, 64, 256]),
            ],
        );
    }
    builder.build()
}

pub(crate) fn all() -> Vec<(&'static str, Model)> {
    vec![
        ("qwen3_30b_a3b", qwen3_30b_a3b()),
        ("mixtral_8x7b", mixtral_8x7b()),
        ("llama_70b", llama_70b()),
        ("deepseek_v2_lite", deepseek_v2_lite()),
        ("gpt_oss_20b", gpt_oss_20b()),
        ("gemma3_27b", gemma3_27b()),
        ("demo", demo(1)),
        ("demo_x24", demo(24)),
        ("small_experts", small_experts()),
    ]
}

/// Of all types that the models here have, as far as they matter.
fn rates() -> Vec<ComputeRate> {
    let mut rates = Vec::new();
    for ty in [Q4_0, Q4_K, Q6_K, Q8_0, MXFP4] {
        for product in [Product::Matrix, Product::Experts] {
            for (layout, gain) in [(Layout::Plain, 1.0), (Layout::Fast, 1.25)] {
                rates.push(ComputeRate {
                    ty: ty.name().to_owned(),
                    layout,
                    product,
                    n_in: 4096,
                    decode_bytes_per_s: 4e10 * gain,
                    prompt_flops_per_s: 5e11 * gain,
                });
            }
        }
    }
    rates
}

/// Eight cores and a good NVMe drive.
pub(crate) fn machine() -> Machine {
    let point = |read_bytes, depth, bytes_per_s| BandwidthPoint { read_bytes, depth, bytes_per_s };
    Machine {
        free_memory_bytes: 32 * GIB,
        cores: 8,
        storage: vec![
            point(4 << 10, 1, 5e7),
            point(1 << 20, 1, 2e9),
            point(4 << 10, 16, 7e8),
            point(128 << 10, 16, 3e9),
            point(1 << 20, 16, 3.5e9),
        ],
        read_latency_s: 80e-6,
        storage_is_fresh: false,
        compute: rates(),
        step_s: 5e-7,
        gpu: None,
    }
}

pub(crate) fn request(memory_bytes: u64) -> Request {
    Request { memory_bytes, ..Request::default() }
}

/// Bytes that a token reads by the plan: what must never grow with the budget.
pub(crate) fn streamed_bytes(plan: &Plan) -> u64 {
    plan.speed.read_bytes_per_token
}
