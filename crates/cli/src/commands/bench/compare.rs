//! Runs compared: medians and spreads, ratios, and how near the floor.

use std::collections::BTreeMap;

use serde::Serialize;

use super::record::{DECODE, METRICS, Metric, Outcome, PROMPT, REST, Record, Segment, Side};

/// What floors are of.
const OF_DECODE: &str = "decode";
const OF_REST: &str = "tokens 33 and on";

/// Several runs' values of one number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// How many runs.
    pub(super) runs: usize,
}

impl Spread {
    /// `None` without values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values.get((values.len() - 1) / 2)?, values.get(values.len() / 2)?);
        Some(Spread { median: f64::midpoint(*low, *high), min, max, runs: values.len() })
    }

    fn overlaps(&self, other: &Spread) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// All runs of one side at one budget.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SideSummary {
    pub(super) side: Side,
    /// By [`Metric::key`]; what no run gave is left out.
    pub(super) values: BTreeMap<&'static str, Spread>,
    /// Whatever the engine tells of its own floors, by its names.
    pub(super) engine_floors: BTreeMap<String, Spread>,
    /// Runs that were ended at their limit.
    pub(super) out_of_memory: usize,
}

impl SideSummary {
    fn of(side: Side, runs: &[&Record]) -> SideSummary {
        let spread =
            |of: &dyn Fn(&Record) -> Option<f64>| Spread::of(runs.iter().filter_map(|run| of(run)));
        let keys = runs.iter().filter_map(|run| run.stats.as_object()).flat_map(|o| o.keys());
        let floors = keys.filter(|key| key.starts_with("floor_"));
        SideSummary {
            side,
            values: METRICS
                .iter()
                .filter_map(|metric| Some((metric.key, spread(&metric.of)?)))
                .collect(),
            engine_floors: floors
                .filter_map(|key| Some((key.clone(), spread(&|run| run.stat(key))?)))
                .collect(),
            out_of_memory: runs.iter().filter(|run| run.outcome == Outcome::OutOfMemory).count(),
        }
    }

    pub(super) fn get(&self, metric: &Metric) -> Option<Spread> {
        self.values.get(metric.key).copied()
    }
}

/// One side's number over another's, round by round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Ratio {
    pub(super) metric: &'static str,
    #[serde(skip)]
    pub(super) label: &'static str,
    /// Hypura's number is divided by this side's.
    pub(super) over: Side,
    #[serde(flatten)]
    pub(super) spread: Spread,
    /// Whether the two sides' ranges lie apart, over two rounds or more. If they overlap, the ratio
    /// says nothing.
    pub(super) resolved: bool,
}

/// What the bytes and the arithmetic allow at best: no run can be faster than its reads, its copies
/// to a GPU, or its computing.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Floor {
    /// Of which tokens: all after the first, or those after the cache has filled.
    pub(super) of: &'static str,
    /// Tokens per second if everything else were free.
    pub(super) tokens_per_s: Spread,
    /// Of that, what was reached.
    pub(super) share: Spread,
    pub(super) bandwidth_bytes_per_s: Spread,
    pub(super) read_s_per_token: Spread,
    /// What is copied to a GPU, at the most that the link was measured at; `None` without a GPU or
    /// a measurement.
    pub(super) copy_s_per_token: Option<Spread>,
    /// `None` if no run tells how long it computed: then the floor is that of moving bytes alone.
    pub(super) compute_s_per_token: Option<Spread>,
    /// `None` if no run tells what was computed and missed between routers.
    pub(super) dependency: Option<Bound>,
}

/// How fast a run could have been without guesses, with the misses that it had: no expert can be
/// read before its router has run, so from router to router it takes the time of computing or that
/// of reading what was missing, whichever is longer. Good guesses go past it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Bound {
    pub(super) tokens_per_s: Spread,
    /// Of that, what was reached.
    pub(super) share: Spread,
}

/// Everything about one budget.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Comparison {
    pub(super) memory_bytes: u64,
    pub(super) sides: Vec<SideSummary>,
    pub(super) ratios: Vec<Ratio>,
    pub(super) floor: Option<Floor>,
    /// How far the planner's estimate was from what was measured: 0.1 is 10% too fast.
    pub(super) estimate_error: Option<Spread>,
    pub(super) texts: Texts,
}

/// Whether all runs wrote the same text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Texts {
    Agree,
    Differ,
    /// There is but one.
    One,
    /// Rearranged weights are multiplied in another order where they are streamed.
    LayoutNotPlain,
    /// A GPU rounds otherwise than the CPU does, and one kernel of it otherwise than another.
    GpuDiffers,
    /// Prompts were computed in micro-batches of different sizes, or by different numbers of
    /// threads: sums are rounded differently.
    SplitDiffers,
}

