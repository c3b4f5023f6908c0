//! Conversations with the program, for tests.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{Outcome, Sandbox, demo};

pub const FIRST: &str = "book a table in Rome for two";
pub const SECOND: &str = "for tomorrow at seven";

/// `hypura run` of the demo model, the same each time, restoring whatever is known: whether that
/// is faster depends on the machine.
pub fn run_args<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["run", model, "--threads", "1", "-t", "0", "-n", "12", "--always-restore"];
    [&fixed[..], more].concat()
}

/// A sandbox, and what is done in it over and over.
pub struct Bench {
    pub sandbox: Sandbox,
    pub model: String,
}

impl Bench {
    pub fn new() -> Bench {
        Bench { sandbox: Sandbox::new(), model: demo().to_str().unwrap().to_owned() }
    }

    pub fn tiny(recipe: &str) -> Bench {
        let sandbox = Sandbox::new();
        sandbox.tiny(recipe, "m.gguf");
        Bench { sandbox, model: "m.gguf".to_owned() }
    }

    pub fn run(&self, more: &[&str]) -> Outcome {
        self.sandbox.run(&run_args(&self.model, more))
    }

    /// One turn of a session; what it said, and its numbers.
    pub fn turn(&self, prompt: &str, more: &[&str]) -> (String, Value) {
        self.turn_at("home", prompt, more)
    }

    /// The same with a warning that contains these words.
    pub fn warned_turn(&self, words: &str, prompt: &str, more: &[&str]) -> (String, Value) {
        let fixed = ["-q", "-p", prompt, "--stats-json", "stats.json"];
        let outcome = self.run(&[&fixed[..], more].concat());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stderr.starts_with("hypura: warning: "), "{outcome:?}");
        assert!(
            outcome.stderr.contains(words) && outcome.stderr.lines().count() == 1,
            "{outcome:?}"
        );
        (outcome.text(), self.stats())
    }

    pub fn turn_at(&self, home: &str, prompt: &str, more: &[&str]) -> (String, Value) {
        let fixed = ["-q", "-p", prompt, "--stats-json", "stats.json"];
        let mut command = self.command(&[&fixed[..], more].concat());
        let outcome = Outcome::of(command.env("HYPURA_HOME", self.path(home)).output().unwrap());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
        (outcome.text(), self.stats())
    }

    pub fn stats(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("stats.json")).unwrap()).unwrap()
    }

    pub fn command(&self, more: &[&str]) -> Command {
        self.sandbox.command(&run_args(&self.model, more))
    }

    /// A chat with this script.
    pub fn chat(&self, script: &str, more: &[&str]) -> Outcome {
        let args = [&["-i"], more].concat();
        self.sandbox.run_with(&run_args(&self.model, &args), script.as_bytes())
    }

    /// `hypura session`.
    pub fn session(&self, args: &[&str]) -> Outcome {
        self.sandbox.run(&[&["session"], args].concat())
    }

    pub fn done(&self, args: &[&str]) -> Outcome {
        let outcome = self.session(args);
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
        outcome
    }

    pub fn shown(&self, name: &str) -> Value {
        serde_json::from_slice(&self.done(&["show", name, "--json"]).stdout).unwrap()
    }

    pub fn listed(&self) -> Value {
        serde_json::from_slice(&self.done(&["list", "--json"]).stdout).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path(name)
    }

    pub fn session_file(&self, name: &str) -> PathBuf {
        self.path(&format!("home/sessions/{name}.session"))
    }
}

/// A chat that waits for its next line, and its input.
pub fn waiting_chat(mut command: Command) -> (Child, std::process::ChildStdin) {
    let mut chat = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = chat.stdin.take().unwrap();
    hear(&mut chat, "/help lists");
    (chat, stdin)
}

/// Waits until a chat says this on standard error.
pub fn hear(chat: &mut Child, words: &str) {
    let mut said = String::new();
    while !said.contains(words) {
        let mut byte = [0];
        if chat.stderr.as_mut().unwrap().read_exact(&mut byte).is_err() {
            panic!("it ended before it said {words:?}: {said}");
        }
        said.push(byte[0] as char);
    }
}

pub fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field}: {value}"))
}

/// Names of all files below, by path.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
