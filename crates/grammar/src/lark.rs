//! Grammars of others, made safe and fitted to a vocabulary.

use serde_json::Value;

use crate::error::ConstraintError;
use crate::rule::lark_schema;
use crate::vocabulary::Vocabulary;

/// What a rule of one line looks like that is JSON by a schema: `NAME: %json SCHEMA`.
const JSON: &str = ": %json ";

/// A Lark grammar whose schemas, each a rule of one line (`NAME: %json SCHEMA`), are those of
/// strangers: they get the treatment and the limits of [`crate::Rule::JsonSchema`].
///
/// # Errors
/// If a schema is too large or no schema.
pub fn checked_lark(grammar: &str) -> Result<String, ConstraintError> {
    let mut out = String::with_capacity(grammar.len());
    for line in grammar.lines() {
        match line.split_once(JSON) {
            Some((name, schema)) => {
                let schema: Value = serde_json::from_str(schema)
                    .map_err(|error| ConstraintError::invalid(&format!("a schema: {error}")))?;
                out.push_str(name);
                out.push_str(": ");
                out.push_str(&lark_schema(&schema)?);
            }
            None => out.push_str(line),
        }
        out.push('\n');
    }
    Ok(out)
}

impl Vocabulary {
    /// The same Lark grammar with control tokens in place of string literals that spell them: a
    /// model's marks may be tokens of their own, which plain text never matches.
    #[must_use]
    pub fn with_control_tokens(&self, grammar: &str) -> String {
        let lines = grammar.lines().map(|line| match line.contains("%json") {
            true => line.to_owned(),
            false => self.line_with_control_tokens(line),
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn line_with_control_tokens(&self, line: &str) -> String {
        let mut out = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(begin) = rest.find('"') {
            let (before, literal) = rest.split_at(begin);
            out.push_str(before);
            let mut values = serde_json::Deserializer::from_str(literal).into_iter::<String>();
            let Some(Ok(text)) = values.next() else {
                // No literal after all, such as a quote in a regular expression.
                out.push_str(literal);
                return out;
            };
            let (literal, after) = literal.split_at(values.byte_offset());
            match self.control(&text) {
                Some(token) => out.push_str(&format!("<[{token}]>")),
                None => out.push_str(literal),
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::TokenText;

    #[test]
    fn schemas_of_strangers_are_checked() {
        let grammar = "start: \"a\" arguments\narguments: %json {\"type\": \"integer\"}\n";
        let checked = checked_lark(grammar).unwrap();
        assert!(checked.starts_with("start: \"a\" arguments\narguments: %json {"), "{checked}");
        assert!(checked.contains("x-guidance"), "{checked}");
        assert!(checked_lark("a: %json {\"multipleOf\": 999983}").is_err());
        assert!(checked_lark("a: %json nonsense").is_err());
    }

    #[test]
    fn marks_that_are_tokens_become_tokens() {
        let mut tokens: Vec<TokenText> = (0..=255).map(|b| TokenText::Text(vec![b])).collect();
        tokens.push(TokenText::Control(b"<|call|>".to_vec()));
        tokens.push(TokenText::Control(b"<end>".to_vec()));
        let vocabulary = Vocabulary::new(tokens, 257, &[257]).unwrap();
        let grammar = "start: \"<|call|>\" \"say \\\"<|call|>\\\"\" any\nany: /\"x/ \"b\"";
        assert_eq!(
            vocabulary.with_control_tokens(grammar),
            "start: <[256]> \"say \\\"<|call|>\\\"\" any\nany: /\"x/ \"b\""
        );
    }
}
