//! A message while it is made.
//!
//! The order is that of <https://docs.anthropic.com/en/docs/build-with-claude/streaming>. How long
//! the prompt is, is known at the end: `message_start` says 0, `message_delta` the number, which
//! clients take.

use serde_json::{Value, json};

use super::super::blocks::{Block, Blocks, Step};
use super::super::sse::Frame;
use super::super::stream::Writer;
use super::object::{Head, begun, block, stop, usage};
use crate::answer::Event;
use crate::error::ApiError;
use crate::http::Api;

/// Writes the events of one message.
pub(super) struct Events {
    head: Head,
    begun: bool,
    blocks: Blocks,
}

impl Events {
    pub(super) fn new(head: Head) -> Events {
        Events { head, begun: false, blocks: Blocks::default() }
    }

    fn step(&self, step: Step) -> Vec<Frame> {
        let block_at = |index: usize| self.blocks.blocks().get(index);
        match step {
            Step::Open(index) => {
                let Some(begun) = block_at(index).map(Block::emptied) else { return Vec::new() };
                let fields = json!({"index": index, "content_block": block(&begun)});
                vec![frame("content_block_start", fields)]
            }
            Step::Grow { index, text, .. } => {
                let Some(block) = block_at(index) else { return Vec::new() };
                let delta = match block {
                    Block::Reasoning { .. } => json!({"type": "thinking_delta", "thinking": text}),
                    Block::Text { .. } => json!({"type": "text_delta", "text": text}),
                    Block::Call { .. } => {
                        json!({"type": "input_json_delta", "partial_json": text})
                    }
                };
                vec![delta_frame(index, delta)]
            }
            Step::Close(index) => {
                // Some clients send thoughts back only if they had a signature, empty or not.
                let signature = match block_at(index) {
                    Some(Block::Reasoning { .. }) => {
                        let delta = json!({"type": "signature_delta", "signature": ""});
                        Some(delta_frame(index, delta))
                    }
                    _ => None,
                };
                let end = frame("content_block_stop", json!({"index": index}));
                signature.into_iter().chain([end]).collect()
            }
        }
    }
}

fn delta_frame(index: usize, delta: Value) -> Frame {
    frame("content_block_delta", json!({"index": index, "delta": delta}))
}

/// An event: its type, and `fields`.
fn frame(name: &'static str, fields: Value) -> Frame {
    let mut event = json!({"type": name});
    if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
        event.extend(fields);
    }
    Frame::named(name, &event)
}

impl Writer for Events {
    fn event(&mut self, _choice: usize, event: Event) -> Vec<Frame> {
        let mut frames = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            frames.push(frame("message_start", json!({"message": begun(&self.head)})));
        }
        let last = match &event {
            Event::Done(summary) => {
                let (reason, sequence) = stop(&summary.finish);
                let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
                let fields = json!({"delta": delta, "usage": usage(summary)});
                Some(frame("message_delta", fields))
            }
            _ => None,
        };
        for step in self.blocks.push(event) {
            frames.extend(self.step(step));
        }
        frames.extend(last);
        frames
    }

    fn end(&mut self) -> Vec<Frame> {
        vec![frame("message_stop", json!({}))]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::named("error", &Api::Anthropic.body(error))]
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::blocks::tests::{content, done, everything};
    use super::*;
    use crate::answer::Finish;

    fn writer() -> Events {
        Events::new(Head { id: "msg_1".into(), model: "demo".into() })
    }

    fn written(events: Vec<Event>) -> Vec<Value> {
        let mut writer = writer();
        let mut frames = writer.begin();
        for event in events {
            frames.extend(writer.event(0, event));
        }
        frames.extend(writer.end());
        let read = |frame: Frame| {
            let event: Value = serde_json::from_str(&frame.data).unwrap();
            assert_eq!(event["type"], frame.name.unwrap());
            event
        };
        frames.into_iter().map(read).collect()
    }

    #[test]
    fn the_whole_sequence() {
        let events = written(everything());
        let start = |index: usize, block: Value| json!({"type": "content_block_start", "index": index, "content_block": block});
        let delta = |index: usize, delta: Value| json!({"type": "content_block_delta", "index": index, "delta": delta});
        let stop = |index: usize| json!({"type": "content_block_stop", "index": index});
        let input = |index: usize, json: &str| {
            delta(index, json!({"type": "input_json_delta", "partial_json": json}))
        };
        let tool =
            |id: &str, name: &str| json!({"type": "tool_use", "id": id, "name": name, "input": {}});
        let expected = [
            start(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
            delta(0, json!({"type": "thinking_delta", "thinking": "hm"})),
            delta(0, json!({"type": "thinking_delta", "thinking": "m"})),
            delta(0, json!({"type": "signature_delta", "signature": ""})),
            stop(0),
            start(1, json!({"type": "text", "text": ""})),
            delta(1, json!({"type": "text_delta", "text": "Hel"})),
            delta(1, json!({"type": "text_delta", "text": "lo"})),
            stop(1),
            start(2, tool("call_0", "look")),
            input(2, "{\"x\":"),
            input(2, "1}"),
            stop(2),
            start(3, tool("call_1", "go")),
            input(3, "{"),
            input(3, "}"),
            stop(3),
        ];
        assert_eq!(events[0]["type"], "message_start");
        assert_eq!(events[0]["message"]["content"], json!([]));
        assert_eq!(events[0]["message"]["role"], "assistant");
        assert_eq!(events[1..18], expected);
        let delta = json!({"stop_reason": "tool_use", "stop_sequence": null});
        assert_eq!(events[18]["delta"], delta);
        assert_eq!(events[18]["usage"]["cache_read_input_tokens"], 4);
        assert_eq!(events[19], json!({"type": "message_stop"}));
        assert_eq!(events.len(), 20);
    }

    #[test]
    fn a_stop_text_is_told() {
        let events = written(vec![content("a"), done(Finish::StopText("END".into()))]);
        let delta = &events[events.len() - 2]["delta"];
        assert_eq!(*delta, json!({"stop_reason": "stop_sequence", "stop_sequence": "END"}));
    }

    #[test]
    fn a_failure_is_an_event() {
        let frames = writer().failed(&ApiError::internal("broken"));
        assert_eq!(frames[0].name, Some("error"));
        let event: Value = serde_json::from_str(&frames[0].data).unwrap();
        assert_eq!(event["error"]["type"], "api_error");
    }
}
