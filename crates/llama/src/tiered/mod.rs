//! The tiered ggml backend: a device that wraps the real one and streams weights to it.
//!
//! llama.cpp is given devices of ours ([`Tiered`]): one, or one for each GPU. Every operation, buffer and kernel is
//! the wrapped device's; only a node whose weight is streamed is stopped at, and a [`Residency`]
//! is asked to make the needed bytes resident first. That is all this module knows: which experts
//! are kept, when they are read and from where is the residency's business.
//!
//! ```text
//! llama_decode -> scheduler -> one graph per micro-batch -> graph_compute (compute.rs)
//!   nodes up to the first expert matmul of a layer   -> wrapped device
//!   read the router's choice, Residency::experts     -> slots
//!   point the matmuls of the layer at the pool       (weights and ids swapped in place)
//!   ... next layer ...
//!   put the pointers back
//! ```
//!
//! How this was found to work, and what was found not to, is in ARCHITECTURE.md.

mod buffers;
mod compute;
mod device;
mod front;
mod graph;
mod group;
mod ledger;
mod load;
mod memory;
mod passes;
mod predict;
mod repacked;
mod staged;
mod transit;

use std::fmt;

pub use group::Tiered;
pub use ledger::Allocated;
pub use load::{LoadStats, TieredParams, load};
pub use memory::{PoolSpec, SlotBuffer, SlotPart, StreamMemory, slot_stride};
pub use passes::pass_bytes;

/// What part of an expert a tensor holds; the bit number in a `Parts` mask.
pub type PartIndex = u8;

/// How a streamed tensor is used, by the name it has in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamKind {
    /// One matrix per expert, stacked (`ffn_up_exps` and the like), used by `MUL_MAT_ID`.
    Experts {
        /// Number of the expert layer; layers are numbered from 0 among those with experts.
        layer: u32,
        /// Which part of the expert this is.
        part: PartIndex,
    },
    /// A matrix that is used whole, by `MUL_MAT`.
    Matrix {
        /// Number of the matrix among the streamed ones.
        index: u32,
    },
    /// A table of which single rows are used, by `GET_ROWS` (the input embedding).
    Rows,
}

/// A streamed tensor.
#[derive(Debug, Clone)]
pub struct StreamedTensor {
    /// Its name in the file.
    pub name: String,
    /// How it is used.
    pub kind: StreamKind,
    /// Whether its bytes come rearranged for this CPU, as by [`crate::Repacker`].
    pub is_repacked: bool,
}

/// The routing of one layer for one micro-batch: which experts each token goes to.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    /// Expert ids, `n_tokens` rows of `n_used`.
    pub ids: &'a [i32],
    /// Experts per token.
    pub n_used: usize,
}

/// Makes streamed weights resident. Called on the thread that computes; calls may block.
///
/// Everything granted stays valid until the next [`Residency::computed`].
pub trait Residency: Send {
    /// A micro-batch begins that will use these streamed matrices in this order.
    ///
    /// # Errors
    /// When a read failed.
    fn begin(&mut self, matrices: &[u32]) -> Result<(), ResidencyError>;

