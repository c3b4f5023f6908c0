//! `hypura trace replay`: replacement policies, compared on recorded routing.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use hypura_engine::tier::{
    Replacement, ReplayError, ReplayStats, Sharing, Simulation, Trace, TraceShape,
};
use serde_json::{Value, json};

use super::candidates::{Candidate, candidates};
use super::{
    CacheSize, describe_counting, describe_size, describe_traces, percent, read_all, usage,
};
use crate::chart::{Chart, Series};
use crate::size;
use crate::table::table;

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// Traces of one model, as written by `hypura run MODEL --trace FILE`
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,

    /// How many experts the cache holds: shares of all, or numbers
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = CacheSize::parse)]
    #[arg(default_value = "25%,40%,55%,75%,90%")]
    sizes: Vec<CacheSize>,

    /// Replay the first N tokens of each trace, and don't count them
    #[arg(long, value_name = "N", default_value_t = 0)]
    warm_up: u32,

    /// Bytes of one expert, such as 1.7MiB: shows bytes per token in place of experts per token
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    unit_bytes: Option<u64>,

    /// Also draw hit rates over the size of the cache (SVG) into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let traces = read_all(&args.traces)?;
    let comparison = Comparison::new(&traces, args.warm_up).map_err(usage)?;
    let shape = traces[0].shape();
    let slots: Vec<u32> = args.sizes.iter().map(|size| size.slots(shape)).collect();
    let results = comparison.all_sizes(&slots).map_err(usage)?;
    if let Some(file) = &args.svg {
        std::fs::write(file, draw(&comparison, &results)?)
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let json = to_json(args, &comparison, &results);
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    writeln!(out, "{}", describe_traces(&traces))?;
    for result in &results {
        writeln!(out, "\n{}", describe_size(result.slots, shape))?;
        write!(out, "{}", table(&comparison.rows(result, args.unit_bytes)))?;
        if let Some(best) = result.best() {
            let (name, rate) = (&best.name, percent(best.one_pool.hit_rate()));
            writeln!(out, "  best in one pool: {name}, {rate}")?;
        }
    }
    writeln!(out, "\n{}", describe_counting(&traces, args.warm_up))?;
    writeln!(
        out,
        "One pool: any layer's experts may take any slot; per layer: each has an equal share.\n\
         Belady: what hindsight would have hit, a bound for all policies that don't read ahead."
    )?;
    Ok(())
}

/// Traces that are ready to be replayed.
struct Comparison<'a> {
    traces: &'a [Trace],
    candidates: Vec<Candidate>,
    /// One of each trace.
    alone: Vec<Simulation>,
    /// Of all traces in a row, if there are several.
    in_a_row: Option<Simulation>,
}

/// What all candidates did with one size of the cache.
struct SizeResult {
    slots: u32,
    policies: Vec<PolicyResult>,
    belady: PolicyResult,
    /// Every expert is read once.
    unlimited: PolicyResult,
}

struct PolicyResult {
    name: String,
    family: &'static str,
    one_pool: ReplayStats,
    /// `None` if a layer's share can't hold the experts of one token.
    per_layer: Option<ReplayStats>,
    in_a_row: Option<ReplayStats>,
}

impl SizeResult {
    /// The policy with the fewest misses in one pool.
    fn best(&self) -> Option<&PolicyResult> {
        self.policies.iter().min_by_key(|policy| policy.one_pool.misses)
    }

    fn rows(&self) -> impl Iterator<Item = &PolicyResult> {
        self.policies.iter().chain([&self.belady, &self.unlimited])
    }
}

impl<'a> Comparison<'a> {
    fn new(traces: &'a [Trace], warm_up_tokens: u32) -> Result<Self, ReplayError> {
        let simulation = |trace| Simulation::new(&[trace], warm_up_tokens);
        let all: Vec<&Trace> = traces.iter().collect();
        Ok(Self {
            traces,
            candidates: candidates(traces),
            alone: traces.iter().map(simulation).collect::<Result<_, _>>()?,
            in_a_row: match traces {
                [_] => None,
                _ => Some(Simulation::new(&all, warm_up_tokens)?),
            },
        })
    }

