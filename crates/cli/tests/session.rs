//! Conversations that go on: in another process, under another name, on another machine.

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Outcome, Sandbox, demo};
use hypura_engine::kv::{Session, SessionMessage, SessionName, SessionStore};
use serde_json::Value;

const FIRST: &str = "book a table in Rome for two";
const SECOND: &str = "for tomorrow at seven";

/// `hypura run` of the demo model, the same each time, restoring whatever is known: whether that
/// is faster depends on the machine.
fn run_args<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["run", model, "--threads", "1", "-t", "0", "-n", "12", "--always-restore"];
    [&fixed[..], more].concat()
}

/// A sandbox, and what is done in it over and over.
struct Bench {
    sandbox: Sandbox,
    model: String,
}

impl Bench {
    fn new() -> Bench {
        Bench { sandbox: Sandbox::new(), model: demo().to_str().unwrap().to_owned() }
    }

    fn tiny(recipe: &str) -> Bench {
        let sandbox = Sandbox::new();
        sandbox.tiny(recipe, "m.gguf");
        Bench { sandbox, model: "m.gguf".to_owned() }
    }

    fn run(&self, more: &[&str]) -> Outcome {
        self.sandbox.run(&run_args(&self.model, more))
    }

    /// One turn of a session; what it said, and its numbers.
    fn turn(&self, prompt: &str, more: &[&str]) -> (String, Value) {
        self.turn_at("home", prompt, more)
    }

    fn turn_at(&self, home: &str, prompt: &str, more: &[&str]) -> (String, Value) {
        let fixed = ["-q", "-p", prompt, "--stats-json", "stats.json"];
        let mut command = self.command(&[&fixed[..], more].concat());
        let outcome = Outcome::of(command.env("HYPURA_HOME", self.path(home)).output().unwrap());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
        (outcome.text(), self.stats())
    }

    fn stats(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("stats.json")).unwrap()).unwrap()
    }

    fn command(&self, more: &[&str]) -> Command {
        self.sandbox.command(&run_args(&self.model, more))
    }

    /// A chat with this script.
    fn chat(&self, script: &str, more: &[&str]) -> Outcome {
        let args = [&["-i"], more].concat();
        self.sandbox.run_with(&run_args(&self.model, &args), script.as_bytes())
    }

    /// `hypura session`.
    fn session(&self, args: &[&str]) -> Outcome {
        self.sandbox.run(&[&["session"], args].concat())
    }

    fn done(&self, args: &[&str]) -> Outcome {
        let outcome = self.session(args);
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
        outcome
    }

    fn shown(&self, name: &str) -> Value {
        serde_json::from_slice(&self.done(&["show", name, "--json"]).stdout).unwrap()
    }

    fn listed(&self) -> Value {
        serde_json::from_slice(&self.done(&["list", "--json"]).stdout).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path(name)
    }

    fn session_file(&self, name: &str) -> PathBuf {
        self.path(&format!("home/sessions/{name}.session"))
    }
}

/// A chat that waits for its next line, and its input.
fn waiting_chat(mut command: Command) -> (Child, std::process::ChildStdin) {
    let mut chat = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = chat.stdin.take().unwrap();
    hear(&mut chat, "/help lists");
    (chat, stdin)
}

/// Waits until a chat says this on standard error.
fn hear(chat: &mut Child, words: &str) {
    let mut said = String::new();
    while !said.contains(words) {
        let mut byte = [0];
        if chat.stderr.as_mut().unwrap().read_exact(&mut byte).is_err() {
            panic!("it ended before it said {words:?}: {said}");
        }
        said.push(byte[0] as char);
    }
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field}: {value}"))
}

/// Names of all files below, by path.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

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
#[ignore = "a block that goes on beyond the session is written whole, and refused when it is read"]
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
            let (text, stats) = bench.turn(prompt, &limit);
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
#[ignore = "nobody looks whether a session's tokens say what its text does"]
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
