//! Which streamed weights are in memory, and which one gives way when another is needed.
//!
//! A unit of residency is one expert of one layer ([`UnitId`]); its bytes come in [`Parts`]. Units
//! live in slots of equal size, and slots in pools. [`SlotTable`] decides who holds which slot: it
//! grants slots and says which parts its caller must read, and the caller says when they arrived.
//! A [`Policy`] ranks units by their past use; it remembers units that hold no slot too, so that a
//! unit that comes back is not a stranger. What the router chose can be written to a trace
//! ([`TraceWriter`]) and judged later: [`replay()`] by any policy, [`belady`] by hindsight, and
//! [`Simulation`] by every kind of [`Replacement`]. A [`Predictor`] guesses what a router will choose,
//! and [`evaluate()`] says how well.
//!
//! This crate does no I/O but to a `Read` or `Write` that it is given, has no clock (time is
//! counted in tokens) and no randomness, and knows nothing of ggml, files or addresses.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod policy;
mod predict;
mod replay;
mod stats;
mod table;
mod trace;
mod unit;

pub use policy::{
    AgedLfu, History, HistoryError, Lfu, Lrfu, Lru, Pinned, Policy, half_life_tokens,
};
pub use predict::{
    Coactivation, EarlyRouter, Frequency, Guess, MAX_COUNTERS, Mix, PredictionStats, Predictor,
    PredictorError, PredictorKind, PreviousToken, Source, evaluate,
};
pub use replay::{
    Learned, Replacement, ReplayError, ReplayStats, Sharing, Simulation, belady, replay,
};
pub use stats::{LayerStats, TierStats, UnitHeat};
pub use table::{
    Claim, Grant, NotEnoughSlots, ResizeError, SlotState, SlotTable, SpecError, TableSpec, Victim,
};
pub use trace::{
    LayerSummary, MAX_TOP_K, Trace, TraceError, TraceReader, TraceRecord, TraceShape, TraceSummary,
    TraceWriter,
};
pub use unit::{Parts, SlotId, UnitId};
