//! Anthropic's API: messages, and counting their tokens.
//!
//! The fields are those of the types of `anthropic-sdk-python`. What has no meaning here
//! (`metadata`, `cache_control`, `service_tier` and so on) and unknown fields are ignored; what would
//! change the answer and can't be done is refused. Keys are checked by the guard.

use axum::Router;
use axum::http::{HeaderMap, Method, Uri};
use axum::routing::post;

use self::error::AnthropicError;
use crate::app::Shared;
use crate::error::{ApiError, ErrorKind};

mod content;
mod count;
mod error;
mod events;
pub(crate) mod fuzz;
mod messages;
pub(crate) mod models;
mod object;
mod request;
mod tools;

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/messages", post(messages::messages))
        .route("/v1/messages/count_tokens", post(count::count_tokens))
        .method_not_allowed_fallback(method_not_allowed)
}

async fn method_not_allowed(method: Method, uri: Uri) -> AnthropicError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(ErrorKind::MethodNotAllowed, message).into()
}

/// Whether a request is of a client of Anthropic's API: they all say its version.
pub(crate) fn speaks(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}