/// Compares the runs at one budget; runs without a budget belong to each. `limited` says whether
/// mmap was held to it, without which there is no ratio; `same_text` whether all sides compute
/// alike.
pub(super) fn compare(
    records: &[Record],
    memory_bytes: u64,
    limited: bool,
    same_text: bool,
) -> Comparison {
    let runs = |side: Side| -> Vec<&Record> {
        let here = |r: &&Record| r.memory_bytes.is_none_or(|bytes| bytes == memory_bytes);
        records.iter().filter(|r| r.side == side).filter(here).collect()
    };
    let sides: Vec<SideSummary> = [Side::Hypura, Side::Mmap, Side::Resident]
        .into_iter()
        .map(|side| (side, runs(side)))
        .filter(|(_, runs)| !runs.is_empty())
        .map(|(side, runs)| SideSummary::of(side, &runs))
        .collect();
    let hypura = runs(Side::Hypura);
    let mut ratios = Vec::new();
    for (over, allowed) in [(Side::Mmap, limited), (Side::Resident, true)] {
        if allowed {
            let others = runs(over);
            ratios.extend(
                [DECODE, REST, PROMPT].iter().filter_map(|m| ratio(m, &hypura, over, &others)),
            );
        }
    }
    let resident = Spread::of(runs(Side::Resident).into_iter().filter_map(DECODE.of));
    Comparison {
        memory_bytes,
        sides,
        ratios,
        floor: floor(&hypura, resident),
        estimate_error: Spread::of(hypura.iter().filter_map(|run| {
            let measured = (DECODE.of)(run).filter(|rate| *rate > 0.0)?;
            Some(run.stat("predicted_tokens_per_s")? / measured - 1.0)
        })),
        texts: if same_text { texts(records, memory_bytes) } else { Texts::LayoutNotPlain },
    }
}

/// The speed that stands for a whole comparison, and what it is called: that which the floors are of.
pub(super) fn headline(comparisons: &[Comparison]) -> (&'static Metric, &'static str) {
    let is_of_rest = |c: &Comparison| c.floor.as_ref().is_some_and(|floor| floor.of == OF_REST);
    match comparisons.iter().any(is_of_rest) {
        true => (&REST, OF_REST),
        false => (&DECODE, OF_DECODE),
    }
}

fn ratio(metric: &Metric, ours: &[&Record], over: Side, others: &[&Record]) -> Option<Ratio> {
    let values = |runs: &[&Record]| Spread::of(runs.iter().filter_map(|run| (metric.of)(run)));
    let (our, other) = (values(ours)?, values(others)?);
    let per_round = ours.iter().filter_map(|run| {
        let other = others.iter().find(|other| other.round == run.round)?;
        let other = (metric.of)(other).filter(|value| *value > 0.0)?;
        Some((metric.of)(run)? / other)
    });
    Some(Ratio {
        metric: metric.key,
        label: metric.label,
        over,
        spread: Spread::of(per_round)?,
        resolved: our.runs.min(other.runs) > 1 && !our.overlaps(&other),
    })
}

