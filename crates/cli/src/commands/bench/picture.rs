//! Comparisons as a chart.

use super::compare::{Comparison, Spread, headline};
use super::record::{DECODE, FIRST, Metric, PROMPT, REST, Side};
use crate::chart::{BarChart, BarSeries, Chart, Series};
use crate::size::show;

const GIB: f64 = (1_u64 << 30) as f64;

/// Speed over memory if there are several budgets, bars if there is one.
///
/// # Errors
/// If no run gave a speed.
pub(super) fn draw(comparisons: &[Comparison], model: &str) -> anyhow::Result<String> {
    match comparisons {
        [one] => bars(one, model),
        several => curve(several, model),
    }
}

fn value(comparison: &Comparison, side: Side, metric: &Metric) -> Option<Spread> {
    comparison.sides.iter().find(|summary| summary.side == side)?.get(metric)
}

fn curve(comparisons: &[Comparison], model: &str) -> anyhow::Result<String> {
    let line = |name: &str, dashed: bool, of: &dyn Fn(&Comparison) -> Option<Spread>| Series {
        name: name.to_owned(),
        points: comparisons
            .iter()
            .filter_map(|c| Some((c.memory_bytes as f64 / GIB, of(c)?.median)))
            .collect(),
        dashed,
    };
    let (metric, what) = headline(comparisons);
    let mut series = vec![
        line("hypura", false, &|c| value(c, Side::Hypura, metric)),
        line("llama.cpp, mmap", false, &|c| value(c, Side::Mmap, metric)),
        line("floor", true, &|c| c.floor.as_ref().map(|floor| floor.tokens_per_s)),
        line("llama.cpp, all in memory", true, &|c| value(c, Side::Resident, metric)),
    ];
    series.retain(|series| !series.points.is_empty());
    Chart {
        title: format!("{model}: {what}, over memory"),
        x_label: "memory limit, GiB".to_owned(),
        y_label: "tokens/s".to_owned(),
        series,
        x_log2: false,
    }
    .to_svg()
}

fn bars(comparison: &Comparison, model: &str) -> anyhow::Result<String> {
    let groups: Vec<(&str, &Metric)> = [
        ("decode", &DECODE),
        ("tokens 1 to 32", &FIRST),
        ("tokens 33 and on", &REST),
        ("prompt", &PROMPT),
    ]
    .into_iter()
    .filter(|(_, metric)| value(comparison, Side::Hypura, metric).is_some())
    .collect();
    let series = |name: &str, side| BarSeries {
        name: name.to_owned(),
        values: groups
            .iter()
            .map(|(_, metric)| value(comparison, side, metric).map(|spread| spread.median))
            .collect(),
    };
    let mut all = vec![
        series("hypura", Side::Hypura),
        series("llama.cpp, mmap", Side::Mmap),
        series("llama.cpp, all in memory", Side::Resident),
    ];
    if let Some(floor) = &comparison.floor {
        let of = |group: &str| (group == floor.of).then_some(floor.tokens_per_s.median);
        let values = groups.iter().map(|(group, _)| of(group)).collect();
        all.push(BarSeries { name: "floor".to_owned(), values });
    }
    all.retain(|series| series.values.iter().any(Option::is_some));
    BarChart {
        title: format!("{model} within {}", show(comparison.memory_bytes)),
        y_label: "tokens/s".to_owned(),
        groups: groups.iter().map(|(name, _)| (*name).to_owned()).collect(),
        series: all,
    }
    .to_svg()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::compare::compare;
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn one_budget_gives_bars_and_several_a_curve() {
        let mut records = Vec::new();
        for (memory, rate) in [(2_u64 << 30, 4.0), (3 << 30, 8.0)] {
            let stats = |rate: f64| {
                json!({
                    "generated_tokens": 11, "decode_tokens_per_s": rate,
                    "prompt_tokens_per_s": 40.0, "decode_read_bytes": 1_000_000_000_u64,
                })
            };
            records.push(record(1, Side::Hypura, memory, stats(rate)));
            records.push(record(1, Side::Mmap, memory, stats(rate / 4.0)));
        }
        let of = |memory| compare(&records, memory, true, true);
        let bars = draw(&[of(2 << 30)], "demo").unwrap();
        for text in ["demo within 2.00 GiB", "prompt", "floor", "hypura", "mmap"] {
            assert!(bars.contains(text), "{text}: {bars}");
        }
        assert!(!bars.contains("tokens 33") && !bars.contains("all in memory"), "{bars}");
        let curve = draw(&[of(2 << 30), of(3 << 30)], "demo").unwrap();
        for text in ["decode, over memory", "memory limit, GiB", "floor", "llama.cpp, mmap"] {
            assert!(curve.contains(text), "{text}: {curve}");
        }
        assert!(draw(&[of(1 << 30)], "demo").is_err());
    }
}
