//! A call of Gemma 4: `name{key:value, ..}`, with texts between `<|"|>`.

use serde_json::{Map, Value};

use super::call::{Event, HELD_CHARS_MAX, Step, Until, is_name};
use super::literal;

const QUOTE: &str = "<|\"|>";
/// How deep values may be nested.
const DEPTH_MAX: usize = 64;

/// Reads such a call. Its arguments are given out when it ends.
#[derive(Debug, Clone)]
pub(super) struct GemmaCall {
    name: Option<String>,
    until: Until,
    close: &'static str,
}

impl GemmaCall {
    pub(super) fn new(close: &'static str) -> GemmaCall {
        GemmaCall { name: None, until: Until::default(), close }
    }

    pub(super) fn feed(&mut self, c: char, out: &mut Vec<Event>) -> Step {
        if self.until.text().len() > HELD_CHARS_MAX {
            return Step::Failed;
        }
        let Some(name) = &self.name else {
            if let Some(name) = self.until.feed(c, "{") {
                let name = name.trim().to_owned();
                let step = if is_name(&name) { Step::More } else { Step::Failed };
                self.name = Some(name);
                return step;
            }
            return Step::More;
        };
        let Some(body) = self.until.feed(c, self.close) else {
            return Step::More;
        };
        let mut reader = Reader { rest: &body };
        match reader.dict(0) {
            Some(arguments) if reader.rest.trim().is_empty() => {
                out.push(Event::Begin { name: name.clone(), id: None });
                out.push(Event::Arguments(Value::Object(arguments).to_string()));
                Step::done()
            }
            _ => Step::Failed,
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn skip(&mut self, wanted: &str) -> bool {
        let rest = self.rest.trim_start();
        let found = rest.strip_prefix(wanted);
        self.rest = found.unwrap_or(rest);
        found.is_some()
    }

    fn until(&mut self, marks: &[char]) -> &'a str {
        let at = self.rest.find(marks).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(at);
        self.rest = rest;
        text
    }

    fn text(&mut self) -> Option<&'a str> {
        let (text, rest) = self.rest.split_once(QUOTE)?;
        self.rest = rest;
        Some(text)
    }

    /// A dictionary, behind its `{`.
    fn dict(&mut self, depth: usize) -> Option<Map<String, Value>> {
        let mut items = Map::new();
        while !self.skip("}") {
            if !items.is_empty() && !self.skip(",") {
                return None;
            }
            let key = if self.skip(QUOTE) { self.text()? } else { self.until(&[':', '}']).trim() };
            if !self.skip(":") {
                return None;
            }
            items.insert(key.to_owned(), self.value(depth + 1)?);
        }
        Some(items)
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        if self.skip(QUOTE) {
            return self.text().map(Value::from);
        }
        if self.skip("{") {
            return self.dict(depth).map(Value::Object);
        }
        if self.skip("[") {
            let mut items = Vec::new();
            while !self.skip("]") {
                if !items.is_empty() && !self.skip(",") {
                    return None;
                }
                items.push(self.value(depth + 1)?);
            }
            return Some(Value::Array(items));
        }
        literal::parse(self.until(&[',', '}', ']']).trim())
    }
}
