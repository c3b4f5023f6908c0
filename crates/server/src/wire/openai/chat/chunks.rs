//! An answer while it is made: `chat.completion.chunk`.

use hypura_chat::Delta;
use serde_json::{Value, json};

use super::super::super::sse::Frame;
use super::super::super::stream::Writer;
use super::super::usage::Usage;
use super::super::{FINGERPRINT, Head, logprobs};
use super::Form;
use super::object::finish_reason;
use crate::answer::{Event, TokenLogprob};
use crate::error::ApiError;
use crate::http::Api;

/// Writes the chunks of `n` answers.
pub(super) struct Chunks {
    head: Head,
    form: Form,
    /// Of each answer: tokens whose text did not come yet.
    pending: Vec<Vec<TokenLogprob>>,
    begun: bool,
    usage: Usage,
}

impl Chunks {
    pub(super) fn new(head: Head, form: Form, n: usize) -> Chunks {
        let pending = vec![Vec::new(); n];
        Chunks { head, form, pending, begun: false, usage: Usage::default() }
    }

    fn frame(&self, choices: Value, usage: Value) -> Frame {
        let mut chunk = json!({
            "id": self.head.id,
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        });
        if self.form.usage {
            chunk["usage"] = usage;
        }
        Frame::data(&chunk)
    }

    fn choice(&self, index: usize, delta: Value, finish: Option<&str>) -> Frame {
        let choice =
            json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish});
        self.frame(json!([choice]), Value::Null)
    }

    /// Begins all answers, in order: `openai-python` takes their first chunks for a list.
    fn roles(&self) -> Vec<Frame> {
        let delta = || json!({"role": "assistant", "content": ""});
        (0..self.pending.len()).map(|index| self.choice(index, delta(), None)).collect()
    }

    fn content(&mut self, index: usize, text: &str) -> Frame {
        let tokens = self.pending.get_mut(index).map(std::mem::take).unwrap_or_default();
        let logprobs = self.form.logprobs.then(|| {
            let content: Vec<Value> = tokens.iter().map(logprobs::entry).collect();
            json!({"content": content, "refusal": null})
        });
        let choice = json!({
            "index": index,
            "delta": {"content": text},
            "logprobs": logprobs,
            "finish_reason": null,
        });
        self.frame(json!([choice]), Value::Null)
    }

    fn delta(&mut self, index: usize, delta: Delta) -> Option<Frame> {
        if let Delta::Content(text) = &delta {
            return (!text.is_empty()).then(|| self.content(index, text));
        }
        // Tokens of reasoning and of calls: `logprobs.content` is about content only.
        if let Some(pending) = self.pending.get_mut(index) {
            pending.clear();
        }
        let delta = match delta {
            Delta::Reasoning(text) if !text.is_empty() => {
                json!({"reasoning_content": text, "reasoning": text})
            }
            Delta::ToolCallBegin { index, id, name } => match self.form.functions {
                true if index > 0 => return None,
                true => json!({"function_call": {"name": name, "arguments": ""}}),
                false => {
                    let function = json!({"name": name, "arguments": ""});
                    let call =
                        json!({"index": index, "id": id, "type": "function", "function": function});
                    json!({"tool_calls": [call]})
                }
            },
            Delta::ToolCallArguments { index, json } if !json.is_empty() => {
                match self.form.functions {
                    true if index > 0 => return None,
                    true => json!({"function_call": {"arguments": json}}),
                    false => {
                        let call = json!({"index": index, "function": {"arguments": json}});
                        json!({"tool_calls": [call]})
                    }
                }
            }
            _ => return None,
        };
        Some(self.choice(index, delta, None))
    }
}

