//! What `hypura bench` is asked for.

use std::path::PathBuf;

use clap::Args;

use crate::args::{GpuArgs, LayoutArg, RunArgs};
use crate::size;

const MEASURING: &str = "Measuring";
const OUTPUT: &str = "Output";

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// A GGUF file (of a split set the first), or the name of a model in a local store
    pub(crate) model: String,

    /// One more folder with GGUF files that can be named without path and ending
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,

    /// What each side may take, such as 8GiB; several, as in 2GiB,3GiB,4GiB, give a curve
    #[arg(
        long,
        value_name = "SIZES",
        required = true,
        value_delimiter = ',',
        value_parser = size::parse
    )]
    pub(crate) memory: Vec<u64>,

    /// Tokens that prompt and answer may have together [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ctx: Option<u32>,

    /// Compute threads of each side, at most one per core [default: the free cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub(crate) threads: Option<u32>,

    /// Tokens of a prompt that are computed at once, on every side [default: each side's own choice]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub(crate) ubatch: Option<u32>,

    /// How weights that stay in memory lie there, on every side. Rearranged weights are no longer
    /// those of the file: llama.cpp's mmap then needs memory of its own for them
    #[arg(long, value_enum, default_value_t = LayoutArg::Plain)]
    pub(crate) layout: LayoutArg,

    #[command(flatten)]
    pub(crate) gpu: GpuArgs,

    /// What the model continues [default: a passage of about a hundred words]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,

    /// Tokens to generate in each run
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) max_tokens: u32,

    /// How freely tokens are chosen; 0 always takes the likeliest
    #[arg(short, long, value_name = "X", default_value_t = 0.0)]
    #[arg(value_parser = crate::args::non_negative)]
    pub(crate) temperature: f32,

    /// The seed of the random choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u32,

    /// How often each side runs; the sides take turns
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = MEASURING)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Begin each run with nothing of the model in the page cache; this is the default
    #[arg(long, conflicts_with = "warm", help_heading = MEASURING)]
    pub(crate) cold: bool,

    /// Let each run follow one that does not count, under the same limit
    #[arg(long, help_heading = MEASURING)]
    pub(crate) warm: bool,

    /// Also run llama.cpp with the whole model in memory, without a limit
    #[arg(long, help_heading = MEASURING)]
    pub(crate) also_resident: bool,

    /// Let Hypura read experts only when their router has chosen them, never ahead by a guess
    #[arg(long, help_heading = MEASURING)]
    pub(crate) no_speculate: bool,

    /// Run what may take more memory than this machine can spare
    #[arg(long, help_heading = MEASURING)]
    pub(crate) force: bool,

    /// Write all numbers of all runs to this file, as JSON; in a folder, to a new file
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub(crate) json: Option<PathBuf>,

    /// Draw the speeds into this file: a curve over several sizes of memory, or bars
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub(crate) svg: Option<PathBuf>,
}

/// One run of one side: a process of its own, so that its memory is its own too.
#[derive(Debug, Args)]
pub(crate) struct ChildArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,

    /// Where to write what the whole process read and wrote
    #[arg(long, value_name = "FILE")]
    pub(crate) io_json: PathBuf,
}
