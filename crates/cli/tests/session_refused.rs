//! Sessions that can't be had, and what else goes wrong with them.

mod common;

use std::io::Write;
use std::path::PathBuf;

use common::Outcome;
use common::bench::*;
use hypura_engine::kv::{Session, SessionMessage, SessionName, SessionStore};
use serde_json::Value;

#[test]
fn names_stay_in_their_folder() {
    let bench = Bench::tiny("qwen3moe");
    bench.turn("hi", &["--session", "good"]);
    bench.done(&["save", "good", "good.hypura"]);
    let before = files_below(&bench.path(""));
    let long = "x".repeat(65);
    for name in ["../x", "a/b", "", ".hidden", "..", "a b", "/tmp/x", "a\\b", "ä", &long] {
        let words = ["can't be called", name];
        for args in [
            &["show", name][..],
            &["save", name, "file"],
            &["load", "good.hypura", "m.gguf", "--as", name],
            &["rm", name],
        ] {
            let words = if name == "a\\b" { &words[..1] } else { &words[..] };
            bench.session(args).assert_fails(2, words, &format!("{args:?}"));
        }
        let outcome = bench.run(&["-p", "hi", "--session", name]);
        outcome.assert_fails(2, &words[..1], name);
    }
    let script = ["../x", "a/b", "", ".hidden", &long]
        .map(|name| format!("/save {name}\n/load {name}\n/fork {name}\n"))
        .concat();
    let outcome = bench.chat(&format!("hi\n{script}"), &[]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("can't be called").count(), 15, "{}", outcome.stderr);
    let cache = bench.path("home/cache");
    let outside = |files: &[PathBuf]| -> Vec<PathBuf> {
        files.iter().filter(|file| !file.starts_with(&cache)).cloned().collect()
    };
    assert_eq!(outside(&files_below(&bench.path(""))), outside(&before));
}

#[test]
fn a_session_belongs_to_a_model() {
    let bench = Bench::tiny("qwen3moe");
    bench.turn("hi", &["--session", "trip"]);
    let before = std::fs::read(bench.session_file("trip")).unwrap();
    bench.sandbox.tiny("llama", "other.gguf");
    let words = ["session trip", "another model, m;"];
    let run = ["run", "other.gguf", "--threads", "1", "-n", "3"];
    let outcome = bench.sandbox.run(&[&run[..], &["-p", "hi", "--session", "trip"]].concat());
    outcome.assert_fails(2, &words, "run");
    assert!(outcome.stdout.is_empty());
    let chat = bench.sandbox.run_with(&[&run[..], &["-i"]].concat(), b"/load trip\nhi\n");
    assert_eq!(chat.code, Some(0), "{chat:?}");
    assert!(chat.stderr.contains(&words.join(" was had with ")), "{chat:?}");
    assert_eq!(std::fs::read(bench.session_file("trip")).unwrap(), before);
    // The same weights under another name are the same model.
    std::fs::rename(bench.path("m.gguf"), bench.path("renamed.gguf")).unwrap();
    let (_, stats) =
        Bench { model: "renamed.gguf".into(), ..bench }.turn("again", &["--session", "trip"]);
    assert!(number(&stats, "kv_tokens_reused") > 3, "{stats}");
}

#[test]
fn options_that_rule_sessions_out() {
    let bench = Bench::tiny("qwen3moe");
    let turn = |more: &[&str]| bench.run(&[&["-p", "hi", "--session", "trip"], more].concat());
    turn(&["--kv-cache", "off"]).assert_fails(2, &["attention state", "--kv-cache off"], "off");
    turn(&["--raw"]).assert_fails(2, &["--session", "--raw"], "raw");
    std::fs::write(bench.path("file"), "").unwrap();
    let outcome = turn(&["--cold-cache", "file"]);
    let [warning, sentence] = outcome.stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("{outcome:?}");
    };
    assert_eq!((outcome.code, outcome.stdout.len()), (Some(2), 0), "{outcome:?}");
    assert!(warning.starts_with("hypura: warning: attention state is not kept: "), "{warning}");
    assert!(sentence.ends_with("is not kept here; leave out --session"), "{sentence}");
    let chat = bench.chat("/save x\n/load x\n/fork x\n", &["--kv-cache", "off"]);
    assert_eq!(chat.code, Some(0));
    assert!(chat.stderr.contains("hypura: sessions are not kept here"), "{chat:?}");
    assert!(files_below(&bench.path("home/sessions")).is_empty());
}

