//! Routing history: kept between runs, a hint and nothing more.

mod common;

use common::{alone, assert_same, demo, expected, load_share, logits, options};
use hypura_engine::LoadOptions;
use hypura_engine::llama::FlashAttention;

const PROMPT: usize = 40;
const SHARE: f64 = 0.6;

#[test]
fn a_second_run_begins_with_what_the_first_one_used() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = demo("demo-moe-54m-q4_k_m.gguf");
    let options = LoadOptions {
        history_dir: Some(folder.path().join("history")),
        ..options(FlashAttention::On)
    };
    let expected = expected(&path, &options, PROMPT);
    let run = |what: &str| {
        let mut loaded = load_share(&path, &options, SHARE);
        assert_same(&logits(&mut loaded, PROMPT), &expected, what);
        loaded.stream_stats()
    };
    let first = run("no history");
    let files: Vec<_> = std::fs::read_dir(folder.path().join("history"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [file] = files.as_slice() else { panic!("{files:?}") };
    let written = std::fs::read(file).unwrap();
    assert_eq!(first.ahead.warmed, 0);
    let second = run("with history");
    assert!(second.ahead.warmed > 0, "{:?}", second.ahead);
    assert_eq!(first.unit_lookups, second.unit_lookups);
    assert_ne!(std::fs::read(file).unwrap(), written, "the second run adds to it");

    for damaged in [&b"{"[..], b"", b"[1, 2, 3]", &written[..written.len() / 2]] {
        std::fs::write(file, damaged).unwrap();
        assert_eq!(run("damaged history").ahead.warmed, 0);
    }
    let text = String::from_utf8(written.clone()).unwrap();
    let at = text.find("\"now_tokens\":").unwrap() + "\"now_tokens\":".len();
    let end = at + text[at..].find(',').unwrap();
    let absurd = format!("{}{}{}", &text[..at], u64::MAX, &text[end..]);
    std::fs::write(file, absurd).unwrap();
    assert_eq!(run("a history from the end of time").ahead.warmed, 0);
    let shape = String::from_utf8(written).unwrap().replace("\"n_experts\":32", "\"n_experts\":31");
    std::fs::write(file, shape).unwrap();
    assert_eq!(run("the history of another model").ahead.warmed, 0);
}
