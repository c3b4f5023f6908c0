//! Several requests at once: each gets its answer, whoever is alone gets the bits of a context of its
//! own, and whoever goes away costs nothing more.

mod common;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use common::{alone, demo, greedy, options};
use hypura_engine::llama::{FlashAttention, SamplerParams};
use hypura_engine::{
    Constrained, Engine, Finish, GenerateRequest, Generated, Happening, KvOptions, LoadOptions,
    Refused, SequenceState, Sink, Ticket, Update,
};
use hypura_testkit::text::forced_tokens;
use hypura_testkit::tiny;

const VOCABULARY: usize = 256;
const LONG: Duration = Duration::from_secs(60);
/// Plain and grouped attention, a window, a recurrent state.
const MODELS: [&str; 4] = ["llama", "qwen3moe", "gemma3", "qwen3next"];

fn tiny_model(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(format!("{name}.gguf"));
    let recipe = tiny::find(name).unwrap();
    recipe.model(recipe.default_mix, 1).unwrap().write(&path).unwrap();
    path
}

fn with_parallel(parallel: u32, cold_dir: Option<PathBuf>) -> LoadOptions {
    LoadOptions {
        all_outputs: false,
        ctx_tokens: 1024,
        parallel,
        kv: Some(KvOptions { cold_dir, always_restore: true, ..KvOptions::default() }),
        ..options(FlashAttention::On)
    }
}

fn start(path: &Path, options: &LoadOptions) -> Engine {
    Engine::start(hypura_engine::load(path, options, &mut |_| true).unwrap()).unwrap()
}

/// Sends what happens.
fn sink() -> (Sink, Receiver<Happening>) {
    let (sender, happenings): (Sender<Happening>, _) = channel();
    (Box::new(move |happening| sender.send(happening).is_ok()), happenings)
}

fn submit(engine: &Engine, request: GenerateRequest) -> (Ticket, Receiver<Happening>) {
    let (sink, happenings) = sink();
    (engine.submit(request, sink).unwrap(), happenings)
}

/// The answer.
fn end(happenings: &Receiver<Happening>) -> Generated {
    loop {
        match happenings.recv_timeout(LONG).unwrap() {
            Happening::End(result) => return *result.unwrap(),
            Happening::Update(_) => {}
        }
    }
}

/// Until the first piece of an answer has come.
fn first_text(happenings: &Receiver<Happening>) {
    while !matches!(happenings.recv_timeout(LONG).unwrap(), Happening::Update(Update::Text(_))) {}
}

fn prompt(seed: u64, n: usize) -> Vec<i32> {
    forced_tokens(seed, n, VOCABULARY)
}

#[test]
fn all_are_answered_and_who_is_alone_is_answered_as_ever() {
    let _alone = alone();
    for name in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny_model(folder.path(), name);
        let wanted = prompt(7, 300);
        // A window's ring is longer where more sequences share it: as many as below.
        let fresh = start(&path, &with_parallel(3, Some(folder.path().join("fresh"))));
        let (_ticket, first) = submit(&fresh, greedy(&wanted, 20));
        let expected = end(&first);
        drop(fresh);

        let engine = start(&path, &with_parallel(3, Some(folder.path().join("shared"))));
        let lengths = [40, 130, 260, 90, 10];
        let under_way: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(i, &n)| submit(&engine, greedy(&prompt(20 + i as u64, n), 12 + i)))
            .collect();
        for (i, (_ticket, happenings)) in under_way.iter().enumerate() {
            let answer = end(happenings);
            assert_eq!(answer.tokens.len(), 12 + i, "{name}");
            assert_eq!(answer.finish, Finish::Length, "{name}");
            assert_eq!(answer.prompt_tokens, lengths[i], "{name}");
        }
        engine.settle(LONG).unwrap().unwrap();
        let (_ticket, last) = submit(&engine, greedy(&wanted, 20));
        let got = end(&last);
        assert_eq!(got.tokens, expected.tokens, "{name}");
        assert_eq!(got.logits_sha256, expected.logits_sha256, "{name}");
    }
}

