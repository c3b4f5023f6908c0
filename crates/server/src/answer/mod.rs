//! What all APIs have in common: from a question to the events of its answer.
//!
//! A wire format turns its request into an [`Ask`], calls [`ask`], and writes the [`Event`]s in its
//! own form. Templates, tokens, memory of what was said, queueing and cancelling are here.

mod embed;
mod memory;
mod prompt;
mod stream;

use std::time::Duration;

use hypura_chat::{Conversation, Delta};
use hypura_engine::llama::Token;
use hypura_grammar::Rule;

pub use embed::{EmbedAsk, EmbedInput, Embedded, embed};
pub(crate) use memory::Memory;
pub(crate) use stream::blocking;
pub use stream::{Answer, ask, count};

/// A question to a model.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The model's name, as the client said it.
    pub model: String,
    /// What is asked.
    pub input: Input,
    /// How tokens are chosen: what the client said of it.
    pub sampling: Sampling,
    /// Tokens of the answer at most; `None` until it ends or the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; `None` leaves it to the model's own settings.
    pub stop: Option<Vec<String>>,
    /// The form that the answer must have. After reasoning, if there is any.
    pub format: Option<Rule>,
    /// Whether tools are called.
    pub tool_choice: ToolChoice,
    /// Whether one answer may call several tools.
    pub parallel_tool_calls: bool,
    /// Log probabilities of the chosen tokens, and of so many of the likeliest for each.
    pub logprobs: Option<usize>,
    /// What is done with a prompt that is longer than the context.
    pub overflow: Overflow,
    /// How long the model stays loaded afterwards; `None` leaves it to the server.
    pub keep_alive: Option<KeepAlive>,
    /// Tokens of context that the client wants; the model is loaded anew if it has fewer.
    pub num_ctx: Option<u32>,
    /// Whose attention state it is: nothing is shared between tenants.
    pub tenant: String,
}

impl Ask {
    /// A question with nothing said about how to answer it.
    pub fn new(model: impl Into<String>, input: Input, tenant: impl Into<String>) -> Ask {
        Ask {
            model: model.into(),
            input,
            sampling: Sampling::default(),
            max_tokens: None,
            stop: None,
            format: None,
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            logprobs: None,
            overflow: Overflow::Refuse,
            keep_alive: None,
            num_ctx: None,
            tenant: tenant.into(),
        }
    }
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Input {
    /// A conversation: rendered by the model's chat template; reasoning and tool calls of the answer
    /// are told apart.
    Chat(Conversation),
    /// Text that the model continues as it stands; the answer is content alone.
    Text(String),
    /// Tokens that the model continues.
    Tokens(Vec<Token>),
    /// Text that begins with what earlier tokens said (Ollama's `context`).
    After(Vec<Token>, String),
}

/// How tokens are chosen, where the client said so; the rest comes from the model's settings, then
/// from [`hypura_engine::llama::SamplerParams::default`].
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)] // as in `SamplerParams`
pub struct Sampling {
    pub temperature: Option<f32>,
    pub top_k: Option<i32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub repeat_last_n: Option<i32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    /// `None` or negative: a new one each time.
    pub seed: Option<i64>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(Token, f32)>,
}

/// Whether tools are called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// None is called: the model is not told of them.
    Never,
    /// One at least.
    Required,
    /// This one.
    Function(String),
}

/// What is done with a prompt that is longer than the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// It is an error.
    Refuse,
    /// The oldest messages are left out, but for the system's and the last (as Ollama does); of a
    /// text, its beginning.
    DropOldest,
}

/// How long a model stays loaded after its last answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// So long; zero unloads it at once.
    For(Duration),
    /// Until memory is needed.
    Forever,
}

/// What happens to an answer, in order.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The prompt is read (or known): the answer begins.
    Begin,
    /// A piece of the answer.
    Delta(Delta),
    /// Tokens that the next deltas come from, with their probabilities; only if asked for.
    Logprobs(Vec<TokenLogprob>),
    /// The end. Nothing comes after it.
    Done(Box<Summary>),
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: Token,
    /// Its bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability before sampling.
    pub logprob: f32,
    /// The likeliest tokens, most likely first.
    pub top: Vec<(Token, Vec<u8>, f32)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// This stop text came.
    StopText(String),
    /// As many tokens as were allowed, or the context is full.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// The server shuts down, or the client went away.
    Cancelled,
}

/// An answer's numbers.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens whose attention state was known.
    pub reused_tokens: usize,
    /// Tokens of the answer, reasoning and calls included.
    pub generated_tokens: usize,
    /// Of these, tokens of reasoning (about: by where its text ends).
    pub reasoning_tokens: usize,
    /// Prompt and answer in tokens, as Ollama's `context` holds them.
    pub context: Vec<Token>,
    /// Loading the model.
    pub load_time: Duration,
    /// Waiting for a place.
    pub queue_time: Duration,
    /// Reading the prompt.
    pub prompt_time: Duration,
    /// From the request to the first token.
    pub ttft: Duration,
    /// The tokens after the first.
    pub decode_time: Duration,
    /// All of it.
    pub total_time: Duration,
}
