//! Running the program as a user does.
#![allow(unreachable_pub, dead_code)] // each test binary has this module for itself

pub mod bench;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hypura_testkit::tiny::find;
use serde_json::Value;

/// A folder of its own for a test: the models in it are named without path, and nothing else is
/// read or written. Only one test runs the program at a time: ggml's threads wait by spinning.
pub struct Sandbox {
    folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Sandbox { folder: tempfile::tempdir().unwrap(), _turn: turn }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a tiny model.
    pub fn tiny(&self, recipe: &str, name: &str) -> PathBuf {
        let path = self.path(name);
        let recipe = find(recipe).unwrap();
        recipe.model(recipe.default_mix, 1).unwrap().write(&path).unwrap();
        path
    }

    /// The program in this folder. Nothing of the user's is seen.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hypura"));
        command.args(args).current_dir(self.folder.path());
        command.env("HYPURA_HOME", self.path("home")).env("HOME", self.path("user"));
        for name in ["HF_HOME", "HF_HUB_CACHE", "OLLAMA_MODELS", "HYPURA_LOG"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        Outcome::of(self.command(args).output().unwrap())
    }

    /// Runs with this on standard input.
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Outcome {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // A program that stops reading is a case too.
        let _ = child.stdin.take().unwrap().write_all(input);
        Outcome::of(child.wait_with_output().unwrap())
    }

    /// Runs `hypura run` and returns its numbers.
    pub fn stats(&self, args: &[&str]) -> Value {
        let mut all = vec!["run", "-q", "--stats-json", "stats.json"];
        all.extend(args);
        let outcome = self.run(&all);
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
        let text = std::fs::read_to_string(self.path("stats.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

impl Outcome {
    pub fn of(output: std::process::Output) -> Outcome {
        Outcome {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// It failed with this code and one sentence of ours, which contains these words.
    pub fn assert_fails(&self, code: i32, words: &[&str], what: &str) {
        assert_eq!(self.code, Some(code), "{what}: {self:?}");
        let errors: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("hypura: ")).collect();
        let [sentence] = errors[..] else { panic!("{what}: {self:?}") };
        for word in words {
            assert!(sentence.contains(word), "{what}: no {word:?} in {sentence:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{what}: {self:?}");
        // The sentence says nothing twice.
        let halves = sentence.rsplit_once(": ").unwrap_or((sentence, ""));
        assert!(halves.1.len() < 12 || !halves.0.contains(halves.1), "{what}: {sentence:?}");
    }
}

/// The demo model of the repository.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo-moe-54m-q4_k_m.gguf")
}

/// The size behind an option in an error: `use --memory 64.9MiB or more`.
pub fn suggested(outcome: &Outcome, option: &str) -> String {
    let (_, rest) = outcome.stderr.split_once(&format!("use {option} ")).expect(&outcome.stderr);
    rest.split_whitespace().next().unwrap().to_owned()
}

/// Presses Ctrl-C.
pub fn interrupt(child: &Child) {
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
}