#[test]
fn a_conversation_goes_on_after_others() {
    let _alone = alone();
    for name in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny_model(folder.path(), name);
        let conversation = |engine: &Engine, between: bool| {
            let (_ticket, first) = submit(engine, greedy(&prompt(7, 200), 9));
            let first = end(&first);
            if between {
                for seed in 30..34 {
                    end(&submit(engine, greedy(&prompt(seed, 50), 5)).1);
                }
            }
            engine.settle(LONG).unwrap().unwrap();
            let next = [prompt(7, 200), first.tokens, prompt(9, 24)].concat();
            let (_ticket, second) = submit(engine, greedy(&next, 9));
            end(&second)
        };
        let fresh = start(&path, &with_parallel(3, Some(folder.path().join("fresh"))));
        let expected = conversation(&fresh, false);
        let engine = start(&path, &with_parallel(3, Some(folder.path().join("shared"))));
        let got = conversation(&engine, true);
        assert!(got.reused_tokens >= 200, "{name}: {} of it was known", got.reused_tokens);
        assert_eq!(got.logits_sha256, expected.logits_sha256, "{name}");
    }
}

#[test]
fn whoever_goes_away_ends_and_the_others_go_on() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let engine = start(&tiny_model(folder.path(), "llama"), &with_parallel(2, None));
    let (leaving, gone) = submit(&engine, greedy(&prompt(1, 20), 900));
    let (_ticket, staying) = submit(&engine, greedy(&prompt(2, 20), 60));
    first_text(&gone);
    drop(leaving);
    assert_eq!(end(&gone).finish, Finish::Interrupted);
    assert_eq!(end(&staying).tokens.len(), 60);
    // Nobody waits for this prompt: the computation itself is stopped, and the next one is not.
    let (vain, happenings) = submit(&engine, greedy(&prompt(3, 1000), 5));
    while !matches!(happenings.recv_timeout(LONG).unwrap(), Happening::Update(Update::Begin)) {}
    drop(vain);
    assert_eq!(end(&happenings).finish, Finish::Interrupted);
    let (_ticket, after) = submit(&engine, greedy(&prompt(4, 30), 5));
    assert_eq!(end(&after).tokens.len(), 5);
}

#[test]
fn embeddings_are_computed_whoever_goes_away_meanwhile() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let engine = start(&tiny_model(folder.path(), "llama"), &with_parallel(2, None));
    for round in 0..10 {
        let (leaving, gone) = submit(&engine, greedy(&prompt(round, 600), 5));
        while !matches!(gone.recv_timeout(LONG).unwrap(), Happening::Update(Update::Begin)) {}
        let (sender, answer) = channel();
        let reply = Box::new(move |result| {
            let _ = sender.send(result);
        });
        let inputs = (0..4).map(|i| prompt(100 + i, 60)).collect();
        let _ticket = engine.embed(inputs, reply).unwrap();
        drop(leaving);
        assert_eq!(answer.recv_timeout(LONG).unwrap().unwrap().len(), 4);
        end(&gone);
    }
}

#[test]
fn cells_are_shared_and_the_last_one_gives_way() {
    let _alone = alone();
    for name in ["llama", "qwen3next"] {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny_model(folder.path(), name);
        let engine = start(&path, &with_parallel(4, Some(folder.path().join("kv"))));
        // Together they need more than the 1024 cells.
        let under_way: Vec<_> =
            (0..4).map(|i| submit(&engine, greedy(&prompt(40 + i, 150), 250))).collect();
        for (_ticket, happenings) in &under_way {
            let answer = end(happenings);
            assert_eq!((answer.tokens.len(), answer.prompt_tokens), (250, 150), "{name}");
            assert_eq!(answer.finish, Finish::Length, "{name}");
        }
        // One alone may fill all of it.
        let (_ticket, full) = submit(&engine, greedy(&prompt(50, 1000), 100));
        assert_eq!(end(&full).finish, Finish::ContextFull, "{name}");
    }
}

#[test]
fn the_queue_is_bounded_and_says_so() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let options = LoadOptions { queue_max: 2, ..with_parallel(1, None) };
    let engine = start(&tiny_model(folder.path(), "llama"), &options);
    let held: Vec<_> = (0..3).map(|i| submit(&engine, greedy(&prompt(i, 10), 900))).collect();
    let (sink, _) = sink();
    let refused = engine.submit(greedy(&prompt(9, 10), 1), sink);
    assert!(matches!(refused.err(), Some(Refused::Busy { waiting: 2, .. })));
    first_text(&held[0].1);
    // The first text is told before the step that it came from is over and shown.
    while engine.status().waiting != 2 {
        std::thread::yield_now();
    }
    assert_eq!(engine.status().sequences[0].state, SequenceState::Decode);
    drop(held);
    // Places are free as soon as nobody waits for them.
    let answer = loop {
        let (sink, happenings) = {
            let (sender, happenings) = channel();
            let sink: Sink = Box::new(move |happening| sender.send(happening).is_ok());
            (sink, happenings)
        };
        if let Ok(_ticket) = engine.submit(greedy(&prompt(9, 10), 1), sink) {
            break end(&happenings);
        }
        std::thread::yield_now();
    };
    assert_eq!(answer.tokens.len(), 1);
}

