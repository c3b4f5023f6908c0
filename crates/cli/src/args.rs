//! The command line, as it is typed.

mod gpu;
mod kv;
mod serve;
mod session;

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hypura_engine::{LoadOptions, io, llama};

use crate::commands::bench::{BenchArgs, ChildArgs};
use crate::commands::iobench::IobenchArgs;
use crate::commands::library::{ListArgs, PullArgs};
use crate::commands::optimize::OptimizeArgs;
use crate::commands::trace::TraceArgs;
use crate::size;

pub(crate) use gpu::GpuArgs;
pub(crate) use kv::KvArgs;
pub(crate) use serve::{LogFormat, ServeArgs};
pub(crate) use session::{SessionArgs, SessionCommand};

const EXAMPLES: &str = "\
Examples:
  hypura run model.gguf                             chat
  hypura run model.gguf -p \"Tell me a story\"        one answer
  hypura run model.gguf --memory 8GiB < prompt.txt  within 8 GiB, prompt from a file
  hypura run model.gguf --session trip              a chat that goes on next time
  hypura serve --memory 8GiB                        for Ollama's, OpenAI's, Anthropic's clients
  hypura inspect model.gguf --memory 8GiB           where its bytes would be

Exit codes: 0 done, 1 internal error, 2 wrong usage or too small a budget, 3 no sound model,
4 input or output failed, 130 interrupted.";

/// Runs language models that are larger than the machine's memory.
#[derive(Debug, Parser)]
#[command(name = "hypura", version, about, disable_help_subcommand = true)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Say more about what happens; -vv and -vvv say still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is wrong with a command line, in one sentence; `None` when help or the version was asked
/// for, which is no mistake.
pub(crate) fn mistake(error: &clap::Error) -> Option<String> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return None;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Some("no command was given; hypura --help lists them".to_owned());
    }
    // clap renders paragraphs: what is wrong, tips, the usage, where to find help.
    let rendered = error.render().to_string();
    let mut paragraphs = rendered.split("\n\n");
    let line = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut sentence = line(paragraphs.next().unwrap_or_default().trim_start_matches("error: "));
    for tip in paragraphs.filter_map(|p| p.trim_start().strip_prefix("tip: ")) {
        sentence.push_str("; ");
        sentence.push_str(&line(tip));
    }
    sentence.push_str("; see --help");
    Some(sentence)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate text: one answer, or a chat
    #[command(allow_negative_numbers = true)]
    Run(RunArgs),
    /// Serve models to Ollama's, OpenAI's and Anthropic's clients
    Serve(Box<ServeArgs>),
    /// Fetch a model from Hugging Face
    Pull(PullArgs),
    /// List the models on this machine
    List(ListArgs),
    /// Show what a model is made of, and where its bytes would go
    Inspect(InspectArgs),
    /// Show how fast a model should run here, or on a described machine
    Estimate(EstimateArgs),
    /// Show what this machine is: cores, memory, drive
    Profile(ProfileArgs),
    /// Measure a model side by side with plain llama.cpp, under the same memory limit
    #[command(allow_negative_numbers = true)]
    Bench(BenchArgs),
    /// Measure how fast a drive reads, over the size of reads and how many there are at once
    Iobench(IobenchArgs),
    /// Conversations that were kept: list, show, save to a file, load from one, remove
    Session(SessionArgs),
    /// Learn from the routing of earlier runs: replacement policies, predictions
    Trace(TraceArgs),
    /// Make a copy of a model that streams faster here: experts in blocks, laid out for this CPU
    Optimize(OptimizeArgs),
    /// One side of a comparison
    #[command(hide = true, allow_negative_numbers = true)]
    BenchChild(ChildArgs),
}

impl Command {
    /// How a server writes what happens; `None` for other commands.
    pub(crate) fn log_format(&self) -> Option<LogFormat> {
        match self {
            Command::Serve(args) => Some(args.log_format),
            _ => None,
        }
    }
}

