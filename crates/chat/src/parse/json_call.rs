//! A call as a JSON object: `{"name": .., "arguments": {..}}` in one of its many forms.

use super::call::{Event, HELD_CHARS_MAX, Step, is_name};
use super::scan::{Scan, Scanner};
use serde_json::Value;

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Name,
    Arguments,
    Id,
    /// An object with the name and arguments, as in OpenAI's API.
    Function,
    Other,
}

#[derive(Debug, Clone)]
enum State {
    /// Before `{`.
    Start,
    /// Before a key or `}`.
    Key,
    /// Within a key.
    InKey(Scanner, String),
    Colon(Role),
    /// Before a value.
    Value(Role),
    /// Within a value that is not passed on.
    InValue(Role, Scanner, String),
    /// Within arguments that are passed on as they come.
    Passing(Scanner),
    /// Before `,` or `}`.
    Comma,
}

/// Reads such a call.
#[derive(Debug, Clone)]
pub(super) struct JsonCall {
    state: State,
    /// `{NAME: ARGUMENTS}`.
    keyed: bool,
    /// Objects around name and arguments that are open.
    depth: usize,
    name: Option<String>,
    id: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    /// Whether the name was given out, and whether arguments were.
    begun: bool,
    argued: bool,
    held: usize,
}

impl JsonCall {
    pub(super) fn new(keyed: bool) -> JsonCall {
        JsonCall {
            state: State::Start,
            keyed,
            depth: 0,
            name: None,
            id: None,
            early: None,
            begun: false,
            argued: false,
            held: 0,
        }
    }

    pub(super) fn feed(&mut self, c: char, out: &mut Vec<Event>) -> Step {
        self.held += usize::from(!self.begun);
        if self.held > HELD_CHARS_MAX {
            return Step::Failed;
        }
        let blank = matches!(c, ' ' | '\t' | '\n' | '\r');
        match &mut self.state {
            State::Start | State::Key | State::Colon(_) | State::Value(_) | State::Comma
                if blank =>
            {
                Step::More
            }
            State::Start if c == '{' => self.opened(),
            State::Key if c == '"' => {
                let mut scanner = Scanner::new();
                scanner.feed(c);
                self.go(State::InKey(scanner, c.to_string()))
            }
            State::Key | State::Comma if c == '}' => self.closed(out),
            State::InKey(scanner, key) => {
                key.push(c);
                match scanner.feed(c) {
                    Scan::More => Step::More,
                    Scan::Last => {
                        let key: String = serde_json::from_str(key).unwrap_or_default();
                        self.named(&key)
                    }
                    Scan::Past | Scan::Bad => Step::Failed,
                }
            }
            State::Colon(role) if c == ':' => {
                let role = *role;
                self.go(State::Value(role))
            }
            State::Value(role) => {
                let role = *role;
                self.value_begins(role, c, out)
            }
            State::InValue(role, scanner, text) => {
                let role = *role;
                match scanner.feed(c) {
                    Scan::More => {
                        text.push(c);
                        Step::More
                    }
                    Scan::Last => {
                        text.push(c);
                        let text = std::mem::take(text);
                        self.value_ends(role, text, out)
                    }
                    Scan::Past => {
                        let text = std::mem::take(text);
                        match self.value_ends(role, text, out) {
                            Step::More => self.feed(c, out),
                            step => step,
                        }
                    }
                    Scan::Bad => Step::Failed,
                }
            }
            State::Passing(scanner) => match scanner.feed(c) {
                Scan::Bad | Scan::Past => Step::Failed,
                scan => {
                    pass(c, out);
                    if scan == Scan::Last {
                        self.state = State::Comma;
                    }
                    Step::More
                }
            },
            State::Comma if c == ',' => self.go(State::Key),
            _ => Step::Failed,
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::More
    }

    fn opened(&mut self) -> Step {
        self.depth += 1;
        self.go(State::Key)
    }

    fn named(&mut self, key: &str) -> Step {
        let role = match key {
            _ if self.keyed && is_name(key) && self.name.is_none() => {
                self.name = Some(key.to_owned());
                Role::Arguments
            }
            "name" | "tool_name" | "function_name" => Role::Name,
            "arguments" | "parameters" | "args" | "input" => Role::Arguments,
            "id" | "tool_call_id" | "call_id" => Role::Id,
            "function" => Role::Function,
            "type" => Role::Other,
            // Something else, such as an answer in JSON.
            _ if self.name.is_none() => return Step::Failed,
            _ => Role::Other,
        };
        self.go(State::Colon(role))
    }

    fn value_begins(&mut self, role: Role, c: char, out: &mut Vec<Event>) -> Step {
        if role == Role::Function && c == '{' && self.depth == 1 {
            return self.opened();
        }
        let mut scanner = Scanner::new();
        if scanner.feed(c) != Scan::More {
            return Step::Failed;
        }
        if role == Role::Arguments && c == '{' && self.name.is_some() && !self.argued {
            self.begin(out);
            self.argued = true;
            pass(c, out);
            return self.go(State::Passing(scanner));
        }
        self.go(State::InValue(role, scanner, c.to_string()))
    }

    fn value_ends(&mut self, role: Role, text: String, out: &mut Vec<Event>) -> Step {
        self.state = State::Comma;
        let string = || serde_json::from_str::<String>(&text).ok();
        match role {
            Role::Name | Role::Function => match string().filter(|name| is_name(name)) {
                Some(_) if self.begun => {}
                Some(name) => self.name = Some(name),
                None => return Step::Failed,
            },
            Role::Id => self.id = string().filter(|id| !id.is_empty()),
            Role::Arguments if self.argued => {}
            Role::Arguments => {
                let Some(arguments) = object(&text) else {
                    return Step::Failed;
                };
                match self.name.is_some() {
                    true => self.argue(arguments, out),
                    false => self.early = Some(arguments),
                }
            }
            Role::Other => {}
        }
        Step::More
    }

    fn closed(&mut self, out: &mut Vec<Event>) -> Step {
        self.depth -= 1;
        if self.depth > 0 {
            return self.go(State::Comma);
        }
        if self.name.is_none() {
            return Step::Failed;
        }
        if !self.argued {
            let arguments = self.early.take().unwrap_or_else(|| "{}".to_owned());
            self.argue(arguments, out);
        }
        Step::done()
    }

    fn argue(&mut self, arguments: String, out: &mut Vec<Event>) {
        self.begin(out);
        self.argued = true;
        out.push(Event::Arguments(arguments));
    }

    fn begin(&mut self, out: &mut Vec<Event>) {
        self.begun = true;
        let name = self.name.clone().unwrap_or_default();
        out.push(Event::Begin { name, id: self.id.take() });
    }
}

fn pass(c: char, out: &mut Vec<Event>) {
    match out.last_mut() {
        Some(Event::Arguments(text)) => text.push(c),
        _ => out.push(Event::Arguments(c.to_string())),
    }
}

/// Arguments that are no plain object: a text that holds one, or `null`.
fn object(text: &str) -> Option<String> {
    match serde_json::from_str(text).ok()? {
        Value::Object(_) => Some(text.to_owned()),
        Value::String(inner) => {
            let inner: Value = serde_json::from_str(&inner).ok()?;
            inner.is_object().then(|| inner.to_string())
        }
        Value::Null => Some("{}".to_owned()),
        _ => None,
    }
}
