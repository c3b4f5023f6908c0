//! Which marks are looked for in running text, and where the next one is.

use crate::format::{Body, HARMONY, Parts, Syntax};

/// What a mark does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Reasoning begins.
    Think,
    /// Reasoning ends.
    Answer,
    /// A group of calls begins, or, if `is_call`, at once a call.
    Calls { syntax: &'static Syntax, is_call: bool },
    /// The mark itself is part of a call that has no mark.
    Bare { syntax: &'static Syntax },
    /// A header of gpt-oss begins.
    Header,
    /// A message of gpt-oss ends.
    MessageEnd,
    /// It means nothing.
    Drop,
    /// The answer ends.
    Stop,
}

/// The marks of a format.
#[derive(Debug, Clone)]
pub(super) struct Marks(Vec<(String, Action)>);

/// Where the parser is in the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) in_reasoning: bool,
    /// Nothing was said so far but blanks and reasoning.
    pub(super) is_fresh: bool,
    pub(super) has_tools: bool,
}

/// What is next in a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A mark, behind so many bytes of text.
    Mark { at: usize, bytes: usize, action: Action },
    /// No mark in so many bytes; behind them may be the beginning of one.
    Text(usize),
}

impl Marks {
    pub(super) fn new(parts: &Parts) -> Marks {
        let mut marks: Vec<(String, Action)> = Vec::new();
        let mut add = |text: &str, action| {
            if !text.trim().is_empty() && marks.iter().all(|(known, _)| known != text.trim()) {
                marks.push((text.trim().to_owned(), action));
            }
        };
        if parts.calls.contains(&&HARMONY) {
            for text in ["<|channel|>", "<|start|>", "<|message|>"] {
                add(text, Action::Header);
            }
            add("<|end|>", Action::MessageEnd);
            for text in ["<|call|>", "<|return|>"] {
                add(text, Action::Stop);
            }
        } else if let Some(reasoning) = parts.reasoning {
            add(reasoning.open, Action::Think);
            add(reasoning.close, Action::Answer);
        }
        for syntax in parts.calls.iter().copied().filter(|syntax| **syntax != HARMONY) {
            add(syntax.group.0, Action::Calls { syntax, is_call: false });
            add(syntax.call.0, Action::Calls { syntax, is_call: true });
            if syntax.group.0.is_empty() && syntax.call.0.is_empty() {
                if matches!(syntax.body, Body::Json { .. }) {
                    add("{", Action::Bare { syntax });
                }
                add("[", Action::Bare { syntax });
            }
        }
        for text in &parts.wrappers {
            add(text, Action::Drop);
        }
        for text in &parts.stops {
            add(text, Action::Stop);
        }
        Marks(marks)
    }

    /// The first mark in `text` that counts at `place`. With `ended`, nothing more will come.
    pub(super) fn next(&self, text: &str, place: Place, ended: bool) -> Next {
        for (at, _) in text.char_indices() {
            let (before, rest) = text.split_at(at);
            let is_fresh = place.is_fresh && before.trim().is_empty();
            let counting = || self.0.iter().filter(|(_, action)| counts(*action, place, is_fresh));
            let whole = counting().filter(|(mark, _)| rest.starts_with(mark.as_str()));
            let found = whole.max_by_key(|(mark, _)| mark.len());
            let bytes = found.map_or(0, |(mark, _)| mark.len());
            // A mark may be the beginning of a longer one.
            let may_grow = |mark: &str| mark.len() > bytes && mark.starts_with(rest);
            if !ended && counting().any(|(mark, _)| may_grow(mark)) {
                return Next::Text(at);
            }
            if let Some((_, action)) = found {
                return Next::Mark { at, bytes, action: *action };
            }
        }
        Next::Text(text.len())
    }
}

fn counts(action: Action, place: Place, is_fresh: bool) -> bool {
    match action {
        Action::Think => !place.in_reasoning && is_fresh,
        // One that ends nothing is dropped at the beginning: the prompt has ended it already.
        Action::Answer => place.in_reasoning || is_fresh,
        Action::Calls { syntax, .. } => {
            place.has_tools && (!place.in_reasoning || syntax.interrupts)
        }
        Action::Bare { .. } => place.has_tools && !place.in_reasoning && is_fresh,
        Action::Drop => !place.in_reasoning,
        Action::Header | Action::MessageEnd | Action::Stop => true,
    }
}
