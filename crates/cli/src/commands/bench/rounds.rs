//! The runs, one after another.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hypura_engine::io::EngineKind;
use hypura_engine::profile::{Curve, Grid, best, probe_curve};
use serde_json::Value;

use super::cache::forget;
use super::child::{Ended, spawn};
use super::energy::Meter;
use super::record::{DECODE, Outcome, Record, Segment, Side};
use super::setup::Setup;
use crate::failure::Interrupted;
use crate::interrupt::Interrupt;
use crate::output::say;
use crate::size::show;
use crate::table::figures;

/// How long the drive is measured for each of the points tried: half a second in all, before and
/// after each turn.
const PROBE_TIME: Duration = Duration::from_millis(125);

/// Runs every side at every budget, round after round.
pub(super) fn run(setup: &Setup<'_>, interrupt: &Interrupt) -> anyhow::Result<Vec<Record>> {
    let bench = Bench {
        setup,
        interrupt,
        meter: Meter::find(),
        folder: tempfile::tempdir().context("can't make a folder for results")?,
    };
    let mut records = Vec::new();
    let first = probe(&setup.model);
    if first.as_ref().is_some_and(|curve| !curve.direct) {
        tracing::warn!(
            "the drive is measured through the page cache, so the floor may be too high"
        );
    }
    let mut before = bandwidth(first);
    for round in 1..=setup.args.rounds {
        for (turn, &memory) in setup.memory_bytes.iter().enumerate() {
            let first = records.len();
            for &side in &setup.sides {
                // It has no budget, so once a round is enough.
                if side == Side::Resident && turn > 0 {
                    continue;
                }
                let record = bench.one(round, side, memory)?;
                say(bench.progress(&record, memory));
                records.push(record);
            }
            if interrupt.is_pressed() {
                return Err(Interrupted.into());
            }
            // What comes after this turn comes before the next.
            let after = bandwidth(probe(&setup.model));
            let mean = before.zip(after).map(|(before, after)| f64::midpoint(before, after));
            for record in records.iter_mut().skip(first) {
                record.bandwidth_bytes_per_s = mean;
            }
            before = after;
        }
    }
    Ok(records)
}

struct Bench<'a> {
    setup: &'a Setup<'a>,
    interrupt: &'a Interrupt,
    meter: Meter,
    /// For what children leave.
    folder: tempfile::TempDir,
}

impl Bench<'_> {
    /// One run of one side; before it, nothing of the model is in the page cache, or a run that does
    /// not count has filled it.
    fn one(&self, round: u32, side: Side, memory: u64) -> anyhow::Result<Record> {
        let limit_bytes = match (&self.setup.fence, side) {
            (Some(_), Side::Hypura | Side::Mmap) => Some(memory),
            _ => None,
        };
        let enclosure = match (&self.setup.fence, limit_bytes) {
            (Some(fence), Some(bytes)) => {
                Some(fence.enclose(bytes).context("can't make a control group")?)
            }
            _ => None,
        };
        // A page that is cached is charged to the group that read it, so what others read must go
        // in any case.
        if !self.setup.args.warm || enclosure.is_some() {
            for file in &self.setup.files {
                forget(file)?;
            }
        }
        let arguments = arguments(self.setup, side, memory);
        let start = || spawn(&arguments, enclosure.as_ref(), self.folder.path(), self.interrupt);
        if self.setup.args.warm {
            start()?;
        }
        let energy = self.meter.read();
        let ended = start()?;
        let energy_j = energy.and_then(|before| self.meter.joules_since(&before));
        let mut record = Record {
            round,
            side,
            memory_bytes: (side != Side::Resident).then_some(memory),
            limit_bytes,
            command: arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect(),
            outcome: Outcome::OutOfMemory,
            elapsed_s: 0.0,
            segments: Vec::new(),
            stats: Value::Null,
            process_io: None,
            group_peak_bytes: enclosure.as_ref().and_then(super::fence::Enclosure::peak_bytes),
            energy_j,
            bandwidth_bytes_per_s: None,
        };
        if let Ended::Well(finished) = ended {
            record.outcome = Outcome::Finished;
            record.elapsed_s = finished.elapsed.as_secs_f64();
            record.stats = finished.stats;
            record.segments = Segment::take(&mut record.stats);
            record.process_io = finished.io;
        }
        Ok(record)
    }

    fn progress(&self, record: &Record, memory: u64) -> String {
        let result = match (record.outcome, (DECODE.of)(record)) {
            (Outcome::OutOfMemory, _) => "out of memory".to_owned(),
            (_, Some(rate)) => format!("{} tokens/s", figures(rate)),
            (_, None) => "no speed".to_owned(),
        };
        let place = match record.side {
            Side::Resident => "all in memory".to_owned(),
            _ => show(memory),
        };
        let (round, rounds) = (record.round, self.setup.args.rounds);
        format!("round {round} of {rounds}, {place}, {}: {result}", record.side.name())
    }
}

/// What a side's process is told.
fn arguments(setup: &Setup<'_>, side: Side, memory: u64) -> Vec<OsString> {
    let args = setup.args;
    let mut out: Vec<OsString> = vec![setup.model.clone().into_os_string()];
    let mut add = |name: &str, value: &str| out.extend([name.into(), value.into()]);
    add("--prompt", setup.prompt());
    add("--max-tokens", &args.max_tokens.to_string());
    add("--temperature", &args.temperature.to_string());
    add("--seed", &args.seed.to_string());
    add("--layout", &setup.layout());
    let passed = [("--ctx", args.ctx), ("--ubatch", args.ubatch), ("--threads", args.threads)];
    for (name, value) in passed {
        if let Some(value) = value {
            add(name, &value.to_string());
        }
    }
    match side {
        Side::Hypura => add("--memory", &memory.to_string()),
        Side::Mmap => add("--baseline", "mmap"),
        Side::Resident => add("--baseline", "read"),
    }
    out.extend(setup.device_arguments(side));
    // Both sides compute the same number of tokens, whatever they say, and no round knows what an
    // earlier one with the same prompt needed.
    out.extend(
        ["--raw", "--ignore-eos", "--quiet", "--no-history", "--segments"].map(OsString::from),
    );
    if args.no_speculate {
        out.push("--no-speculate".into());
    }
    out
}

/// Bytes in a row, as in an expert or a matrix of a large model.
const PROBE_RUN_BYTES: u64 = 32 << 20;

/// What the drive gives now for reads as streaming makes them; `None` if it can't be measured.
fn probe(model: &Path) -> Option<Curve> {
    let grid = Grid {
        sizes: vec![1 << 20, 4 << 20],
        depths: vec![4, 8],
        time_per_point: PROBE_TIME,
        run_bytes: PROBE_RUN_BYTES,
    };
    match probe_curve(model, &grid, EngineKind::Pread, &mut |_, _| {}) {
        Ok(curve) => Some(curve),
        Err(error) => {
            tracing::warn!("the drive can't be measured: {error}");
            None
        }
    }
}

/// The best of it, in bytes per second; `None` if it was not measured, as with a very small model.
fn bandwidth(curve: Option<Curve>) -> Option<f64> {
    best(&curve?.points).map(|point| point.bytes_per_s)
}
