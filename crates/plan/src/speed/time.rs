//! Seconds of a token and of a prompt's micro-batch.

use std::collections::BTreeMap;

use hypura_gguf::Model;

use super::Limit;
use super::hits::{Lookups, Misses, Routing, counted, mean};
use super::weights::{LayerUses, Seconds, Uses};
use crate::inventory::Inventory;
use crate::machine::{ASSUMED_STEP_S, ASSUMED_STORAGE_BYTES_PER_S, Machine, or_assumed};
use crate::plan::{Mode, Placement, Plan, Pool};
use crate::request::Layout;

/// Share of missing experts that are read before their router has run, because the next layer's
/// router was applied early. Published accuracies are 74 to 89%; what is guessed too late, or gives
/// way to reads that somebody waits for, gains nothing.
pub(super) const PREDICTED_SHARE: f64 = 0.7;

/// Reads under way when an engine reads as much as it can.
pub(super) const READ_DEPTH: u32 = 16;
/// Larger reads are divided into pieces of this size.
pub(super) const CHUNK_BYTES: u64 = 1 << 20;
/// What a direct read takes more than was asked for, on average: half a block at each end.
const SLACK_BYTES: u64 = 4096;

/// Steps of a layer's graph, counted in models of the Llama and Qwen families.
const STEPS_PER_LAYER: f64 = 36.0;
/// Steps more if it has experts.
const STEPS_OF_EXPERTS: f64 = 26.0;
/// Steps do a little more than those that are measured: so many times as long, by what the demo
/// model takes beyond its weights.
const STEP_WORK: f64 = 2.2;
/// Seconds per entry of the vocabulary in choosing a token.
pub(super) const CHOOSING_S_PER_ENTRY: f64 = 3e-9;

/// By how much a measured drive may be faster or slower in the next minute, ...
const FRESH_STORAGE_SPREAD: f64 = 1.2;
/// ... one that was measured earlier, ...
const STORAGE_SPREAD: f64 = 1.8;
/// ... and one that was never measured: from a slow SSD to a fast NVMe drive.
const ASSUMED_STORAGE_SPREAD: f64 = 5.0;
/// The same for computing that was measured, ...
const COMPUTE_SPREAD: f64 = 1.15;
/// ... and that was not.
const ASSUMED_COMPUTE_SPREAD: f64 = 3.0;
/// By how much another prompt misses more or less experts than the recorded one.
pub(super) const REPLAYED_MISSES_SPREAD: f64 = 1.35;
/// By how much the curve's misses may be too many.
pub(super) const ASSUMED_MISSES_SPREAD: f64 = 2.0;

/// Seconds: expected, and between what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    pub(super) point: f64,
    pub(super) slow: f64,
    pub(super) fast: f64,
}

/// All that a token's time is made of.
pub(super) struct Times<'a> {
    uses: Uses,
    experts: Vec<ExpertLayer>,
    /// Computing outside of routed experts, steps included.
    dense: Seconds,
    ring_bytes: f64,
    ring_s: f64,
    row_bytes: f64,
    row_s: f64,
    storage_spread: f64,
    misses_spread: f64,
    n_layers: f64,
    n_ubatch: f64,
    steps_s: Seconds,
    machine: &'a Machine,
}

/// A layer with experts in slots.
struct ExpertLayer {
    compute: Seconds,
    reads: ExpertReads,
    lookups: Lookups,
    misses: Misses,
    /// If routing is uniform.
    misses_worst: f64,
}

