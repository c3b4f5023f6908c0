//! What the readers of single calls have in common.

use super::gemma::GemmaCall;
use super::json_call::JsonCall;
use super::named::NamedCall;
use super::python::PythonCall;
use super::tagged::TaggedCall;

/// Characters that a call may have before its name is known; what is longer is no call.
pub(super) const HELD_CHARS_MAX: usize = 64 << 10;
/// Bytes of a tool's name at most.
pub(super) const NAME_BYTES_MAX: usize = 256;

/// What a call tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// Its name, and its id if it has one.
    Begin { name: String, id: Option<String> },
    /// More of its arguments.
    Arguments(String),
}

/// What became of a character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It belongs to the call.
    More,
    /// The call is complete. The text is what was read past it.
    Done(String),
    /// This is no call, or it broke.
    Failed,
}

impl Step {
    /// The character was the call's last.
    pub(super) fn done() -> Step {
        Step::Done(String::new())
    }
}

/// A call that is being read, in one of the syntaxes.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Json(JsonCall),
    Named(NamedCall),
    Tagged(TaggedCall),
    Python(PythonCall),
    Gemma(GemmaCall),
}

impl Call {
    pub(super) fn feed(&mut self, c: char, out: &mut Vec<Event>) -> Step {
        match self {
            Call::Json(call) => call.feed(c, out),
            Call::Named(call) => call.feed(c, out),
            Call::Tagged(call) => call.feed(c, out),
            Call::Python(call) => call.feed(c, out),
            Call::Gemma(call) => call.feed(c, out),
        }
    }

    /// The text has ended. `Done` if nothing is missing but a mark.
    pub(super) fn finish(&mut self) -> Step {
        match self {
            Call::Named(call) => call.finish(),
            _ => Step::Failed,
        }
    }
}

/// Whether a tool can have this name.
pub(super) fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_alphanumeric() || "_-.:/".contains(c);
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(fits)
}

/// The longest end of `text` with which `mark` may begin, but not all of `mark`.
pub(super) fn partial(text: &str, mark: &str) -> usize {
    let possible = text.char_indices().map(|(at, _)| text.len() - at);
    possible
        .filter(|length| *length < mark.len())
        .find(|length| text.get(text.len() - length..).is_some_and(|end| mark.starts_with(end)))
        .unwrap_or(0)
}

/// A text that comes character by character and ends at a mark.
#[derive(Debug, Clone, Default)]
pub(super) struct Until {
    text: String,
}

impl Until {
    /// Takes a character; the text before `mark` if that is complete now.
    pub(super) fn feed(&mut self, c: char, mark: &str) -> Option<String> {
        self.text.push(c);
        let before = self.text.strip_suffix(mark)?.to_owned();
        self.text.clear();
        Some(before)
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// All but what may be the beginning of `mark` or, before it, of `also`.
    pub(super) fn take_certain(&mut self, mark: &str, also: &str) -> String {
        let together = [also, mark].concat();
        let held = partial(&self.text, mark).max(partial(&self.text, &together));
        let certain = self.text.len() - held;
        let rest = self.text.split_off(certain);
        std::mem::replace(&mut self.text, rest)
    }
}
