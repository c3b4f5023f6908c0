//! What an engine keeps from one prompt to the next, and what an interruption leaves behind.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{alone, greedy, options, tiny_model};
use hypura_engine::io::{FaultEngine, FaultPlan, PoolConfig, PreadPool};
use hypura_engine::llama::FlashAttention;
use hypura_engine::{Engine, Finish, Generated, LoadOptions, Update};
use hypura_testkit::text::forced_tokens;

/// An engine whose weights are streamed as far as they can be, in micro-batches of 32 tokens of
/// which the last has an output: as in real use.
fn start(path: &Path, options: &LoadOptions) -> Engine {
    let options = LoadOptions { all_outputs: false, ..options.clone() };
    Engine::start(common::load_share(path, &options, 0.0)).unwrap()
}

fn generate(engine: &Engine, prompt: &[i32], n: usize) -> Generated {
    engine.generate(greedy(prompt, n), |_| {}).unwrap().unwrap()
}

const VOCABULARY: usize = 256;
const SHARED: usize = 150;

/// A prompt, and another one that shares its first tokens.
fn prompts() -> (Vec<i32>, Vec<i32>) {
    let first = forced_tokens(7, 450, VOCABULARY);
    let mut second = first[..SHARED].to_vec();
    second.extend(forced_tokens(9, 5, VOCABULARY));
    (first, second)
}

#[test]
fn a_prompt_that_goes_another_way_is_answered_as_by_a_new_engine() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = prompts();
    // Whether the state can be cut back so far: layers with a window of 32 tokens have forgotten,
    // recurrent ones can't go back.
    for (name, reuses) in
        [("llama", true), ("qwen3moe", true), ("gpt-oss", false), ("qwen3next", false)]
    {
        let path = tiny_model(folder.path(), name);
        let options = options(FlashAttention::On);
        let engine = start(&path, &options);
        generate(&engine, &first, 1);
        let got = generate(&engine, &second, 24);
        assert_eq!(got.reused_tokens, if reuses { SHARED } else { 0 }, "{name}");
        let engine = start(&path, &options);
        if reuses {
            // The same tokens computed at once as above, or kernels may round differently.
            generate(&engine, &first[..SHARED], 1);
        }
        assert_eq!(got.tokens, generate(&engine, &second, 24).tokens, "{name}");
    }
}

#[test]
fn a_longer_prompt_goes_on_where_the_last_one_ended() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen3moe", "gpt-oss", "qwen3next"] {
        let path = tiny_model(folder.path(), name);
        let engine = start(&path, &options(FlashAttention::On));
        let mut tokens = forced_tokens(7, 60, VOCABULARY);
        let answer = generate(&engine, &tokens, 8);
        // The last token of an answer is chosen, but not computed.
        let known = tokens.len() + answer.tokens.len() - 1;
        tokens.extend(answer.tokens);
        tokens.extend(forced_tokens(9, 7, VOCABULARY));
        assert_eq!(generate(&engine, &tokens, 4).reused_tokens, known, "{name}");
    }
}

#[test]
fn the_context_ends_an_answer_when_it_is_full() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "qwen3moe");
    let engine = start(&path, &options(FlashAttention::On));
    let answer = generate(&engine, &forced_tokens(7, 500, VOCABULARY), 100);
    assert_eq!(answer.finish, Finish::ContextFull);
    // One token more than there are cells: the last one is not computed.
    assert_eq!(answer.tokens.len(), 13);
    let error = engine.generate(greedy(&forced_tokens(7, 513, VOCABULARY), 1), |_| {}).unwrap();
    assert!(error.unwrap_err().to_string().contains("513 tokens"));
}

#[test]
fn an_interruption_leaves_nothing_behind() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = prompts();
    for name in ["llama", "qwen3moe", "deepseek2", "gpt-oss"] {
        let path = tiny_model(folder.path(), name);
        let slow = || {
            let plan = FaultPlan {
                seed: 5,
                delay_rate: 0.3,
                delay: Duration::from_micros(400),
                reorder: true,
                ..FaultPlan::default()
            };
            let pool = PreadPool::new(PoolConfig::default()).map_err(|e| e.to_string())?;
            Ok(Box::new(FaultEngine::new(pool, plan)) as _)
        };
        let options = LoadOptions { reader: Arc::new(slow), ..options(FlashAttention::On) };
        let expected = generate(&start(&path, &options), &second, 12).tokens;
        let engine = start(&path, &options);
        let flag = engine.abort_flag();
        for round in 0..12u64 {
            // From another thread, at some moment of the prompt or of the answer.
            let interrupter = std::thread::spawn({
                let flag = Arc::clone(&flag);
                move || {
                    std::thread::sleep(Duration::from_millis(3 * round));
                    flag.store(true, Ordering::SeqCst);
                }
            });
            generate(&engine, &first, 40);
            interrupter.join().unwrap();
            flag.store(false, Ordering::SeqCst);
            // Nothing in common with what was interrupted, so that all of it is computed.
            generate(&engine, &[1, 2, 3], 1);
            let got = generate(&engine, &second, 12);
            assert_eq!((got.reused_tokens, got.tokens), (0, expected.clone()), "{name} {round}");
        }
    }
}

#[test]
fn a_listener_that_goes_away_ends_its_answer() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "qwen3moe");
    let engine = start(&path, &options(FlashAttention::On));
    let flag = engine.abort_flag();
    let mut seen = 0;
    let stopped = engine
        .generate(greedy(&forced_tokens(3, 20, VOCABULARY), 200), |update| {
            seen += usize::from(matches!(update, Update::Text(_)));
            if seen == 3 {
                flag.store(true, Ordering::SeqCst);
            }
        })
        .unwrap()
        .unwrap();
    assert_eq!(stopped.finish, Finish::Interrupted);
    assert!(stopped.tokens.len() < 200);
}
