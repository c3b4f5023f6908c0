//! Running models: text, numbers, chats, Ctrl-C.

mod common;

use std::io::{Read, Write};
use std::process::Stdio;

use common::{Outcome, Sandbox, demo, interrupt, suggested};
use serde_json::Value;

#[test]
fn help_and_version() {
    let sandbox = Sandbox::new();
    for (args, words) in [
        (&["--help"][..], &["run", "inspect", "estimate", "profile", "Exit codes"][..]),
        (&["--version"], &["hypura ", env!("CARGO_PKG_VERSION")]),
        (&["run", "--help"], &["--memory <SIZE>", "--temperature", "--stats-json", "--raw"]),
        (&["inspect", "--help"], &["--tensors", "--json"]),
        (&["estimate", "--help"], &["--profile <FILE>"]),
        (&["profile", "--help"], &["--fresh"]),
    ] {
        let outcome = sandbox.run(args);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{args:?}");
        let text = outcome.text();
        words.iter().for_each(|word| assert!(text.contains(word), "{args:?}: {word}"));
    }
}

#[test]
fn the_text_alone_goes_to_standard_output() {
    let sandbox = Sandbox::new();
    let model = demo();
    let run = ["run", model.to_str().unwrap(), "--threads", "1", "-t", "0", "-n", "5"];
    let told = sandbox.run(&[&run[..], &["-p", "book a table"]].concat());
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stderr.starts_with("[5 tokens at "), "{told:?}");
    assert!(!told.stdout.is_empty() && !told.stdout.ends_with(b"\n"), "{told:?}");
    // Standard input is the same prompt.
    let piped = sandbox.run_with(&[&run[..], &["-q"]].concat(), b"book a table\n");
    assert_eq!((piped.stdout, piped.stderr.as_str()), (told.stdout.clone(), ""));
    // In one file the summary has a line of its own.
    let file = std::fs::File::create(sandbox.path("both")).unwrap();
    let mut command = sandbox.command(&[&run[..], &["-p", "book a table"]].concat());
    command.stdout(file.try_clone().unwrap()).stderr(file).status().unwrap();
    let both = std::fs::read_to_string(sandbox.path("both")).unwrap();
    let (text, summary) = both.split_once("\n[").unwrap();
    assert_eq!((text.as_bytes(), summary.starts_with("5 tokens")), (&told.stdout[..], true));
}

#[test]
fn a_reader_that_goes_away_ends_the_run_quietly() {
    let sandbox = Sandbox::new();
    let model = demo();
    let args = ["run", model.to_str().unwrap(), "-p", "hi", "--threads", "1", "--ignore-eos"];
    let mut child = sandbox.command(&args).spawn().unwrap();
    let mut first = [0];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let outcome = Outcome::of(child.wait_with_output().unwrap());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(141), ""));
}

