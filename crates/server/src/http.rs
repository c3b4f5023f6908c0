//! Small things that all wire formats need of HTTP.

mod form;
mod peer;

use axum::body::Bytes;
use axum::http::HeaderValue;
use axum::http::header::RETRY_AFTER;
use axum::response::Response;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, ErrorKind};

pub(crate) use form::{Api, error_response};
pub(crate) use peer::Peer;

/// Who asks, as the guard found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Attention state is shared within this name only; empty where no keys are used.
    pub(crate) tenant: String,
}

/// The request that a body holds. Whatever the content type says: Ollama's clients don't say.
///
/// # Errors
/// When it is no JSON of this form; the message says where.
pub(crate) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    if body.is_empty() {
        return Err(ApiError::bad("the request has no body; send a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| {
        let reason = error.to_string();
        ApiError::bad(format!("the request is not valid: {}", reason.trim_end_matches('.')))
    })
}

/// Adds when to try again, if an error says so.
pub(crate) fn with_retry_after(mut response: Response, error: &ApiError) -> Response {
    if let Some(after) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    response
}

/// Whether an error is a fault of ours, which belongs in the log.
pub(crate) fn log(error: &ApiError) {
    if error.kind == ErrorKind::Internal {
        tracing::error!("{error}");
    } else {
        tracing::debug!(kind = ?error.kind, "{error}");
    }
}
