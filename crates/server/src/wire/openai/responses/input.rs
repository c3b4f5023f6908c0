//! The items that a response answers.

use hypura_chat::{Message, ToolCall};
use serde::Deserialize;

use super::super::super::fields::{TextOr, arguments, at_most, name_results};
use super::super::parts::{self, Part};
use crate::config::Limits;
use crate::error::ApiError;

/// An item on the wire: a message, a call, the result of a call, or reasoning.
#[derive(Debug, Deserialize)]
pub(super) struct Item {
    /// A message may lack it.
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<TextOr<Part>>,
    summary: Option<Vec<Part>>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<TextOr<Part>>,
}

/// Messages of a conversation that begins with `instructions`.
///
/// # Errors
/// When there are none or too many, or one is of a kind that is not known here.
pub(super) fn messages(
    instructions: Option<String>,
    input: Option<TextOr<Item>>,
    limits: &Limits,
) -> Result<Vec<Message>, ApiError> {
    let mut turns = Turns::default();
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        turns.push(Message::new("system", instructions));
    }
    match input {
        None => return Err(ApiError::bad_field("input", "input is missing; add a text")),
        Some(TextOr::Text(text)) => turns.push(Message::new("user", text)),
        Some(TextOr::List(items)) if items.is_empty() => {
            return Err(ApiError::bad_field("input", "input is empty; add a message"));
        }
        Some(TextOr::List(items)) => {
            at_most("input", items.len(), limits.messages_max)?;
            for (index, item) in items.into_iter().enumerate() {
                turns.item(index, item)?;
            }
        }
    }
    let mut messages = turns.messages;
    name_results(&mut messages);
    Ok(messages)
}

/// Puts items together to messages: templates want what an assistant thought, said and called in
/// one.
#[derive(Default)]
struct Turns {
    messages: Vec<Message>,
}

impl Turns {
    fn item(&mut self, index: usize, item: Item) -> Result<(), ApiError> {
        let field = |name: &str| format!("input[{index}].{name}");
        match item.kind.as_deref().unwrap_or("message") {
            "message" => {
                let content = parts::text(&field("content"), item.content)?;
                match item.role.as_deref() {
                    Some("system" | "developer") => self.push(Message::new("system", content)),
                    Some("user") => self.push(Message::new("user", content)),
                    Some("assistant") => {
                        let silent = |m: &Message| m.content.is_empty() && m.tool_calls.is_empty();
                        self.assistant(silent, |message| message.content = content);
                    }
                    _ => {
                        return Err(ApiError::bad_field(
                            &field("role"),
                            "the role must be system, developer, user or assistant",
                        ));
                    }
                }
            }
            "reasoning" => {
                let summary = TextOr::List(item.summary.unwrap_or_default());
                let mut text = parts::text(&field("content"), item.content)?;
                if text.is_empty() {
                    text = parts::text(&field("summary"), Some(summary))?;
                }
                self.assistant(|_| false, |message| message.reasoning = Some(text));
            }
            "function_call" => {
                let call = ToolCall {
                    id: required(&field("call_id"), item.call_id)?,
                    name: required(&field("name"), item.name)?,
                    arguments: arguments(&item.arguments.unwrap_or_default()),
                };
                self.assistant(|_| true, |message| message.tool_calls.push(call));
            }
            "function_call_output" => {
                let output = parts::text(&field("output"), item.output)?;
                let id = required(&field("call_id"), item.call_id)?;
                self.push(Message { tool_call_id: Some(id), ..Message::new("tool", output) });
            }
            kind => {
                return Err(ApiError::bad_field(
                    &field("type"),
                    format!(
                        "items of type {kind:?} are not known here; send message, reasoning, function_call or function_call_output"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// A message of its own. System messages at the beginning are one: many templates want one.
    fn push(&mut self, message: Message) {
        match self.messages.as_mut_slice() {
            [only] if only.role == "system" && message.role == "system" => {
                only.content.push_str("\n\n");
                only.content.push_str(&message.content);
            }
            _ => self.messages.push(message),
        }
    }

    /// Changes the assistant's message that goes on, if the last one `fits`, or a new one.
    fn assistant(&mut self, fits: impl Fn(&Message) -> bool, change: impl FnOnce(&mut Message)) {
        match self.messages.last_mut() {
            Some(last) if last.role == "assistant" && fits(last) => change(last),
            _ => {
                let mut message = Message::new("assistant", "");
                change(&mut message);
                self.messages.push(message);
            }
        }
    }
}

fn required(field: &str, text: Option<String>) -> Result<String, ApiError> {
    text.filter(|text| !text.is_empty())
        .ok_or_else(|| ApiError::bad_field(field, format!("{field} is missing; add it")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(input: Value) -> Result<Vec<Message>, ApiError> {
        let input = serde_json::from_value(input).unwrap();
        messages(Some("Be brief.".into()), input, &Limits::default())
    }

    #[test]
    fn a_text_is_a_question() {
        let expected = [Message::new("system", "Be brief."), Message::new("user", "Hi")];
        assert_eq!(read(json!("Hi")).unwrap(), expected);
    }

    #[test]
    fn items_of_a_turn_are_one_message() {
        let call = |id: &str| json!({"type": "function_call", "id": "fc", "call_id": id, "name": "f", "arguments": "{\"x\":1}"});
        let output =
            |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "1"});
        let thought = json!({"type": "reasoning", "id": "rs", "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}]});
        let summary = json!({"type": "reasoning", "id": "rs",
            "summary": [{"type": "summary_text", "text": "so"}]});
        let said = json!({"type": "message", "role": "assistant", "id": "msg", "status": "completed",
            "content": [{"type": "output_text", "text": "Done.", "annotations": []}]});
        let read = read(json!([
            {"role": "developer", "content": "In English."},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            thought, call("a"), call("b"), output("a"), output("b"), summary, said,
        ]))
        .unwrap();
        let tool_call =
            |id: &str| ToolCall { id: id.into(), name: "f".into(), arguments: json!({"x": 1}) };
        let result = |id: &str| Message {
            tool_call_id: Some(id.into()),
            name: Some("f".into()),
            ..Message::new("tool", "1")
        };
        let expected = [
            Message::new("system", "Be brief.\n\nIn English."),
            Message::new("user", "Hi"),
            Message {
                reasoning: Some("hm".into()),
                tool_calls: vec![tool_call("a"), tool_call("b")],
                ..Message::new("assistant", "")
            },
            result("a"),
            result("b"),
            Message { reasoning: Some("so".into()), ..Message::new("assistant", "Done.") },
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn an_assistant_may_speak_twice() {
        let said = |text: &str| json!({"role": "assistant", "content": text});
        let read = read(json!([said("a"), said("b")])).unwrap();
        let expected = [
            Message::new("system", "Be brief."),
            Message::new("assistant", "a"),
            Message::new("assistant", "b"),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |input: Value, field: &str| {
            assert_eq!(read(input).unwrap_err().field.as_deref(), Some(field));
        };
        check(json!(null), "input");
        check(json!([]), "input");
        check(json!([{"role": "boss", "content": ""}]), "input[0].role");
        check(json!([{"type": "item_reference", "id": "x"}]), "input[0].type");
        check(json!([{"type": "function_call", "name": "f"}]), "input[0].call_id");
        let picture = json!([{"type": "input_image", "image_url": ""}]);
        check(json!([{"role": "user", "content": picture}]), "input[0].content");
    }
}
