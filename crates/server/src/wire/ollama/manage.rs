//! `POST /api/copy`, `DELETE /api/delete`, and what Ollama has and Hypura hasn't.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use hypura_hub::ModelName;
use serde::Deserialize;

use super::error::{OllamaError, of_store};
use super::models::with_stores;
use super::request::model_name;
use crate::app::Shared;
use crate::error::{ApiError, ErrorKind};
use crate::http::parse;

/// A request to `/api/copy`, as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CopyRequest {
    source: Option<String>,
    destination: Option<String>,
}

impl CopyRequest {
    /// The model's name, and the new one.
    ///
    /// # Errors
    /// When one is missing, or the new one is no name.
    pub(super) fn resolve(self) -> Result<(String, String), ApiError> {
        let (source, destination) =
            (self.source.unwrap_or_default(), self.destination.unwrap_or_default());
        let bad = |field, name: &str| {
            Err(ApiError::bad_field(field, format!("{field} {name:?} is invalid")))
        };
        if source.is_empty() {
            return bad("source", &source);
        }
        if ModelName::parse(&destination).is_err() {
            return bad("destination", &destination);
        }
        Ok((source, destination))
    }
}

/// A request to `/api/delete`, as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DeleteRequest {
    model: Option<String>,
    name: Option<String>,
}

impl DeleteRequest {
    /// The model's name.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn resolve(self) -> Result<String, ApiError> {
        let given = |name: Option<String>| name.filter(|name| !name.is_empty());
        model_name(given(self.model).or_else(|| given(self.name)))
    }
}

/// Refuses to change models if the server was told not to.
///
/// # Errors
/// When it was.
pub(super) fn check_allowed(app: &Shared) -> Result<(), ApiError> {
    if app.config.manage {
        return Ok(());
    }
    let message = "this server does not let its models be changed; ask whoever runs it";
    Err(ApiError::new(ErrorKind::Forbidden, message))
}

/// Gives a model a second name.
pub(super) async fn copy(
    State(app): State<Shared>,
    body: Bytes,
) -> Result<StatusCode, OllamaError> {
    check_allowed(&app)?;
    let (source, destination) = parse::<CopyRequest>(&body)?.resolve()?;
    let copied = with_stores(&app, move |stores| {
        stores.copy(&source, &destination).map_err(|error| of_store(&error, &source))
    });
    copied.await??;
    Ok(StatusCode::OK)
}

/// Removes a model. If it is loaded, it goes on answering until it is unloaded.
pub(super) async fn delete(
    State(app): State<Shared>,
    body: Bytes,
) -> Result<StatusCode, OllamaError> {
    check_allowed(&app)?;
    let model = parse::<DeleteRequest>(&body)?.resolve()?;
    let deleted = with_stores(&app, move |stores| {
        stores.delete(&model).map_err(|error| of_store(&error, &model))
    });
    deleted.await??;
    Ok(StatusCode::OK)
}

/// What needs Ollama's registry, or an account there.
pub(super) async fn not_here() -> OllamaError {
    let message = "hypura has no account at ollama.com, and neither uploads models nor searches";
    OllamaError(ApiError::not_implemented(message))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn names_have_to_be_there() {
        let copy = |value: Value| serde_json::from_value::<CopyRequest>(value).unwrap().resolve();
        let pair = ("a".to_owned(), "b:c".to_owned());
        assert_eq!(copy(json!({"source": "a", "destination": "b:c"})).unwrap(), pair);
        for (value, reason) in [
            (json!({"destination": "b"}), "source \"\" is invalid"),
            (json!({"source": "a"}), "destination \"\" is invalid"),
            (json!({"source": "a", "destination": "../b"}), "destination \"../b\" is invalid"),
        ] {
            assert_eq!(copy(value).unwrap_err().message, reason);
        }
        let delete =
            |value: Value| serde_json::from_value::<DeleteRequest>(value).unwrap().resolve();
        assert_eq!(delete(json!({"model": "a"})).unwrap(), "a");
        assert_eq!(delete(json!({"model": "", "name": "a"})).unwrap(), "a");
        assert_eq!(delete(json!({})).unwrap_err().message, "model is required");
    }
}
