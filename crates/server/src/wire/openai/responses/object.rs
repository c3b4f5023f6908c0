//! The object `response` and the items in it.

use hypura_chat::Tool;
use serde_json::{Value, json};

use super::super::super::blocks::{Block, Collected};
use super::super::{Head, logprobs};
use crate::answer::{Finish, Summary, TokenLogprob};

/// What a response repeats of its request.
#[derive(Debug, Clone)]
pub(super) struct Echo {
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<usize>,
    pub(super) metadata: Value,
    pub(super) parallel_tool_calls: bool,
    pub(super) effort: Option<String>,
    pub(super) temperature: Option<f32>,
    pub(super) text_format: Value,
    pub(super) tool_choice: Value,
    pub(super) tools: Vec<Value>,
    pub(super) top_logprobs: usize,
    /// Whether texts come with log probabilities.
    pub(super) logprobs: bool,
    pub(super) top_p: Option<f32>,
    pub(super) truncation: Option<String>,
    pub(super) user: Option<String>,
}

impl Echo {
    /// A tool as it is repeated.
    pub(super) fn tool(tool: &Tool) -> Value {
        json!({
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict,
        })
    }
}

/// How far a response is.
pub(super) enum Status<'a> {
    InProgress,
    Done(&'a Summary),
    Failed { code: &'a str, message: &'a str },
}

/// The response for a whole answer.
pub(super) fn whole(head: &Head, echo: &Echo, answer: &Collected) -> Value {
    let output = output(head, echo, &answer.blocks, answer.cut);
    response(head, echo, output, &Status::Done(&answer.summary))
}

/// The items for these blocks, all complete but the one that was `cut`.
pub(super) fn output(head: &Head, echo: &Echo, blocks: &[Block], cut: Option<usize>) -> Vec<Value> {
    let items = blocks.iter().enumerate();
    items
        .map(|(index, block)| {
            let status = if cut == Some(index) { "incomplete" } else { "completed" };
            item(head, echo, index, block, status)
        })
        .collect()
}

/// The response object.
pub(super) fn response(head: &Head, echo: &Echo, output: Vec<Value>, status: &Status<'_>) -> Value {
    let (word, incomplete, error, usage) = match status {
        Status::InProgress => ("in_progress", Value::Null, Value::Null, Value::Null),
        Status::Done(summary) => match summary.finish {
            Finish::Length => {
                let details = json!({"reason": "max_output_tokens"});
                ("incomplete", details, Value::Null, usage(summary))
            }
            _ => ("completed", Value::Null, Value::Null, usage(summary)),
        },
        Status::Failed { code, message } => {
            ("failed", Value::Null, json!({"code": code, "message": message}), Value::Null)
        }
    };
    json!({
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "status": word,
        "background": false,
        "error": error,
        "incomplete_details": incomplete,
        "instructions": echo.instructions,
        "max_output_tokens": echo.max_output_tokens,
        "max_tool_calls": null,
        "metadata": echo.metadata,
        "model": head.model,
        "output": output,
        "parallel_tool_calls": echo.parallel_tool_calls,
        "previous_response_id": null,
        "reasoning": {"effort": echo.effort, "summary": null},
        "service_tier": "default",
        "store": false,
        "temperature": echo.temperature,
        "text": {"format": echo.text_format},
        "tool_choice": echo.tool_choice,
        "tools": echo.tools,
        "top_logprobs": echo.top_logprobs,
        "top_p": echo.top_p,
        "truncation": echo.truncation.as_deref().unwrap_or("disabled"),
        "usage": usage,
        "user": echo.user,
    })
}

fn usage(summary: &Summary) -> Value {
    json!({
        "input_tokens": summary.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": summary.reused_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": summary.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": summary.reasoning_tokens},
        "total_tokens": summary.prompt_tokens + summary.generated_tokens,
    })
}

