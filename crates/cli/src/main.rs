//! The command line of Hypura.
//!
//! One file per command; what they share is beside them. Human output goes to stderr, generated
//! text and data to stdout, so that a pipe gets just that.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod failure;
mod home;
mod interrupt;
mod progress;
mod size;
mod table;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.verbose);
    let result = match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Estimate(args) => commands::estimate::run(&args),
        Command::Profile(args) => commands::profile::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::of(&error);
            if !failure.is_silent() {
                eprintln!("hypura: {error:#}");
            }
            failure.exit_code()
        }
    }
}

/// Warnings are always shown; `-v` adds what happens, `-vv` and more what llama.cpp says.
fn start_log(verbose: u8) {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose).min(3)];
    let filter = tracing_subscriber::EnvFilter::try_from_env("HYPURA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(verbose > 1)
        .init();
}
