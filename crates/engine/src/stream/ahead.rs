//! Reading experts before their router has run.
//!
//! While one layer is computed, the next ones' routers are applied early, and the experts that
//! they name are read if they are missing. A guess takes the slot that would be given away next
//! anyhow, its reads give way to those that somebody waits for, and once the layer's own router
//! has run, what was not named by it is cancelled. What is not certain is counted: when guesses
//! bring less than they cost, they stop for a while.

use std::collections::{HashMap, HashSet};

use hypura_io as io;
use hypura_llama::tiered::{ResidencyError, Routing};
use hypura_tier::{Claim, EarlyRouter, Guess, Parts, UnitId};
use serde::Serialize;

use super::reads::Target;
use super::{Streamer, bit};

/// What guesses did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AheadStats {
    /// Experts of single tokens that were named early, and how many of them were chosen.
    pub named: u64,
    /// See [`AheadStats::named`].
    pub named_right: u64,
    /// Of all named experts, those that were missing and began to be read.
    pub begun: u64,
    /// Of these, those that were chosen.
    pub begun_right: u64,
    /// Of these, those whose bytes had all arrived by then.
    pub in_time: u64,
    /// Times that guesses were switched off because they cost more than they brought.
    pub switched_off: u64,
    /// Experts that began to be read because earlier runs used them, or memory has room for all.
    pub warmed: u64,
}

impl AheadStats {
    pub(super) fn since(&self, earlier: &AheadStats) -> AheadStats {
        AheadStats {
            named: self.named - earlier.named,
            named_right: self.named_right - earlier.named_right,
            begun: self.begun - earlier.begun,
            begun_right: self.begun_right - earlier.begun_right,
            in_time: self.in_time - earlier.in_time,
            switched_off: self.switched_off - earlier.switched_off,
            warmed: self.warmed - earlier.warmed,
        }
    }
}

/// From this many tokens on, a micro-batch is a prompt's. It looks not ahead: its experts are computed
/// as they arrive, which hides nearly all reads, and what is read for the next layer before this one
/// has given up its slots costs others theirs (30% more was read, and nothing gained).
const PROMPT_TOKENS: usize = 8;
/// Layers that are looked ahead for a single token.
const LAYERS: u32 = 1;
/// An expert of a single token is read ahead if it will be chosen at least this probably.
const LIKELY: f64 = 0.6;
/// Guesses are judged over about this many.
const WINDOW: f64 = 64.0;
/// Below this share of right ones, guesses stop.
const WORTH: f64 = 0.35;
/// For this many micro-batches.
const PAUSE: u64 = 256;

/// Units of an earlier run that are under way at the same time, at most.
const WARMING_MAX: usize = 256;

/// The guesses that are under way.
pub(super) struct Ahead {
    is_on: bool,
    early: EarlyRouter,
    /// Reused: what it says of the next token.
    outlook: Vec<f64>,
    /// Begun, and not yet judged by the layer's router.
    guesses: HashSet<UnitId>,
    /// Judged wrong, or failed: their reads come to rest.
    cancelled: HashMap<UnitId, Outcome>,
    /// Units of an earlier run that are still to be read, hottest last, and those being read.
    to_warm: Vec<UnitId>,
    warming: HashSet<UnitId>,
    /// A prompt is computed: it needs nearly everything, and the drive for itself.
    is_prompt: bool,
    /// What was named of each layer, to be compared with what is chosen.
    named: HashMap<u32, Vec<u32>>,
    /// Share of right guesses lately.
    worth: f64,
    /// Micro-batches that are still to pass without guesses.
    pause: u64,
    pub(super) stats: AheadStats,
}

/// What became of the reads of a cancelled guess so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Complete,
    Incomplete,
}

impl Ahead {
    pub(super) fn new(is_on: bool, early: EarlyRouter) -> Ahead {
        Ahead {
            is_on,
            early,
            outlook: Vec::new(),
            guesses: HashSet::new(),
            cancelled: HashMap::new(),
            to_warm: Vec::new(),
            warming: HashSet::new(),
            is_prompt: false,
            named: HashMap::new(),
            worth: 1.0,
            pause: 0,
            stats: AheadStats::default(),
        }
    }

