//! Comparisons as people read them.

use std::io::Write;

use super::compare::{Comparison, Floor, Ratio, Spread, Texts, headline};
use super::record::{METRICS, Side, Unit};
use crate::size::show;
use crate::table::{figures, table};

/// Writes everything about each budget, and a summary if there are several.
pub(super) fn print(
    out: &mut impl Write,
    comparisons: &[Comparison],
    notes: &[String],
) -> std::io::Result<()> {
    for comparison in comparisons {
        one(out, comparison)?;
    }
    if comparisons.len() > 1 {
        writeln!(out, "Over memory ({}, tokens/s)", headline(comparisons).1)?;
        write!(out, "{}", table(&summary(comparisons)))?;
        writeln!(out)?;
    }
    for note in notes {
        writeln!(out, "Note: {note}.")?;
    }
    Ok(())
}

fn one(out: &mut impl Write, comparison: &Comparison) -> std::io::Result<()> {
    writeln!(out, "Within {}", show(comparison.memory_bytes))?;
    let mut rows = vec![vec!["median (least..most)".to_owned()]];
    rows[0].extend(comparison.sides.iter().map(|side| side.side.name().to_owned()));
    for metric in &METRICS {
        let values: Vec<_> = comparison.sides.iter().map(|side| side.get(metric)).collect();
        if values.iter().all(Option::is_none) {
            if metric.key == "energy_j" {
                rows.push(vec![metric.label.to_owned(), "not measured".to_owned()]);
            }
            continue;
        }
        let mut row = vec![metric.label.to_owned()];
        row.extend(values.into_iter().map(|v| v.map_or("-".to_owned(), |v| cell(v, metric.unit))));
        rows.push(row);
    }
    write!(out, "{}", table(&rows))?;
    for side in comparison.sides.iter().filter(|side| side.out_of_memory > 0) {
        let (name, times) = (side.side.name(), side.out_of_memory);
        writeln!(out, "  {name} ran out of memory, {times} times: it was ended by the system")?;
    }
    for ratio in &comparison.ratios {
        writeln!(out, "  {}", ratio_sentence(ratio))?;
    }
    if let Some(floor) = &comparison.floor {
        writeln!(out, "  {}", sentence(floor))?;
    }
    for side in &comparison.sides {
        for (name, spread) in &side.engine_floors {
            let name = name.replace('_', " ");
            writeln!(out, "  {}: {name} {}", side.side.name(), cell(*spread, Unit::Plain))?;
        }
    }
    if let Some(error) = comparison.estimate_error {
        writeln!(out, "  the plan's estimate of decode was off by {}", percent(error))?;
    }
    match comparison.texts {
        Texts::Agree => writeln!(out, "  all sides wrote the same text")?,
        Texts::Differ => writeln!(out, "  the sides wrote DIFFERENT texts")?,
        Texts::SplitDiffers => writeln!(
            out,
            "  the texts differ, as each side chose its own micro-batches; compare them with --ubatch"
        )?,
        Texts::GpuDiffers => writeln!(
            out,
            "  the texts differ: a GPU rounds otherwise than a CPU, and from kernel to kernel"
        )?,
        Texts::LayoutNotPlain => {
            writeln!(out, "  the texts were not compared; that needs --layout plain")?;
        }
        Texts::One => {}
    }
    writeln!(out)
}

fn ratio_sentence(ratio: &Ratio) -> String {
    let (label, over, spread) = (ratio.label.trim(), ratio.over.name(), ratio.spread);
    if ratio.resolved {
        return format!("{label}: hypura is {} times {over}", cell(spread, Unit::Plain));
    }
    if spread.runs < 2 {
        let times = figures(spread.median);
        return format!("{label}: hypura is {times} times {over} in one round, which is no proof");
    }
    let range = format!("{}..{}", figures(spread.min), figures(spread.max));
    format!("{label}: hypura over {over} is unresolved ({range} times; the ranges overlap)")
}

/// A floor, what it is made of, and the tighter bound if it is known.
fn sentence(floor: &Floor) -> String {
    let ms = |spread: Spread| format!("{} ms", figures(spread.median * 1e3));
    let mut parts = vec![format!(
        "reads for {} at {} GB/s",
        ms(floor.read_s_per_token),
        figures(floor.bandwidth_bytes_per_s.median / 1e9)
    )];
    parts.extend(floor.copy_s_per_token.map(|copy| format!("copies for {}", ms(copy))));
    parts.extend(floor.compute_s_per_token.map(|compute| format!("computes for {}", ms(compute))));
    let rate = figures(floor.tokens_per_s.median);
    let reached = cell(floor.share, Unit::Share);
    let of = floor.of;
    let alone = match (floor.copy_s_per_token, floor.compute_s_per_token) {
        (None, None) => " of reading alone",
        (Some(_), None) => " of moving alone",
        (_, Some(_)) => "",
    };
    let mut text = format!(
        "{of}: the floor{alone} is {rate} tokens/s (a token {}); {reached} of it was reached",
        parts.join(", ")
    );
    if let Some(bound) = &floor.dependency {
        let (rate, share) = (figures(bound.tokens_per_s.median), cell(bound.share, Unit::Share));
        let more = format!(
            "\n  {of}: without guesses the bound of this routing is {rate} tokens/s; {share} of it \
             was reached"
        );
        text.push_str(&more);
    }
    text
}

