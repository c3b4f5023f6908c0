//! Jinja2's lexer, with `trim_blocks` and `lstrip_blocks`: a template's text, outputs and tags.
//!
//! After `jinja2/lexer.py`, whose rules on whitespace around tags it follows to the byte.

use super::syntax_error;
use minijinja::Error;

/// A word of an expression.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// An identifier or keyword.
    Name(String),
    /// A string literal, its escapes resolved.
    Text(String),
    /// A whole number, in decimal.
    Integer(String),
    /// A number with a point or an exponent.
    Float(String),
    /// An operator or bracket.
    Op(&'static str),
}

/// A part of a template. Whitespace that tags take away is already gone.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// Text to be written as it is.
    Data(String),
    /// `{{ .. }}`
    Output(Vec<Token>),
    /// `{% .. %}`
    Tag(Vec<Token>),
}

/// Longest first.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";", "!",
];

/// Takes a template apart.
pub(super) fn lex(source: &str) -> Result<Vec<Piece>, Error> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { rest: &source, line_starting: true, pieces: Vec::new() };
    while !lexer.rest.is_empty() {
        lexer.piece()?;
    }
    Ok(lexer.pieces)
}

struct Lexer<'a> {
    rest: &'a str,
    /// Whether what was read last ended a line.
    line_starting: bool,
    pieces: Vec<Piece>,
}

impl<'a> Lexer<'a> {
    /// Reads text, and the tag behind it.
    fn piece(&mut self) -> Result<(), Error> {
        let opens =
            |at: &usize| matches!(self.rest.as_bytes().get(at + 1), Some(b'%' | b'{' | b'#'));
        let Some(at) = self.rest.match_indices('{').map(|(at, _)| at).find(opens) else {
            self.data(self.rest, false);
            self.rest = "";
            return Ok(());
        };
        let (text, rest) = self.rest.split_at(at);
        let (open, rest) = rest.split_at(2);
        let sign = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
        self.text_before(text, sign, open != "{{");
        self.rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        match open {
            "{#" => self.comment(),
            "{%" => match raw_begin(self.rest) {
                Some((gap, body)) => self.raw(gap, body),
                None => self.tokens("%}").map(|tokens| self.pieces.push(Piece::Tag(tokens))),
            },
            _ => self.tokens("}}").map(|tokens| self.pieces.push(Piece::Output(tokens))),
        }
    }

