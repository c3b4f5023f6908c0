//! Generating text with one sequence of a context.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hypura_grammar::{ConstraintError, Rule};
use hypura_llama::{
    BatchToken, Context, ContextError, DecodeError, EmbedError, Sampler, SamplerParams, Token,
};

use sha2::{Digest, Sha256};

use crate::attention::{Attention, KvUse, Restored};
use crate::engine::Settled;
use crate::stream::{Segment, Shared, StreamStats};
use crate::text::{StopFilter, Utf8Assembler};

/// What is to be generated.
#[derive(Debug, Clone)]
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

/// Tokens of an answer during which experts that it needs find their slots; later ones are counted
/// apart.
pub const FILL_TOKENS: usize = 32;

/// Why nothing (more) could be generated.
#[derive(Debug, thiserror::Error)]
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

/// Told what happens; answers whether to go on.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(Update) -> bool;

/// A context with one sequence, and what is in it.
pub(crate) struct Sequence {
    context: Context,
    tokens: Vec<Token>,
    /// Whether the state holds these tokens and no other ones.
    whole: bool,
    /// How far layers with a sliding window look back, in tokens; 0 when there are none.
    n_swa: usize,
    stream: Option<Arc<Shared>>,
    /// Where attention state is kept beside the context.
    attention: Option<Attention>,
    abort: Arc<AtomicBool>,
}

