//! Simulations over a trace: what another policy, or hindsight, would have hit.
//!
//! All of them take the records token by token, and within a token layer by layer (all experts of a
//! record are needed at once), start empty, and read nothing ahead. So a prompt is replayed as if its
//! tokens had been generated: layer by layer, as its batch was computed, each expert would come many
//! times in a row, where the engine asks for it once, and policies that go by recency would look
//! better than they are.

mod belady;
mod cache;
mod simulation;
#[cfg(test)]
mod simulation_tests;
#[cfg(test)]
mod tests;

use serde::Serialize;
use thiserror::Error;

use crate::{LayerStats, Policy, PredictorError, SpecError, Trace, TraceRecord, TraceShape};
use cache::{Cache, Pools, TableCache};
pub use simulation::{Learned, Replacement, Sharing, Simulation};

/// What a simulated cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplayStats {
    /// Experts asked for.
    pub lookups: u64,
    /// Those that were there.
    pub hits: u64,
    /// Those that had to be read.
    pub misses: u64,
    /// Units that gave way.
    pub evictions: u64,
}

impl ReplayStats {
    /// Bytes read, if each unit has `unit_bytes`.
    pub fn read_bytes(&self, unit_bytes: u64) -> u64 {
        self.misses.saturating_mul(unit_bytes)
    }

    /// Hits per lookup, 0 to 1; `None` for an empty trace.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.lookups > 0).then(|| self.hits as f64 / self.lookups as f64)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            lookups: self.lookups + other.lookups,
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            evictions: self.evictions + other.evictions,
        }
    }
}

impl From<LayerStats> for ReplayStats {
    fn from(stats: LayerStats) -> Self {
        let LayerStats { lookups, hits, misses, evictions, .. } = stats;
        Self { lookups, hits, misses, evictions }
    }
}

/// Why a trace can't be replayed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A record needs more slots than there are.
    #[error("{slots} slots can't hold the {top_k} experts of one token: use at least {top_k}")]
    TooFewSlots {
        /// Slots.
        slots: u32,
        /// Experts per token and layer.
        top_k: u32,
    },
    /// A record needs more slots than its layer's share of them.
    #[error(
        "{slots} slots in equal shares can't hold the {top_k} experts that a token needs in each \
         of {layers} layers: use at least {}", layers.saturating_mul(*top_k)
    )]
    TooFewSlotsPerLayer {
        /// Slots of all layers together.
        slots: u32,
        /// Experts per token and layer.
        top_k: u32,
        /// Layers that have experts.
        layers: u32,
    },
    /// The traces are not of one model.
    #[error("the traces are of different models: {first} and {other}: replay them apart")]
    Shapes {
        /// The first trace's shape.
        first: TraceShape,
        /// The first one that differs.
        other: TraceShape,
    },
    /// There is no trace.
    #[error("there is no trace to replay: name at least one")]
    NoTrace,
    /// A replacement that predicts can't do so for a model of this size.
    #[error(transparent)]
    Predictor(#[from] PredictorError),
    /// The policy does not fit the trace.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// Replays `trace` in a cache of `slots` slots for all layers together that gives way by `policy`.
///
/// # Errors
/// [`ReplayError`] if the slots can't hold one record, or the policy is of another size than
/// `n_layers * n_experts`.
pub fn replay<P: Policy>(trace: &Trace, policy: P, slots: u32) -> Result<ReplayStats, ReplayError> {
    let shape = trace.shape();
    let mut cache = TableCache::new(Pools::shared(shape, slots), policy)?;
    let mut stats = ReplayStats::default();
    for demand in demands(trace) {
        let outcome = cache
            .demand(f64::from(demand.token), demand.layer, &demand.experts)
            .ok_or(ReplayError::TooFewSlots { slots, top_k: shape.top_k })?;
        stats = stats.plus(outcome.stats(&demand));
    }
    Ok(stats)
}

/// The fewest misses that any policy without read-ahead could have, in one pool of `slots` slots
/// for all layers together: the unit whose next use is farthest away gives way (Belady, "A study of
/// replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966).
///
/// # Errors
/// [`ReplayError::TooFewSlots`] if the slots can't hold one record.
pub fn belady(trace: &Trace, slots: u32) -> Result<ReplayStats, ReplayError> {
    let shape = trace.shape();
    belady::belady(&demands(trace), &Pools::shared(shape, slots), 0)
        .ok_or(ReplayError::TooFewSlots { slots, top_k: shape.top_k })
}

/// One record, as a cache sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Demand {
    /// The token that it belongs to, from 0 in its trace.
    token: u32,
    layer: u32,
    /// Each one once.
    experts: Vec<u32>,
}

fn demands(trace: &Trace) -> Vec<Demand> {
    let demand = |(record, token): (TraceRecord<'_>, u32)| {
        let mut experts: Vec<u32> = record.experts.iter().copied().map(u32::from).collect();
        experts.sort_unstable();
        experts.dedup();
        Demand { token, layer: record.layer, experts }
    };
    let mut demands: Vec<Demand> = trace.records().zip(trace.tokens()).map(demand).collect();
    demands.sort_by_key(|demand| (demand.token, demand.layer));
    demands
}

impl cache::Outcome {
    fn stats(self, demand: &Demand) -> ReplayStats {
        let lookups = demand.experts.len() as u64;
        let (hits, evictions) = (self.hits, self.evictions);
        ReplayStats { lookups, hits, misses: lookups - hits, evictions }
    }
}
