//! The fuzz body on mutated images: the same in every run.

mod common;

use common::{Random, block, checkpoint, scope};
use hypura_kv::encode;
use hypura_kv::fuzz::fuzz_block;

/// Numbers that decoders get wrong.
const EDGES: [u64; 8] = [0, 1, 512, 513, 0xffff_ffff, 1 << 30, i64::MAX as u64, u64::MAX];

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        // Nearly everything is in the first 200 bytes.
        let reach = if random.below(3) == 0 { bytes.len() } else { 200.min(bytes.len()) };
        let at = random.below(reach);
        match random.below(5) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 | 3 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = [1, 4, 8][random.below(3)];
                for (byte, &value) in bytes[at..].iter_mut().zip(&edge[..width]) {
                    *byte = value;
                }
            }
            _ => bytes.truncate(at + random.below(bytes.len() - at)),
        }
    }
}

#[test]
fn mutated_images() {
    let tokens: Vec<i32> = (0..300).collect();
    let seeds = [
        encode(&block(&scope(1), &tokens, 100, 5000)),
        encode(&block(&scope(1), &tokens[..1], 0, 0)),
        encode(&checkpoint(&scope(1), &tokens, 100)),
    ];
    let mut random = Random::new(2024);
    for seed in &seeds {
        fuzz_block(seed);
        for _ in 0..2000 {
            let mut bytes = seed.clone();
            mutate(&mut random, &mut bytes);
            fuzz_block(&bytes);
        }
    }
    fuzz_block(b"abababababababababababababababab-08080808080808080808080808080808-7-256.kv");
}