impl Sequence {
    pub(crate) fn new(
        context: Context,
        stream: Option<Arc<Shared>>,
        attention: Option<Attention>,
    ) -> Sequence {
        let abort = context.abort_flag();
        let n_swa = context.model().info().n_swa as usize;
        Sequence { context, tokens: Vec::new(), whole: true, n_swa, stream, attention, abort }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn abort_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.abort)
    }

    fn stats(&self) -> StreamStats {
        self.stream.as_ref().map(|shared| shared.stats()).unwrap_or_default()
    }

    /// Generates an answer; tells `sink` about it as it comes, which answers whether to go on.
    pub(crate) fn generate(
        &mut self,
        request: &GenerateRequest,
        sink: Sink<'_>,
    ) -> Result<Generated, GenerateError> {
        let begin = Instant::now();
        let n_ctx = self.context.n_ctx() as usize;
        let prompt_tokens = request.prompt.len();
        if prompt_tokens == 0 {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt_tokens > n_ctx {
            return Err(GenerateError::PromptTooLong { prompt_tokens, n_ctx });
        }
        let n_vocab = self.context.model().vocab().n_tokens();
        let mut sampler =
            Sampler::new(&request.sampler, n_vocab).ok_or(GenerateError::Internal("no sampler"))?;
        for &token in &request.prompt {
            sampler.accept(token);
        }
        let before = self.stats();
        let mut answer = Answer::new(request, sink);
        self.context.revive()?;
        if let Some(attention) = &mut self.attention {
            attention.turn_begins();
        }
        let mut kv = KvUse::default();
        let reused_tokens = self.keep_prefix(&request.prompt, &mut kv);
        let prompt_begin = Instant::now();
        let prompt = self.compute_prompt(&request.prompt, answer.sink);
        let prompt_time = prompt_begin.elapsed();
        let after_prompt = self.stats();
        if let Some(shared) = &self.stream {
            // Those of the prompt.
            drop(shared.take_segments());
        }
        let mut ttft = prompt_time;
        let mut first: Option<Instant> = None;
        let mut filling = None;
        let mut logits_hash = request.hash_logits.then(Sha256::new);
        let outcome = match prompt {
            Ok(()) => loop {
                if let (Some(hash), Some(row)) = (&mut logits_hash, self.context.logits(-1)) {
                    row.iter().for_each(|logit| hash.update(logit.to_le_bytes()));
                }
                let Some(token) = sampler.sample(&mut self.context, -1) else {
                    return Err(GenerateError::Internal("no logits"));
                };
                if first.is_none() {
                    ttft = begin.elapsed();
                    first = Some(Instant::now());
                }
                let vocab = self.context.model().vocab();
                if vocab.is_end_of_generation(token) && !request.ignore_end {
                    break Ok(Finish::EndOfText);
                }
                let piece = vocab.piece(token, false);
                if let Some(finish) = answer.push(token, &piece) {
                    break Ok(finish);
                }
                if answer.tokens.len() == FILL_TOKENS
                    && let Some(first) = first
                {
                    filling = Some((first.elapsed(), self.stats().since(&after_prompt)));
                }
                if self.tokens.len() >= n_ctx {
                    break Ok(Finish::ContextFull);
                }
                let position = position(self.tokens.len());
                let next = BatchToken { token, pos: position, seq: 0, output: true };
                if let Err(error) = self.decode(&[next]) {
                    break Err(error);
                }
                if let Some(attention) = &mut self.attention {
                    attention.answer_grew(&mut self.context, &self.tokens);
                }
            },
            Err(error) => Err(error),
        };
        let finish = match outcome {
            Ok(finish) => finish,
            Err(DecodeError::Aborted) => Finish::Interrupted,
            Err(error) => return Err(error.into()),
        };
        let (text, tokens) = answer.finish();
        let decode_time = first.map_or(Duration::ZERO, |at| at.elapsed());
        if let Some(attention) = &mut self.attention {
            kv.export_time = attention.export_time();
            attention.turn_ended(&mut self.context, &self.tokens);
        }
        Ok(Generated {
            is_exact: self.context.model().vocab().spells(&tokens, text.as_bytes()),
            text,
            tokens,
            finish,
            prompt_tokens,
            reused_tokens,
            kv,
            logits_sha256: logits_hash.map(|hash| hypura_kv::hex(&hash.finalize())),
            ttft,
            prompt_time,
            decode_time,
            prompt_stream: after_prompt.since(&before),
            decode_stream: self.stats().since(&after_prompt),
            filling,
            decode_segments: self.stream.as_ref().and_then(|shared| shared.take_segments()),
        })
    }

    /// Cuts the state back to what it shares with `prompt`, less the last token, whose logits are
    /// needed. Returns how many tokens stay.
    /// What is kept elsewhere is restored if that is more.
    fn keep_prefix(&mut self, prompt: &[Token], usage: &mut KvUse) -> usize {
        let shared = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let shared = shared.min(prompt.len() - 1);
        if let Some(attention) = &mut self.attention {
            let kept = if can_keep(&self.context, &self.tokens, self.whole, self.n_swa, shared) {
                shared
            } else {
                0
            };
            match attention.restore(&mut self.context, prompt, kept, usage) {
                Restored::Nothing => {}
                Restored::Tokens(n) => {
                    self.tokens = prompt[..n].to_vec();
                    self.whole = true;
                    if usage.lost_blocks > 0 {
                        tracing::warn!(
                            "some of the attention state that was kept is missing or damaged; \
                             it is computed again"
                        );
                    }
                    return n;
                }
            }
        }
        self.cut(shared);
        self.tokens.len()
    }

    /// Forgets all tokens from `keep` on; all of them when the model's state can't be cut, or when
    /// layers with a sliding window have forgotten what the next token looks back at.
    fn cut(&mut self, keep: usize) {
        let untouched = keep == self.tokens.len() && self.whole;
        let is_cut = keep > 0 && (untouched || self.context.forget(0, position(keep), -1));
        if is_cut && has_window(&self.context, self.n_swa, keep) {
            if let Some(attention) = &mut self.attention {
                attention.cut(&self.tokens, keep);
            }
            self.tokens.truncate(keep);
        } else {
            self.clear();
        }
        self.whole = true;
    }

    fn clear(&mut self) {
        self.context.clear();
        self.tokens.clear();
        if let Some(attention) = &mut self.attention {
            attention.cleared();
        }
    }

    /// Goes on with somebody else's attention state; what is in the context is forgotten.
    pub(crate) fn set_tenant(&mut self, tenant: &str) {
        let is_other = self.attention.as_ref().is_some_and(|a| a.fields().tenant != tenant);
        if !is_other {
            return;
        }
        if !self.context.is_released() {
            self.clear();
        }
        if let Some(attention) = &mut self.attention {
            attention.set_tenant(tenant);
        }
    }

    /// Waits until what is kept of the attention state is written.
    pub(crate) fn settle(&mut self, at_most: Duration) -> Option<Settled> {
        let attention = self.attention.as_mut()?;
        let begin = Instant::now();
        let left = || at_most.saturating_sub(begin.elapsed());
        let mut is_complete = attention.store().flush(left());
        while !self.context.is_released()
            && is_complete
            && !left().is_zero()
            && attention.refill(&mut self.context, &self.tokens)
        {
            is_complete = attention.store().flush(left());
        }
        let store = attention.store();
        Some(Settled {
            is_complete,
            is_released: self.context.is_released(),
            stats: store.stats(),
            health: store.health(),
        })
    }

    /// Nobody has asked for anything for a while. Completes what is kept of the attention state, a
    /// little at a time, and gives its memory back if that was asked for. True if there may be more
    /// to do.
    pub(crate) fn idle(&mut self, idle_for: Duration) -> bool {
        let Some(attention) = &mut self.attention else { return false };
        if self.context.is_released() || self.tokens.is_empty() {
            return false;
        }
        if attention.refill(&mut self.context, &self.tokens) {
            return true;
        }
        let Some(hot) = attention.options().hot else { return false };
        if attention.fits(hot, self.tokens.len()) {
            return false;
        }
        if idle_for < attention.options().idle {
            return true;
        }
        // What could not be written stays where it is.
        if attention.has_all(&self.tokens) {
            self.tokens.clear();
            attention.cleared();
            self.context.release();
            hypura_llama::process::trim();
        }
        false
    }

    fn compute_prompt(&mut self, prompt: &[Token], sink: Sink<'_>) -> Result<(), DecodeError> {
        let (begin, known, total) = (Instant::now(), self.tokens.len(), prompt.len());
        while self.tokens.len() < total {
            let from = self.tokens.len();
            // One micro-batch at a time, which is how llama.cpp would divide a larger batch.
            let to = total.min(from + self.context.n_ubatch());
            let batch: Vec<BatchToken> = (from..to)
                .map(|i| BatchToken {
                    token: prompt[i],
                    pos: position(i),
                    seq: 0,
                    output: i + 1 == total,
                })
                .collect();
            self.decode(&batch)?;
            if let Some(attention) = &mut self.attention {
                attention.prompt_grew(&mut self.context, &self.tokens);
            }
            if !sink(Update::Prompt { done: to, total }) {
                return Err(DecodeError::Aborted);
            }
        }
        if let Some(attention) = &mut self.attention {
            attention.rates().computed(total - known, begin.elapsed());
            if attention.wants_prompt_end() {
                attention.turn_ended(&mut self.context, &self.tokens);
            }
        }
        Ok(())
    }

    fn decode(&mut self, batch: &[BatchToken]) -> Result<(), DecodeError> {
        if self.abort.load(Ordering::Relaxed) {
            return Err(DecodeError::Aborted);
        }
        match self.context.decode(batch) {
            Ok(()) => {
                self.tokens.extend(batch.iter().map(|t| t.token));
                Ok(())
            }
            Err(error) => {
                // Part of the batch may be in the state.
                self.whole = false;
                self.cut(self.tokens.len());
                Err(error)
            }
        }
    }
}

