//! `hypura trace show`: how the tokens of one trace used the experts.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use hypura_engine::tier::LayerSummary;

use super::{percent, read};
use crate::table::table;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// A trace, as written by `hypura run MODEL --trace FILE`
    trace: PathBuf,

    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let trace = read(&args.trace)?;
    let summary = trace.summary();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&summary)?)?;
        return Ok(());
    }
    let (tokens, records) = (summary.tokens, summary.records);
    writeln!(out, "{}; {tokens} tokens, {records} choices of a router", trace.shape())?;
    writeln!(out)?;
    let mut rows = vec![
        ["layer", "used", "busiest quarter", "effective", "repeat", "by chance"]
            .map(String::from)
            .to_vec(),
    ];
    for (index, layer) in summary.layers.iter().enumerate() {
        rows.push(row(index.to_string(), layer));
    }
    rows.push(row("all".to_owned(), &summary.mean));
    write!(out, "{}", table(&rows))?;
    writeln!(
        out,
        "\nused: experts that were chosen at all. busiest quarter: its share of all choices.\n\
         effective: as many equally busy experts would be as hard to guess. repeat: choices that\n\
         the token before had made too; by chance: what that would be if tokens were unrelated."
    )?;
    Ok(())
}

fn row(name: String, layer: &LayerSummary) -> Vec<String> {
    let share = |share| if layer.uses == 0 { "-".to_owned() } else { percent(Some(share)) };
    let number = |x: f64| if layer.uses == 0 { "-".to_owned() } else { format!("{x:.1}") };
    vec![
        name,
        number(layer.experts_used),
        share(layer.busiest_quarter),
        number(layer.effective_experts),
        share(layer.repeats),
        share(layer.repeats_by_chance),
    ]
}
