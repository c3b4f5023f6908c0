//! Continuous batching: which tokens of which requests are computed together.
//!
//! Each step computes one micro-batch: the next token of every answer, and as much of the prompts
//! as there is room for. Weights that stream are read once per step, whoever needs them.
//!
//! ```text
//! waiting   first come, first served; of several clients, whoever has least under way
//!    | a free sequence, and cells for the prompt
//! slots     sequences of the context: prompt, answer, or idle with what was said last
//!    | cells run out
//! waiting   whoever came last gives way, and goes on later from where it was
//! ```
//!
//! The cells of attention state are one pool for all sequences. A request that is alone is computed
//! as if the context were its own: what else lies there goes first, if it can be read back. So its
//! answer is the one that a program with this one request gives, bit for bit.

mod active;
mod batch;
mod slot;
mod tiers;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use hypura_llama::{Context, DecodeError, Token};

pub(crate) use active::Active;
use active::Chosen;
use batch::{Pace, Part, PartKind};
use slot::Slot;

use crate::attention::{Attention, KvUse};
use crate::board::Board;
use crate::generate::{Finish, GenerateError};
use crate::status::{SequenceState, SequenceStatus, Totals};
use crate::stream::{Shared, StreamStats};

/// Cells that have to be free beside a prompt's before it is begun, unless the context is smaller.
const ROOM_TOKENS: usize = 64;

/// The sequences of a context, and who waits for one.
pub(crate) struct Scheduler {
    context: Context,
    slots: Vec<Slot>,
    waiting: VecDeque<Box<Active>>,
    stream: Option<Arc<Shared>>,
    attention: Option<Attention>,
    /// Of requests that name none.
    tenant: String,
    /// Counts requests.
    clock: u64,
    /// The slot whose prompt comes first in the next step.
    turn: usize,
    /// Whether prompts were computed last, where they are not mixed with answers.
    prompts_last: bool,
    pace: Pace,
    totals: Totals,
    board: Arc<Board>,
}

impl Scheduler {
    pub(crate) fn new(
        context: Context,
        parallel: usize,
        stream: Option<Arc<Shared>>,
        attention: Option<Attention>,
        board: Arc<Board>,
    ) -> Scheduler {
        let tenant = attention.as_ref().map_or("", |a| a.fields().tenant.as_str()).to_owned();
        let slots = (0..parallel.max(1))
            .map(|i| Slot::new(slot::position(i), attention.as_ref(), &tenant))
            .collect();
        Scheduler {
            context,
            slots,
            waiting: VecDeque::new(),
            stream,
            attention,
            tenant,
            clock: 0,
            turn: 0,
            prompts_last: false,
            pace: Pace::default(),
            totals: Totals::default(),
            board,
        }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn stats(&self) -> StreamStats {
        self.stream.as_ref().map(|shared| shared.stats()).unwrap_or_default()
    }

    /// Goes on with somebody else's attention state, in requests that name nobody.
    pub(crate) fn set_tenant(&mut self, tenant: &str) {
        tenant.clone_into(&mut self.tenant);
    }

    /// Adds a request, or tells it why not.
    pub(crate) fn add(&mut self, active: Box<Active>) {
        let (prompt_tokens, n_ctx) = (active.prompt.len(), self.context.n_ctx() as usize);
        if prompt_tokens == 0 {
            return self.refuse(active, GenerateError::EmptyPrompt);
        }
        if prompt_tokens > n_ctx {
            return self.refuse(active, GenerateError::PromptTooLong { prompt_tokens, n_ctx });
        }
        self.waiting.push_back(active);
        self.report();
    }

    /// Ends a request before it has begun.
    pub(crate) fn refuse(&self, active: Box<Active>, error: GenerateError) {
        self.board.ended(active.id);
        active.fail(error);
    }

    /// Whether there is anything to compute.
    pub(crate) fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || self.slots.iter().any(|slot| !slot.is_idle())
    }

    /// Computes a micro-batch.
    pub(crate) fn step(&mut self) {
        if self.context.abort_flag().load(Ordering::Relaxed) && !self.board.take_cancel() {
            return self.interrupt();
        }
        self.drop_cancelled();
        self.admit();
        let mut parts = self.compose();
        if parts.is_empty() {
            return;
        }
        let begin = Instant::now();
        let result = self.compute(&mut parts);
        let elapsed = begin.elapsed();
        match result {
            Ok(()) => {
                let prompt_tokens: usize = parts.iter().map(Part::prompt_tokens).sum();
                self.pace.computed(prompt_tokens, parts.len(), elapsed);
                if prompt_tokens > 0 {
                    self.totals.prompt_s += elapsed.as_secs_f64();
                } else {
                    self.totals.decode_s += elapsed.as_secs_f64();
                }
                self.advance(&parts);
            }
            Err(error) => self.recover(&parts, &error),
        }
        self.report();
    }

