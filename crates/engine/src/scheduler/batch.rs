//! One micro-batch: whose tokens are in it.

use std::time::Duration;

use hypura_llama::{BatchToken, DecodeError, Token};

use super::Scheduler;
use super::slot::position;

/// While answers are given, the prompts in a step take about so long: whoever reads along waits no
/// longer for the next word.
const PROMPT_STEP: Duration = Duration::from_millis(500);
/// But so many tokens at least.
const PROMPT_TOKENS_MIN: usize = 16;
/// Of the newest measurement, so much counts.
const NEW_SHARE: f64 = 0.25;

/// A sequence's part of a micro-batch.
pub(super) struct Part {
    pub(super) slot: usize,
    pub(super) kind: PartKind,
    pub(super) tokens: Vec<Token>,
    /// Tokens of its prompt that were not known when it began, up to here.
    pub(super) computed_tokens: usize,
    /// Which token of the batch has logits: its last one.
    pub(super) output: i32,
}

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartKind {
    /// The next token of an answer.
    Answer,
    /// Some tokens of a prompt.
    Prompt,
}

impl Part {
    pub(super) fn prompt_tokens(&self) -> usize {
        if self.kind == PartKind::Prompt { self.tokens.len() } else { 0 }
    }
}

/// How fast prompts are computed.
#[derive(Debug, Default)]
pub(super) struct Pace {
    tokens_per_s: Option<f64>,
}

impl Pace {
    /// A step with so many tokens of prompts took so long.
    pub(super) fn computed(&mut self, prompt_tokens: usize, parts: usize, elapsed: Duration) {
        // What is mostly answers says nothing of prompts.
        if prompt_tokens < PROMPT_TOKENS_MIN.max(2 * parts) || elapsed.is_zero() {
            return;
        }
        let new = prompt_tokens as f64 / elapsed.as_secs_f64();
        let old = self.tokens_per_s.unwrap_or(new);
        self.tokens_per_s = Some(old + NEW_SHARE * (new - old));
    }

    /// Tokens of prompts in a step in which answers are given too.
    fn prompt_tokens(&self, room: usize) -> usize {
        let fitting = self.tokens_per_s.map_or(room, |rate| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate
            let tokens = (rate * PROMPT_STEP.as_secs_f64()) as usize;
            tokens
        });
        fitting.max(PROMPT_TOKENS_MIN).min(room)
    }
}

impl Scheduler {
    /// Chooses what is computed next.
    pub(super) fn compose(&mut self) -> Vec<Part> {
        let n = self.slots.len();
        let mut room = self.context.n_ubatch();
        let answering: Vec<usize> = (0..n)
            .filter(|&i| self.slots[i].active.as_ref().is_some_and(|a| a.next.is_some()))
            .take(room)
            .collect();
        let prompts: Vec<usize> = (0..n)
            .map(|i| (self.turn + i) % n)
            .filter(|&i| self.slots[i].active.as_ref().is_some_and(|a| a.next.is_none()))
            .collect();
        // A recurrent state takes steps of equal length only: llama.cpp would divide a mixed batch.
        let info = self.context.model().info();
        let is_stepwise = info.is_recurrent || info.is_hybrid;
        let mixes = !is_stepwise || answering.is_empty() || prompts.is_empty();
        let (with_answers, with_prompts) =
            if mixes { (true, true) } else { (self.prompts_last, !self.prompts_last) };
        self.prompts_last = with_prompts && !prompts.is_empty();

        let mut parts = Vec::new();
        if with_answers {
            for &i in &answering {
                let next = self.slots[i].active.as_ref().and_then(|active| active.next);
                parts.extend(next.map(|token| Part {
                    slot: i,
                    kind: PartKind::Answer,
                    tokens: vec![token],
                    computed_tokens: 0,
                    output: -1,
                }));
            }
            room -= parts.len();
        }
        if with_prompts {
            if !answering.is_empty() {
                room = self.pace.prompt_tokens(room);
            }
            for &i in prompts.iter().take(if is_stepwise { 1 } else { n }) {
                if room == 0 {
                    break;
                }
                self.turn = (i + 1) % n;
                let part = self.prompt_part(i, room);
                room -= part.tokens.len();
                parts.push(part);
            }
        }
        parts
    }

    /// The next tokens of a prompt, so many at most.
    fn prompt_part(&self, slot: usize, room: usize) -> Part {
        let at = &self.slots[slot];
        let Some(active) = &at.active else { unreachable!("a prompt without a request") };
        let from = at.tokens.len();
        let mut to = active.prompt.len().min(from + room);
        // A state that can't be cut is kept where the conversation may go on otherwise.
        if let (Some(turn), Some(attention)) = (active.request.turn_start, &self.attention)
            && attention.wants_prompt_end()
            && from < turn
        {
            to = to.min(turn);
        }
        Part {
            slot,
            kind: PartKind::Prompt,
            tokens: active.prompt.get(from..to).unwrap_or_default().to_vec(),
            computed_tokens: to.saturating_sub(active.reused_tokens()),
            output: -1,
        }
    }

    /// Computes a micro-batch.
    pub(super) fn compute(&mut self, parts: &mut [Part]) -> Result<(), DecodeError> {
        let mut batch = Vec::new();
        for part in parts.iter_mut() {
            let slot = &self.slots[part.slot];
            let Some(active) = &slot.active else { continue };
            let from = slot.tokens.len();
            let end = from + part.tokens.len();
            let wants_output = part.kind == PartKind::Answer || end == active.prompt.len();
            batch.extend(part.tokens.iter().enumerate().map(|(i, &token)| BatchToken {
                token,
                pos: position(from + i),
                seq: slot.seq,
                output: wants_output && from + i + 1 == end,
            }));
            part.output = position(batch.len() - 1);
        }
        self.context.decode(&batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_leave_time_for_answers() {
        let mut pace = Pace::default();
        assert_eq!(pace.prompt_tokens(512), 512, "nothing is known yet");
        pace.computed(500, 1, Duration::from_secs(5));
        assert_eq!(pace.prompt_tokens(512), 50);
        pace.computed(3, 3, Duration::from_secs(5));
        assert_eq!(pace.prompt_tokens(512), 50, "mostly answers");
        pace.computed(100, 1, Duration::from_secs(100));
        assert_eq!(pace.prompt_tokens(20), 20);
        assert!(pace.prompt_tokens(512) >= PROMPT_TOKENS_MIN);
    }
}
