//! What is done with the context beside answering.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hypura_llama::{DecodeError, EmbedError, SCRATCH_SEQUENCES, Token};

use super::Scheduler;
use super::slot::{Slot, position};
use crate::engine::Settled;
use crate::generate::GenerateError;

impl Scheduler {
    /// Waits until what is kept of the attention state is written.
    pub(crate) fn settle(&mut self, at_most: Duration) -> Option<Settled> {
        let begin = Instant::now();
        let left = || at_most.saturating_sub(begin.elapsed());
        let mut is_complete = self.attention.as_ref()?.store().flush(left());
        while !self.context.is_released() && is_complete && !left().is_zero() && self.refill() {
            is_complete = self.attention.as_ref()?.store().flush(left());
        }
        let store = self.attention.as_ref()?.store();
        Some(Settled {
            is_complete,
            is_released: self.context.is_released(),
            stats: store.stats(),
            health: store.health(),
        })
    }

    /// Offers the tiers again what they have not. True if there may be more to do.
    fn refill(&mut self) -> bool {
        let Some(attention) = &mut self.attention else { return false };
        let mut more = false;
        for slot in self.slots.iter_mut().filter(|slot| !slot.tokens.is_empty()) {
            if let Some(track) = &mut slot.track {
                more |= attention.refill(track, &mut self.context, &slot.tokens);
            }
        }
        more
    }

    /// Nobody has asked for anything for a while. Completes what is kept of the attention state, a
    /// little at a time, and gives its memory back if that was asked for. True if there may be more
    /// to do.
    pub(crate) fn idle(&mut self, idle_for: Duration) -> bool {
        let tokens: usize = self.slots.iter().map(|slot| slot.tokens.len()).sum();
        if self.attention.is_none() || self.context.is_released() || tokens == 0 {
            return false;
        }
        if self.refill() {
            return true;
        }
        let Some(attention) = &self.attention else { return false };
        let Some(hot) = attention.options().hot else { return false };
        if attention.fits(hot, tokens) {
            return false;
        }
        if idle_for < attention.options().idle {
            return true;
        }
        // What could not be written stays where it is.
        if self.slots.iter().all(|slot| slot.is_kept(attention)) {
            self.slots.iter_mut().for_each(Slot::cleared);
            self.context.release();
            hypura_llama::process::trim();
            self.report();
        }
        false
    }

    /// The embedding of some tokens; `None` while there is no room for them.
    pub(crate) fn embed(&mut self, tokens: &[Token]) -> Option<Result<Vec<f32>, GenerateError>> {
        let n_ctx = self.context.n_ctx() as usize;
        if tokens.len() > n_ctx {
            let prompt_tokens = tokens.len();
            return Some(Err(GenerateError::PromptTooLong { prompt_tokens, n_ctx }));
        }
        if let Err(error) = self.context.revive() {
            return Some(Err(error.into()));
        }
        let used = |slots: &[Slot]| slots.iter().map(|slot| slot.tokens.len()).sum::<usize>();
        while used(&self.slots) + tokens.len() > n_ctx {
            if !self.give_up_idle(None) {
                return None;
            }
        }
        // The sequence that blocks are made with is empty; without it, one that is idle is emptied.
        let has_scratch = self.context.params().n_seq_max as usize > self.slots.len();
        let seq = if has_scratch {
            position((self.context.params().n_seq_max - SCRATCH_SEQUENCES) as usize)
        } else {
            let slot = self.slots.iter_mut().find(|slot| slot.is_idle())?;
            slot.clear(&mut self.context);
            slot.seq
        };
        let is_aborted = self.context.abort_flag().load(Ordering::Relaxed);
        if is_aborted && !self.board.take_cancel() {
            return Some(Err(DecodeError::Aborted.into()));
        }
        match self.context.embed(seq, tokens) {
            // Somebody else's request was cancelled: this one is computed again.
            Err(EmbedError::Decode(DecodeError::Aborted)) if self.board.take_cancel() => None,
            result => Some(result.map_err(GenerateError::from)),
        }
    }

    /// Whether nobody waits for a request any more.
    pub(crate) fn is_cancelled(&self, id: u64) -> bool {
        self.board.is_cancelled(id)
    }

    /// A request has ended that was none of the sequences'.
    pub(crate) fn forget(&self, id: u64) {
        self.board.ended(id);
    }
}
