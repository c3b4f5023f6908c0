//! The content of messages: a text, or parts.

use serde::Deserialize;

use super::super::fields::TextOr;
use crate::error::ApiError;

/// A part of a message, in a chat or in a response.
#[derive(Debug, Deserialize)]
pub(super) struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    refusal: Option<String>,
}

/// All text of a message, its parts on lines of their own.
///
/// # Errors
/// When a part is no text.
pub(super) fn text(field: &str, content: Option<TextOr<Part>>) -> Result<String, ApiError> {
    let parts = match content {
        None => return Ok(String::new()),
        Some(TextOr::Text(text)) => return Ok(text),
        Some(TextOr::List(parts)) => parts,
    };
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        match part.kind.as_str() {
            "text" | "input_text" | "output_text" | "reasoning_text" | "summary_text" => {
                let Some(text) = part.text else {
                    return Err(ApiError::bad_field(
                        field,
                        format!("a part of {field} has no text"),
                    ));
                };
                texts.push(text);
            }
            "refusal" => texts.extend(part.refusal),
            kind => {
                return Err(ApiError::bad_field(
                    field,
                    format!("{field} has a part of type {kind:?}; only text is read here"),
                ));
            }
        }
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: Value) -> Result<String, ApiError> {
        text("content", serde_json::from_value(json).unwrap())
    }

    #[test]
    fn parts_are_joined() {
        assert_eq!(read(json!("a")).unwrap(), "a");
        assert_eq!(read(json!(null)).unwrap(), "");
        let parts = json!([
            {"type": "text", "text": "a"},
            {"type": "input_text", "text": "b"},
            {"type": "refusal", "refusal": "c"}
        ]);
        assert_eq!(read(parts).unwrap(), "a\nb\nc");
    }

    #[test]
    fn pictures_are_refused() {
        let parts = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
        let error = read(parts).unwrap_err();
        assert!(error.message.contains("image_url"), "{error}");
        assert_eq!(error.field.as_deref(), Some("content"));
        assert!(read(json!([{"type": "text"}])).is_err());
    }
}
