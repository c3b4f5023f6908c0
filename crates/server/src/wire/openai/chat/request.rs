//! From the request for a chat to the question.

use axum::body::Bytes;
use hypura_chat::{Conversation, Think};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::super::fields::{at_most, token_count};
use super::super::super::keep_alive::keep_alive;
use super::super::format::Format;
use super::super::logprobs::TOP_MAX;
use super::super::sampling::SamplingFields;
use super::super::think;
use super::super::tools::{self, Function, ToolField};
use super::Form;
use super::messages::{MessageField, messages};
use crate::answer::{Ask, Input};
use crate::config::Limits;
use crate::error::ApiError;
use crate::http;

/// Most arguments for a template.
const TEMPLATE_ARGS_MAX: usize = 64;

/// A request, understood.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    /// How many answers.
    pub(super) n: usize,
    /// Whether they are sent while they are made.
    pub(super) stream: bool,
    pub(super) form: Form,
}

/// The fields beside those of [`SamplingFields`].
#[derive(Debug, Deserialize)]
struct Fields {
    model: String,
    messages: Vec<MessageField>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n: Option<usize>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    response_format: Option<Format>,
    tools: Option<Vec<ToolField>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    functions: Option<Vec<Function>>,
    function_call: Option<Value>,
    reasoning_effort: Option<String>,
    reasoning: Option<Reasoning>,
    chat_template_kwargs: Option<Map<String, Value>>,
    keep_alive: Option<Value>,
    modalities: Option<Vec<String>>,
    audio: Option<Value>,
    web_search_options: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// As OpenRouter and Ollama write the effort.
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
        let (think, logprobs) = (fields.think()?, fields.logprobs()?);
        let n = fields.n.unwrap_or(1);
        if n == 0 || n > limits.choices_max {
            let message = format!("n must be from 1 to {}", limits.choices_max);
            return Err(ApiError::bad_field("n", message));
        }

        let old = fields.functions.is_some();
        let mut tools = tools::tools(fields.tools.unwrap_or_default(), limits)?;
        tools.extend(tools::functions(fields.functions.unwrap_or_default(), limits)?);
        let template_args = fields.chat_template_kwargs.unwrap_or_default();
        at_most("chat_template_kwargs", template_args.len(), TEMPLATE_ARGS_MAX)?;
        let messages = messages(fields.messages, limits)?;
        let conversation = Conversation { messages, tools, think, template_args };

        let mut ask = Ask::new(fields.model, Input::Chat(conversation), tenant);
        sampling.apply(&mut ask, limits)?;
        tools::choose(&mut ask, fields.tool_choice.or(fields.function_call))?;
        ask.parallel_tool_calls = fields.parallel_tool_calls.unwrap_or(true) && !old;
        ask.max_tokens = match fields.max_completion_tokens {
            Some(count) => token_count("max_completion_tokens", Some(count))?,
            None => token_count("max_tokens", fields.max_tokens)?,
        };
        ask.format = match fields.response_format {
            Some(format) => format.rule("response_format")?,
            None => None,
        };
        ask.logprobs = logprobs;
        ask.keep_alive = keep_alive(fields.keep_alive.as_ref())?;
        let usage = fields.stream_options.and_then(|options| options.include_usage);
        let form =
            Form { logprobs: logprobs.is_some(), usage: usage.unwrap_or(false), functions: old };
        Ok(Request { ask, n, stream: fields.stream.unwrap_or(false), form })
    }
}

impl Fields {
    /// Refuses what would change the answer and is not done here.
    fn check(&self) -> Result<(), ApiError> {
        let other = self.modalities.iter().flatten().any(|kind| kind != "text");
        if other || self.audio.is_some() {
            return Err(ApiError::bad_field(
                "modalities",
                "answers are text only; ask for \"text\"",
            ));
        }
        if self.web_search_options.is_some() {
            return Err(ApiError::bad_field(
                "web_search_options",
                "there is no search of the web here; leave it out",
            ));
        }
        Ok(())
    }

    fn think(&self) -> Result<Option<Think>, ApiError> {
        let nested = self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
        think::effort("reasoning_effort", self.reasoning_effort.as_deref().or(nested))
    }

    fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        let top = self.top_logprobs.unwrap_or(0);
        if top > TOP_MAX {
            let message = format!("top_logprobs must be from 0 to {TOP_MAX}");
            return Err(ApiError::bad_field("top_logprobs", message));
        }
        match self.logprobs {
            Some(true) => Ok(Some(top)),
            _ if top > 0 => {
                Err(ApiError::bad_field("top_logprobs", "top_logprobs needs logprobs to be true"))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hypura_grammar::Rule;
    use serde_json::json;

    use super::*;
    use crate::answer::{KeepAlive, ToolChoice};

    fn parse(json: &Value) -> Result<Request, ApiError> {
        Request::parse(&Bytes::from(json.to_string()), &Limits::default(), "ann")
    }

    fn with(field: &str, value: Value) -> Result<Request, ApiError> {
        let mut json = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        json[field] = value;
        parse(&json)
    }

    fn conversation(request: Request) -> Conversation {
        match request.ask.input {
            Input::Chat(conversation) => conversation,
            input => panic!("{input:?} is no chat"),
        }
    }

    #[test]
    fn the_least_request() {
        let request = with("user", json!("x")).unwrap();
        assert_eq!((request.n, request.stream, request.form), (1, false, Form::default()));
        let ask = &request.ask;
        assert_eq!((ask.model.as_str(), ask.tenant.as_str()), ("m", "ann"));
        assert_eq!((ask.max_tokens, &ask.stop, &ask.format), (None, &None, &None));
        assert!(ask.parallel_tool_calls);
        assert_eq!(conversation(request).think, None);
    }

    #[test]
    fn the_most_of_a_request() {
        let request = parse(&json!({
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": true, "stream_options": {"include_usage": true},
            "max_tokens": 5, "max_completion_tokens": 6, "n": 2,
            "logprobs": true, "top_logprobs": 3, "temperature": 0.5,
            "response_format": {"type": "json_object"},
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": "required", "parallel_tool_calls": false,
            "reasoning_effort": "high", "chat_template_kwargs": {"x": 1}, "keep_alive": "2s",
            "store": false, "metadata": {}, "service_tier": "auto", "prediction": {},
            "modalities": ["text"]
        }))
        .unwrap();
        assert_eq!((request.n, request.stream), (2, true));
        assert_eq!(request.form, Form { logprobs: true, usage: true, functions: false });
        let ask = &request.ask;
        assert_eq!((ask.max_tokens, ask.logprobs), (Some(6), Some(3)));
        assert_eq!(ask.format, Some(Rule::Json));
        assert_eq!(ask.tool_choice, ToolChoice::Required);
        assert!(!ask.parallel_tool_calls);
        assert_eq!(ask.sampling.temperature, Some(0.5));
        assert_eq!(ask.keep_alive, Some(KeepAlive::For(Duration::from_secs(2))));
        let conversation = conversation(request);
        assert_eq!(conversation.think, Some(Think::Effort("high".into())));
        assert_eq!(conversation.template_args["x"], 1);
        assert_eq!(conversation.tools.len(), 1);
    }

    #[test]
    fn functions_are_tools() {
        let mut json = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        json["functions"] = json!([{"name": "f", "parameters": {"type": "object"}}]);
        json["function_call"] = json!({"name": "f"});
        let request = parse(&json).unwrap();
        assert!(request.form.functions && !request.ask.parallel_tool_calls);
        assert_eq!(request.ask.tool_choice, ToolChoice::Function("f".into()));
        assert_eq!(conversation(request).tools[0].name, "f");
    }

    #[test]
    fn effort_in_both_places() {
        let think = |request: Result<Request, ApiError>| conversation(request.unwrap()).think;
        assert_eq!(think(with("reasoning_effort", json!("none"))), Some(Think::Off));
        let low = Some(Think::Effort("low".into()));
        assert_eq!(think(with("reasoning", json!({"effort": "low"}))), low);
    }

    #[test]
    fn what_is_refused() {
        for (field, value, named) in [
            ("n", json!(0), "n"),
            ("n", json!(17), "n"),
            ("max_tokens", json!(0), "max_tokens"),
            ("max_completion_tokens", json!(-5), "max_completion_tokens"),
            ("top_logprobs", json!(21), "top_logprobs"),
            ("top_logprobs", json!(1), "top_logprobs"),
            ("modalities", json!(["text", "audio"]), "modalities"),
            ("audio", json!({"voice": "x"}), "modalities"),
            ("web_search_options", json!({}), "web_search_options"),
            ("reasoning_effort", json!("huge"), "reasoning_effort"),
            ("keep_alive", json!("soon"), "keep_alive"),
            ("response_format", json!({"type": "xml"}), "response_format"),
            ("tool_choice", json!("required"), "tool_choice"),
        ] {
            let error = with(field, value).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(named), "{error}");
        }
        assert!(with("n", json!("two")).unwrap_err().message.contains("column"));
    }
}
