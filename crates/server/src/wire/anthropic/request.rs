//! From the request for a message to the question.

use axum::body::Bytes;
use hypura_chat::{Conversation, Think};
use hypura_grammar::Rule;
use serde::Deserialize;
use serde_json::Value;

use super::super::fields::{TextOr, in_range, stops, token_count};
use super::super::keep_alive::keep_alive;
use super::content::{BlockField, MessageField, messages};
use super::tools::{self, ChoiceField, ToolField};
use crate::answer::{Ask, Input};
use crate::config::Limits;
use crate::error::ApiError;
use crate::http;

/// Most tokens to choose from.
const TOP_K_MAX: i32 = 1 << 20;

/// A request, understood.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    /// Whether the answer is sent while it is made.
    pub(super) stream: bool,
}

/// What is wanted of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// An answer, whose length has to be bounded.
    Answer,
    /// The number of its tokens.
    Count,
}

#[derive(Debug, Deserialize)]
struct Fields {
    model: String,
    messages: Vec<MessageField>,
    system: Option<TextOr<BlockField>>,
    max_tokens: Option<i64>,
    stop_sequences: Option<Vec<String>>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i32>,
    thinking: Option<Thinking>,
    tools: Option<Vec<ToolField>>,
    tool_choice: Option<ChoiceField>,
    output_config: Option<OutputConfig>,
    /// Where `output_config.format` was in 2025.
    output_format: Option<Format>,
    stream: Option<bool>,
    keep_alive: Option<Value>,
    mcp_servers: Option<Vec<Value>>,
}

/// How a model thinks. `budget_tokens` is not kept to: `max_tokens` bounds thought and answer
/// together.
#[derive(Debug, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<Format>,
}

#[derive(Debug, Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Value>,
}

impl Request {
    /// Understands a request, within `limits`.
    pub(super) fn parse(
        body: &Bytes,
        limits: &Limits,
        tenant: &str,
        want: Want,
    ) -> Result<Request, ApiError> {
        let fields: Fields = http::parse(body)?;
        if fields.mcp_servers.is_some_and(|servers| !servers.is_empty()) {
            let message = "servers of tools are not called from here; leave mcp_servers out";
            return Err(ApiError::bad_field("mcp_servers", message));
        }
        if want == Want::Answer && fields.max_tokens.is_none() {
            return Err(ApiError::bad_field("max_tokens", "max_tokens is missing; add it"));
        }
        let (effort, format) = match fields.output_config {
            Some(config) => (config.effort, config.format),
            None => (None, None),
        };
        let tools = tools::tools(fields.tools.unwrap_or_default(), limits)?;
        let conversation = Conversation {
            messages: messages(fields.system, fields.messages, limits)?,
            tools: tools.clone(),
            think: Some(think(fields.thinking.as_ref(), effort.as_deref())?),
            ..Conversation::default()
        };

        let mut ask = Ask::new(fields.model, Input::Chat(conversation), tenant);
        if let Some(choice) = fields.tool_choice {
            tools::choose(&mut ask, choice, &tools)?;
        }
        ask.max_tokens = token_count("max_tokens", fields.max_tokens)?;
        ask.stop = stops("stop_sequences", fields.stop_sequences.map(TextOr::List), limits)?;
        ask.sampling.temperature = in_range("temperature", fields.temperature, 0.0..=2.0)?;
        ask.sampling.top_p = in_range("top_p", fields.top_p, 0.0..=1.0)?;
        if fields.top_k.is_some_and(|top_k| !(-1..=TOP_K_MAX).contains(&top_k)) {
            let message = format!("top_k must be from -1 to {TOP_K_MAX}");
            return Err(ApiError::bad_field("top_k", message));
        }
        ask.sampling.top_k = fields.top_k;
        ask.format = format.or(fields.output_format).map(rule).transpose()?;
        ask.keep_alive = keep_alive(fields.keep_alive.as_ref())?;
        Ok(Request { ask, stream: fields.stream.unwrap_or(false) })
    }
}

/// Whether to think. As in Anthropic's API, who doesn't ask for it gets none.
fn think(thinking: Option<&Thinking>, effort: Option<&str>) -> Result<Think, ApiError> {
    let effort = match effort {
        None => Think::On,
        Some("low") => Think::Effort("low".to_owned()),
        Some("medium") => Think::Effort("medium".to_owned()),
        Some("high" | "xhigh" | "max") => Think::Effort("high".to_owned()),
        Some(_) => {
            let message = "output_config.effort must be low, medium, high, xhigh or max";
            return Err(ApiError::bad_field("output_config.effort", message));
        }
    };
    match thinking.map(|thinking| thinking.kind.as_str()) {
        None | Some("disabled") => Ok(Think::Off),
        Some("enabled" | "adaptive") => Ok(effort),
        Some(_) => {
            let message = "thinking.type must be enabled, adaptive or disabled";
            Err(ApiError::bad_field("thinking.type", message))
        }
    }
}

