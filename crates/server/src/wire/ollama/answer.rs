//! Writing an answer: as lines while it comes, or as a whole.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures_util::stream;
use serde::Serialize;

use super::error::error_line;
use super::format::{
    AnswerMessage, ChatLine, Extension, GenerateLine, Metrics, done_reason, timestamp,
};
use super::parts::{Part, Parts};
use crate::answer::{Answer, Event};
use crate::error::ApiError;

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
        self.is_over = true;
        error_line(error)
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

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use hypura_chat::Delta;
    use serde_json::{Value, json};

    use super::*;
    use crate::answer::{Finish, Summary, TokenLogprob};

    fn summary(finish: Finish) -> Box<Summary> {
        let millis = Duration::from_millis;
        Box::new(Summary {
            finish,
            prompt_tokens: 26,
            reused_tokens: 20,
            generated_tokens: 4,
            reasoning_tokens: 0,
            context: vec![1, 2, 3],
            load_time: millis(99),
            queue_time: Duration::from_micros(1500),
            prompt_time: millis(2),
            ttft: millis(4),
            decode_time: millis(3),
            total_time: millis(98),
        })
    }

    /// What a writer makes of events, line by line, and of all of them in one.
    fn written(form: Form, events: Vec<Event>) -> (Vec<Value>, Value) {
        let writer = Writer {
            form,
            model: "demo".to_owned(),
            started: Instant::now(),
            load: Duration::from_nanos(5),
        };
        let now = Utc.timestamp_opt(1_700_000_000, 123_456_789).unwrap();
        let line = |part| {
            let text = writer.line_at(part, now, Duration::from_nanos(77));
            assert_eq!(text.last(), Some(&b'\n'));
            serde_json::from_slice(&text).unwrap()
        };
        let take = |events: Vec<Event>| {
            let mut parts = Parts::default();
            events.into_iter().filter_map(move |event| parts.take(event).unwrap())
        };
        let mut whole = Part::default();
        take(events.clone()).for_each(|part| whole.absorb(part));
        (take(events).map(line).collect(), line(whole))
    }

    const AT: &str = "2023-11-14T22:13:20.123456789Z";

    #[test]
    fn chats_are_written_as_ollama_writes_them() {
        let events = vec![
            Event::Begin,
            Event::Delta(Delta::Reasoning("Hm".to_owned())),
            Event::Delta(Delta::Content(String::new())),
            Event::Delta(Delta::Content("Hi".to_owned())),
            Event::Delta(Delta::ToolCallBegin {
                index: 0,
                id: "call_1".to_owned(),
                name: "f".to_owned(),
            }),
            Event::Delta(Delta::ToolCallArguments { index: 0, json: "{\"b\":1,".to_owned() }),
            Event::Delta(Delta::ToolCallArguments { index: 0, json: "\"a\":2}".to_owned() }),
            Event::Delta(Delta::ToolCallEnd { index: 0 }),
            Event::Done(summary(Finish::ToolCalls)),
        ];
        let (lines, whole) = written(Form::Chat, events);
        let call = json!([{"id": "call_1",
            "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": 2}}}]);
        let line = |message: Value| json!({"model": "demo", "created_at": AT, "message": message, "done": false});
        let said = |content| json!({"role": "assistant", "content": content});
        let mut end = json!({
            "model": "demo", "created_at": AT, "message": said(""), "done": true,
            "done_reason": "stop", "total_duration": 77, "load_duration": 5,
            "prompt_eval_count": 26, "prompt_eval_cached_count": 20, "prompt_eval_duration": 2_000_000, "eval_count": 4,
            "eval_duration": 3_000_000,
            "hypura": {"reused_tokens": 20, "ttft_ms": 4.0, "queue_ms": 1.5},
        });
        assert_eq!(
            lines,
            [
                line(json!({"role": "assistant", "content": "", "thinking": "Hm"})),
                line(said("Hi")),
                line(json!({"role": "assistant", "content": "", "tool_calls": call})),
                end.clone(),
            ]
        );
        end["message"] = json!({"role": "assistant", "content": "Hi", "thinking": "Hm",
            "tool_calls": call});
        assert_eq!(whole, end);
        // Properties in the order in which the model said them.
        assert!(whole.to_string().contains(r#"{"b":1,"a":2}"#));
    }

    #[test]
    fn completions_end_with_what_can_be_gone_on_with() {
        let events = || {
            vec![
                Event::Delta(Delta::Content("a".to_owned())),
                Event::Delta(Delta::Content("b".to_owned())),
                Event::Done(summary(Finish::Length)),
            ]
        };
        let (lines, whole) = written(Form::Generate { context: true }, events());
        let piece = json!({"model": "demo", "created_at": AT, "response": "a", "done": false});
        assert_eq!(lines[0], piece);
        assert_eq!(lines[2]["context"], json!([1, 2, 3]));
        assert_eq!(
            (&lines[2]["response"], &lines[2]["done_reason"]),
            (&json!(""), &json!("length"))
        );
        assert_eq!((&whole["response"], &whole["done"]), (&json!("ab"), &json!(true)));
        let (_, raw) = written(Form::Generate { context: false }, events());
        assert_eq!(raw.get("context"), None);
    }

    #[test]
    fn log_probabilities_come_with_the_text_of_their_tokens() {
        let token = |bytes: &[u8]| TokenLogprob {
            token: 1,
            bytes: bytes.to_vec(),
            logprob: -0.5,
            top: vec![(1, bytes.to_vec(), -0.5), (2, b"x".to_vec(), -2.0)],
        };
        let half = &"é".as_bytes()[..1];
        let events = vec![
            Event::Logprobs(vec![token(half)]),
            Event::Logprobs(vec![token(b"\xa9")]),
            Event::Delta(Delta::Content("é".to_owned())),
            Event::Logprobs(vec![token(b"")]),
            Event::Done(summary(Finish::Stop)),
        ];
        let (lines, whole) = written(Form::Chat, events);
        let first = json!({"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xc3], "top_logprobs": [
            {"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xc3]},
            {"token": "x", "logprob": -2.0, "bytes": [120]}]});
        assert_eq!(lines[0]["logprobs"][0], first);
        assert_eq!(lines[0]["logprobs"].as_array().unwrap().len(), 2);
        // The token that ends an answer has no text.
        assert_eq!(lines[1]["logprobs"][0].get("bytes"), None);
        assert_eq!(whole["logprobs"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn unfinished_calls_are_not_told() {
        let events = vec![
            Event::Delta(Delta::ToolCallBegin {
                index: 0,
                id: String::new(),
                name: "f".to_owned(),
            }),
            Event::Delta(Delta::ToolCallArguments { index: 0, json: "{\"a\":".to_owned() }),
            Event::Done(summary(Finish::Length)),
        ];
        let (lines, whole) = written(Form::Chat, events);
        assert_eq!(lines.len(), 1);
        assert_eq!(whole["message"].get("tool_calls"), None);
    }

    #[test]
    fn an_answer_that_the_server_breaks_off_is_an_error() {
        let error = Parts::default().take(Event::Done(summary(Finish::Cancelled))).unwrap_err();
        assert_eq!(error.kind, crate::error::ErrorKind::Unavailable);
    }
}
