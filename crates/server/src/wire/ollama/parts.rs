//! From the events of an answer to what the lines of a stream say.

use std::collections::BTreeMap;

use hypura_chat::{Delta, Parser};
use serde_json::{Map, Value};

use super::format::{AnswerCall, AnswerFunction, Logprob};
use crate::answer::{Event, Finish, Summary};
use crate::error::{ApiError, ErrorKind};

/// What one line says; joined, what the whole answer says.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) content: String,
    pub(super) thinking: String,
    pub(super) calls: Vec<AnswerCall>,
    pub(super) logprobs: Vec<Logprob>,
    /// The end, with the answer's numbers.
    pub(super) done: Option<Box<Summary>>,
}

impl Part {
    /// Adds what comes next.
    pub(super) fn absorb(&mut self, next: Part) {
        self.content.push_str(&next.content);
        self.thinking.push_str(&next.thinking);
        self.calls.extend(next.calls);
        self.logprobs.extend(next.logprobs);
        self.done = next.done.or(self.done.take());
    }
}

/// Takes events, gives parts. Tool calls are held back until they are complete: Ollama sends each
/// with all of its arguments.
#[derive(Debug, Default)]
pub(super) struct Parts {
    calls: BTreeMap<usize, OpenCall>,
    /// Of tokens whose text did not come yet.
    logprobs: Vec<Logprob>,
    /// For answers that come as content alone.
    parser: Option<Parser>,
}

#[derive(Debug)]
struct OpenCall {
    id: String,
    name: String,
    json: String,
}

impl Parts {
    /// For an answer whose reasoning and content come in one.
    pub(super) fn parsed_by(parser: Parser) -> Parts {
        Parts { parser: Some(parser), ..Parts::default() }
    }

    /// What an event adds: nothing, or parts to be sent in this order.
    ///
    /// # Errors
    /// When the server broke the answer off.
    pub(super) fn take(&mut self, event: Event) -> Result<Vec<Part>, ApiError> {
        let mut parts = Vec::new();
        match event {
            Event::Delta(Delta::Content(text)) if self.parser.is_some() => {
                let deltas = self.parser.as_mut().map(|parser| parser.push(&text));
                self.deltas(deltas.unwrap_or_default(), &mut parts);
            }
            Event::Delta(delta) => self.deltas(vec![delta], &mut parts),
            Event::Logprobs(tokens) => {
                self.logprobs.extend(tokens.into_iter().map(Logprob::from));
            }
            Event::Done(summary) => {
                if summary.finish == Finish::Cancelled {
                    let message = "the server ended this answer; ask again";
                    return Err(ApiError::new(ErrorKind::Unavailable, message));
                }
                let held_back = self.parser.as_mut().map(Parser::finish);
                self.deltas(held_back.unwrap_or_default(), &mut parts);
                let logprobs = std::mem::take(&mut self.logprobs);
                parts.push(Part { logprobs, done: Some(summary), ..Part::default() });
            }
            Event::Begin => {}
        }
        Ok(parts)
    }

    fn deltas(&mut self, deltas: Vec<Delta>, parts: &mut Vec<Part>) {
        for delta in deltas {
            let mut part = match delta {
                Delta::Content(content) => Part { content, ..Part::default() },
                Delta::Reasoning(thinking) => Part { thinking, ..Part::default() },
                Delta::ToolCallBegin { index, id, name } => {
                    self.calls.insert(index, OpenCall { id, name, json: String::new() });
                    continue;
                }
                Delta::ToolCallArguments { index, json } => {
                    if let Some(call) = self.calls.get_mut(&index) {
                        call.json.push_str(&json);
                    }
                    continue;
                }
                Delta::ToolCallEnd { index } => match self.calls.remove(&index) {
                    Some(call) => Part { calls: vec![call.finish(index)], ..Part::default() },
                    None => continue,
                },
            };
            if part.content.is_empty() && part.thinking.is_empty() && part.calls.is_empty() {
                continue;
            }
            part.logprobs = std::mem::take(&mut self.logprobs);
            parts.push(part);
        }
    }
}

impl OpenCall {
    fn finish(self, index: usize) -> AnswerCall {
        let arguments = serde_json::from_str(&self.json).unwrap_or_else(|error| {
            tracing::debug!("the arguments of a tool call are no JSON: {error}");
            Value::Object(Map::new())
        });
        AnswerCall { id: self.id, function: AnswerFunction { index, name: self.name, arguments } }
    }
}