impl Writer for Chunks {
    fn event(&mut self, choice: usize, event: Event) -> Vec<Frame> {
        let mut frames = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            frames = self.roles();
        }
        match event {
            Event::Begin => {}
            Event::Logprobs(tokens) => {
                if let Some(pending) = self.pending.get_mut(choice) {
                    pending.extend(tokens);
                }
            }
            Event::Delta(delta) => frames.extend(self.delta(choice, delta)),
            Event::Done(summary) => {
                self.usage.add(0, &summary);
                let reason = finish_reason(&summary.finish, self.form);
                frames.push(self.choice(choice, json!({}), Some(reason)));
            }
        }
        frames
    }

    fn end(&mut self) -> Vec<Frame> {
        let usage = self.form.usage.then(|| self.frame(json!([]), self.usage.json()));
        usage.into_iter().chain([Frame::done()]).collect()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&Api::OpenAi.body(error))]
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::blocks::tests::{
        content, done, everything, logprob, reasoning,
    };
    use super::*;
    use crate::answer::Finish;

    /// The chunks, all of whose heads are right.
    fn written(form: Form, n: usize, events: Vec<(usize, Event)>) -> Vec<Value> {
        let mut chunks = Chunks::new(Head::fixed("chatcmpl-1"), form, n);
        let mut frames = chunks.begin();
        for (choice, event) in events {
            frames.extend(chunks.event(choice, event));
        }
        frames.extend(chunks.end());
        assert_eq!(frames.pop(), Some(Frame::done()));
        let read = |frame: Frame| -> Value {
            assert_eq!(frame.name, None);
            let chunk: Value = serde_json::from_str(&frame.data).unwrap();
            assert_eq!(chunk["id"], "chatcmpl-1");
            assert_eq!(chunk["object"], "chat.completion.chunk");
            assert_eq!(chunk["created"], 1_700_000_000);
            assert_eq!(chunk["model"], "demo");
            chunk
        };
        frames.into_iter().map(read).collect()
    }

    fn deltas(chunks: &[Value]) -> Vec<Value> {
        chunks.iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect()
    }

    #[test]
    fn an_answer_with_everything() {
        let events = everything().into_iter().map(|event| (0, event)).collect();
        let chunks = written(Form::default(), 1, events);
        let begin = |index: usize, name: &str| {
            json!({"tool_calls": [{
                "index": index, "id": format!("call_{index}"), "type": "function",
                "function": {"name": name, "arguments": ""},
            }]})
        };
        let arguments = |index: usize, json: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": json}}]});
        let expected = [
            json!({"role": "assistant", "content": ""}),
            json!({"reasoning_content": "hm", "reasoning": "hm"}),
            json!({"reasoning_content": "m", "reasoning": "m"}),
            json!({"content": "Hel"}),
            json!({"content": "lo"}),
            begin(0, "look"),
            arguments(0, r#"{"x":"#),
            arguments(0, "1}"),
            begin(1, "go"),
            arguments(1, "{"),
            arguments(1, "}"),
            json!({}),
        ];
        assert_eq!(deltas(&chunks), expected);
        let reasons: Vec<&Value> =
            chunks.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
        assert_eq!(reasons.last().unwrap(), &&json!("tool_calls"));
        assert!(reasons[..11].iter().all(|reason| reason.is_null()));
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    }

    #[test]
    fn usage_comes_last() {
        let form = Form { usage: true, ..Form::default() };
        let chunks = written(form, 1, vec![(0, Event::Begin), (0, done(Finish::Length))]);
        assert_eq!(chunks.len(), 3);
        assert!(chunks[..2].iter().all(|chunk| chunk["usage"].is_null()));
        assert_eq!(chunks[1]["choices"][0]["finish_reason"], "length");
        assert_eq!(chunks[2]["choices"], json!([]));
        assert_eq!(chunks[2]["usage"]["total_tokens"], 17);
    }

    #[test]
    fn answers_are_interleaved_and_begin_in_order() {
        let events = vec![
            (1, Event::Begin),
            (1, content("b")),
            (0, Event::Begin),
            (0, content("a")),
            (0, done(Finish::Stop)),
            (1, done(Finish::Stop)),
        ];
        let chunks = written(Form::default(), 2, events);
        let indices: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["index"]).collect();
        assert_eq!(indices, [0, 1, 1, 0, 0, 1]);
    }

    #[test]
    fn logprobs_come_with_their_text() {
        let form = Form { logprobs: true, ..Form::default() };
        let events = [
            Event::Logprobs(vec![logprob("t")]),
            reasoning("t"),
            Event::Logprobs(vec![logprob("a")]),
            Event::Logprobs(vec![logprob("b")]),
            content("ab"),
            done(Finish::Stop),
        ];
        let chunks = written(form, 1, events.into_iter().map(|event| (0, event)).collect());
        assert_eq!(chunks[1]["choices"][0]["logprobs"], Value::Null);
        let content = &chunks[2]["choices"][0]["logprobs"]["content"];
        let tokens: Vec<&Value> = content.as_array().unwrap().iter().map(|t| &t["token"]).collect();
        assert_eq!(tokens, ["a", "b"]);
    }

    #[test]
    fn a_call_for_older_clients() {
        let form = Form { functions: true, ..Form::default() };
        let events = everything().into_iter().map(|event| (0, event)).collect();
        let chunks = written(form, 1, events);
        let expected = [
            json!({"function_call": {"name": "look", "arguments": ""}}),
            json!({"function_call": {"arguments": "{\"x\":"}}),
            json!({"function_call": {"arguments": "1}"}}),
            json!({}),
        ];
        assert_eq!(deltas(&chunks)[5..], expected);
    }

    #[test]
    fn a_failure_is_an_event() {
        let mut chunks = Chunks::new(Head::fixed("chatcmpl-1"), Form::default(), 1);
        let frames = chunks.failed(&ApiError::internal("broken"));
        let error: Value = serde_json::from_str(&frames[0].data).unwrap();
        assert_eq!(error["error"]["message"], "broken");
        assert_eq!(frames.len(), 1);
    }
}
