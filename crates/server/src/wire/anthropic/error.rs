//! Errors in Anthropic's form: `{"type": "error", "error": {"type", "message"}}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::{ApiError, ErrorKind};
use crate::http;

/// What Anthropic's API answers when it has too much to do.
const OVERLOADED: u16 = 529;

/// A failure, on its way to a client of Anthropic's API.
#[derive(Debug)]
pub(crate) struct AnthropicError(pub(crate) ApiError);

impl From<ApiError> for AnthropicError {
    fn from(error: ApiError) -> AnthropicError {
        AnthropicError(error)
    }
}

impl IntoResponse for AnthropicError {
    fn into_response(self) -> Response {
        http::log(&self.0);
        let response = (status(self.0.kind), Json(body(&self.0))).into_response();
        http::with_retry_after(response, &self.0)
    }
}

fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Unavailable => StatusCode::from_u16(OVERLOADED).unwrap_or(kind.status()),
        kind => kind.status(),
    }
}

/// The JSON of a failure, as a body and as the last event of a stream.
pub(super) fn body(error: &ApiError) -> Value {
    let message = match error.kind {
        // Clients that shorten conversations by themselves look for these words.
        ErrorKind::ContextLength => format!("prompt is too long: {}", error.message),
        _ => error.message.clone(),
    };
    json!({"type": "error", "error": {"type": type_of(error.kind), "message": message}})
}

fn type_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::BadRequest
        | ErrorKind::ContextLength
        | ErrorKind::Conflict
        | ErrorKind::MethodNotAllowed
        | ErrorKind::NotImplemented => "invalid_request_error",
        ErrorKind::Unauthorized => "authentication_error",
        ErrorKind::Forbidden => "permission_error",
        ErrorKind::NotFound => "not_found_error",
        ErrorKind::TooLarge => "request_too_large",
        ErrorKind::TooMany => "rate_limit_error",
        ErrorKind::Timeout => "timeout_error",
        ErrorKind::Unavailable => "overloaded_error",
        ErrorKind::Internal | ErrorKind::BadGateway => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_types() {
        let check = |kind, expected: u16, type_: &str| {
            let error = ApiError::new(kind, "no");
            let json = json!({"type": "error", "error": {"type": type_, "message": "no"}});
            assert_eq!(body(&error), json);
            assert_eq!(AnthropicError(error).into_response().status(), expected);
        };
        check(ErrorKind::BadRequest, 400, "invalid_request_error");
        check(ErrorKind::Unauthorized, 401, "authentication_error");
        check(ErrorKind::NotFound, 404, "not_found_error");
        check(ErrorKind::TooLarge, 413, "request_too_large");
        check(ErrorKind::TooMany, 429, "rate_limit_error");
        check(ErrorKind::Internal, 500, "api_error");
        check(ErrorKind::Unavailable, 529, "overloaded_error");
    }

    #[test]
    fn a_long_prompt_is_called_so() {
        let body = body(&ApiError::new(ErrorKind::ContextLength, "9 tokens"));
        assert_eq!(body["error"]["message"], "prompt is too long: 9 tokens");
    }
}
