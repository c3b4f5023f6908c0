//! What a table counts.

use serde::{Deserialize, Serialize};

use crate::SlotState;

/// Counters of one layer. A lookup is one expert of one call of `acquire`; it is exactly one of
/// hit, partial hit and miss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStats {
    /// Experts asked for.
    pub lookups: u64,
    /// Every part was there, or on its way already: nothing had to be read for this lookup.
    pub hits: u64,
    /// Of `hits`, those where a part was still on its way, so that its caller had to wait.
    pub hits_pending: u64,
    /// The unit held a slot, but parts of it had to be read.
    pub partial_hits: u64,
    /// The unit held no slot.
    pub misses: u64,
    /// Units of this layer that lost their slot to another one, or to a shrinking pool.
    pub evictions: u64,
    /// Slots granted to read-ahead.
    pub speculated: u64,
    /// Units that read-ahead brought in and that a lookup then asked for.
    pub speculated_hits: u64,
    /// Reads that failed: the unit lost its slot.
    pub abandoned: u64,
}

impl LayerStats {
    /// Hits per lookup, 0 to 1; `None` before the first lookup.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.lookups > 0).then(|| self.hits as f64 / self.lookups as f64)
    }

    fn add(&mut self, other: &Self) {
        self.lookups += other.lookups;
        self.hits += other.hits;
        self.hits_pending += other.hits_pending;
        self.partial_hits += other.partial_hits;
        self.misses += other.misses;
        self.evictions += other.evictions;
        self.speculated += other.speculated;
        self.speculated_hits += other.speculated_hits;
        self.abandoned += other.abandoned;
    }
}

/// Counters of a table since it was made or its counters were reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierStats {
    /// All layers together.
    pub total: LayerStats,
    /// Each layer that has experts, in order.
    pub layers: Vec<LayerStats>,
}

impl TierStats {
    pub(crate) fn of_layers(layers: &[LayerStats]) -> Self {
        let mut total = LayerStats::default();
        for layer in layers {
            total.add(layer);
        }
        Self { total, layers: layers.to_vec() }
    }
}

/// One cell of the heat map: how hot a unit is, and whether it is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitHeat {
    /// Index of the expert in its layer.
    pub expert: u32,
    /// How often the router chose this unit while this table lived.
    pub routed: u64,
    /// The policy's key: higher is hotter. `None` for a unit that was never used.
    pub key: Option<f64>,
    /// The state of the slot that it holds, [`SlotState::Free`] if it holds none.
    pub state: SlotState,
}
