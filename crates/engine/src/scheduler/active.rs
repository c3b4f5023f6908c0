//! A request that waits, or is being answered.

use std::time::{Duration, Instant};

use hypura_grammar::Constraint;
use hypura_llama::{Context, Sampler, Token};
use sha2::{Digest, Sha256};

use crate::answer::Answer;
use crate::attention::KvUse;
use crate::generate::{
    FILL_TOKENS, Finish, GenerateError, GenerateRequest, Generated, TokenChoice, Update,
};
use crate::stream::{Segment, StreamStats};
use crate::ticket::{Happening, Sink};

/// A request, and how far it is.
pub(crate) struct Active {
    pub(super) id: u64,
    pub(super) request: GenerateRequest,
    /// What has to be in the sequence before the next token is chosen: the prompt, and what was
    /// answered before the request had to give way to others.
    pub(super) prompt: Vec<Token>,
    /// The token that was chosen last, which is not computed yet.
    pub(super) next: Option<Token>,
    /// Whether others were computed together with its prompt.
    pub(super) is_shared: bool,
    sink: Sink,
    is_gone: bool,
    answer: Answer,
    sampler: Sampler,
    constraint: Option<Gate>,
    logits_hash: Option<Sha256>,
    times: Times,
    pub(super) kv: KvUse,
    reused_tokens: usize,
}

struct Times {
    asked: Instant,
    begun: Option<Instant>,
    prompt_begun: Instant,
    prompt: Duration,
    first: Option<Instant>,
    filling: Option<(Duration, StreamStats)>,
    before: StreamStats,
    /// `None` until the prompt is computed.
    after_prompt: Option<StreamStats>,
}

/// A form that holds from somewhere on.
struct Gate {
    constraint: Constraint,
    /// The text that opens it, and the end of what came; `None` when it is open.
    closed: Option<(String, String)>,
}

/// What follows from a token that was chosen.
pub(super) enum Chosen {
    /// It is to be computed, and `next`.
    Next,
    /// The answer ends.
    End(Finish),
}

impl Active {
    /// A request that waits, with its form compiled; the sink back if there is no sampler.
    pub(crate) fn new(
        id: u64,
        request: GenerateRequest,
        constraint: Option<Constraint>,
        sink: Sink,
        n_vocab: usize,
    ) -> Result<Active, Sink> {
        let Some(mut sampler) = Sampler::new(&request.sampler, n_vocab) else { return Err(sink) };
        for &token in &request.prompt {
            sampler.accept(token);
        }
        let after = request.constraint.as_ref().and_then(|form| form.after.clone());
        let now = Instant::now();
        Ok(Active {
            id,
            prompt: request.prompt.clone(),
            next: None,
            is_shared: false,
            sink,
            is_gone: false,
            answer: Answer::new(&request),
            sampler,
            constraint: constraint.map(|constraint| Gate {
                constraint,
                closed: after.map(|after| (after, String::new())),
            }),
            logits_hash: request.hash_logits.then(Sha256::new),
            times: Times {
                asked: now,
                begun: None,
                prompt_begun: now,
                prompt: Duration::ZERO,
                first: None,
                filling: None,
                before: StreamStats::default(),
                after_prompt: None,
            },
            kv: KvUse::default(),
            reused_tokens: 0,
            request,
        })
    }

    /// Tells whoever asked; remembers when nobody listens any more.
    pub(super) fn tell(&mut self, update: Update) {
        self.is_gone |= !(self.sink)(Happening::Update(update));
    }

    /// Whether nobody listens any more.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// It has a sequence.
    pub(super) fn begin(&mut self, stats: StreamStats) {
        if self.times.begun.is_none() {
            self.times.begun = Some(Instant::now());
            self.times.before = stats;
            self.tell(Update::Begin);
        }
    }

    /// So many tokens of the prompt were known.
    pub(super) fn prompt_begins(&mut self, reused_tokens: usize) {
        if self.answer.tokens.is_empty() {
            self.reused_tokens = reused_tokens;
            self.times.prompt_begun = Instant::now();
        }
    }

    /// Tokens of the prompt that were known.
    pub(super) fn reused_tokens(&self) -> usize {
        self.reused_tokens
    }

    /// So many tokens of the prompt are computed.
    pub(super) fn prompt_grew(&mut self, done: usize) {
        // What was answered already is no prompt to whoever asked.
        if self.answer.tokens.is_empty() {
            self.tell(Update::Prompt { done, total: self.prompt.len() });
        }
    }

    /// All of the prompt is computed. Returns how long it took.
    pub(super) fn prompt_ended(&mut self, stats: StreamStats) -> Duration {
        if self.times.first.is_none() {
            self.times.prompt = self.times.prompt_begun.elapsed();
            self.times.after_prompt = Some(stats);
        }
        self.times.prompt
    }

