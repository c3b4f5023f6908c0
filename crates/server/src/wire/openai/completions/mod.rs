//! `POST /v1/completions`: the older API, which continues a text.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::future::try_join_all;

use self::object::Chunks;
use self::request::Request;
use super::super::sse::Idle;
use super::super::{blocks, sse, stream};
use super::Head;
use super::error::OpenAiError;
use crate::answer;
use crate::app::Shared;
use crate::config::Limits;
use crate::http::Caller;

mod object;
mod request;

/// Continues each prompt, `n` times, all at once.
pub(super) async fn completions(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, OpenAiError> {
    let Request { asks, model, stream, form } =
        Request::parse(&body, &app.config.limits, &caller.tenant)?;
    let head = Head::new("cmpl-", &model);
    let answers = try_join_all(asks.into_iter().map(|ask| answer::ask(&app, ask))).await?;
    if stream {
        let frames = stream::frames(answers, Chunks::new(head, form));
        return Ok(sse::response(frames, Idle::Comment));
    }
    let collected = try_join_all(answers.into_iter().map(blocks::collect)).await?;
    Ok(Json(object::completion(&head, &form, &collected)).into_response())
}

/// What the client wants to be told besides the continuations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Form {
    /// Answers to each prompt.
    n: usize,
    /// What stands before each answer: its prompt, if the client wants it repeated.
    echo: Vec<String>,
    /// Log probabilities.
    logprobs: bool,
    /// The number of tokens at the end of a stream.
    usage: bool,
}

impl Form {
    /// The repeated prompt of the answer at this place, or nothing.
    fn echo(&self, choice: usize) -> &str {
        self.echo.get(choice / self.n.max(1)).map_or("", String::as_str)
    }
}

/// Understands any bytes as a request, for fuzz tests.
pub(super) fn fuzz(body: &Bytes, limits: &Limits) {
    if let Ok(request) = Request::parse(body, limits, "") {
        assert!((1..=limits.choices_max).contains(&request.asks.len()));
    }
}
