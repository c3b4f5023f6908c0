//! `POST /v1/responses`, without state: nothing is kept between requests.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::json;

use self::events::Events;
use self::request::Request;
use super::super::sse::Idle;
use super::super::{blocks, sse, stream};
use super::Head;
use super::error::OpenAiError;
use crate::answer;
use crate::app::Shared;
use crate::config::Limits;
use crate::http::Caller;

mod events;
mod input;
mod object;
mod request;

/// Answers a list of items.
pub(super) async fn responses(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, OpenAiError> {
    let Request { ask, stream, echo } = Request::parse(&body, &app.config.limits, &caller.tenant)?;
    let head = Head::new("resp_", &ask.model);
    let answer = answer::ask(&app, ask).await?;
    if stream {
        let frames = stream::frames(vec![answer], Events::new(head, echo));
        return Ok(sse::response(frames, Idle::Comment));
    }
    let collected = blocks::collect(answer).await?;
    Ok(Json(object::whole(&head, &echo, &collected)).into_response())
}

/// Counts the tokens of a request's prompt.
pub(super) async fn input_tokens(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, OpenAiError> {
    let Request { ask, .. } = Request::parse(&body, &app.config.limits, &caller.tenant)?;
    let tokens = answer::count(&app, &ask).await?;
    let object = json!({"object": "response.input_tokens", "input_tokens": tokens});
    Ok(Json(object).into_response())
}

/// Understands any bytes as a request, for fuzz tests.
pub(super) fn fuzz(body: &Bytes, limits: &Limits) {
    drop(Request::parse(body, limits, ""));
}
