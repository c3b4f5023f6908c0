//! Server-sent events: how OpenAI's and Anthropic's APIs send an answer while it is made.
//!
//! The format is that of <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use serde_json::Value;

/// Silence after which something is sent that means nothing, so that neither proxies nor clients
/// give up while a long prompt is read.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What follows `event:`, if there is such a line.
    pub(crate) name: Option<&'static str>,
    /// What follows `data:`; one line.
    pub(crate) data: String,
}

impl Frame {
    /// JSON without a name, as in OpenAI's chat.
    pub(crate) fn data(json: &Value) -> Frame {
        Frame { name: None, data: json.to_string() }
    }

    /// JSON with a name.
    pub(crate) fn named(name: &'static str, json: &Value) -> Frame {
        Frame { name: Some(name), data: json.to_string() }
    }

    /// The mark that ends a stream of OpenAI's chat.
    pub(crate) fn done() -> Frame {
        Frame { name: None, data: "[DONE]".to_owned() }
    }

    fn into_event(self) -> Event {
        let event = Event::default().data(self.data);
        match self.name {
            Some(name) => event.event(name),
            None => event,
        }
    }
}

/// What is sent in silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Idle {
    /// A comment, which parsers drop.
    Comment,
    /// Anthropic's `ping` event.
    Ping,
}

/// A response that sends `frames` as they come. Dropping it drops them.
pub(crate) fn response(frames: impl Stream<Item = Frame> + Send + 'static, idle: Idle) -> Response {
    let sign = match idle {
        Idle::Comment => Event::default().comment("keep-alive"),
        Idle::Ping => Event::default().event("ping").data(r#"{"type":"ping"}"#),
    };
    let events = frames.map(|frame| Ok::<Event, Infallible>(frame.into_event()));
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).event(sign);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Asks nginx not to collect the answer before it passes it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use axum::http::header::CONTENT_TYPE;
    use futures_util::stream;
    use http_body_util::BodyExt;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn frames_are_events() {
        let frames =
            [Frame::named("ping", &json!({"a": "x\ny"})), Frame::data(&json!(1)), Frame::done()];
        let response = response(stream::iter(frames), Idle::Comment);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let (named, rest) = text.split_once("\n\n").unwrap();
        let mut lines: Vec<&str> = named.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, [r#"data: {"a":"x\ny"}"#, "event: ping"]);
        assert_eq!(rest, "data: 1\n\ndata: [DONE]\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken() {
        for (idle, sign) in [
            (Idle::Comment, ": keep-alive\n\n"),
            (Idle::Ping, "event: ping\ndata: {\"type\":\"ping\"}\n\n"),
        ] {
            let mut body = response(stream::pending(), idle).into_body();
            let frame = body.frame().await.unwrap().unwrap();
            let text = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
            let sorted = |text: &str| {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines.sort_unstable();
                lines
            };
            assert_eq!(sorted(&text), sorted(sign));
        }
    }
}