    fn shape(&self) -> TraceShape {
        self.traces[0].shape()
    }

    fn counted_tokens(&self) -> u64 {
        self.alone.iter().map(Simulation::counted_tokens).sum()
    }

    /// Sizes are independent of each other: one thread for each.
    fn all_sizes(&self, slots: &[u32]) -> Result<Vec<SizeResult>, ReplayError> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                slots.iter().map(|&slots| scope.spawn(move || self.at_size(slots))).collect();
            let results = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            results.collect()
        })
    }

    fn at_size(&self, slots: u32) -> Result<SizeResult, ReplayError> {
        let policies = self.candidates.iter().map(|candidate| {
            let run = |index: usize, simulation: &Simulation, sharing| {
                simulation.run(&candidate.alone(self.traces, index), sharing, slots)
            };
            let row = |simulation: &Simulation| {
                let replacement: Option<Replacement> = candidate.in_a_row();
                replacement.map(|r| simulation.run(&r, Sharing::OnePool, slots)).transpose()
            };
            Ok(PolicyResult {
                name: candidate.name.clone(),
                family: candidate.family,
                one_pool: self.sum(|i, s| run(i, s, Sharing::OnePool))?,
                per_layer: if_it_fits(self.sum(|i, s| run(i, s, Sharing::PerLayer)))?,
                in_a_row: self.in_a_row.as_ref().map(row).transpose()?.flatten(),
            })
        });
        let belady = |sharing| self.sum(|_, simulation| simulation.belady(sharing, slots));
        let unlimited = self.sum(|_, simulation| Ok(simulation.unlimited()))?;
        let row = self.in_a_row.as_ref();
        Ok(SizeResult {
            slots,
            policies: policies.collect::<Result<_, ReplayError>>()?,
            belady: PolicyResult {
                name: "Belady".to_owned(),
                family: "Belady",
                one_pool: belady(Sharing::OnePool)?,
                per_layer: if_it_fits(belady(Sharing::PerLayer))?,
                in_a_row: row.map(|s| s.belady(Sharing::OnePool, slots)).transpose()?,
            },
            unlimited: PolicyResult {
                name: "room for all".to_owned(),
                family: "room for all",
                one_pool: unlimited,
                per_layer: Some(unlimited),
                in_a_row: row.map(Simulation::unlimited),
            },
        })
    }

    fn sum(
        &self,
        run: impl Fn(usize, &Simulation) -> Result<ReplayStats, ReplayError>,
    ) -> Result<ReplayStats, ReplayError> {
        let mut sum = ReplayStats::default();
        for (index, simulation) in self.alone.iter().enumerate() {
            sum = sum.plus(run(index, simulation)?);
        }
        Ok(sum)
    }

    fn rows(&self, result: &SizeResult, unit_bytes: Option<u64>) -> Vec<Vec<String>> {
        let tokens = self.counted_tokens();
        let read = |stats: &ReplayStats| match unit_bytes {
            _ if tokens == 0 => "-".to_owned(),
            Some(bytes) => size::show(stats.read_bytes(bytes) / tokens),
            None => format!("{:.2}", stats.misses as f64 / tokens as f64),
        };
        let mut header = vec!["", "one pool", "read/token", "per layer", "read/token"];
        if self.in_a_row.is_some() {
            header.extend(["in a row", "read/token"]);
        }
        let mut rows = vec![header.into_iter().map(String::from).collect::<Vec<_>>()];
        for policy in result.rows() {
            let mut row = vec![policy.name.clone()];
            let columns = [Some(policy.one_pool), policy.per_layer, policy.in_a_row];
            for stats in &columns[..if self.in_a_row.is_some() { 3 } else { 2 }] {
                row.push(percent(stats.and_then(|stats| stats.hit_rate())));
                row.push(stats.as_ref().map_or("-".to_owned(), read));
            }
            rows.push(row);
        }
        rows
    }
}

