//! A stranger's schema becomes one that `llguidance` can be trusted with.
//!
//! `llguidance` bounds the grammar it makes, but not all that it does with a schema before: it
//! recurses along references, and copies what is combined. So the schema is first written anew
//! ([`normal`]): only what can be enforced, each target of a reference once, all of it counted.
//! Then what combining will make of it is estimated ([`combined`]).

mod combined;
mod multiple;
mod normal;

use serde_json::{Map, Value, json};

use crate::error::ConstraintError;

/// What may stand between two words of JSON. Bounded, or a model that is at a loss writes spaces
/// for ever.
const WHITESPACE: &str = r"\x20|\r?\n[\x20\t]{0,20}";

/// Where the definitions of a prepared schema are.
const DEFINITIONS: &str = "#/$defs/";

/// A schema for `llguidance`, with the options that it reads from there.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) schema: Value,
    /// What is not enforced, in sentences.
    pub(crate) ignored: Vec<String>,
}

/// Checks a schema and writes it anew. Needs the compiler's stack.
pub(crate) fn prepare(schema: &Value) -> Result<Prepared, ConstraintError> {
    let normal = normal::normalize(schema)?;
    combined::check(&normal.definitions)?;
    let definitions: Map<String, Value> = normal
        .definitions
        .into_iter()
        .enumerate()
        .map(|(number, schema)| (number.to_string(), schema))
        .collect();
    let schema = json!({
        "x-guidance": {"whitespace_pattern": WHITESPACE, "lenient": true},
        "$defs": definitions,
        "$ref": reference(0),
    });
    Ok(Prepared { schema, ignored: normal.ignored.into_iter().collect() })
}

/// How a definition is referred to.
fn reference(number: usize) -> String {
    format!("{DEFINITIONS}{number}")
}

/// The number of the definition that `reference` refers to.
fn referred(reference: &str) -> Option<usize> {
    reference.strip_prefix(DEFINITIONS)?.parse().ok()
}

fn over(max: usize, what: &str) -> ConstraintError {
    ConstraintError::too_complex(&format!("a schema may have {max} {what}"))
}
