//! Continuations in OpenAI's form: `text_completion`, whole and in chunks.

use hypura_chat::Delta;
use serde_json::{Value, json};

use super::super::super::blocks::Collected;
use super::super::super::sse::Frame;
use super::super::super::stream::Writer;
use super::super::logprobs::Lists;
use super::super::usage::Usage;
use super::super::{FINGERPRINT, Head};
use super::Form;
use crate::answer::{Event, Finish, TokenLogprob};
use crate::error::ApiError;
use crate::http::Api;

/// The object for these answers.
pub(super) fn completion(head: &Head, form: &Form, answers: &[Collected]) -> Value {
    let mut usage = Usage::default();
    let mut choices = Vec::with_capacity(answers.len());
    for (index, answer) in answers.iter().enumerate() {
        usage.add(index / form.n.max(1), &answer.summary);
        let logprobs = form.logprobs.then(|| {
            let (mut lists, mut offset) = (Lists::default(), 0);
            for token in answer.logprobs() {
                offset = lists.push(token, offset);
            }
            lists.json()
        });
        let text = format!("{}{}", form.echo(index), answer.text());
        choices.push(choice(index, &text, logprobs, Some(&answer.summary.finish)));
    }
    let mut object = object(head, choices);
    object["usage"] = usage.json();
    object
}

fn object(head: &Head, choices: Vec<Value>) -> Value {
    json!({
        "id": head.id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
    })
}

fn choice(index: usize, text: &str, logprobs: Option<Value>, finish: Option<&Finish>) -> Value {
    let finish = finish.map(|finish| match finish {
        Finish::Length => "length",
        _ => "stop",
    });
    json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
}

/// Writes continuations while they are made.
pub(super) struct Chunks {
    head: Head,
    form: Form,
    /// Of each answer.
    pending: Vec<Pending>,
    usage: Usage,
}

#[derive(Default)]
struct Pending {
    begun: bool,
    /// Tokens whose text did not come yet.
    tokens: Vec<TokenLogprob>,
    /// Characters of the tokens before these.
    offset: usize,
}

impl Chunks {
    pub(super) fn new(head: Head, form: Form) -> Chunks {
        Chunks { head, form, pending: Vec::new(), usage: Usage::default() }
    }

    fn pending(&mut self, choice: usize) -> Option<&mut Pending> {
        if self.pending.len() <= choice {
            self.pending.resize_with(choice + 1, Pending::default);
        }
        self.pending.get_mut(choice)
    }

    fn frame(&self, choices: Vec<Value>, usage: Value) -> Frame {
        let mut chunk = object(&self.head, choices);
        if self.form.usage {
            chunk["usage"] = usage;
        }
        Frame::data(&chunk)
    }

    fn text(&mut self, index: usize, text: &str) -> Frame {
        let wanted = self.form.logprobs;
        let logprobs = self.pending(index).filter(|_| wanted).map(|pending| {
            let mut lists = Lists::default();
            for token in pending.tokens.drain(..) {
                pending.offset = lists.push(&token, pending.offset);
            }
            lists.json()
        });
        self.frame(vec![choice(index, text, logprobs, None)], Value::Null)
    }
}

impl Writer for Chunks {
    fn event(&mut self, index: usize, event: Event) -> Vec<Frame> {
        let mut frames = Vec::new();
        let echo = self.form.echo(index).to_owned();
        let begins = self.pending(index).is_some_and(|p| !std::mem::replace(&mut p.begun, true));
        if begins && !echo.is_empty() {
            frames.push(self.frame(vec![choice(index, &echo, None, None)], Value::Null));
        }
        match event {
            Event::Delta(Delta::Content(text)) if !text.is_empty() => {
                frames.push(self.text(index, &text));
            }
            // The answer to a text is content alone.
            Event::Begin | Event::Delta(_) => {}
            Event::Logprobs(tokens) => {
                if let Some(pending) = self.pending(index) {
                    pending.tokens.extend(tokens);
                }
            }
            Event::Done(summary) => {
                self.usage.add(index / self.form.n.max(1), &summary);
                let last = choice(index, "", None, Some(&summary.finish));
                frames.push(self.frame(vec![last], Value::Null));
            }
        }
        frames
    }

    fn end(&mut self) -> Vec<Frame> {
        let usage = self.form.usage.then(|| self.frame(Vec::new(), self.usage.json()));
        usage.into_iter().chain([Frame::done()]).collect()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&Api::OpenAi.body(error))]
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::super::super::super::blocks::collect;
    use super::super::super::super::blocks::tests::{content, done, logprob};
    use super::*;

    fn answer(text: &str) -> Vec<Event> {
        let events = [
            Event::Begin,
            Event::Logprobs(vec![logprob(text)]),
            content(text),
            Event::Logprobs(vec![logprob("!")]),
            content("!"),
            done(Finish::Length),
        ];
        events.to_vec()
    }

    fn form() -> Form {
        Form { n: 1, echo: vec!["p".into(), "q".into()], logprobs: true, usage: true }
    }

    #[tokio::test]
    async fn whole() {
        let mut answers = Vec::new();
        for text in ["äh", "b"] {
            answers.push(collect(stream::iter(answer(text).into_iter().map(Ok))).await.unwrap());
        }
        let object = completion(&Head::fixed("cmpl-1"), &form(), &answers);
        assert_eq!(object["object"], "text_completion");
        let first = &object["choices"][0];
        assert_eq!((&first["text"], &first["finish_reason"]), (&json!("päh!"), &json!("length")));
        assert_eq!(first["logprobs"]["text_offset"], json!([0, 2]));
        assert_eq!(object["choices"][1]["text"], "qb!");
        assert_eq!(object["usage"]["prompt_tokens"], 20);
    }

    #[test]
    fn in_chunks() {
        let mut chunks = Chunks::new(Head::fixed("cmpl-1"), form());
        let mut frames: Vec<Frame> =
            answer("äh").into_iter().flat_map(|e| chunks.event(0, e)).collect();
        frames.extend(chunks.end());
        assert_eq!(frames.pop(), Some(Frame::done()));
        let chunks: Vec<Value> =
            frames.iter().map(|frame| serde_json::from_str(&frame.data).unwrap()).collect();
        let texts: Vec<&Value> = chunks[..4].iter().map(|c| &c["choices"][0]["text"]).collect();
        assert_eq!(texts, ["p", "äh", "!", ""]);
        assert_eq!(chunks[2]["choices"][0]["logprobs"]["text_offset"], json!([2]));
        assert_eq!(chunks[2]["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(chunks[3]["choices"][0]["finish_reason"], "length");
        assert_eq!(chunks[4]["usage"]["completion_tokens"], 7);
        assert_eq!(chunks.len(), 5);
    }
}
