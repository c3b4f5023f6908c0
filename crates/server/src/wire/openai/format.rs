//! The form that an answer must have.

use hypura_grammar::Rule;
use serde::Deserialize;
use serde_json::Value;

use crate::error::ApiError;

/// `response_format` of a chat, `text.format` of a response.
///
/// A chat's schema is in `json_schema`, a response's beside the type, where llama.cpp's server
/// also takes one for `json_object`. Schemas are always kept to, `strict` or not.
#[derive(Debug, Deserialize)]
pub(super) struct Format {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<Named>,
    name: Option<String>,
    schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Named {
    schema: Option<Value>,
}

impl Format {
    /// The rule for it; `None` is any text.
    pub(super) fn rule(&self, field: &str) -> Result<Option<Rule>, ApiError> {
        let schema = match &self.json_schema {
            Some(named) => named.schema.as_ref(),
            None => self.schema.as_ref(),
        };
        match (self.kind.as_str(), schema) {
            ("text", _) => Ok(None),
            ("json_object", None) => Ok(Some(Rule::Json)),
            ("json_object" | "json_schema", Some(schema)) => {
                Ok(Some(Rule::JsonSchema(schema.clone())))
            }
            ("json_schema", None) => {
                Err(ApiError::bad_field(field, format!("{field} has no schema; add one")))
            }
            _ => Err(ApiError::bad_field(
                field,
                format!("{field}.type must be text, json_object or json_schema"),
            )),
        }
    }

    /// As a response repeats it.
    pub(super) fn echo(&self) -> Value {
        match self.kind.as_str() {
            "json_schema" => serde_json::json!({
                "type": "json_schema",
                "name": self.name,
                "schema": self.schema,
                "strict": self.strict.unwrap_or(true),
            }),
            kind => serde_json::json!({"type": kind}),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(json: Value) -> Result<Option<Rule>, ApiError> {
        serde_json::from_value::<Format>(json).unwrap().rule("response_format")
    }

    #[test]
    fn forms_become_rules() {
        let schema = json!({"type": "array"});
        assert_eq!(rule(json!({"type": "text"})).unwrap(), None);
        assert_eq!(rule(json!({"type": "json_object"})).unwrap(), Some(Rule::Json));
        for form in [
            json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}),
            json!({"type": "json_schema", "name": "x", "schema": schema}),
            json!({"type": "json_object", "schema": schema}),
        ] {
            assert_eq!(rule(form).unwrap(), Some(Rule::JsonSchema(schema.clone())));
        }
        assert!(rule(json!({"type": "json_schema", "json_schema": {"name": "x"}})).is_err());
        assert!(rule(json!({"type": "xml"})).is_err());
    }
}
