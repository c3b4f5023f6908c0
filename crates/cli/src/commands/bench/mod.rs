//! `hypura bench`: this program and plain llama.cpp side by side, under the same memory limit.
//!
//! Each run is a process of its own ([`child`]) in a control group of its own ([`fence`]), so that
//! neither side profits from what the other left behind. The sides take turns, for as many rounds as
//! asked; what the drive gives is measured around each turn.

mod args;
mod cache;
mod child;
mod compare;
mod device;
mod energy;
mod fence;
mod picture;
mod print;
mod record;
mod rounds;
mod setup;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use serde_json::json;

use crate::interrupt::Interrupt;

pub(crate) use args::{BenchArgs, ChildArgs};
pub(crate) use child::{ChildFailed, run as run_child};

use compare::{Comparison, compare};
use record::{Outcome, Record, Side};
use setup::Setup;

/// The version of the JSON that is written.
const JSON_VERSION: u32 = 1;

/// A run of Hypura was ended at its limit: it broke its promise.
#[derive(Debug)]
struct LimitBroken(u64);

impl std::fmt::Display for LimitBroken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let budget = crate::size::show(self.0);
        write!(f, "hypura itself ran out of memory within {budget}; this is a bug: report it")
    }
}

impl std::error::Error for LimitBroken {}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let setup = Setup::of(args)?;
    let interrupt = Interrupt::install()?;
    let records = rounds::run(&setup, &interrupt)?;
    let same_text = setup.layout_is_plain();
    let comparisons: Vec<Comparison> = setup
        .memory_bytes
        .iter()
        .map(|&memory| compare(&records, memory, setup.fence.is_some(), same_text))
        .collect();
    // The files first: whoever reads our output may have gone.
    if let Some(path) = &setup.json {
        let text = serde_json::to_string_pretty(&document(&setup, &records, &comparisons)?)?;
        write(path, &(text + "\n"))?;
    }
    if let Some(path) = &args.svg
        && records.iter().any(|run| run.outcome == Outcome::Finished)
    {
        write(path, &picture::draw(&comparisons, &setup.title)?)?;
    }
    print::print(&mut std::io::stdout().lock(), &comparisons, &setup.notes)?;
    let broken = records
        .iter()
        .find(|run| run.side == Side::Hypura && run.outcome == Outcome::OutOfMemory)
        .and_then(|run| run.memory_bytes);
    match broken {
        Some(memory) => Err(LimitBroken(memory).into()),
        None => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

/// Everything there is to know about a comparison, so that somebody else can repeat it.
fn document(
    setup: &Setup<'_>,
    records: &[Record],
    comparisons: &[Comparison],
) -> anyhow::Result<serde_json::Value> {
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let mut document = json!({
        "format": "hypura-bench",
        "version": JSON_VERSION,
        "hypura": env!("CARGO_PKG_VERSION"),
        "taken_unix_s": unix_s(),
        "command": arguments,
        "machine": setup.machine,
        "model": {
            "path": setup.model,
            "name": setup.title,
            "weight_bytes": setup.weight_bytes,
            "file_bytes": setup.file_bytes,
        },
        "settings": {
            "memory_bytes": setup.memory_bytes,
            "rounds": setup.args.rounds,
            "cache": if setup.args.warm { "warm" } else { "cold" },
            "layout": setup.layout(),
            "prompt": setup.prompt(),
            "max_tokens": setup.args.max_tokens,
            "temperature": setup.args.temperature,
            "seed": setup.args.seed,
            "limited_by_control_group": setup.fence.is_some(),
        },
        "notes": setup.notes,
        "comparisons": comparisons,
        "runs": records,
    });
    if let Some(device) = &setup.device {
        document["settings"]["gpu"] = serde_json::to_value(device)?;
    }
    Ok(document)
}

fn unix_s() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// The file to write JSON to: a new one, if a folder was named.
fn json_file(path: &Path, model: &Path) -> PathBuf {
    if !path.is_dir() {
        return path.to_owned();
    }
    let stem = model.file_stem().unwrap_or_default().to_string_lossy();
    path.join(format!("bench-{stem}-{}.json", unix_s()))
}
