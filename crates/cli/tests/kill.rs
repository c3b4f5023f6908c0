//! `kill -9` while attention state is written: at whatever moment, what is left is sound, the next
//! start works and says what it would have said, and nothing grows beyond its limit.
//!
//! `HYPURA_KILLS=500 cargo test --release -p hypura --test kill` does it more often;
//! `scripts/kill.sh 500` is the same.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::Sandbox;
use hypura_engine::kv::decode;
use hypura_testkit::Rng;

/// How often, if `HYPURA_KILLS` doesn't say.
const KILLS: u64 = 16;
/// Room for about one conversation and a half.
const CAP_BYTES: u64 = 1536 << 10;

struct Scene {
    sandbox: Sandbox,
    model: PathBuf,
    prompt: String,
    more: String,
}

impl Scene {
    fn new() -> Scene {
        let sandbox = Sandbox::new();
        let model = sandbox.tiny("qwen3moe", "tiny.gguf");
        let words = |from: usize, n: usize| {
            (from..from + n).map(|i| format!("w{} ", i * 7919 % 1000)).collect::<String>()
        };
        let prompt = words(0, 60);
        let more = prompt.clone() + &words(100, 20);
        Scene { sandbox, model, prompt, more }
    }

    fn args<'a>(&'a self, prompt: &'a str, cold: &'a str, stats: &'a str) -> Vec<&'a str> {
        let model = self.model.to_str().unwrap();
        let settings = [
            "run",
            model,
            "--raw",
            "-t",
            "0",
            "-n",
            "100",
            "--ignore-eos",
            "-q",
            "--layout",
            "plain",
            "--threads",
            "2",
            "--ubatch",
            "32",
            "--kv-block",
            "16",
            "--always-restore",
        ];
        let mut args = settings.to_vec();
        args.extend(["--cold-cache", cold, "--cold-cache-size", "1536KiB"]);
        args.extend(["--stats-json", stats, "-p", prompt]);
        args
    }

    /// A run to its end: the text, and how many tokens of the prompt were known.
    fn whole(&self, prompt: &str, cold: &Path) -> (String, u64) {
        let stats = self.sandbox.path("stats.json");
        let outcome =
            self.sandbox.run(&self.args(prompt, cold.to_str().unwrap(), stats.to_str().unwrap()));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let stats: serde_json::Value =
            serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
        let known = stats["kv_tokens_reused"].as_u64().unwrap();
        (String::from_utf8_lossy(&outcome.stdout).into_owned(), known)
    }

    /// A run that is killed after a while, or ends before.
    fn killed(&self, prompt: &str, cold: &Path, after: Duration) {
        let stats = self.sandbox.path("killed.json");
        let mut child = self
            .sandbox
            .command(&self.args(prompt, cold.to_str().unwrap(), stats.to_str().unwrap()))
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        let _ = child.kill();
        child.wait().unwrap();
    }
}

/// Files of blocks by name.
fn blocks(cold: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(cold) else { return BTreeMap::new() };
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "kv"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect()
}

fn bytes_in(cold: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(cold) else { return 0 };
    entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// The position of a block, from its name.
fn position_of(name: &str) -> u64 {
    name.split('-').nth(2).unwrap().parse().unwrap()
}

#[test]
fn nothing_is_lost_or_wrong_after_a_kill() {
    let scene = Scene::new();
    let kills = std::env::var("HYPURA_KILLS").map_or(KILLS, |n| n.parse().unwrap());
    let reference = scene.sandbox.path("reference");
    let begin = Instant::now();
    scene.whole(&scene.prompt, &reference);
    let duration = begin.elapsed();
    let sound = blocks(&reference);
    assert!(sound.len() > 10);

    // What is said next depends on how much of what was said before has to be computed again, which
    // rounds differently; so it is compared with a run that knows just as much, from sound files.
    let mut expected: HashMap<u64, String> = HashMap::new();
    let mut rng = Rng::new(11);
    let (mut partly, grown) = (0, scene.sandbox.path("grown"));
    for kill in 0..kills {
        let after = duration.mul_f64(rng.next_u64() as f64 / u64::MAX as f64 * 1.1);
        let cold = scene.sandbox.path(&format!("cold-{kill}"));
        scene.killed(&scene.prompt, &cold, after);
        assert!(bytes_in(&cold) <= CAP_BYTES, "{kill}");
        for (name, bytes) in blocks(&cold) {
            assert!(sound.get(&name) == Some(&bytes), "{kill}: {name} is not what was computed");
        }
        let (text, known) = scene.whole(&scene.more, &cold);
        let expected = expected.entry(known).or_insert_with(|| {
            let some = scene.sandbox.path(&format!("some-{known}"));
            std::fs::create_dir(&some).unwrap();
            for (name, bytes) in sound.iter().filter(|(name, _)| position_of(name) < known) {
                std::fs::write(some.join(name), bytes).unwrap();
            }
            let (text, as_known) = scene.whole(&scene.more, &some);
            assert_eq!(as_known, known);
            text
        });
        assert!(text == *expected, "{kill}: another answer after {known} known tokens");
        partly += u64::from(known > 0);
        let names: Vec<String> = std::fs::read_dir(&cold)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        assert!(!names.iter().any(|name| name.starts_with("tmp-")), "{kill}: {names:?}");
        assert!(bytes_in(&cold) <= CAP_BYTES, "{kill}");
        std::fs::remove_dir_all(&cold).unwrap();

        // And a folder that lives through all of them, with less room than it would like.
        scene.killed(&format!("{kill} {}", scene.more), &grown, after);
        assert!(bytes_in(&grown) <= CAP_BYTES, "{kill}");
        for (name, bytes) in blocks(&grown) {
            assert!(decode(&bytes).is_ok(), "{kill}: {name} is damaged");
        }
    }
    assert!(partly > 0, "no kill left anything to go on with");
    scene.whole(&scene.more, &grown);
}
