//! The command line, as it is typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hypura_engine::{LoadOptions, llama};

use crate::size;

/// Runs language models that are larger than the machine's memory.
#[derive(Debug, Parser)]
#[command(name = "hypura", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Say more about what happens (-v, -vv, -vvv)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate text: one answer, or a chat
    Run(RunArgs),
    /// Show what a model is made of, and where its bytes would go
    Inspect(InspectArgs),
    /// Show how fast a model should run here, or on a described machine
    Estimate(EstimateArgs),
    /// Show what this machine is: cores, memory, drive
    Profile(ProfileArgs),
}

/// Which model, and within what.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// A GGUF file (the first one of a split set), or a name known to a local store
    pub(crate) model: String,

    /// Another folder with GGUF files, for names
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,

    /// Memory that the whole process may take, such as 8GiB [default: what is free, less a margin]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) memory: Option<u64>,

    /// Memory that the weights alone may take
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) weights_memory: Option<u64>,

    /// Tokens of context
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ctx: u32,

    /// Tokens that are computed at once in a prompt [default: chosen by the planner]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub(crate) ubatch: Option<u32>,

    /// Compute threads [default: the free cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub(crate) threads: Option<u32>,

    /// How resident weights lie in memory: as in the file, or as the CPU likes it best
    #[arg(long, value_enum, default_value_t = LayoutArg::Fast)]
    pub(crate) layout: LayoutArg,

    /// Fused attention kernels
    #[arg(long, value_enum, default_value_t = FlashArg::Auto)]
    pub(crate) flash_attention: FlashArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LayoutArg {
    Plain,
    Fast,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FlashArg {
    Auto,
    On,
    Off,
}

impl ModelArgs {
    /// What the engine is asked for.
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions {
            memory_bytes: self.memory,
            weights_memory_bytes: self.weights_memory,
            ctx_tokens: self.ctx,
            ubatch_tokens: self.ubatch,
            threads: self.threads,
            layout: match self.layout {
                LayoutArg::Plain => llama::Layout::Plain,
                LayoutArg::Fast => llama::Layout::Fast,
            },
            flash_attention: match self.flash_attention {
                FlashArg::Auto => llama::FlashAttention::Auto,
                FlashArg::On => llama::FlashAttention::On,
                FlashArg::Off => llama::FlashAttention::Off,
            },
            profile_dir: crate::home::cache(),
            ..LoadOptions::default()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// What to say to the model [default: standard input, or a chat on a terminal]
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// Chat, also when standard input is no terminal
    #[arg(short, long, conflicts_with = "prompt")]
    pub(crate) interactive: bool,

    /// Pass the prompt as it is, without the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,

    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,

    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,

    /// End the answer at this text (may be given more than once)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,

    /// Go on after the model's end of text
    #[arg(long)]
    pub(crate) ignore_eos: bool,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,

    /// Write the numbers of the run to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) stats_json: Option<PathBuf>,

    /// Write the router's choices to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// No summary after the answer
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Load with llama.cpp's own loader and nothing of ours, to compare with
    #[arg(long, value_enum, hide = true)]
    pub(crate) baseline: Option<BaselineArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BaselineArg {
    Read,
    Mmap,
}

#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// How freely tokens are chosen; 0 always takes the likeliest
    #[arg(short, long, value_name = "X", default_value_t = 0.8, value_parser = non_negative)]
    pub(crate) temperature: f32,

    /// Choose among the K likeliest tokens; 0 among all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub(crate) top_k: u32,

    /// Choose among the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 0.9, value_parser = share)]
    pub(crate) top_p: f32,

    /// Leave out tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    pub(crate) min_p: f32,

    /// Make repeated tokens less likely; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    pub(crate) repeat_penalty: f32,

    /// The seed of the random choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u32,
}

fn number(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "that is no number".to_owned())?;
    if value.is_finite() { Ok(value) } else { Err("that is no number".to_owned()) }
}

fn non_negative(text: &str) -> Result<f32, String> {
    number(text).and_then(|x| if x >= 0.0 { Ok(x) } else { Err("use 0 or more".to_owned()) })
}

fn positive(text: &str) -> Result<f32, String> {
    number(text).and_then(|x| if x > 0.0 { Ok(x) } else { Err("use more than 0".to_owned()) })
}

fn share(text: &str) -> Result<f32, String> {
    number(text)
        .and_then(|x| if (0.0..=1.0).contains(&x) { Ok(x) } else { Err("use 0 to 1".to_owned()) })
}

impl SamplingArgs {
    pub(crate) fn params(&self) -> llama::SamplerParams {
        llama::SamplerParams {
            temperature: self.temperature,
            top_k: i32::try_from(self.top_k).unwrap_or(i32::MAX),
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed,
            ..llama::SamplerParams::default()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Also list every tensor and where it goes
    #[arg(long)]
    pub(crate) tensors: bool,

    /// Print the plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EstimateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// A machine described by `hypura profile --json`, in place of this one
    #[arg(long, value_name = "FILE")]
    pub(crate) profile: Option<PathBuf>,

    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ProfileArgs {
    /// A large file (a model) on the drive to measure
    pub(crate) file: Option<PathBuf>,

    /// Measure again, whatever is known already
    #[arg(long)]
    pub(crate) fresh: bool,

    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
