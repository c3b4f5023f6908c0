//! Messages, tool calls and tools of a request.

use hypura_chat::{Message, Tool, ToolCall};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::config::Limits;
use crate::error::ApiError;

/// Bytes of a role, of a tool's name and of a call's id at most.
const NAME_BYTES_MAX: usize = 256;

/// A message, as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RequestMessage {
    role: Option<String>,
    content: Option<String>,
    thinking: Option<String>,
    images: Option<Vec<IgnoredAny>>,
    tool_calls: Option<Vec<RequestCall>>,
    tool_name: Option<String>,
    tool_call_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RequestCall {
    id: Option<String>,
    function: Option<RequestFunction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RequestFunction {
    name: Option<String>,
    arguments: Option<Value>,
}

/// A tool, as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RequestTool {
    function: Option<ToolFunction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ToolFunction {
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
}

/// The messages of a conversation with this model.
///
/// # Errors
/// When there are too many, or one is not sound, or has images.
pub(super) fn messages(
    list: Vec<RequestMessage>,
    model: &str,
    limits: &Limits,
) -> Result<Vec<Message>, ApiError> {
    if list.len() > limits.messages_max {
        let reason = format!("there are more than {} messages", limits.messages_max);
        return Err(ApiError::bad_field("messages", reason));
    }
    list.into_iter().enumerate().map(|(at, one)| message(one, at, model, limits)).collect()
}

fn message(
    message: RequestMessage,
    at: usize,
    model: &str,
    limits: &Limits,
) -> Result<Message, ApiError> {
    let bad = |what: &str| ApiError::bad_field("messages", format!("messages[{at}]{what}"));
    if message.images.is_some_and(|images| !images.is_empty()) {
        return Err(no_images(model));
    }
    let role = message.role.unwrap_or_default().to_lowercase();
    if role.is_empty() {
        return Err(bad(" has no role; say system, user, assistant or tool"));
    }
    let calls = message.tool_calls.unwrap_or_default();
    if calls.len() > limits.tools_max {
        return Err(bad(&format!(" has more than {} tool_calls", limits.tools_max)));
    }
    let is_long =
        |text: &Option<String>| text.as_ref().is_some_and(|text| text.len() > NAME_BYTES_MAX);
    if role.len() > NAME_BYTES_MAX || is_long(&message.tool_name) || is_long(&message.tool_call_id)
    {
        return Err(bad(" has a role, tool_name or tool_call_id that is too long"));
    }
    let calls = calls.into_iter().map(|call| tool_call(call).map_err(|reason| bad(&reason)));
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Message {
        role,
        content: message.content.unwrap_or_default(),
        reasoning: given(message.thinking),
        tool_calls: calls.collect::<Result<_, _>>()?,
        tool_call_id: given(message.tool_call_id),
        name: given(message.tool_name),
    })
}

/// No model here sees.
pub(super) fn no_images(model: &str) -> ApiError {
    let message = format!("{model:?} does not support vision; send text without images");
    ApiError::bad_field("images", message)
}

fn tool_call(call: RequestCall) -> Result<ToolCall, String> {
    let function = call.function.unwrap_or_default();
    let name = function.name.filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX);
    let name = name.ok_or(" has a tool call whose function has no name, or too long a one")?;
    let id = call.id.unwrap_or_default();
    if id.len() > NAME_BYTES_MAX {
        return Err(" has a tool call with an id that is too long".to_owned());
    }
    // Some clients pass on what OpenAI's API gave them: JSON as a text.
    let arguments = match function.arguments {
        None | Some(Value::Null) => Some(Value::Object(Map::new())),
        Some(Value::String(text)) => serde_json::from_str(&text).ok(),
        Some(value) => Some(value),
    };
    match arguments {
        Some(arguments @ Value::Object(_)) => Ok(ToolCall { id, name, arguments }),
        _ => Err(format!(" calls {name:?} with arguments that are no JSON object")),
    }
}

/// The tools that the model may call.
///
/// # Errors
/// When there are too many, or one has no name, or no schema.
pub(super) fn tools(list: Vec<RequestTool>, limits: &Limits) -> Result<Vec<Tool>, ApiError> {
    if list.len() > limits.tools_max {
        let reason = format!("there are more than {} tools", limits.tools_max);
        return Err(ApiError::bad_field("tools", reason));
    }
    list.into_iter().enumerate().map(|(at, one)| tool(one, at)).collect()
}