impl<'a> Times<'a> {
    pub(super) fn new(
        model: &Model,
        inventory: &Inventory,
        plan: &Plan,
        machine: &'a Machine,
        layout: Layout,
        routing: Routing<'_>,
    ) -> Times<'a> {
        let hparams = model.hparams();
        let uses = Uses::of(model, &hparams, inventory, plan, layout);
        let n_layers = f64::from(hparams.n_layer_trunk().max(1));
        let steps = STEPS_PER_LAYER * n_layers + STEPS_OF_EXPERTS * uses.layers.len() as f64;
        let steps_s = or_assumed(machine.step_s, ASSUMED_STEP_S) * STEP_WORK * steps
            + CHOOSING_S_PER_ENTRY * f64::from(hparams.n_vocab.unwrap_or(0));
        let steps_s = match machine.step_s > 0.0 {
            true => Seconds { measured: steps_s, assumed: 0.0 },
            false => Seconds { measured: 0.0, assumed: steps_s },
        };
        let streams = plan.mode != Mode::FullResident;
        let lookups = Lookups::of_pools(plan);
        let mut dense = Seconds::decoding(&uses.dense, machine).plus(steps_s);
        let mut experts = Vec::new();
        for layer in &uses.layers {
            let pool = layer
                .pool
                .filter(|_| streams)
                .and_then(|pool| Some((plan.pools.get(pool)?, *lookups.get(pool)?, pool)));
            match pool {
                Some((pool, lookups, index)) => {
                    let counts = match routing {
                        Routing::Assumed => None,
                        Routing::Replayed(pools) => pools.get(index).and_then(|c| counted(c)),
                    };
                    experts.push(ExpertLayer::new(layer, pool, lookups, counts, machine));
                }
                None => {
                    dense = dense.plus(Seconds::decoding(&layer.weights, machine));
                }
            }
        }
        let placed = || model.tensors.iter().zip(&plan.placements);
        let of = |wanted: Placement| placed().filter(move |(_, place)| **place == wanted);
        let ring_bytes: f64 = of(Placement::Ring).map(|(tensor, _)| tensor.bytes as f64).sum();
        let row_bytes: f64 = of(Placement::Rows)
            .map(|(tensor, _)| (tensor.bytes / tensor.dims[1].max(1)) as f64)
            .sum();
        let storage_spread = storage_spread(machine);
        Times {
            experts,
            dense,
            ring_bytes,
            ring_s: ring_bytes / bandwidth(machine, CHUNK_BYTES, READ_DEPTH),
            row_bytes,
            row_s: if row_bytes > 0.0 { machine.read_latency_s.max(0.0) } else { 0.0 },
            storage_spread,
            misses_spread: match routing {
                Routing::Assumed => ASSUMED_MISSES_SPREAD,
                Routing::Replayed(_) => REPLAYED_MISSES_SPREAD,
            },
            n_layers,
            n_ubatch: f64::from(plan.n_ubatch),
            steps_s,
            machine,
            uses,
        }
    }

    /// Of a generated token.
    pub(super) fn token(&self) -> Range {
        let compute = self.compute();
        // Layers wait for their experts; beside that the drive brings the ring.
        let attention = self.dense.total() / self.n_layers;
        let waiting: f64 = self.experts.iter().map(|layer| layer.expected_s(attention)).sum();
        let drive = self.ring_s + self.expert_read_s();
        let point = (self.dense.total() + waiting).max(drive) + self.row_s;
        let worst: f64 = self
            .experts
            .iter()
            .map(|layer| layer.reads.seconds_mean(layer.worst(self.misses_spread)))
            .sum();
        let best = self.expert_read_s() / self.misses_spread;
        let slow_drive = (self.ring_s + worst + self.row_s) * self.storage_spread;
        let fast_drive = (self.ring_s + best + self.row_s) / self.storage_spread;
        Range { point, slow: slowest(compute) + slow_drive, fast: fastest(compute).max(fast_drive) }
    }

    /// Of a whole micro-batch of a prompt: what streams is read once, and of each layer the experts
    /// that its tokens choose (each for itself, it is assumed) and that hold no slot. The next
    /// layer is read while one computes; the first one is waited for.
    pub(super) fn micro_batch(&self) -> Range {
        let compute =
            Seconds::prompt(self.uses.all(), self.machine, self.n_ubatch).plus(self.steps_s);
        let missing = |layer: &ExpertLayer| {
            let lookups = &layer.lookups;
            let unused_by_one = 1.0 - lookups.n_used as f64 / lookups.n_experts.max(1) as f64;
            let touched = lookups.n_experts as f64 * (1.0 - unused_by_one.powf(self.n_ubatch));
            layer.reads.seconds_of_many(touched * (1.0 - lookups.share()))
        };
        let read = self.ring_s + self.experts.iter().map(missing).sum::<f64>();
        let overlapped =
            |compute: f64, read: f64| compute.max(read) + compute.min(read) / self.n_layers;
        Range {
            point: overlapped(compute.total(), read),
            slow: slowest(compute) + read * self.storage_spread,
            fast: fastest(compute).max(read / self.storage_spread),
        }
    }

    fn compute(&self) -> Seconds {
        let layers = self.experts.iter();
        layers.fold(self.dense, |sum, layer| sum.plus(layer.compute))
    }

    pub(super) fn compute_s(&self) -> f64 {
        self.compute().total()
    }

    fn expert_read_s(&self) -> f64 {
        self.experts.iter().map(ExpertLayer::read_s).sum()
    }

    pub(super) fn read_s(&self) -> f64 {
        self.ring_s + self.expert_read_s() + self.row_s
    }

    pub(super) fn limit(&self) -> Limit {
        let waited = self.token().point - self.compute_s();
        if waited <= self.compute_s() && self.read_s() <= self.compute_s() {
            return Limit::Compute;
        }
        let bytes = self.ring_bytes + self.expert_read_bytes();
        let best = bandwidth(self.machine, CHUNK_BYTES, READ_DEPTH);
        if self.read_s() > 2.0 * bytes / best {
            Limit::StorageLatency
        } else {
            Limit::StorageBandwidth
        }
    }

    fn expert_read_bytes(&self) -> f64 {
        self.experts.iter().map(|layer| mean(&layer.misses) * layer.reads.slot_bytes as f64).sum()
    }

    pub(super) fn read_bytes_per_token(&self) -> u64 {
        whole(self.ring_bytes + self.row_bytes + self.expert_read_bytes())
    }

    /// `None` if no experts are in slots.
    pub(super) fn hit_rate(&self) -> Option<f64> {
        let lookups: f64 = self.experts.iter().map(|layer| layer.lookups.n_used as f64).sum();
        let misses: f64 = self.experts.iter().map(|layer| mean(&layer.misses)).sum();
        (lookups > 0.0).then(|| 1.0 - misses / lookups)
    }

    /// Names of the types that make out a good part of the time and were not measured.
    pub(super) fn unmeasured_types(&self) -> Vec<&'static str> {
        let mut seconds: BTreeMap<&'static str, f64> = BTreeMap::new();
        for of in self.uses.all() {
            *seconds.entry(of.ty.name()).or_default() +=
                Seconds::decoding([of], self.machine).assumed;
        }
        let is_much = |&(_, assumed): &(&'static str, f64)| assumed > self.compute_s() / 50.0;
        seconds.into_iter().filter(is_much).map(|(name, _)| name).collect()
    }
}