/// Per round: the bytes that were read over the bandwidth of that round, those that were copied to a
/// GPU over that of the link, or the time of computing (what the engine tells, or that of llama.cpp's
/// fastest run with everything in memory), whichever is longest. Of the tokens after the 32nd, if the
/// engine tells them apart: it doesn't with a GPU.
fn floor(hypura: &[&Record], resident_tokens_per_s: Option<Spread>) -> Option<Floor> {
    let resident_s = resident_tokens_per_s.filter(|r| r.max > 0.0).map(|r| 1.0 / r.max);
    let has_rest = hypura
        .iter()
        .any(|run| (REST.of)(run).is_some() && run.rest_read_bytes_per_token().is_some())
        && !hypura.iter().any(|run| run.has_gpu());
    let (mut floors, mut shares, mut bandwidths) = (Vec::new(), Vec::new(), Vec::new());
    let (mut reads, mut copies, mut computes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bounds, mut bound_shares) = (Vec::new(), Vec::new());
    for run in hypura {
        let (bytes, rate) = match has_rest {
            true => (run.rest_read_bytes_per_token(), (REST.of)(run)),
            false => (run.read_bytes_per_token(), (DECODE.of)(run)),
        };
        let bandwidth = run.bandwidth_bytes_per_s.filter(|b| *b > 0.0);
        let (Some(bytes), Some(bandwidth), Some(rate)) = (bytes, bandwidth, rate) else {
            continue;
        };
        let read_s = bytes / bandwidth;
        let segments = run.segments(has_rest);
        let per_token = |of: &dyn Fn(&Segment) -> f64| {
            segments.map(|(segments, tokens)| segments.iter().map(of).sum::<f64>() / tokens)
        };
        let compute_s = per_token(&|segment| segment.compute_us / 1e6).or(resident_s);
        let copy_s = run.copy_s_per_token();
        let floor_s = read_s.max(copy_s.unwrap_or(0.0)).max(compute_s.unwrap_or(0.0));
        if floor_s <= 0.0 {
            continue; // nothing was moved, and nobody knows how long it computed
        }
        let bound_s =
            per_token(&|segment| (segment.compute_us / 1e6).max(segment.missing_bytes / bandwidth));
        // Without routers everything is known beforehand.
        let has_experts = segments.is_some_and(|(s, _)| s.iter().any(|s| s.missing_bytes > 0.0));
        if let Some(bound_s) = bound_s.filter(|s| *s > 0.0 && has_experts) {
            bounds.push(1.0 / bound_s);
            bound_shares.push(rate * bound_s);
        }
        floors.push(1.0 / floor_s);
        shares.push(rate * floor_s);
        bandwidths.push(bandwidth);
        reads.push(read_s);
        copies.extend(copy_s);
        computes.extend(compute_s);
    }
    Some(Floor {
        of: if has_rest { OF_REST } else { OF_DECODE },
        tokens_per_s: Spread::of(floors)?,
        share: Spread::of(shares)?,
        bandwidth_bytes_per_s: Spread::of(bandwidths)?,
        read_s_per_token: Spread::of(reads)?,
        copy_s_per_token: Spread::of(copies),
        compute_s_per_token: Spread::of(computes),
        dependency: Spread::of(bounds)
            .zip(Spread::of(bound_shares))
            .map(|(tokens_per_s, share)| Bound { tokens_per_s, share }),
    })
}

