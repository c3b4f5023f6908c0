//! What is said in a chat, and what a model is told besides: tools, and whether to think.

use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

/// One message of a conversation.
///
/// It is serialised as Hugging Face's `apply_chat_template` expects it: `role`, `content`,
/// `reasoning_content`, `tool_calls`, `tool_call_id`, `name`; what is absent is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`; some templates know others.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What an assistant thought before it answered.
    #[serde(rename = "reasoning_content", skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The tools that an assistant called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a `tool` message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who speaks; the tool's name in a `tool` message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message of this role that says `content` and nothing else.
    pub fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.to_owned(), content: content.into(), ..Message::default() }
    }
}

/// A call of a tool.
///
/// Serialised as `{"type": "function", "id": .., "function": {"name": .., "arguments": {..}}}`, an
/// empty id left out. When read, `arguments` may also be a text that holds JSON, as OpenAI's API
/// writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Names the call within a conversation; may be empty.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// Usually an object: a value for each parameter.
    pub arguments: Value,
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", "function")?;
        if !self.id.is_empty() {
            map.serialize_entry("id", &self.id)?;
        }
        let function = json!({"name": self.name, "arguments": self.arguments});
        map.serialize_entry("function", &function)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for ToolCall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ToolCall, D::Error> {
        #[derive(Deserialize)]
        struct Function {
            name: String,
            #[serde(default)]
            arguments: Value,
        }
        #[derive(Deserialize)]
        struct Call {
            #[serde(default)]
            id: String,
            function: Function,
        }
        let Call { id, function } = Call::deserialize(deserializer)?;
        let arguments = match function.arguments {
            Value::String(text) => serde_json::from_str(&text).map_err(D::Error::custom)?,
            Value::Null => Value::Object(Map::new()),
            value => value,
        };
        Ok(ToolCall { id, name: function.name, arguments })
    }
}

/// A tool that a model may call.
///
/// Serialised as `{"type": "function", "function": {"name", "description", "parameters"}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// How the model names it.
    pub name: String,
    /// What it does, for the model to read.
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: Value,
    /// Whether arguments must obey the schema. Not for templates: it is for whoever forces a call.
    pub strict: bool,
}

impl Serialize for Tool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let function = json!({
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        });
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("type", "function")?;
        map.serialize_entry("function", &function)?;
        map.end()
    }
}

/// Whether a model shall think before it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Think {
    /// Answer at once.
    Off,
    /// Think.
    On,
    /// Think so much: `low`, `medium` or `high`; some templates know other words.
    Effort(String),
}

/// All that a prompt is made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Whether to think; the template decides if absent.
    pub think: Option<Think>,
    /// Further names for the template (`chat_template_kwargs`). They win over ours.
    pub template_args: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_messages_are_role_and_content() {
        let text = serde_json::to_string(&Message::new("user", "Hi")).unwrap();
        assert_eq!(text, r#"{"role":"user","content":"Hi"}"#);
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), Message::new("user", "Hi"));
    }

    #[test]
    fn calls_are_written_and_read() {
        let call = ToolCall { id: "a1".into(), name: "f".into(), arguments: json!({"x": 1}) };
        let message = Message {
            reasoning: Some("so".into()),
            tool_calls: vec![call],
            ..Message::new("assistant", "")
        };
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(
            text,
            r#"{"role":"assistant","content":"","reasoning_content":"so","tool_calls":[{"type":"function","id":"a1","function":{"name":"f","arguments":{"x":1}}}]}"#
        );
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
        let quoted = text.replace(r#"{"x":1}"#, r#""{\"x\":1}""#);
        assert_eq!(serde_json::from_str::<Message>(&quoted).unwrap(), message);
    }
}