    /// Chooses a token from output `index` of the last computation.
    pub(super) fn choose(
        &mut self,
        context: &mut Context,
        index: i32,
        stats: impl Fn() -> StreamStats,
    ) -> Result<Chosen, GenerateError> {
        let row = context.logits(index).ok_or(GenerateError::Internal("no logits"))?;
        if let Some(hash) = &mut self.logits_hash {
            row.iter().for_each(|logit| hash.update(logit.to_le_bytes()));
        }
        let rated = self.request.logprobs.map(|n| rate(row, n));
        if let Some(gate) = self.constraint.as_mut().filter(|gate| gate.closed.is_none()) {
            let mask = gate.constraint.mask()?;
            context.change_logits(index, |row| mask.apply(row));
        }
        let token = self.sampler.sample(context, index);
        let token = token.ok_or(GenerateError::Internal("no token"))?;
        if self.times.first.is_none() {
            self.times.first = Some(Instant::now());
        }
        let vocab = context.model().vocab();
        if vocab.is_end_of_generation(token) && !self.request.ignore_end {
            return Ok(Chosen::End(Finish::EndOfText));
        }
        let piece = vocab.piece(token, self.request.write_control);
        let mut must_end = false;
        if let Some(gate) = &mut self.constraint {
            must_end = gate.passed(token, &vocab.piece(token, true))?;
        }
        if let Some((logprobs, top)) = rated {
            let bytes = |token| vocab.piece(token, true);
            let of = |token: Token| {
                usize::try_from(token).ok().and_then(|i| logprobs.get(i)).copied().unwrap_or(0.0)
            };
            self.tell(Update::Token(Box::new(TokenChoice {
                token,
                bytes: bytes(token),
                logprob: of(token),
                top: top.into_iter().map(|token| (token, bytes(token), of(token))).collect(),
            })));
        }
        let (text, finish) = self.answer.push(token, &piece);
        if !text.is_empty() {
            self.tell(Update::Text(text));
        }
        if let Some(finish) = finish {
            return Ok(Chosen::End(finish));
        }
        if must_end {
            return Ok(Chosen::End(Finish::EndOfText));
        }
        if self.is_gone {
            return Ok(Chosen::End(Finish::Interrupted));
        }
        if self.answer.tokens.len() == FILL_TOKENS
            && let (Some(first), Some(after_prompt)) = (self.times.first, self.times.after_prompt)
        {
            self.times.filling = Some((first.elapsed(), stats().since(&after_prompt)));
        }
        self.next = Some(token);
        Ok(Chosen::Next)
    }

    /// The end. What was computed for it is told.
    pub(super) fn end(
        mut self,
        finish: Finish,
        context: &Context,
        stats: &StreamStats,
        decode_segments: Option<Vec<Segment>>,
    ) -> Numbers {
        let last = self.answer.finish();
        if !last.is_empty() {
            self.tell(Update::Text(last));
        }
        let Active { mut answer, mut times, mut sink, request, reused_tokens, .. } = self;
        let begun = times.begun.unwrap_or(times.asked);
        if times.begun.is_none() {
            times.before = *stats;
        }
        let first = times.first;
        let after_prompt = times.after_prompt.unwrap_or(*stats);
        let (text, tokens) = (std::mem::take(&mut answer.text), std::mem::take(&mut answer.tokens));
        let numbers = Numbers {
            prompt_tokens: request.prompt.len(),
            reused_tokens,
            generated_tokens: tokens.len(),
        };
        let generated = Generated {
            is_exact: context.model().vocab().spells(&tokens, text.as_bytes()),
            text,
            tokens,
            finish,
            prompt_tokens: numbers.prompt_tokens,
            reused_tokens,
            kv: self.kv,
            logits_sha256: self.logits_hash.map(|hash| hypura_kv::hex(&hash.finalize())),
            queue_time: begun - times.asked,
            ttft: first.map_or(times.prompt, |at| at - begun),
            prompt_time: times.prompt,
            decode_time: first.map_or(Duration::ZERO, |at| at.elapsed()),
            prompt_stream: after_prompt.since(&times.before),
            decode_stream: stats.since(&after_prompt),
            filling: times.filling,
            decode_segments,
        };
        sink(Happening::End(Ok(Box::new(generated))));
        numbers
    }

    /// It failed.
    pub(super) fn fail(mut self, error: GenerateError) {
        (self.sink)(Happening::End(Err(error)));
    }
}

/// An answer's numbers, for the sums.
pub(super) struct Numbers {
    pub(super) prompt_tokens: usize,
    pub(super) reused_tokens: usize,
    pub(super) generated_tokens: usize,
}

impl Gate {
    /// A token was chosen. True if nothing may follow.
    fn passed(&mut self, token: Token, piece: &[u8]) -> Result<bool, GenerateError> {
        match &mut self.closed {
            None => {
                let token = u32::try_from(token).unwrap_or(u32::MAX);
                self.constraint.accept(token)?;
                Ok(self.constraint.must_end())
            }
            Some((after, tail)) => {
                tail.push_str(&String::from_utf8_lossy(piece));
                if tail.contains(after.as_str()) {
                    self.closed = None;
                } else if let Some(cut) = tail.len().checked_sub(2 * after.len())
                    && let Some(cut) = (cut..tail.len()).find(|&i| tail.is_char_boundary(i))
                {
                    tail.drain(..cut);
                }
                Ok(false)
            }
        }
    }
}

/// Logarithms of probabilities (log-softmax), and the `n` likeliest tokens.
fn rate(row: &[f32], n: usize) -> (Vec<f32>, Vec<Token>) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    #[allow(clippy::cast_possible_truncation)] // f32 is what there is
    let log_sum = sum.ln() as f32;
    let logprobs: Vec<f32> = row.iter().map(|logit| logit - max - log_sum).collect();
    let mut order: Vec<usize> = (0..row.len()).collect();
    let n = n.min(row.len());
    let by_logit = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
    if n > 0 && n < order.len() {
        order.select_nth_unstable_by(n - 1, by_logit);
    }
    order.truncate(n);
    order.sort_by(by_logit);
    let top = order.into_iter().map(|i| Token::try_from(i).unwrap_or(Token::MAX)).collect();
    (logprobs, top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_to_one() {
        let (logprobs, top) = rate(&[1.0, 3.0, 2.0, 3.0], 3);
        let sum: f32 = logprobs.iter().map(|p| p.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(top, [1, 3, 2], "of equals the first");
        assert_eq!(rate(&[1.0], 5).1, [0]);
    }
}
