//! Errors on their way to clients of OpenAI's API.

use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, ErrorKind};
use crate::http::Api;

/// A failure, in OpenAI's form.
#[derive(Debug)]
pub(crate) struct OpenAiError(ApiError);

impl From<ApiError> for OpenAiError {
    /// What a handler does not find is the model; a path that is not there has no handler.
    fn from(mut error: ApiError) -> OpenAiError {
        if error.kind == ErrorKind::NotFound && error.field.is_none() {
            error.field = Some("model".to_owned());
        }
        OpenAiError(error)
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        Api::OpenAi.response(&self.0)
    }
}
