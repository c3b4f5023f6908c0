//! `POST /v1/messages`.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::super::sse::Idle;
use super::super::{blocks, ids, sse, stream};
use super::error::AnthropicError;
use super::events::Events;
use super::object::{self, Head};
use super::request::{Request, Want};
use crate::answer;
use crate::app::Shared;
use crate::http::Caller;

/// Answers a conversation.
pub(super) async fn messages(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, AnthropicError> {
    let Request { ask, stream } =
        Request::parse(&body, &app.config.limits, &caller.tenant, Want::Answer)?;
    let head = Head { id: ids::new("msg_"), model: ask.model.clone() };
    let answer = answer::ask(&app, ask).await?;
    if stream {
        let frames = stream::frames(vec![answer], Events::new(head));
        return Ok(sse::response(frames, Idle::Ping));
    }
    let collected = blocks::collect(answer).await?;
    Ok(Json(object::message(&head, &collected)).into_response())
}
