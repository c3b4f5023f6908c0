//! `hypura list` and `hypura pull`: the models on this machine.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use hypura_engine::hub::{Entry, PullConfig, Puller};
use serde_json::json;

use crate::failure::{Interrupted, UsageError};
use crate::interrupt::Interrupt;
use crate::output::say;
use crate::progress::Bar;
use crate::table::table;
use crate::{home, size};

/// How often there is a look for Ctrl-C.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// One more folder with GGUF files
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,

    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A repository of Hugging Face, ORG/REPO, with :QUANT for another quantization than Q4_K_M, or
    /// one file of it, ORG/REPO/FILE.gguf. HF_TOKEN is used for what is not public, HF_ENDPOINT for
    /// another place
    name: String,
}

pub(crate) fn list(args: &ListArgs) -> anyhow::Result<()> {
    let entries = home::stores(args.models_dir.as_ref()).entries();
    let mut out = std::io::stdout().lock();
    if args.json {
        let rows: Vec<_> = entries.iter().map(row).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    if entries.is_empty() {
        say("There are no models here yet; hypura pull ORG/REPO fetches one from Hugging Face.");
        return Ok(());
    }
    let mut rows = vec![["name", "size", "parameters", "type", "where"].map(String::from).to_vec()];
    for entry in &entries {
        let details = entry.details().ok();
        let of = |f: fn(&hypura_engine::hub::Details) -> &str| {
            details.as_ref().map_or("unreadable", |details| f(details)).to_owned()
        };
        rows.push(vec![
            entry.name.clone(),
            size::show(entry.bytes),
            of(|d| &d.parameter_size),
            of(|d| &d.quantization),
            entry.store.describe().to_owned(),
        ]);
    }
    write!(out, "{}", table(&rows))?;
    Ok(())
}

fn row(entry: &Entry) -> serde_json::Value {
    let details = entry.details().ok();
    json!({
        "name": entry.name,
        "bytes": entry.bytes,
        "digest": entry.digest,
        "paths": entry.paths,
        "store": entry.store.describe(),
        "architecture": details.as_ref().map(|d| d.architecture.clone()),
        "parameters": details.as_ref().map(|d| d.parameter_count),
        "quantization": details.as_ref().map(|d| d.quantization.clone()),
    })
}

/// Where models are fetched from, as the environment says it.
pub(crate) fn pull_config() -> PullConfig {
    let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let default = PullConfig::default();
    let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| default.endpoint.clone());
    PullConfig { endpoint, token: text("HF_TOKEN"), ..default }
}

pub(crate) fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let puller = Puller::new(pull_config());
    let stores = home::stores(None);
    if stores.own.is_none() {
        return Err(UsageError("there is no folder for models; set HYPURA_HOME".into()).into());
    }
    let interrupt = Interrupt::install()?;
    let cancel = Arc::new(AtomicBool::new(false));
    interrupt.also_set(Arc::clone(&cancel));
    let mut bar = Bar::new("pulling");
    let pulled = std::thread::scope(|scope| {
        let (sender, news) = std::sync::mpsc::channel();
        let (puller, stores, cancel, name) = (&puller, &stores, &cancel, args.name.as_str());
        let work = scope.spawn(move || {
            puller.pull(name, stores, cancel, &mut |progress| {
                let _ = sender.send(progress);
            })
        });
        while !work.is_finished() {
            while let Ok(progress) = news.recv_timeout(LOOK_EVERY) {
                if let (Some(done), Some(total)) = (progress.completed, progress.total) {
                    bar.update(done, total);
                }
            }
        }
        work.join()
    });
    bar.finish();
    let entry = match pulled {
        Ok(Ok(entry)) => entry,
        Ok(Err(_)) if cancel.load(Ordering::Relaxed) => return Err(Interrupted.into()),
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => anyhow::bail!("internal error: pulling panicked"),
    };
    say(format_args!(
        "{} is here, {}; hypura run {} talks to it.",
        entry.name,
        size::show(entry.bytes),
        entry.name
    ));
    Ok(())
}