fn summary(comparisons: &[Comparison]) -> Vec<Vec<String>> {
    let heads = ["memory", "hypura", "mmap", "ratio", "floor", "reached"];
    let (metric, _) = headline(comparisons);
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for comparison in comparisons {
        let side = |side: Side| {
            let found = comparison.sides.iter().find(|s| s.side == side);
            found.and_then(|s| s.get(metric)).map(|spread| figures(spread.median))
        };
        let is_headline = |r: &&Ratio| r.over == Side::Mmap && r.metric == metric.key;
        let ratio = comparison.ratios.iter().find(is_headline);
        let floor = comparison.floor.as_ref();
        let cells = [
            side(Side::Hypura),
            side(Side::Mmap),
            ratio.map(|r| {
                if r.resolved || r.spread.runs < 2 {
                    figures(r.spread.median)
                } else {
                    "unresolved".to_owned()
                }
            }),
            floor.map(|floor| figures(floor.tokens_per_s.median)),
            floor.map(|floor| cell(Spread { runs: 1, ..floor.share }, Unit::Share)),
        ];
        let mut row = vec![show(comparison.memory_bytes)];
        row.extend(cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned())));
        rows.push(row);
    }
    rows
}

/// `median (min..max)`; the median alone if there is but one run, or none differs.
fn cell(spread: Spread, unit: Unit) -> String {
    let text = |value: f64| match unit {
        Unit::Plain => figures(value),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bytes, below 2^53
        Unit::Bytes => show(value.max(0.0) as u64),
        Unit::Share => format!("{}%", figures(value * 100.0)),
        Unit::Seconds => format!("{} s", figures(value)),
    };
    let (median, min, max) = (text(spread.median), text(spread.min), text(spread.max));
    if spread.runs < 2 || min == max {
        return median;
    }
    format!("{median} ({min}..{max})")
}

/// Signed, of an error.
fn percent(error: Spread) -> String {
    let text = |value: f64| format!("{:+.0}%", value * 100.0);
    if error.runs < 2 {
        return text(error.median);
    }
    format!("{} ({}..{})", text(error.median), text(error.min), text(error.max))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::compare::compare;
    use super::super::record::Record;
    use super::super::record::tests::record;
    use super::*;

    fn runs() -> Vec<Record> {
        let stats = |rate: f64| {
            json!({
                "generated_tokens": 11, "decode_tokens_per_s": rate, "text_sha256": "a",
                "decode_read_bytes": 2_000_000_000_u64, "predicted_tokens_per_s": 5.0,
            })
        };
        let mut records = Vec::new();
        for memory in [2 << 30, 3 << 30] {
            for (round, rate) in [(1, 4.0), (2, 4.5)] {
                records.push(record(round, Side::Hypura, memory, stats(rate)));
                records.push(record(round, Side::Mmap, memory, stats(rate / 4.0)));
            }
        }
        records
    }

    #[test]
    fn a_comparison_is_told_in_full() {
        let records = runs();
        let of = |memory| compare(&records, memory, true, true);
        let mut out = Vec::new();
        let notes = vec!["swap is on".to_owned()];
        print(&mut out, &[of(2 << 30), of(3 << 30)], &notes).unwrap();
        let text = String::from_utf8(out).unwrap();
        for line in [
            "Within 2.00 GiB\n",
            "decode, tokens/s      4.25 (4.00..4.50)  1.06 (1.00..1.12)\n",
            "energy, J                  not measured\n",
            "  decode, tokens/s: hypura is 4.00 times mmap\n",
            "  decode: the floor of reading alone is 5.00 tokens/s (a token reads for 200 ms at 1.00 \
             GB/s); 85.0% (80.0%..90.0%) of it was reached\n",
            "  the plan's estimate of decode was off by +18% (+11%..+25%)\n",
            "  all sides wrote the same text\n",
            "memory    hypura  mmap  ratio  floor  reached\n",
            "3.00 GiB    4.25  1.06   4.00   5.00    85.0%\n",
            "Note: swap is on.\n",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }

    #[test]
    fn a_ratio_that_the_spread_hides_is_called_so() {
        let mut records = runs();
        records[1].stats["decode_tokens_per_s"] = json!(6.0);
        let mut out = Vec::new();
        print(&mut out, &[compare(&records, 2 << 30, true, true)], &[]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("is unresolved (0.667..4.00 times; the ranges overlap)"), "{text}");
    }
}
