//! A call in Python's syntax: `name(key=value, ..)`.

use serde_json::Value;

use super::call::{Event, HELD_CHARS_MAX, NAME_BYTES_MAX, Step, is_name};
use super::literal;

#[derive(Debug, Clone)]
enum State {
    Name(String),
    /// Before a key or `)`.
    Start,
    Key(String),
    Value(Written),
}

/// A value so far.
#[derive(Debug, Clone, Default)]
struct Written {
    text: String,
    /// Brackets that are open.
    depth: usize,
    /// The quote of the text that is open, and whether a backslash was last.
    quote: Option<char>,
    escaped: bool,
}

/// Reads such a call.
#[derive(Debug, Clone)]
pub(super) struct PythonCall {
    state: State,
    key: String,
    arguments: usize,
}

impl PythonCall {
    pub(super) fn new() -> PythonCall {
        PythonCall { state: State::Name(String::new()), key: String::new(), arguments: 0 }
    }

    pub(super) fn feed(&mut self, c: char, out: &mut Vec<Event>) -> Step {
        match &mut self.state {
            State::Name(name) if c == '(' => {
                // Llama 3 calls its built-in tools `name.call(..)`.
                let name = name.strip_suffix(".call").unwrap_or(name).to_owned();
                self.state = State::Start;
                out.push(Event::Begin { name: name.clone(), id: None });
                if is_name(&name) { Step::More } else { Step::Failed }
            }
            State::Name(name) => push(name, c),
            State::Start if c.is_whitespace() => Step::More,
            State::Start if c == ')' => self.done(out),
            State::Start => {
                let mut key = String::new();
                let step = push(&mut key, c);
                self.state = State::Key(key);
                step
            }
            State::Key(key) if c == '=' => {
                self.key = key.trim().to_owned();
                self.state = State::Value(Written::default());
                Step::More
            }
            State::Key(_) if c.is_whitespace() => Step::More,
            State::Key(key) => push(key, c),
            State::Value(written) => {
                if !written.ends_before(c) {
                    written.push(c);
                    let too_long = written.text.len() > HELD_CHARS_MAX;
                    return if too_long { Step::Failed } else { Step::More };
                }
                let Some(value) = literal::parse(written.text.trim()) else {
                    return Step::Failed;
                };
                let comma = if self.arguments == 0 { "{" } else { ", " };
                self.arguments += 1;
                let key = Value::from(&*self.key);
                out.push(Event::Arguments(format!("{comma}{key}: {value}")));
                self.state = State::Start;
                if c == ')' { self.done(out) } else { Step::More }
            }
        }
    }

    fn done(&mut self, out: &mut Vec<Event>) -> Step {
        out.push(Event::Arguments(if self.arguments == 0 { "{}" } else { "}" }.to_owned()));
        Step::done()
    }
}

/// Makes a name longer.
fn push(name: &mut String, c: char) -> Step {
    name.push(c);
    let fits = c.is_alphanumeric() || "_-.".contains(c);
    if fits && name.len() <= NAME_BYTES_MAX { Step::More } else { Step::Failed }
}

impl Written {
    /// Whether `c` is behind the value.
    fn ends_before(&self, c: char) -> bool {
        self.quote.is_none() && self.depth == 0 && matches!(c, ',' | ')')
    }

    fn push(&mut self, c: char) {
        self.text.push(c);
        match self.quote {
            Some(_) if self.escaped => self.escaped = false,
            Some(_) if c == '\\' => self.escaped = true,
            Some(quote) if c == quote => self.quote = None,
            Some(_) => {}
            None => match c {
                '"' | '\'' => self.quote = Some(c),
                '[' | '{' | '(' => self.depth += 1,
                ']' | '}' | ')' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            },
        }
    }
}
