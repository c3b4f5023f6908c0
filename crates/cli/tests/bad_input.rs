//! Whatever a user gets wrong is answered by one sentence and the right exit code.

mod common;

use std::path::Path;

use common::{Sandbox, demo};
use hypura_testkit::tiny::find;

fn check(sandbox: &Sandbox, cases: &[(&[&str], i32, &[&str])]) {
    for (args, code, words) in cases {
        sandbox.run(args).assert_fails(*code, words, &format!("{args:?}"));
    }
}

#[test]
fn models_that_are_none() {
    let sandbox = Sandbox::new();
    let whole = std::fs::read(sandbox.tiny("qwen3moe", "good.gguf")).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(sandbox.path(name), bytes).unwrap();
    write("empty.gguf", b"");
    write("text.gguf", b"This is a story about a file that is no model at all.");
    write("header.gguf", &whole[..5000]);
    write("data.gguf", &whole[..whole.len() / 2]);
    write("beyond.gguf", &whole[..whole.len() - 4096]);
    write("unknown.gguf", &replaced(&whole, b"qwen3moe", b"qwen9moe"));
    std::fs::create_dir(sandbox.path("folder")).unwrap();
    let recipe = find("qwen3moe").unwrap();
    let model = recipe.model(recipe.default_mix, 1).unwrap();
    let parts = model.write_split(&sandbox.path("split"), 3).unwrap();
    std::fs::remove_file(&parts[2]).unwrap();

    // llama.cpp alone knows which architectures there are, so only a run finds out.
    check(&sandbox, &[(&["run", "unknown.gguf", "-p", "hi"], 3, &["llama.cpp", "qwen9moe"])]);
    for command in [&["run", "-p", "hi"][..], &["inspect"], &["estimate"]] {
        for (model, words) in [
            ("none.gguf", &["no file", "none.gguf"][..]),
            ("none", &["no file", "\"none\"", "no local store"]),
            ("", &["no file"]),
            ("folder", &["folder", "is a folder"]),
            ("empty.gguf", &["empty.gguf", "is empty"]),
            ("text.gguf", &["not a GGUF file", "This"]),
            ("header.gguf", &["ends inside"]),
            ("data.gguf", &["tensor", "incomplete"]),
            ("beyond.gguf", &["tensor", "incomplete"]),
            ("split-00001-of-00003.gguf", &["part 3 of 3 is missing", "00003-of-00003"]),
            ("split-00002-of-00003.gguf", &["part 2", "name its first file", "00001-of-00003"]),
        ] {
            let args = [command, &[model]].concat();
            check(&sandbox, &[(&args, 3, words)]);
        }
    }
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for at in 0..out.len() - from.len() {
        if out[at..].starts_with(from) {
            out[at..at + to.len()].copy_from_slice(to);
        }
    }
    out
}

#[test]
fn options_that_make_no_sense() {
    let sandbox = Sandbox::new();
    sandbox.tiny("qwen3moe", "m.gguf");
    let run = |args: &[&'static str]| [&["run", "m.gguf", "--threads", "1"], args].concat();
    let too_long = "word ".repeat(3000);
    let long = [&run(&["-p"])[..], &[too_long.as_str()]].concat();
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&[], 2, &["no command", "--help"]),
        (&["nonsense"], 2, &["'nonsense'"]),
        (&["run"], 2, &["<MODEL>"]),
        (&run(&["--memry", "1GiB"]), 2, &["--memry", "--memory"]),
        (&run(&["-p", "hi", "--memory", "much"]), 2, &["--memory", "\"much\""]),
        (&run(&["-p", "hi", "--memory", "1MiB"]), 2, &["1.00 MiB", "too small", "--memory "]),
        (&run(&["-p", "hi", "--weights-memory", "1"]), 2, &["1 B", "too small", "KiB or more"]),
        (&run(&["-p", "hi", "-t", "NaN"]), 2, &["--temperature"]),
        (&run(&["-p", "hi", "-t", "-1"]), 2, &["--temperature", "0 or more"]),
        (&run(&["-p", "hi", "--top-p", "2"]), 2, &["--top-p", "0 to 1"]),
        (&run(&["-p", "hi", "-n", "-1"]), 2, &["--max-tokens"]),
        (&run(&["-p", "hi", "--ctx", "0"]), 2, &["--ctx"]),
        (&run(&["-p", "hi", "--ubatch", "9000"]), 2, &["--ubatch", "8192"]),
        (&["run", "m.gguf", "-p", "hi", "--threads", "0"], 2, &["--threads"]),
        (&["run", "m.gguf", "-p", "hi", "--threads", "512"], 2, &["--threads 512", "cores"]),
        (&run(&["-p", ""]), 2, &["prompt is empty"]),
        (&run(&["-p", " \n "]), 2, &["prompt is empty"]),
        (&run(&[]), 2, &["prompt is empty"]), // nothing on standard input
        (&run(&["-p", "hi", "-i"]), 2, &["--prompt", "--interactive"]),
        (&long, 2, &["tokens", "context holds 4096"]),
        (&run(&["-p", "hi", "--stats-json", "none/x"]), 2, &["can't write none/x", "no such"]),
        (&run(&["-p", "hi", "--stats-json", "."]), 2, &["can't write ."]),
        (&run(&["-p", "hi", "--trace", "none/x"]), 2, &["can't write none/x"]),
        (&run(&["-p", "hi", "--trace", "x"]), 2, &["nothing to trace"]),
        (&["estimate", "m.gguf", "--profile", "none"], 2, &["can't read none"]),
        (&["estimate", "m.gguf", "--profile", "m.gguf"], 2, &["m.gguf"]),
        (&["profile", "none"], 2, &["none"]),
    ];
    check(&sandbox, cases);
    let words = sandbox.run_with(&run(&[]), b"\xff\xfe");
    words.assert_fails(2, &["not UTF-8"], "a prompt in Latin-1");
    let words = sandbox.run_with(&run(&["-i", "-q"]), b"\xff\xfe\n");
    words.assert_fails(2, &["not UTF-8"], "a message in Latin-1");
    let mut left: Vec<_> = std::fs::read_dir(sandbox.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["home", "m.gguf"], "nothing is left behind");
}

