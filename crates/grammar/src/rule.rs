use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::error::ConstraintError;
use crate::limits::{LARK_BYTES_MAX, PATTERN_BYTES_MAX};
use crate::schema::prepare;

/// The form that a text must have.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// Any JSON object.
    Json,
    /// JSON by a schema, properties in the schema's order. Annotations are ignored, unknown ones
    /// too. So is what can't be checked while writing (`not`, `if`, `uniqueItems`, unknown formats,
    /// that `oneOf` matches only once): see [`crate::Constraint::ignored`].
    ///
    /// Between two words of JSON there may be one space, or a line break and up to 64 spaces or
    /// tabs of indentation; none before the first and after the last.
    JsonSchema(Value),
    /// Text that matches a regular expression (of Rust's `regex` crate, without look-around) from
    /// start to end.
    Regex(String),
    /// A context-free grammar in `llguidance`'s dialect of Lark. [`lark_schema`] writes a schema
    /// for it.
    Lark(String),
}

/// The term of a Lark rule for JSON by `schema`, with the treatment and the limits of
/// [`Rule::JsonSchema`]. A schema of a stranger gets into a Lark rule by this way only.
///
/// # Errors
/// If the schema is too large or no schema.
pub fn lark_schema(schema: &Value) -> Result<String, ConstraintError> {
    Ok(format!("%json {}", prepare(schema)?))
}

impl Rule {
    /// The rule for `llguidance`, after what can be checked without compiling it.
    pub(crate) fn grammar(&self) -> Result<TopLevelGrammar, ConstraintError> {
        Ok(match self {
            Self::Json => TopLevelGrammar::from_json_schema(prepare(&json!({"type": "object"}))?),
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(prepare(schema)?),
            Self::Regex(pattern) => {
                check_bytes("the regular expression", pattern.len(), PATTERN_BYTES_MAX)?;
                TopLevelGrammar::from_regex(pattern)
            }
            Self::Lark(grammar) => {
                check_bytes("the grammar", grammar.len(), LARK_BYTES_MAX)?;
                TopLevelGrammar::from_lark(grammar.clone())
            }
        })
    }
}

fn check_bytes(what: &str, bytes: usize, max: usize) -> Result<(), ConstraintError> {
    if bytes > max {
        return Err(ConstraintError::too_complex(format!(
            "{what} has {bytes} bytes, {max} are allowed"
        )));
    }
    Ok(())
}
