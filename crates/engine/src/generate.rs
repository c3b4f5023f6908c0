//! Generating text with one sequence of a context.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hypura_llama::{BatchToken, Context, DecodeError, Sampler, SamplerParams, Token};

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
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// So many tokens of the prompt are computed.
    Prompt {
        /// Done.
        done: usize,
        /// Of so many.
        total: usize,
    },
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
    /// The computation failed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
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
    abort: Arc<AtomicBool>,
}

impl Sequence {
    pub(crate) fn new(context: Context, stream: Option<Arc<Shared>>) -> Sequence {
        let abort = context.abort_flag();
        let n_swa = context.model().info().n_swa as usize;
        Sequence { context, tokens: Vec::new(), whole: true, n_swa, stream, abort }
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
        let reused_tokens = self.keep_prefix(&request.prompt);
        let prompt = self.compute_prompt(&request.prompt, answer.sink);
        let prompt_time = begin.elapsed();
        let after_prompt = self.stats();
        if let Some(shared) = &self.stream {
            // Those of the prompt.
            drop(shared.take_segments());
        }
        let mut ttft = prompt_time;
        let mut first: Option<Instant> = None;
        let mut filling = None;
        let outcome = match prompt {
            Ok(()) => loop {
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
        Ok(Generated {
            text,
            tokens,
            finish,
            prompt_tokens,
            reused_tokens,
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
    fn keep_prefix(&mut self, prompt: &[Token]) -> usize {
        let shared = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        self.cut(shared.min(prompt.len() - 1));
        self.tokens.len()
    }

    /// Forgets all tokens from `keep` on; all of them when the model's state can't be cut, or when
    /// layers with a sliding window have forgotten what the next token looks back at.
    fn cut(&mut self, keep: usize) {
        let untouched = keep == self.tokens.len() && self.whole;
        let is_cut = keep > 0 && (untouched || self.context.forget(0, position(keep), -1));
        let needed_from = keep.saturating_sub(self.n_swa);
        let has_window = || {
            let first = self.context.first_position(0);
            usize::try_from(first).is_ok_and(|first| first <= needed_from)
        };
        if is_cut && (self.n_swa == 0 || has_window()) {
            self.tokens.truncate(keep);
        } else {
            self.context.clear();
            self.tokens.clear();
        }
        self.whole = true;
    }

    fn compute_prompt(&mut self, prompt: &[Token], sink: Sink<'_>) -> Result<(), DecodeError> {
        let total = prompt.len();
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
            if !sink(Update::Prompt { done: to, total }) {
                return Err(DecodeError::Aborted);
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
