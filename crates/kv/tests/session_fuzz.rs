//! The fuzz bodies on mutated files: the same in every run.

use std::fs;

use hypura_kv::{fuzz_portable, fuzz_session};

/// Numbers that decoders get wrong.
const EDGES: [u32; 7] = [0, 1, 31, 0x7fff_ffff, u32::MAX, 64 << 20, (64 << 20) + 1];

/// Xorshift (Marsaglia, 2003), of 64 bits.
struct Random(u64);

impl Random {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).expect("below a usize")
    }
}

/// Changes a few places: bits, numbers, cut or repeated ranges. Half of them are in the head, where
/// the lengths are.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let range = [bytes.len(), bytes.len().min(40)][random.below(2)];
        let at = random.below(range);
        match random.below(5) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                bytes.iter_mut().skip(at & !3).zip(edge).for_each(|(byte, new)| *byte = new);
            }
            3 => bytes.truncate(bytes.len() - random.below(range)),
            _ => {
                let len = random.below(64.min(bytes.len() - at)) + 1;
                let again = bytes[at..at + len].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
}

fn run(fixture: &str, body: fn(&[u8])) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/");
    let seed = fs::read(format!("{path}{fixture}")).expect("a fixture");
    body(&seed);
    let mut random = Random(2026);
    for _ in 0..4000 {
        let mut bytes = seed.clone();
        mutate(&mut random, &mut bytes);
        body(&bytes);
    }
}

#[test]
fn mutated_sessions() {
    run("v1.session", fuzz_session);
}

#[test]
fn mutated_portable_files() {
    run("v1.hypura", fuzz_portable);
}
