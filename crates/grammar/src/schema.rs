use serde_json::{Value, json};

use crate::error::ConstraintError;
use crate::limits::{SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX, SCHEMA_NODES_MAX};

/// What may stand between two words of JSON. Bounded, or a model that is at a loss writes spaces
/// for ever.
const WHITESPACE: &str = r"\x20|\r?\n[\x20\t]{0,64}";

/// Checks a schema, and adds the options that `llguidance` reads from it.
pub(crate) fn prepare(schema: &Value) -> Result<Value, ConstraintError> {
    check(schema, 1, &mut 0)?;
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    let Some(root) = schema.as_object_mut() else {
        return Err(ConstraintError::invalid("a schema is a JSON object"));
    };
    root.insert(
        "x-guidance".to_owned(),
        json!({"whitespace_pattern": WHITESPACE, "lenient": true, "coerce_one_of": true}),
    );
    Ok(schema)
}

fn check(value: &Value, depth: usize, nodes: &mut usize) -> Result<(), ConstraintError> {
    *nodes += 1;
    if depth > SCHEMA_DEPTH_MAX || *nodes > SCHEMA_NODES_MAX {
        return Err(ConstraintError::too_complex(format!(
            "a schema may have {SCHEMA_NODES_MAX} values, {SCHEMA_DEPTH_MAX} within each other"
        )));
    }
    let _ = SCHEMA_BYTES_MAX;
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| check(value, depth + 1, nodes)),
        Value::Object(map) => map.values().try_for_each(|value| check(value, depth + 1, nodes)),
        _ => Ok(()),
    }
}
