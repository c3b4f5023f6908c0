//! Messages of a chat.

use hypura_chat::{Message, ToolCall};
use serde::Deserialize;
use serde_json::Value;

use super::super::super::fields::{TextOr, arguments, at_most, name_results};
use super::super::parts::{self, Part};
use crate::config::Limits;
use crate::error::ApiError;

/// A message on the wire.
#[derive(Debug, Deserialize)]
pub(super) struct MessageField {
    role: String,
    content: Option<TextOr<Part>>,
    /// As DeepSeek and llama.cpp's server call it.
    reasoning_content: Option<Value>,
    /// As Ollama and vLLM call it.
    reasoning: Option<Value>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CallField>>,
    /// A call of a client that speaks of `functions`.
    function_call: Option<FunctionField>,
    tool_call_id: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CallField {
    id: Option<String>,
    function: Option<FunctionField>,
}

#[derive(Debug, Deserialize)]
struct FunctionField {
    name: String,
    /// JSON as a text; an object is taken as well.
    arguments: Option<Value>,
}

/// The messages of a request.
///
/// # Errors
/// When there are none or too many, or one has an unknown role or is no text.
pub(super) fn messages(
    fields: Vec<MessageField>,
    limits: &Limits,
) -> Result<Vec<Message>, ApiError> {
    if fields.is_empty() {
        return Err(ApiError::bad_field("messages", "messages is empty; add one"));
    }
    at_most("messages", fields.len(), limits.messages_max)?;
    let mut messages = Vec::with_capacity(fields.len());
    for (index, field) in fields.into_iter().enumerate() {
        messages.push(message(index, field)?);
    }
    name_results(&mut messages);
    Ok(messages)
}

fn message(index: usize, field: MessageField) -> Result<Message, ApiError> {
    let role = match field.role.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" | "function" => "tool",
        _ => {
            return Err(ApiError::bad_field(
                &format!("messages[{index}].role"),
                "the role must be system, developer, user, assistant or tool",
            ));
        }
    };
    let mut content = parts::text(&format!("messages[{index}].content"), field.content)?;
    if content.is_empty() {
        content = field.refusal.unwrap_or_default();
    }
    let mut message = Message { tool_call_id: field.tool_call_id, ..Message::new(role, content) };
    message.name = field.name;
    if role == "assistant" {
        let reasoning = field.reasoning_content.or(field.reasoning);
        message.reasoning = reasoning.as_ref().and_then(Value::as_str).map(str::to_owned);
        let old =
            field.function_call.map(|function| CallField { id: None, function: Some(function) });
        for call in field.tool_calls.into_iter().flatten().chain(old) {
            message.tool_calls.push(tool_call(index, call)?);
        }
    }
    Ok(message)
}

fn tool_call(index: usize, field: CallField) -> Result<ToolCall, ApiError> {
    let Some(function) = field.function else {
        return Err(ApiError::bad_field(
            &format!("messages[{index}].tool_calls"),
            "a call has no function; only functions can be called here",
        ));
    };
    let arguments = match function.arguments {
        None | Some(Value::Null) => arguments(""),
        Some(Value::String(text)) => arguments(&text),
        Some(value) => value,
    };
    Ok(ToolCall { id: field.id.unwrap_or_default(), name: function.name, arguments })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: Value) -> Result<Vec<Message>, ApiError> {
        messages(serde_json::from_value(json).unwrap(), &Limits::default())
    }

    #[test]
    fn a_whole_conversation() {
        let read = read(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann"},
            {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{oops"}}
            ]},
            {"role": "tool", "tool_call_id": "c2", "content": "2"},
            {"role": "assistant", "content": "Done.", "reasoning": "so", "refusal": null}
        ]))
        .unwrap();
        let call = |id: &str, name: &str, arguments: Value| ToolCall {
            id: id.into(),
            name: name.into(),
            arguments,
        };
        let expected = [
            Message::new("system", "Be brief."),
            Message { name: Some("ann".into()), ..Message::new("user", "Hi") },
            Message {
                reasoning: Some("hm".into()),
                tool_calls: vec![call("c1", "f", json!({"x": 1})), call("c2", "g", json!("{oops"))],
                ..Message::new("assistant", "")
            },
            Message {
                tool_call_id: Some("c2".into()),
                name: Some("g".into()),
                ..Message::new("tool", "2")
            },
            Message { reasoning: Some("so".into()), ..Message::new("assistant", "Done.") },
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn functions_of_older_clients() {
        let read = read(json!([
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"}
        ]))
        .unwrap();
        assert_eq!(read[0].tool_calls[0].name, "f");
        assert_eq!((read[1].role.as_str(), read[1].name.as_deref()), ("tool", Some("f")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |json: Value, field: &str| {
            assert_eq!(read(json).unwrap_err().field.as_deref(), Some(field));
        };
        check(json!([]), "messages");
        check(json!([{"role": "user", "content": ""}, {"role": "boss"}]), "messages[1].role");
        let picture = json!([{"type": "image_url", "image_url": {}}]);
        check(json!([{"role": "user", "content": picture}]), "messages[0].content");
        let custom = json!([{"id": "1", "type": "custom", "custom": {}}]);
        check(json!([{"role": "assistant", "tool_calls": custom}]), "messages[0].tool_calls");
    }
}