#[test]
fn probabilities_are_told_with_their_tokens() {
    let _alone = alone();
    let engine = start(&demo("demo-draft-3m-q8_0.gguf"), &with_parallel(1, None));
    let asked = GenerateRequest {
        logprobs: Some(3),
        ..greedy(&engine.tokenize("Once upon a time", true), 6)
    };
    let (_ticket, happenings) = submit(&engine, asked);
    let mut choices = Vec::new();
    let answer = loop {
        match happenings.recv_timeout(LONG).unwrap() {
            Happening::Update(Update::Token(choice)) => choices.push(*choice),
            Happening::End(result) => break *result.unwrap(),
            Happening::Update(_) => {}
        }
    };
    let tokens: Vec<i32> = choices.iter().map(|choice| choice.token).collect();
    assert_eq!(tokens, answer.tokens);
    for choice in &choices {
        // Greedy: the likeliest one was chosen.
        assert_eq!(choice.top.len(), 3);
        assert_eq!(choice.top[0].0, choice.token);
        assert!((choice.top[0].2 - choice.logprob).abs() < 1e-6);
        assert!(choice.logprob <= 0.0 && choice.top[1].2 <= choice.top[0].2);
    }
}

#[test]
fn an_answer_has_the_form_that_was_asked_for() {
    let _alone = alone();
    let engine = start(&demo("demo-moe-54m-q4_k_m.gguf"), &with_parallel(1, None));
    let schema = serde_json::json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": false
    });
    let rule = hypura_grammar::Rule::JsonSchema(schema);
    let asked = GenerateRequest {
        constraint: Some(Constrained { rule, after: None }),
        sampler: SamplerParams { temperature: 1.0, seed: 3, ..SamplerParams::default() },
        ignore_end: false,
        ..greedy(&engine.tokenize("An old man, as JSON: ", true), 200)
    };
    let (_ticket, happenings) = submit(&engine, asked);
    let answer = end(&happenings);
    assert_eq!(answer.finish, Finish::EndOfText, "{}", answer.text);
    let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
    assert!(value["name"].is_string() && value["age"].as_u64().unwrap() <= 120, "{value}");

    let (sink, _) = sink();
    let rule = hypura_grammar::Rule::JsonSchema(serde_json::json!({"type": "colour"}));
    let wrong = GenerateRequest {
        constraint: Some(Constrained { rule, after: None }),
        ..greedy(&[1, 2], 5)
    };
    assert!(matches!(engine.submit(wrong, sink).err(), Some(Refused::Constraint(_))));
}

#[test]
fn embeddings_leave_answers_as_they_are() {
    let _alone = alone();
    for name in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny_model(folder.path(), name);
        let engine = start(&path, &with_parallel(1, None));
        let (_ticket, first) = submit(&engine, greedy(&prompt(7, 60), 9));
        let first = end(&first);
        let next = [prompt(7, 60), first.tokens.clone(), prompt(8, 10)].concat();

        let embed = |inputs: Vec<Vec<i32>>| {
            let (sender, answer) = channel();
            let reply = Box::new(move |result| {
                let _ = sender.send(result);
            });
            let _ticket = engine.embed(inputs, reply).unwrap();
            answer.recv_timeout(LONG).unwrap().unwrap()
        };
        let vectors = embed(vec![prompt(1, 20), prompt(2, 30), prompt(1, 20)]);
        assert_eq!(vectors[0], vectors[2], "{name}");
        assert_ne!(vectors[0], vectors[1], "{name}");
        let length: f32 = vectors[0].iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-4, "{name}: {length}");

        let (_ticket, second) = submit(&engine, greedy(&next, 9));
        let second = end(&second);
        let fresh = start(&path, &with_parallel(1, None));
        end(&submit(&fresh, greedy(&prompt(7, 60), 9)).1);
        let (_ticket, expected) = submit(&fresh, greedy(&next, 9));
        assert_eq!(second.logits_sha256, end(&expected).logits_sha256, "{name}");
    }
}