#[test]
fn a_limit_of_the_model_is_told_from_one_that_was_asked_for() {
    let sandbox = Sandbox::new();
    sandbox.tiny("qwen3moe", "m.gguf");
    let text = "word ".repeat(3000);
    let run = |ctx| sandbox.run(&["run", "m.gguf", "--threads", "1", "-p", &text, "--ctx", ctx]);
    run("512").assert_fails(2, &["context holds 512", "raise --ctx"], "a small context");
    let outcome = run("1000000");
    assert!(outcome.stderr.contains("warning: --ctx 1000000 is cut to the 8192"), "{outcome:?}");
    assert!(outcome.stderr.contains("so shorten it"), "{outcome:?}");
    assert_eq!(outcome.code, Some(2));
}

/// Storage that is full, on any Linux.
const FULL: &str = "/dev/full";

#[test]
fn output_that_can_not_be_written() {
    if !Path::new(FULL).exists() {
        return; // only Linux has it
    }
    let sandbox = Sandbox::new();
    sandbox.tiny("qwen3moe", "m.gguf");
    let full = || std::fs::OpenOptions::new().write(true).open(FULL).unwrap();
    let run = ["run", "m.gguf", "--threads", "1", "-p", "hi", "-n", "4", "-t", "0"];
    for args in [&run[..], &["inspect", "m.gguf"], &["estimate", "m.gguf"], &["--help"]] {
        let output = sandbox.command(args).stdout(full()).output().unwrap();
        let words = ["can't write to standard output", "no space left"];
        common::Outcome::of(output).assert_fails(4, &words, &format!("{args:?}"));
    }
    // Nobody listens to the summary: the text is worth no less.
    let output = sandbox.command(&run).stderr(full()).output().unwrap();
    assert!(output.status.success() && !output.stdout.is_empty());
    // The text is out before the numbers fail.
    let outcome = sandbox.run(&[&run[..], &["--stats-json", FULL]].concat());
    outcome.assert_fails(4, &["can't write /dev/full", "no space left"], "full stats");
    assert_eq!(outcome.stdout, output.stdout);
}

#[test]
fn a_file_that_changes_while_it_is_streamed() {
    use std::io::Read;
    let sandbox = Sandbox::new();
    let model = sandbox.path("m.gguf");
    let truncate = |path: &Path| {
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(5_000_000).unwrap();
    };
    let overwrite = |path: &Path| {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.seek(SeekFrom::Start(5_000_000)).unwrap();
        file.write_all(&vec![0xa5; 20_000_000]).unwrap();
    };
    let ways: [fn(&Path); 2] = [truncate, overwrite];
    for (what, change) in ["truncated", "overwritten"].into_iter().zip(ways) {
        std::fs::copy(demo(), &model).unwrap();
        let args =
            ["run", "m.gguf", "-p", "hi", "--threads", "1", "--weights-memory", "4MiB", "-t", "0"];
        let mut child = sandbox.command(&args).arg("--ignore-eos").spawn().unwrap();
        let mut first = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        change(&model);
        let outcome = common::Outcome::of(child.wait_with_output().unwrap());
        outcome.assert_fails(4, &["m.gguf"], what);
    }
}
