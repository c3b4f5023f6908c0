//! From the request for a response to the question.

use axum::body::Bytes;
use hypura_chat::Conversation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::super::fields::{TextOr, token_count};
use super::super::super::keep_alive::keep_alive;
use super::super::format::Format;
use super::super::logprobs::TOP_MAX;
use super::super::sampling::SamplingFields;
use super::super::think;
use super::super::tools::{self, ToolField};
use super::input::{Item, messages};
use super::object::Echo;
use crate::answer::{Ask, Input, Overflow};
use crate::config::Limits;
use crate::error::ApiError;
use crate::http;

/// What a client includes to be told log probabilities.
const INCLUDE_LOGPROBS: &str = "message.output_text.logprobs";

/// A request, understood.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    /// Whether the answer is sent while it is made.
    pub(super) stream: bool,
    pub(super) echo: Echo,
}

/// The fields beside those of [`SamplingFields`].
#[derive(Debug, Deserialize)]
struct Fields {
    model: String,
    input: Option<TextOr<Item>>,
    instructions: Option<String>,
    max_output_tokens: Option<i64>,
    tools: Option<Vec<ToolField>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<Text>,
    reasoning: Option<Reasoning>,
    include: Option<Vec<String>>,
    top_logprobs: Option<usize>,
    truncation: Option<String>,
    stream: Option<bool>,
    keep_alive: Option<Value>,
    metadata: Option<Value>,
    user: Option<String>,
    previous_response_id: Option<Value>,
    conversation: Option<Value>,
    prompt: Option<Value>,
    store: Option<bool>,
    background: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Text {
    format: Option<Format>,
}

#[derive(Debug, Deserialize)]
struct Reasoning {
    effort: Option<String>,
}

impl Request {
    /// Understands a request, within `limits`.
    pub(super) fn parse(body: &Bytes, limits: &Limits, tenant: &str) -> Result<Request, ApiError> {
        let sampling: SamplingFields = http::parse(body)?;
        let fields: Fields = http::parse(body)?;
        fields.check()?;
        let (temperature, top_p) = sampling.echo();
        let effort = fields.reasoning.and_then(|reasoning| reasoning.effort);
        let format = fields.text.and_then(|text| text.format);
        let rule = match &format {
            Some(format) => format.rule("text.format")?,
            None => None,
        };
        let logprobs = logprobs(fields.include.as_deref(), fields.top_logprobs)?;
        let overflow = match fields.truncation.as_deref() {
            None | Some("disabled") => Overflow::Refuse,
            Some("auto") => Overflow::DropOldest,
            Some(_) => {
                let message = "truncation must be auto or disabled";
                return Err(ApiError::bad_field("truncation", message));
            }
        };
        let tools = tools::tools(fields.tools.unwrap_or_default(), limits)?;
        let echo = Echo {
            instructions: fields.instructions.clone(),
            max_output_tokens: token_count("max_output_tokens", fields.max_output_tokens)?,
            metadata: fields.metadata.unwrap_or_else(|| json!({})),
            parallel_tool_calls: fields.parallel_tool_calls.unwrap_or(true),
            effort: effort.clone(),
            temperature,
            text_format: format.map_or_else(|| json!({"type": "text"}), |format| format.echo()),
            tool_choice: fields.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            tools: tools.iter().map(Echo::tool).collect(),
            top_logprobs: logprobs.unwrap_or(0),
            logprobs: logprobs.is_some(),
            top_p,
            truncation: fields.truncation,
            user: fields.user,
        };

        let conversation = Conversation {
            messages: messages(fields.instructions, fields.input, limits)?,
            tools,
            think: think::effort("reasoning.effort", effort.as_deref())?,
            ..Conversation::default()
        };
        let mut ask = Ask::new(fields.model, Input::Chat(conversation), tenant);
        sampling.apply(&mut ask, limits)?;
        tools::choose(&mut ask, fields.tool_choice)?;
        ask.parallel_tool_calls = echo.parallel_tool_calls;
        ask.max_tokens = echo.max_output_tokens;
        ask.format = rule;
        ask.logprobs = logprobs;
        ask.overflow = overflow;
        ask.keep_alive = keep_alive(fields.keep_alive.as_ref())?;
        Ok(Request { ask, stream: fields.stream.unwrap_or(false), echo })
    }
}

impl Fields {
    /// Refuses what needs memory of earlier requests.
    fn check(&self) -> Result<(), ApiError> {
        let given = |field: &Option<Value>| field.is_some();
        for (field, wanted) in [
            ("previous_response_id", given(&self.previous_response_id)),
            ("conversation", given(&self.conversation)),
            ("prompt", given(&self.prompt)),
            ("store", self.store == Some(true)),
            ("background", self.background == Some(true)),
        ] {
            if wanted {
                return Err(ApiError::bad_field(
                    field,
                    format!(
                        "{field} is not available: nothing is kept between requests; leave it out and send the whole conversation as input"
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn logprobs(include: Option<&[String]>, top: Option<usize>) -> Result<Option<usize>, ApiError> {
    if top.is_some_and(|top| top > TOP_MAX) {
        let message = format!("top_logprobs must be from 0 to {TOP_MAX}");
        return Err(ApiError::bad_field("top_logprobs", message));
    }
    let included = include.is_some_and(|list| list.iter().any(|name| name == INCLUDE_LOGPROBS));
    let top = top.filter(|&top| top > 0);
    Ok(if included { Some(top.unwrap_or(0)) } else { top })
}

#[cfg(test)]
mod tests {
    use hypura_chat::Think;
    use hypura_grammar::Rule;

    use super::*;
    use crate::answer::ToolChoice;

    fn with(fields: Value) -> Result<Request, ApiError> {
        let mut json = json!({"model": "m", "input": "Hi"});
        for (field, value) in fields.as_object().unwrap() {
            json[field] = value.clone();
        }
        Request::parse(&Bytes::from(json.to_string()), &Limits::default(), "ann")
    }

    #[test]
    fn fields() {
        let request = with(json!({
            "instructions": "Be brief.", "max_output_tokens": 9, "stream": true,
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
            "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": true},
                     "verbosity": "low"},
            "reasoning": {"effort": "low", "summary": "auto"},
            "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
            "truncation": "auto", "temperature": 0.25, "store": false, "previous_response_id": null
        }))
        .unwrap();
        assert!(request.stream);
        let ask = &request.ask;
        assert_eq!((ask.max_tokens, ask.logprobs), (Some(9), Some(0)));
        assert_eq!(ask.format, Some(Rule::JsonSchema(json!({"type": "object"}))));
        assert_eq!(ask.tool_choice, ToolChoice::Function("f".into()));
        assert_eq!(ask.overflow, Overflow::DropOldest);
        assert!(!ask.parallel_tool_calls);
        assert_eq!(ask.sampling.temperature, Some(0.25));
        let Input::Chat(conversation) = &ask.input else { panic!("no chat") };
        assert_eq!(conversation.messages.len(), 2);
        assert_eq!(conversation.think, Some(Think::Effort("low".into())));
        let echo = &request.echo;
        assert_eq!(echo.tools[0]["name"], "f");
        assert_eq!(echo.text_format["name"], "x");
        assert!(echo.logprobs);
    }

    #[test]
    fn what_is_refused() {
        for (fields, named) in [
            (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
            (json!({"conversation": "conv_1"}), "conversation"),
            (json!({"prompt": {"id": "p"}}), "prompt"),
            (json!({"store": true}), "store"),
            (json!({"background": true}), "background"),
            (json!({"tools": [{"type": "web_search"}]}), "tools"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"truncation": "some"}), "truncation"),
            (json!({"top_logprobs": 21}), "top_logprobs"),
            (json!({"max_output_tokens": 0}), "max_output_tokens"),
            (json!({"reasoning": {"effort": "huge"}}), "reasoning.effort"),
            (json!({"text": {"format": {"type": "xml"}}}), "text.format"),
            (json!({"input": null}), "input"),
        ] {
            let error = with(fields).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(named), "{error}");
        }
    }
}
