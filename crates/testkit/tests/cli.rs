//! The command line says what it did, or one sentence about why not.

use std::path::Path;
use std::process::{Command, Output};

use hypura_gguf::Model;
use hypura_testkit::tiny::RECIPES;

fn synth(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hypura-synth"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn commands_write_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let run = |line: &str| {
        let output = synth(folder.path(), &line.split(' ').collect::<Vec<_>>());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{line}: {said}");
        assert!(
            said.lines().all(|line| line.ends_with(" MB")),
            "no bar without a terminal: {said}"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let list = run("tiny --list");
    assert_eq!(list.lines().count(), RECIPES.len());
    assert!(RECIPES.iter().zip(list.lines()).all(|(recipe, line)| line.starts_with(recipe.name)));

    run("tiny qwen3moe a.gguf --type q4_0 --seed 3");
    run("tiny gpt-oss b --split 3");
    run("widen a.gguf c.gguf --times 3 --type Q8_0");
    run("dense d.gguf --layers 1 --embd 64 --ff 96 --heads 2 --kv-heads 1 --vocab 400 --ctx 64");
    let split = ["b-00001-of-00003.gguf", "b-00002-of-00003.gguf", "b-00003-of-00003.gguf"];
    let expected = ["a.gguf", split[0], split[1], split[2], "c.gguf", "d.gguf"];
    assert_eq!(names_in(folder.path()), expected);
    for name in ["a.gguf", split[0], "c.gguf", "d.gguf"] {
        Model::open(&folder.path().join(name)).unwrap();
    }
}

#[test]
fn mistakes_get_one_sentence_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let check = |line: &str, code: i32, words: &str| {
        let output = synth(folder.path(), &line.split(' ').collect::<Vec<_>>());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(said.starts_with("error: ") && said.contains(words), "{line}: {said}");
        assert!(code == 2 || said.lines().count() == 1, "{line}: {said}");
    };
    check("tiny gpt5 a.gguf", 2, "there is no such model; choose one of llama, ");
    check("tiny llama a.gguf --type Q9", 2, "there is no such type; choose one of F32, ");
    check("tiny llama", 2, "OUT");
    check("widen a.gguf b.gguf", 2, "--times");
    check("widen a.gguf b.gguf --times 2", 1, "there is no file");
    check("dense a.gguf --type F16", 1, "F16 can't be made up");
    check("dense no/a.gguf --layers 1", 1, "can't be written");
    check("dense . --layers 1", 1, "is a folder; name a file");
    // 130 TB.
    let huge = "dense a.gguf --layers 512 --embd 131072 --ff 1048576 --heads 1024";
    check(huge, 1, "make room or write elsewhere");
    assert_eq!(names_in(folder.path()), [""; 0]);
}