    /// How many layers ahead to look.
    pub(super) fn layers(&self, n_tokens: usize) -> u32 {
        if self.is_on && self.pause == 0 && n_tokens == 1 { LAYERS } else { 0 }
    }

    /// Whether nobody waits for the unit's bytes.
    pub(super) fn is_guess(&self, unit: UnitId) -> bool {
        self.guesses.contains(&unit)
            || self.warming.contains(&unit)
            || self.cancelled.contains_key(&unit)
    }

    /// A read of a guess failed or was cancelled.
    pub(super) fn incomplete(&mut self, unit: UnitId) {
        self.asked_for(unit);
        self.cancelled.insert(unit, Outcome::Incomplete);
    }

    /// The unit was chosen.
    pub(super) fn asked_for(&mut self, unit: UnitId) {
        self.guesses.remove(&unit);
        self.warming.remove(&unit);
    }

    pub(super) fn judge(&mut self, is_right: bool) {
        let outcome = if is_right { 1.0 } else { 0.0 };
        self.worth += (outcome - self.worth) / WINDOW;
        if self.worth < WORTH {
            self.worth = 1.0;
            self.pause = PAUSE;
            self.stats.switched_off += 1;
        }
    }
}

impl Streamer {
    /// Begins to read what is missing of the experts that `layer` will probably choose.
    pub(super) fn guess(
        &mut self,
        layer: u32,
        scores: &[f32],
        n_used: usize,
    ) -> Result<(), ResidencyError> {
        let Some(source) = self.sources.layers.get(layer as usize).cloned() else { return Ok(()) };
        let mut guesses = Vec::new();
        self.ahead.early.rate(layer, scores, &mut guesses);
        let named = guesses.iter().take(n_used).map(|guess| guess.expert).collect();
        self.ahead.named.insert(layer, named);
        let likely = |guess: &&Guess| guess.probability >= LIKELY;
        let experts: Vec<u32> = guesses.iter().take_while(likely).map(|g| g.expert).collect();
        if self.device.is_some() {
            self.guess_on_device(layer, &guesses);
        }
        for &expert in &experts {
            let unit = UnitId { layer, expert };
            if self.device.as_ref().is_some_and(|device| device.table.lookup(unit).is_some()) {
                continue;
            }
            let Some(table) = &mut self.table else { return Ok(()) };
            if table.lookup(unit).is_some() {
                table.hold(unit);
                continue;
            }
            if self.ahead.is_guess(unit) {
                continue;
            }
            // What the layer itself needs beside its guesses must find slots.
            if table.available(layer) <= experts.len() {
                break;
            }
            let Some(grant) = table.speculate(unit, Parts::ALL, Claim::Expected) else { break };
            self.ahead.guesses.insert(unit);
            self.ahead.stats.begun += 1;
            for part in source.parts.iter().filter(|p| grant.fill.contains(bit(p.part))) {
                let place = (source.pool, *part);
                self.read_part(unit, place, grant.slot.0, io::Priority::ReadAhead)?;
            }
        }
        Ok(())
    }

    /// Fills free slots with what was used most in earlier runs, behind everything else. Where memory
    /// has room for all experts, beside a GPU, with the others too: else prompts would come upon a
    /// rare one again and again, and wait for the drive.
    pub(super) fn plan_warming(&mut self) {
        let Some(table) = &self.table else { return };
        let pools = self.sources.slots.iter().zip(0..);
        let has_room = self.has_room_for_all();
        let mut units: Vec<Vec<UnitId>> = pools
            .map(|(&slots, pool)| table.hottest_absent(pool, slots as usize, has_room))
            .collect();
        // Pool by pool in turn, so that none of them waits for another one.
        let longest = units.iter().map(Vec::len).max().unwrap_or(0);
        let to_warm = &mut self.ahead.to_warm;
        for i in 0..longest {
            to_warm.extend(units.iter_mut().filter_map(|units| units.get(i).copied()));
        }
        to_warm.reverse();
        if let Err(error) = self.warm() {
            tracing::debug!("reading ahead: {error}");
        }
    }

