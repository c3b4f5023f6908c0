//! What a slot table can't do.

use thiserror::Error;

use crate::SlotId;

/// Why a table can't be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpecError {
    /// `pool_of_layer` and `parts_of_layer` are not of one length.
    #[error("{pools} layers have a pool, but {parts} have parts: describe each layer in both")]
    LayerCounts {
        /// Length of `pool_of_layer`.
        pools: usize,
        /// Length of `parts_of_layer`.
        parts: usize,
    },
    /// A layer names a pool that is not there.
    #[error("layer {layer} uses pool {pool}, but there are only {pools}: add the pool")]
    NoSuchPool {
        /// The layer.
        layer: usize,
        /// The pool that it names.
        pool: u32,
        /// How many pools there are.
        pools: usize,
    },
    /// More units than a slot can name.
    #[error("{layers} layers of {experts} experts are more units than a table can hold")]
    TooManyUnits {
        /// Layers that have experts.
        layers: usize,
        /// Experts of each.
        experts: u32,
    },
    /// The policy was made for another number of units.
    #[error("the policy remembers {policy} units, but the table has {table}")]
    PolicySize {
        /// Units of the policy.
        policy: usize,
        /// Units of the table.
        table: usize,
    },
}

/// A pool has fewer slots to give than experts were asked for. Nothing was changed; ask for fewer
/// experts at a time (several passes), or release what is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{wanted} experts are needed at once, but only {available} slots can be had: use passes")]
pub struct NotEnoughSlots {
    /// Experts asked for.
    pub wanted: u32,
    /// Slots that could be had for them, those that they hold already included.
    pub available: u32,
}

/// Why a pool can't shrink now. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// A slot that would go is in use or being filled.
    #[error("slot {slot} of pool {pool} is in use or being filled: release it first", slot = slot.0)]
    Busy {
        /// The pool.
        pool: u32,
        /// The first such slot.
        slot: SlotId,
    },
    /// No pool of this number.
    #[error("there is no pool {pool}")]
    NoSuchPool {
        /// The number.
        pool: u32,
    },
}
