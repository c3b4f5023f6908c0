//! What the tests of the engine share: forced tokens in, logits out.
#![allow(unreachable_pub, dead_code)] // each test binary has this module for itself

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypura_engine::io::{FaultEngine, FaultPlan, PoolConfig, PreadPool};
use hypura_engine::llama::{BatchToken, DecodeError, FlashAttention, Layout, SamplerParams, plain};
use hypura_engine::plan::PlanError;
use hypura_engine::{GenerateRequest, GpuChoice, LoadError, LoadOptions, Loaded, StreamStats};
use hypura_testkit::text::forced_tokens;
use hypura_testkit::tiny;

/// Tokens decoded one by one after the prompt.
pub const DECODED: usize = 64;
/// Large enough for everything.
pub const PLENTY: u64 = 1 << 40;

/// Lets one test compute at a time: ggml's threads wait for each other by spinning, and more of
/// them than there are cores spin for nothing.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A demo model of the repository.
pub fn demo(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(file)
}

/// A random model of an architecture, by the name of its recipe, in a folder.
pub fn tiny_model(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(format!("{name}.gguf"));
    let recipe = tiny::find(name).unwrap();
    recipe.model(recipe.default_mix, 3).unwrap().write(&path).unwrap();
    path
}

/// `base` with a reader that fails as planned once the model is loaded: the loader has one of its
/// own.
pub fn faulty_after_load(plan: FaultPlan, base: LoadOptions) -> LoadOptions {
    let made = AtomicUsize::new(0);
    let reader = move || {
        let pool = PreadPool::new(PoolConfig::default()).map_err(|e| e.to_string())?;
        let is_loader = made.fetch_add(1, Ordering::Relaxed) == 0;
        let plan = if is_loader { FaultPlan::default() } else { plan.clone() };
        Ok(Box::new(FaultEngine::new(pool, plan)) as _)
    };
    LoadOptions { reader: Arc::new(reader), ..base }
}

/// Where there is a GPU, its name in `HYPURA_TEST_GPU` makes the same tests run on it.
pub fn gpu_under_test() -> GpuChoice {
    std::env::var("HYPURA_TEST_GPU").map_or(GpuChoice::Off, GpuChoice::Named)
}

/// Options for small, exact runs: plain layout, two threads, micro-batches of 32 tokens.
pub fn options(flash: FlashAttention) -> LoadOptions {
    LoadOptions {
        memory_bytes: Some(PLENTY),
        ctx_tokens: 512,
        ubatch_tokens: Some(32),
        threads: Some(2),
        layout: Layout::Plain,
        flash_attention: flash,
        all_outputs: true,
        gpu: gpu_under_test(),
        ..LoadOptions::default()
    }
}

/// `n` tokens after a prompt, always the likeliest one, also behind an end of text; with a hash of the
/// logits.
pub fn greedy(prompt: &[i32], n: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_vec(),
        max_tokens: Some(n),
        sampler: SamplerParams { temperature: 0.0, ..SamplerParams::default() },
        ignore_end: true,
        hash_logits: true,
        ..GenerateRequest::default()
    }
}

/// Logits of every token of a forced prompt and of [`DECODED`] forced tokens after it.
pub fn logits(loaded: &mut Loaded, n_prompt: usize) -> Vec<f32> {
    try_logits(loaded, n_prompt).unwrap()
}

/// As [`logits`], from the beginning, unless a computation fails.
pub fn try_logits(loaded: &mut Loaded, n_prompt: usize) -> Result<Vec<f32>, DecodeError> {
    loaded.context.clear();
    let n_vocab = loaded.context.model().vocab().n_tokens();
    let tokens = forced_tokens(7, n_prompt + DECODED, n_vocab);
    let batch: Vec<BatchToken> = tokens
        .iter()
        .enumerate()
        .map(|(i, &token)| BatchToken {
            token,
            pos: i32::try_from(i).unwrap(),
            seq: 0,
            output: true,
        })
        .collect();
    let (prompt, rest) = batch.split_at(n_prompt);
    let mut all = Vec::new();
    loaded.context.decode(prompt)?;
    for i in 0..n_prompt {
        all.extend_from_slice(loaded.context.logits(i32::try_from(i).unwrap()).unwrap());
    }
    for token in rest {
        loaded.context.decode(std::slice::from_ref(token))?;
        all.extend_from_slice(loaded.context.logits(-1).unwrap());
    }
    Ok(all)
}

/// Logits of llama.cpp's own loader.
pub fn expected(path: &Path, options: &LoadOptions, n_prompt: usize) -> Vec<f32> {
    let source = plain::Source::Read;
    let mut loaded = hypura_engine::load_baseline(path, source, options, &mut |_| true).unwrap();
    logits(&mut loaded, n_prompt)
}

/// Loads with a share of the weights' bytes, or the smallest that works.
pub fn load_share(path: &Path, base: &LoadOptions, share: f64) -> Loaded {
    // Of a hot file the weights as they were before.
    let (model, _) = hypura_engine::plan_only(path, base).unwrap();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a size
    let wanted = (model.weight_bytes() as f64 * share) as u64;
    let mut options = LoadOptions { weights_memory_bytes: Some(wanted), ..base.clone() };
    match hypura_engine::load(path, &options, &mut |_| true) {
        Err(LoadError::Plan(PlanError::WeightsBudgetTooSmall { smallest_bytes, .. })) => {
            options.weights_memory_bytes = Some(smallest_bytes);
            hypura_engine::load(path, &options, &mut |_| true).unwrap()
        }
        other => other.unwrap(),
    }
}

/// The logits must be the same bits; says where they first differ.
pub fn assert_same(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    assert!(expected.iter().all(|x| x.is_finite()), "{what}: logits are not finite");
    let first = got.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(first, None, "{what}: the logits differ");
}

/// What streaming has done so far.
pub fn stats(loaded: &Loaded) -> StreamStats {
    loaded.stream_stats()
}