    /// Whether host memory beside a GPU has slots for all experts.
    fn has_room_for_all(&self) -> bool {
        self.device.is_some() && !self.reuses_host_slots
    }

    /// A prompt comes: what is still under way of an earlier run's experts is left for later.
    pub(super) fn stop_warming(&mut self) {
        for unit in std::mem::take(&mut self.ahead.warming) {
            let under_way = self.under_way(unit);
            if under_way.is_empty() {
                continue;
            }
            self.ahead.to_warm.push(unit);
            self.ahead.cancelled.entry(unit).or_insert(Outcome::Complete);
            under_way.into_iter().for_each(|tag| self.reads.cancel(tag));
        }
    }

    /// Goes on with what [`Streamer::plan_warming`] began, unless a prompt is computed.
    pub(super) fn warm(&mut self) -> Result<(), ResidencyError> {
        let has_room = self.has_room_for_all();
        while !self.ahead.is_prompt
            && self.ahead.warming.len() < WARMING_MAX
            && let Some(unit) = self.ahead.to_warm.pop()
        {
            let Some(source) = self.sources.layers.get(unit.layer as usize).cloned() else { break };
            let Some(table) = &mut self.table else { break };
            let on_device = self.device.as_ref().is_some_and(|d| d.table.lookup(unit).is_some());
            if on_device || table.lookup(unit).is_some() || !table.has_free_slot(unit.layer) {
                continue;
            }
            // A slot that is being filled can't be had: whoever needs a layer must find others, unless
            // each of its experts has one.
            if !has_room && table.available(unit.layer) <= self.sources.n_experts as usize {
                self.ahead.to_warm.push(unit);
                break;
            }
            let Some(grant) = table.speculate(unit, Parts::ALL, Claim::Warmer) else { continue };
            self.ahead.warming.insert(unit);
            self.ahead.stats.warmed += 1;
            for part in source.parts.iter().filter(|p| grant.fill.contains(bit(p.part))) {
                let place = (source.pool, *part);
                self.read_part(unit, place, grant.slot.0, io::Priority::ReadAhead)?;
            }
        }
        Ok(())
    }

    /// The router of `layer` has chosen: compares, and cancels what was guessed wrong.
    pub(super) fn judge_guesses(&mut self, layer: u32, routing: Routing<'_>, chosen: &[u32]) {
        self.ahead.pause = self.ahead.pause.saturating_sub(u64::from(layer == 0));
        if let Some(table) = &mut self.table {
            table.let_go(layer);
            let n_layers = self.sources.layers.len();
            let n_tokens = routing.ids.len() / routing.n_used.max(1);
            let passes_through = n_layers * self.sources.n_experts as usize;
            let slots: u32 = self.sources.slots.iter().sum();
            self.ahead.is_prompt = n_tokens >= PROMPT_TOKENS;
            table.set_scanning(self.ahead.is_prompt && passes_through > slots as usize);
        }
        if self.ahead.is_prompt {
            self.stop_warming();
        }
        if let Some(named) = self.ahead.named.remove(&layer)
            && routing.ids.len() == routing.n_used
        {
            let right =
                named.iter().filter(|e| routing.ids.iter().any(|id| id.unsigned_abs() == **e));
            self.ahead.stats.named_right += right.count() as u64;
            self.ahead.stats.named += named.len() as u64;
        }
        self.judge_on_device(layer, chosen);
        let guessed: Vec<UnitId> =
            self.ahead.guesses.iter().copied().filter(|unit| unit.layer == layer).collect();
        if let Some(last) = routing.ids.chunks(routing.n_used.max(1)).next_back() {
            let last: Vec<u32> = last.iter().map(|id| id.unsigned_abs()).collect();
            self.ahead.early.observe(layer, &last);
            self.look_out(layer);
        }
        if guessed.is_empty() {
            return;
        }
        self.reads.poll(&mut self.arrived);
        self.book();
        for unit in guessed {
            let is_right = chosen.binary_search(&unit.expert).is_ok();
            self.ahead.judge(is_right);
            let under_way = self.under_way(unit);
            if is_right {
                self.ahead.stats.begun_right += 1;
                self.ahead.stats.in_time += u64::from(under_way.is_empty());
                continue;
            }
            self.ahead.guesses.remove(&unit);
            if !under_way.is_empty() {
                self.ahead.cancelled.entry(unit).or_insert(Outcome::Complete);
                under_way.into_iter().for_each(|tag| self.reads.cancel(tag));
            }
        }
        self.reads.poll(&mut self.arrived);
        self.book();
    }