/// By how much the drive may be faster or slower than it is said to be.
pub(super) fn storage_spread(machine: &Machine) -> f64 {
    if machine.storage_bytes_per_s(1, 1).is_none() {
        ASSUMED_STORAGE_SPREAD
    } else if machine.storage_is_fresh {
        FRESH_STORAGE_SPREAD
    } else {
        STORAGE_SPREAD
    }
}

pub(super) fn slowest(compute: Seconds) -> f64 {
    compute.measured * COMPUTE_SPREAD + compute.assumed * ASSUMED_COMPUTE_SPREAD
}

pub(super) fn fastest(compute: Seconds) -> f64 {
    compute.measured / COMPUTE_SPREAD + compute.assumed / ASSUMED_COMPUTE_SPREAD
}

impl ExpertLayer {
    fn new(
        layer: &LayerUses,
        pool: &Pool,
        lookups: Lookups,
        counts: Option<Misses>,
        machine: &Machine,
    ) -> ExpertLayer {
        ExpertLayer {
            compute: Seconds::decoding(&layer.weights, machine),
            reads: ExpertReads::new(pool, lookups.n_used, machine),
            misses: counts.unwrap_or_else(|| lookups.misses(lookups.assumed())),
            misses_worst: lookups.n_used as f64 * (1.0 - lookups.share()),
            lookups,
        }
    }

