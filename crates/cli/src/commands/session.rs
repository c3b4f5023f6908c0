//! `hypura session`: conversations that were kept.

use std::fs::{File, Permissions};
use std::io::{BufReader, BufWriter, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use hypura_engine::gguf::output::{NewFile, OutputError};
use hypura_engine::kv::{PortableError, PortableReader, Session, SessionStore, SessionSummary};
use hypura_engine::{KvOptions, SessionFileError, fingerprint_of, pack_session, unpack_session};
use serde_json::json;

use crate::args::{SessionArgs, SessionCommand};
use crate::commands::conversation::{lock, no_session, parse, told};
use crate::failure::{Interrupted, UsageError};
use crate::interrupt::Interrupt;
use crate::output::say;
use crate::progress::Bar;
use crate::size;
use crate::table::table;

pub(crate) fn run(args: &SessionArgs) -> anyhow::Result<()> {
    let folder = crate::home::sessions()
        .ok_or_else(|| UsageError("there is no folder for sessions; set HYPURA_HOME".into()))?;
    let store = SessionStore::open(folder).map_err(told)?;
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
            if !store.remove(&name).map_err(told)? {
                return Err(no_session(&name).into());
            }
            say(format_args!("Forgotten: {name}."));
            Ok(())
        }
    }
}

fn get(store: &SessionStore, name: &str) -> anyhow::Result<Session> {
    let name = parse(name)?;
    Ok(store.get(&name).map_err(told)?.ok_or_else(|| no_session(&name))?)
}

fn list(store: &SessionStore, as_json: bool) -> anyhow::Result<()> {
    let sessions = store.list().map_err(told)?;
    let mut out = std::io::stdout().lock();
    if as_json {
        let rows: Vec<_> = sessions.iter().map(row_json).collect();
        writeln!(out, "{}", json_text(&rows)?)?;
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
            printable(&outline.model_name),
            outline.n_messages.to_string(),
            outline.n_tokens.to_string(),
            when(outline.updated_unix_s),
        ],
        Err(_) => vec![name.to_string(), "damaged".to_owned()],
    });
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    write!(out, "{}", table(&all))?;
    for error in sessions.iter().filter_map(|session| session.outline.as_ref().err()) {
        tracing::warn!("{}", printable(&error.to_string()));
    }
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
        writeln!(out, "{}", json_text(&value)?)?;
        return Ok(());
    }
    say(format_args!(
        "{}, {} tokens, last used {}",
        printable(&session.model_name),
        session.tokens.len(),
        when(session.updated_unix_s)
    ));
    for message in &session.messages {
        writeln!(out, "{}: {}\n", printable(&message.role), printable_lines(&message.content))?;
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
    let can_not_write = || format!("can't write {}", file.display());
    let mut new =
        NewFile::create(file, session.text.len() as u64, force, []).map_err(not_written)?;
    // What was said is nobody else's business.
    new.file().set_permissions(Permissions::from_mode(0o600)).with_context(can_not_write)?;
    let mut out = BufWriter::new(new.file());
    let packed = pack_session(&session, &kv_options(args), &mut out)
        .map_err(|error| of_no_use(error, file))?;
    out.flush().with_context(can_not_write)?;
    drop(out);
    new.publish().map_err(not_written)?;
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
    let name = match name {
        Some(name) => parse(name)?,
        None => {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            parse(&stem).map_err(|error| UsageError(format!("{error}; --as names it")))?
        }
    };
    let held = lock(store, &name)?;
    if store.exists(&name) && !force {
        return Err(UsageError(format!(
            "there is a session {name} already; name another one with --as, or use --force"
        ))
        .into());
    }
    let can_not_read =
        |reason: &str| UsageError(format!("can't read {}: {reason}", file.display()));
    if file.is_dir() {
        return Err(can_not_read("it is a folder").into());
    }
    let input = File::open(file).map_err(|error| can_not_read(&crate::failure::reason(&error)))?;
    // Before a large model is read for nothing.
    PortableReader::open(BufReader::new(&input)).map_err(|error| of_no_use(error.into(), file))?;
    (&input).rewind().with_context(|| format!("can't read {}", file.display()))?;
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
    let loaded = unpack_session(BufReader::new(input), &fingerprint?, &options)
        .map_err(|error| of_no_use(error, file))?;
    store.put(&name, &loaded.session).map_err(told)?;
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
        say(printable(&note));
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

/// Why a file can't be written, for people.
fn not_written(error: OutputError) -> anyhow::Error {
    match error {
        OutputError::Io { path, source } => {
            anyhow::Error::new(source).context(format!("can't write {}", path.display()))
        }
        error => UsageError(error.to_string()).into(),
    }
}

/// Why a file can't be used, for people: most often it is the file.
fn of_no_use(error: SessionFileError, file: &Path) -> anyhow::Error {
    match error {
        SessionFileError::Portable(PortableError::Read { source }) => {
            anyhow::Error::new(source).context(format!("can't read {}", file.display()))
        }
        SessionFileError::Portable(PortableError::Write { source }) => {
            anyhow::Error::new(source).context(format!("can't write {}", file.display()))
        }
        SessionFileError::Portable(PortableError::BlockSize { .. } | PortableError::Refused) => {
            error.into()
        }
        error => UsageError(printable(&error.to_string())).into(),
    }
}

/// A text of somebody else's, such that a terminal shows it and does not obey it.
pub(crate) fn printable(text: &str) -> String {
    escaped(text, |_| false)
}

/// The same for a text of several lines.
fn printable_lines(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, is_fine: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) && !is_fine(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Control characters, and those that turn the direction of writing: behind them other text than
/// there is may be shown.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON that says the same in characters that no terminal obeys: they are in strings only.
fn json_text(value: &impl serde::Serialize) -> anyhow::Result<String> {
    let mut out = String::new();
    for c in serde_json::to_string_pretty(value)?.chars() {
        if is_obeyed(c) && c != '\n' {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A title for the window, a cleared screen (in one character and in two), and text that runs
    /// backwards.
    const HOSTILE: &str = "a\x1b]0;x\x07\x1b[2J\u{9b}2J\r\u{202e}\x7fb\nä\tc";

    #[test]
    fn terminals_are_told_nothing() {
        assert_eq!(printable(HOSTILE), r"a\u{1b}]0;x\u{7}\u{1b}[2J\u{9b}2J\r\u{202e}\u{7f}b\nä\tc");
        let lines = printable_lines(HOSTILE);
        assert!(lines.ends_with("b\nä\tc") && !lines.contains('\r'), "{lines}");
    }

    #[test]
    fn json_says_the_same() {
        let text = json_text(&[HOSTILE]).expect("JSON");
        assert!(!text.chars().any(|c| is_obeyed(c) && c != '\n'), "{text}");
        let back: Vec<String> = serde_json::from_str(&text).expect("JSON");
        assert_eq!(back, [HOSTILE]);
    }
}
