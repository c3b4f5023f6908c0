//! Lines of input for a chat: edited on a terminal, or as they come from a pipe.

use std::io::{BufRead, IsTerminal, Read};
use std::path::PathBuf;

use anyhow::Context;
use rustyline::config::{Behavior, Config};
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, history::History};

use crate::failure::UsageError;

/// Lines of history kept.
const HISTORY_LINES_MAX: usize = 1000;

/// The longest line that is read from a pipe, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// Where a chat's messages come from.
pub(crate) enum Lines {
    /// With an editor, and a history that is kept across chats.
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    /// One after the other.
    Pipe(std::io::StdinLock<'static>),
}

/// What was read.
pub(crate) enum Line {
    /// A line, without its end.
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// There will be no more.
    End,
}

impl Lines {
    /// Reads from standard input.
    pub(crate) fn open() -> anyhow::Result<Lines> {
        if !std::io::stdin().is_terminal() {
            return Ok(Lines::Pipe(std::io::stdin().lock()));
        }
        // Where standard output is no terminal, it gets the answers alone.
        let is_out = std::io::stdout().is_terminal();
        let behavior = if is_out { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder()
            .behavior(behavior)
            .max_history_size(HISTORY_LINES_MAX)
            .context("can't keep a history")?
            .build();
        let mut editor =
            DefaultEditor::with_config(config).context("can't read from the terminal")?;
        let history = crate::home::data().map(|data| data.join("chat-history.txt"));
        if let Some(path) = &history {
            // There is none at the first time.
            let _ = editor.load_history(path);
        }
        Ok(Lines::Terminal { editor: Box::new(editor), history })
    }

    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Lines::Terminal { .. })
    }

    /// The next line; a terminal shows `prompt` before it.
    pub(crate) fn read(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self {
            Lines::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(error) => Err(error).context("can't read from the terminal"),
            },
            Lines::Pipe(stdin) => read_line(stdin),
        }
    }

    /// Keeps a message in the terminal's history.
    pub(crate) fn remember(&mut self, message: &str) {
        if let Lines::Terminal { editor, .. } = self
            && !message.is_empty()
        {
            // A history that can't grow is no reason to stop.
            let _ = editor.add_history_entry(message);
        }
    }

    /// Writes the terminal's history.
    pub(crate) fn close(self) {
        let Lines::Terminal { mut editor, history: Some(path) } = self else { return };
        if editor.history().is_empty() {
            return;
        }
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let saved = folder.map_err(ReadlineError::from).and_then(|()| editor.save_history(&path));
        if let Err(error) = saved {
            tracing::warn!("the chat's history is not kept in {}: {error}", path.display());
        }
    }
}

fn read_line(input: &mut impl BufRead) -> anyhow::Result<Line> {
    let mut bytes = Vec::new();
    let mut limited = input.by_ref().take(LINE_BYTES_MAX + 1);
    limited.read_until(b'\n', &mut bytes).context("can't read standard input")?;
    if bytes.len() as u64 > LINE_BYTES_MAX {
        return Err(UsageError("a line is longer than 16 MiB; shorten it".into()).into());
    }
    if bytes.is_empty() {
        return Ok(Line::End);
    }
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    String::from_utf8(bytes)
        .map(Line::Text)
        .map_err(|_| UsageError("standard input is not UTF-8 text; convert it first".into()).into())
}
