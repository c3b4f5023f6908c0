//! Hot files: models laid out for streaming, once, so that nothing is moved around later.
//!
//! In an ordinary GGUF file an expert is three slices in three places, none of which begins at a
//! block of the drive. In a hot file it is one block of adjacent parts, each beginning at a multiple
//! of 4096 bytes, and a part may lie as the CPU's kernels want it (see [`HotLayout`]).
//!
//! # Format, version 1
//!
//! A GGUF file (see [`read`](crate::read_header)) with `general.alignment` 4096:
//!
//! ```text
//! 0              header: all metadata of the source, in order (but general.alignment)
//!                        hypura.hot.* (below)
//!                        infos of the tensors that are not hot, in order, as usual
//!                        info of "hypura.hot.blocks", type I8, one dimension: B bytes
//! data_offset    data of the tensors that are not hot, each at a multiple of 4096
//! blocks_offset  B bytes of groups, in order; everything begins at a multiple of 4096:
//!
//!                group   | block 0 | block 1 | ... | block n-1 |      `stride` bytes each
//!                block   | gate  0 | up  0 | down  0 |                of expert 0, ..., n-1
//!                block   | a matrix  0 |                              n = 1
//! ```
//!
//! Each run of `0` is padding of zeros up to the next multiple of 4096. A group is either one layer's
//! experts (each block one expert, its parts in the order of use), or a single matrix. Hot tensors
//! have no tensor info: another program finds them missing and refuses the file, rather than compute
//! with bytes in a layout that it doesn't know. The metadata say what they are:
//!
//! | key, `hypura.hot.` + | type | |
//! |---|---|---|
//! | `version` | u32 | 1 |
//! | `source.name` | string | file name of the source, of a split set the first |
//! | `source.bytes` | u64 | bytes of all its files |
//! | `source.alignment` | u32 | its `general.alignment`, if it said any |
//! | `tensor.name` | \[string\] | by hot tensor |
//! | `tensor.index` | \[u32\] | its place among all tensors of the source, ascending |
//! | `tensor.type` | \[u32\] | ggml's number of the type |
//! | `tensor.n_dims` | \[u32\] | number of dimensions |
//! | `tensor.dims` | \[u64\] | four for each, 1 beyond `n_dims` |
//! | `tensor.group` | \[u32\] | index of its group |
//! | `tensor.offset` | \[u64\] | where its slices begin in a block |
//! | `tensor.layout` | \[string\] | empty as in the source; else the fingerprint, 64 hex digits |
//! | `group.offset` | \[u64\] | by group: where it begins, from `blocks_offset`, ascending |
//! | `group.stride` | \[u64\] | bytes from one block to the next |
//! | `group.blocks` | \[u32\] | number of blocks |
//! | `group.checksum` | \[u8\] | 32 each: BLAKE3 of all its bytes, padding included |
//! | `plain.checksum` | \[u8\] | 32 for each tensor that is not hot: BLAKE3 of its data and padding |
//! | `header.checksum` | \[u8\] | 32: BLAKE3 of the header up to `data_offset`, these 32 being 0 |
//!
//! All checksums have a fixed size, so a header can be written first and completed last.

mod read;
mod select;
mod table;
mod verify;
mod write;

pub use read::{HotError, HotGroup, HotModel, HotTensor, is_hot};
pub use verify::VerifyError;
pub use write::{HotFile, HotWriteError, HotWriter, Piece};

pub(crate) use read::check_places;

/// What everything in the blocks begins at a multiple of, in bytes: what direct reads need on every
/// drive that we know of.
pub const HOT_ALIGNMENT: u32 = 4096;
/// The version of the format that is written, and the only one that is read.
pub const HOT_VERSION: u32 = 1;
/// The tensor that holds all blocks.
pub const HOT_BLOCKS: &str = "hypura.hot.blocks";

/// How the slices of a hot tensor lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HotLayout {
    /// As in the source.
    Plain,
    /// Rearranged for a kind of CPU. The number of bytes is the same.
    Repacked {
        /// Names the rearrangement: a machine that makes the same of a sample can use the slices.
        fingerprint: [u8; 32],
    },
}

impl HotLayout {
    /// Whether it is rearranged.
    #[must_use]
    pub const fn is_repacked(self) -> bool {
        matches!(self, Self::Repacked { .. })
    }
}
