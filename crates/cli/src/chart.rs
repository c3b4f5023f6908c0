//! Charts as SVG files: lines over a quantity, and bars in groups.
//!
//! Text stays text, the background is white (readable on a dark page too), and the same numbers
//! give the same file, byte for byte.

use std::ops::Range;

use anyhow::{Context, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::table::figures;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The size of every chart, in pixels; a legend comes on top of the width.
const WIDTH: u32 = 720;
const HEIGHT: u32 = 420;
const MARGIN: u32 = 14;
/// About the width of a character of the legend, in pixels.
const CHAR_WIDTH: u32 = 7;
const LEGEND_LINE: i32 = 22;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(0x1a, 0x1a, 0x1a);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
/// Told apart with every common kind of colour vision, and on white (Okabe and Ito's palette, 2008,
/// without its yellow).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x66, 0x66, 0x66),
];

/// Lines over one quantity. The vertical axis begins at zero.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) series: Vec<Series>,
    /// Whether each step along the horizontal axis doubles; all `x` must be above zero then.
    pub(crate) x_log2: bool,
}

/// A line of a [`Chart`].
pub(crate) struct Series {
    pub(crate) name: String,
    /// As (x, y), from left to right.
    pub(crate) points: Vec<(f64, f64)>,
    /// For bounds and estimates, beside what was measured.
    pub(crate) dashed: bool,
}

/// Bars in groups, one colour for each series. The vertical axis begins at zero.
pub(crate) struct BarChart {
    pub(crate) title: String,
    pub(crate) y_label: String,
    /// What stands below each group.
    pub(crate) groups: Vec<String>,
    pub(crate) series: Vec<BarSeries>,
}

/// The bars of one colour: one in each group, or none where there is no value.
pub(crate) struct BarSeries {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<f64>>,
}

impl Chart {
    /// Draws it.
    ///
    /// # Errors
    /// If there is no point at all, a number is not finite or negative, or an `x` of a logarithmic
    /// axis is not above zero.
    pub(crate) fn to_svg(&self) -> anyhow::Result<String> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        ensure!(points().next().is_some(), "there is nothing to draw");
        for &(x, y) in points() {
            ensure!(x.is_finite() && y.is_finite() && y >= 0.0, "({x}, {y}) can't be drawn");
            ensure!(!self.x_log2 || x > 0.0, "{x} has no place on a logarithmic axis");
        }
        let place = |x: f64| if self.x_log2 { x.log2() } else { x };
        let x_range = padded(points().map(|&(x, _)| place(x)));
        let y_range = 0.0..top(points().map(|&(_, y)| y));
        let names: Vec<&str> = self.series.iter().map(|series| series.name.as_str()).collect();
        drawing(&self.title, &names, |plot, legend| {
            let mut chart = ChartBuilder::on(plot)
                .margin(MARGIN)
                .x_label_area_size(46)
                .y_label_area_size(62)
                .build_cartesian_2d(x_range.clone(), y_range.clone())?;
            let mut mesh = chart.configure_mesh();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most 12
            let x_labels = if self.x_log2 {
                (x_range.end - x_range.start).ceil().min(12.0) as usize
            } else {
                9
            };
            mesh.x_labels(x_labels.max(2)).y_labels(8);
            let x_text = |x: &f64| number(if self.x_log2 { x.exp2() } else { *x });
            let y_text = |y: &f64| number(*y);
            mesh.x_label_formatter(&x_text).y_label_formatter(&y_text);
            mesh.x_desc(&self.x_label).y_desc(&self.y_label);
            style(&mut mesh);
            mesh.draw()?;
            for (i, series) in self.series.iter().enumerate() {
                let points: Vec<_> = series.points.iter().map(|&(x, y)| (place(x), y)).collect();
                let line = line_style(i);
                if series.dashed {
                    chart.draw_series(DashedLineSeries::new(points.clone(), 7, 5, line))?;
                } else {
                    chart.draw_series(LineSeries::new(points.clone(), line))?;
                }
                for point in points {
                    let at = chart.backend_coord(&point);
                    // Points are drawn as pixels of the whole picture.
                    marker(plot, i, relative(plot, at))?;
                }
                let y = legend_y(i);
                let stroke = [(0, y), (24, y)];
                if series.dashed {
                    for x in [0, 10, 20] {
                        legend.draw(&PathElement::new([(x, y), (x + 5, y)], line))?;
                    }
                } else {
                    legend.draw(&PathElement::new(stroke, line))?;
                }
                marker(legend, i, (12, y))?;
            }
            Ok(())
        })
    }
}