    /// Mean of misses if all turns out badly: as if routing were uniform, or by the recording with
    /// its spread, whichever is less.
    fn worst(&self, spread: f64) -> f64 {
        let by_spread = mean(&self.misses) * spread;
        by_spread.min(self.misses_worst).max(mean(&self.misses))
    }

    fn read_s(&self) -> f64 {
        self.mean_of(|k| self.reads.seconds(k))
    }

    /// Seconds from the router's choice to the layer's end. Each expert is computed when it is there,
    /// so that reading and computing overlap but for the last one. What was guessed was read before,
    /// while attention (`attention_s`) and a layer before that missed nothing computed.
    fn expected_s(&self, attention_s: f64) -> f64 {
        let compute = self.compute.total();
        let last = compute / self.lookups.n_used.max(1) as f64;
        let nothing_missing = self.misses.first().copied().unwrap_or(0.0);
        let idle = attention_s + compute * nothing_missing;
        self.mean_of(|k| match self.reads.seconds(k) {
            read if read > 0.0 => {
                let early = (PREDICTED_SHARE * read).min(idle);
                compute.max(read - early + last)
            }
            _ => compute,
        })
    }

    fn mean_of(&self, seconds: impl Fn(u64) -> f64) -> f64 {
        (0..).zip(&self.misses).map(|(k, chance)| chance * seconds(k)).sum()
    }
}

/// How long reading missing experts of one layer takes.
pub(super) struct ExpertReads {
    pub(super) slot_bytes: u64,
    /// Seconds by how many are missing, from 0 on.
    seconds: Vec<f64>,
}

impl ExpertReads {
    pub(super) fn new(pool: &Pool, n_used: u64, machine: &Machine) -> ExpertReads {
        let parts = || pool.parts.iter();
        let largest = parts().map(|part| part.bytes).max().unwrap_or(0);
        let pieces: u64 = parts().map(|part| part.bytes.div_ceil(CHUNK_BYTES)).sum();
        let bytes = pool.slot_bytes + SLACK_BYTES * pool.parts.len() as u64;
        let seconds = |k: u64| {
            let depth = u32::try_from(k * pieces).unwrap_or(u32::MAX).min(READ_DEPTH);
            (k * bytes) as f64 / bandwidth(machine, largest.min(CHUNK_BYTES) + SLACK_BYTES, depth)
        };
        ExpertReads {
            slot_bytes: pool.slot_bytes,
            seconds: (0..=n_used).map(|k| if k == 0 { 0.0 } else { seconds(k) }).collect(),
        }
    }

    pub(super) fn seconds(&self, missing: u64) -> f64 {
        let at = usize::try_from(missing).unwrap_or(usize::MAX);
        self.seconds.get(at).or(self.seconds.last()).copied().unwrap_or(0.0)
    }

    /// For a mean that is no whole number: straight between its neighbours.
    pub(super) fn seconds_mean(&self, missing: f64) -> f64 {
        let below = missing.max(0.0).floor();
        let (low, high) = (self.seconds(whole(below)), self.seconds(whole(below) + 1));
        low + (high - low) * (missing - below)
    }

    /// At the rate of as many as a token can miss.
    pub(super) fn seconds_of_many(&self, missing: f64) -> f64 {
        let most = self.seconds.len().saturating_sub(1).max(1) as f64;
        missing * self.seconds.last().copied().unwrap_or(0.0) / most
    }
}

pub(super) fn bandwidth(machine: &Machine, read_bytes: u64, depth: u32) -> f64 {
    let measured = machine.storage_bytes_per_s(read_bytes, depth).unwrap_or(0.0);
    or_assumed(measured, ASSUMED_STORAGE_BYTES_PER_S)
}

/// Bytes as a whole number; those of a token are far below the limits of either type.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
pub(super) fn whole(value: f64) -> u64 {
    value.round() as u64
}
