//! `GET /v1/models`: one path for OpenAI's and Anthropic's clients.

use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use hypura_hub::Entry;
use serde_json::{Value, json};

use super::super::anthropic;
use super::error::OpenAiError;
use crate::app::Shared;
use crate::error::{ApiError, ErrorKind};

/// All models that can be asked.
pub(super) async fn list(State(app): State<Shared>, headers: HeaderMap) -> Response {
    let entries = tokio::task::spawn_blocking(move || app.models.stores().entries()).await;
    let entries = entries.map_err(|_| ApiError::internal("the models could not be listed"));
    if anthropic::speaks(&headers) {
        return anthropic::models::list(entries);
    }
    match entries {
        Ok(entries) => {
            let data: Vec<Value> = entries.iter().map(|entry| model(&entry.name, entry)).collect();
            Json(json!({"object": "list", "data": data})).into_response()
        }
        Err(error) => OpenAiError::from(error).into_response(),
    }
}

/// One model. Its name may have slashes and colons, escaped or not.
pub(super) async fn show(
    State(app): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let name = id.clone();
    let entry = tokio::task::spawn_blocking(move || app.models.stores().find(&name)).await;
    let entry = match entry {
        Ok(Ok(entry)) => Ok(entry),
        Ok(Err(error)) => Err(ApiError::new(ErrorKind::NotFound, error.to_string())),
        Err(_) => Err(ApiError::internal("the model could not be looked up")),
    };
    if anthropic::speaks(&headers) {
        return anthropic::models::show(&id, entry);
    }
    match entry {
        // The name by which the client knows it, which may lack the tag.
        Ok(entry) => Json(model(&id, &entry)).into_response(),
        Err(error) => OpenAiError::from(error).into_response(),
    }
}

fn model(id: &str, entry: &Entry) -> Value {
    let created = entry.modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "id": id,
        "object": "model",
        "created": created,
        "owned_by": "library",
    })
}
