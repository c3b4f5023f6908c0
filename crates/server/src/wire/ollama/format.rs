//! What answers look like: fields, their order, and which are left out when empty, as in Ollama's
//! `api/types.go`.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use hypura_engine::llama::Token;
use serde::Serialize;
use serde_json::Value;

use crate::answer::{Finish, Summary, TokenLogprob};

/// A line of `/api/chat`, or its only answer.
#[derive(Debug, Serialize)]
pub(super) struct ChatLine<'a> {
    pub(super) model: &'a str,
    pub(super) created_at: String,
    pub(super) message: AnswerMessage,
    pub(super) done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) logprobs: Vec<Logprob>,
    #[serde(flatten)]
    pub(super) metrics: Metrics,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hypura: Option<Extension>,
}

/// A line of `/api/generate`, or its only answer.
#[derive(Debug, Serialize)]
pub(super) struct GenerateLine<'a> {
    pub(super) model: &'a str,
    pub(super) created_at: String,
    pub(super) response: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) thinking: String,
    pub(super) done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) context: Vec<Token>,
    #[serde(flatten)]
    pub(super) metrics: Metrics,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) logprobs: Vec<Logprob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hypura: Option<Extension>,
}

/// What the model says, or a piece of it.
#[derive(Debug, Serialize)]
pub(super) struct AnswerMessage {
    pub(super) role: &'static str,
    pub(super) content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<AnswerCall>,
}

impl AnswerMessage {
    /// Nothing said.
    pub(super) fn empty() -> AnswerMessage {
        AnswerMessage {
            role: "assistant",
            content: String::new(),
            thinking: String::new(),
            tool_calls: Vec::new(),
        }
    }
}

/// A tool that the model calls.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct AnswerCall {
    pub(super) id: String,
    pub(super) function: AnswerFunction,
}

/// Which tool, and with what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct AnswerFunction {
    /// Counts the calls of an answer, from 0.
    pub(super) index: usize,
    pub(super) name: String,
    /// An object.
    pub(super) arguments: Value,
}

/// The numbers of an answer; durations in nanoseconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Metrics {
    #[serde(skip_serializing_if = "is_zero")]
    total_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    load_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_cached_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    eval_duration: u64,
}

impl Metrics {
    /// Of an answer; loading and the whole are measured by whoever asked.
    pub(super) fn of(summary: &Summary, load: Duration, total: Duration) -> Metrics {
        Metrics {
            total_duration: nanos(total),
            load_duration: nanos(load),
            prompt_eval_count: summary.prompt_tokens as u64,
            prompt_eval_cached_count: summary.reused_tokens as u64,
            prompt_eval_duration: nanos(summary.prompt_time),
            eval_count: summary.generated_tokens as u64,
            eval_duration: nanos(summary.decode_time),
        }
    }
}

/// What Hypura tells beside Ollama's fields.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Extension {
    /// Tokens of the prompt whose attention state was known.
    reused_tokens: usize,
    /// From the request to the first token, loading included.
    ttft_ms: f64,
    /// Waiting for a place.
    queue_ms: f64,
}

impl Extension {
    /// Of an answer by a model that took so long to load.
    pub(super) fn of(summary: &Summary, load: Duration) -> Extension {
        Extension {
            reused_tokens: summary.reused_tokens,
            ttft_ms: millis(summary.ttft + load),
            queue_ms: millis(summary.queue_time),
        }
    }
}

/// A token that was chosen, and the likeliest ones.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Logprob {
    #[serde(flatten)]
    chosen: OneLogprob,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_logprobs: Vec<OneLogprob>,
}

#[derive(Debug, PartialEq, Serialize)]
struct OneLogprob {
    token: String,
    logprob: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bytes: Vec<u8>,
}

impl From<TokenLogprob> for Logprob {
    fn from(token: TokenLogprob) -> Logprob {
        let one = |bytes: Vec<u8>, logprob| OneLogprob {
            token: String::from_utf8_lossy(&bytes).into_owned(),
            logprob,
            bytes,
        };
        Logprob {
            chosen: one(token.bytes, token.logprob),
            top_logprobs: token.top.into_iter().map(|(_, bytes, p)| one(bytes, p)).collect(),
        }
    }
}

/// Ollama's word for why an answer ended.
pub(super) fn done_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::Stop | Finish::StopText(_) | Finish::ToolCalls | Finish::Cancelled => "stop",
    }
}

/// A moment, as RFC 3339 with nanoseconds.
pub(super) fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// Nanoseconds.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds to a thousandth.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Whether a number is left out.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}
