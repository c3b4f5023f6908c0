//! `hypura trace`: what can be learned from the routing of earlier runs.

mod candidates;
mod predict;
mod replay;
mod show;

use std::fmt::Display;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use hypura_engine::tier::{ReplayError, Trace, TraceError, TraceShape};

use crate::failure::{UsageError, reason};

/// A trace of a day's work has a tenth of that; it is held in memory.
const TRACE_BYTES_MAX: u64 = 1 << 30;

/// Experts of all layers together: twenty times what any model has. Simulations remember each one.
const EXPERTS_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(subcommand)]
    command: TraceCommand,
}

#[derive(Debug, Subcommand)]
enum TraceCommand {
    /// Show how a trace's tokens used the experts
    Show(show::ShowArgs),
    /// Compare replacement policies: what a cache of some size would have hit
    Replay(replay::ReplayArgs),
    /// Compare predictions of the next layer's experts
    Predict(predict::PredictArgs),
}

pub(crate) fn run(args: &TraceArgs) -> anyhow::Result<()> {
    match &args.command {
        TraceCommand::Show(args) => show::run(args),
        TraceCommand::Replay(args) => replay::run(args),
        TraceCommand::Predict(args) => predict::run(args),
    }
}

/// A file that is no sound trace.
#[derive(Debug)]
pub(crate) struct UnsoundTrace(String);

impl Display for UnsoundTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnsoundTrace {}

fn read(path: &Path) -> anyhow::Result<Trace> {
    let name = path.display();
    let unsound = |text: String| UnsoundTrace(format!("{name} {text}"));
    let file = File::open(path)
        .map_err(|e| UnsoundTrace(format!("can't open the trace {name}: {}", reason(&e))))?;
    let metadata = file.metadata().with_context(|| format!("can't read {name}"))?;
    if metadata.is_dir() {
        return Err(unsound("is a folder; name a file written by run --trace".into()).into());
    }
    if metadata.len() > TRACE_BYTES_MAX {
        let most = crate::size::show(TRACE_BYTES_MAX);
        return Err(unsound(format!("is too large; at most {most} are read")).into());
    }
    let trace = Trace::read(BufReader::new(file)).map_err(|error| match error {
        TraceError::Io(error) => anyhow::Error::new(error).context(format!("can't read {name}")),
        error => unsound(format!("can't be used: {error}")).into(),
    })?;
    let TraceShape { n_layers, n_experts, .. } = trace.shape();
    if u64::from(n_layers) * u64::from(n_experts) > EXPERTS_MAX {
        let shape = trace.shape();
        return Err(unsound(format!("has {shape}; at most {EXPERTS_MAX} can be replayed")).into());
    }
    if trace.records().next().is_none() {
        return Err(unsound("has no tokens; trace a run that generates some".into()).into());
    }
    Ok(trace)
}

/// Reads traces of one shape.
fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<Trace>> {
    let traces: Vec<Trace> = paths.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    for (trace, path) in traces.iter().zip(paths) {
        let (first, other) = (traces[0].shape(), trace.shape());
        if first != other {
            return Err(UsageError(format!(
                "the traces are of different models: {} has {first}, and {} {other}; replay them \
                 apart",
                paths[0].display(),
                path.display()
            ))
            .into());
        }
    }
    Ok(traces)
}

/// Something that doesn't fit was asked for.
fn usage(error: ReplayError) -> anyhow::Error {
    UsageError(error.to_string()).into()
}

/// How many experts a cache holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum CacheSize {
    /// Share of all experts, 0 to 1.
    Share(f64),
    Slots(u32),
}

impl CacheSize {
    fn parse(text: &str) -> Result<Self, String> {
        let Some(percent) = text.trim().strip_suffix('%') else {
            let slots = text.trim().parse().map_err(|_| "use a share as 40%, or slots as 100")?;
            return Ok(Self::Slots(slots));
        };
        match percent.trim().parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Self::Share(percent / 100.0)),
            _ => Err("use more than 0% and at most 100%".to_owned()),
        }
    }

    fn slots(self, shape: TraceShape) -> u32 {
        let units = shape.n_layers * shape.n_experts;
        match self {
            Self::Slots(slots) => slots,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most `units`
            Self::Share(share) => (f64::from(units) * share).round() as u32,
        }
    }
}

/// `40% of 256 experts, 102 slots`.
fn describe_size(slots: u32, shape: TraceShape) -> String {
    let units = shape.n_layers * shape.n_experts;
    let share = f64::from(slots) / f64::from(units) * 100.0;
    format!("{share:.0}% of {units} experts, {slots} slots")
}

/// `8 layers of 32 experts, 4 per token; 3 traces with 801 tokens`.
fn describe_traces(traces: &[Trace]) -> String {
    let tokens: u64 = traces.iter().map(|trace| trace.summary().tokens).sum();
    let count =
        if traces.len() == 1 { "1 trace".into() } else { format!("{} traces", traces.len()) };
    format!("{}; {count} with {tokens} tokens", traces[0].shape())
}

/// What is counted, and how: below a comparison.
fn describe_counting(traces: &[Trace], warm_up_tokens: u32) -> String {
    let counted = match warm_up_tokens {
        0 => "All tokens count".to_owned(),
        n => format!("Tokens count from number {} of each trace on", u64::from(n) + 1),
    };
    if traces.len() == 1 {
        return format!("{counted}; the start is empty.");
    }
    format!(
        "{counted}; each trace begins empty, and the shares are of\n\
         all traces together. In a row: the traces one after the other, each going on with what\n\
         the one before left."
    )
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_sizes() {
        let shape = TraceShape { n_layers: 8, n_experts: 32, top_k: 4 };
        for (text, slots) in [("40%", 102), ("100 %", 256), ("7", 7), (" 0.4%", 1)] {
            assert_eq!(CacheSize::parse(text).map(|size| size.slots(shape)), Ok(slots), "{text}");
        }
        for text in ["", "%", "-1", "0%", "101%", "NaN%", "1.5", "4GiB"] {
            assert!(CacheSize::parse(text).is_err(), "{text}");
        }
        assert_eq!(describe_size(102, shape), "40% of 256 experts, 102 slots");
    }
}
