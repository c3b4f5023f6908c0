//! The form of an error, by the API that a path belongs to.

use axum::Json;
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::{ApiError, ErrorKind};

/// What Anthropic's API answers with when it has too much to do.
const ANTHROPIC_OVERLOADED: u16 = 529;

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

impl Api {
    /// An error as this API's clients expect it: status, JSON body, `Retry-After`.
    pub(crate) fn response(self, error: &ApiError) -> Response {
        super::log(error);
        let mut response = (self.status(error.kind), Json(self.body(error))).into_response();
        if error.kind == ErrorKind::Unauthorized {
            // RFC 9110, 11.6.1: a 401 names the scheme that would do.
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        super::with_retry_after(response, error)
    }

    /// The JSON of an error, as a body and as the last event of a stream.
    pub(crate) fn body(self, error: &ApiError) -> Value {
        match self {
            Api::Ollama => json!({ "error": error.message }),
            Api::OpenAi => openai(error),
            Api::Anthropic => anthropic(error),
        }
    }

    fn status(self, kind: ErrorKind) -> StatusCode {
        match (self, kind) {
            (Api::Anthropic, ErrorKind::Unavailable) => {
                StatusCode::from_u16(ANTHROPIC_OVERLOADED).unwrap_or(kind.status())
            }
            _ => kind.status(),
        }
    }
}

/// An error as the clients of this path expect it.
pub(crate) fn error_response(path: &str, error: &ApiError) -> Response {
    Api::of(path).response(error)
}

/// <https://platform.openai.com/docs/guides/error-codes>
fn openai(error: &ApiError) -> Value {
    let kind = match error.kind {
        ErrorKind::TooMany => "rate_limit_error",
        kind if kind.status().is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    let code = match error.kind {
        ErrorKind::ContextLength => Some("context_length_exceeded"),
        ErrorKind::Unauthorized => Some("invalid_api_key"),
        ErrorKind::NotFound if error.field.as_deref() == Some("model") => Some("model_not_found"),
        ErrorKind::TooMany => Some("rate_limit_exceeded"),
        ErrorKind::Internal | ErrorKind::BadGateway => Some("server_error"),
        ErrorKind::Unavailable => Some("overloaded"),
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

    #[test]
    fn kinds_have_codes() {
        let check = |kind, openai: [Option<&str>; 2], anthropic: (u16, &str)| {
            let error = ApiError::new(kind, "no");
            let body = Api::OpenAi.body(&error);
            assert_eq!([body["error"]["type"].as_str(), body["error"]["code"].as_str()], openai);
            assert_eq!(Api::Anthropic.body(&error)["error"]["type"], anthropic.1);
            assert_eq!(Api::Anthropic.response(&error).status(), anthropic.0);
        };
        let (invalid, server) = (Some("invalid_request_error"), Some("server_error"));
        check(ErrorKind::BadRequest, [invalid, None], (400, "invalid_request_error"));
        check(
            ErrorKind::Unauthorized,
            [invalid, Some("invalid_api_key")],
            (401, "authentication_error"),
        );
        let long = [invalid, Some("context_length_exceeded")];
        check(ErrorKind::ContextLength, long, (400, "invalid_request_error"));
        let many = [Some("rate_limit_error"), Some("rate_limit_exceeded")];
        check(ErrorKind::TooMany, many, (429, "rate_limit_error"));
        check(ErrorKind::Internal, [server, server], (500, "api_error"));
        check(ErrorKind::Unavailable, [server, Some("overloaded")], (529, "overloaded_error"));
    }
}
