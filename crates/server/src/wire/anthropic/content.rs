//! The content of messages: a text, or blocks.

use hypura_chat::{Message, ToolCall};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::fields::{TextOr, at_most, name_results};
use crate::config::Limits;
use crate::error::ApiError;

/// A message on the wire.
#[derive(Debug, Deserialize)]
pub(super) struct MessageField {
    role: String,
    content: TextOr<BlockField>,
}

/// A block of a message, or of the result of a tool.
#[derive(Debug, Deserialize)]
pub(super) struct BlockField {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    tool_use_id: Option<String>,
    content: Option<TextOr<BlockField>>,
    is_error: Option<bool>,
}

/// Messages of a conversation that begins with `system`.
///
/// # Errors
/// When there are none or too many, or one has a block that is not known here.
pub(super) fn messages(
    system: Option<TextOr<BlockField>>,
    fields: Vec<MessageField>,
    limits: &Limits,
) -> Result<Vec<Message>, ApiError> {
    if fields.is_empty() {
        return Err(ApiError::bad_field("messages", "messages is empty; add one"));
    }
    at_most("messages", fields.len(), limits.messages_max)?;
    let mut messages = Vec::with_capacity(fields.len() + 1);
    let system = text("system", system)?;
    if !system.is_empty() {
        messages.push(Message::new("system", system));
    }
    for (index, field) in fields.into_iter().enumerate() {
        message(index, field, &mut messages)?;
    }
    name_results(&mut messages);
    Ok(messages)
}

fn message(index: usize, field: MessageField, to: &mut Vec<Message>) -> Result<(), ApiError> {
    let place = format!("messages.{index}.content");
    let role = match field.role.as_str() {
        "user" => "user",
        "assistant" => "assistant",
        "system" => "system",
        _ => {
            return Err(ApiError::bad_field(
                &format!("messages.{index}.role"),
                format!("messages.{index}.role must be user, assistant or system"),
            ));
        }
    };
    let blocks = match field.content {
        TextOr::Text(text) => {
            to.push(Message::new(role, text));
            return Ok(());
        }
        TextOr::List(blocks) => blocks,
    };
    let results = to.len();
    let mut message = Message::new(role, "");
    let (mut texts, mut thoughts) = (Vec::new(), Vec::new());
    for block in blocks {
        match (block.kind.as_str(), role) {
            ("text", _) => texts.push(block.text.unwrap_or_default()),
            ("thinking", "assistant") => thoughts.push(block.thinking.unwrap_or_default()),
            // Only Anthropic can read it.
            ("redacted_thinking", "assistant") => {}
            ("tool_use", "assistant") => message.tool_calls.push(ToolCall {
                id: block.id.unwrap_or_default(),
                name: block.name.unwrap_or_default(),
                arguments: block.input.unwrap_or_else(|| Value::Object(Map::new())),
            }),
            ("tool_result", "user") => to.push(result(&place, block)?),
            (kind, role) => return Err(unknown(&place, kind, role)),
        }
    }
    message.content = texts.join("\n");
    message.reasoning = (!thoughts.is_empty()).then(|| thoughts.join("\n"));
    let says_something = !message.content.is_empty()
        || message.reasoning.is_some()
        || !message.tool_calls.is_empty();
    // Results are messages of their own, before what the user says to them.
    if says_something || to.len() == results {
        to.push(message);
    }
    Ok(())
}

/// A `tool` message. That a tool failed is said in words: templates have no place for it.
fn result(place: &str, block: BlockField) -> Result<Message, ApiError> {
    let mut content = text(&format!("{place}.content"), block.content)?;
    if block.is_error == Some(true) {
        content.insert_str(0, "Error: ");
    }
    let id = block.tool_use_id.unwrap_or_default();
    Ok(Message { tool_call_id: Some(id), ..Message::new("tool", content) })
}

/// Text, or blocks that are text, on lines of their own.
fn text(place: &str, content: Option<TextOr<BlockField>>) -> Result<String, ApiError> {
    let blocks = match content {
        None => return Ok(String::new()),
        Some(TextOr::Text(text)) => return Ok(text),
        Some(TextOr::List(blocks)) => blocks,
    };
    let mut texts = Vec::with_capacity(blocks.len());
    for block in blocks {
        match block.kind.as_str() {
            "text" => texts.push(block.text.unwrap_or_default()),
            kind => return Err(unknown(place, kind, "text")),
        }
    }
    Ok(texts.join("\n"))
}

fn unknown(place: &str, kind: &str, within: &str) -> ApiError {
    let message = match kind {
        "image" | "document" | "search_result" => {
            format!("{place} has a block of type {kind:?}; only text is read here")
        }
        _ => format!("{place} has a block of type {kind:?}, which is not known here in {within}"),
    };
    ApiError::bad_field(place, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(system: Value, list: Value) -> Result<Vec<Message>, ApiError> {
        let system = serde_json::from_value(system).unwrap();
        messages(system, serde_json::from_value(list).unwrap(), &Limits::default())
    }

    #[test]
    fn a_whole_conversation() {
        let cached = json!({"type": "ephemeral"});
        let system = json!([{"type": "text", "text": "Be brief.", "cache_control": cached}]);
        let read = read(
            system,
            json!([
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Let me look."},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"x": 1}},
                    {"type": "tool_use", "id": "t2", "name": "go", "input": {}}
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "1"},
                    {"type": "tool_result", "tool_use_id": "t2", "is_error": true,
                     "content": [{"type": "text", "text": "no"}]},
                    {"type": "text", "text": "So?"}
                ]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9"}]}
            ]),
        )
        .unwrap();
        let call = |id: &str, name: &str, arguments: Value| ToolCall {
            id: id.into(),
            name: name.into(),
            arguments,
        };
        let result = |id: &str, name: Option<&str>, content: &str| Message {
            tool_call_id: Some(id.into()),
            name: name.map(str::to_owned),
            ..Message::new("tool", content)
        };
        let expected = [
            Message::new("system", "Be brief."),
            Message::new("user", "Hi"),
            Message {
                reasoning: Some("hm".into()),
                tool_calls: vec![call("t1", "look", json!({"x": 1})), call("t2", "go", json!({}))],
                ..Message::new("assistant", "Let me look.")
            },
            result("t1", Some("look"), "1"),
            result("t2", Some("go"), "Error: no"),
            Message::new("user", "So?"),
            result("t9", None, ""),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn a_message_may_be_empty() {
        let read = read(json!(null), json!([{"role": "user", "content": []}])).unwrap();
        assert_eq!(read, [Message::new("user", "")]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |list: Value, field: &str| {
            assert_eq!(read(json!(null), list).unwrap_err().field.as_deref(), Some(field));
        };
        let one = |role: &str, block: Value| json!([{"role": role, "content": [block]}]);
        check(json!([]), "messages");
        check(one("boss", json!({"type": "text", "text": ""})), "messages.0.role");
        check(one("user", json!({"type": "image", "source": {}})), "messages.0.content");
        check(one("user", json!({"type": "tool_use", "id": "1"})), "messages.0.content");
        check(one("assistant", json!({"type": "tool_result"})), "messages.0.content");
        check(one("assistant", json!({"type": "server_tool_use"})), "messages.0.content");
        let picture = json!([{"type": "image", "source": {}}]);
        let result = json!({"type": "tool_result", "tool_use_id": "1", "content": picture});
        check(one("user", result), "messages.0.content.content");
    }
}
