//! Options of `hypura session`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    pub(crate) command: SessionCommand,

    /// The folder with their attention state [default: the platform's cache folder]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) cold_cache: Option<PathBuf>,

    /// What all files in that folder may take together
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse, default_value = "8GiB", global = true)]
    pub(crate) cold_cache_size: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// List all conversations
    List {
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what was said
    Show {
        /// The conversation
        name: String,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a conversation and its attention state into one file, for another machine
    Save {
        /// The conversation
        name: String,
        /// The file, such as chat.hypura
        file: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Take a conversation and its attention state from a file
    Load {
        /// The file
        file: PathBuf,
        /// The model that it is to go on with, to make sure that it is the same
        model: String,
        /// What to call it here [default: the file's name]
        #[arg(long = "as", value_name = "NAME")]
        name: Option<String>,
        /// One more folder with GGUF files that can be named without path and ending
        #[arg(long, value_name = "DIR")]
        models_dir: Option<PathBuf>,
        /// Replace a conversation of this name
        #[arg(long)]
        force: bool,
    },
    /// Forget a conversation (its attention state ages by itself)
    Rm {
        /// The conversation
        name: String,
    },
}