fn texts(records: &[Record], memory_bytes: u64) -> Texts {
    let runs: Vec<&Record> = records
        .iter()
        .filter(|run| run.memory_bytes.is_none_or(|bytes| bytes == memory_bytes))
        .filter(|run| run.text().is_some())
        .collect();
    let Some((first, others)) = runs.split_first().filter(|(_, others)| !others.is_empty()) else {
        return Texts::One;
    };
    if others.iter().all(|run| run.text() == first.text()) {
        Texts::Agree
    } else if runs.iter().any(|run| run.has_gpu()) {
        Texts::GpuDiffers
    } else if others.iter().all(|run| run.split() == first.split()) {
        Texts::Differ
    } else {
        Texts::SplitDiffers
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::record::tests::record;
    use super::*;

    fn stats(rate: f64, text: &str) -> Value {
        json!({
            "generated_tokens": 11, "decode_read_bytes": 2_000_000_000_u64, "text_sha256": text,
            "decode_tokens_per_s": rate, "predicted_tokens_per_s": 4.4, "floor_bytes": 7,
        })
    }

    fn runs(hypura: &[f64], mmap: &[f64]) -> Vec<Record> {
        let mut records = Vec::new();
        for (side, rates) in [(Side::Hypura, hypura), (Side::Mmap, mmap)] {
            for (round, rate) in (1..).zip(rates) {
                records.push(record(round, side, 100, stats(*rate, "a")));
            }
        }
        records
    }

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        let spread = |values: &[f64]| {
            let s = Spread::of(values.iter().copied()).unwrap();
            (s.median, s.min, s.max, s.runs)
        };
        assert_eq!(spread(&[3.0]), (3.0, 3.0, 3.0, 1));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (2.0, 1.0, 3.0, 3));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0, 4));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let records = runs(&[4.0, 4.2, 3.6], &[1.0, 1.4, 1.2]);
        let comparison = compare(&records, 100, true, true);
        let [ratio] = &comparison.ratios[..] else { panic!("{comparison:?}") };
        assert!((ratio.spread.median - 3.0).abs() < 1e-9, "{ratio:?}");
        assert!((ratio.spread.max - 4.0).abs() < 1e-9 && ratio.resolved, "{ratio:?}");
        // Ranges that overlap decide nothing, whatever the median says.
        let records = runs(&[4.0, 4.2, 1.3], &[1.0, 1.4, 1.2]);
        assert!(!compare(&records, 100, true, true).ratios[0].resolved);
        // One round has no ranges.
        assert!(!compare(&runs(&[4.0], &[1.0]), 100, true, true).ratios[0].resolved);
        // What was not held to the limit is not comparable.
        assert!(compare(&records, 100, false, true).ratios.is_empty());
        // Another budget's runs are another comparison's.
        assert!(compare(&records, 200, true, true).sides.is_empty());
    }

    #[test]
    fn the_floor_is_what_takes_longer() {
        let mut records = runs(&[4.0, 4.0], &[]);
        // 200 MB per token at 1 GB/s, and then at 0.5 GB/s.
        records[1].bandwidth_bytes_per_s = Some(0.5e9);
        let floor = compare(&records, 100, true, true).floor.unwrap();
        assert_eq!((floor.tokens_per_s.min, floor.tokens_per_s.max), (2.5, 5.0));
        assert_eq!((floor.share.min, floor.share.max), (0.8, 1.6));
        assert_eq!(floor.compute_s_per_token, None);
        // All in memory a token takes 0.25 s: computing is the first round's floor.
        records.push(record(1, Side::Resident, 100, stats(4.0, "a")));
        let floor = compare(&records, 100, true, true).floor.unwrap();
        assert_eq!((floor.tokens_per_s.min, floor.tokens_per_s.max), (2.5, 4.0));
        // The engine's own time goes first; no token can overlap one segment with the next.
        for run in &mut records {
            let segment = |compute_us, missing_bytes| Segment { compute_us, missing_bytes };
            // Of ten tokens: 1 s of computing, then 2 GB of reading at 1 and at 0.5 GB/s.
            run.segments = vec![segment(1e6, 0.0), segment(0.0, 2e9)];
        }
        let floor = compare(&records, 100, true, true).floor.unwrap();
        assert_eq!(floor.compute_s_per_token.map(|s| s.median), Some(0.1));
        let bound = floor.dependency.unwrap();
        assert_eq!((bound.tokens_per_s.min, bound.tokens_per_s.max), (2.0, 1.0 / 0.3));
    }

    #[test]
    fn copies_to_a_gpu_have_a_floor_too() {
        let mut records = runs(&[4.0], &[]);
        let gpu = |link| {
            json!({
                "decode_tier": { "copied_bytes": 2_200_000_000_u64 }, "link_bytes_per_s": link,
            })
        };
        // Numbers of a full cache are not counted with a GPU.
        records[0].stats["decode_rest_tokens_per_s"] = json!(8.0);
        records[0].stats["decode_rest_read_bytes"] = json!(1_000_000_000_u64);
        records[0].stats["gpu"] = gpu(json!(1e9));
        let floor = compare(&records, 100, true, true).floor.unwrap();
        // 220 MB per token, and 200 MB read at the same speed.
        assert_eq!(floor.copy_s_per_token.map(|s| s.median), Some(0.22));
        assert!((floor.tokens_per_s.median - 1.0 / 0.22).abs() < 1e-9, "{floor:?}");
        records[0].stats["gpu"] = gpu(Value::Null);
        let floor = compare(&records, 100, true, true).floor.unwrap();
        assert!(floor.copy_s_per_token.is_none(), "{floor:?}");
    }

    #[test]
    fn texts_and_estimates() {
        let mut records = runs(&[4.0, 4.0], &[1.0]);
        let comparison = compare(&records, 100, true, true);
        assert_eq!(comparison.texts, Texts::Agree);
        assert!((comparison.estimate_error.unwrap().median - 0.1).abs() < 1e-9);
        assert_eq!(comparison.sides[0].engine_floors["floor_bytes"].median, 7.0);
        assert_eq!(compare(&records, 100, true, false).texts, Texts::LayoutNotPlain);
        assert_eq!(compare(&records[..1], 100, true, true).texts, Texts::One);
        records[2].stats["text_sha256"] = json!("b");
        assert_eq!(compare(&records, 100, true, true).texts, Texts::Differ);
        records[0].stats["gpu"] = json!({});
        assert_eq!(compare(&records, 100, true, true).texts, Texts::GpuDiffers);
        records[0].stats["gpu"] = Value::Null;
        records[2].stats["n_ubatch"] = json!(512);
        records[2].stats["threads"] = json!(2);
        assert_eq!(compare(&records, 100, true, true).texts, Texts::SplitDiffers);
    }

    #[test]
    fn the_floor_is_that_of_a_full_cache_if_it_is_known() {
        let mut records = runs(&[4.0], &[]);
        records[0].stats["generated_tokens"] = json!(42);
        records[0].stats["decode_rest_tokens_per_s"] = json!(8.0);
        records[0].stats["decode_rest_read_bytes"] = json!(1_000_000_000_u64);
        let floor = compare(&records, 100, true, true).floor.unwrap();
        assert_eq!((floor.of, floor.tokens_per_s.median), ("tokens 33 and on", 10.0));
        assert!((floor.share.median - 0.8).abs() < 1e-9);
    }
}
