//! A call as a name and a tagged text for each argument.

use std::sync::Arc;

use serde_json::Value;

use super::call::{Event, HELD_CHARS_MAX, NAME_BYTES_MAX, Step, Until, is_name};
use super::literal;
use crate::format::Tags;
use crate::message::Tool;

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A text, as it stands.
    Text,
    /// JSON, or what Python writes for it; a text if it is neither.
    Json,
    /// As `Json`, but a text unless it has one of the other types that the schema allows.
    Either,
}

#[derive(Debug, Clone)]
enum State {
    /// The name so far.
    Name(Until),
    /// Between arguments, with what came since the last.
    Between(String),
    Key(Until),
    /// Behind the key: attributes, and the mark before the value.
    Attributes(Until, Kind),
    /// A text that is passed on as it comes; whether it has begun.
    Text(Until, bool),
    /// Any other value.
    Value(Until, Kind),
}

/// Reads such a call.
#[derive(Debug, Clone)]
pub(super) struct TaggedCall {
    tags: Tags,
    close: &'static str,
    tools: Arc<[Tool]>,
    name: String,
    key: String,
    arguments: usize,
    state: State,
}

impl TaggedCall {
    pub(super) fn new(tags: Tags, close: &'static str, tools: Arc<[Tool]>) -> TaggedCall {
        let state = State::Name(Until::default());
        TaggedCall {
            tags,
            close,
            tools,
            name: String::new(),
            key: String::new(),
            arguments: 0,
            state,
        }
    }

    pub(super) fn feed(&mut self, c: char, out: &mut Vec<Event>) -> Step {
        match &mut self.state {
            State::Name(until) => {
                // The mark may be missing where arguments or the end follow at once.
                let marks = [self.tags.name_end, self.tags.open, self.close];
                let text = [until.text(), &c.to_string()].concat();
                let Some(mark) = marks.into_iter().find(|mark| text.ends_with(mark)) else {
                    let too_long = text.len() > NAME_BYTES_MAX + self.close.len();
                    until.feed(c, "\0");
                    return if too_long { Step::Failed } else { Step::More };
                };
                // Attributes may follow the name.
                let name = text.strip_suffix(mark).and_then(|name| name.split('"').next());
                let name = name.unwrap_or_default().trim().to_owned();
                if name.is_empty() && mark.trim().is_empty() {
                    until.feed(c, "\0");
                    return Step::More;
                }
                self.named(name, mark, out)
            }
            State::Between(text) => {
                text.push(c);
                let text = text.trim_start();
                if text == self.tags.open {
                    self.state = State::Key(Until::default());
                    return Step::More;
                }
                if text == self.close {
                    return self.done(out);
                }
                let goes_on = self.tags.open.starts_with(text) || self.close.starts_with(text);
                if goes_on { Step::More } else { Step::Failed }
            }
            State::Key(until) => match until.feed(c, self.tags.key_end) {
                Some(key) => {
                    self.key = key.trim().to_owned();
                    let kind = self.kind();
                    match self.tags.value_begin {
                        "" => self.value_begins(kind, out),
                        _ => {
                            self.state = State::Attributes(Until::default(), kind);
                            Step::More
                        }
                    }
                }
                None if until.text().len() > NAME_BYTES_MAX => Step::Failed,
                None => Step::More,
            },
            State::Attributes(until, kind) => match until.feed(c, self.tags.value_begin) {
                Some(attributes) => {
                    let says = |kind: &str| attributes.trim() == kind.trim();
                    let kind = match self.tags.kinds {
                        Some((text, _)) if says(text) => Kind::Text,
                        Some(_) => Kind::Json,
                        None => *kind,
                    };
                    self.value_begins(kind, out)
                }
                None if until.text().len() > NAME_BYTES_MAX => Step::Failed,
                None => Step::More,
            },
            State::Text(until, begun) => {
                if self.tags.padded && !*begun && c == '\n' && until.text().is_empty() {
                    *begun = true;
                    return Step::More;
                }
                *begun = true;
                let line = if self.tags.padded { "\n" } else { "" };
                match until.feed(c, self.tags.value_end) {
                    Some(rest) => {
                        let rest = rest.strip_suffix(line).unwrap_or(&rest);
                        out.push(Event::Arguments(format!("{}\"", escaped(rest))));
                        self.state = State::Between(String::new());
                    }
                    None => {
                        let certain = until.take_certain(self.tags.value_end, line);
                        if !certain.is_empty() {
                            out.push(Event::Arguments(escaped(&certain)));
                        }
                    }
                }
                Step::More
            }
            State::Value(until, kind) => match until.feed(c, self.tags.value_end) {
                Some(text) => {
                    let kind = *kind;
                    let value = self.value(&text, kind);
                    out.push(Event::Arguments(value.to_string()));
                    self.state = State::Between(String::new());
                    Step::More
                }
                None if until.text().len() > HELD_CHARS_MAX => Step::Failed,
                None => Step::More,
            },
        }
    }

