//! Conversations that go on: in another process, under another name, on another machine.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::Outcome;
use common::bench::*;
use serde_json::Value;

#[test]
fn a_session_goes_on_in_a_new_process() {
    let bench = Bench::new();
    let session = ["--session", "trip"];
    let (first, begun) = bench.turn(FIRST, &session);
    assert_eq!(begun["kv_tokens_reused"], 0);
    assert_eq!(begun["finish"], "length", "a test of a whole number of tokens");
    let tokens = number(&begun, "prompt_tokens") + 12;
    assert_eq!(number(&bench.shown("trip"), "tokens"), tokens);
    // The last token of an answer is chosen, but not computed.
    let (second, gone_on) = bench.turn(SECOND, &session);
    for field in ["kv_tokens_reused", "kv_known_tokens", "kv_cold_tokens"] {
        assert_eq!(number(&gone_on, field), tokens - 1, "{field}: {gone_on}");
    }
    assert_eq!((number(&gone_on, "kv_hot_tokens"), number(&gone_on, "kv_lost_blocks")), (0, 0));
    assert!(number(&gone_on, "kv_read_bytes") > 0 && number(&gone_on, "kv_written_bytes") > 0);
    // One process that never wrote anything says the same.
    let more = ["--cold-cache", "elsewhere", "--stats-json", "stats.json"];
    let chat = bench.chat(&format!("{FIRST}\n{SECOND}\n"), &more);
    assert_eq!(chat.text(), format!("{first}\n{second}\n"), "{chat:?}");
    assert_eq!(bench.stats()["kv_tokens_reused"], gone_on["kv_tokens_reused"]);
    assert_eq!(bench.stats()["kv_cold_tokens"], 0);
    let shown = bench.shown("trip");
    let said = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
    assert_eq!(
        shown["messages"],
        Value::from(vec![
            said("user", FIRST),
            said("assistant", &first),
            said("user", SECOND),
            said("assistant", &second),
        ])
    );
}

#[test]
fn a_session_without_its_attention_state_is_computed_anew() {
    let bench = Bench::new();
    let session = ["--session", "trip"];
    bench.turn(FIRST, &session);
    // On another machine there is none of it: only the file was copied.
    std::fs::create_dir_all(bench.path("there/sessions")).unwrap();
    std::fs::copy(bench.session_file("trip"), bench.path("there/sessions/trip.session")).unwrap();
    std::fs::remove_dir_all(bench.path("home/cache/kv")).unwrap();
    let (second, stats) = bench.turn(SECOND, &session);
    assert_eq!((number(&stats, "kv_known_tokens"), number(&stats, "kv_lost_blocks")), (0, 0));
    let (there, there_stats) = bench.turn_at("there", SECOND, &session);
    assert_eq!((&there, &there_stats["prompt_tokens"]), (&second, &stats["prompt_tokens"]));
    let shown = bench.shown("trip");
    assert_eq!(shown["messages"][0]["content"], FIRST);
    assert_eq!(shown["messages"][3]["content"], second.as_str());
    // From there on it is known again.
    let (_, stats) = bench.turn("and now", &session);
    assert_eq!(number(&stats, "kv_cold_tokens"), number(&shown, "tokens") - 1, "{stats}");
}