    /// Tells the tables what the next token will probably choose in `layer`.
    fn look_out(&mut self, layer: u32) {
        let outlook = &mut self.ahead.outlook;
        self.ahead.early.outlook(layer, outlook);
        let device = self.device.as_mut().map(|device| &mut device.table);
        for table in self.table.as_mut().into_iter().chain(device) {
            table.set_outlook(layer, outlook);
        }
    }

    /// Tags of the reads of a unit that have not ended.
    fn under_way(&self, unit: UnitId) -> Vec<u64> {
        let UnitId { layer, expert } = unit;
        let Some(source) = self.sources.layers.get(layer as usize) else { return Vec::new() };
        let tag = |part| self.pending.get(&Target::Part { layer, expert, part }).copied();
        source.parts.iter().filter_map(|p| tag(p.part)).collect()
    }

    /// Takes the slots back from cancelled guesses whose reads have come to rest.
    pub(super) fn drop_guesses(&mut self) {
        if !self.ahead.warming.is_empty() {
            let mut warming = std::mem::take(&mut self.ahead.warming);
            warming.retain(|&unit| !self.under_way(unit).is_empty());
            self.ahead.warming = warming;
        }
        if self.ahead.cancelled.is_empty() {
            return;
        }
        let at_rest: Vec<(UnitId, Outcome)> = self
            .ahead
            .cancelled
            .iter()
            .filter(|(unit, _)| self.under_way(**unit).is_empty())
            .map(|(unit, outcome)| (*unit, *outcome))
            .collect();
        for (unit, outcome) in at_rest {
            self.ahead.cancelled.remove(&unit);
            if let (Outcome::Incomplete, Some(table)) = (outcome, &mut self.table) {
                table.abandon(unit);
            }
        }
    }

    /// Waits until none of `experts` is a cancelled guess any more, so that it can be read anew.
    pub(super) fn settle_cancelled(
        &mut self,
        layer: u32,
        experts: &[u32],
    ) -> Result<(), ResidencyError> {
        let is_cancelled = |a: &Ahead| {
            experts.iter().any(|&e| a.cancelled.contains_key(&UnitId { layer, expert: e }))
        };
        self.book();
        while is_cancelled(&self.ahead) {
            self.reads.wait(&mut self.arrived)?;
            self.book();
        }
        Ok(())
    }

    /// Whether a read of `parts` of `layer` is under way that somebody waits for.
    pub(super) fn is_awaited(&self, layer: u32, parts: u8) -> bool {
        self.pending.keys().any(|target| match *target {
            Target::Part { layer: of, expert, part } => {
                of == layer
                    && parts & (1 << part) != 0
                    && !self.ahead.is_guess(UnitId { layer, expert })
            }
            _ => false,
        })
    }

    /// After an interruption, when nothing is under way: there are no guesses any more.
    pub(super) fn forget_guesses(&mut self) {
        self.drop_guesses();
        self.ahead.guesses.clear();
        self.ahead.named.clear();
        if let Some(table) = &mut self.table {
            for layer in 0..u32::try_from(self.sources.layers.len()).unwrap_or(u32::MAX) {
                table.let_go(layer);
            }
        }
    }
}