    /// The router of `layer` has chosen.
    fn routed(&mut self, layer: u32, routing: Routing<'_>);

    /// The same once more, for what can wait until the device has something to do: what the choice
    /// says of later ones.
    fn note_routing(&mut self, layer: u32, routing: Routing<'_>);

    /// How many experts of `layer` can be resident at once.
    fn capacity(&self, layer: u32) -> usize;

    /// Whether all of `parts` of an expert are resident now.
    fn is_resident(&self, layer: u32, expert: u32, parts: u8) -> bool;

    /// Begins to make `parts` of each of `experts` (distinct) resident and appends their slots, in
    /// the order of `experts`. The bytes are valid after [`Residency::wait`].
    ///
    /// # Errors
    /// When there are more experts than slots, or a read failed.
    fn experts(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: u8,
        slots: &mut Vec<u32>,
    ) -> Result<(), ResidencyError>;

    /// Whether `parts` of what was granted for `layer` are still being read.
    fn is_pending(&mut self, layer: u32, parts: u8) -> bool;

    /// Waits until `parts` of all granted experts of `layer` are valid.
    ///
    /// # Errors
    /// When a read failed.
    fn wait(&mut self, layer: u32, parts: u8) -> Result<(), ResidencyError>;

    /// Waits until a read of `parts` of `layer` has ended; not at all if none is under way.
    ///
    /// # Errors
    /// When a read failed.
    fn wait_for_one(&mut self, layer: u32, parts: u8) -> Result<(), ResidencyError>;

    /// How many of the next expert layers it wants to know about while one is computed for
    /// `n_tokens` tokens.
    fn look_ahead(&self, n_tokens: usize) -> u32 {
        let _ = n_tokens;
        0
    }

    /// What the router of `layer`, one of those that [`Residency::look_ahead`] asked for, would
    /// say now: `[n_expert, n_tokens]` scores. It will choose `n_used` experts for each token,
    /// probably those with the highest scores.
    fn predicted(&mut self, layer: u32, scores: &[f32], n_used: usize) {
        let _ = (layer, scores, n_used);
    }

    /// Makes a streamed matrix resident and returns its offset in the ring, in bytes.
    ///
    /// # Errors
    /// When a read failed.
    fn matrix(&mut self, index: u32) -> Result<usize, ResidencyError>;

    /// Puts rows of the row-streamed table into the row area, the `i`-th at `i` times a row's
    /// bytes.
    ///
    /// # Errors
    /// When a read failed.
    fn rows(&mut self, rows: &[i32]) -> Result<(), ResidencyError>;

    /// For a device with memory of its own: how many experts of `layer` can be there at once.
    fn device_capacity(&self, layer: u32) -> usize {
        let _ = layer;
        0
    }

    /// Appends the slots of `experts` on the device, if all of `parts` of all of them are there;
    /// else false, and nothing is appended. What is used so is booked by
    /// [`Residency::device_experts`] afterwards, before anything else is asked.
    fn device_slots(&self, layer: u32, experts: &[u32], parts: u8, slots: &mut Vec<u32>) -> bool {
        let _ = (layer, experts, parts, slots);
        false
    }

    /// Begins to bring `parts` of each of `experts` (distinct) to the device's own memory, and
    /// appends their slots there. They can be used after [`Residency::uploads`] has ended and its
    /// copies are done.
    ///
    /// # Errors
    /// When there are more experts than slots, or a read failed.
    fn device_experts(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: u8,
        slots: &mut Vec<u32>,
    ) -> Result<(), ResidencyError> {
        let _ = (layer, experts, parts, slots);
        Err(ResidencyError::Internal("this residency knows no device".into()))
    }

    /// For a device with memory of its own: its ring has room again where matrices lay that were
    /// given before, for copies that begin from now on. Appends the copies that can be made, in the
    /// order in which they are to be made, up to that of matrix `index` at least, and returns its
    /// place. `None` if host memory has no room for it: then it wants to be asked again when all
    /// copies are done.
    ///
    /// # Errors
    /// When a read failed.
    fn device_matrix(
        &mut self,
        index: u32,
        copies: &mut Vec<MatrixUpload>,
    ) -> Result<Option<MatrixPlace>, ResidencyError> {
        let _ = (index, copies);
        Err(ResidencyError::Internal("this residency knows no device".into()))
    }

    /// For a device with memory of its own: appends the copies that [`Residency::predicted`] led to.
    fn guessed(&mut self, copies: &mut Vec<PartCopy>) {
        let _ = copies;
    }

    /// For a device with memory of its own, before [`Residency::device_experts`]: appends those of
    /// `experts` (sorted) that are to be computed where they lie in host memory, sorted.
    fn host_share(&mut self, layer: u32, experts: &[u32], host: &mut Vec<u32>) {
        let _ = (layer, experts, host);
    }

    /// The experts of `layer` were computed in the slots of host memory: appends those copies to
    /// the device that are worth while for later tokens. Nobody waits for them.
    fn admit(
        &mut self,
        layer: u32,
        experts: &[u32],
        host_slots: &[u32],
        copies: &mut Vec<PartCopy>,
    ) {
        let _ = (layer, experts, host_slots, copies);
    }

    /// Of the copies that [`Residency::device_matrix`] gave, those up to this serial number are done.
    fn matrices_copied(&mut self, serial: u64) {
        let _ = serial;
    }

    /// The device computed what a router had chosen before the choice was known here: rightly, as all of
    /// it was there, or some of it in vain.
    fn computed_early(&mut self, is_right: bool) {
        let _ = is_right;
    }

    /// Appends copies that can be made now, waiting for bytes if there are none yet, until all
    /// that [`Residency::device_experts`] asked for is there.
    ///
    /// # Errors
    /// When a read failed.
    fn uploads(&mut self, copies: &mut Vec<PartCopy>) -> Result<Uploads, ResidencyError> {
        let _ = copies;
        Ok(Uploads::Done)
    }

    /// Which of the experts of `layer` that the device lacks will probably be needed by a micro-batch
    /// that makes `n_choices` in each layer: appends `n` at most, the likeliest first. None if that is
    /// too uncertain, or copying them would cost more than it may bring.
    fn expected(&self, layer: u32, n_choices: usize, n: usize, experts: &mut Vec<u32>) {
        let _ = (layer, n_choices, n, experts);
    }

    /// Begins to copy `parts` of each of `experts` to the transit slots from `first_slot` on. They can
    /// be used as those of [`Residency::device_experts`]; when, is the caller's business.
    ///
    /// # Errors
    /// When a read failed.
    fn pass(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: u8,
        first_slot: u32,
    ) -> Result<(), ResidencyError> {
        let _ = (layer, experts, parts, first_slot);
        Err(ResidencyError::Internal("this residency knows no device".into()))
    }

    /// What of a layer was needed by a micro-batch in passes: experts that had slots on the device,
    /// and those that passed through, with how many of the latter were expected in vain.
    fn passed(&mut self, counts: Passed) {
        let _ = counts;
    }

    /// Whole experts of `layer` lie in transit slots from `first_slot` on, and no computation of this
    /// layer that is still to be launched reads its own slots: appends the copies by which those that
    /// are worth it get one.
    fn keep_passed(
        &mut self,
        layer: u32,
        experts: &[u32],
        first_slot: u32,
        copies: &mut Vec<PartCopy>,
    ) {
        let _ = (layer, experts, first_slot, copies);
    }

    /// All copies that were asked for have been made: what they came from may be taken again.
    fn uploaded(&mut self) {}

    /// Whether the last micro-batch was computed to its end.
    fn is_at_rest(&self) -> bool {
        false
    }

    /// Whether host memory that was copied from may be overwritten by later reads.
    fn reuses_host_slots(&self) -> bool {
        true
    }

    /// All that was granted has been used; slots and ring space may be taken again.
    fn computed(&mut self);

    /// The micro-batch is computed. A micro-batch that begins without this after the last one
    /// follows an interruption or an error.
    ///
    /// # Errors
    /// When the files are not those any more that its weights were to come from.
    fn end(&mut self) -> Result<(), ResidencyError>;

    /// The wrapped device was busy for this long.
    fn compute_time(&mut self, elapsed: std::time::Duration);
}

/// Experts of a layer that a micro-batch needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Those that had slots on the device.
    pub found: usize,
    /// Those that it lacked.
    pub missing: usize,
    /// Those that were copied before the router had chosen, ...
    pub expected: usize,
    /// ... and chosen.
    pub expected_rightly: usize,
    /// Groups that they were computed in.
    pub groups: usize,
}

/// One part of an expert, to be copied from one tier to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartCopy {
    /// The expert layer.
    pub layer: u32,
    /// Which expert.
    pub expert: u32,
    /// Which part.
    pub part: PartIndex,
    /// Where it lies.
    pub from: Place,
    /// Where it goes.
    pub to: Place,
}