    /// Text before a tag that begins with `sign`; blocks take the blanks of their line.
    fn text_before(&mut self, text: &'a str, sign: Option<char>, is_block: bool) {
        let kept = match sign {
            Some('-') => text.trim_end_matches(is_space),
            None if is_block => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let blank = text.get(line..).is_some_and(|line| line.chars().all(is_space));
                match blank && (line > 0 || self.line_starting) {
                    true => text.get(..line).unwrap_or(text),
                    false => text,
                }
            }
            _ => text,
        };
        self.data(kept, true);
    }

    fn data(&mut self, text: &str, before_tag: bool) {
        if !text.is_empty() {
            self.pieces.push(Piece::Data(text.to_owned()));
        }
        self.line_starting = !before_tag && text.ends_with('\n');
    }

    /// Takes `close` with its sign and the whitespace that it eats; false if it isn't next.
    fn close(&mut self, close: &str) -> bool {
        let after =
            |prefix: &str| self.rest.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(close));
        let is_block = close != "}}";
        let rest = if let Some(rest) = after("-") {
            rest.trim_start_matches(is_space)
        } else if let Some(rest) = after("").or_else(|| is_block.then(|| after("+")).flatten()) {
            let eats_newline = is_block && !self.rest.starts_with('+');
            rest.strip_prefix('\n').filter(|_| eats_newline).unwrap_or(rest)
        } else {
            return false;
        };
        let eaten = self.rest.len() - rest.len();
        self.line_starting = self.rest.get(..eaten).is_some_and(|text| text.ends_with('\n'));
        self.rest = rest;
        true
    }

    fn comment(&mut self) -> Result<(), Error> {
        let Some(at) = self.rest.find("#}") else {
            return Err(syntax_error("a comment has no end"));
        };
        let signed = self.rest.get(..at).is_some_and(|text| text.ends_with(['-', '+']));
        self.rest = self.rest.get(at - usize::from(signed)..).unwrap_or_default();
        self.close("#}");
        Ok(())
    }

    /// `{% raw %}`: `body` is what follows it, `gap` whether it begins by eating whitespace.
    fn raw(&mut self, gap: bool, body: &'a str) -> Result<(), Error> {
        self.line_starting = false;
        let body = if gap { body.trim_start_matches(is_space) } else { body };
        let mut from = 0;
        while let Some(at) = body.get(from..).and_then(|text| text.find("{%")) {
            let (text, rest) = body.split_at(from + at);
            let tag = rest.get(2..).unwrap_or_default();
            let sign = tag.chars().next().filter(|c| matches!(c, '-' | '+'));
            let tag = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start_matches(is_space);
            if let Some(rest) = tag.strip_prefix("endraw") {
                self.rest = rest.trim_start_matches(is_space);
                self.text_before(text, sign, true);
                if self.close("%}") {
                    return Ok(());
                }
            }
            from += at + 2;
        }
        Err(syntax_error("a raw block has no end"))
    }

    /// The tokens up to `close`, which ends the tag where no bracket is open.
    fn tokens(&mut self, close: &str) -> Result<Vec<Token>, Error> {
        let mut tokens = Vec::new();
        let mut open = 0_usize;
        loop {
            if open == 0 && self.close(close) {
                return Ok(tokens);
            }
            let trimmed = self.rest.trim_start_matches(is_space);
            if trimmed.len() < self.rest.len() {
                self.rest = trimmed;
                continue;
            }
            let token = self.token()?;
            match token {
                Token::Op("(" | "[" | "{") => open += 1,
                Token::Op(")" | "]" | "}") => {
                    open = open.checked_sub(1).ok_or_else(|| syntax_error("a bracket too many"))?;
                }
                _ => {}
            }
            tokens.push(token);
        }
    }

    fn token(&mut self) -> Result<Token, Error> {
        let Some(first) = self.rest.chars().next() else {
            return Err(syntax_error("a tag has no end"));
        };
        if first.is_ascii_digit() {
            return Ok(self.number());
        }
        if first.is_alphanumeric() || first == '_' {
            let name = self.take(|c| c.is_alphanumeric() || c == '_');
            return Ok(Token::Name(name.to_owned()));
        }
        if matches!(first, '"' | '\'') {
            return self.string(first);
        }
        for operator in OPERATORS {
            if let Some(rest) = self.rest.strip_prefix(operator) {
                self.rest = rest;
                return Ok(Token::Op(operator));
            }
        }
        Err(syntax_error(format!("the character {first:?} has no meaning in a tag")))
    }

    fn take(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest.trim_start_matches(accept);
        let (taken, rest) = self.rest.split_at(self.rest.len() - rest.len());
        self.rest = rest;
        taken
    }

    fn number(&mut self) -> Token {
        let digit = |c: char| c.is_ascii_digit() || c == '_';
        let prefix = self.rest.get(..2).unwrap_or_default().to_ascii_lowercase();
        let radix = match prefix.as_str() {
            "0x" => 16,
            "0o" => 8,
            "0b" => 2,
            _ => 10,
        };
        if radix != 10 {
            let digits: String = self.take(|c| c.is_alphanumeric() || c == '_').replace('_', "");
            let value = digits.get(2..).and_then(|text| i64::from_str_radix(text, radix).ok());
            return Token::Integer(value.unwrap_or_default().to_string());
        }
        let mut text = self.take(digit).to_owned();
        let mut is_float = false;
        let fraction = self.rest.strip_prefix('.');
        if fraction.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
            is_float = true;
            self.rest = fraction.unwrap_or_default();
            text.push('.');
            text.push_str(self.take(digit));
        }
        if let Some(rest) = self.rest.strip_prefix(['e', 'E']) {
            let digits = rest.strip_prefix(['+', '-']).unwrap_or(rest);
            if digits.starts_with(|c: char| c.is_ascii_digit()) {
                is_float = true;
                text.push('e');
                text.push_str(rest.strip_suffix(digits).unwrap_or_default());
                self.rest = digits;
                text.push_str(self.take(digit));
            }
        }
        let text = text.replace('_', "");
        if is_float { Token::Float(text) } else { Token::Integer(text) }
    }

    fn string(&mut self, quote: char) -> Result<Token, Error> {
        let body = self.rest.get(1..).unwrap_or_default();
        let mut chars = body.char_indices();
        while let Some((at, c)) = chars.next() {
            if c == '\\' {
                chars.next();
            } else if c == quote {
                let (text, rest) = body.split_at(at);
                self.rest = rest.get(1..).unwrap_or_default();
                return Ok(Token::Text(unescape(text)));
            }
        }
        Err(syntax_error("a string has no end"))
    }
}

