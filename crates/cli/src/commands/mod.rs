//! The commands, one file each.

pub(crate) mod bench;
mod chat;
mod closing;
mod conversation;
pub(crate) mod estimate;
pub(crate) mod inspect;
pub(crate) mod iobench;
pub(crate) mod library;
mod lines;
pub(crate) mod optimize;
mod picture;
mod places;
pub(crate) mod profile;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod session;
pub(crate) mod trace;

use std::path::PathBuf;

use hypura_engine::plan::Plan;
use hypura_engine::profile::probe_cpu;

use crate::args::ModelArgs;
use crate::failure::UsageError;
use crate::size::show;

/// The file of the model that was named.
pub(crate) fn model_path(args: &ModelArgs) -> anyhow::Result<PathBuf> {
    Ok(crate::home::stores(args.models_dir.as_ref()).resolve(&args.model)?)
}

/// What people call a model: the name of its file, or what they said.
pub(crate) fn model_name(said: &str) -> String {
    let stem = std::path::Path::new(said).file_stem();
    stem.map_or_else(|| said.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// Refuses more threads than this machine has cores. ggml's threads wait for each other by spinning:
/// with one more than there are cores, a token takes a thousand times as long.
pub(crate) fn check_threads(args: &ModelArgs) -> anyhow::Result<()> {
    check_thread_count(args.threads)
}

/// As [`check_threads`].
pub(crate) fn check_thread_count(threads: Option<u32>) -> anyhow::Result<()> {
    let (Some(threads), Ok(cpu)) = (threads, probe_cpu()) else { return Ok(()) };
    if threads > cpu.cores_online {
        let cores = cpu.cores_online;
        return Err(UsageError(format!(
            "--threads {threads} is more than the cores of this machine; use {cores} or fewer"
        ))
        .into());
    }
    if threads > cpu.cores_free {
        tracing::warn!(
            "--threads {threads} is more than the cores that are free for us ({}); this is slow",
            cpu.cores_free
        );
    }
    Ok(())
}

/// The budgets that were planned for.
fn within(plan: &Plan) -> String {
    let memory = show(plan.budget_bytes);
    match &plan.gpu {
        None => memory,
        Some(gpu) => format!("{memory} and {} of GPU memory", show(gpu.budget_bytes)),
    }
}