fn rule(format: Format) -> Result<Rule, ApiError> {
    match (format.kind.as_str(), format.schema) {
        ("json_schema", Some(schema)) => Ok(Rule::JsonSchema(schema)),
        _ => Err(ApiError::bad_field(
            "output_config.format",
            "output_config.format must be of type json_schema and have a schema",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::answer::ToolChoice;

    fn with(fields: Value) -> Result<Request, ApiError> {
        let mut json =
            json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]});
        for (field, value) in fields.as_object().unwrap() {
            json[field] = value.clone();
        }
        parse(&json, Want::Answer)
    }

    fn parse(json: &Value, want: Want) -> Result<Request, ApiError> {
        Request::parse(&Bytes::from(json.to_string()), &Limits::default(), "ann", want)
    }

    fn conversation(request: Request) -> Conversation {
        match request.ask.input {
            Input::Chat(conversation) => conversation,
            input => panic!("{input:?} is no chat"),
        }
    }

    #[test]
    fn fields() {
        let schema = json!({"type": "object"});
        let request = with(json!({
            "system": "Be brief.", "stop_sequences": ["END"], "stream": true,
            "temperature": 0.5, "top_p": 0.9, "top_k": 5, "metadata": {"user_id": "x"},
            "tools": [{"name": "f", "description": "d", "input_schema": schema}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
            "output_config": {"format": {"type": "json_schema", "schema": schema}}
        }))
        .unwrap();
        assert!(request.stream);
        let ask = &request.ask;
        assert_eq!((ask.max_tokens, ask.tenant.as_str()), (Some(9), "ann"));
        assert_eq!(ask.stop, Some(vec!["END".to_owned()]));
        assert_eq!(ask.sampling.top_k, Some(5));
        assert_eq!(ask.tool_choice, ToolChoice::Function("f".into()));
        assert!(!ask.parallel_tool_calls);
        assert_eq!(ask.format, Some(Rule::JsonSchema(schema)));
        let conversation = conversation(request);
        assert_eq!(conversation.tools[0].description, "d");
        assert_eq!(conversation.messages[0].role, "system");
    }

    #[test]
    fn thinking() {
        let check = |fields: Value, expected: Think| {
            assert_eq!(conversation(with(fields).unwrap()).think, Some(expected));
        };
        check(json!({}), Think::Off);
        check(json!({"thinking": {"type": "disabled"}}), Think::Off);
        check(json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), Think::On);
        let adaptive =
            json!({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}});
        check(adaptive, Think::Effort("high".into()));
    }

    #[test]
    fn choices() {
        let check = |kind: &str, expected: ToolChoice| {
            let fields = json!({"tools": [{"name": "f"}], "tool_choice": {"type": kind}});
            assert_eq!(with(fields).unwrap().ask.tool_choice, expected);
        };
        check("auto", ToolChoice::Auto);
        check("any", ToolChoice::Required);
        check("none", ToolChoice::Never);
    }

    #[test]
    fn a_count_needs_no_bound() {
        let mut json = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        assert!(parse(&json, Want::Count).is_ok());
        let error = parse(&json, Want::Answer).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("max_tokens"));
        json["max_tokens"] = json!(1);
        assert!(parse(&json, Want::Answer).is_ok());
    }

    #[test]
    fn what_is_refused() {
        for (fields, named) in [
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"temperature": -1}), "temperature"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"thinking": {"type": "deep"}}), "thinking.type"),
            (json!({"output_config": {"effort": "huge"}}), "output_config.effort"),
            (json!({"output_format": {"type": "xml"}}), "output_config.format"),
            (json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}), "tools"),
            (json!({"tools": [{"name": ""}]}), "tools.name"),
            (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
            (json!({"tool_choice": {"type": "tool", "name": "f"}}), "tool_choice"),
            (json!({"tool_choice": {"type": "perhaps"}}), "tool_choice"),
            (json!({"mcp_servers": [{}]}), "mcp_servers"),
        ] {
            let error = with(fields).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(named), "{error}");
        }
    }
}
