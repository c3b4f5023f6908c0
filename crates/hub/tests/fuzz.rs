//! The fuzz body on mutated manifests and names: the same in every run.

mod common;

use common::Random;
use hypura_hub::fuzz::fuzz_manifest;

/// Pieces that parsers of JSON and of names get wrong.
const PIECES: [&str; 16] = [
    "\0",
    "\"",
    "\\u0000",
    "../",
    "..",
    "/",
    ":",
    "-",
    "{",
    "[[[[",
    "}",
    "null",
    "1e999",
    "-0.0",
    "ä",
    "18446744073709551616",
];

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() + 1);
        match random.below(4) {
            0 => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].bytes())),
            1 => drop(bytes.drain(at..bytes.len().min(at + 1 + random.below(8)))),
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(7);
                }
            }
            _ => {
                let piece = bytes[at..bytes.len().min(at + random.below(20))].to_vec();
                drop(bytes.splice(at..at, piece));
            }
        }
    }
}

#[test]
fn mutated_manifests_and_names() {
    let hex = "0123456789abcdef".repeat(4);
    let seeds = [
        format!(r#"{{"version":1,"model":{{"blobs":[{{"sha256":"{hex}","bytes":7}}]}}}}"#),
        r#"{"version":1,"model":{"file":"/a/b.gguf"},"system":"x","template":"{{ y }}",
           "parameters":{"temperature":0.1,"stop":["a","b"],"num_ctx":4096,"seed":-1},
           "messages":[{"role":"user","content":"Hi"}],"license":"MIT"}"#
            .to_owned(),
        "demo\nme/demo:7b\nhf.co/org/Repo-GGUF:Q4_K_M\nlocalhost:8080/a/b:c".to_owned(),
    ];
    let mut random = Random::new(2024);
    for seed in &seeds {
        fuzz_manifest(seed.as_bytes());
        for _ in 0..3000 {
            let mut bytes = seed.clone().into_bytes();
            mutate(&mut random, &mut bytes);
            fuzz_manifest(&bytes);
        }
    }
    // As deep as it may get.
    fuzz_manifest("[".repeat(100_000).as_bytes());
}
