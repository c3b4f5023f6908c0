//! Where words for people go, and how text for programs is kept apart from them.

use std::fmt::Display;
use std::io::{IsTerminal, StdoutLock, Write};

/// Says something on standard error, on a line of its own. Who doesn't listen misses it: that
/// standard error is closed or full is no reason to stop.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Generated text on its way to standard output.
pub(crate) struct TextOut {
    out: StdoutLock<'static>,
    is_mid_line: bool,
}

impl TextOut {
    pub(crate) fn new() -> TextOut {
        TextOut { out: std::io::stdout().lock(), is_mid_line: false }
    }

    /// Writes a piece, at once.
    pub(crate) fn write(&mut self, text: &str) -> std::io::Result<()> {
        if let Some(last) = text.as_bytes().last() {
            self.is_mid_line = *last != b'\n';
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// The text is over: whatever comes next begins on a new line.
    ///
    /// A terminal gets its line ended, and so does each answer of a conversation. Elsewhere
    /// standard output is exactly the text; if more will be said on standard error, and people will
    /// see it behind the text, standard error ends the line.
    pub(crate) fn finish(mut self, in_chat: bool, will_say_more: bool) -> std::io::Result<()> {
        if !self.is_mid_line {
            return Ok(());
        }
        if in_chat || self.out.is_terminal() {
            writeln!(self.out)?;
            return self.out.flush();
        }
        if will_say_more && are_seen_together() {
            say("");
        }
        Ok(())
    }
}

/// Whether text on standard output, which is no terminal, and words on standard error are likely to
/// be read in one place: the same file or pipe, or a pipe whose end may be the terminal.
#[cfg(unix)]
fn are_seen_together() -> bool {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let metadata = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned().and_then(|fd| std::fs::File::from(fd).metadata()).ok()
    };
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let (Some(out), Some(err)) = (metadata(stdout.as_fd()), metadata(stderr.as_fd())) else {
        return false;
    };
    let is_same = (out.dev(), out.ino()) == (err.dev(), err.ino());
    is_same || out.file_type().is_fifo() && stderr.is_terminal()
}

#[cfg(not(unix))]
fn are_seen_together() -> bool {
    false
}
