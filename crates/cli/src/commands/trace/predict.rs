//! `hypura trace predict`: predictions of the next layer's experts, compared on recorded routing.

use std::io::Write;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use hypura_engine::tier::{PredictionStats, PredictorError, PredictorKind, Trace, evaluate};
use serde_json::{Value, json};

use super::{
    CacheSize, describe_counting, describe_size, describe_traces, percent, read_all, usage,
};
use crate::failure::UsageError;
use crate::table::table;

#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    /// Traces of one model, as written by `hypura run MODEL --trace FILE`
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,

    /// How many experts the cache holds, whose misses should be predicted: a share of all, or a
    /// number
    #[arg(long, value_name = "SIZE", value_parser = CacheSize::parse, default_value = "55%")]
    size: CacheSize,

    /// Let the first N tokens of each trace be learned from, and don't count them
    #[arg(long, value_name = "N", default_value_t = 0)]
    warm_up: u32,

    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What became of one predictor's guesses, for each number of guesses.
struct Row {
    kind: PredictorKind,
    alone: Vec<PredictionStats>,
    in_a_row: Option<Vec<PredictionStats>>,
}

pub(super) fn run(args: &PredictArgs) -> anyhow::Result<()> {
    let traces = read_all(&args.traces)?;
    let shape = traces[0].shape();
    let slots = args.size.slots(shape);
    let k = shape.top_k as usize;
    let ns = [k, k + 2, 2 * k];
    let mut rows = Vec::new();
    for kind in PredictorKind::ALL {
        rows.push(compare(kind, &traces, &ns, args.warm_up, slots)?);
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let json = json!({
            "n_layers": shape.n_layers,
            "n_experts": shape.n_experts,
            "top_k": shape.top_k,
            "traces": args.traces.iter().map(|p| p.display().to_string()).collect::<Vec<_>>(),
            "warm_up_tokens": args.warm_up,
            "slots": slots,
            "predictors": rows.iter().map(to_json).collect::<Vec<_>>(),
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    writeln!(out, "{}", describe_traces(&traces))?;
    writeln!(out, "Misses of a cache of {}", describe_size(slots, shape))?;
    for (index, n) in ns.iter().enumerate() {
        writeln!(out, "\n{n} experts predicted per layer")?;
        write!(out, "{}", table(&cells(&rows, index)))?;
    }
    writeln!(out, "\n{}", describe_counting(&traces, args.warm_up))?;
    writeln!(
        out,
        "found: chosen experts that were predicted; right: predicted ones that were chosen.\n\
         misses found: of those that were not in the cache, the predicted ones, whose reads could\n\
         begin earlier; reads right: of the reads that predictions would cause, the needed ones."
    )?;
    Ok(())
}

fn compare(
    kind: PredictorKind,
    traces: &[Trace],
    ns: &[usize],
    warm_up_tokens: u32,
    slots: u32,
) -> anyhow::Result<Row> {
    let run = |traces: &[&Trace]| {
        let mut predictor = kind.start(traces[0].shape()).map_err(|error| match error {
            PredictorError::TooLarge { .. } => UsageError(error.to_string()).into(),
            error => anyhow!(error),
        })?;
        evaluate(traces, predictor.as_mut(), ns, warm_up_tokens, slots).map_err(usage)
    };
    let mut alone: Vec<PredictionStats> =
        ns.iter().map(|&n| PredictionStats { n, ..PredictionStats::default() }).collect();
    for trace in traces {
        for (sum, stats) in alone.iter_mut().zip(run(&[trace])?) {
            *sum = sum.plus(stats);
        }
    }
    let all: Vec<&Trace> = traces.iter().collect();
    let in_a_row = if traces.len() > 1 { Some(run(&all)?) } else { None };
    Ok(Row { kind, alone, in_a_row })
}

fn cells(rows: &[Row], index: usize) -> Vec<Vec<String>> {
    let header = ["", "found", "right", "misses found", "reads right"];
    let mut cells = vec![header.map(String::from).to_vec()];
    let alone = rows.iter().map(|row| (row.kind.name().to_owned(), Some(&row.alone)));
    let in_a_row = rows.iter().map(|row| {
        let name = format!("{}, in a row", row.kind.name());
        (name, row.in_a_row.as_ref())
    });
    for (name, stats) in alone.chain(in_a_row) {
        let Some(stats) = stats.and_then(|stats| stats.get(index)) else { continue };
        let shares =
            [stats.recall(), stats.precision(), stats.miss_recall(), stats.read_precision()];
        let mut line = vec![name];
        line.extend(shares.map(percent));
        cells.push(line);
    }
    cells
}

fn to_json(row: &Row) -> Value {
    let stats = |stats: &PredictionStats| {
        json!({
            "predicted_per_layer": stats.n,
            "predicted": stats.predicted,
            "chosen": stats.chosen,
            "right": stats.right,
            "recall": stats.recall(),
            "precision": stats.precision(),
            "misses": stats.misses,
            "misses_predicted": stats.misses_predicted,
            "reads": stats.reads,
        })
    };
    let all = |list: &Vec<PredictionStats>| list.iter().map(stats).collect::<Vec<_>>();
    json!({
        "name": row.kind.name(),
        "alone": all(&row.alone),
        "in_a_row": row.in_a_row.as_ref().map(all),
    })
}