/// Which model, and within what.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// A GGUF file (of a split set the first), or the name of a model in a local store: Hypura's
    /// own models folder, Ollama's store, the Hugging Face cache
    pub(crate) model: String,

    /// One more folder with GGUF files that can be named without path and ending
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,

    /// What the whole process may take, such as 8GiB or 500M [default: what is free, less a margin]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = MEMORY)]
    pub(crate) memory: Option<u64>,

    /// What the weights alone may take of it [default: whatever is left]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = MEMORY)]
    pub(crate) weights_memory: Option<u64>,

    /// Tokens that prompt and answer may have together; the model's own limit caps it [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = MEMORY)]
    pub(crate) ctx: Option<u32>,

    /// Tokens of a prompt that are computed at once [default: chosen by the planner]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192), help_heading = COMPUTING)]
    pub(crate) ubatch: Option<u32>,

    /// Compute threads, at most one per core [default: the free cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512), help_heading = COMPUTING)]
    pub(crate) threads: Option<u32>,

    /// How weights that stay in memory lie there: rearranged for this CPU, or plain as in the
    /// file, which with one --ubatch gives the same text at every --memory
    #[arg(long, value_enum, default_value_t = LayoutArg::Fast, help_heading = COMPUTING)]
    pub(crate) layout: LayoutArg,

    #[command(flatten)]
    pub(crate) gpu: GpuArgs,

    #[command(flatten)]
    pub(crate) kv: KvArgs,

    /// Whether attention is computed by the fused kernel
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = FlashArg::Auto, help_heading = COMPUTING)]
    pub(crate) flash_attention: FlashArg,
}

const MEMORY: &str = "Memory";
const COMPUTING: &str = "Computing";
const SAMPLING: &str = "Choosing tokens";

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

impl LayoutArg {
    pub(crate) fn layout(self) -> llama::Layout {
        match self {
            LayoutArg::Plain => llama::Layout::Plain,
            LayoutArg::Fast => llama::Layout::Fast,
        }
    }
}

impl FlashArg {
    pub(crate) fn flash_attention(self) -> llama::FlashAttention {
        match self {
            FlashArg::Auto => llama::FlashAttention::Auto,
            FlashArg::On => llama::FlashAttention::On,
            FlashArg::Off => llama::FlashAttention::Off,
        }
    }
}

impl ModelArgs {
    /// Tokens of context that are asked for.
    pub(crate) fn ctx_tokens(&self) -> u32 {
        self.ctx.unwrap_or_else(|| LoadOptions::default().ctx_tokens)
    }

    /// What the engine is asked for.
    pub(crate) fn load_options(&self) -> LoadOptions {
        let mut options = LoadOptions {
            memory_bytes: self.memory,
            weights_memory_bytes: self.weights_memory,
            ctx_tokens: self.ctx_tokens(),
            ubatch_tokens: self.ubatch,
            threads: self.threads,
            layout: self.layout.layout(),
            flash_attention: self.flash_attention.flash_attention(),
            kv_type_k: self.kv.type_k(),
            kv_type_v: self.kv.type_v(),
            kv: self.kv.options(),
            profile_dir: crate::home::cache(),
            history_dir: crate::home::data().map(|data| data.join("history")),
            ..LoadOptions::default()
        };
        self.gpu.set(&mut options);
        options
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// What to say to the model [default: standard input; a chat if that is a terminal]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,

    /// Chat, even if standard input is no terminal: one message per line
    #[arg(short, long, conflicts_with = "prompt")]
    pub(crate) interactive: bool,

    /// Let the model continue the prompt as it stands, without its chat template
    #[arg(long, conflicts_with = "interactive")]
    pub(crate) raw: bool,

    /// What the model is told before the conversation (its system message)
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,

    /// Go on with the conversation of this name, or begin one; it is kept after each answer
    #[arg(long, value_name = "NAME", conflicts_with_all = ["raw", "baseline"])]
    pub(crate) session: Option<String>,

    /// Tokens of an answer at most [default: until the model ends it, or the context is full]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32))]
    pub(crate) max_tokens: Option<u32>,

    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,

    /// Go on after the model's end of text
    #[arg(long)]
    pub(crate) ignore_eos: bool,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,

    /// Write the numbers of the run to this file, as JSON; in a chat those of the last answer
    #[arg(long, value_name = "FILE")]
    pub(crate) stats_json: Option<PathBuf>,

    /// Read experts only when their router has chosen them, never ahead by a guess
    #[arg(long)]
    pub(crate) no_speculate: bool,

    /// Neither use nor keep the history of which experts were used in earlier runs, and fill no spare
    /// memory with others
    #[arg(long)]
    pub(crate) no_history: bool,

    /// How streamed weights are read: by threads, through io_uring, or through io_uring where the
    /// system allows it
    #[arg(long, value_enum, default_value_t = ReaderArg::Pread, help_heading = COMPUTING)]
    pub(crate) reader: ReaderArg,

    /// Reads under way at a time
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) read_depth: Option<u32>,

