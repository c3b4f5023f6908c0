//! Bugs in handlers.

use std::panic::AssertUnwindSafe;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt;

use crate::error::ApiError;
use crate::http::error_response;

/// Makes a panic in a handler an answer: the client's other requests go on. What was changed half
/// way is behind locks that are poisoned, or the engine's, whose thread is another one.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            tracing::error!(path, "a handler panicked: {}", text.unwrap_or_default());
            let message = "the server has a bug and could not answer; its log says more";
            error_response(&path, &ApiError::internal(message))
        }
    }
}
