//! Errors on their way to clients of Anthropic's API.

use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::http::Api;

/// A failure, in Anthropic's form.
#[derive(Debug)]
pub(crate) struct AnthropicError(ApiError);

impl From<ApiError> for AnthropicError {
    fn from(error: ApiError) -> AnthropicError {
        AnthropicError(error)
    }
}

impl IntoResponse for AnthropicError {
    fn into_response(self) -> Response {
        Api::Anthropic.response(&self.0)
    }
}
