//! The fuzz bodies on mutated files: the same in every run.

mod common;

use common::{Random, bare, every_value, file_bytes, small_model};
use hypura_gguf::fuzz::{fuzz_header, fuzz_hparams};

/// Numbers that parsers get wrong.
const EDGES: [u64; 8] = [0, 1, 31, 0x7fff_ffff, 0xffff_ffff, 1 << 32, i64::MAX as u64, u64::MAX];

/// Changes a few places: bits, edge numbers of 1 to 8 bytes, cut or repeated ranges.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 | 2 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = [1, 4, 8][random.below(3)];
                for (byte, &value) in bytes[at..].iter_mut().zip(&edge[..width]) {
                    *byte = value;
                }
            }
            3 => bytes.truncate(at),
            _ => {
                let len = random.below(64.min(bytes.len() - at)) + 1;
                let again = bytes[at..at + len].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
}

#[test]
fn mutated_headers() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo-draft-3m-q8_0.gguf");
    let demo = std::fs::read(demo).expect("the model that comes with the repository");
    let seeds = [
        file_bytes(&small_model(bare(), 32)),
        file_bytes(&small_model(every_value(), 64)),
        demo[..2048].to_vec(),
    ];
    let mut random = Random::new(2024);
    for seed in &seeds {
        fuzz_header(seed);
        for _ in 0..4000 {
            let mut bytes = seed.clone();
            mutate(&mut random, &mut bytes);
            fuzz_header(&bytes);
        }
    }
}

#[test]
fn mutated_shapes() {
    let mut random = Random::new(7);
    let architectures = ["qwen3next", "minimax-01", "jamba", "gemma3", "gemma4", "lfm2", "rwkv7"];
    let keys = [
        "block_count",
        "embedding_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.recurrent_layers",
        "attention.shared_kv_layers",
        "full_attention_interval",
        "nextn_predict_layers",
        "ssm.conv_kernel",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.group_count",
        "shortconv.l_cache",
        "kda.head_dim",
        "wkv.head_size",
        "token_shift_count",
    ];
    for _ in 0..4000 {
        let architecture = architectures[random.below(architectures.len())];
        let mut text = format!("general.architecture={architecture}\n");
        for key in keys {
            let number = match random.below(3) {
                0 => continue,
                1 => EDGES[random.below(EDGES.len())] & 0xffff_ffff,
                _ => random.next() % 100,
            };
            text.push_str(&format!("{architecture}.{key}={number}"));
            if random.below(4) == 0 {
                text.push_str(",3,0,7");
            }
            text.push('\n');
        }
        fuzz_hparams(text.as_bytes());
    }
}