#[test]
fn ctrl_c_ends_an_answer_and_keeps_its_text() {
    let sandbox = Sandbox::new();
    let model = demo();
    let args = ["run", model.to_str().unwrap(), "-p", "hi", "--threads", "1", "-t", "0"];
    let more = ["--ignore-eos", "--weights-memory", "4MiB", "--stats-json", "stats.json"];
    let mut child = sandbox.command(&[&args[..], &more].concat()).spawn().unwrap();
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    let outcome = Outcome::of(child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{outcome:?}");
    assert!(outcome.stderr.ends_with("hypura: interrupted\n"), "{outcome:?}");
    let stats: Value =
        serde_json::from_slice(&std::fs::read(sandbox.path("stats.json")).unwrap()).unwrap();
    assert_eq!(stats["finish"], "interrupted");
    // All text that was counted came out.
    use sha2::Digest;
    let text = [&first[..], &outcome.stdout].concat();
    let digest: String = sha2::Sha256::digest(&text).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(stats["text_sha256"], digest.as_str());
}

#[test]
fn ctrl_c_ends_a_chat_that_waits() {
    let sandbox = Sandbox::new();
    let model = sandbox.tiny("llama", "m.gguf");
    let args = ["run", model.to_str().unwrap(), "-i", "--threads", "1", "-n", "3", "-q"];
    let mut child = sandbox.command(&args).stdin(Stdio::piped()).spawn().unwrap();
    // Kept open: waiting for a child closes its input, and then it would leave by itself.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hi\n/help\n").unwrap();
    let mut said = String::new();
    while !said.contains("/bye") {
        let mut byte = [0];
        child.stderr.as_mut().unwrap().read_exact(&mut byte).unwrap();
        said.push(byte[0] as char);
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stdin);
}

#[test]
fn the_smallest_budget_that_is_named_works() {
    let sandbox = Sandbox::new();
    let model = demo();
    let run = ["run", model.to_str().unwrap(), "-p", "hi", "--threads", "1", "-n", "4"];
    for option in ["--memory", "--weights-memory"] {
        let outcome = sandbox.run(&[&run[..], &[option, "1MiB"]].concat());
        outcome.assert_fails(2, &["too small"], option);
        let size = suggested(&outcome, option);
        let outcome = sandbox.run(&[&run[..], &[option, &size]].concat());
        assert_eq!(outcome.code, Some(0), "{option} {size}: {outcome:?}");
    }
}

#[test]
fn the_text_is_the_same_at_every_budget() {
    let sandbox = Sandbox::new();
    let model = demo();
    let model = model.to_str().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads = cores.min(2).to_string();
    let common = [model, "-p", "book a hotel", "--threads", &threads, "--layout", "plain"];
    let common = [&common[..], &["-t", "0", "-n", "40", "--ignore-eos"]].concat();
    let stats = |size| sandbox.stats(&[&common[..], &["--weights-memory", size]].concat());
    let whole = stats("1GiB");
    assert_eq!(whole["mode"], "full-resident");
    assert_eq!(whole["weights_read_bytes"], 0);
    let mut last_read = 0;
    for size in ["20MiB", "8MiB", "4MiB"] {
        let streamed = stats(size);
        assert_eq!(streamed["mode"], "expert-streaming", "{size}");
        assert_eq!(streamed["text_sha256"], whole["text_sha256"], "{size}");
        assert_eq!(streamed["load_streamed_read_bytes"], 0, "{size}");
        let read = streamed["weights_read_bytes"].as_u64().unwrap();
        assert!(read > last_read, "{size}: {read}");
        last_read = read;
    }
    for field in FIELDS {
        assert!(whole.get(field).is_some(), "{field}");
    }
}

/// What the numbers of a run have at least.
const FIELDS: [&str; 21] = [
    "mode",
    "model_bytes",
    "budget_bytes",
    "peak_rss_bytes",
    "load_ms",
    "prompt_tokens",
    "prompt_tokens_per_s",
    "generated_tokens",
    "decode_tokens_per_s",
    "ttft_ms",
    "weights_read_bytes",
    "unit_lookups",
    "unit_hits",
    "read_wait_ms",
    "drive_busy_ms",
    "compute_ms",
    "kv_tokens_reused",
    "kv_read_bytes",
    "kv_written_bytes",
    "predicted_tokens_per_s",
    "text_sha256",
];

#[test]
fn a_chat_over_a_pipe() {
    let sandbox = Sandbox::new();
    let model = demo();
    let args = ["run", model.to_str().unwrap(), "-i", "--threads", "1", "-t", "0", "-n", "10"];
    let script = "book a hotel in Paris\n/help\n/nope\n\"\"\"for\ntwo\"\"\"\n/retry\n/clear\n\
                  /retry\n/system be brief\n/bye\nnever said\n";
    let more = ["--stats-json", "stats.json"];
    let outcome = sandbox.run_with(&[&args[..], &more].concat(), script.as_bytes());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for words in [
        "  /help            this text\n",
        "There is no /nope",
        "Forgotten.",
        "nothing to answer yet",
        "Begun anew.",
        " known)",
    ] {
        assert!(outcome.stderr.contains(words), "{words}: {}", outcome.stderr);
    }
    // Each answer has lines of its own; the same question gets the same greedy answer.
    let text = outcome.text();
    let answers: Vec<&str> = text.lines().collect();
    assert_eq!(outcome.stderr.matches(" tokens at ").count(), 3, "{}", outcome.stderr);
    assert!(text.ends_with('\n') && answers.len() >= 3, "{text}");
    let stats: Value =
        serde_json::from_slice(&std::fs::read(sandbox.path("stats.json")).unwrap()).unwrap();
    assert!(stats["kv_tokens_reused"].as_u64().unwrap() > 20, "{stats}");
    // What came from a pipe is not kept for the terminal.
    assert!(!sandbox.path("home/chat-history.txt").exists());
}

#[test]
fn models_have_names_and_may_lack_a_template() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path("home/models")).unwrap();
    sandbox.tiny("qwen3moe", "home/models/own.gguf");
    std::fs::create_dir(sandbox.path("more")).unwrap();
    sandbox.tiny("llama", "more/other.gguf");
    let run = |args: &[&str]| {
        sandbox.run(&[&["run", "-p", "hi", "-n", "3", "--threads", "1"], args].concat())
    };
    for args in [&["own"][..], &["other", "--models-dir", "more"], &["own", "--raw"]] {
        let outcome = run(args);
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
    }
    run(&["third"]).assert_fails(3, &["\"third\"", "own"], "an unknown name");
}

#[test]
fn data_is_json() {
    let sandbox = Sandbox::new();
    sandbox.tiny("qwen3moe", "m.gguf");
    let json = |args: &[&str]| -> Value {
        let outcome = sandbox.run(args);
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
        serde_json::from_slice(&outcome.stdout).unwrap()
    };
    let inspect = json(&["inspect", "m.gguf", "--json"]);
    assert_eq!(inspect["architecture"], "qwen3moe");
    assert!(inspect["plan"]["budget_bytes"].is_u64(), "{inspect}");
    let estimate = json(&["estimate", "m.gguf", "--json"]);
    assert_eq!(estimate["mode"], "full-resident");
    let profile = json(&["profile", "--json"]);
    assert!(profile["cpu"]["cores_free"].as_u64().unwrap() > 0, "{profile}");
    // Another machine is described by what `profile` prints.
    std::fs::write(sandbox.path("machine.json"), profile.to_string()).unwrap();
    let there = json(&["estimate", "m.gguf", "--json", "--profile", "machine.json"]);
    assert_eq!(there["mode"], "full-resident");
    let shown = sandbox.run(&["inspect", "m.gguf", "--tensors"]);
    assert!(shown.text().contains("blk.0.ffn_gate_exps.weight"), "{shown:?}");
}
