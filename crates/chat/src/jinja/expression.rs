//! Expressions of Jinja2, translated into minijinja's.
//!
//! The grammar is Jinja2's (`jinja2/parser.py`). All operators become calls of functions that do
//! what Python does (see `operators.rs`) and that count what they make (see `work.rs`).

use super::lexer::Token;
use super::syntax_error;
use minijinja::Error;

/// How deep expressions may be nested, postfixes counted too. Nothing public comes near.
const DEPTH_MAX: usize = 100;

/// Arguments of one call; minijinja takes 2000 at most.
const ARGUMENTS_MAX: usize = 1000;

/// Attributes that Python finds on a dictionary before the keys of the same name.
const DICT_METHODS: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];

/// Reads the tokens of one tag.
pub(super) struct Expressions<'a> {
    tokens: &'a [Token],
    depth: usize,
}

impl<'a> Expressions<'a> {
    pub(super) fn new(tokens: &'a [Token]) -> Expressions<'a> {
        Expressions { tokens, depth: 0 }
    }

    pub(super) fn peek(&self) -> Option<&'a Token> {
        self.tokens.first()
    }

    pub(super) fn next(&mut self) -> Option<&'a Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    /// Takes the operator `op` if it is next.
    pub(super) fn skip_op(&mut self, op: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Op(next)) if *next == op);
        if found {
            self.next();
        }
        found
    }

    /// Takes the keyword if it is next.
    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(next)) if next == name)
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Token::Op(next)) if *next == op)
    }

    pub(super) fn expect_op(&mut self, op: &str) -> Result<(), Error> {
        match self.skip_op(op) {
            true => Ok(()),
            false => Err(syntax_error(format!("expected {op:?}, found {:?}", self.peek()))),
        }
    }

    pub(super) fn name(&mut self) -> Result<&'a str, Error> {
        match self.next() {
            Some(Token::Name(name)) => Ok(name),
            other => Err(syntax_error(format!("expected a name, found {other:?}"))),
        }
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), Error> {
        match self.peek() {
            None => Ok(()),
            Some(token) => Err(syntax_error(format!("unexpected {token:?}"))),
        }
    }

    /// An expression, or several with commas between them, which make a list.
    pub(super) fn tuple(&mut self, conditional: bool) -> Result<String, Error> {
        let first = self.expression(conditional)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_op(",") && self.peek().is_some() && !self.is_op(")") {
            items.push(self.expression(conditional)?);
        }
        Ok(format!("[{}]", items.join(", ")))
    }

    /// An expression; without `conditional`, an `if` ends it.
    pub(super) fn expression(&mut self, conditional: bool) -> Result<String, Error> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(syntax_error("expressions are nested too deep"));
        }
        let mut value = self.or()?;
        while conditional && self.skip_name("if") {
            let condition = self.or()?;
            value = match self.skip_name("else") {
                true => format!("({value} if {condition} else {})", self.expression(true)?),
                false => format!("({value} if {condition})"),
            };
        }
        self.depth -= 1;
        Ok(value)
    }

    fn or(&mut self) -> Result<String, Error> {
        let mut terms = vec![self.and()?];
        while self.skip_name("or") {
            terms.push(self.and()?);
        }
        Ok(joined(terms, " or "))
    }

    fn and(&mut self) -> Result<String, Error> {
        let mut terms = vec![self.not()?];
        while self.skip_name("and") {
            terms.push(self.not()?);
        }
        Ok(joined(terms, " and "))
    }

    fn not(&mut self) -> Result<String, Error> {
        let mut negations = 0;
        while self.skip_name("not") {
            negations += 1;
        }
        let value = self.compare()?;
        match negations {
            0 => Ok(value),
            n if n % 2 == 1 => Ok(format!("(not {value})")),
            _ => Ok(format!("(not (not {value}))")),
        }
    }

    fn compare(&mut self) -> Result<String, Error> {
        let mut left = self.sum()?;
        let mut terms = Vec::new();
        while let Some(function) = self.comparison() {
            let right = self.sum()?;
            terms.push(format!("{function}({left}, {right})"));
            left = right;
        }
        match terms.is_empty() {
            true => Ok(left),
            false => Ok(joined(terms, " and ")),
        }
    }

    fn comparison(&mut self) -> Option<&'static str> {
        let function = match self.tokens {
            [Token::Op("=="), ..] => "__eq",
            [Token::Op("!="), ..] => "__ne",
            [Token::Op("<"), ..] => "__lt",
            [Token::Op("<="), ..] => "__le",
            [Token::Op(">"), ..] => "__gt",
            [Token::Op(">="), ..] => "__ge",
            [Token::Name(name), ..] if name == "in" => "__in",
            [Token::Name(not), Token::Name(name), ..] if not == "not" && name == "in" => {
                self.next();
                "__not_in"
            }
            _ => return None,
        };
        self.next();
        Some(function)
    }

    fn sum(&mut self) -> Result<String, Error> {
        let mut terms = vec![self.concat()?];
        loop {
            if self.skip_op("+") {
                terms.push(self.concat()?);
            } else if self.skip_op("-") {
                let left = called("__add", terms);
                terms = vec![format!("__sub({left}, {})", self.concat()?)];
            } else {
                return Ok(called("__add", terms));
            }
        }
    }

    fn concat(&mut self) -> Result<String, Error> {
        let mut terms = vec![self.product()?];
        while self.skip_op("~") {
            terms.push(self.product()?);
        }
        Ok(called("__concat", terms))
    }

    fn product(&mut self) -> Result<String, Error> {
        let functions = [("*", "__mul"), ("/", "__div"), ("//", "__floordiv"), ("%", "__mod")];
        let mut left = self.power()?;
        while let Some((_, function)) = functions.iter().find(|(op, _)| self.is_op(op)) {
            self.next();
            left = format!("{function}({left}, {})", self.power()?);
        }
        Ok(left)
    }

    fn power(&mut self) -> Result<String, Error> {
        let mut left = self.unary(true)?;
        while self.skip_op("**") {
            left = format!("__pow({left}, {})", self.unary(true)?);
        }
        Ok(left)
    }

    fn unary(&mut self, filters: bool) -> Result<String, Error> {
        let value = if self.skip_op("-") {
            self.signed("__neg")?
        } else if self.skip_op("+") {
            self.signed("__pos")?
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if filters { self.filters(value) } else { Ok(value) }
    }

    fn signed(&mut self, function: &str) -> Result<String, Error> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(syntax_error("expressions are nested too deep"));
        }
        let value = self.unary(false)?;
        self.depth -= 1;
        Ok(format!("{function}({value})"))
    }

    fn primary(&mut self) -> Result<String, Error> {
        match self.next() {
            Some(Token::Name(name)) => Ok(match name.as_str() {
                "True" => "true".to_owned(),
                "False" => "false".to_owned(),
                "None" => "none".to_owned(),
                name => name.to_owned(),
            }),
            Some(Token::Text(text)) => {
                let mut text = text.clone();
                while let Some(Token::Text(more)) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                Ok(quote(&text))
            }
            Some(Token::Integer(digits)) => Ok(digits.clone()),
            Some(Token::Float(digits)) => Ok(format!("__float({})", quote(digits))),
            Some(Token::Op("(")) if self.skip_op(")") => Ok("[]".to_owned()),
            Some(Token::Op("(")) => {
                let value = self.tuple(true)?;
                self.expect_op(")")?;
                Ok(format!("({value})"))
            }
            Some(Token::Op("[")) => self.list(),
            Some(Token::Op("{")) => self.dict(),
            other => Err(syntax_error(format!("expected an expression, found {other:?}"))),
        }
    }

    fn list(&mut self) -> Result<String, Error> {
        let mut items = Vec::new();
        while !self.skip_op("]") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op("]") {
                    break;
                }
            }
            items.push(self.expression(true)?);
        }
        Ok(format!("[{}]", items.join(", ")))
    }

    fn dict(&mut self) -> Result<String, Error> {
        let mut items = Vec::new();
        while !self.skip_op("}") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op("}") {
                    break;
                }
            }
            let key = self.expression(true)?;
            self.expect_op(":")?;
            items.push(format!("{key}: {}", self.expression(true)?));
        }
        Ok(format!("{{{}}}", items.join(", ")))
    }

    /// Attributes, subscripts and calls behind a value.
    fn postfix(&mut self, mut value: String) -> Result<String, Error> {
        let mut links = 0;
        loop {
            value = if self.skip_op(".") {
                self.attribute(&value)?
            } else if self.skip_op("[") {
                self.subscript(&value)?
            } else if self.skip_op("(") {
                format!("{value}({})", self.arguments()?)
            } else {
                return Ok(value);
            };
            links += 1;
            if self.depth + links > DEPTH_MAX {
                return Err(syntax_error("expressions are nested too deep"));
            }
        }
    }

    fn attribute(&mut self, value: &str) -> Result<String, Error> {
        let name = match self.next() {
            Some(Token::Name(name)) => name,
            Some(Token::Integer(index)) => return Ok(format!("__item({value}, {index})")),
            other => return Err(syntax_error(format!("expected a name, found {other:?}"))),
        };
        if value != "loop" && self.skip_op("(") {
            let arguments = self.arguments()?;
            let comma = if arguments.is_empty() { "" } else { ", " };
            return Ok(format!("__call({value}, {}{comma}{arguments})", quote(name)));
        }
        match DICT_METHODS.contains(&name.as_str()) {
            true => Ok(format!("__attribute({value}, {})", quote(name))),
            false => Ok(format!("{value}.{name}")),
        }
    }

    fn subscript(&mut self, value: &str) -> Result<String, Error> {
        let mut bounds = Vec::new();
        loop {
            let bound = match self.peek() {
                Some(Token::Op(":" | "]")) => "none".to_owned(),
                _ => self.expression(true)?,
            };
            bounds.push(bound);
            if !self.skip_op(":") {
                break;
            }
        }
        self.expect_op("]")?;
        match bounds.as_slice() {
            [index] if index != "none" => Ok(format!("__item({value}, {index})")),
            [from, to] => Ok(format!("__slice({value}, {from}, {to}, none)")),
            [from, to, step] => Ok(format!("__slice({value}, {from}, {to}, {step})")),
            _ => Err(syntax_error("a subscript needs an index or bounds")),
        }
    }

    /// The arguments of a call, up to the closing bracket.
    pub(super) fn arguments(&mut self) -> Result<String, Error> {
        let mut arguments = Vec::new();
        while !self.skip_op(")") {
            if !arguments.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            arguments.push(match self.tokens {
                [Token::Name(name), Token::Op("="), ..] => {
                    self.next();
                    self.next();
                    format!("{name}={}", self.expression(true)?)
                }
                [Token::Op(star @ ("*" | "**")), ..] => {
                    self.next();
                    format!("{star}{}", self.expression(true)?)
                }
                _ => self.expression(true)?,
            });
        }
        Ok(arguments.join(", "))
    }

    /// Filters, tests and calls behind a value.
    fn filters(&mut self, mut value: String) -> Result<String, Error> {
        let mut links = 0;
        loop {
            value = if self.skip_op("|") {
                format!("{value}|{}", self.filter()?)
            } else if self.skip_name("is") {
                self.test(&value)?
            } else if self.skip_op("(") {
                format!("({value})({})", self.arguments()?)
            } else {
                return Ok(value);
            };
            links += 1;
            if self.depth + links > DEPTH_MAX {
                return Err(syntax_error("expressions are nested too deep"));
            }
        }
    }

    /// A filter's name and arguments, behind `|`.
    pub(super) fn filter(&mut self) -> Result<String, Error> {
        let name = self.name()?;
        match self.skip_op("(") {
            true => Ok(format!("{name}({})", self.arguments()?)),
            false => Ok(name.to_owned()),
        }
    }

    fn test(&mut self, value: &str) -> Result<String, Error> {
        let negated = self.skip_name("not");
        let name = self.name()?;
        let has_argument = match self.peek() {
            Some(Token::Name(name)) => {
                !matches!(name.as_str(), "else" | "or" | "and" | "if" | "is")
            }
            Some(Token::Op(op)) => matches!(*op, "[" | "{"),
            Some(_) => true,
            None => false,
        };
        let arguments = if self.skip_op("(") {
            self.arguments()?
        } else if has_argument {
            let argument = self.primary()?;
            self.postfix(argument)?
        } else {
            String::new()
        };
        let name = if name == "in" { "contained" } else { name };
        let not = if negated { "not " } else { "" };
        Ok(format!("({not}({value} is {name}({arguments})))"))
    }
}

fn joined(terms: Vec<String>, operator: &str) -> String {
    match <[String; 1]>::try_from(terms) {
        Ok([term]) => term,
        Err(terms) => format!("({})", terms.join(operator)),
    }
}

/// `function(function(a, b, ..), z, ..)`, which is the same as one call of all terms.
fn called(function: &str, terms: Vec<String>) -> String {
    let mut terms = terms.into_iter();
    let mut value = terms.next().unwrap_or_default();
    loop {
        let some: Vec<String> = terms.by_ref().take(ARGUMENTS_MAX).collect();
        if some.is_empty() {
            return value;
        }
        value = format!("{function}({value}, {})", some.join(", "));
    }
}

/// A string literal.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