    /// Ends all requests; they were interrupted.
    pub(crate) fn interrupt(&mut self) {
        for i in 0..self.slots.len() {
            self.end(i, Finish::Interrupted);
        }
        let stats = self.stats();
        for active in std::mem::take(&mut self.waiting) {
            self.board.ended(active.id);
            active.end(Finish::Interrupted, &self.context, &stats, None);
        }
        self.report();
    }

    /// Ends what nobody waits for any more.
    fn drop_cancelled(&mut self) {
        for i in 0..self.slots.len() {
            let is_cancelled = self.slots[i]
                .active
                .as_ref()
                .is_some_and(|active| active.is_gone() || self.board.is_cancelled(active.id));
            if is_cancelled {
                self.end(i, Finish::Interrupted);
            }
        }
        let stats = self.stats();
        let (gone, left): (VecDeque<Box<Active>>, _) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|active| self.board.is_cancelled(active.id));
        self.waiting = left;
        for active in gone {
            self.board.ended(active.id);
            active.end(Finish::Interrupted, &self.context, &stats, None);
        }
    }

    /// Gives sequences to those that wait, as far as there are any.
    fn admit(&mut self) {
        while let Some(next) = self.next_waiting() {
            let active = &self.waiting[next];
            let tenant = active.request.tenant.as_deref().unwrap_or(&self.tenant).to_owned();
            let is_alone = self.slots.iter().all(Slot::is_idle);
            if is_alone {
                self.clear_others(&tenant, next);
            }
            let Some(slot) = self.choose_slot(next, &tenant) else { return };
            if !self.make_room(slot, next, &tenant) {
                return;
            }
            let Some(active) = self.waiting.remove(next) else { return };
            self.begin(slot, active, &tenant);
        }
    }

    /// Of those that wait, the first of the tenant that has least under way.
    fn next_waiting(&self) -> Option<usize> {
        let tenant = |active: &Active| active.request.tenant.clone();
        let under_way = |active: &Active| {
            let own = tenant(active);
            self.slots
                .iter()
                .filter_map(|s| s.active.as_deref())
                .filter(|a| tenant(a) == own)
                .count()
        };
        (0..self.waiting.len()).min_by_key(|&i| under_way(&self.waiting[i]))
    }

    /// Nobody else computes: what others left in the context goes, if all of it can be read back. The
    /// request is computed as in a context of its own then.
    fn clear_others(&mut self, tenant: &str, next: usize) {
        let Some(attention) = &self.attention else { return };
        let Some(active) = self.waiting.get(next) else { return };
        let best = self.best_slot(active, tenant);
        let is_clean = self
            .slots
            .iter()
            .enumerate()
            .all(|(i, slot)| slot.tokens.is_empty() || Some(i) == best && slot.is_alone);
        let is_kept = || self.slots.iter().all(|slot| slot.is_kept(attention));
        if is_clean || self.context.is_released() || !is_kept() {
            return;
        }
        self.context.clear();
        self.slots.iter_mut().for_each(Slot::cleared);
    }

    /// The idle sequence that shares most with a request; `None` if none shares anything.
    fn best_slot(&self, active: &Active, tenant: &str) -> Option<usize> {
        let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_idle());
        let shared = idle.map(|(i, slot)| (slot.shared(&active.prompt, tenant), i));
        shared
            .filter(|&(shared, _)| shared > 0)
            .max_by_key(|&(n, i)| (n, usize::MAX - i))
            .map(|s| s.1)
    }

    /// The idle sequence for a request: the one that shares most with it, else an empty one, else the
    /// one that was used longest ago.
    fn choose_slot(&self, next: usize, tenant: &str) -> Option<usize> {
        let active = self.waiting.get(next)?;
        let oldest = || {
            let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_idle());
            idle.min_by_key(|(i, s)| (!s.tokens.is_empty(), s.used_at, *i)).map(|(i, _)| i)
        };
        self.best_slot(active, tenant).or_else(oldest)
    }

    /// Sees to it that there are cells for a request; idle sequences give theirs up. False if it has
    /// to wait until others have ended.
    fn make_room(&mut self, slot: usize, next: usize, tenant: &str) -> bool {
        let n_ctx = self.context.n_ctx() as usize;
        let Some(active) = self.waiting.get(next) else { return false };
        let wanted = (active.prompt.len() + ROOM_TOKENS).min(n_ctx);
        // What is not shared goes when it begins.
        let shared = self.slots[slot].shared(&active.prompt, tenant);
        let others = |slots: &[Slot]| -> usize {
            slots.iter().enumerate().filter(|(i, _)| *i != slot).map(|(_, s)| s.tokens.len()).sum()
        };
        debug_assert!(shared <= wanted);
        while others(&self.slots) + wanted > n_ctx {
            if !self.give_up_idle(Some(slot)) {
                return false;
            }
        }
        true
    }

    /// Forgets the idle sequence that was used longest ago; false if there is none.
    fn give_up_idle(&mut self, except: Option<usize>) -> bool {
        let oldest = (0..self.slots.len())
            .filter(|&i| Some(i) != except)
            .filter(|&i| self.slots[i].is_idle() && !self.slots[i].tokens.is_empty())
            .min_by_key(|&i| self.slots[i].used_at);
        let Some(oldest) = oldest else { return false };
        self.slots[oldest].clear(&mut self.context);
        true
    }

    fn begin(&mut self, slot: usize, mut active: Box<Active>, tenant: &str) {
        if let Err(error) = self.context.revive() {
            return self.refuse(active, error.into());
        }
        self.clock += 1;
        active.begin(self.stats());
        let others_have_state =
            self.slots.iter().enumerate().any(|(i, s)| i != slot && !s.tokens.is_empty());
        let slot = &mut self.slots[slot];
        slot.used_at = self.clock;
        slot.is_alone &= !others_have_state;
        let mut usage = KvUse::default();
        if let Some(track) = &mut slot.track {
            track.turn_begins();
        }
        let attention = self.attention.as_mut();
        let reused =
            slot.keep_prefix(&mut self.context, attention, &active.prompt, tenant, &mut usage);
        slot.is_alone &= !others_have_state;
        if reused == 0 && !others_have_state {
            self.context.clear();
        }
        active.kv = usage;
        active.prompt_begins(reused);
        self.board.began(active.id);
        slot.active = Some(active);
    }

    /// What was computed is part of the sequences now.
    fn advance(&mut self, parts: &[Part]) {
        let is_shared = parts.len() > 1;
        for part in parts {
            let slot = &mut self.slots[part.slot];
            let Some(active) = &mut slot.active else { continue };
            let (attention, track) = (&mut self.attention, &mut slot.track);
            slot.tokens.extend_from_slice(&part.tokens);
            match part.kind {
                PartKind::Answer => {
                    active.next = None;
                    if let (Some(attention), Some(track)) = (attention, track) {
                        attention.answer_grew(track, &mut self.context, &slot.tokens);
                    }
                }
                PartKind::Prompt => {
                    active.is_shared |= is_shared;
                    if let (Some(attention), Some(track)) = (attention, track) {
                        attention.prompt_grew(track, &mut self.context, &slot.tokens);
                    }
                    active.prompt_grew(slot.tokens.len());
                }
            }
        }
        // Logits are those of this computation until the next one: all choices are made now.
        for part in parts {
            self.choose(part);
        }
    }

    fn choose(&mut self, part: &Part) {
        let stats = self.stats();
        let slot = &mut self.slots[part.slot];
        let Some(active) = &mut slot.active else { return };
        if part.kind == PartKind::Prompt {
            if slot.tokens.len() < active.prompt.len() {
                let at_turn = active.request.turn_start == Some(slot.tokens.len());
                if let (true, Some(attention), Some(track)) =
                    (at_turn, &mut self.attention, &mut slot.track)
                    && attention.wants_prompt_end()
                {
                    attention.turn_ended(track, &mut self.context, &slot.tokens);
                }
                return;
            }
            let took = active.prompt_ended(stats);
            if let (Some(attention), Some(track)) = (&mut self.attention, &mut slot.track) {
                if !active.is_shared {
                    attention.rates().computed(part.computed_tokens, took);
                }
                if attention.wants_prompt_end() {
                    attention.turn_ended(track, &mut self.context, &slot.tokens);
                }
            }
            if let Some(shared) = &self.stream {
                // Those of the prompt.
                drop(shared.take_segments());
            }
        }
        let stream = self.stream.clone();
        let stats = || stream.as_ref().map(|shared| shared.stats()).unwrap_or_default();
        match active.choose(&mut self.context, part.output, stats) {
            Ok(Chosen::Next) => {
                if slot.tokens.len() >= self.context.n_ctx() as usize {
                    self.end(part.slot, Finish::ContextFull);
                }
            }
            Ok(Chosen::End(finish)) => self.end(part.slot, finish),
            Err(error) => self.fail(part.slot, error),
        }
    }

    /// A computation failed.
    fn recover(&mut self, parts: &[Part], error: &DecodeError) {
        for part in parts {
            let before = self.slots[part.slot].tokens.clone();
            self.slots[part.slot].mend(&mut self.context, self.attention.as_ref());
            if self.slots[part.slot].tokens.len() < before.len() {
                // A state that can't be cut is gone; what is known of it elsewhere is restored.
                self.put_back(part.slot, before);
            }
        }
        match error {
            // Those that nobody waits for end in the next step; the others go on.
            DecodeError::Aborted if self.board.take_cancel() => {}
            DecodeError::Aborted => self.interrupt(),
            DecodeError::Full { .. } if self.give_up_idle(None) || self.give_way() => {}
            DecodeError::Full { .. } => {
                for part in parts {
                    self.end(part.slot, Finish::ContextFull);
                }
            }
            _ => {
                for part in parts {
                    self.fail(part.slot, error.clone().into());
                }
            }
        }
    }

    /// Of several requests, the one that began last waits again; false if there is only one.
    fn give_way(&mut self) -> bool {
        let active = (0..self.slots.len()).filter(|&i| !self.slots[i].is_idle());
        let mut by_age: Vec<usize> = active.collect();
        by_age.sort_by_key(|&i| self.slots[i].used_at);
        let (Some(&last), true) = (by_age.last(), by_age.len() > 1) else { return false };
        let slot = &mut self.slots[last];
        if let (Some(attention), Some(track)) = (&mut self.attention, &mut slot.track) {
            attention.turn_ended(track, &mut self.context, &slot.tokens);
        }
        let tokens = slot.tokens.clone();
        slot.clear(&mut self.context);
        self.put_back(last, tokens);
        true
    }

    /// A request waits again, at the front; it goes on from behind `tokens`.
    fn put_back(&mut self, slot: usize, mut tokens: Vec<Token>) {
        let Some(mut active) = self.slots[slot].active.take() else { return };
        if let Some(next) = active.next.take() {
            tokens.push(next);
            active.prompt = tokens;
        }
        self.board.waits(active.id);
        self.waiting.push_front(active);
    }

    /// An answer ends.
    fn end(&mut self, slot: usize, finish: Finish) {
        let stats = self.stats();
        let slot = &mut self.slots[slot];
        let Some(mut active) = slot.active.take() else { return };
        if let (Some(attention), Some(track)) = (&mut self.attention, &mut slot.track) {
            active.kv.export_time = track.export_time();
            attention.turn_ended(track, &mut self.context, &slot.tokens);
        }
        self.board.ended(active.id);
        let segments = self.stream.as_ref().and_then(|shared| shared.take_segments());
        let numbers = active.end(finish, &self.context, &stats, segments);
        self.totals.answers += 1;
        self.totals.prompt_tokens += numbers.prompt_tokens as u64;
        self.totals.reused_tokens += numbers.reused_tokens as u64;
        self.totals.generated_tokens += numbers.generated_tokens as u64;
    }

    fn fail(&mut self, slot: usize, error: GenerateError) {
        if let Some(active) = self.slots[slot].active.take() {
            self.refuse(active, error);
        }
    }

    /// Writes on the board what is going on.
    pub(crate) fn report(&self) {
        let state = |slot: &Slot| match &slot.active {
            None => SequenceState::Idle,
            Some(active) if active.next.is_some() => SequenceState::Decode,
            Some(_) => SequenceState::Prefill,
        };
        self.board.update(|status| {
            status.sequences.clear();
            status.sequences.extend(
                self.slots
                    .iter()
                    .map(|slot| SequenceStatus { state: state(slot), tokens: slot.tokens.len() }),
            );
            status.waiting = self.waiting.len();
            status.totals = self.totals;
            status.stream = self.stats();
            status.kv = self.attention.as_ref().map(|attention| attention.store().stats());
            status.experts = self.stream.as_ref().and_then(|shared| shared.experts());
        });
    }
}
