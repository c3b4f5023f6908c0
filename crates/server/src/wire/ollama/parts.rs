//! From the events of an answer to what the lines of a stream say.

use std::collections::BTreeMap;

use hypura_chat::Delta;
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
}

#[derive(Debug)]
struct OpenCall {
    id: String,
    name: String,
    json: String,
}

impl Parts {
    /// What an event adds, if there is something to be sent.
    ///
    /// # Errors
    /// When the server broke the answer off.
    pub(super) fn take(&mut self, event: Event) -> Result<Option<Part>, ApiError> {
        let mut part = match event {
            Event::Begin => return Ok(None),
            Event::Delta(delta) => match self.delta(delta) {
                Some(part) => part,
                None => return Ok(None),
            },
            Event::Logprobs(tokens) => {
                self.logprobs.extend(tokens.into_iter().map(Logprob::from));
                return Ok(None);
            }
            Event::Done(summary) if summary.finish == Finish::Cancelled => {
                let message = "the server ended this answer; ask again";
                return Err(ApiError::new(ErrorKind::Unavailable, message));
            }
            Event::Done(summary) => Part { done: Some(summary), ..Part::default() },
        };
        part.logprobs = std::mem::take(&mut self.logprobs);
        Ok(Some(part))
    }

    fn delta(&mut self, delta: Delta) -> Option<Part> {
        match delta {
            Delta::Content(text) if text.is_empty() => None,
            Delta::Reasoning(text) if text.is_empty() => None,
            Delta::Content(content) => Some(Part { content, ..Part::default() }),
            Delta::Reasoning(thinking) => Some(Part { thinking, ..Part::default() }),
            Delta::ToolCallBegin { index, id, name } => {
                self.calls.insert(index, OpenCall { id, name, json: String::new() });
                None
            }
            Delta::ToolCallArguments { index, json } => {
                if let Some(call) = self.calls.get_mut(&index) {
                    call.json.push_str(&json);
                }
                None
            }
            Delta::ToolCallEnd { index } => {
                let call = self.calls.remove(&index)?;
                Some(Part { calls: vec![call.finish(index)], ..Part::default() })
            }
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