/// `None` for shares of the slots that are too small: the other columns can be shown.
fn if_it_fits(stats: Result<ReplayStats, ReplayError>) -> Result<Option<ReplayStats>, ReplayError> {
    match stats {
        Err(ReplayError::TooFewSlotsPerLayer { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Hit rates in one pool over the size of the cache: of each family the best member.
fn draw(comparison: &Comparison<'_>, results: &[SizeResult]) -> anyhow::Result<String> {
    let TraceShape { n_layers, n_experts, .. } = comparison.shape();
    let mut results: Vec<&SizeResult> = results.iter().collect();
    results.sort_by_key(|result| result.slots);
    let line = |pick: &dyn Fn(&SizeResult) -> Option<ReplayStats>| -> Vec<(f64, f64)> {
        let point = |result: &&SizeResult| {
            let share = f64::from(result.slots) / f64::from(n_layers * n_experts);
            Some((share * 100.0, pick(result)?.hit_rate()? * 100.0))
        };
        results.iter().filter_map(point).collect()
    };
    let mut best_of_family: Vec<(&'static str, usize, u64)> = Vec::new();
    for (index, candidate) in comparison.candidates.iter().enumerate() {
        let misses = results.iter().map(|result| result.policies[index].one_pool.misses).sum();
        match best_of_family.iter_mut().find(|(family, ..)| *family == candidate.family) {
            Some(best) if best.2 > misses => *best = (candidate.family, index, misses),
            Some(_) => {}
            None => best_of_family.push((candidate.family, index, misses)),
        }
    }
    let mut series: Vec<Series> = best_of_family
        .into_iter()
        .map(|(_, index, _)| Series {
            name: comparison.candidates[index].name.clone(),
            points: line(&|result| Some(result.policies[index].one_pool)),
            dashed: false,
        })
        .collect();
    let points = line(&|result| Some(result.belady.one_pool));
    series.push(Series { name: "Belady".to_owned(), points, dashed: true });
    Chart {
        title: format!("Hits by replacement policy: {}", comparison.shape()),
        x_label: "experts in the cache, % of all".to_owned(),
        y_label: "hit rate, %".to_owned(),
        series,
        x_log2: false,
    }
    .to_svg()
}

fn to_json(args: &ReplayArgs, comparison: &Comparison<'_>, results: &[SizeResult]) -> Value {
    let TraceShape { n_layers, n_experts, top_k } = comparison.shape();
    let tokens = comparison.counted_tokens();
    let stats = |stats: Option<ReplayStats>| {
        stats.map(|stats| {
            let per_token = |x: u64| (tokens > 0).then(|| x as f64 / tokens as f64);
            json!({
                "lookups": stats.lookups,
                "hits": stats.hits,
                "misses": stats.misses,
                "evictions": stats.evictions,
                "hit_rate": stats.hit_rate(),
                "read_experts_per_token": per_token(stats.misses),
                "read_bytes_per_token":
                    args.unit_bytes.and_then(|bytes| per_token(stats.read_bytes(bytes))),
            })
        })
    };
    let policy = |policy: &PolicyResult| {
        json!({
            "name": policy.name,
            "family": policy.family,
            "one_pool": stats(Some(policy.one_pool)),
            "per_layer": stats(policy.per_layer),
            "in_a_row": stats(policy.in_a_row),
        })
    };
    let sizes: Vec<Value> = results
        .iter()
        .map(|result| {
            json!({
                "slots": result.slots,
                "share": f64::from(result.slots) / f64::from(n_layers * n_experts),
                "policies": result.policies.iter().map(policy).collect::<Vec<_>>(),
                "belady": policy(&result.belady),
                "room_for_all": policy(&result.unlimited),
            })
        })
        .collect();
    json!({
        "n_layers": n_layers,
        "n_experts": n_experts,
        "top_k": top_k,
        "traces": args.traces.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "warm_up_tokens": args.warm_up,
        "counted_tokens": tokens,
        "unit_bytes": args.unit_bytes,
        "sizes": sizes,
    })
}