    fn named(&mut self, name: String, mark: &str, out: &mut Vec<Event>) -> Step {
        if !is_name(&name) {
            return Step::Failed;
        }
        out.push(Event::Begin { name: name.clone(), id: None });
        self.name = name;
        if mark == self.close {
            return self.done(out);
        }
        self.state = match mark == self.tags.open {
            true => State::Key(Until::default()),
            false => State::Between(String::new()),
        };
        Step::More
    }

    fn value_begins(&mut self, kind: Kind, out: &mut Vec<Event>) -> Step {
        let comma = if self.arguments == 0 { "{" } else { ", " };
        self.arguments += 1;
        let passes = kind == Kind::Text && !self.tags.cdata;
        let quote = if passes { "\"" } else { "" };
        out.push(Event::Arguments(format!("{comma}{}: {quote}", Value::from(&*self.key))));
        self.state = match passes {
            true => State::Text(Until::default(), false),
            false => State::Value(Until::default(), kind),
        };
        Step::More
    }

    fn done(&mut self, out: &mut Vec<Event>) -> Step {
        out.push(Event::Arguments(if self.arguments == 0 { "{}" } else { "}" }.to_owned()));
        Step::done()
    }

    fn schema(&self) -> Option<&Value> {
        let tool = self.tools.iter().find(|tool| tool.name == self.name)?;
        tool.parameters.get("properties")?.get(&self.key)
    }

    /// What the tool's schema says of this argument.
    fn kind(&self) -> Kind {
        let types = self.schema().map(types).unwrap_or_default();
        match types.iter().any(|name| name == "string") {
            true if types.len() == 1 => Kind::Text,
            true => Kind::Either,
            false => Kind::Json,
        }
    }

    fn value(&self, text: &str, kind: Kind) -> Value {
        let line = if self.tags.padded { "\n" } else { "" };
        let text = text.strip_prefix(line).unwrap_or(text);
        let text = text.strip_suffix(line).unwrap_or(text);
        let quoted = text.strip_prefix("<![CDATA[").and_then(|text| text.strip_suffix("]]>"));
        if let Some(text) = quoted.filter(|_| self.tags.cdata) {
            return Value::from(text);
        }
        if kind == Kind::Text {
            return Value::from(text);
        }
        let parsed = literal::parse(text.trim());
        let fits = |value: &Value| {
            let types = self.schema().map(types).unwrap_or_default();
            kind == Kind::Json || types.iter().any(|name| name == type_of(value))
        };
        parsed.filter(fits).unwrap_or_else(|| Value::from(text))
    }
}

/// The types that a schema allows.
fn types(schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    match schema.get("type") {
        Some(Value::String(name)) => found.push(name.clone()),
        Some(Value::Array(names)) => {
            found.extend(names.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        _ => {}
    }
    for key in ["anyOf", "oneOf"] {
        let choices = schema.get(key).and_then(Value::as_array);
        found.extend(
            choices
                .into_iter()
                .flatten()
                .flat_map(|choice| choice.get("type").and_then(Value::as_str).map(str::to_owned)),
        );
    }
    if let (true, Some(choices)) = (found.is_empty(), schema.get("enum").and_then(Value::as_array))
    {
        found.extend(choices.iter().map(|choice| type_of(choice).to_owned()));
    }
    found.dedup();
    found
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What stands between the quotes of a JSON text.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned()
}
