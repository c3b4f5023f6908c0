//! The command line of Hypura.
//!
//! One file per command; what they share is beside them. Human output goes to stderr, generated
//! text and data to stdout, so that a pipe gets just that.
#![forbid(unsafe_code)]

mod args;
mod chart;
mod commands;
mod failure;
mod home;
mod interrupt;
mod log;
mod output;
mod progress;
mod size;
mod table;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::{Failure, UsageError};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::of(&error);
            if !failure.is_silent() {
                output::say(format_args!("hypura: {}", failure::sentence(&error)));
            }
            failure.exit_code()
        }
    }
}

fn run() -> anyhow::Result<()> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            return match args::mistake(&error) {
                Some(mistake) => Err(UsageError(mistake).into()),
                None => Ok(error.print()?),
            };
        }
    };
    log::start(cli.verbose, cli.command.log_format());
    match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Serve(args) => commands::serve::run(&args),
        Command::Pull(args) => commands::library::pull(&args),
        Command::List(args) => commands::library::list(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Estimate(args) => commands::estimate::run(&args),
        Command::Profile(args) => commands::profile::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Iobench(args) => commands::iobench::run(&args),
        Command::Session(args) => commands::session::run(&args),
        Command::Trace(args) => commands::trace::run(&args),
        Command::Optimize(args) => commands::optimize::run(&args),
        Command::BenchChild(args) => commands::bench::run_child(&args),
    }
}
