//! `hypura trace`: traces that are compared, and files that are none.

mod common;

use std::path::PathBuf;

use common::{Outcome, Sandbox, demo};
use hypura_engine::tier::{TraceShape, TraceWriter};
use serde_json::Value;

const SHAPE: TraceShape = TraceShape { n_layers: 2, n_experts: 8, top_k: 2 };

/// Writes a trace in which each layer goes through its experts in pairs, some of them more often.
fn write(sandbox: &Sandbox, name: &str, shape: TraceShape, n_tokens: u32) -> PathBuf {
    let path = sandbox.path(name);
    let mut writer = TraceWriter::new(std::fs::File::create(&path).unwrap(), shape).unwrap();
    for token in 0..n_tokens {
        for layer in 0..shape.n_layers {
            let first = (token * token + layer) % shape.n_experts;
            writer.record(token, layer, &[first, (first + 1) % shape.n_experts]).unwrap();
        }
    }
    writer.finish().unwrap();
    path
}

#[track_caller]
fn json(outcome: &Outcome) -> Value {
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    serde_json::from_slice(&outcome.stdout).unwrap()
}

#[test]
fn replay_compares_policies() {
    let sandbox = Sandbox::new();
    write(&sandbox, "a", SHAPE, 40);
    write(&sandbox, "b", SHAPE, 20);
    let outcome = sandbox.run(&["trace", "replay", "a"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let text = outcome.text();
    for words in [
        "2 layers of 8 experts, 2 per token; 1 trace with 40 tokens",
        "25% of 16 experts, 4 slots",
        "LRFU 64",
        "Belady",
        "room for all",
        "All tokens count",
    ] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    assert!(!text.contains("in a row"), "{text}");

    let args = ["trace", "replay", "a", "b", "--sizes", "3,50%,100%", "--warm-up", "4"];
    let more = ["--unit-bytes", "1KiB", "--json", "--svg", "hits.svg"];
    let json = json(&sandbox.run(&[&args[..], &more].concat()));
    assert_eq!(json["counted_tokens"], 52);
    let sizes = json["sizes"].as_array().unwrap();
    let slots: Vec<_> = sizes.iter().map(|size| size["slots"].as_u64().unwrap()).collect();
    assert_eq!(slots, [3, 8, 16]);
    for size in sizes {
        let belady = &size["belady"];
        for policy in size["policies"].as_array().unwrap() {
            for sharing in ["one_pool", "per_layer", "in_a_row"] {
                let (stats, best) = (&policy[sharing], &belady[sharing]);
                if stats.is_null() {
                    continue;
                }
                assert!(stats["misses"].as_u64() >= best["misses"].as_u64(), "{policy}");
                assert_eq!(stats["lookups"], 208, "{policy}");
                let reads = stats["misses"].as_f64().unwrap() * 1024.0 / 52.0;
                assert!((stats["read_bytes_per_token"].as_f64().unwrap() - reads).abs() < 1e-6);
            }
        }
        // With a slot for every expert a policy has nothing to decide.
        if size["slots"] == 16 {
            assert_eq!(size["policies"][0]["one_pool"], size["room_for_all"]["one_pool"]);
        }
    }
    // Two layers have no equal share of three slots that holds two experts.
    assert!(sizes[0]["policies"][0]["per_layer"].is_null());
    assert!(sizes[1]["policies"][0]["per_layer"].is_object());
    let svg = std::fs::read_to_string(sandbox.path("hits.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("Belady") && svg.contains("LRU"), "{svg}");
}

#[test]
fn show_and_predict() {
    let sandbox = Sandbox::new();
    write(&sandbox, "a", SHAPE, 40);
    write(&sandbox, "b", SHAPE, 20);
    let text = sandbox.run(&["trace", "show", "a"]).text();
    assert!(text.contains("40 tokens, 80 choices of a router"), "{text}");
    let shown = json(&sandbox.run(&["trace", "show", "a", "--json"]));
    assert_eq!((&shown["tokens"], &shown["top_k"]), (&40.into(), &2.into()));
    assert_eq!(shown["layers"].as_array().unwrap().len(), 2);

    let outcome = sandbox.run(&["trace", "predict", "a", "b", "--size", "6"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let text = outcome.text();
    for words in ["4 experts predicted", "token before", "mix of all", "in a row", "6 slots"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    let json = json(&sandbox.run(&["trace", "predict", "a", "b", "--warm-up", "8", "--json"]));
    assert_eq!(json["predictors"].as_array().unwrap().len(), 5);
    // What layer 1 wants follows from what layer 0 wants.
    let across = &json["predictors"][2];
    assert_eq!(across["name"], "pairs, layer before");
    assert!(across["alone"][0]["recall"].as_f64().unwrap() > 0.7, "{across}");
}

#[test]
fn files_that_are_no_traces() {
    let sandbox = Sandbox::new();
    let whole = std::fs::read(write(&sandbox, "good", SHAPE, 20)).unwrap();
    write(&sandbox, "other", TraceShape { n_experts: 9, ..SHAPE }, 20);
    write(&sandbox, "nothing", SHAPE, 0);
    write(&sandbox, "huge", TraceShape { n_layers: 65_535, n_experts: 65_536, top_k: 2 }, 1);
    let damaged = [&whole[..40], b"?", &whole[41..]].concat();
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"This is no trace, but a letter to a friend."),
        ("cut", &whole[..whole.len() - 9]),
        ("damaged", &damaged),
    ] {
        std::fs::write(sandbox.path(name), bytes).unwrap();
    }
    std::fs::create_dir(sandbox.path("folder")).unwrap();
    for command in ["show", "replay", "predict"] {
        for (name, words) in [
            ("none", &["none", "no such file"][..]),
            ("folder", &["folder is a folder", "run --trace"]),
            ("empty", &["empty", "no routing trace"]),
            ("text", &["text", "no routing trace"]),
            ("cut", &["cut can't be used", "cut off after record 0"]),
            ("damaged", &["damaged after record 0"]),
            ("nothing", &["nothing has no tokens"]),
            ("huge", &["65535 layers of 65536 experts", "at most"]),
        ] {
            let what = format!("trace {command} {name}");
            sandbox.run(&["trace", command, name]).assert_fails(3, words, &what);
        }
    }
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["trace"], 2, &["--help"]),
        (&["trace", "erase"], 2, &["'erase'"]),
        (&["trace", "replay"], 2, &["<TRACE>"]),
        (&["trace", "replay", "good", "other"], 2, &["different models", "good has", "9 experts"]),
        (&["trace", "predict", "good", "other"], 2, &["different models"]),
        (&["trace", "replay", "good", "--sizes", "1"], 2, &["1 slots", "at least 2"]),
        (&["trace", "replay", "good", "--sizes", "40%,x"], 2, &["--sizes", "40%"]),
        (&["trace", "replay", "good", "--sizes", "140%"], 2, &["at most 100%"]),
        (&["trace", "predict", "good", "--size", "1"], 2, &["1 slots", "at least 2"]),
        (&["trace", "replay", "good", "--unit-bytes", "big"], 2, &["--unit-bytes"]),
        (&["trace", "replay", "good", "--svg", "none/x"], 4, &["can't write none/x", "no such"]),
    ];
    for (args, code, words) in cases {
        sandbox.run(args).assert_fails(*code, words, &format!("{args:?}"));
    }
}

/// What a run writes is what the other commands read.
#[test]
fn a_run_is_traced() {
    let sandbox = Sandbox::new();
    let model = demo();
    let run = ["run", model.to_str().unwrap(), "--threads", "1", "-t", "0", "--ignore-eos"];
    let more = ["-q", "-p", "hi", "-n", "6", "--weights-memory", "12MiB", "--trace", "t"];
    let outcome = sandbox.run(&[&run[..], &more].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let shown = json(&sandbox.run(&["trace", "show", "t", "--json"]));
    assert_eq!((&shown["n_layers"], &shown["n_experts"]), (&8.into(), &32.into()));
    let tokens = shown["tokens"].as_u64().unwrap();
    // The prompt and its template, and every token that was computed from: not the last one.
    assert!(tokens > 6, "{shown}");
    let replayed = json(&sandbox.run(&["trace", "replay", "t", "--json"]));
    assert_eq!(replayed["counted_tokens"], tokens);
}
