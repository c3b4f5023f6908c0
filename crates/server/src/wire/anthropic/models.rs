//! Models in Anthropic's form, for `GET /v1/models`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use hypura_hub::Entry;
use serde_json::{Value, json};

use super::error::AnthropicError;
use crate::error::ApiError;

/// All models, on one page.
pub(crate) fn list(entries: Result<Vec<Entry>, ApiError>) -> Response {
    match entries {
        Ok(entries) => {
            let data: Vec<Value> = entries.iter().map(|entry| model(&entry.name, entry)).collect();
            let (first, last) = (entries.first(), entries.last());
            Json(json!({
                "data": data,
                "has_more": false,
                "first_id": first.map(|entry| &entry.name),
                "last_id": last.map(|entry| &entry.name),
            }))
            .into_response()
        }
        Err(error) => AnthropicError::from(error).into_response(),
    }
}

/// The model that the client calls `id`.
pub(crate) fn show(id: &str, entry: Result<Entry, ApiError>) -> Response {
    match entry {
        Ok(entry) => Json(model(id, &entry)).into_response(),
        Err(error) => AnthropicError::from(error).into_response(),
    }
}

fn model(id: &str, entry: &Entry) -> Value {
    let created = DateTime::<Utc>::from(entry.modified);
    json!({
        "type": "model",
        "id": id,
        "display_name": entry.name,
        "created_at": created.to_rfc3339_opts(SecondsFormat::Secs, true),
    })
}
