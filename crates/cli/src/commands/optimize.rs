//! `hypura optimize`: a copy of a model, laid out for streaming and for this CPU.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use hypura_engine::gguf::hot::HotWriteError;
use hypura_engine::gguf::output::OutputError;
use hypura_engine::{
    OptimizeError, OptimizeOptions, OptimizeStep, Optimized, TensorCount, optimize,
};

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Bar;
use crate::size::show;
use crate::table::table;

#[derive(Debug, Args)]
pub(crate) struct OptimizeArgs {
    /// A GGUF file (of a split set the first), or the name of a model in a local store
    pub(crate) model: String,

    /// The file to write
    pub(crate) out: PathBuf,

    /// One more folder with GGUF files that can be named without path and ending
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,

    /// Replace the file if there is one
    #[arg(short, long)]
    pub(crate) force: bool,
}

pub(crate) fn run(args: &OptimizeArgs) -> anyhow::Result<()> {
    let path = crate::home::stores(args.models_dir.as_ref()).resolve(&args.model)?;
    let interrupt = Interrupt::install()?;
    let options = OptimizeOptions { threads: None, replace: args.force };
    let mut now = OptimizeStep::Write;
    let mut bar = Bar::new("Rearranging");
    let result = optimize(&path, &args.out, &options, &mut |step, done, total| {
        if step != now {
            now = step;
            bar.finish();
            bar = Bar::new("Checking what was written");
        }
        bar.update(done, total);
        !interrupt.is_pressed()
    });
    bar.finish();
    let done = match result {
        Err(OptimizeError::Stopped) => return Err(crate::failure::Interrupted.into()),
        result => result?,
    };
    let mut out = std::io::stdout().lock();
    write!(out, "{}", describe(&done))?;
    writeln!(
        out,
        "\n{} ({}) was written and checked: {} blocks, from {} of {}",
        args.out.display(),
        show(done.file_bytes),
        done.blocks,
        path.display(),
        show(done.source_bytes)
    )?;
    Ok(())
}

/// What kind of failure it is.
pub(crate) fn failure_of(error: &OptimizeError) -> Failure {
    match error {
        OptimizeError::Open(_) => Failure::Model,
        OptimizeError::Stopped => Failure::Interrupted,
        OptimizeError::Write(HotWriteError::Output(
            OutputError::Io { .. } | OutputError::DiskFull { .. } | OutputError::Busy { .. },
        ))
        | OptimizeError::Write(HotWriteError::Data { .. })
        | OptimizeError::Source(_)
        | OptimizeError::Changed(_)
        | OptimizeError::Verify(_) => Failure::Io,
        OptimizeError::Write(HotWriteError::NothingHot | HotWriteError::AlreadyHot)
        | OptimizeError::Write(HotWriteError::Output(_)) => Failure::Usage,
        _ => Failure::Internal,
    }
}

fn describe(done: &Optimized) -> String {
    let row = |what: String, count: &TensorCount| {
        vec![what, count.tensors.to_string(), show(count.bytes)]
    };
    let mut rows = vec![["", "tensors", "bytes"].map(String::from).to_vec()];
    for ((ty, is_repacked), count) in &done.streamable {
        let how = if *is_repacked { "rearranged for this CPU" } else { "as they were" };
        rows.push(row(format!("{ty} in blocks, {how}"), count));
    }
    rows.push(row("not streamed, as they were".to_owned(), &done.others));
    table(&rows)
}