/// Whether the first `keep` of a context's tokens can stay without the others.
fn can_keep(context: &Context, tokens: &[Token], whole: bool, n_swa: usize, keep: usize) -> bool {
    let info = context.model().info();
    let untouched = keep == tokens.len() && whole;
    keep > 0
        && (untouched || !info.is_recurrent && !info.is_hybrid)
        && has_window(context, n_swa, keep)
}

/// Whether layers with a sliding window still have what a token at `keep` looks back at.
fn has_window(context: &Context, n_swa: usize, keep: usize) -> bool {
    let first = || context.first_position(0);
    n_swa == 0 || usize::try_from(first()).is_ok_and(|first| first <= keep.saturating_sub(n_swa))
}

/// The answer as it grows.
struct Answer<'a> {
    sink: Sink<'a>,
    gone: bool,
    max_tokens: usize,
    utf8: Utf8Assembler,
    filter: StopFilter,
    text: String,
    tokens: Vec<Token>,
    stopped: bool,
}

impl<'a> Answer<'a> {
    fn new(request: &GenerateRequest, sink: Sink<'a>) -> Answer<'a> {
        Answer {
            sink,
            gone: false,
            max_tokens: request.max_tokens.unwrap_or(usize::MAX),
            utf8: Utf8Assembler::default(),
            filter: StopFilter::new(&request.stop),
            text: String::new(),
            tokens: Vec::new(),
            stopped: false,
        }
    }

    fn push(&mut self, token: Token, piece: &[u8]) -> Option<Finish> {
        if self.max_tokens == 0 {
            return Some(Finish::Length);
        }
        self.tokens.push(token);
        let whole = self.utf8.push(piece);
        let filtered = self.filter.push(&whole);
        self.emit(filtered.text);
        if let Some(stop) = filtered.stop {
            self.stopped = true;
            return Some(Finish::Stop(stop));
        }
        if self.gone {
            return Some(Finish::Interrupted);
        }
        (self.tokens.len() >= self.max_tokens).then_some(Finish::Length)
    }

    fn emit(&mut self, text: String) {
        if !text.is_empty() {
            self.text.push_str(&text);
            self.gone |= !(self.sink)(Update::Text(text));
        }
    }

    fn finish(mut self) -> (String, Vec<Token>) {
        if !self.stopped {
            let rest = self.utf8.finish();
            let filtered = self.filter.push(&rest);
            self.emit(filtered.text);
            if filtered.stop.is_none() {
                let held = self.filter.finish();
                self.emit(held);
            }
        }
        (self.text, self.tokens)
    }
}

fn position(i: usize) -> i32 {
    i32::try_from(i).unwrap_or(i32::MAX)
}
