//! Makes GGUF models: tiny random ones, widened trained ones, large random dense ones.
//!
//! Exit codes: 0, 1 when the model can't be made, 2 when the command line is wrong.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use hypura_gguf::GgmlType;
use hypura_testkit::dense::{self, Shape};
use hypura_testkit::tiny::{self, Mix, RECIPES};
use hypura_testkit::widen::{self, Options};
use indicatif::{ProgressBar, ProgressStyle};

/// Makes GGUF models for tests, the demo and benchmarks.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A tiny random model of an architecture.
    Tiny(TinyArgs),
    /// A trained model at K times its feed-forward width that says the same words.
    Widen(WidenArgs),
    /// A large random dense model, by default of 8B shape (4.1 GB).
    Dense(DenseArgs),
}

#[derive(Debug, Args)]
struct TinyArgs {
    /// Which model; see --list.
    #[arg(value_name = "ARCH", required_unless_present = "list", value_parser = parse_recipe)]
    recipe: Option<&'static tiny::Recipe>,
    /// The file to write, or with --split what the files' names start with.
    #[arg(required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Lists the models.
    #[arg(long, exclusive = true)]
    list: bool,
    /// Types of the matrices: F32, F16, Q8_0, Q4_0, Q4_K, Q4_K_M or MXFP4 [default: as usual for
    /// the architecture].
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_mix)]
    mix: Option<Mix>,
    /// Writes a split set of so many files.
    #[arg(long, value_name = "FILES")]
    split: Option<usize>,
    /// Seed of the weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
struct WidenArgs {
    /// The trained model.
    model: PathBuf,
    /// The file to write.
    out: PathBuf,
    /// How many times the old width; 1 only requantizes.
    #[arg(long, value_name = "K")]
    times: u32,
    /// Type of the widened matrices [default: that of --requantize, or that of each].
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    ffn_type: Option<GgmlType>,
    /// Type of all matrices, norms and routers excepted [default: that of each].
    #[arg(long, value_name = "TYPE", value_parser = parse_type)]
    requantize: Option<GgmlType>,
    /// Seed of the new weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
struct DenseArgs {
    /// The file to write.
    out: PathBuf,
    /// Layers.
    #[arg(long, default_value_t = Shape::default().n_layer)]
    layers: u32,
    /// Width of the residual stream.
    #[arg(long, default_value_t = Shape::default().n_embd)]
    embd: u32,
    /// Width of the feed-forward network.
    #[arg(long, default_value_t = Shape::default().n_ff)]
    ff: u32,
    /// Attention heads.
    #[arg(long, default_value_t = Shape::default().n_head)]
    heads: u32,
    /// Heads of K and V.
    #[arg(long, default_value_t = Shape::default().n_head_kv)]
    kv_heads: u32,
    /// Tokens of the vocabulary.
    #[arg(long, default_value_t = Shape::default().n_vocab)]
    vocab: u32,
    /// Tokens of context that the file promises.
    #[arg(long, default_value_t = Shape::default().n_ctx)]
    ctx: u32,
    /// Type of all matrices.
    #[arg(long = "type", value_name = "TYPE", default_value = "Q4_0", value_parser = parse_type)]
    ty: GgmlType,
    /// Seed of the weights.
    #[arg(long, default_value_t = Shape::default().seed)]
    seed: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Tiny(args) => run_tiny(&args),
        Command::Widen(args) => run_widen(&args),
        Command::Dense(args) => run_dense(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_tiny(args: &TinyArgs) -> anyhow::Result<()> {
    if args.list {
        for recipe in RECIPES {
            println!("{:16} {:7} {}", recipe.name, recipe.default_mix.name(), recipe.summary);
        }
        return Ok(());
    }
    let recipe = args.recipe.context("name a model; --list shows them")?;
    let out = args.out.as_deref().context("name a file to write")?;
    let model = recipe.model(args.mix.unwrap_or(recipe.default_mix), args.seed)?;
    match args.split {
        None => {
            model.write(out)?;
            report(out);
        }
        Some(n_files) => model.write_split(out, n_files)?.iter().for_each(|path| report(path)),
    }
    Ok(())
}

fn run_widen(args: &WidenArgs) -> anyhow::Result<()> {
    let options = Options {
        times: args.times,
        ffn_type: args.ffn_type,
        requantize: args.requantize,
        seed: args.seed,
    };
    let bar = Bar::new("widening");
    widen::widen(&args.model, &args.out, &options, &mut |done, total| bar.show(done, total))?;
    bar.finish();
    report(&args.out);
    Ok(())
}

fn run_dense(args: &DenseArgs) -> anyhow::Result<()> {
    let shape = Shape {
        n_layer: args.layers,
        n_embd: args.embd,
        n_ff: args.ff,
        n_head: args.heads,
        n_head_kv: args.kv_heads,
        n_vocab: args.vocab,
        n_ctx: args.ctx,
        ty: args.ty,
        seed: args.seed,
    };
    let bar = Bar::new("writing");
    dense::write(&args.out, &shape, &mut |done, total| bar.show(done, total))?;
    bar.finish();
    report(&args.out);
    Ok(())
}

/// Says what was written.
fn report(path: &Path) {
    let bytes = fs::metadata(path).map_or(0, |attributes| attributes.len());
    eprintln!("{} {:.1} MB", path.display(), bytes as f64 / 1e6);
}

/// A progress bar on stderr; indicatif shows none where that is no terminal.
struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new(what: &'static str) -> Bar {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template);
        let bar = ProgressBar::new(0).with_message(what);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Bar { bar }
    }

    fn show(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        if done == total {
            self.bar.set_message("done");
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn parse_recipe(name: &str) -> Result<&'static tiny::Recipe, String> {
    tiny::find(name).ok_or_else(|| {
        let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
        format!("there is no such model; choose one of {}", names.join(", "))
    })
}

fn parse_mix(name: &str) -> Result<Mix, String> {
    Mix::of_name(name).ok_or_else(|| {
        let names: Vec<_> = Mix::ALL.iter().map(|mix| mix.name()).collect();
        format!("there is no such type; choose one of {}", names.join(", "))
    })
}

fn parse_type(name: &str) -> Result<GgmlType, String> {
    let named = GgmlType::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name));
    named.ok_or_else(|| "there is no such type; Q8_0, Q4_0 and Q4_K are usual".to_owned())
}
