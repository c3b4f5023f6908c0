//! `hypura iobench`: how fast a drive reads, over the size of reads and how many there are at once.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use hypura_engine::io::EngineKind;
use hypura_engine::profile::{Curve, Grid, Point, StorageError, best, probe_curve};

use super::profile::print_latency;
use super::run::check_writable;
use crate::chart::{Chart, Series};
use crate::failure::UsageError;
use crate::progress::Bar;
use crate::size::show;
use crate::table::table;

#[derive(Debug, Args)]
pub(crate) struct IobenchArgs {
    /// A large file, such as a model; it is only read
    pub(crate) file: PathBuf,

    /// How to read: through io_uring, with a pool of threads, or the first of them that there is
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = EngineArg::Auto)]
    pub(crate) engine: EngineArg,

    /// Time for each point, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 160)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) time: u64,

    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Also draw the curve into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum EngineArg {
    Auto,
    Uring,
    Pread,
}

impl From<EngineArg> for EngineKind {
    fn from(engine: EngineArg) -> EngineKind {
        match engine {
            EngineArg::Auto => EngineKind::Auto,
            EngineArg::Uring => EngineKind::Uring,
            EngineArg::Pread => EngineKind::Pread,
        }
    }
}

pub(crate) fn run(args: &IobenchArgs) -> anyhow::Result<()> {
    if !args.file.is_file() {
        let file = args.file.display();
        return Err(UsageError(format!("{file} is no file; name a large one")).into());
    }
    if let Some(svg) = &args.svg {
        check_writable(svg)?;
    }
    let mut bar = Bar::new("reading");
    let grid = Grid::curve(Duration::from_millis(args.time));
    let mut progress = |done, total| bar.update(done, total);
    let curve = match probe_curve(&args.file, &grid, args.engine.into(), &mut progress) {
        Ok(curve) => curve,
        // It was demanded, and can't be had here.
        Err(StorageError::Engine(error)) => return Err(UsageError(error.to_string()).into()),
        Err(error) => return Err(error).context("the drive can't be measured"),
    };
    bar.finish();
    if curve.points.is_empty() {
        let why = curve.note.unwrap_or_default();
        return Err(UsageError(format!("{why}; name a larger one")).into());
    }
    if let Some(svg) = &args.svg {
        std::fs::write(svg, chart(&curve).to_svg()?)
            .with_context(|| format!("can't write {}", svg.display()))?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&curve)?)?;
        return Ok(());
    }
    Ok(describe(&mut out, &curve)?)
}

/// Sizes or depths that were measured, smallest first.
fn distinct<T: Ord + Copy>(points: &[Point], of: impl Fn(&Point) -> T) -> Vec<T> {
    let values: std::collections::BTreeSet<T> = points.iter().map(of).collect();
    values.into_iter().collect()
}

fn describe(out: &mut impl Write, curve: &Curve) -> std::io::Result<()> {
    let drive = &curve.drive;
    writeln!(
        out,
        "Drive of {} ({}), {} by {}",
        drive.mount.display(),
        drive.fs_type,
        if curve.direct { "direct reads" } else { "reads through the page cache" },
        curve.engine
    )?;
    if let Some(reason) = &curve.direct_refused {
        writeln!(out, "  no direct reads: {reason}")?;
    }
    if let Some(note) = &curve.note {
        writeln!(out, "  {note}")?;
    }
    let depths = distinct(&curve.points, |point| point.depth);
    let mut rows = vec![vec!["MB/s by read size".to_owned()]];
    rows[0].extend(depths.iter().map(|depth| format!("{depth} at a time")));
    for size in distinct(&curve.points, |point| point.read_bytes) {
        let mut row = vec![show(size)];
        for depth in &depths {
            let point = curve.points.iter().find(|p| (p.read_bytes, p.depth) == (size, *depth));
            row.push(point.map_or("-".to_owned(), |p| format!("{:.0}", p.bytes_per_s / 1e6)));
        }
        rows.push(row);
    }
    write!(out, "{}", table(&rows))?;
    if let Some(best) = best(&curve.points) {
        writeln!(
            out,
            "  best: {:.0} MB/s, with {} reads of {} at a time",
            best.bytes_per_s / 1e6,
            best.depth,
            show(best.read_bytes)
        )?;
    }
    print_latency(out, curve.small_read.as_ref())?;
    Ok(())
}

/// Bandwidth over the size of reads, a line for each depth.
fn chart(curve: &Curve) -> Chart {
    let line = |depth: u32| Series {
        name: format!("{depth} at a time"),
        points: curve
            .points
            .iter()
            .filter(|point| point.depth == depth)
            .map(|point| (point.read_bytes as f64 / 1024.0, point.bytes_per_s / 1e9))
            .collect(),
        dashed: false,
    };
    Chart {
        title: format!("Reading from {}", curve.drive.mount.display()),
        x_label: "size of a read, KiB".to_owned(),
        y_label: "GB/s".to_owned(),
        series: distinct(&curve.points, |point| point.depth).into_iter().map(line).collect(),
        x_log2: true,
    }
}
