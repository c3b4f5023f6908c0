//! `POST /api/chat`.

use std::time::Instant;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use hypura_chat::{Conversation, Think};
use serde::Deserialize;
use serde_json::Map;

use super::answer::{Form, Writer, respond};
use super::error::{OllamaError, about_model};
use super::message::{RequestMessage, RequestTool, messages, tools};
use super::request::{Common, Settings};
use crate::answer::{Input, ask};
use crate::app::Shared;
use crate::config::Limits;
use crate::error::ApiError;
use crate::http::{Caller, parse};

/// A request to `/api/chat`, as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChatRequest {
    #[serde(flatten)]
    common: Common,
    messages: Option<Vec<RequestMessage>>,
    tools: Option<Vec<RequestTool>>,
}

impl ChatRequest {
    /// Checks all fields.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub(super) fn resolve(self, limits: &Limits) -> Result<(Settings, Conversation), ApiError> {
        let settings = self.common.resolve(limits)?;
        let list = self.messages.unwrap_or_default();
        let conversation = Conversation {
            messages: messages(list, &settings.model, limits)?,
            tools: tools(self.tools.unwrap_or_default(), limits)?,
            think: None,
            template_args: Map::new(),
        };
        Ok((settings, conversation))
    }
}

/// Answers a conversation. Without messages the model is loaded, or with `keep_alive` 0 unloaded.
pub(super) async fn chat(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, OllamaError> {
    let started = Instant::now();
    let (settings, mut conversation) = parse::<ChatRequest>(&body)?.resolve(&app.config.limits)?;
    drop(body);
    let model = settings.model.as_str();
    let mut writer =
        Writer { form: Form::Chat, model: model.to_owned(), started, load: started.elapsed() };
    if conversation.messages.is_empty() && settings.unloads() {
        app.models.unload(model).await.map_err(|error| about_model(error, model))?;
        return Ok(writer.without_prompt("unload"));
    }
    // What comes with an answer is for the answer's own hold on the model: this one ends before it.
    let keep_alive = settings.keep_alive.filter(|_| conversation.messages.is_empty());
    let lease = app.models.load(model, keep_alive, settings.options.num_ctx).await;
    let lease = lease.map_err(|error| about_model(error, model))?;
    writer.load = started.elapsed();
    let facts = lease.runner().facts();
    if !facts.generates {
        let message = format!("{model:?} does not support chat");
        return Err(ApiError::bad_field("model", message).into());
    }
    conversation.think = thinking(&settings, facts.template.capabilities().thinking)?;
    if conversation.messages.is_empty() {
        return Ok(writer.without_prompt("load"));
    }
    let question = settings.ask(Input::Chat(conversation), &caller.tenant);
    // Who holds a model and asks for it again might wait for somebody who waits for its release.
    drop(lease);
    let answer = ask(&app, question).await.map_err(|error| about_model(error, model))?;
    Ok(respond(answer, writer, settings.stream).await?)
}

/// Whether to think: as was asked for, and by default if the model can, as Ollama does.
///
/// # Errors
/// When it was asked for and the model can't.
pub(super) fn thinking(settings: &Settings, can: bool) -> Result<Option<Think>, ApiError> {
    match (&settings.think, can) {
        (None, true) => Ok(Some(Think::On)),
        (Some(think), true) => Ok(Some(think.clone())),
        (None | Some(Think::Off), false) => Ok(None),
        (Some(Think::On | Think::Effort(_)), false) => {
            let message = format!("{:?} does not support thinking", settings.model);
            Err(ApiError::bad_field("think", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resolve(value: Value) -> Result<(Settings, Conversation), ApiError> {
        serde_json::from_value::<ChatRequest>(value).unwrap().resolve(&Limits::default())
    }

    #[test]
    fn a_request_becomes_a_conversation() {
        let (settings, conversation) = resolve(json!({
            "model": "demo", "stream": false,
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "options": {"seed": 7}, "width": 512,
        }))
        .unwrap();
        assert_eq!((settings.model.as_str(), settings.stream), ("demo", false));
        assert_eq!(settings.options.sampling.seed, Some(7));
        assert_eq!(conversation.messages[0].content, "Hi");
        assert_eq!(conversation.tools[0].name, "f");
        let (_, empty) = resolve(json!({"model": "demo", "messages": null})).unwrap();
        assert!(empty.messages.is_empty());
    }

    #[test]
    fn models_think_unless_they_can_not() {
        let check = |think: Value, can| {
            let (settings, _) = resolve(json!({"model": "demo", "think": think})).unwrap();
            thinking(&settings, can)
        };
        assert_eq!(check(json!(null), true).unwrap(), Some(Think::On));
        assert_eq!(check(json!(false), true).unwrap(), Some(Think::Off));
        assert_eq!(check(json!("low"), true).unwrap(), Some(Think::Effort("low".to_owned())));
        assert_eq!(check(json!(null), false).unwrap(), None);
        assert_eq!(check(json!(false), false).unwrap(), None);
        for think in [json!(true), json!("high")] {
            let error = check(think, false).unwrap_err();
            assert_eq!(error.message, "\"demo\" does not support thinking");
        }
    }
}