impl BarChart {
    /// Draws it.
    ///
    /// # Errors
    /// If there is no value at all, a number is not finite or negative, or a series has more values
    /// than there are groups.
    pub(crate) fn to_svg(&self) -> anyhow::Result<String> {
        let values = || self.series.iter().flat_map(|series| series.values.iter().flatten());
        ensure!(values().next().is_some(), "there is nothing to draw");
        for value in values() {
            ensure!(value.is_finite() && *value >= 0.0, "{value} can't be drawn");
        }
        let groups = self.groups.len();
        ensure!(self.series.iter().all(|s| s.values.len() <= groups), "a bar has no group");
        let names: Vec<&str> = self.series.iter().map(|series| series.name.as_str()).collect();
        // Of the width that a group has, a fifth is left free.
        let width = 0.8 / self.series.len() as f64;
        drawing(&self.title, &names, |plot, legend| {
            let mut chart = ChartBuilder::on(plot)
                .margin(MARGIN)
                .x_label_area_size(34)
                .y_label_area_size(62)
                .build_cartesian_2d(0.0..groups as f64, 0.0..top(values().copied()))?;
            let mut mesh = chart.configure_mesh();
            let y_text = |y: &f64| number(*y);
            mesh.disable_x_mesh().x_labels(0).y_labels(8).y_label_formatter(&y_text);
            mesh.y_desc(&self.y_label);
            style(&mut mesh);
            mesh.draw()?;
            let below = text_style(13).pos(Pos::new(HPos::Center, VPos::Top));
            let above = text_style(11).pos(Pos::new(HPos::Center, VPos::Bottom));
            for (group, label) in self.groups.iter().enumerate() {
                let (x, y) = relative(plot, chart.backend_coord(&(group as f64 + 0.5, 0.0)));
                plot.draw(&Text::new(label.as_str(), (x, y + 9), below.clone()))?;
            }
            for (i, series) in self.series.iter().enumerate() {
                let fill = colour(i).filled();
                for (group, value) in series.values.iter().enumerate() {
                    let Some(value) = *value else { continue };
                    let left = group as f64 + 0.1 + width * i as f64;
                    let corners = [(left, 0.0), (left + width, value)];
                    chart.draw_series([Rectangle::new(corners, fill)])?;
                    let top = chart.backend_coord(&(left + width / 2.0, value));
                    let (x, y) = relative(plot, top);
                    plot.draw(&Text::new(number(value), (x, y - 3), above.clone()))?;
                }
                let y = legend_y(i);
                legend.draw(&Rectangle::new([(6, y - 6), (18, y + 6)], fill))?;
            }
            Ok(())
        })
    }
}

/// The card, the title and the names of the series; `draw` fills the plot on the left, and puts each
/// series' sign before its name, at the height of [`legend_y`].
fn drawing(
    title: &str,
    names: &[&str],
    draw: impl FnOnce(&Area<'_>, &Area<'_>) -> Result<(), Box<dyn std::error::Error>>,
) -> anyhow::Result<String> {
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let longest = u32::try_from(longest).unwrap_or(u32::MAX);
    let legend_width = (longest.min(60) * CHAR_WIDTH + 50).max(90);
    let lines = i32::try_from(names.len()).context("too many series")?;
    let legend_height = u32::try_from(legend_y(lines as usize)).unwrap_or(0);
    let size = (WIDTH + legend_width, HEIGHT.max(legend_height + 3 * MARGIN));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = || -> Result<(), Box<dyn std::error::Error>> {
            root.fill(&WHITE)?;
            let heading = text_style(17).pos(Pos::new(HPos::Left, VPos::Top));
            root.draw(&Text::new(title, (MARGIN.cast_signed(), MARGIN.cast_signed()), heading))?;
            let (_, below) = root.split_vertically(2 * MARGIN + 8);
            let (plot, legend) = below.split_horizontally(WIDTH);
            let label = text_style(13).pos(Pos::new(HPos::Left, VPos::Center));
            for (i, name) in names.iter().enumerate() {
                legend.draw(&Text::new(*name, (32, legend_y(i)), label.clone()))?;
            }
            draw(&plot, &legend)?;
            root.present()?;
            Ok(())
        };
        drawn().map_err(|error| anyhow!("can't draw the chart: {error}"))?;
    }
    Ok(svg)
}