#[test]
fn a_session_is_had_by_one_process() {
    let bench = Bench::tiny("qwen3moe");
    bench.turn("hi", &["--session", "trip"]);
    bench.done(&["save", "trip", "trip.hypura"]);
    let (mut chat, stdin) = waiting_chat(bench.command(&["-i", "-q", "--session", "trip"]));
    let words = ["session trip", "in use by another process"];
    bench.run(&["-p", "hi", "--session", "trip"]).assert_fails(2, &words, "run");
    bench.session(&["rm", "trip"]).assert_fails(2, &words, "rm");
    let load = ["load", "trip.hypura", "m.gguf", "--force"];
    bench.session(&load).assert_fails(2, &words, "load");
    let other = bench.chat("hi\n/load trip\n/fork free\n", &[]);
    assert_eq!(other.code, Some(0));
    assert!(other.stderr.contains("hypura: session trip is in use"), "{other:?}");
    assert!(other.stderr.contains("This is free now."), "{other:?}");
    // Looking at it does no harm, and neither do other sessions beside it.
    bench.done(&["show", "trip"]);
    bench.done(&["list"]);
    bench.turn("hi", &["--session", "beside"]);
    drop(stdin);
    assert!(chat.wait().unwrap().success());
    bench.turn("hi", &["--session", "trip"]);
    // One that was killed has nothing any more.
    let (mut chat, stdin) = waiting_chat(bench.command(&["-i", "-q", "--session", "trip"]));
    chat.kill().unwrap();
    chat.wait().unwrap();
    drop(stdin);
    bench.turn("hi", &["--session", "trip"]);
}

#[test]
fn damaged_sessions_are_told_from_sound_ones() {
    let bench = Bench::tiny("qwen3moe");
    bench.turn("hi", &["--session", "good"]);
    let good = std::fs::read(bench.session_file("good")).unwrap();
    let mut flipped = good.clone();
    flipped[60] ^= 1;
    std::fs::write(bench.session_file("flipped"), &flipped).unwrap();
    std::fs::write(bench.session_file("cut"), &good[..good.len() / 2]).unwrap();
    std::fs::write(bench.session_file("text"), "shopping list").unwrap();
    std::fs::create_dir(bench.session_file("folder")).unwrap();
    let listed = bench.listed();
    for row in listed.as_array().unwrap() {
        assert_eq!(row.get("damaged").is_none(), row["name"] == "good", "{row}");
    }
    let list = bench.done(&["list"]);
    assert_eq!(list.text().matches("damaged").count(), 4, "{list:?}");
    assert!(list.text().lines().all(|line| line.len() < 80), "{list:?}");
    assert!(list.text().contains("good"), "{list:?}");
    assert_eq!(list.stderr.matches("hypura: warning: ").count(), 4, "{list:?}");
    for (name, code, words) in [
        ("flipped", 2, &["session flipped can't be used", "checksum"][..]),
        ("cut", 2, &["session cut can't be used", "cut short"]),
        ("text", 2, &["session text can't be used", "no session of hypura"]),
        ("folder", 4, &["folder.session", "no regular file"]),
    ] {
        bench.run(&["-p", "hi", "--session", name]).assert_fails(code, words, name);
        bench.session(&["show", name]).assert_fails(code, words, name);
        bench.session(&["save", name, "x"]).assert_fails(code, words, name);
        // A chat goes on without it.
        let chat = bench.chat(&format!("/load {name}\nhi\n"), &["-q"]);
        assert_eq!(chat.code, Some(0), "{name}: {chat:?}");
        assert!(!chat.stdout.is_empty() && chat.stderr.contains(words[0]), "{name}: {chat:?}");
    }
    assert_eq!(std::fs::read(bench.session_file("flipped")).unwrap(), flipped);
    bench.done(&["rm", "flipped"]);
    bench.turn("hi", &["--session", "flipped"]);
    bench.turn("hi", &["--session", "good"]);
}

