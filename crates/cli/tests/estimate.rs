//! `hypura estimate`: what it rests on, and what it says of that.

mod common;

use common::{Sandbox, demo};
use hypura_engine::tier::{TraceShape, TraceWriter};
use serde_json::Value;

const BUDGET: [&str; 4] = ["--weights-memory", "20M", "--layout", "plain"];

fn sentences(estimate: &Value) -> String {
    let sentences = estimate["assumptions"].as_array().expect("a list");
    sentences.iter().map(|sentence| sentence.as_str().expect("text")).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn assert_in_order(speed: &Value, name: &str) {
    let at = |end: &str| speed[format!("{name}{end}")].as_f64().expect("a number");
    assert!(at("_low") > 0.0 && at("_low") <= at("") && at("") <= at("_high"), "{speed}");
}

#[test]
fn routing_is_assumed_or_replayed() {
    let sandbox = Sandbox::new();
    let demo = demo();
    let model = demo.to_str().unwrap();
    let estimate = |more: &[&str]| -> Value {
        let args = [&["estimate", model, "--json"], &BUDGET[..], more].concat();
        let outcome = sandbox.run(&args);
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
        serde_json::from_slice(&outcome.stdout).unwrap()
    };
    let assumed = estimate(&[]);
    assert_eq!(assumed["mode"], "expert-streaming");
    assert!(sentences(&assumed).contains("as no routing was recorded"), "{assumed}");
    assert!(assumed["first_speed"].is_null(), "{assumed}");

    let record =
        ["run", model, "-p", "The old man", "--raw", "-t", "0", "-n", "96", "--ignore-eos", "-q"];
    let outcome = sandbox.run(&[&record[..], &BUDGET, &["--trace", "a", "--trace", "a"]].concat());
    outcome.assert_fails(2, &["--trace"], "one recording per run");
    let outcome = sandbox.run(&[&record[..], &BUDGET, &["--trace", "a"]].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for traces in [&["--trace", "a"][..], &["--trace", "a", "--trace", "a"]] {
        let replayed = estimate(traces);
        assert!(sentences(&replayed).contains("routing like the recorded one"), "{replayed}");
        for speed in [&replayed["speed"], &replayed["first_speed"]] {
            assert_in_order(speed, "decode_tokens_per_s");
            assert_in_order(speed, "prompt_tokens_per_s");
            let hits = speed["assumed_hit_rate"].as_f64().expect("experts are in slots");
            assert!(hits > 0.05 && hits < 0.999, "{speed}");
        }
        let read = |speed: &Value| speed["read_bytes_per_token"].as_u64().unwrap();
        assert!(read(&replayed["first_speed"]) > read(&replayed["speed"]), "slots fill first");
    }

    // For people: a sentence per assumption, and the tokens that fill the slots.
    let outcome = sandbox.run(&[&["estimate", model, "--trace", "a"], &BUDGET[..]].concat());
    let text = outcome.text();
    for words in ["tokens/s; prompts", "the first 32 tokens", "limited by", "\n  assumes "] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    let outcome = sandbox.run(&["estimate", model, "--trace", "a"]);
    assert!(outcome.stderr.contains("--trace changes nothing"), "{outcome:?}");
}

#[test]
fn what_is_wrong_with_a_recording() {
    let sandbox = Sandbox::new();
    let demo = demo();
    let model = demo.to_str().unwrap();
    std::fs::write(sandbox.path("text"), "This is no recording.").unwrap();
    let write = |name: &str, shape: TraceShape, tokens: u32| {
        let file = std::fs::File::create(sandbox.path(name)).unwrap();
        let mut writer = TraceWriter::new(file, shape).unwrap();
        for token in 0..tokens {
            let experts: Vec<u32> = (0..shape.top_k).collect();
            writer.record(token, 0, &experts).unwrap();
        }
        writer.finish().unwrap();
    };
    write("other", TraceShape { n_layers: 3, n_experts: 8, top_k: 2 }, 1);
    write("empty", TraceShape { n_layers: 8, n_experts: 32, top_k: 4 }, 0);
    let cut = std::fs::read(sandbox.path("other")).unwrap();
    std::fs::write(sandbox.path("cut"), &cut[..cut.len() - 1]).unwrap();
    for (trace, code, words) in [
        ("none", 2, &["can't read none", "no such file"][..]),
        (".", 2, &["can't read ."]),
        ("text", 3, &["text", "no routing trace"]),
        ("cut", 3, &["cut", "cut off"]),
        ("other", 2, &["3 layers of 8 experts, 2 per token", "8 of 32, 4 per token"]),
        ("empty", 2, &["no generated tokens"]),
    ] {
        let args = [&["estimate", model, "--trace", trace], &BUDGET[..]].concat();
        sandbox.run(&args).assert_fails(code, words, trace);
    }
    let args = ["estimate", model, "--probe", "--profile", "x"];
    sandbox.run(&args).assert_fails(2, &["--probe", "--profile"], "another machine");
}