/// A slot for an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In host memory.
    Host(u32),
    /// On the device, of the expert's layer.
    Device(u32),
    /// On the device, of no layer: see [`Residency::pass`].
    Transit(u32),
}

/// Where a matrix lies in host memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixFrom {
    /// In what stays.
    Store(usize),
    /// In the ring that is read into.
    Ring(usize),
}

/// A matrix to be copied to the device's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixUpload {
    /// The matrix.
    pub index: u32,
    /// From where.
    pub from: MatrixFrom,
    /// To where.
    pub place: MatrixPlace,
}

/// The place of a matrix in the device's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixPlace {
    /// Its first byte.
    pub offset: usize,
    /// Names it among all that ever were, in order.
    pub serial: u64,
}

/// How far [`Residency::uploads`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploads {
    /// Everything is copied, or about to be.
    Done,
    /// There is more to come.
    More,
    /// There is more to come, once [`Residency::uploaded`] was called.
    Full,
}

/// Why weights could not be made resident.
#[derive(Debug)]
#[non_exhaustive]
pub enum ResidencyError {
    /// A read failed, or a file changed: one sentence for the user.
    Read(String),
    /// The computation was interrupted while it waited.
    Aborted,
    /// A bug of ours.
    Internal(String),
}

impl fmt::Display for ResidencyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResidencyError::Read(text) => f.write_str(text),
            ResidencyError::Aborted => f.write_str("the computation was interrupted"),
            ResidencyError::Internal(text) => write!(f, "internal error: {text}"),
        }
    }
}

impl std::error::Error for ResidencyError {}
