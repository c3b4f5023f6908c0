//! `hypura optimize`: a file that is there whole or not at all, and one sentence when it can't be.

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{Outcome, Sandbox, interrupt};
use hypura_engine::gguf::{GgmlType, Writer};
use hypura_testkit::tiny::{Mix, find};

/// Names of the files in the sandbox, sorted.
fn files(sandbox: &Sandbox) -> Vec<String> {
    let entries = std::fs::read_dir(sandbox.path(".")).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.path().is_file());
    let mut names: Vec<_> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn it_says_what_was_done() {
    let sandbox = Sandbox::new();
    let source = find("qwen3moe").unwrap().model(Mix::Q4_0, 1).unwrap();
    source.write(&sandbox.path("m.gguf")).unwrap();
    let done = sandbox.run(&["optimize", "m.gguf", "hot.gguf"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    for words in ["Q4_0 in blocks", "not streamed", "hot.gguf", "written and checked", "m.gguf"] {
        assert!(done.text().contains(words), "no {words:?} in {}", done.text());
    }
    assert_eq!(files(&sandbox), ["hot.gguf", "m.gguf"]);
    let first = std::fs::read(sandbox.path("hot.gguf")).unwrap();

    let exists = sandbox.run(&["optimize", "m.gguf", "hot.gguf"]);
    exists.assert_fails(2, &["hot.gguf", "exists already", "--force"], "no force");
    let again = sandbox.run(&["optimize", "m.gguf", "hot.gguf", "--force"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(std::fs::read(sandbox.path("hot.gguf")).unwrap() == first);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.tiny("qwen3moe", "m.gguf");
    std::fs::write(sandbox.path("text.gguf"), "This is a story.").unwrap();
    std::fs::create_dir(sandbox.path("folder")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("m.gguf"), sandbox.path("link.gguf")).unwrap();
    let done = sandbox.run(&["optimize", "m.gguf", "hot.gguf"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let before = std::fs::read(sandbox.path("m.gguf")).unwrap();
    for (args, code, words) in [
        (&["none.gguf", "x.gguf"][..], 3, &["no file", "none.gguf"][..]),
        (&["text.gguf", "x.gguf"], 3, &["not a GGUF file"]),
        (&["folder", "x.gguf"], 3, &["is a folder"]),
        (&["hot.gguf", "x.gguf"], 2, &["optimised already", "original"]),
        (&["m.gguf"], 2, &["<OUT>"]),
        (&["m.gguf", "folder"], 2, &["folder", "is a folder"]),
        (&["m.gguf", "m.gguf"], 2, &["is the model that is read"]),
        (&["m.gguf", "m.gguf", "--force"], 2, &["is the model that is read"]),
        (&["m.gguf", "link.gguf", "--force"], 2, &["is the model that is read"]),
        (&["m.gguf", "nowhere/x.gguf"], 4, &["nowhere/x.gguf", "can't be written"]),
    ] {
        let args = [&["optimize"], args].concat();
        sandbox.run(&args).assert_fails(code, words, &format!("{args:?}"));
    }
    assert_eq!(files(&sandbox), ["hot.gguf", "link.gguf", "m.gguf", "text.gguf"]);
    assert!(std::fs::read(sandbox.path("m.gguf")).unwrap() == before);
}

#[test]
fn the_optimised_model_runs_as_the_original_does() {
    let sandbox = Sandbox::new();
    let source = find("qwen3moe").unwrap().model(Mix::Q4_0, 1).unwrap();
    source.write(&sandbox.path("m.gguf")).unwrap();
    let done = sandbox.run(&["optimize", "m.gguf", "hot.gguf"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let ask = ["-p", "hello", "--raw", "-n", "8", "--temperature", "0", "--threads", "1"];
    let original = sandbox.run(&[&["run", "m.gguf"], &ask[..]].concat());
    for memory in ["--memory=1GiB", "--weights-memory=600KiB"] {
        let hot = sandbox.run(&[&["run", "hot.gguf", memory], &ask[..]].concat());
        assert_eq!(hot.code, Some(0), "{hot:?}");
        assert_eq!(hot.stdout, original.stdout, "{memory}");
    }
    for command in ["inspect", "estimate"] {
        let seen = sandbox.run(&[command, "hot.gguf"]);
        assert_eq!(seen.code, Some(0), "{command}: {seen:?}");
    }
    let baseline = sandbox.run(&[&["run", "hot.gguf", "--baseline=mmap"], &ask[..]].concat());
    baseline.assert_fails(2, &["optimised", "original"], "a baseline");
    if done.text().contains("rearranged for this CPU") {
        let plain = sandbox.run(&[&["run", "hot.gguf", "--layout=plain"], &ask[..]].concat());
        plain.assert_fails(2, &["--layout fast", "original"], "the plain layout");
    }
    let bytes = std::fs::read(sandbox.path("hot.gguf")).unwrap();
    std::fs::write(sandbox.path("cut.gguf"), &bytes[..bytes.len() - 5000]).unwrap();
    let cut = sandbox.run(&[&["run", "cut.gguf"], &ask[..]].concat());
    cut.assert_fails(3, &["cut.gguf"], "a truncated file");
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    let sandbox = Sandbox::new();
    // A matrix of 1 GiB that takes no room: only its header is written, the rest is a hole.
    let metadata = [("general.architecture", "llama")].into_iter().collect();
    let mut writer = Writer::new(metadata, 32).unwrap();
    writer.add_tensor("output.weight", GgmlType::F16, &[1 << 14, 1 << 15]).unwrap();
    let file = std::fs::File::create(sandbox.path("m.gguf")).unwrap();
    (&file).write_all(&writer.header()).unwrap();
    file.set_len(writer.header_bytes() + writer.data_bytes()).unwrap();

    let child = sandbox.command(&["optimize", "m.gguf", "hot.gguf"]).spawn().unwrap();
    let partial = sandbox.path("hot.gguf.partial");
    let begin = Instant::now();
    while !partial.exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    interrupt(&child);
    let outcome = Outcome::of(child.wait_with_output().unwrap());
    outcome.assert_fails(130, &["interrupted"], "Ctrl-C");
    assert_eq!(files(&sandbox), ["m.gguf"]);
}
