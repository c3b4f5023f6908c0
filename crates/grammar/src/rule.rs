use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::error::ConstraintError;
use crate::limits::{LARK_BYTES_MAX, PATTERN_BYTES_MAX};
use crate::schema::prepare;
use crate::stack::with_stack;

/// The form that a text must have.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// Any JSON object.
    Json,
    /// JSON by a schema, properties in the schema's order. Annotations are ignored, unknown
    /// keywords too. `oneOf` is `anyOf`. What else can't be enforced while writing (`not`, `if`,
    /// `uniqueItems`, unknown formats) is ignored and named by [`crate::Constraint::ignored`].
    /// References lead to places within the schema (`#/...`).
    ///
    /// Between two words of JSON there may be one space, or a line break and up to 20 spaces or
    /// tabs of indentation; none before the first and after the last.
    JsonSchema(Value),
    /// Text that matches a regular expression (of Rust's `regex` crate, without look-around) from
    /// start to end.
    Regex(String),
    /// A context-free grammar in `llguidance`'s dialect of Lark, such as a model's syntax of tool
    /// calls. Schemas in it have to be written by [`lark_schema`]: others aren't checked.
    Lark(String),
}

/// The term of a Lark rule for JSON by `schema`, with the treatment and the limits of
/// [`Rule::JsonSchema`]. A schema of a stranger gets into a Lark rule by this way only.
///
/// # Errors
/// If the schema is too large or no schema.
pub fn lark_schema(schema: &Value) -> Result<String, ConstraintError> {
    with_stack(|| Ok(format!("%json {}", prepare(schema)?.schema)))
}

/// A rule for `llguidance`, after what can be checked without compiling it.
pub(crate) struct Written {
    pub(crate) grammar: TopLevelGrammar,
    /// What is not enforced, in sentences.
    pub(crate) ignored: Vec<String>,
}

impl Rule {
    /// Needs the compiler's stack.
    pub(crate) fn write(&self) -> Result<Written, ConstraintError> {
        match self {
            Self::Json => write_schema(&json!({"type": "object"})),
            Self::JsonSchema(schema) => write_schema(schema),
            Self::Regex(pattern) => {
                check_bytes("the regular expression", pattern.len(), PATTERN_BYTES_MAX)?;
                Ok(Written { grammar: TopLevelGrammar::from_regex(pattern), ignored: Vec::new() })
            }
            Self::Lark(grammar) => {
                check_bytes("the grammar", grammar.len(), LARK_BYTES_MAX)?;
                let grammar = TopLevelGrammar::from_lark(grammar.clone());
                Ok(Written { grammar, ignored: Vec::new() })
            }
        }
    }
}

fn write_schema(schema: &Value) -> Result<Written, ConstraintError> {
    let prepared = prepare(schema)?;
    Ok(Written {
        grammar: TopLevelGrammar::from_json_schema(prepared.schema),
        ignored: prepared.ignored,
    })
}

fn check_bytes(what: &str, bytes: usize, max: usize) -> Result<(), ConstraintError> {
    if bytes > max {
        return Err(ConstraintError::too_complex(&format!(
            "{what} has {bytes} bytes, {max} are allowed"
        )));
    }
    Ok(())
}