fn tool(tool: RequestTool, at: usize) -> Result<Tool, ApiError> {
    let bad = |what: &str| ApiError::bad_field("tools", format!("tools[{at}].function{what}"));
    let function = tool.function.ok_or_else(|| bad(" is missing"))?;
    let name = function.name.filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX);
    let parameters = match function.parameters {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
        Some(parameters @ Value::Object(_)) => parameters,
        Some(_) => return Err(bad(".parameters has to be a JSON Schema object")),
    };
    Ok(Tool {
        name: name.ok_or_else(|| bad(" has no name, or too long a one"))?,
        description: function.description.unwrap_or_default(),
        parameters,
        strict: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Vec<Message>, ApiError> {
        let list = serde_json::from_value(value).unwrap();
        messages(list, "demo", &Limits::default())
    }

    fn read_tools(value: Value) -> Result<Vec<Tool>, ApiError> {
        tools(serde_json::from_value(value).unwrap(), &Limits::default())
    }

    #[test]
    fn a_conversation_with_a_tool_is_understood() {
        let list = read(json!([
            {"role": "System", "content": "Be brief.", "images": []},
            {"role": "user", "content": "Weather in Oslo?", "images": null},
            {"role": "assistant", "content": null, "thinking": "I have to look.", "tool_calls": [
                {"id": "call_1", "type": "function",
                 "function": {"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}}]},
            {"role": "tool", "content": "12 degrees", "tool_name": "weather",
             "tool_call_id": "call_1"},
        ]))
        .unwrap();
        assert_eq!(list[0], Message::new("system", "Be brief."));
        assert_eq!(list[2].reasoning.as_deref(), Some("I have to look."));
        let call = ToolCall {
            id: "call_1".to_owned(),
            name: "weather".to_owned(),
            arguments: json!({"city": "Oslo"}),
        };
        assert_eq!(list[2].tool_calls, [call]);
        assert_eq!((list[3].role.as_str(), list[3].name.as_deref()), ("tool", Some("weather")));
        assert_eq!(list[3].tool_call_id.as_deref(), Some("call_1"));
    }

    #[test]
    fn arguments_are_an_object_in_the_end() {
        let call = |arguments: Value| {
            let call = json!({"function": {"name": "f", "arguments": arguments}});
            read(json!([{"role": "assistant", "tool_calls": [call]}]))
                .map(|list| list[0].tool_calls[0].arguments.clone())
        };
        assert_eq!(call(json!({"a": [1]})).unwrap(), json!({"a": [1]}));
        assert_eq!(call(json!("{\"a\": 1}")).unwrap(), json!({"a": 1}));
        assert_eq!(call(json!(null)).unwrap(), json!({}));
        for bad in [json!("{"), json!([1]), json!(1), json!("1")] {
            assert!(call(bad).unwrap_err().message.contains("no JSON object"));
        }
    }

    #[test]
    fn unsound_messages_are_refused() {
        for (value, reason) in [
            (json!([{"content": "x"}]), "messages[0] has no role"),
            (json!([{"role": "user"}, {"role": ""}]), "messages[1] has no role"),
            (json!([{"role": "user", "images": ["aGk="]}]), "\"demo\" does not support vision"),
            (json!([{"role": "r".repeat(257)}]), "too long"),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "no name"),
        ] {
            let error = read(value.clone()).unwrap_err();
            assert!(error.message.contains(reason), "{value}: {error}");
        }
        let limits = Limits { messages_max: 1, ..Limits::default() };
        let two = serde_json::from_value(json!([{"role": "user"}, {"role": "user"}])).unwrap();
        assert!(messages(two, "demo", &limits).unwrap_err().message.contains("more than 1"));
    }

    #[test]
    fn tools_keep_their_schema() {
        let schema = json!({"type": "object", "required": ["b", "a"],
            "properties": {"b": {"type": ["string", "null"]}, "a": {"$ref": "#/$defs/x"}}});
        let list = read_tools(json!([
            {"type": "function", "function":
                {"name": "f", "description": "Does f.", "parameters": schema}},
            {"function": {"name": "g"}},
        ]))
        .unwrap();
        assert_eq!((list[0].name.as_str(), list[0].description.as_str()), ("f", "Does f."));
        assert_eq!(list[0].parameters, schema);
        assert_eq!(list[1].parameters, json!({"type": "object", "properties": {}}));
        for (value, reason) in [
            (json!([{}]), "tools[0].function is missing"),
            (json!([{"function": {}}]), "has no name"),
            (json!([{"function": {"name": "f", "parameters": "x"}}]), "JSON Schema object"),
        ] {
            assert!(read_tools(value).unwrap_err().message.contains(reason), "{reason}");
        }
        let many = vec![json!({"function": {"name": "f"}}); 257];
        assert!(read_tools(Value::Array(many)).unwrap_err().message.contains("more than 256"));
    }
}
