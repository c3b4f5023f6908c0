//! Templates of Jinja2, translated into minijinja's.
//!
//! What comes out has no whitespace control, since the lexer has done all of it, and writes text
//! as outputs of literals, so that all that a template writes passes one place and is counted.

use super::expression::{Expressions, quote};
use super::lexer::{Piece, Token, lex};
use super::syntax_error;
use minijinja::Error;

/// A template for minijinja that writes what Jinja2 writes for `source`.
pub(super) fn translate(source: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(source.len() * 2);
    for piece in lex(source)? {
        match piece {
            Piece::Data(text) => out.push_str(&format!("{{{{ {} }}}}", quote(&text))),
            Piece::Output(tokens) => {
                let mut tokens = Expressions::new(&tokens);
                let value = tokens.tuple(true)?;
                tokens.end()?;
                out.push_str(&format!("{{{{ {value} }}}}"));
            }
            Piece::Tag(tokens) => {
                let tag = tag(&tokens)?;
                out.push_str(&format!("{{% {tag} %}}"));
            }
        }
    }
    Ok(out)
}

fn tag(tokens: &[Token]) -> Result<String, Error> {
    let mut tokens = Expressions::new(tokens);
    let name = tokens.name()?;
    let tag = match name {
        "if" | "elif" => format!("{name} {}", tokens.tuple(true)?),
        "for" => for_loop(&mut tokens)?,
        "set" => set(&mut tokens)?,
        "macro" => {
            let name = tokens.name()?;
            format!("macro {name}({})", parameters(&mut tokens)?)
        }
        "call" => {
            let parameters = match tokens.peek() {
                Some(Token::Op("(")) => format!("({})", parameters(&mut tokens)?),
                _ => String::new(),
            };
            format!("call{parameters} {}", tokens.expression(true)?)
        }
        "filter" => {
            let mut filters = tokens.filter()?;
            while tokens.skip_op("|") {
                filters = format!("{filters}|{}", tokens.filter()?);
            }
            format!("filter {filters}")
        }
        "with" => with(&mut tokens)?,
        // Hugging Face's extension marks what an assistant said. It writes nothing, but is a scope.
        "generation" => "with".to_owned(),
        "endgeneration" => "endwith".to_owned(),
        "else" | "break" | "continue" | "endif" | "endfor" | "endset" | "endcall" | "endfilter"
        | "endwith" => name.to_owned(),
        "endmacro" => {
            // The name of the macro may be repeated.
            tokens.next();
            name.to_owned()
        }
        _ => return Err(syntax_error(format!("there is no tag {name:?}"))),
    };
    tokens.end()?;
    Ok(tag)
}

fn for_loop(tokens: &mut Expressions<'_>) -> Result<String, Error> {
    let mut target = String::new();
    while !tokens.skip_name("in") {
        match tokens.next() {
            Some(Token::Name(name)) => target.push_str(name),
            Some(Token::Op(op @ ("," | "(" | ")"))) => target.push_str(op),
            other => return Err(syntax_error(format!("can't assign to {other:?}"))),
        }
    }
    let mut tag = format!("for {target} in __iterate({})", tokens.tuple(false)?);
    if tokens.skip_name("if") {
        tag.push_str(&format!(" if {}", tokens.expression(true)?));
    }
    if tokens.skip_name("recursive") {
        tag.push_str(" recursive");
    }
    Ok(tag)
}

fn set(tokens: &mut Expressions<'_>) -> Result<String, Error> {
    let mut target = String::new();
    loop {
        if tokens.skip_op("=") {
            return Ok(format!("set {target} = __keep({})", tokens.tuple(true)?));
        }
        if tokens.skip_op("|") {
            target.push_str(&format!("|{}", tokens.filter()?));
            continue;
        }
        match tokens.next() {
            Some(Token::Name(name)) => target.push_str(name),
            Some(Token::Op(op @ ("," | "." | "(" | ")"))) => target.push_str(op),
            None => return Ok(format!("set {target}")),
            other => return Err(syntax_error(format!("can't assign to {other:?}"))),
        }
    }
}

/// The parameters of a macro, brackets included.
fn parameters(tokens: &mut Expressions<'_>) -> Result<String, Error> {
    tokens.expect_op("(")?;
    let mut parameters = Vec::new();
    while !tokens.skip_op(")") {
        if !parameters.is_empty() {
            tokens.expect_op(",")?;
        }
        let name = tokens.name()?;
        parameters.push(match tokens.skip_op("=") {
            true => format!("{name}={}", tokens.expression(true)?),
            false => name.to_owned(),
        });
    }
    Ok(parameters.join(", "))
}

fn with(tokens: &mut Expressions<'_>) -> Result<String, Error> {
    let mut values = Vec::new();
    while tokens.peek().is_some() {
        if !values.is_empty() {
            tokens.expect_op(",")?;
        }
        let name = tokens.name()?;
        tokens.expect_op("=")?;
        values.push(format!("{name} = {}", tokens.expression(true)?));
    }
    Ok(format!("with {}", values.join(", ")))
}
