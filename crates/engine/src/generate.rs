//! What can be asked of an engine, and what comes of it.

use std::time::Duration;

use hypura_grammar::{ConstraintError, Rule};
use hypura_llama::{ContextError, DecodeError, EmbedError, SamplerParams, Token};

use crate::attention::KvUse;
use crate::stream::{Segment, StreamStats};

/// What is to be generated.
#[derive(Debug, Clone, Default)]
pub struct GenerateRequest {
    /// The prompt, in tokens.
    pub prompt: Vec<Token>,
    /// At most so many tokens; `None` is until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampler: SamplerParams,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after the model's own end of text.
    pub ignore_end: bool,
    /// Make a hash of the logits that tokens were chosen from, to compare runs by.
    pub hash_logits: bool,
    /// Tell the probability of each token chosen, and of so many of the likeliest.
    pub logprobs: Option<usize>,
    /// The form that the answer must have.
    pub constraint: Option<Constrained>,
    /// Write control tokens (`<|channel|>` and the like) out in the answer's text.
    pub write_control: bool,
    /// Tokens of the prompt before the beginning of an answer is added to it: a conversation that
    /// goes on begins with them, whatever its template makes of the answer.
    pub turn_start: Option<usize>,
    /// Whose attention state it is; `None`: whoever was set last ([`crate::Engine::set_tenant`]).
    pub tenant: Option<String>,
}

/// The form that an answer must have.
#[derive(Debug, Clone, PartialEq)]
pub struct Constrained {
    /// The form.
    pub rule: Rule,
    /// It holds from behind this text on (the end of reasoning); from the beginning if `None`.
    pub after: Option<String>,
}

/// A token that was chosen, and the likeliest ones.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenChoice {
    /// The token.
    pub token: Token,
    /// Its bytes, control tokens written out; they need not be whole characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, as the model gives it: before sampling.
    pub logprob: f32,
    /// The likeliest tokens with theirs, most likely first.
    pub top: Vec<(Token, Vec<u8>, f32)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The model said so.
    EndOfText,
    /// This stop string came.
    Stop(String),
    /// `max_tokens` were generated.
    Length,
    /// The context is full.
    ContextFull,
    /// Somebody interrupted it.
    Interrupted,
}

/// What happens on the way.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// It has a place, and begins.
    Begin,
    /// So many tokens of the prompt are computed.
    Prompt {
        /// Done.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// A token was chosen; its text comes next, if it makes some. Only if that was asked for.
    Token(Box<TokenChoice>),
    /// A piece of the answer: whole characters.
    Text(String),
}

/// An answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Generated {
    /// The text, without stop string.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were known already.
    pub reused_tokens: usize,
    /// What the tiers of attention state did for it.
    pub kv: KvUse,
    /// SHA-256 of all logits that tokens were chosen from, if that was asked for.
    pub logits_sha256: Option<String>,
    /// Whether the text stands for exactly these tokens: nothing was held back or left out.
    pub is_exact: bool,
    /// Waiting for a place.
    pub queue_time: Duration,
    /// From the beginning to the first token.
    pub ttft: Duration,
    /// Time for the prompt's tokens that were computed.
    pub prompt_time: Duration,
    /// Time for all tokens after the first.
    pub decode_time: Duration,
    /// What streaming did for the prompt.
    pub prompt_stream: StreamStats,
    /// What streaming did for the tokens after it.
    pub decode_stream: StreamStats,
    /// Of the time for tokens after the first, that for the first [`FILL_TOKENS`] of the answer,
    /// and what streaming did meanwhile; `None` if the answer is shorter.
    pub filling: Option<(Duration, StreamStats)>,
    /// What each layer computed and missed for the tokens after the first, if that was kept.
    pub decode_segments: Option<Vec<Segment>>,
}

impl Generated {
    /// An answer that took no time.
    pub fn new(text: String, tokens: Vec<Token>, finish: Finish) -> Generated {
        Generated {
            text,
            tokens,
            finish,
            prompt_tokens: 0,
            reused_tokens: 0,
            kv: KvUse::default(),
            logits_sha256: None,
            is_exact: true,
            queue_time: Duration::ZERO,
            ttft: Duration::ZERO,
            prompt_time: Duration::ZERO,
            decode_time: Duration::ZERO,
            prompt_stream: StreamStats::default(),
            decode_stream: StreamStats::default(),
            filling: None,
            decode_segments: None,
        }
    }
}

/// Tokens of an answer during which experts that it needs find their slots; later ones are counted
/// apart.
pub const FILL_TOKENS: usize = 32;

/// Why nothing (more) could be generated.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompt has no tokens.
    #[error("the prompt is empty; say something")]
    EmptyPrompt,
    /// The prompt does not fit the context.
    #[error(
        "the prompt has {prompt_tokens} tokens, but the context holds {n_ctx}; \
         shorten it or raise --ctx"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of context.
        n_ctx: usize,
    },
    /// The form that was asked for is none.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The computation failed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// There is no embedding.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The memory of an idle conversation was given back, and can't be had again.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// llama.cpp gave no logits or no sampler: a bug.
    #[error("internal error: {0}")]
    Internal(&'static str),
}