#[test]
fn a_chat_outlives_a_folder_that_can_not_be_written() {
    let bench = Bench::tiny("qwen3moe");
    bench.turn("hi", &["--session", "trip"]);
    let before = std::fs::read(bench.session_file("trip")).unwrap();
    let (sessions, away) = (bench.path("home/sessions"), bench.path("home/away"));
    let hide = || {
        std::fs::rename(&sessions, &away).unwrap();
        std::fs::write(&sessions, "").unwrap();
    };
    let restore = || {
        std::fs::remove_file(&sessions).unwrap();
        std::fs::rename(&away, &sessions).unwrap();
    };
    let args = ["-i", "-q", "--session", "trip"];
    let words = "hypura: the conversation is not kept: can't read or write ";
    // It is kept after all when the folder is there again,
    let (mut chat, mut stdin) = waiting_chat(bench.command(&args));
    hide();
    stdin.write_all(b"and you\n").unwrap();
    hear(&mut chat, words);
    stdin.write_all(b"/save copy\n").unwrap();
    hear(&mut chat, "hypura: can't ");
    restore();
    drop(stdin);
    assert_eq!(chat.wait().unwrap().code(), Some(0));
    assert_ne!(std::fs::read(bench.session_file("trip")).unwrap(), before);
    assert_eq!(number(&bench.listed()[0], "messages"), 4);
    // and otherwise the end says so.
    let (mut chat, mut stdin) = waiting_chat(bench.command(&args));
    hide();
    stdin.write_all(b"and me\n").unwrap();
    hear(&mut chat, words);
    drop(stdin);
    let outcome = Outcome::of(chat.wait_with_output().unwrap());
    outcome.assert_fails(4, &["is not kept: can't read or write"], "the end of a chat");
    restore();
    assert_eq!(number(&bench.listed()[0], "messages"), 4);
    // One answer: the text is there, and then the sentence.
    std::fs::remove_dir_all(&sessions).unwrap();
    std::fs::write(&sessions, "").unwrap();
    let outcome = bench.run(&["-p", "hi", "--session", "trip"]);
    outcome.assert_fails(4, &["can't read or write", "sessions: file exists"], "no folder");
    bench.session(&["list"]).assert_fails(4, &["can't read or write"], "list");
    // Who wants no session doesn't need the folder.
    let outcome = bench.run(&["-p", "hi", "-q"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

#[test]
fn an_answer_needs_no_folder_for_attention_state() {
    let bench = Bench::new();
    let turn = |more: &[&str]| bench.run(&[&["-q", "-p", FIRST], more].concat());
    let plain = turn(&["--kv-cache", "off"]);
    assert_eq!(plain.code, Some(0), "{plain:?}");
    std::fs::write(bench.path("file"), "not a folder").unwrap();
    for folder in ["file", "file/below"] {
        let outcome = turn(&["--cold-cache", folder]);
        assert_eq!((outcome.code, outcome.stdout), (Some(0), plain.stdout.clone()), "{folder}");
        let warning =
            format!("hypura: warning: attention state is not kept: can't use the folder {folder}");
        assert!(outcome.stderr.starts_with(&warning), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
    assert_eq!(std::fs::read_to_string(bench.path("file")).unwrap(), "not a folder");
}

#[test]
fn a_cold_cache_holds_to_its_size() {
    let bench = Bench::new();
    for (size, bytes) in [("0", 0), ("1", 1), ("4KiB", 4 << 10), ("300KiB", 300 << 10)] {
        let folder = format!("cold-{size}");
        let limit = ["--session", &folder, "--cold-cache", &folder, "--cold-cache-size", size];
        for prompt in [FIRST, SECOND, "thank you", "and a taxi to the station please"] {
            let (text, stats) = bench.warned_turn("little is kept", prompt, &limit);
            assert!(!text.is_empty());
            let files = files_below(&bench.path(&folder));
            let used: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
            // What wears the drive is counted beside blocks, in less than a hundred bytes.
            let blocks: u64 = files
                .iter()
                .filter(|file| file.extension().is_some_and(|ending| ending == "kv"))
                .map(|file| file.metadata().unwrap().len())
                .sum();
            assert!(blocks <= bytes && used <= bytes + 4096, "{size}: {files:?}");
            assert!(number(&stats, "kv_cold_bytes") <= bytes, "{size}: {stats}");
        }
        assert_eq!(number(&bench.listed()[0], "messages"), 8, "{size}");
        bench.done(&["rm", &folder]);
    }
    // What may be written per day likewise, even if that is nothing.
    let (_, stats) = bench.turn(FIRST, &["--cold-cache", "none", "--cold-cache-writes", "0"]);
    assert_eq!(stats["kv_written_bytes"], 0);
}

/// What a terminal would obey: a title for the window, a cleared screen, the same in one character.
const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}2J";

#[test]
fn words_of_others_do_not_reach_the_terminal_raw() {
    let bench = Bench::tiny("qwen3moe");
    bench.turn("hi", &["--session", "own"]);
    bench.sandbox.tiny("llama", "other.gguf");
    let store = SessionStore::open(bench.path("home/sessions")).unwrap();
    let own = store.get(&SessionName::parse("own").unwrap()).unwrap().unwrap();
    let said = |role: &str| SessionMessage { role: role.into(), content: format!("a{HOSTILE}\nb") };
    let model = format!("m{HOSTILE}\n");
    let hostile = Session {
        model_name: model.clone(),
        model_fingerprint: format!("x{HOSTILE}"),
        messages: vec![said("user"), said(HOSTILE)],
        ..own
    };
    store.put(&SessionName::parse("theirs").unwrap(), &hostile).unwrap();
    bench.done(&["save", "theirs", "theirs.hypura"]);
    let outcomes = [
        bench.done(&["list"]),
        bench.done(&["list", "--json"]),
        bench.done(&["show", "theirs"]),
        bench.done(&["show", "theirs", "--json"]),
        bench.session(&["load", "theirs.hypura", "m.gguf", "--as", "x"]),
        bench.run(&["-p", "hi", "--session", "theirs"]),
    ];
    for outcome in &outcomes {
        let all = outcome.text() + &outcome.stderr;
        let bad = all.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(bad, None, "{outcome:?}");
        assert!(all.contains("owned"), "{outcome:?}");
    }
    let [list, _, show, json, load, run] = &outcomes;
    assert_eq!(list.text().lines().count(), 3, "{list:?}");
    assert!(show.text().contains("]0;owned") && show.text().contains("\nb\n"), "{show:?}");
    // As data it is what it was.
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["model"], model.as_str());
    load.assert_fails(2, &["another model"], "load");
    run.assert_fails(2, &["another model"], "run");
}

#[test]
fn tokens_that_do_not_say_the_text_are_not_used() {
    let bench = Bench::tiny("qwen3moe");
    bench.turn("hi", &["--session", "own"]);
    let store = SessionStore::open(bench.path("home/sessions")).unwrap();
    let own = store.get(&SessionName::parse("own").unwrap()).unwrap().unwrap();
    let cases = [vec![-1; 3], vec![i32::MAX], vec![1, 2, 256], vec![7; 5000]];
    for (index, tokens) in cases.into_iter().enumerate() {
        let name = format!("theirs-{index}");
        let session = Session { tokens, text: String::new(), ..own.clone() };
        store.put(&SessionName::parse(&name).unwrap(), &session).unwrap();
        let outcome = bench.run(&["-p", "hi", "-q", "--session", &name]);
        assert_eq!(outcome.code, Some(0), "{name}: {outcome:?}");
    }
}
