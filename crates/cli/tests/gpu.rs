//! Three tiers: what is said of them where a GPU computes. The GPU is the CPU, treated as one.

mod common;

use common::{Sandbox, demo};
use serde_json::Value;

const PLENTY: &str = "1TiB";

fn model() -> String {
    demo().to_str().unwrap().to_owned()
}

fn json(sandbox: &Sandbox, args: &[&str]) -> Value {
    let outcome = sandbox.run(args);
    assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
    serde_json::from_slice(&outcome.stdout).unwrap()
}

/// A budget of GPU memory that has room for some experts, as an option.
fn not_all(sandbox: &Sandbox, model: &str) -> String {
    let args = ["inspect", model, "--json", "--gpu", "CPU", "--gpu-memory", PLENTY];
    let plan = &json(sandbox, &args)["plan"];
    assert_eq!(plan["mode"], "full-resident", "{plan}");
    (plan["gpu"]["smallest_bytes"].as_u64().unwrap() + (4 << 20)).to_string()
}

fn assert_has(text: &str, all: &[&str]) {
    for words in all {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
}

#[test]
fn a_plan_shows_both_memories() {
    let (sandbox, model) = (Sandbox::new(), model());
    let gpu_memory = not_all(&sandbox, &model);
    let args =
        ["inspect", &model, "--memory", "400MiB", "--gpu", "CPU", "--gpu-memory", &gpu_memory];
    let outcome = sandbox.run(&[&args[..], &["--tensors", "--svg", "plan.svg"]].concat());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    assert_has(
        &outcome.text(),
        &[
            "\nPlan for 400 MiB and ",
            " of GPU memory: expert-streaming\n",
            "  GPU memory\n",
            "\n  driver ",
            "layers  of bytes  in memory  share  in GPU memory  share  experts\n",
            "\n  GPU memory, always     █",
            "\n  GPU memory, as needed  █",
            "\n  memory, always         ",
            "\n  drive only             ",
            " read and ",
            " copied to the GPU per token\n",
            "\nSmallest budgets that work: ",
            "  GPU memory\n",
            "  both memories\n",
        ],
    );
    let svg = std::fs::read_to_string(sandbox.path("plan.svg")).unwrap();
    assert_has(
        &svg,
        &[
            "in GPU memory, always",
            "in memory, as needed",
            "on the drive only",
            "What the budget of GPU memory goes to",
            "copied to the GPU per token",
        ],
    );
    let inspected = json(&sandbox, &[&args[..], &["--json"]].concat());
    let gpu = &inspected["plan"]["gpu"];
    assert_eq!(gpu["budget_bytes"].to_string(), gpu_memory);
    assert!(gpu["slots"][0].as_u64().unwrap() > 0, "{gpu}");
    // Without one, nothing is said of one.
    let outcome = sandbox.run(&["inspect", &model, "--gpu", "off", "--svg", "plan.svg"]);
    let svg = std::fs::read_to_string(sandbox.path("plan.svg")).unwrap();
    assert!(!outcome.text().contains("GPU") && !svg.contains("GPU"), "{outcome:?}");
}

#[test]
fn an_answer_ends_with_hits_per_tier() {
    let (sandbox, model) = (Sandbox::new(), model());
    let gpu_memory = not_all(&sandbox, &model);
    let args = ["run", &model, "-p", "The old man", "--raw", "-t", "0", "-n", "16"];
    let rest = ["--threads", "1", "--stats-json", "stats.json"];
    let on_gpu = ["--gpu", "CPU", "--gpu-memory", &gpu_memory];
    let outcome = sandbox.run(&[&args[..], &rest, &on_gpu].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_has(
        &outcome.stderr,
        &[
            "; expert-streaming on ",
            "; experts found: ",
            "% in GPU memory, ",
            "% in memory, ",
            "% on the drive; ",
            " copied to the GPU per token; ",
            "; GPU memory ",
            ", as planned]",
        ],
    );
    let stats: Value =
        serde_json::from_slice(&std::fs::read(sandbox.path("stats.json")).unwrap()).unwrap();
    let tier = &stats["gpu"]["decode_tier"];
    assert!(tier["copied_bytes"].as_u64().unwrap() > 0, "{tier}");
    let outcome = sandbox.run(&[&args[..], &rest, &["--gpu", "off"]].concat());
    assert!(outcome.stderr.contains(" layout; "), "{outcome:?}");
    assert!(!outcome.stderr.contains("GPU"), "{outcome:?}");
}

#[test]
fn both_sides_of_a_comparison_are_told_of_it() {
    let (sandbox, model) = (Sandbox::new(), model());
    let gpu_memory = not_all(&sandbox, &model);
    let args = ["bench", &model, "--memory", "400MiB", "--threads", "1", "-n", "4"];
    let rest = ["--rounds", "1", "--ubatch", "16", "--also-resident", "--json", "out.json"];
    let on_gpu = ["--gpu", "CPU", "--gpu-memory", &gpu_memory];
    let outcome = sandbox.run(&[&args[..], &rest, &on_gpu].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_has(
        &outcome.text(),
        &[
            "experts found in GPU memory ",
            "experts found in memory ",
            "copied to the GPU per token ",
            "Note: hypura computes on ",
            "each other side is llama.cpp on the CPU, which the GPU is as well",
            "all sides wrote the same text",
        ],
    );
    let text = std::fs::read_to_string(sandbox.path("out.json")).unwrap();
    let result: Value = serde_json::from_str(&text).unwrap();
    let gpu = &result["settings"]["gpu"];
    assert_eq!((&gpu["name"], &gpu["baseline"]), (&"CPU".into(), &"cpu".into()), "{gpu}");
    assert_eq!(gpu["memory_bytes"].to_string(), gpu_memory);
    for run in result["runs"].as_array().unwrap() {
        let command: Vec<_> =
            run["command"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        let at = command.iter().position(|argument| *argument == "--gpu").unwrap();
        let ours = run["side"] == "hypura";
        assert_eq!(command[at + 1], if ours { "CPU" } else { "off" }, "{command:?}");
        assert_eq!(run["stats"]["gpu"].is_object(), ours, "{run}");
    }
}

#[test]
fn what_a_gpu_can_not_do_is_refused_in_one_sentence() {
    let sandbox = Sandbox::new();
    let model = model();
    for (args, words) in [
        (
            &["--gpu", "CPU", "--gpu-memory", "1MiB"][..],
            &["1.00 MiB of GPU memory is too small", "--gpu-memory ", "--gpu off"][..],
        ),
        (&["--gpu", "CUDA7"], &["no device CUDA7"]),
    ] {
        for command in [&["run", &model, "-p", "hi"][..], &["inspect", &model]] {
            sandbox.run(&[command, args].concat()).assert_fails(2, words, &format!("{command:?}"));
        }
        let bench = ["bench", &model, "--memory", "1GiB"];
        sandbox.run(&[&bench[..], args].concat()).assert_fails(2, words, "bench");
    }
    let alone = ["run", &model, "-p", "hi", "--baseline-experts-on-cpu"];
    sandbox.run(&alone).assert_fails(2, &["--baseline"], "a baseline's");
}
