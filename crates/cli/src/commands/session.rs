//! `hypura session`: conversations that were kept.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use hypura_engine::gguf::output::NewFile;
use hypura_engine::kv::{Session, SessionStore, SessionSummary};
use hypura_engine::{KvOptions, fingerprint_of, pack_session, unpack_session};
use serde_json::json;

use crate::args::{SessionArgs, SessionCommand};
use crate::commands::conversation::{lock, no_session, parse};
use crate::failure::{Interrupted, UsageError};
use crate::interrupt::Interrupt;
use crate::output::say;
use crate::progress::Bar;
use crate::size;
use crate::table::table;

pub(crate) fn run(args: &SessionArgs) -> anyhow::Result<()> {
    let folder = crate::home::sessions()
        .ok_or_else(|| UsageError("there is no folder for sessions; set HYPURA_HOME".into()))?;
    let store = SessionStore::open(folder)?;
    match &args.command {
        SessionCommand::List { json } => list(&store, *json),
        SessionCommand::Show { name, json } => show(&get(&store, name)?, *json),
        SessionCommand::Save { name, file, force } => save(args, &store, name, file, *force),
        SessionCommand::Load { file, model, name, models_dir, force } => {
            let path = crate::home::stores(models_dir.as_ref()).resolve(model)?;
            load(args, &store, file, &path, name.as_deref(), *force)
        }
        SessionCommand::Rm { name } => {
            let name = parse(name)?;
            // Says so if it is in use.
            drop(lock(&store, &name)?);
            if !store.remove(&name)? {
                return Err(no_session(&name).into());
            }
            say(format_args!("Forgotten: {name}."));
            Ok(())
        }
    }
}

fn get(store: &SessionStore, name: &str) -> anyhow::Result<Session> {
    let name = parse(name)?;
    Ok(store.get(&name)?.ok_or_else(|| no_session(&name))?)
}

fn list(store: &SessionStore, as_json: bool) -> anyhow::Result<()> {
    let sessions = store.list()?;
    let mut out = std::io::stdout().lock();
    if as_json {
        let rows: Vec<_> = sessions.iter().map(row_json).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    if sessions.is_empty() {
        say("There are no sessions yet; hypura run MODEL --session NAME begins one.");
        return Ok(());
    }
    let head = ["name", "model", "messages", "tokens", "last used"].map(str::to_owned).to_vec();
    let rows = sessions.iter().map(|SessionSummary { name, outline }| match outline {
        Ok(outline) => vec![
            name.to_string(),
            outline.model_name.clone(),
            outline.n_messages.to_string(),
            outline.n_tokens.to_string(),
            when(outline.updated_unix_s),
        ],
        Err(error) => vec![name.to_string(), format!("damaged: {error}")],
    });
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    write!(out, "{}", table(&all))?;
    Ok(())
}

fn row_json(SessionSummary { name, outline }: &SessionSummary) -> serde_json::Value {
    match outline {
        Ok(outline) => json!({
            "name": name.to_string(),
            "model": outline.model_name,
            "messages": outline.n_messages,
            "tokens": outline.n_tokens,
            "created_unix_s": outline.created_unix_s,
            "updated_unix_s": outline.updated_unix_s,
        }),
        Err(error) => json!({ "name": name.to_string(), "damaged": error.to_string() }),
    }
}

fn show(session: &Session, as_json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if as_json {
        let value = json!({
            "model": session.model_name,
            "model_fingerprint": session.model_fingerprint,
            "state": session.scope,
            "messages": session.messages,
            "tokens": session.tokens.len(),
            "created_unix_s": session.created_unix_s,
            "updated_unix_s": session.updated_unix_s,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    say(format_args!(
        "{}, {} tokens, last used {}",
        session.model_name,
        session.tokens.len(),
        when(session.updated_unix_s)
    ));
    for message in &session.messages {
        writeln!(out, "{}: {}\n", message.role, message.content)?;
    }
    Ok(())
}

fn save(
    args: &SessionArgs,
    store: &SessionStore,
    name: &str,
    file: &Path,
    force: bool,
) -> anyhow::Result<()> {
    let session = get(store, name)?;
    let mut new = NewFile::create(file, session.text.len() as u64, force, [])?;
    let mut out = BufWriter::new(new.file());
    let packed = pack_session(&session, &kv_options(args), &mut out)?;
    out.flush().with_context(|| format!("can't write {}", file.display()))?;
    drop(out);
    new.publish()?;
    say(format_args!(
        "{}: {} of {} tokens with their attention state, {}",
        file.display(),
        packed.tokens,
        session.tokens.len(),
        size::show(packed.bytes)
    ));
    if packed.tokens + 1 < session.tokens.len() {
        say("The rest is computed anew where it is loaded.");
    }
    Ok(())
}

fn load(
    args: &SessionArgs,
    store: &SessionStore,
    file: &Path,
    model: &Path,
    name: Option<&str>,
    force: bool,
) -> anyhow::Result<()> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = parse(&name.map_or_else(|| stem.unwrap_or_default(), str::to_owned))?;
    let held = lock(store, &name)?;
    if store.exists(&name) && !force {
        return Err(UsageError(format!(
            "there is a session {name} already; name another one with --as, or use --force"
        ))
        .into());
    }
    let input = File::open(file).map_err(|error| {
        UsageError(format!("can't read {}: {}", file.display(), crate::failure::reason(&error)))
    })?;
    let options = kv_options(args);
    let interrupt = Interrupt::install()?;
    let mut bar = Bar::new("reading the model");
    let fingerprint = fingerprint_of(model, &options, &mut |done, total| {
        bar.update(done, total);
        !interrupt.is_pressed()
    });
    bar.finish();
    if interrupt.is_pressed() {
        return Err(Interrupted.into());
    }
    let loaded = unpack_session(BufReader::new(input), &fingerprint?, &options)?;
    store.put(&name, &loaded.session)?;
    drop(held);
    say(format_args!(
        "{name}: {} messages, {} of {} tokens with their attention state; go on with \
         hypura run {} --session {name}",
        loaded.session.messages.len(),
        loaded.tokens,
        loaded.session.tokens.len(),
        model.display()
    ));
    if let Some(note) = loaded.note {
        say(note);
    }
    Ok(())
}

fn kv_options(args: &SessionArgs) -> KvOptions {
    KvOptions {
        cold_dir: args.cold_cache.clone().or_else(crate::home::kv),
        cold_bytes_max: args.cold_cache_size,
        fingerprint_dir: crate::home::cache(),
        ..KvOptions::default()
    }
}

/// A time as people read it, in the local zone.
fn when(unix_s: u64) -> String {
    hypura_engine::local_time(unix_s)
}
