//! `POST /api/embed`, and `POST /api/embeddings` from before it.

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::keep_alive::keep_alive;
use super::error::{OllamaError, about_model};
use super::format::{is_zero, nanos};
use super::options::Options;
use super::request::model_name;
use crate::answer::{EmbedAsk, EmbedInput, embed as ask_embed};
use crate::app::Shared;
use crate::config::Limits;
use crate::error::{ApiError, ErrorKind};
use crate::http::{Caller, parse};

/// A request to `/api/embed`, as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EmbedRequest {
    model: Option<String>,
    input: Option<Value>,
    truncate: Option<bool>,
    dimensions: Option<i64>,
    keep_alive: Option<Value>,
    options: Option<Map<String, Value>>,
}

/// A request to `/api/embeddings`, as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EmbeddingsRequest {
    model: Option<String>,
    prompt: Option<String>,
    keep_alive: Option<Value>,
    options: Option<Map<String, Value>>,
}

#[derive(Debug, Serialize)]
pub(super) struct EmbedResponse {
    model: String,
    embeddings: Vec<Vec<f32>>,
    #[serde(skip_serializing_if = "is_zero")]
    total_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    load_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct EmbeddingsResponse {
    embedding: Vec<f32>,
}

impl EmbedRequest {
    /// Checks all fields.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub(super) fn resolve(self, limits: &Limits, tenant: &str) -> Result<EmbedAsk, ApiError> {
        Ok(EmbedAsk {
            model: model_name(self.model)?,
            inputs: inputs(self.input, limits)?,
            truncate: self.truncate.unwrap_or(true),
            dimensions: match self.dimensions {
                None | Some(0) => None,
                Some(wanted) => Some(usize::try_from(wanted).map_err(|_| {
                    ApiError::bad_field("dimensions", "dimensions has to be positive")
                })?),
            },
            keep_alive: keep_alive(self.keep_alive.as_ref())?,
            num_ctx: Options::read(self.options.as_ref(), limits)?.num_ctx,
            tenant: tenant.to_owned(),
        })
    }
}

impl EmbeddingsRequest {
    /// Checks all fields.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub(super) fn resolve(self, limits: &Limits, tenant: &str) -> Result<EmbedAsk, ApiError> {
        let request = EmbedRequest {
            model: self.model,
            input: self.prompt.map(Value::String),
            keep_alive: self.keep_alive,
            options: self.options,
            ..EmbedRequest::default()
        };
        request.resolve(limits, tenant)
    }
}

/// A text, or a list of texts. An empty text alone is no input; in a list it is one, as in Ollama.
fn inputs(input: Option<Value>, limits: &Limits) -> Result<Vec<EmbedInput>, ApiError> {
    let items = match input {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(text @ Value::String(_)) => vec![text],
        Some(Value::Array(items)) => items,
        Some(_) => return Err(ApiError::bad_field("input", "invalid input type")),
    };
    if items.len() > limits.inputs_max {
        let message = format!("there are more than {} inputs", limits.inputs_max);
        return Err(ApiError::bad_field("input", message));
    }
    let text = |item| match item {
        Value::String(text) => Ok(EmbedInput::Text(text)),
        _ => Err(ApiError::bad_field("input", "invalid input type")),
    };
    items.into_iter().map(text).collect()
}

/// Computes embeddings; without input, the model is loaded.
pub(super) async fn embed(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Json<EmbedResponse>, OllamaError> {
    let ask = parse::<EmbedRequest>(&body)?.resolve(&app.config.limits, &caller.tenant)?;
    Ok(Json(answer(&app, ask).await?))
}

/// Computes one embedding; without a prompt, the model is loaded.
pub(super) async fn embeddings(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Json<EmbeddingsResponse>, OllamaError> {
    let ask = parse::<EmbeddingsRequest>(&body)?.resolve(&app.config.limits, &caller.tenant)?;
    let answer = answer(&app, ask).await?;
    let embedding = answer.embeddings.into_iter().next().unwrap_or_default();
    Ok(Json(EmbeddingsResponse { embedding }))
}

async fn answer(app: &Shared, ask: EmbedAsk) -> Result<EmbedResponse, ApiError> {
    let model = ask.model.clone();
    if ask.inputs.is_empty() {
        let loaded = app.models.load(&model, ask.keep_alive, ask.num_ctx).await;
        loaded.map_err(|error| about_model(error, &model))?;
        let (embeddings, zero) = (Vec::new(), 0);
        return Ok(EmbedResponse {
            model,
            embeddings,
            total_duration: zero,
            load_duration: zero,
            prompt_eval_count: zero,
        });
    }
    let embedded = ask_embed(app, ask).await.map_err(|error| match error.kind {
        // Ollama's words.
        ErrorKind::ContextLength => {
            let message = "the input length exceeds the context length".to_owned();
            ApiError { message, ..error }
        }
        _ => about_model(error, &model),
    })?;
    Ok(EmbedResponse {
        model,
        embeddings: embedded.vectors,
        total_duration: nanos(embedded.total_time),
        load_duration: nanos(embedded.load_time),
        prompt_eval_count: embedded.prompt_tokens as u64,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::answer::KeepAlive;

    fn resolve(mut value: Value) -> Result<EmbedAsk, ApiError> {
        value["model"] = json!("demo");
        let request: EmbedRequest = serde_json::from_value(value).unwrap();
        request.resolve(&Limits::default(), "me")
    }

    #[test]
    fn inputs_are_texts() {
        let text = |text: &str| EmbedInput::Text(text.to_owned());
        for (input, want) in [
            (json!(null), vec![]),
            (json!(""), vec![]),
            (json!([]), vec![]),
            (json!("a"), vec![text("a")]),
            (json!(["a", ""]), vec![text("a"), text("")]),
        ] {
            assert_eq!(resolve(json!({"input": input})).unwrap().inputs, want);
        }
        for input in [json!(1), json!({"a": 1}), json!([1]), json!([["a"]])] {
            assert_eq!(resolve(json!({"input": input})).unwrap_err().message, "invalid input type");
        }
        let many = vec!["a"; 2049];
        assert!(resolve(json!({"input": many})).unwrap_err().message.contains("2048"));
    }

    #[test]
    fn fields_get_into_the_question() {
        let ask = resolve(json!({"input": "a", "truncate": false, "dimensions": 8,
            "keep_alive": "1m", "options": {"num_ctx": 128}}))
        .unwrap();
        assert_eq!((ask.truncate, ask.dimensions, ask.num_ctx), (false, Some(8), Some(128)));
        assert_eq!(ask.keep_alive, Some(KeepAlive::For(Duration::from_secs(60))));
        assert_eq!(ask.tenant, "me");
        let ask = resolve(json!({"input": "a", "dimensions": 0})).unwrap();
        assert_eq!((ask.truncate, ask.dimensions), (true, None));
        assert!(resolve(json!({"dimensions": -1})).unwrap_err().message.contains("positive"));
        let legacy: EmbeddingsRequest =
            serde_json::from_value(json!({"model": "demo", "prompt": "a"})).unwrap();
        let ask = legacy.resolve(&Limits::default(), "").unwrap();
        assert_eq!(ask.inputs, [EmbedInput::Text("a".to_owned())]);
    }
}
