//! `POST /api/generate`.

use std::time::Instant;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use chrono::Local;
use hypura_chat::{Conversation, Message, Think};
use hypura_engine::llama::Token;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::answer::{Form, Writer, respond};
use super::chat::thinking;
use super::error::{OllamaError, about_model};
use super::fill::FillTokens;
use super::message::no_images;
use super::request::{Common, Settings};
use crate::answer::{Input, ask, blocking};
use crate::app::Shared;
use crate::config::Limits;
use crate::error::ApiError;
use crate::http::{Caller, parse};
use crate::models::Lease;

/// Tokens of a `context` at most.
const CONTEXT_TOKENS_MAX: usize = 1 << 20;

/// A request to `/api/generate`, as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct GenerateRequest {
    #[serde(flatten)]
    common: Common,
    prompt: Option<String>,
    suffix: Option<String>,
    system: Option<String>,
    template: Option<String>,
    context: Option<Vec<i64>>,
    raw: Option<bool>,
    images: Option<Vec<IgnoredAny>>,
}

/// What is to be continued.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    /// Nothing: the model is loaded or unloaded.
    Nothing,
    /// The text as it stands.
    Raw(String),
    /// What stands between these.
    Gap { prefix: String, suffix: String },
    /// A message, with a system message or without.
    Chat(Vec<Message>),
    /// The same, after what was said before.
    After(Vec<Token>, Vec<Message>),
}

impl GenerateRequest {
    /// Checks all fields.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub(super) fn resolve(self, limits: &Limits) -> Result<(Settings, Prompt), ApiError> {
        let settings = self.common.resolve(limits)?;
        let context = self.context.map(tokens).transpose()?.unwrap_or_default();
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let (system, template) = (given(self.system), given(self.template));
        if self.images.is_some_and(|images| !images.is_empty()) {
            return Err(no_images(&settings.model));
        }
        let is_raw = self.raw == Some(true);
        if is_raw && (template.is_some() || system.is_some() || !context.is_empty()) {
            let message = "raw mode does not support template, system, or context";
            return Err(ApiError::bad_field("raw", message));
        }
        if template.is_some() {
            let message = "template can't be used, as it would be one of Go's; leave it out, or \
                 render the prompt yourself and set raw";
            return Err(ApiError::bad_field("template", message));
        }
        let Some(prompt) = given(self.prompt) else { return Ok((settings, Prompt::Nothing)) };
        let prompt = match given(self.suffix) {
            Some(suffix) if !is_raw => Prompt::Gap { prefix: prompt, suffix },
            _ if is_raw => Prompt::Raw(prompt),
            _ => {
                let system = system.map(|system| Message::new("system", system));
                let said = system.into_iter().chain([Message::new("user", prompt)]).collect();
                if context.is_empty() { Prompt::Chat(said) } else { Prompt::After(context, said) }
            }
        };
        Ok((settings, prompt))
    }
}

fn tokens(numbers: Vec<i64>) -> Result<Vec<Token>, ApiError> {
    let bad = |reason: String| ApiError::bad_field("context", reason);
    if numbers.len() > CONTEXT_TOKENS_MAX {
        return Err(bad(format!("context has more than {CONTEXT_TOKENS_MAX} tokens")));
    }
    let token = |number: i64| Token::try_from(number).ok().filter(|&token| token >= 0);
    let tokens: Option<Vec<Token>> = numbers.into_iter().map(token).collect();
    tokens.ok_or_else(|| bad("context has to be what an earlier answer gave".to_owned()))
}