/// Axes without ornament.
fn style<X, Y>(mesh: &mut plotters::chart::MeshStyle<'_, '_, X, Y, SVGBackend<'_>>)
where
    X: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
{
    mesh.light_line_style(TRANSPARENT).bold_line_style(GRID).axis_style(INK);
    mesh.label_style(text_style(12)).axis_desc_style(text_style(13));
}

fn text_style(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

fn colour(series: usize) -> RGBColor {
    COLOURS.get(series % COLOURS.len()).copied().unwrap_or(INK)
}

fn line_style(series: usize) -> ShapeStyle {
    colour(series).stroke_width(2)
}

/// A series' own mark: shapes and colours have no common period, so 21 series differ.
fn marker(
    area: &Area<'_>,
    series: usize,
    at: (i32, i32),
) -> Result<(), Box<dyn std::error::Error>> {
    let fill = colour(series).filled();
    match series % 3 {
        0 => area.draw(&Circle::new(at, 4, fill))?,
        1 => area.draw(&TriangleMarker::new(at, 5, fill))?,
        _ => area.draw(&Rectangle::new([(at.0 - 3, at.1 - 3), (at.0 + 3, at.1 + 3)], fill))?,
    }
    Ok(())
}

/// A place in the picture as a place in one of its areas.
fn relative(area: &Area<'_>, at: (i32, i32)) -> (i32, i32) {
    let (x, y) = area.get_base_pixel();
    (at.0 - x, at.1 - y)
}

/// Where in the legend the name of a series stands.
fn legend_y(series: usize) -> i32 {
    2 * MARGIN.cast_signed() + LEGEND_LINE * i32::try_from(series).unwrap_or(i32::MAX / 64)
}

/// From the least to the greatest value, and a little more on both sides.
fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    let pad = if high > low { (high - low) * 0.03 } else { (high.abs() * 0.1).max(0.5) };
    low - pad..high + pad
}

/// The end of an axis that begins at zero.
fn top(values: impl Iterator<Item = f64>) -> f64 {
    let high = values.fold(0.0, f64::max);
    if high > 0.0 { high * 1.08 } else { 1.0 }
}

/// A number for people, without zeros at its end.
fn number(value: f64) -> String {
    let text = figures(value);
    if !text.contains('.') {
        return text;
    }
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)], x_log2: bool) -> Chart {
        let series =
            |name: &str, dashed| Series { name: name.to_owned(), points: points.to_vec(), dashed };
        Chart {
            title: "Speed <over> memory".to_owned(),
            x_label: "GiB".to_owned(),
            y_label: "tokens/s".to_owned(),
            series: vec![series("hypura", false), series("floor & more", true)],
            x_log2,
        }
    }

    #[test]
    fn lines_are_drawn_as_svg_with_text() {
        let drawn = chart(&[(1.0, 2.0), (2.0, 3.5), (4.0, 9.0)], false);
        let svg = drawn.to_svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for text in ["Speed &lt;over&gt; memory", "hypura", "floor &amp; more", "tokens/s", "GiB"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert!(svg.contains("polyline"), "{svg}");
        // A mark for each point of both lines, and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 4);
        assert_eq!(svg, drawn.to_svg().unwrap(), "the same numbers, the same file");
    }

    #[test]
    fn a_logarithmic_axis_is_labelled_by_powers_of_two() {
        let svg = chart(&[(64.0, 1.0), (256.0, 2.0), (1024.0, 3.0)], true).to_svg().unwrap();
        let texts: Vec<&str> = svg.lines().map(str::trim).collect();
        for label in ["64", "256", "1024"] {
            assert!(texts.contains(&label), "{label}: {svg}");
        }
    }

    #[test]
    fn one_point_is_enough_and_none_is_not() {
        assert!(chart(&[(3.0, 0.0)], false).to_svg().is_ok());
        let refused = |points: &[(f64, f64)], log2| {
            chart(points, log2).to_svg().expect_err("can't be drawn").to_string()
        };
        assert!(refused(&[], false).contains("nothing to draw"));
        assert!(refused(&[(1.0, f64::NAN)], false).contains("NaN"));
        assert!(refused(&[(1.0, -1.0)], false).contains("-1"));
        assert!(refused(&[(0.0, 1.0)], true).contains("logarithmic"));
    }

    #[test]
    fn bars_stand_in_their_groups() {
        let mut bars = BarChart {
            title: "Speed".to_owned(),
            y_label: "tokens/s".to_owned(),
            groups: vec!["3 GiB".to_owned(), "4 GiB".to_owned()],
            series: vec![
                BarSeries { name: "hypura".to_owned(), values: vec![Some(4.0), Some(8.0)] },
                BarSeries { name: "mmap".to_owned(), values: vec![Some(1.25), None] },
            ],
        };
        let svg = bars.to_svg().unwrap();
        for text in ["3 GiB", "4 GiB", "hypura", "mmap", "1.25"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        let blue = svg.matches("<rect").count();
        // The card, three bars, two signs in the legend.
        assert_eq!(blue, 6, "{svg}");
        bars.series[1].values.push(Some(3.0));
        assert!(bars.to_svg().is_err(), "no group for it");
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0001, "0"),
            (0.1234, "0.123"),
            (1.5, "1.5"),
            (12.345, "12.3"),
            (1024.0, "1024"),
            (100.0, "100"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
