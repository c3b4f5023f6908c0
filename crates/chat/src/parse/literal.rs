//! Values as Python writes them, which take in those of JSON.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::{Map, Number, Value};

/// How deep values may be nested.
const DEPTH_MAX: usize = 64;

/// The value that `text` is, all of it.
pub(super) fn parse(text: &str) -> Option<Value> {
    if let Ok(value) = serde_json::from_str(text) {
        return Some(value);
    }
    let mut reader = Reader { chars: text.chars().peekable() };
    let value = reader.value(0)?;
    reader.blanks();
    reader.chars.next().is_none().then_some(value)
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        while self.chars.next_if(|c| c.is_whitespace()).is_some() {}
    }

    fn skip(&mut self, wanted: char) -> bool {
        self.blanks();
        self.chars.next_if_eq(&wanted).is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.blanks();
        match *self.chars.peek()? {
            quote @ ('"' | '\'') => self.text(quote).map(Value::String),
            '[' => self.list(']', depth),
            '(' => self.list(')', depth),
            '{' => self.dict(depth),
            _ => self.word(),
        }
    }

    fn list(&mut self, close: char, depth: usize) -> Option<Value> {
        self.chars.next();
        let mut items = Vec::new();
        while !self.skip(close) {
            if !items.is_empty() {
                if !self.skip(',') {
                    return None;
                }
                // A comma may end a list, as in Python.
                if self.skip(close) {
                    break;
                }
            }
            items.push(self.value(depth + 1)?);
        }
        Some(Value::Array(items))
    }

    fn dict(&mut self, depth: usize) -> Option<Value> {
        self.chars.next();
        let mut items = Map::new();
        while !self.skip('}') {
            if !items.is_empty() {
                if !self.skip(',') {
                    return None;
                }
                if self.skip('}') {
                    break;
                }
            }
            self.blanks();
            let key = match *self.chars.peek()? {
                quote @ ('"' | '\'') => self.text(quote)?,
                _ => self.word()?.to_string(),
            };
            if !self.skip(':') {
                return None;
            }
            items.insert(key, self.value(depth + 1)?);
        }
        Some(Value::Object(items))
    }

    fn text(&mut self, quote: char) -> Option<String> {
        self.chars.next();
        let mut text = String::new();
        loop {
            match self.chars.next()? {
                c if c == quote => return Some(text),
                '\\' => match self.chars.next()? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'b' => text.push('\u{8}'),
                    'f' => text.push('\u{c}'),
                    'x' => text.push(self.code(2)?),
                    'u' => text.push(self.code(4)?),
                    '\n' => {}
                    c @ ('\\' | '\'' | '"' | '/') => text.push(c),
                    c => text.extend(['\\', c]),
                },
                c => text.push(c),
            }
        }
    }

    fn code(&mut self, digits: usize) -> Option<char> {
        let digits: String = self.chars.by_ref().take(digits).collect();
        char::from_u32(u32::from_str_radix(&digits, 16).ok()?)
    }

    fn word(&mut self) -> Option<Value> {
        let mut word = String::new();
        while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || "+-._".contains(*c)) {
            word.push(c);
        }
        match word.as_str() {
            "None" | "null" => Some(Value::Null),
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            word => {
                let word = word.replace('_', "");
                let number: Option<Number> = serde_json::from_str(&word).ok();
                number.or_else(|| Number::from_f64(word.parse().ok()?)).map(Value::Number)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_python_and_json_are_read() {
        let cases = [
            ("{'a': [1, 2.5,], \"b\": None}", Some(json!({"a": [1, 2.5], "b": null}))),
            ("('x\\'y', True)", Some(json!(["x'y", true]))),
            ("[]", Some(json!([]))),
            ("[ ]", Some(json!([]))),
            ("[[1,],[2]]", Some(json!([[1], [2]]))),
            ("1_000", Some(json!(1000))),
            ("'\\u00e9\\x41'", Some(json!("éA"))),
            ("{1: 2}", Some(json!({"1": 2}))),
            ("[1 2]", None),
            ("{'a' 1}", None),
            ("'open", None),
            ("hello", None),
            ("1 2", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