#[test]
fn chats_save_load_and_fork() {
    let bench = Bench::new();
    let script = format!(
        "{FIRST}\n/save kept\n/save kept\n/fork branch\n/fork branch\n{SECOND}\n/load kept\n\
         /load kept\n/load none\n/fork other\nthank you\n/clear\n/load none\n"
    );
    let outcome = bench.chat(&script, &["-q"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for words in [
        "Kept as kept.",
        "hypura: there is a session kept already; name another one",
        "This is branch now.",
        "hypura: this is session branch already",
        "kept: 2 messages so far.",
        "This is kept already.",
        "hypura: there is no session none; hypura session list",
        "This is other now.",
        "Forgotten.",
    ] {
        assert!(outcome.stderr.contains(words), "{words}: {}", outcome.stderr);
    }
    let contents = |name: &str| -> Vec<String> {
        let messages = bench.shown(name)["messages"].as_array().unwrap().clone();
        messages.iter().map(|m| m["content"].as_str().unwrap().to_owned()).collect()
    };
    let (kept, branch) = (contents("kept"), contents("branch"));
    assert_eq!((kept.len(), branch.len(), &kept[..]), (2, 4, &branch[..2]));
    assert_eq!(branch[2], SECOND);
    // What was forgotten is not in the file either.
    assert_eq!(contents("other"), [""; 0]);
    let bytes = std::fs::read(bench.session_file("other")).unwrap();
    assert!(!bytes.windows(4).any(|window| window == b"Rome"));
    // Both go on from what they share, and the branches differ.
    for name in ["kept", "branch"] {
        let tokens = number(&bench.shown(name), "tokens");
        let (_, stats) = bench.turn("and a taxi", &["--session", name]);
        // Another branch may have gone the same way a little further.
        assert!(number(&stats, "kv_tokens_reused") >= tokens - 1, "{name} {tokens}: {stats}");
    }
    // A session that was cleared begins anew, with a system message if there is one.
    bench.turn("hello", &["--session", "other", "--system", "be brief"]);
    assert_eq!(contents("other")[..2], ["be brief", "hello"]);
    let outcome = bench.run(&["-p", "hi", "-q", "--session", "other", "--system", "be long"]);
    assert_eq!(outcome.code, Some(0));
    assert!(outcome.stderr.contains("warning: --system is ignored, as session other"));
    assert_eq!(contents("other")[0], "be brief");
}

#[test]
fn sessions_are_listed_shown_and_removed() {
    let bench = Bench::new();
    let none = bench.done(&["list"]);
    assert!(none.stdout.is_empty() && none.stderr.contains("no sessions yet"), "{none:?}");
    assert_eq!(bench.listed(), Value::Array(Vec::new()));
    bench.turn(FIRST, &["--session", "b"]);
    let (answer, _) = bench.turn(FIRST, &["--session", "a"]);
    let table = bench.done(&["list"]).text();
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
    let tokens = number(&bench.shown("a"), "tokens").to_string();
    let model = "demo-moe-54m-q4_k_m";
    assert_eq!(rows[0], ["name", "model", "messages", "tokens"], "{table}");
    assert_eq!(rows[1..], [["a", model, "2", &tokens], ["b", model, "2", &tokens]], "{table}");
    let listed = bench.listed();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!((&listed[0]["name"], &listed[0]["model"]), (&"a".into(), &model.into()));
    assert_eq!((number(&listed[0], "messages"), listed[0]["tokens"].to_string()), (2, tokens));
    assert!(number(&listed[0], "created_unix_s") <= number(&listed[0], "updated_unix_s"));
    let shown = bench.done(&["show", "a"]);
    assert_eq!(shown.text(), format!("user: {FIRST}\n\nassistant: {answer}\n\n"));
    assert!(shown.stderr.starts_with(&format!("{model}, ")), "{shown:?}");
    let shown = bench.shown("a");
    assert_eq!(shown["model"], model);
    assert_eq!(shown["state"]["model"], shown["model_fingerprint"]);
    // Nobody else can read what was said.
    for file in files_below(&bench.path("home/sessions"))
        .into_iter()
        .chain(files_below(&bench.path("home/cache/kv")))
    {
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
    }
    let removed = bench.done(&["rm", "a"]);
    assert_eq!(removed.stderr, "Forgotten: a.\n");
    assert_eq!(files_below(&bench.path("home/sessions")), [bench.session_file("b")]);
    bench.session(&["rm", "a"]).assert_fails(2, &["no session a", "session list"], "rm twice");
    bench.session(&["show", "a"]).assert_fails(2, &["no session a"], "show after rm");
}

#[test]
fn a_session_moves_to_another_machine() {
    let bench = Bench::new();
    let session = ["--session", "trip"];
    bench.turn(FIRST, &session);
    let tokens = number(&bench.shown("trip"), "tokens");
    bench.session(&["save", "none", "x.hypura"]).assert_fails(2, &["no session none"], "none");
    assert!(!bench.path("x.hypura").exists());
    let saved = bench.done(&["save", "trip", "trip.hypura"]);
    let words = format!("trip.hypura: {} of {tokens} tokens", tokens - 1);
    assert!(saved.stderr.starts_with(&words), "{saved:?}");
    let file = bench.path("trip.hypura");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let again = bench.session(&["save", "trip", "trip.hypura"]);
    again.assert_fails(2, &["trip.hypura", "exists already", "--force"], "save twice");
    bench.done(&["save", "trip", "trip.hypura", "--force"]);
    bench.session(&["save", "trip", "home"]).assert_fails(2, &["home", "is a folder"], "a folder");
    let nowhere = bench.session(&["save", "trip", "no/x"]);
    nowhere.assert_fails(4, &["can't write no/x: no such file"], "no folder");

    let there = |args: &[&str]| {
        let mut command = bench.sandbox.command(&[&["session"], args].concat());
        Outcome::of(command.env("HYPURA_HOME", bench.path("there")).output().unwrap())
    };
    let load = ["load", "trip.hypura", &bench.model];
    let loaded = there(&load);
    assert_eq!(loaded.code, Some(0), "{loaded:?}");
    let words = format!("trip: 2 messages, {} of {tokens} tokens", tokens - 1);
    assert!(loaded.stderr.contains(&words), "{loaded:?}");
    there(&load).assert_fails(2, &["session trip already", "--as", "--force"], "load twice");
    let forced = there(&[&load[..], &["--force"]].concat());
    assert_eq!(forced.code, Some(0), "{forced:?}");
    let other = there(&[&load[..], &["--as", "other"]].concat());
    assert!(other.code == Some(0) && other.stderr.contains("other: 2 messages"), "{other:?}");
    // It goes on there as it does here, and it does so twice.
    let (here_text, here) = bench.turn(SECOND, &session);
    let (there_text, there) = bench.turn_at("there", SECOND, &session);
    assert_eq!(number(&there, "kv_tokens_reused"), tokens - 1);
    assert_eq!(there["kv_cold_tokens"], here["kv_cold_tokens"]);
    assert_eq!(there_text, here_text);
    let (here_text, here) = bench.turn("thank you", &session);
    let (there_text, there) = bench.turn_at("there", "thank you", &session);
    assert_eq!(there["kv_tokens_reused"], here["kv_tokens_reused"]);
    assert_eq!(there_text, here_text);
    // Nobody else is told what a file says of these tokens.
    let (_, stranger) = bench.turn_at("there", FIRST, &["--session", "new"]);
    assert_eq!(stranger["kv_known_tokens"], 0);
}

#[test]
fn a_session_is_saved_without_what_was_said_elsewhere() {
    let bench = Bench::new();
    let script = format!("{FIRST}\n/save kept\n/fork branch\nmy name is Grimaldi\n");
    assert_eq!(bench.chat(&script, &["-q"]).code, Some(0));
    for name in ["kept", "branch"] {
        bench.done(&["save", name, name]);
        let (mut command, home) = (bench.sandbox.command(&[]), bench.path("there"));
        command.args(["session", "load", name, &bench.model]).env("HYPURA_HOME", home);
        let outcome = Outcome::of(command.output().unwrap());
        assert_eq!(outcome.code, Some(0), "{name}: {outcome:?}");
    }
    // Going on needs no more of what is known than a new run would.
    let (here_text, here) = bench.turn(SECOND, &["--session", "branch"]);
    let (there_text, there) = bench.turn_at("there", SECOND, &["--session", "branch"]);
    assert_eq!((&there_text, &there["kv_tokens_reused"]), (&here_text, &here["kv_tokens_reused"]));
}

#[test]
fn files_of_no_use_are_refused() {
    let bench = Bench::new();
    bench.sandbox.tiny("llama", "other.gguf");
    bench.turn(FIRST, &["--session", "trip"]);
    bench.done(&["save", "trip", "good"]);
    let good = std::fs::read(bench.path("good")).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(bench.path(name), bytes).unwrap();
    write("cut", &good[..good.len() - 1]);
    write("start", &good[..20]);
    write("empty", b"");
    write("longer", &[&good[..], b"x"].concat());
    std::fs::create_dir(bench.path("folder")).unwrap();
    let before = files_below(&bench.path("home/sessions"));
    let own = bench.model.as_str();
    for (file, model, words) in [
        ("cut", own, &["cut short"][..]),
        ("start", own, &["cut short after 20 bytes"]),
        ("empty", own, &["cut short after 0 bytes"]),
        ("longer", own, &["after its end"]),
        (own, own, &["no saved session"]),
        ("folder", own, &["can't read folder", "is a folder"]),
        ("none", own, &["can't read none: no such file"]),
        ("good", "other.gguf", &["another model", "demo-moe"]),
    ] {
        let outcome = bench.session(&["load", file, model, "--as", "new"]);
        outcome.assert_fails(2, words, file);
    }
    bench.session(&["load", "good", "none"]).assert_fails(3, &["\"none\""], "no model");
    // Each part of the file is guarded.
    let places = [0, 9, 13, 30, good.len() / 4, good.len() / 2, good.len() - 40, good.len() - 1];
    for place in places {
        let mut flipped = good.clone();
        flipped[place] ^= 0x10;
        write("flipped", &flipped);
        let outcome = bench.session(&["load", "flipped", own, "--as", "new"]);
        outcome.assert_fails(2, &[], &format!("byte {place}"));
    }
    assert_eq!(files_below(&bench.path("home/sessions")), before);
    std::fs::rename(bench.path("good"), bench.path("my trip")).unwrap();
    let outcome = bench.session(&["load", "my trip", own]);
    outcome.assert_fails(2, &["\"my trip\"", "--as"], "a name that is none");
    bench.done(&["load", "my trip", own, "--as", "new"]);
}
