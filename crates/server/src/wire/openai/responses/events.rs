//! A response while it is made.
//!
//! The order is that of <https://platform.openai.com/docs/api-reference/responses-streaming>: each
//! item is added, its part is added, grows, is done, and the item is done. Reasoning comes as
//! `reasoning_text`: it is what the model wrote, no summary of it.

use serde_json::{Map, Value, json};

use super::super::super::blocks::{Block, Blocks, Step};
use super::super::super::sse::Frame;
use super::super::super::stream::Writer;
use super::super::Head;
use super::object::{Echo, Status, entries, item, item_id, output, part, response};
use crate::answer::{Event, Finish, TokenLogprob};
use crate::error::{ApiError, ErrorKind};

/// Writes the events of one response.
pub(super) struct Events {
    head: Head,
    echo: Echo,
    blocks: Blocks,
    /// Counts the events.
    sequence: u64,
}

impl Events {
    pub(super) fn new(head: Head, echo: Echo) -> Events {
        Events { head, echo, blocks: Blocks::default(), sequence: 0 }
    }

    /// An event: its type, its number, and `fields`.
    fn frame(&mut self, name: &'static str, fields: Value) -> Frame {
        let mut event = Map::new();
        event.insert("type".to_owned(), name.into());
        event.insert("sequence_number".to_owned(), self.sequence.into());
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        self.sequence += 1;
        Frame::named(name, &Value::Object(event))
    }

    fn whole(&mut self, name: &'static str, status: &Status<'_>) -> Frame {
        let output = output(&self.head, &self.echo, self.blocks.blocks(), self.blocks.cut());
        let response = response(&self.head, &self.echo, output, status);
        self.frame(name, json!({"response": response}))
    }

    fn step(&mut self, step: Step) -> Vec<Frame> {
        match step {
            Step::Open(index) => self.open(index),
            Step::Grow { index, text, logprobs } => self.grow(index, &text, &logprobs),
            Step::Close(index) => self.close(index),
        }
    }

    fn open(&mut self, index: usize) -> Vec<Frame> {
        let Some(block) = self.blocks.blocks().get(index).map(Block::emptied) else {
            return Vec::new();
        };
        let item = item(&self.head, &self.echo, index, &block, "in_progress");
        let place = place(&self.head, index, &block);
        let part = part(&self.echo, &block);
        let mut frames = vec![
            self.frame("response.output_item.added", json!({"output_index": index, "item": item})),
        ];
        if let Some(part) = part {
            let fields = with(place, json!({"part": part}));
            frames.push(self.frame("response.content_part.added", fields));
        }
        frames
    }

    fn grow(&mut self, index: usize, text: &str, logprobs: &[TokenLogprob]) -> Vec<Frame> {
        let Some(block) = self.blocks.blocks().get(index) else { return Vec::new() };
        let (name, fields) = match block {
            Block::Reasoning { .. } => ("response.reasoning_text.delta", json!({"delta": text})),
            Block::Text { .. } => {
                let logprobs = entries(&self.echo, logprobs);
                ("response.output_text.delta", json!({"delta": text, "logprobs": logprobs}))
            }
            Block::Call { .. } => {
                ("response.function_call_arguments.delta", json!({"delta": text}))
            }
        };
        let fields = with(place(&self.head, index, block), fields);
        vec![self.frame(name, fields)]
    }

    fn close(&mut self, index: usize) -> Vec<Frame> {
        let Some(block) = self.blocks.blocks().get(index) else { return Vec::new() };
        let (name, fields) = match block {
            Block::Reasoning { text } => ("response.reasoning_text.done", json!({"text": text})),
            Block::Text { text, logprobs } => {
                let logprobs = entries(&self.echo, logprobs);
                ("response.output_text.done", json!({"text": text, "logprobs": logprobs}))
            }
            Block::Call { name, arguments, .. } => {
                let fields = json!({"name": name, "arguments": arguments});
                ("response.function_call_arguments.done", fields)
            }
        };
        let status = if self.blocks.cut() == Some(index) { "incomplete" } else { "completed" };
        let item = item(&self.head, &self.echo, index, block, status);
        let place = place(&self.head, index, block);
        let part = part(&self.echo, block);
        let mut frames = vec![self.frame(name, with(place.clone(), fields))];
        if let Some(part) = part {
            let fields = with(place, json!({"part": part}));
            frames.push(self.frame("response.content_part.done", fields));
        }
        let fields = json!({"output_index": index, "item": item});
        frames.push(self.frame("response.output_item.done", fields));
        frames
    }
}

/// Where something happens: the item, and its part if it has one.
fn place(head: &Head, index: usize, block: &Block) -> Value {
    let mut place = json!({"item_id": item_id(head, index, block), "output_index": index});
    if !matches!(block, Block::Call { .. }) {
        place["content_index"] = 0.into();
    }
    place
}

