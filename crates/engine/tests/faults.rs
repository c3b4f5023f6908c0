//! Reads that come late, wrong, or not at all.

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{
    alone, assert_same, demo, expected, faulty_after_load, load_share, logits, options, tiny_model,
    try_logits,
};
use hypura_engine::LoadOptions;
use hypura_engine::io::{Fault, FaultEngine, FaultPlan, PoolConfig, PreadPool};
use hypura_engine::llama::{DecodeError, FlashAttention};

const PROMPT: usize = 70;
/// Little enough memory that every expert and matrix comes and goes.
const SHARE: f64 = 0.0;

/// Options with a reader that fails as planned.
fn faulty(plan: FaultPlan) -> LoadOptions {
    let reader = move || {
        let pool = PreadPool::new(PoolConfig::default()).map_err(|e| e.to_string())?;
        Ok(Box::new(FaultEngine::new(pool, plan.clone())) as _)
    };
    LoadOptions { reader: Arc::new(reader), ..options(FlashAttention::On) }
}

#[test]
fn delays_and_reordering_change_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut paths: Vec<PathBuf> = ["llama", "qwen3moe", "deepseek2-fused", "qwen3next"]
        .iter()
        .map(|name| tiny_model(folder.path(), name))
        .collect();
    paths.push(demo("demo-moe-54m-q4_k_m.gguf"));
    for path in &paths {
        let expected = expected(path, &options(FlashAttention::On), PROMPT);
        for seed in 0..2 {
            let plan = FaultPlan {
                seed,
                delay_rate: 0.05,
                delay: Duration::from_micros(300),
                reorder: true,
                ..FaultPlan::default()
            };
            let mut loaded = load_share(path, &faulty(plan), SHARE);
            let what = format!("{}, seed {seed}", path.display());
            assert_same(&logits(&mut loaded, PROMPT), &expected, &what);
        }
    }
}

#[test]
fn guesses_right_and_wrong_change_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let paths = [tiny_model(folder.path(), "qwen3moe"), demo("demo-moe-54m-q4_k_m.gguf")];
    for path in &paths {
        let base = options(FlashAttention::On);
        let expected = expected(path, &base, PROMPT);
        let (mut begun, mut wrong) = (0, 0);
        for (seed, share) in [(11, 0.5), (12, 0.7), (13, 0.9)] {
            let plan = FaultPlan {
                seed,
                delay_rate: 0.2,
                delay: Duration::from_micros(500),
                reorder: true,
                fail_rate: 0.0,
                ..FaultPlan::default()
            };
            let mut loaded = load_share(path, &faulty(plan), share);
            let what = format!("{}, seed {seed}", path.display());
            assert_same(&logits(&mut loaded, PROMPT), &expected, &what);
            let ahead = loaded.stream_stats().ahead;
            assert!(ahead.named > ahead.named_right && ahead.named_right > 0, "{what}: {ahead:?}");
            begun += ahead.begun;
            wrong += ahead.begun - ahead.begun_right;
        }
        assert!(begun > wrong && wrong > 0, "{}: {wrong} of {begun}", path.display());
    }
}

#[test]
fn a_corrupted_read_would_be_noticed() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen3moe"] {
        let path = tiny_model(folder.path(), name);
        let expected = expected(&path, &options(FlashAttention::On), PROMPT);
        let plan = FaultPlan { seed: 1, corrupt_rate: 0.05, ..FaultPlan::default() };
        let mut loaded = load_share(&path, &faulty(plan), SHARE);
        let got = logits(&mut loaded, PROMPT);
        assert!(got.iter().zip(&expected).any(|(a, b)| a.to_bits() != b.to_bits()), "{name}");
    }
}

#[test]
fn a_failed_read_ends_one_answer_and_nothing_else() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    // A matrix or an expert that was read ahead gets a second chance when it is needed; others are
    // read when they are needed.
    let cases = [
        ("llama", true, true),
        ("qwen3moe", true, true),
        ("qwen3moe", false, false),
        ("qwen3next", true, true),
    ];
    for (name, speculate, may_heal) in cases {
        let path = tiny_model(folder.path(), name);
        let expected = expected(&path, &options(FlashAttention::On), PROMPT);
        for number in [0, 1, 5, 17, 40, 111, 230] {
            for fault in [Fault::Fail, Fault::Short] {
                let plan = FaultPlan { at: [(number, fault)].into(), ..FaultPlan::default() };
                let options = LoadOptions {
                    speculate,
                    ..faulty_after_load(plan, options(FlashAttention::On))
                };
                let mut loaded = load_share(&path, &options, 0.3);
                let what = format!("{name}, {fault:?} at read {number}");
                let first = try_logits(&mut loaded, PROMPT);
                match first {
                    Ok(logits) => {
                        assert!(may_heal, "{what}");
                        assert_same(&logits, &expected, &what);
                    }
                    Err(error) => {
                        assert!(matches!(&error, DecodeError::Residency(_)), "{what}: {error:?}");
                        assert!(error.to_string().contains(name), "{what}: {error}");
                    }
                }
                assert_same(&logits(&mut loaded, PROMPT), &expected, &what);
            }
        }
    }
}

#[test]
fn a_dead_drive_is_an_error_each_time() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen3moe"] {
        let path = tiny_model(folder.path(), name);
        let plan = FaultPlan { fail_rate: 1.0, ..FaultPlan::default() };
        let mut loaded =
            load_share(&path, &faulty_after_load(plan, options(FlashAttention::On)), SHARE);
        for _ in 0..3 {
            let error = try_logits(&mut loaded, PROMPT).expect_err(name);
            assert!(error.to_string().contains("can't read"), "{name}: {error}");
        }
    }
}

#[test]
fn a_reader_that_fails_while_loading_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "qwen3moe");
    let model = hypura_engine::gguf::Model::open(&path).unwrap();
    let plan = FaultPlan { fail_rate: 1.0, ..FaultPlan::default() };
    let options =
        LoadOptions { weights_memory_bytes: Some(model.weight_bytes() * 6 / 10), ..faulty(plan) };
    let error = hypura_engine::load(&path, &options, &mut |_| true).err().unwrap();
    assert!(error.to_string().contains("can't read"), "{error}");
}

#[test]
fn a_file_that_changes_is_noticed() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen3moe"] {
        for what in ["shrunk", "rewritten"] {
            let path = tiny_model(folder.path(), name);
            let mut loaded = load_share(&path, &options(FlashAttention::On), SHARE);
            logits(&mut loaded, PROMPT);
            let bytes = std::fs::read(&path).unwrap();
            let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            match what {
                "shrunk" => file.set_len(bytes.len() as u64 / 2).unwrap(),
                _ => file.write_all(&bytes).unwrap(),
            }
            drop(file);
            let error = try_logits(&mut loaded, PROMPT).expect_err(what);
            assert!(matches!(error, DecodeError::Residency(_)), "{name} {what}: {error}");
        }
    }
}
