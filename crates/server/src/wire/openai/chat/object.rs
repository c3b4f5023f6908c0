//! A whole answer: `chat.completion`.

use serde_json::{Map, Value, json};

use super::super::super::blocks::{Block, Collected};
use super::super::usage::Usage;
use super::super::{FINGERPRINT, Head, logprobs};
use super::Form;
use crate::answer::Finish;

/// The object for these answers.
pub(super) fn completion(head: &Head, form: Form, answers: &[Collected]) -> Value {
    let mut usage = Usage::default();
    let mut choices = Vec::with_capacity(answers.len());
    for (index, answer) in answers.iter().enumerate() {
        usage.add(0, &answer.summary);
        let logprobs: Option<Vec<Value>> =
            form.logprobs.then(|| answer.logprobs().map(logprobs::entry).collect());
        choices.push(json!({
            "index": index,
            "message": message(answer, form),
            "logprobs": logprobs.map(|content| json!({"content": content, "refusal": null})),
            "finish_reason": finish_reason(&answer.summary.finish, form),
        }));
    }
    json!({
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": usage.json(),
    })
}

fn message(answer: &Collected, form: Form) -> Value {
    let mut calls = Vec::new();
    for block in &answer.blocks {
        if let Block::Call { id, name, arguments } = block {
            let function = json!({"name": name, "arguments": arguments});
            calls.push(json!({"id": id, "type": "function", "function": function}));
        }
    }
    let (text, reasoning) = (answer.text(), answer.reasoning());
    let mut message = Map::new();
    message.insert("role".to_owned(), "assistant".into());
    let nothing_said = text.is_empty() && !calls.is_empty();
    message.insert("content".to_owned(), if nothing_said { Value::Null } else { text.into() });
    message.insert("refusal".to_owned(), Value::Null);
    if !reasoning.is_empty() {
        message.insert("reasoning_content".to_owned(), reasoning.clone().into());
        message.insert("reasoning".to_owned(), reasoning.into());
    }
    if form.functions {
        if let Some(call) = calls.first_mut() {
            message.insert("function_call".to_owned(), call["function"].take());
        }
    } else if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), calls.into());
    }
    Value::Object(message)
}

/// Why an answer ended, in OpenAI's words.
pub(super) fn finish_reason(finish: &Finish, form: Form) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::ToolCalls if form.functions => "function_call",
        Finish::ToolCalls => "tool_calls",
        Finish::Stop | Finish::StopText(_) | Finish::Cancelled => "stop",
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::super::super::super::blocks::collect;
    use super::super::super::super::blocks::tests::{content, done, everything, logprob};
    use super::*;
    use crate::answer::Event;

    async fn object(form: Form, answers: Vec<Vec<Event>>) -> Value {
        let mut collected = Vec::new();
        for events in answers {
            collected.push(collect(stream::iter(events.into_iter().map(Ok))).await.unwrap());
        }
        completion(&Head::fixed("chatcmpl-1"), form, &collected)
    }

    #[tokio::test]
    async fn an_answer_with_everything() {
        let expected = json!({
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "demo",
            "system_fingerprint": FINGERPRINT,
            "choices": [{
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello",
                    "refusal": null,
                    "reasoning_content": "hmm",
                    "reasoning": "hmm",
                    "tool_calls": [
                        {"id": "call_0", "type": "function",
                         "function": {"name": "look", "arguments": "{\"x\":1}"}},
                        {"id": "call_1", "type": "function",
                         "function": {"name": "go", "arguments": "{}"}},
                    ],
                },
                "logprobs": null,
                "finish_reason": "tool_calls",
            }],
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": 7,
                "total_tokens": 17,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        });
        assert_eq!(object(Form::default(), vec![everything()]).await, expected);
    }

    #[tokio::test]
    async fn several_answers_with_logprobs() {
        let answer = |text: &str, finish| {
            vec![Event::Logprobs(vec![logprob(text)]), content(text), done(finish)]
        };
        let form = Form { logprobs: true, ..Form::default() };
        let answers = vec![answer("a", Finish::Length), answer("b", Finish::StopText("x".into()))];
        let object = object(form, answers).await;
        assert_eq!(object["choices"][0]["finish_reason"], "length");
        assert_eq!(object["choices"][1]["finish_reason"], "stop");
        assert_eq!(object["choices"][1]["index"], 1);
        assert_eq!(object["choices"][1]["logprobs"]["content"][0]["token"], "b");
        assert_eq!(object["usage"]["completion_tokens"], 14);
    }

    #[tokio::test]
    async fn a_call_for_older_clients() {
        let form = Form { functions: true, ..Form::default() };
        let object = object(form, vec![everything()]).await;
        let message = &object["choices"][0]["message"];
        let call = json!({"name": "look", "arguments": "{\"x\":1}"});
        assert_eq!(message["function_call"], call);
        assert!(message.get("tool_calls").is_none());
        assert_eq!(object["choices"][0]["finish_reason"], "function_call");
    }

    #[tokio::test]
    async fn silence() {
        let object = object(Form::default(), vec![vec![done(Finish::Stop)]]).await;
        assert_eq!(object["choices"][0]["message"]["content"], "");
    }
}
