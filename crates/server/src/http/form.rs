//! The form of an error, by the API that a path belongs to.

use axum::Json;
use axum::http::HeaderValue;
use axum::http::header::WWW_AUTHENTICATE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::{ApiError, ErrorKind};

/// Whose API a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Api {
    /// Ollama's, and all that is nobody's.
    Ollama,
    /// OpenAI's.
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

impl Api {
    /// The API of a request's path.
    pub(crate) fn of(path: &str) -> Api {
        let below = |root: &str| {
            path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if below("/v1/messages") {
            Api::Anthropic
        } else if below("/v1") {
            Api::OpenAi
        } else {
            Api::Ollama
        }
    }

    /// In one word, for logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Api::Ollama => "ollama",
            Api::OpenAi => "openai",
            Api::Anthropic => "anthropic",
        }
    }
}

/// An error as the clients of this path expect it: status, JSON body, `Retry-After`.
pub(crate) fn error_response(path: &str, error: &ApiError) -> Response {
    super::log(error);
    let body = match Api::of(path) {
        Api::Ollama => json!({ "error": error.message }),
        Api::OpenAi => openai(error),
        Api::Anthropic => anthropic(error),
    };
    let mut response = (error.kind.status(), Json(body)).into_response();
    if error.kind == ErrorKind::Unauthorized {
        // RFC 9110, 11.6.1: a 401 names the scheme that would do.
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    super::with_retry_after(response, error)
}

/// <https://platform.openai.com/docs/guides/error-codes>
fn openai(error: &ApiError) -> Value {
    let kind = match error.kind {
        ErrorKind::TooMany => "rate_limit_error",
        ErrorKind::Internal | ErrorKind::Unavailable | ErrorKind::BadGateway => "server_error",
        _ => "invalid_request_error",
    };
    let code = match error.kind {
        ErrorKind::ContextLength => Some("context_length_exceeded"),
        ErrorKind::Unauthorized => Some("invalid_api_key"),
        ErrorKind::NotFound if error.field.as_deref() == Some("model") => Some("model_not_found"),
        ErrorKind::TooMany => Some("rate_limit_exceeded"),
        _ => None,
    };
    json!({
        "error": { "message": error.message, "type": kind, "param": error.field, "code": code }
    })
}

/// <https://docs.anthropic.com/en/api/errors>
fn anthropic(error: &ApiError) -> Value {
    let kind = match error.kind {
        ErrorKind::Unauthorized => "authentication_error",
        ErrorKind::Forbidden => "permission_error",
        ErrorKind::NotFound => "not_found_error",
        ErrorKind::TooLarge => "request_too_large",
        ErrorKind::TooMany => "rate_limit_error",
        ErrorKind::Timeout => "timeout_error",
        ErrorKind::Unavailable => "overloaded_error",
        ErrorKind::Internal | ErrorKind::BadGateway => "api_error",
        _ => "invalid_request_error",
    };
    json!({ "type": "error", "error": { "type": kind, "message": error.message } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_api() {
        let cases = [
            ("/", Api::Ollama),
            ("/api/chat", Api::Ollama),
            ("/v1", Api::OpenAi),
            ("/v1/models/messages", Api::OpenAi),
            ("/v1/messages", Api::Anthropic),
            ("/v1/messages/count_tokens", Api::Anthropic),
            ("/v1/messagesx", Api::OpenAi),
            ("/v10/messages", Api::Ollama),
        ];
        for (path, api) in cases {
            assert_eq!(Api::of(path), api, "{path}");
        }
    }

    #[test]
    fn a_missing_model_is_told_from_a_missing_path() {
        let mut error = ApiError::new(ErrorKind::NotFound, "no such thing");
        assert_eq!(openai(&error)["error"]["code"], Value::Null);
        error.field = Some("model".to_owned());
        assert_eq!(openai(&error)["error"]["code"], "model_not_found");
        assert_eq!(anthropic(&error)["error"]["type"], "not_found_error");
    }
}
