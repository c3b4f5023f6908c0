//! A whole answer: `message`.

use serde_json::{Map, Value, json};

use super::super::blocks::{Block, Collected};
use crate::answer::{Finish, Summary};

/// What a message begins with.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) id: String,
    /// The model, as the client called it.
    pub(super) model: String,
}

/// The object for a whole answer.
pub(super) fn message(head: &Head, answer: &Collected) -> Value {
    let content: Vec<Value> = answer.blocks.iter().map(block).collect();
    let (reason, sequence) = stop(&answer.summary.finish);
    let mut message = begun(head);
    message["content"] = content.into();
    message["stop_reason"] = reason.into();
    message["stop_sequence"] = sequence.into();
    message["usage"] = usage(&answer.summary);
    message
}

/// A message that has only begun.
pub(super) fn begun(head: &Head) -> Value {
    json!({
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    })
}

/// A block of content. A call that was broken off has no input: half of one is of no use.
pub(super) fn block(block: &Block) -> Value {
    match block {
        Block::Reasoning { text } => {
            json!({"type": "thinking", "thinking": text, "signature": ""})
        }
        Block::Text { text, .. } => json!({"type": "text", "text": text}),
        Block::Call { id, name, arguments } => {
            let input: Option<Map<String, Value>> = serde_json::from_str(arguments).ok();
            json!({"type": "tool_use", "id": id, "name": name, "input": input.unwrap_or_default()})
        }
    }
}

/// Why an answer ended, and by which text, in Anthropic's words.
pub(super) fn stop(finish: &Finish) -> (&'static str, Option<&str>) {
    match finish {
        Finish::Length => ("max_tokens", None),
        Finish::ToolCalls => ("tool_use", None),
        Finish::StopText(text) => ("stop_sequence", Some(text)),
        Finish::Stop | Finish::Cancelled => ("end_turn", None),
    }
}

/// The tokens of an answer. What was known of the prompt counts apart from the rest.
pub(super) fn usage(summary: &Summary) -> Value {
    json!({
        "input_tokens": summary.prompt_tokens.saturating_sub(summary.reused_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": summary.reused_tokens,
        "output_tokens": summary.generated_tokens,
        "output_tokens_details": {"thinking_tokens": summary.reasoning_tokens},
    })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::super::super::blocks::collect;
    use super::super::super::blocks::tests::{call, content, done, everything};
    use super::*;
    use crate::answer::Event;

    async fn object(events: Vec<Event>) -> Value {
        let collected = collect(stream::iter(events.into_iter().map(Ok))).await.unwrap();
        message(&Head { id: "msg_1".into(), model: "demo".into() }, &collected)
    }

    #[tokio::test]
    async fn an_answer_with_everything() {
        let expected = json!({
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "demo",
            "content": [
                {"type": "thinking", "thinking": "hmm", "signature": ""},
                {"type": "text", "text": "Hello"},
                {"type": "tool_use", "id": "call_0", "name": "look", "input": {"x": 1}},
                {"type": "tool_use", "id": "call_1", "name": "go", "input": {}},
            ],
            "stop_reason": "tool_use",
            "stop_sequence": null,
            "usage": {
                "input_tokens": 6,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 4,
                "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": 2},
            },
        });
        assert_eq!(object(everything()).await, expected);
    }

    #[tokio::test]
    async fn reasons_to_stop() {
        let reasons = async |finish| {
            let object = object(vec![content("a"), done(finish)]).await;
            (object["stop_reason"].clone(), object["stop_sequence"].clone())
        };
        assert_eq!(reasons(Finish::Stop).await, (json!("end_turn"), json!(null)));
        assert_eq!(reasons(Finish::Length).await, (json!("max_tokens"), json!(null)));
        let by_text = reasons(Finish::StopText("END".into())).await;
        assert_eq!(by_text, (json!("stop_sequence"), json!("END")));
    }

    #[tokio::test]
    async fn half_a_call_has_no_input() {
        let mut events = call(0, "look", [r#"{"x":"#, ""]);
        events.pop();
        events.push(done(Finish::Length));
        let object = object(events).await;
        assert_eq!(object["content"][0]["input"], json!({}));
    }
}
