//! Writing an answer: as lines while it comes, or as a whole.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures_util::stream;
use serde::Serialize;

use super::error::ErrorBody;
use super::format::{
    AnswerMessage, ChatLine, Extension, GenerateLine, Metrics, done_reason, timestamp,
};
use super::parts::{Part, Parts};
use crate::answer::{Answer, Event};
use crate::error::ApiError;
use crate::http;

/// JSON, one value per line.
const NDJSON: &str = "application/x-ndjson";

/// Whose form an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// That of `/api/chat`.
    Chat,
    /// That of `/api/generate`, with `context` at the end or without.
    Generate {
        /// Whether the prompt was rendered here, so that it can be gone on with.
        context: bool,
    },
}

/// Writes parts as JSON.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) form: Form,
    /// The model's name, as the client said it.
    pub(super) model: String,
    /// When the request came.
    pub(super) started: Instant,
    /// From then until the model was loaded.
    pub(super) load: Duration,
}

impl Writer {
    /// One line of JSON, its end included.
    fn line(&self, part: Part) -> Vec<u8> {
        self.line_at(part, Utc::now(), self.started.elapsed())
    }

    fn line_at(&self, part: Part, now: DateTime<Utc>, total: Duration) -> Vec<u8> {
        let created_at = timestamp(now);
        let summary = part.done;
        let reason = summary.as_ref().map(|summary| done_reason(&summary.finish));
        let metrics = summary.as_ref().map(|summary| Metrics::of(summary, self.load, total));
        let hypura = summary.as_ref().map(|summary| Extension::of(summary, self.load));
        match self.form {
            Form::Chat => json_line(&ChatLine {
                model: &self.model,
                created_at,
                message: AnswerMessage {
                    role: "assistant",
                    content: part.content,
                    thinking: part.thinking,
                    tool_calls: part.calls,
                },
                done: summary.is_some(),
                done_reason: reason,
                logprobs: part.logprobs,
                metrics: metrics.unwrap_or_default(),
                hypura,
            }),
            Form::Generate { context } => json_line(&GenerateLine {
                model: &self.model,
                created_at,
                response: part.content,
                thinking: part.thinking,
                done: summary.is_some(),
                done_reason: reason,
                context: summary.filter(|_| context).map_or(Vec::new(), |summary| summary.context),
                metrics: metrics.unwrap_or_default(),
                logprobs: part.logprobs,
                hypura,
            }),
        }
    }

    /// The only answer to a question without a prompt: the model was loaded or unloaded.
    pub(super) fn without_prompt(&self, reason: &'static str) -> Response {
        let created_at = timestamp(Utc::now());
        let (done, done_reason) = (true, Some(reason));
        let metrics = Metrics::default();
        match self.form {
            Form::Chat => Json(ChatLine {
                model: &self.model,
                created_at,
                message: AnswerMessage::empty(),
                done,
                done_reason,
                logprobs: Vec::new(),
                metrics,
                hypura: None,
            })
            .into_response(),
            Form::Generate { .. } => Json(GenerateLine {
                model: &self.model,
                created_at,
                response: String::new(),
                thinking: String::new(),
                done,
                done_reason,
                context: Vec::new(),
                metrics,
                logprobs: Vec::new(),
                hypura: None,
            })
            .into_response(),
        }
    }
}

/// Answers with all events: in lines if `stream`, else in one JSON value.
///
/// # Errors
/// What goes wrong before anything is sent. What goes wrong later is a line of the stream.
pub(super) async fn respond(
    mut answer: Answer,
    writer: Writer,
    stream: bool,
) -> Result<Response, ApiError> {
    let mut parts = Parts::default();
    if !stream {
        let mut whole = Part::default();
        while let Some(event) = answer.next().await {
            if let Some(part) = parts.take(event?)? {
                whole.absorb(part);
            }
        }
        if whole.done.is_none() {
            return Err(no_end());
        }
        return Ok(([(CONTENT_TYPE, "application/json")], writer.line(whole)).into_response());
    }
    // The first event tells that the prompt was read. Until then a failure has its status.
    let begun = answer.next().await.ok_or_else(no_end)??;
    let mut lines = Lines { answer, parts, writer, is_over: false };
    let first = lines.of_event(begun);
    let rest = stream::unfold((first, lines), |(ready, mut lines)| async {
        let chunk = if ready.is_empty() { lines.next().await? } else { ready };
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(chunk)), (Vec::new(), lines)))
    });
    Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(rest)).into_response())
}

/// An answer on its way.
struct Lines {
    answer: Answer,
    parts: Parts,
    writer: Writer,
    is_over: bool,
}

impl Lines {
    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<Vec<u8>> {
        while !self.is_over {
            let lines = match self.answer.next().await {
                Some(Ok(event)) => self.of_event(event),
                Some(Err(error)) => self.of_error(&error),
                None => self.of_error(&no_end()),
            };
            if !lines.is_empty() {
                return Some(lines);
            }
        }
        None
    }

    fn of_event(&mut self, event: Event) -> Vec<u8> {
        match self.parts.take(event) {
            Ok(Some(part)) => {
                self.is_over = part.done.is_some();
                self.writer.line(part)
            }
            Ok(None) => Vec::new(),
            Err(error) => self.of_error(&error),
        }
    }

    fn of_error(&mut self, error: &ApiError) -> Vec<u8> {
        http::log(error);
        self.is_over = true;
        json_line(&ErrorBody::of(error))
    }
}

fn no_end() -> ApiError {
    ApiError::internal("the answer broke off; ask again")
}

/// A value as a line.
pub(super) fn json_line(value: &impl Serialize) -> Vec<u8> {
    // What is written here has text for keys and no maps of other kinds: it can't fail.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A stream of lines.
pub(super) fn ndjson(body: Body) -> Response {
    ([(CONTENT_TYPE, NDJSON)], body).into_response()
}
