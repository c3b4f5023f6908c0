//! Errors as Ollama writes them: `{"error": "..."}`, as an answer or as a line of a stream.

use axum::response::{IntoResponse, Response};
use hypura_hub::{PullError, ResolveError, StoreError};

use super::answer::json_line;
use crate::error::{ApiError, ErrorKind};
use crate::http::{self, Api};

/// A failure, to be answered in Ollama's form.
#[derive(Debug)]
pub(super) struct OllamaError(pub(super) ApiError);

impl From<ApiError> for OllamaError {
    fn from(error: ApiError) -> OllamaError {
        OllamaError(error)
    }
}

impl IntoResponse for OllamaError {
    fn into_response(self) -> Response {
        Api::Ollama.response(&self.0)
    }
}

/// An error as a line of a stream, the last one.
pub(super) fn error_line(error: &ApiError) -> Vec<u8> {
    http::log(error);
    json_line(&Api::Ollama.body(error))
}

/// Ollama's own words for a model that is not there: clients look for them, and pull it then.
pub(super) fn not_found(model: &str) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("model '{model}' not found"))
}

/// The same error, in Ollama's words if it says that there is no such model.
pub(super) fn about_model(error: ApiError, model: &str) -> ApiError {
    if error.kind == ErrorKind::NotFound { not_found(model) } else { error }
}

/// Why a store has no such model, or can't use it.
pub(super) fn of_resolve(error: &ResolveError, model: &str) -> ApiError {
    match error {
        ResolveError::Unusable { .. } => ApiError::new(ErrorKind::Unavailable, error.to_string()),
        _ => not_found(model),
    }
}

/// Why Hypura's own folder can't be changed.
pub(super) fn of_store(error: &StoreError, model: &str) -> ApiError {
    let kind = match error {
        StoreError::Resolve(error) => return of_resolve(error, model),
        StoreError::ReadOnly | StoreError::Elsewhere { .. } => ErrorKind::Forbidden,
        StoreError::CaseCollision { .. } => ErrorKind::Conflict,
        StoreError::TooLong { .. } => ErrorKind::TooLarge,
        StoreError::Name(_)
        | StoreError::Manifest(_)
        | StoreError::NoBlob { .. }
        | StoreError::Model(_)
        | StoreError::WrongDigest { .. } => ErrorKind::BadRequest,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}

/// Why a model can't be brought here.
pub(super) fn of_pull(error: &PullError, model: &str) -> ApiError {
    let kind = match error {
        PullError::Store(error) => return of_store(error, model),
        PullError::OllamaRegistry { .. } | PullError::Reference { .. } | PullError::Name(_) => {
            ErrorKind::BadRequest
        }
        PullError::NoGguf { .. }
        | PullError::NotThere { .. }
        | PullError::MissingPart { .. }
        | PullError::Denied { .. }
        | PullError::NotFound { .. } => ErrorKind::NotFound,
        PullError::RateLimited { .. } => ErrorKind::TooMany,
        PullError::Cancelled => ErrorKind::Unavailable,
        PullError::Disk(_) | PullError::NoRootCertificates | PullError::Endpoint { .. } => {
            ErrorKind::Internal
        }
        _ => ErrorKind::BadGateway,
    };
    ApiError::new(kind, error.to_string())
}