/// Whether `rest`, behind `{%`, is the rest of `{% raw %}`: whether that ends in `-%}`, and what
/// follows it.
fn raw_begin(rest: &str) -> Option<(bool, &str)> {
    let rest = rest.trim_start_matches(is_space).strip_prefix("raw")?;
    let rest = rest.trim_start_matches(is_space);
    match rest.strip_prefix("-%}") {
        Some(body) => Some((true, body)),
        None => rest.strip_prefix("%}").map(|body| (false, body)),
    }
}

/// Whitespace in the sense of Python's `str.isspace`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's escapes in string literals, as its codec `unicode-escape` reads them. An unknown one
/// stays as it is.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let escape = escape.get(1..).unwrap_or_default();
        let Some(c) = escape.chars().next() else {
            out.push('\\');
            return out;
        };
        let after = escape.get(c.len_utf8()..).unwrap_or_default();
        let (replacement, length) = match c {
            '\n' => (None, 0),
            'n' => (Some('\n'), 0),
            't' => (Some('\t'), 0),
            'r' => (Some('\r'), 0),
            'a' => (Some('\x07'), 0),
            'b' => (Some('\x08'), 0),
            'f' => (Some('\x0c'), 0),
            'v' => (Some('\x0b'), 0),
            '\\' | '\'' | '"' => (Some(c), 0),
            'x' => (code(after, 2, 16), 2),
            'u' => (code(after, 4, 16), 4),
            'U' => (code(after, 8, 16), 8),
            '0'..='7' => {
                let digits = escape.chars().take(3).take_while(|c| c.is_digit(8)).count();
                (code(escape, digits, 8), digits - 1)
            }
            _ => {
                out.push('\\');
                (Some(c), 0)
            }
        };
        out.extend(replacement);
        rest = after.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

fn code(text: &str, digits: usize, radix: u32) -> Option<char> {
    text.get(..digits)
        .and_then(|text| u32::from_str_radix(text, radix).ok())
        .and_then(char::from_u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(source: &str) -> String {
        let text = |piece| match piece {
            Piece::Data(text) => text,
            Piece::Output(_) => "O".to_owned(),
            Piece::Tag(_) => "T".to_owned(),
        };
        lex(source).unwrap().into_iter().map(text).collect()
    }

    /// Expected values are Python's.
    #[test]
    fn tags_take_whitespace_as_in_jinja2() {
        assert_eq!(data("a\n  {% if x %}  \n b {{ y }}\n {%- endif %}\n\n"), "a\nT  \n b OT");
        assert_eq!(data("  {%+ if x +%}\nb {% endif %} c"), "  T\nb T c");
        assert_eq!(data("a {#- x -#} \n b {# y #}\n c"), "ab  c");
        assert_eq!(data("a {{- x -}}  b"), "aOb");
        assert_eq!(data("{% raw -%} {{ x }} {%- endraw %}\nz"), "{{ x }}z");
        assert_eq!(data("{{ {'a': {'b': '}}'}} }}\r\nz\r"), "O\nz");
    }

    #[test]
    fn strings_are_pythons() {
        let text = |source: &str| match lex(source).unwrap().remove(0) {
            Piece::Output(mut tokens) => tokens.remove(0),
            other => panic!("{other:?}"),
        };
        assert_eq!(text(r#"{{ 'a\'\n\x41\u00e9\d\101' }}"#), Token::Text("a'\nA\u{e9}\\dA".into()));
        assert_eq!(text("{{ 1_0.5e-3 }}"), Token::Float("10.5e-3".into()));
    }

    #[test]
    fn what_has_no_end_is_an_error() {
        for source in ["{{ 'a", "{{ (a }}", "{% if", "{# a", "{% raw %} a", "{{ a) }}", "{{ ? }}"] {
            assert!(lex(source).is_err(), "{source}");
        }
    }
}
