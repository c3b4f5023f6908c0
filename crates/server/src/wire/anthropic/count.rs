//! `POST /v1/messages/count_tokens`.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::json;

use super::error::AnthropicError;
use super::request::{Request, Want};
use crate::answer;
use crate::app::Shared;
use crate::http::Caller;

/// Counts the tokens of a prompt, tools included.
pub(super) async fn count_tokens(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, AnthropicError> {
    let Request { ask, .. } =
        Request::parse(&body, &app.config.limits, &caller.tenant, Want::Count)?;
    let tokens = answer::count(&app, &ask).await?;
    Ok(Json(json!({"input_tokens": tokens})).into_response())
}
