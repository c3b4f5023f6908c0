//! A plan as a picture (SVG): what the budgets go to, and where the weights are.

use std::fmt::Write;

use hypura_engine::plan::{BudgetRow, Explanation, Tier};

use super::places::Place;
use crate::size::show;

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 24.0;
const BAR_HEIGHT: f64 = 34.0;
const LINE: f64 = 20.0;
/// Told apart with every common kind of colour vision (Okabe and Ito's palette, 2008).
const COLOURS: [&str; 8] =
    ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999"];
const NOTHING: &str = "#e8e8e8";

/// One part of a bar.
struct Segment {
    label: String,
    bytes: u64,
    share: f64,
    colour: &'static str,
}

/// Draws `explained`, and the `places` of its weights; `title` and `speed` are printed above and below.
pub(crate) fn draw(explained: &Explanation, places: &[Place], title: &str, speed: &str) -> String {
    let mut bars = vec![
        ("Where the weights are", places.iter().map(of_place).collect::<Vec<_>>()),
        ("What the memory budget goes to", of_budget(&explained.budget)),
    ];
    if !explained.gpu_budget.is_empty() {
        bars.push(("What the budget of GPU memory goes to", of_budget(&explained.gpu_budget)));
    }
    let mut body = String::new();
    let mut y = MARGIN + 8.0;
    text(&mut body, MARGIN, y, 17, "bold", title);
    for (heading, segments) in bars {
        y += 36.0;
        text(&mut body, MARGIN, y, 14, "bold", heading);
        y += 10.0;
        y = stacked(&mut body, y, &segments);
    }
    y += 30.0;
    text(&mut body, MARGIN, y, 13, "normal", speed);
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

fn of_place(place: &Place) -> Segment {
    let colour = match (place.tier, place.is_gpu) {
        (Tier::Storage, _) => NOTHING,
        (Tier::Resident, false) => COLOURS[0],
        (Tier::Cache, false) => COLOURS[1],
        (Tier::Resident, true) => COLOURS[2],
        (Tier::Cache, true) => COLOURS[3],
    };
    let label = match place.tier {
        Tier::Storage => "on the drive only".to_owned(),
        _ => format!("in {}", place.name()),
    };
    Segment { label, bytes: place.bytes, share: place.share, colour }
}

fn of_budget(rows: &[BudgetRow]) -> Vec<Segment> {
    let colours = COLOURS.iter().cycle();
    let segment = |(row, &colour): (&BudgetRow, &&'static str)| Segment {
        label: row.what.clone(),
        bytes: row.bytes,
        share: row.share,
        colour: if row.what == "unused" { NOTHING } else { colour },
    };
    rows.iter().zip(colours).map(segment).collect()
}

/// A bar of all segments and, below it, what they are. Returns where it ends.
fn stacked(out: &mut String, top: f64, segments: &[Segment]) -> f64 {
    let width = WIDTH - 2.0 * MARGIN;
    let mut x = MARGIN;
    for segment in segments {
        let w = width * segment.share.clamp(0.0, 1.0);
        rectangle(out, (x, top, w, BAR_HEIGHT), segment.colour);
        x += w;
    }
    let mut y = top + BAR_HEIGHT;
    for pair in segments.chunks(2) {
        y += LINE;
        for (column, segment) in pair.iter().enumerate() {
            let x = MARGIN + width / 2.0 * column as f64;
            rectangle(out, (x, y - 10.0, 11.0, 11.0), segment.colour);
            let label = format!(
                "{}: {} ({:.1}%)",
                segment.label,
                show(segment.bytes),
                segment.share * 100.0
            );
            text(out, x + 18.0, y, 13, "normal", &label);
        }
    }
    y
}

fn rectangle(out: &mut String, (x, y, w, h): (f64, f64, f64, f64), colour: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{colour}\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, size: u32, weight: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" font-weight=\"{weight}\" \
         fill=\"#1a1a1a\">{content}</text>"
    );
}

#[cfg(test)]
mod tests {
    use hypura_engine::plan::explain;

    use super::super::places::{places, tests::streamed};
    use super::*;

    /// The sum of the widths of all segments.
    fn widths(svg: &str) -> f64 {
        svg.lines()
            .filter(|line| line.contains("height=\"34.0\""))
            .filter_map(|line| {
                line.split("width=\"").nth(1)?.split('"').next()?.parse::<f64>().ok()
            })
            .sum()
    }

    #[test]
    fn bars_add_up_and_text_is_escaped() {
        let row = |what: &str, bytes, share| BudgetRow { what: what.into(), bytes, share };
        let explained = Explanation {
            budget: vec![row("slots <&>", 3, 0.75), row("unused", 1, 0.25)],
            gpu_budget: Vec::new(),
            roles: Vec::new(),
            pools: Vec::new(),
            tiers: Vec::new(),
            why: Vec::new(),
        };
        let drive = Place { is_gpu: false, tier: Tier::Storage, bytes: 5, share: 1.0 };
        let svg = draw(&explained, &[drive], "a & b", "fast");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a &amp; b") && svg.contains("slots &lt;&amp;&gt;"));
        assert!(svg.contains("on the drive only") && !svg.contains("GPU"));
        let all = widths(&svg);
        assert!((all - 2.0 * (WIDTH - 2.0 * MARGIN)).abs() < 1.0, "{all}");
    }

    #[test]
    fn a_gpu_has_a_bar_of_its_own() {
        let (model, plan) = streamed();
        let explained = explain(&plan, &model);
        let svg = draw(&explained, &places(&explained, &plan), "title", "fast");
        for text in [
            "in GPU memory, always",
            "in GPU memory, as needed",
            "in memory, as needed",
            "on the drive only",
            "What the budget of GPU memory goes to",
            "driver",
        ] {
            assert!(svg.contains(text), "no {text} in {svg}");
        }
        let all = widths(&svg);
        assert!((all - 3.0 * (WIDTH - 2.0 * MARGIN)).abs() < 1.0, "{all}");
    }
}
