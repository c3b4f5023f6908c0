//! A JSON value, character by character: where it ends, and whether it is one.

/// How deep values may be nested.
const DEPTH_MAX: usize = 128;

/// What became of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// It belongs to the value, which goes on.
    More,
    /// It ends the value, and belongs to it.
    Last,
    /// The value, a number or a word, ended before it.
    Past,
    /// No JSON goes on like that.
    Bad,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    /// A value, or the end of the list that has just begun.
    FirstItem,
    /// A key, or the end of the object that has just begun.
    FirstKey,
    Key,
    Colon,
    /// A comma or the end of what is open.
    Comma,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Inside {
    Nothing,
    /// A text; `is_key` if a colon follows.
    Text {
        is_key: bool,
    },
    Escape {
        is_key: bool,
    },
    /// Digits of `\u` that are to come.
    Unicode {
        is_key: bool,
        left: u8,
    },
    /// A number or word so far.
    Word(String),
}

/// Scans one value.
#[derive(Debug, Clone)]
pub(super) struct Scanner {
    /// `[` and `{` that are open.
    open: Vec<char>,
    expect: Expect,
    inside: Inside,
}

impl Scanner {
    pub(super) fn new() -> Scanner {
        Scanner { open: Vec::new(), expect: Expect::Value, inside: Inside::Nothing }
    }

    pub(super) fn feed(&mut self, c: char) -> Scan {
        match &mut self.inside {
            Inside::Nothing => self.outside(c),
            Inside::Text { is_key } => {
                let is_key = *is_key;
                match c {
                    '"' => self.text_ends(is_key),
                    '\\' => self.go(Inside::Escape { is_key }),
                    c if u32::from(c) < 0x20 => Scan::Bad,
                    _ => Scan::More,
                }
            }
            Inside::Escape { is_key } => {
                let is_key = *is_key;
                match c {
                    '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => {
                        self.go(Inside::Text { is_key })
                    }
                    'u' => self.go(Inside::Unicode { is_key, left: 4 }),
                    _ => Scan::Bad,
                }
            }
            Inside::Unicode { is_key, left } => {
                let (is_key, left) = (*is_key, *left - 1);
                match left {
                    _ if !c.is_ascii_hexdigit() => Scan::Bad,
                    0 => self.go(Inside::Text { is_key }),
                    left => self.go(Inside::Unicode { is_key, left }),
                }
            }
            Inside::Word(word) => {
                if c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.') {
                    word.push(c);
                    // No number is longer that means anything.
                    return if word.len() > 64 { Scan::Bad } else { Scan::More };
                }
                let valid = serde_json::from_str::<serde_json::Value>(word).is_ok();
                self.inside = Inside::Nothing;
                self.expect = Expect::Comma;
                match valid {
                    false => Scan::Bad,
                    true if self.open.is_empty() => Scan::Past,
                    true => self.outside(c),
                }
            }
        }
    }

    fn go(&mut self, inside: Inside) -> Scan {
        self.inside = inside;
        Scan::More
    }

    fn text_ends(&mut self, is_key: bool) -> Scan {
        self.inside = Inside::Nothing;
        self.expect = if is_key { Expect::Colon } else { Expect::Comma };
        if self.open.is_empty() { Scan::Last } else { Scan::More }
    }

    fn outside(&mut self, c: char) -> Scan {
        if matches!(c, ' ' | '\t' | '\n' | '\r') {
            return Scan::More;
        }
        let starts_value = matches!(self.expect, Expect::Value | Expect::FirstItem);
        match (c, self.expect) {
            ('"', Expect::FirstKey | Expect::Key) => self.go(Inside::Text { is_key: true }),
            ('"', _) if starts_value => self.go(Inside::Text { is_key: false }),
            ('{' | '[', _) if starts_value && self.open.len() < DEPTH_MAX => {
                self.open.push(c);
                self.expect = if c == '{' { Expect::FirstKey } else { Expect::FirstItem };
                Scan::More
            }
            ('}', Expect::FirstKey | Expect::Comma) => self.close('{'),
            (']', Expect::FirstItem | Expect::Comma) => self.close('['),
            (':', Expect::Colon) => {
                self.expect = Expect::Value;
                Scan::More
            }
            (',', Expect::Comma) => {
                let in_object = self.open.last() == Some(&'{');
                self.expect = if in_object { Expect::Key } else { Expect::Value };
                if self.open.is_empty() { Scan::Bad } else { Scan::More }
            }
            (c, _) if starts_value && (c.is_ascii_alphanumeric() || c == '-') => {
                self.go(Inside::Word(c.to_string()))
            }
            _ => Scan::Bad,
        }
    }

    fn close(&mut self, bracket: char) -> Scan {
        if self.open.pop() != Some(bracket) {
            return Scan::Bad;
        }
        self.expect = Expect::Comma;
        if self.open.is_empty() { Scan::Last } else { Scan::More }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of the value at the beginning, if there is one.
    fn scan(text: &str) -> Option<usize> {
        let mut scanner = Scanner::new();
        for (at, c) in text.char_indices() {
            match scanner.feed(c) {
                Scan::More => {}
                Scan::Last => return Some(at + c.len_utf8()),
                Scan::Past => return Some(at),
                Scan::Bad => return None,
            }
        }
        None
    }

    #[test]
    fn a_value_ends_where_json_says() {
        for text in [
            r#"{}"#,
            r#"[]"#,
            r#""a\"\u00e9 b""#,
            r#"{"a": [1, -2.5e3, {"b": null}], "c": "}"}"#,
            "[true, false, [[]]]",
        ] {
            assert_eq!(scan(&format!("{text} x")), Some(text.len()), "{text}");
        }
        assert_eq!(scan("12,"), Some(2));
        for text in
            ["{a", "{,", "[1 2]", "[1}", "\"\\x\"", "{\"a\" 1}", "nul ", "01 ", "{\"a\":}", ","]
        {
            assert_eq!(scan(text), None, "{text}");
        }
    }
}
