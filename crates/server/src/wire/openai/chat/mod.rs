//! `POST /v1/chat/completions`.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::future::try_join_all;

use self::chunks::Chunks;
use self::request::Request;
use super::super::sse::Idle;
use super::super::{blocks, sse, stream};
use super::error::OpenAiError;
use super::{Head, sampling};
use crate::answer;
use crate::app::Shared;
use crate::config::Limits;
use crate::http::Caller;

mod chunks;
mod messages;
mod object;
mod request;

/// Answers a conversation, `n` times at once.
pub(super) async fn chat(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, OpenAiError> {
    let Request { ask, n, stream, form } =
        Request::parse(&body, &app.config.limits, &caller.tenant)?;
    let head = Head::new("chatcmpl-", &ask.model);
    let asks = sampling::choices(ask, n).into_iter().map(|ask| answer::ask(&app, ask));
    let answers = try_join_all(asks).await?;
    if stream {
        let frames = stream::frames(answers, Chunks::new(head, form, n));
        return Ok(sse::response(frames, Idle::Comment));
    }
    let collected = try_join_all(answers.into_iter().map(blocks::collect)).await?;
    Ok(Json(object::completion(&head, form, &collected)).into_response())
}

/// What the client wants to be told besides the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Form {
    /// Log probabilities.
    logprobs: bool,
    /// The number of tokens at the end of a stream.
    usage: bool,
    /// A call as `function_call`, for clients that speak of `functions`.
    functions: bool,
}

/// Understands any bytes as a request, for fuzz tests.
pub(super) fn fuzz(body: &Bytes, limits: &Limits) {
    if let Ok(request) = Request::parse(body, limits, "") {
        assert!((1..=limits.choices_max).contains(&request.n));
        assert!(request.ask.stop.is_none_or(|stops| stops.len() <= limits.stops_max));
    }
}