fn with(mut place: Value, fields: Value) -> Value {
    if let (Value::Object(place), Value::Object(fields)) = (&mut place, fields) {
        place.extend(fields);
    }
    place
}

impl Writer for Events {
    fn begin(&mut self) -> Vec<Frame> {
        let created = self.whole("response.created", &Status::InProgress);
        vec![created, self.whole("response.in_progress", &Status::InProgress)]
    }

    fn event(&mut self, _choice: usize, event: Event) -> Vec<Frame> {
        let summary = match &event {
            Event::Done(summary) => Some(summary.clone()),
            _ => None,
        };
        let mut frames = Vec::new();
        for step in self.blocks.push(event) {
            frames.extend(self.step(step));
        }
        if let Some(summary) = summary {
            let name = match summary.finish {
                Finish::Length => "response.incomplete",
                _ => "response.completed",
            };
            frames.push(self.whole(name, &Status::Done(&summary)));
        }
        frames
    }

    fn end(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        let code = match error.kind {
            ErrorKind::TooMany => "rate_limit_exceeded",
            ErrorKind::BadRequest | ErrorKind::ContextLength => "invalid_prompt",
            _ => "server_error",
        };
        let status = Status::Failed { code, message: &error.message };
        vec![self.whole("response.failed", &status)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::blocks::tests::{content, done, everything, logprob};
    use super::super::object::tests::echo;
    use super::*;

    /// The events, whose numbers and names are right.
    fn written(echo: Echo, events: Vec<Event>) -> Vec<Value> {
        let mut writer = Events::new(Head::fixed("resp_x"), echo);
        let mut frames = writer.begin();
        for event in events {
            frames.extend(writer.event(0, event));
        }
        frames.extend(writer.end());
        let read = |(number, frame): (usize, Frame)| {
            let event: Value = serde_json::from_str(&frame.data).unwrap();
            assert_eq!(event["type"], frame.name.unwrap());
            assert_eq!(event["sequence_number"], number);
            event
        };
        frames.into_iter().enumerate().map(read).collect()
    }

    fn names(events: &[Value]) -> Vec<&str> {
        events.iter().map(|e| e["type"].as_str().unwrap().trim_start_matches("response.")).collect()
    }

    #[test]
    fn the_whole_sequence() {
        let events = written(echo(), everything());
        let expected = [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ];
        assert_eq!(names(&events), expected);
        let delta = json!({
            "type": "response.output_text.delta", "sequence_number": 11, "item_id": "msg_x01",
            "output_index": 1, "content_index": 0, "delta": "Hel", "logprobs": [],
        });
        assert_eq!(events[11], delta);
        assert_eq!(events[10]["part"]["text"], "");
        assert_eq!(events[13]["text"], "Hello");
        let added = json!({
            "id": "fc_x02", "type": "function_call", "status": "in_progress",
            "call_id": "call_0", "name": "look", "arguments": "",
        });
        assert_eq!(events[16]["item"], added);
        assert_eq!(events[19]["arguments"], "{\"x\":1}");
        let response = &events.last().unwrap()["response"];
        assert_eq!(response["output"].as_array().unwrap().len(), 4);
        assert_eq!(response["output"][2], events[20]["item"]);
        assert_eq!(events[0]["response"]["output"], json!([]));
    }

    #[test]
    fn an_answer_that_was_cut() {
        let events = written(echo(), vec![content("Hel"), done(Finish::Length)]);
        let (last, rest) = events.split_last().unwrap();
        assert_eq!(last["type"], "response.incomplete");
        assert_eq!(rest.last().unwrap()["item"]["status"], "incomplete");
    }

    #[test]
    fn logprobs_come_with_their_text() {
        let echo = Echo { logprobs: true, ..echo() };
        let events = written(
            echo,
            vec![Event::Logprobs(vec![logprob("a")]), content("a"), done(Finish::Stop)],
        );
        assert_eq!(events[4]["logprobs"][0]["token"], "a");
        assert_eq!(events[5]["logprobs"][0]["token"], "a");
    }

    #[test]
    fn a_failure_is_an_event() {
        let mut writer = Events::new(Head::fixed("resp_x"), echo());
        writer.begin();
        writer.event(0, content("Hel"));
        let frames = writer.failed(&ApiError::internal("broken"));
        assert_eq!(frames[0].name, Some("response.failed"));
        let event: Value = serde_json::from_str(&frames[0].data).unwrap();
        let error = json!({"code": "server_error", "message": "broken"});
        assert_eq!(event["response"]["error"], error);
        assert_eq!(event["response"]["status"], "failed");
    }
}
