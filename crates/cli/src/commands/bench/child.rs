//! One run of one side, as a process of its own: both ends of it.
//!
//! The child is this very program. It waits for a byte on standard input before it does anything,
//! so that it can be put into a control group first; and it ends when standard input does, which it
//! does when the parent ends, however that came about.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::ChildArgs;
use super::fence::Enclosure;
use crate::failure::{Failure, Interrupted};
use crate::interrupt::Interrupt;

/// The hidden command that a child is started with.
pub(super) const COMMAND: &str = "bench-child";

/// How often the parent looks whether the child has ended.
const TICK: Duration = Duration::from_millis(20);

/// The most of a child's words that is looked at, in bytes.
const STDERR_BYTES_MAX: u64 = 64 << 10;

/// What a process moved between memory and storage, from start to end, as the kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessIo {
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
}

/// What became of a child.
pub(super) enum Ended {
    Well(Finished),
    /// The kernel ended it, because its control group had no memory left.
    OutOfMemory,
}

/// A child that has done its work.
pub(super) struct Finished {
    /// What `--stats-json` wrote.
    pub(super) stats: Value,
    /// `None` where the system doesn't say.
    pub(super) io: Option<ProcessIo>,
    pub(super) elapsed: Duration,
}

/// A child that failed, in its own words and with its own exit code.
#[derive(Debug)]
pub(crate) struct ChildFailed {
    pub(crate) failure: Failure,
    sentence: String,
}

impl std::fmt::Display for ChildFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for ChildFailed {}

/// The child's end: runs when it is told to.
pub(crate) fn run(args: &ChildArgs) -> anyhow::Result<()> {
    let mut go = [0];
    if std::io::stdin().read(&mut go).unwrap_or(0) == 0 {
        return Err(Interrupted.into()); // the parent has gone
    }
    let watch = std::thread::Builder::new().name("hypura-watch".into());
    watch
        .spawn(|| {
            // Nothing more is ever written: this returns when the parent's end is closed.
            let _ = std::io::stdin().read(&mut [0]);
            end_at_once();
        })
        .context("can't start a thread")?;
    let result = crate::commands::run::run(&args.run);
    if let Some(io) = process_io() {
        let json = serde_json::to_string(&io)?;
        std::fs::write(&args.io_json, json)
            .with_context(|| format!("can't write {}", args.io_json.display()))?;
    }
    result
}

/// Without waiting for computation that is under way.
fn end_at_once() {
    use rustix::process::{Signal, getpid, kill_process};
    if kill_process(getpid(), Signal::KILL).is_err() {
        std::process::abort();
    }
}

/// See proc_pid_io(5).
fn process_io() -> Option<ProcessIo> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Some(ProcessIo { read_bytes: field("read_bytes:")?, written_bytes: field("write_bytes:")? })
}

/// The parent's end: runs this program with `arguments` (those of `hypura run`), enclosed if so
/// asked, and waits for its end. `folder` is for files that travel between the two.
///
/// # Errors
/// [`ChildFailed`] if it failed, [`Interrupted`] after Ctrl-C; in any case it has ended.
pub(super) fn spawn(
    arguments: &[OsString],
    enclosure: Option<&Enclosure>,
    folder: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<Ended> {
    let program = std::env::current_exe().context("can't find this program")?;
    let (stats, io, words) =
        (folder.join("stats.json"), folder.join("io.json"), folder.join("stderr"));
    for old in [&stats, &io] {
        match std::fs::remove_file(old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("can't remove {}", old.display()));
            }
            _ => {}
        }
    }
    let stderr =
        File::create(&words).with_context(|| format!("can't write {}", words.display()))?;
    let mut command = Command::new(program);
    command.arg(COMMAND).args(arguments);
    command.arg("--stats-json").arg(&stats).arg("--io-json").arg(&io);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr);
    let mut child = Guard(command.spawn().context("can't start a process of this program")?);
    if let Some(enclosure) = enclosure {
        enclosure.enter(child.0.id()).context("can't put a process into its control group")?;
    }
    // Kept open until the child has ended: the child ends when it closes.
    let mut stdin = child.0.stdin.take().context("a process has no standard input")?;
    let start = Instant::now();
    stdin.write_all(b"\n").context("a process ended before it began")?;
    let status = child.wait(interrupt)?;
    let elapsed = start.elapsed();
    drop(stdin);
    if !status.success() {
        if is_killed(status) && enclosure.is_some_and(|e| e.oom_kills().is_some_and(|n| n > 0)) {
            return Ok(Ended::OutOfMemory);
        }
        return Err(failed(status, &words).into());
    }
    let text = std::fs::read_to_string(&stats).context("a process left no numbers")?;
    let stats = serde_json::from_str(&text).context("a process left numbers that are no JSON")?;
    let io = std::fs::read_to_string(&io).ok().and_then(|text| serde_json::from_str(&text).ok());
    Ok(Ended::Well(Finished { stats, io, elapsed }))
}

/// A child that does not outlive this value.
pub(super) struct Guard(pub(super) Child);

impl Guard {
    fn wait(&mut self, interrupt: &Interrupt) -> anyhow::Result<ExitStatus> {
        loop {
            if interrupt.is_pressed() {
                bail!(Interrupted);
            }
            if let Some(status) = self.0.try_wait().context("can't wait for a process")? {
                return Ok(status);
            }
            std::thread::sleep(TICK);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Fails if it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_killed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal() == Some(rustix::process::Signal::KILL.as_raw())
}

fn failed(status: ExitStatus, words: &Path) -> ChildFailed {
    let mut text = Vec::new();
    if let Ok(file) = File::open(words) {
        // What can't be read is missing from the sentence, no more.
        let _ = file.take(STDERR_BYTES_MAX).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let sentence = text.lines().rev().find_map(|line| line.strip_prefix("hypura: "));
    let failure = status.code().map_or(Failure::Internal, Failure::of_code);
    ChildFailed {
        failure,
        sentence: match sentence {
            Some(sentence) => sentence.to_owned(),
            None => format!("a run ended without a word ({status})"),
        },
    }
}