/// Continues a prompt. Without one the model is loaded, or with `keep_alive` 0 unloaded.
pub(super) async fn generate(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, OllamaError> {
    let started = Instant::now();
    let (settings, prompt) = parse::<GenerateRequest>(&body)?.resolve(&app.config.limits)?;
    drop(body);
    let model = settings.model.as_str();
    let form = Form::Generate { context: !matches!(prompt, Prompt::Raw(_)) };
    let mut writer = Writer { form, model: model.to_owned(), started, load: started.elapsed() };
    if prompt == Prompt::Nothing && settings.unloads() {
        app.models.unload(model).await.map_err(|error| about_model(error, model))?;
        return Ok(writer.without_prompt("unload"));
    }
    // What comes with an answer is for the answer's own hold on the model: this one ends before it.
    let keep_alive = settings.keep_alive.filter(|_| prompt == Prompt::Nothing);
    let lease = app.models.load(model, keep_alive, settings.options.num_ctx).await;
    let lease = lease.map_err(|error| about_model(error, model))?;
    writer.load = started.elapsed();
    let facts = lease.runner().facts();
    if !facts.generates {
        let message = format!("{model:?} does not support generate");
        return Err(ApiError::bad_field("model", message).into());
    }
    let think = thinking(&settings, facts.template.capabilities().thinking)?;
    // Templates and tokens take a while. At the end of it the model is let go: who holds one and asks
    // for it again might wait for somebody who waits for its release.
    let held = settings.clone();
    let input = blocking(move || input(prompt, think, &held, &lease)).await?;
    let Some(input) = input else { return Ok(writer.without_prompt("load")) };
    let question = settings.ask(input, &caller.tenant);
    let answer = ask(&app, question).await.map_err(|error| about_model(error, model))?;
    Ok(respond(answer, writer, settings.stream).await?)
}

/// What the model is asked; `None` if nothing is.
fn input(
    prompt: Prompt,
    think: Option<Think>,
    settings: &Settings,
    lease: &Lease,
) -> Result<Option<Input>, ApiError> {
    let runner = lease.runner().as_ref();
    let conversation =
        |messages, think| Conversation { messages, think, ..Conversation::default() };
    Ok(Some(match prompt {
        Prompt::Nothing => return Ok(None),
        Prompt::Raw(text) => Input::Text(text),
        Prompt::Chat(messages) => Input::Chat(conversation(messages, think)),
        Prompt::Gap { prefix, suffix } => {
            let details = lease.entry().details();
            let details = details.map_err(|error| ApiError::internal(error.to_string()))?;
            let tokens = FillTokens::of(&details.metadata).ok_or_else(|| {
                let message = format!("{:?} does not support insert", settings.model);
                ApiError::bad_field("suffix", message)
            })?;
            Input::Tokens(tokens.prompt(runner, &prefix, &suffix))
        }
        Prompt::After(tokens, messages) => {
            // What is answered to tokens is content alone: there is no room for reasoning.
            let said = conversation(messages, think.and(Some(Think::Off)));
            let now = Local::now().fixed_offset();
            let text = runner.facts().template.render_conversation(&said, true, now);
            Input::After(tokens, text.map_err(|error| ApiError::bad(error.to_string()))?)
        }
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resolve(mut value: Value) -> Result<Prompt, ApiError> {
        value["model"] = json!("demo");
        let request: GenerateRequest = serde_json::from_value(value).unwrap();
        request.resolve(&Limits::default()).map(|(_, prompt)| prompt)
    }

    #[test]
    fn a_prompt_is_a_message_unless_it_is_raw() {
        let user = Message::new("user", "Why?");
        for (value, want) in [
            (json!({}), Prompt::Nothing),
            (json!({"prompt": "", "suffix": "x"}), Prompt::Nothing),
            (json!({"prompt": "Why?"}), Prompt::Chat(vec![user.clone()])),
            (
                json!({"prompt": "Why?", "system": "S", "template": "", "images": [], "context": []}),
                Prompt::Chat(vec![Message::new("system", "S"), user.clone()]),
            ),
            (json!({"prompt": "Why?", "raw": true}), Prompt::Raw("Why?".to_owned())),
            (json!({"prompt": "Why?", "context": [1, 2]}), Prompt::After(vec![1, 2], vec![user])),
            (
                json!({"prompt": "a(", "suffix": ")"}),
                Prompt::Gap { prefix: "a(".to_owned(), suffix: ")".to_owned() },
            ),
        ] {
            assert_eq!(resolve(value.clone()).unwrap(), want, "{value}");
        }
    }

    #[test]
    fn what_can_not_be_done_is_refused() {
        let raw = "raw mode does not support template, system, or context";
        for (value, reason) in [
            (json!({"prompt": "x", "raw": true, "system": "S"}), raw),
            (json!({"prompt": "x", "raw": true, "template": "T"}), raw),
            (json!({"prompt": "x", "raw": true, "context": [1]}), raw),
            (json!({"prompt": "x", "template": "{{ .Prompt }}"}), "template can't be used"),
            (json!({"prompt": "x", "images": ["aGk="]}), "does not support vision"),
            (json!({"prompt": "x", "context": [-1]}), "context has to be"),
            (json!({"prompt": "x", "context": [4294967296_u64]}), "context has to be"),
        ] {
            let error = resolve(value.clone()).unwrap_err();
            assert!(error.message.contains(reason), "{value}: {error}");
        }
    }
}