/// The id of the item at this place: that of the response with the kind's prefix and the place.
pub(super) fn item_id(head: &Head, index: usize, block: &Block) -> String {
    let prefix = match block {
        Block::Reasoning { .. } => "rs_",
        Block::Text { .. } => "msg_",
        Block::Call { .. } => "fc_",
    };
    format!("{prefix}{}{index:02}", head.id.trim_start_matches("resp_"))
}

/// An item; one in progress has no parts.
pub(super) fn item(head: &Head, echo: &Echo, index: usize, block: &Block, status: &str) -> Value {
    let id = item_id(head, index, block);
    let has_parts = status != "in_progress";
    let content: Vec<Value> = part(echo, block).filter(|_| has_parts).into_iter().collect();
    match block {
        Block::Reasoning { .. } => json!({
            "id": id, "type": "reasoning", "summary": [], "content": content, "status": status,
        }),
        Block::Text { .. } => json!({
            "id": id, "type": "message", "status": status, "role": "assistant", "content": content,
        }),
        Block::Call { id: call_id, name, arguments } => json!({
            "id": id, "type": "function_call", "status": status, "call_id": call_id,
            "name": name, "arguments": arguments,
        }),
    }
}

/// The part of an item that has the text of its block; a call has none.
pub(super) fn part(echo: &Echo, block: &Block) -> Option<Value> {
    match block {
        Block::Reasoning { text } => Some(json!({"type": "reasoning_text", "text": text})),
        Block::Text { text, logprobs } => {
            let logprobs = entries(echo, logprobs);
            Some(json!({
                "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs,
            }))
        }
        Block::Call { .. } => None,
    }
}

/// Log probabilities, if they were asked for.
pub(super) fn entries(echo: &Echo, tokens: &[TokenLogprob]) -> Vec<Value> {
    if echo.logprobs { tokens.iter().map(logprobs::entry).collect() } else { Vec::new() }
}

#[cfg(test)]
pub(super) mod tests {
    use futures_util::stream;

    use super::super::super::super::blocks::collect;
    use super::super::super::super::blocks::tests::{content, done, everything};
    use super::*;
    use crate::answer::Event;

    pub(in super::super) fn echo() -> Echo {
        Echo {
            instructions: None,
            max_output_tokens: None,
            metadata: json!({}),
            parallel_tool_calls: true,
            effort: None,
            temperature: Some(0.5),
            text_format: json!({"type": "text"}),
            tool_choice: "auto".into(),
            tools: Vec::new(),
            top_logprobs: 0,
            logprobs: false,
            top_p: None,
            truncation: None,
            user: None,
        }
    }

    async fn object(events: Vec<Event>) -> Value {
        let collected = collect(stream::iter(events.into_iter().map(Ok))).await.unwrap();
        whole(&Head::fixed("resp_x"), &echo(), &collected)
    }

    #[tokio::test]
    async fn an_answer_with_everything() {
        let object = object(everything()).await;
        let part =
            json!({"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []});
        let call = |index: usize, name: &str, arguments: &str| {
            json!({
                "id": format!("fc_x0{}", index + 2), "type": "function_call",
                "status": "completed", "call_id": format!("call_{index}"), "name": name,
                "arguments": arguments,
            })
        };
        let expected = json!([
            {"id": "rs_x00", "type": "reasoning", "summary": [],
             "content": [{"type": "reasoning_text", "text": "hmm"}], "status": "completed"},
            {"id": "msg_x01", "type": "message", "status": "completed", "role": "assistant",
             "content": [part]},
            call(0, "look", "{\"x\":1}"),
            call(1, "go", "{}"),
        ]);
        assert_eq!(object["output"], expected);
        assert_eq!(object["status"], "completed");
        let usage = json!({
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 17,
        });
        assert_eq!(object["usage"], usage);
        assert_eq!(object["error"], Value::Null);
    }

    #[tokio::test]
    async fn an_answer_that_was_cut() {
        let object = object(vec![content("Hel"), done(Finish::Length)]).await;
        assert_eq!(object["status"], "incomplete");
        assert_eq!(object["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(object["output"][0]["status"], "incomplete");
    }
}
