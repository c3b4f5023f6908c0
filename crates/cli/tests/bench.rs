//! Comparing with plain llama.cpp, and measuring the drive.

mod common;

use std::path::Path;
use std::process::Stdio;

use common::{Sandbox, demo, suggested};
use serde_json::Value;

/// A budget that the demo model streams at, in bytes.
fn smallest(sandbox: &Sandbox) -> u64 {
    let outcome = sandbox.run(&["run", &model(), "--memory", "1MiB", "-p", "hi", "--threads", "1"]);
    suggested_bytes(&suggested(&outcome, "--memory"))
}

fn suggested_bytes(text: &str) -> u64 {
    let mib: f64 = text.strip_suffix("MiB").expect("MiB").parse().unwrap();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // some megabytes
    let bytes = (mib * 1048576.0).ceil() as u64;
    bytes
}

fn model() -> String {
    demo().to_str().unwrap().to_owned()
}

fn json(sandbox: &Sandbox, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(sandbox.path(name)).unwrap()).unwrap()
}

/// Folders of ours that still are where control groups are made.
fn groups_left() -> Vec<String> {
    let found = hypura_engine::profile::memory_groups().into_iter().flat_map(|group| {
        let entries = std::fs::read_dir(group.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    });
    found.filter(|name| name.starts_with("hypura-bench-")).collect()
}

#[test]
fn both_sides_are_run_and_compared() {
    let sandbox = Sandbox::new();
    let smallest = smallest(&sandbox);
    let memory = format!("{},{}", smallest + (64 << 20), smallest + (24 << 20));
    let (model, common) =
        (model(), ["--threads", "1", "-n", "4", "--rounds", "2", "--ubatch", "16"]);
    let args = ["bench", &model, "--memory", &memory, "--json", "out.json", "--svg", "out.svg"];
    let outcome = sandbox.run(&[&args[..], &common, &["--also-resident"]].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let text = outcome.text();
    let result = json(&sandbox, "out.json");
    assert_eq!(result["format"], "hypura-bench");
    assert_eq!(result["settings"]["memory_bytes"][0], smallest + (24 << 20), "sorted");
    let limited = result["settings"]["limited_by_control_group"] == true;
    let sides: Vec<(u64, &str, bool)> = result["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| {
            assert_eq!(run["outcome"], "finished", "{run}");
            assert_eq!(run["stats"]["generated_tokens"], 4, "{run}");
            let round = run["round"].as_u64().unwrap();
            (round, run["side"].as_str().unwrap(), run["limit_bytes"].is_u64())
        })
        .collect();
    if limited {
        let round = |n| {
            [
                (n, "hypura", true),
                (n, "mmap", true),
                (n, "resident", false),
                (n, "hypura", true),
                (n, "mmap", true),
            ]
        };
        assert_eq!(sides, [round(1), round(2)].concat(), "in turns");
        assert!(text.contains("times mmap") || text.contains("over mmap is unresolved"), "{text}");
        let peak = result["runs"][1]["group_peak_bytes"].as_u64();
        assert!(peak.is_none_or(|peak| peak <= smallest + (24 << 20)), "{result}");
    } else {
        eprintln!("not tested: no control group can be made here");
        assert!(sides.iter().all(|(_, side, limited)| *side != "mmap" && !limited), "{sides:?}");
        assert!(text.contains("no control group can be made"), "{text}");
        assert!(!text.contains("times mmap"), "{text}");
    }
    // The plain layout gives the same text at each budget, and on each side.
    assert!(text.contains("all sides wrote the same text"), "{text}");
    assert!(text.contains("Over memory"), "{text}");
    let svg = std::fs::read_to_string(sandbox.path("out.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("memory limit, GiB"), "{svg}");
    assert_eq!(groups_left(), [""; 0], "no group is left behind");
}

#[test]
fn a_warm_run_follows_one_that_does_not_count() {
    let sandbox = Sandbox::new();
    let memory = (smallest(&sandbox) + (24 << 20)).to_string();
    std::fs::create_dir(sandbox.path("results")).unwrap();
    let model = model();
    let args = ["bench", &model, "--memory", &memory, "--threads", "1", "-n", "3", "--rounds", "1"];
    let outcome =
        sandbox.run(&[&args[..], &["--warm", "--layout", "fast", "--json", "results"]].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.text().contains("texts were not compared"), "{outcome:?}");
    let files: Vec<_> = std::fs::read_dir(sandbox.path("results")).unwrap().flatten().collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    let name = Path::new("results").join(file.file_name());
    let result = json(&sandbox, name.to_str().unwrap());
    assert_eq!(result["settings"]["cache"], "warm");
    assert_eq!(result["runs"][0]["side"], "hypura");
}

#[test]
fn a_child_neither_begins_nor_goes_on_without_its_parent() {
    let sandbox = Sandbox::new();
    let model = model();
    let args = [
        "bench-child",
        &model,
        "--io-json",
        "io.json",
        "-p",
        "hi",
        "-n",
        "100000",
        "--ignore-eos",
        "--raw",
        "--threads",
        "1",
        "--ctx",
        "100000",
    ];
    // Standard input has ended before a word was said.
    let outcome = sandbox.run(&args);
    assert_eq!((outcome.code, outcome.stdout.len()), (Some(130), 0), "{outcome:?}");
    // It ends in the middle of an answer that would take much longer.
    let mut child = sandbox.command(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"\n").unwrap();
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    drop(stdin);
    let outcome = common::Outcome::of(child.wait_with_output().unwrap());
    assert_eq!(outcome.code, None, "ended by a signal: {outcome:?}");
}

#[test]
fn the_curve_of_a_drive() {
    let sandbox = Sandbox::new();
    let model = model();
    let args = ["iobench", &model, "--time", "5", "--engine", "pread"];
    let outcome = sandbox.run(&[&args[..], &["--svg", "drive.svg"]].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let text = outcome.text();
    for word in ["by pread", "MB/s by read size", "  1 at a time", "64.0 KiB", "best: "] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let svg = std::fs::read_to_string(sandbox.path("drive.svg")).unwrap();
    assert!(svg.contains("size of a read, KiB") && svg.contains("1 at a time"), "{svg}");
    let outcome = sandbox.run(&[&args[..], &["--json"]].concat());
    let result: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let points = result["points"].as_array().unwrap();
    // 33 MB have room for no more than 4 reads of 8 MiB at once.
    let bytes = |p: &Value| p["read_bytes"].as_u64().unwrap() * p["depth"].as_u64().unwrap();
    assert!(!points.is_empty() && points.iter().all(|p| bytes(p) <= 33 << 20), "{result}");
}

#[test]
fn what_can_not_be_measured_is_refused_in_one_sentence() {
    let sandbox = Sandbox::new();
    sandbox.tiny("qwen3moe", "m.gguf");
    std::fs::write(sandbox.path("text.gguf"), b"This is a story about no model at all.").unwrap();
    std::fs::create_dir(sandbox.path("folder")).unwrap();
    let bench = |model: &'static str, rest: &[&'static str]| [&["bench", model][..], rest].concat();
    let memory = ["--memory", "1GiB"];
    let cases: &[(Vec<&str>, i32, &[&str])] = &[
        (bench("m.gguf", &[]), 2, &["--memory"]),
        (bench("none.gguf", &memory), 3, &["no file", "none.gguf"]),
        (bench("folder", &memory), 3, &["is a folder"]),
        (bench("text.gguf", &memory), 3, &["not a GGUF file"]),
        (bench("m.gguf", &["--memory", "1GiB,much"]), 2, &["--memory", "\"much\""]),
        (bench("m.gguf", &["--memory", "1GiB,1MiB"]), 2, &["1.00 MiB", "too small"]),
        (bench("m.gguf", &["--memory", "1GiB", "--rounds", "0"]), 2, &["--rounds"]),
        (bench("m.gguf", &["--memory", "1GiB", "-n", "1"]), 2, &["--max-tokens"]),
        (bench("m.gguf", &["--memory", "1GiB", "-t", "-1"]), 2, &["--temperature", "0 or more"]),
        (bench("m.gguf", &["--memory", "1GiB", "--cold", "--warm"]), 2, &["--cold", "--warm"]),
        (bench("m.gguf", &["--memory", "1GiB", "--threads", "512"]), 2, &["--threads 512"]),
        (bench("m.gguf", &["--memory", "1GiB", "--json", "no/x"]), 2, &["can't write no/x"]),
        (bench("m.gguf", &["--memory", "1GiB", "--svg", "folder"]), 2, &["can't write folder"]),
        (vec!["iobench", "none"], 2, &["none is no file"]),
        (vec!["iobench", "folder"], 2, &["folder is no file"]),
        (vec!["iobench", "text.gguf"], 2, &["less than 8388608 bytes", "larger"]),
        (vec!["iobench", "m.gguf", "--engine", "magic"], 2, &["magic"]),
        (vec!["iobench", "m.gguf", "--time", "0"], 2, &["--time"]),
    ];
    for (args, code, words) in cases {
        sandbox.run(args).assert_fails(*code, words, &format!("{args:?}"));
    }
    // A prompt that the context can't hold is found out by the first run, in its own words.
    let long = "word ".repeat(600);
    let args = ["bench", "m.gguf", "--memory", "1GiB", "--threads", "1", "--ctx", "256", "-p"];
    let outcome = sandbox.run(&[&args[..], &[long.as_str()]].concat());
    outcome.assert_fails(2, &["context holds 256", "raise --ctx"], "a long prompt");
    assert_eq!(groups_left(), [""; 0], "no group is left behind");
}
