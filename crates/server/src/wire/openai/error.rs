//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::{ApiError, ErrorKind};
use crate::http;

/// A failure, on its way to a client of OpenAI's API.
#[derive(Debug)]
pub(crate) struct OpenAiError(pub(crate) ApiError);

impl From<ApiError> for OpenAiError {
    fn from(error: ApiError) -> OpenAiError {
        OpenAiError(error)
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        http::log(&self.0);
        let response = (self.0.kind.status(), Json(body(&self.0))).into_response();
        http::with_retry_after(response, &self.0)
    }
}

/// The JSON of a failure, as a body and as the last event of a stream.
pub(super) fn body(error: &ApiError) -> Value {
    json!({"error": {
        "message": error.message,
        "type": type_of(error.kind),
        "param": error.field,
        "code": code(error.kind),
    }})
}

fn type_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::TooMany => "requests",
        kind if kind.status().is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

/// What programs tell failures by.
pub(super) fn code(kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::ContextLength => "context_length_exceeded",
        ErrorKind::Unauthorized => "invalid_api_key",
        ErrorKind::Forbidden => "forbidden",
        ErrorKind::NotFound => "model_not_found",
        ErrorKind::MethodNotAllowed => "method_not_allowed",
        ErrorKind::Timeout => "timeout",
        ErrorKind::TooLarge => "request_too_large",
        ErrorKind::TooMany => "rate_limit_exceeded",
        ErrorKind::NotImplemented => "not_implemented",
        ErrorKind::Unavailable => "overloaded",
        ErrorKind::Internal | ErrorKind::BadGateway => "server_error",
        ErrorKind::BadRequest | ErrorKind::Conflict => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::StatusCode;
    use axum::http::header::RETRY_AFTER;

    use super::*;

    #[test]
    fn kinds_have_codes() {
        let check = |kind, type_: &str, code: Value| {
            let error = ApiError::new(kind, "no");
            let expected = json!({"message": "no", "type": type_, "param": null, "code": code});
            assert_eq!(body(&error)["error"], expected);
        };
        check(ErrorKind::BadRequest, "invalid_request_error", json!(null));
        check(ErrorKind::NotFound, "invalid_request_error", json!("model_not_found"));
        check(ErrorKind::ContextLength, "invalid_request_error", json!("context_length_exceeded"));
        check(ErrorKind::TooMany, "requests", json!("rate_limit_exceeded"));
        check(ErrorKind::Unavailable, "server_error", json!("overloaded"));
        check(ErrorKind::Internal, "server_error", json!("server_error"));
    }

    #[test]
    fn the_response_says_when_to_try_again() {
        let retry_after = Some(Duration::from_secs(7));
        let error = ApiError { retry_after, ..ApiError::new(ErrorKind::TooMany, "later") };
        let response = OpenAiError(error).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[RETRY_AFTER], "7");
    }
}