    /// Also write what each layer computed and missed to the --stats-json file
    #[arg(long, hide = true, requires = "stats_json")]
    pub(crate) segments: bool,

    /// Write which experts the router chose to this file; only while experts are streamed
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Leave out the summary after an answer
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Load with llama.cpp's own loader and nothing of ours, to compare with
    #[arg(long, value_enum, hide = true)]
    pub(crate) baseline: Option<BaselineArg>,

    /// With a GPU, let llama.cpp's own loader leave all experts to the CPU
    #[arg(long, hide = true, requires = "baseline")]
    pub(crate) baseline_experts_on_cpu: bool,

    /// With a GPU, let llama.cpp's own loader give it this many layers, and the CPU the others
    #[arg(
        long,
        value_name = "N",
        hide = true,
        requires = "baseline",
        conflicts_with = "baseline_experts_on_cpu"
    )]
    pub(crate) baseline_gpu_layers: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BaselineArg {
    Read,
    Mmap,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ReaderArg {
    Auto,
    Uring,
    Pread,
}

impl ReaderArg {
    pub(crate) fn kind(self) -> io::EngineKind {
        match self {
            ReaderArg::Auto => io::EngineKind::Auto,
            ReaderArg::Uring => io::EngineKind::Uring,
            ReaderArg::Pread => io::EngineKind::Pread,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// How freely tokens are chosen; 0 always takes the likeliest
    #[arg(short, long, value_name = "X", default_value_t = 0.8, value_parser = non_negative, help_heading = SAMPLING)]
    pub(crate) temperature: f32,

    /// Choose among the K likeliest tokens; 0 among all
    #[arg(long, value_name = "K", default_value_t = 40, help_heading = SAMPLING)]
    pub(crate) top_k: u32,

    /// Choose among the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 0.9, value_parser = share, help_heading = SAMPLING)]
    pub(crate) top_p: f32,

    /// Leave out tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share, help_heading = SAMPLING)]
    pub(crate) min_p: f32,

    /// Make repeated tokens less likely; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive, help_heading = SAMPLING)]
    pub(crate) repeat_penalty: f32,

    /// The seed of the random choice
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = SAMPLING)]
    pub(crate) seed: u32,
}

fn number(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "use a number".to_owned())?;
    if value.is_finite() { Ok(value) } else { Err("use a finite number".to_owned()) }
}

pub(crate) fn non_negative(text: &str) -> Result<f32, String> {
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

    /// Also draw the plan as a picture (SVG) into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    /// Print the plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EstimateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Routing of other prompts, recorded by `hypura run --trace`: which experts are found in
    /// memory is then replayed, not assumed; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Vec<PathBuf>,

    /// Measure the drive and the speed of computing now, whatever is known of them
    #[arg(long, conflicts_with = "profile")]
    pub(crate) probe: bool,

    /// Estimate for the machine that this file describes; made by `hypura profile MODEL --json`
    #[arg(long, value_name = "FILE")]
    pub(crate) profile: Option<PathBuf>,

    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ProfileArgs {
    /// A large file, such as a model: the drive that it lies on is measured by reading it
    pub(crate) file: Option<PathBuf>,

    /// Measure again what was measured before
    #[arg(long)]
    pub(crate) fresh: bool,

    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
