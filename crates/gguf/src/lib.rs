//! Reads and writes GGUF, the file format of llama.cpp's models.
//!
//! A GGUF file is a header (metadata as key and value, then one info per tensor) and, after it, the
//! tensors' data. The format is described in `ggml/include/gguf.h` and `ggml/docs/gguf.md` of
//! llama.cpp. This crate knows three things about it:
//!
//! * what a file says: [`read_header`] (bounded, never panics, never trusts a length) and [`Writer`];
//! * what a model is: [`Model::open`] joins a split set into one list of [`Tensor`]s, each with its
//!   file, absolute offset and [`Role`], and [`Tensor::expert_range`] names the bytes of one expert;
//! * what a planner needs to know of its shape: [`Hparams`];
//! * how a model is laid out once so that it streams fast: [`hot`].
//!
//! It never reads tensor data, except to check a hot file against its checksums: that is the
//! business of whoever holds a read engine.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

pub mod fuzz;
pub mod hot;
pub mod output;

mod ggml_type;
mod hparams;
mod metadata;
mod model;
mod read;
mod role;
mod split;
mod value;
mod virtual_header;
mod write;

pub use ggml_type::{GgmlType, GgmlTypeError};
pub use hparams::{Hparams, RecurrentHparams};
pub use metadata::Metadata;
pub use model::{ByteRange, Model, ModelFile, OpenError, Tensor};
pub use read::{
    Header, MAX_HEADER_BYTES, MAX_METADATA_ENTRIES, MAX_STRING_BYTES, MAX_TENSORS, ReadError,
    TensorInfo, read_header,
};
pub use role::{ExpertPart, Role};
pub use split::{SplitName, split_path, write_split};
pub use value::{Array, StringArray, Value, ValueType};
pub use virtual_header::{VirtualHeader, virtual_header};
pub use write::{WriteError, Writer};

/// Alignment of tensor data, in bytes, where a file does not say otherwise in `general.alignment`.
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// Largest alignment that is read or written, in bytes; llama.cpp has no limit, nobody needs more.
pub const MAX_ALIGNMENT: u32 = 16 << 20;
/// Most bytes of a metadata key (the format's own limit).
pub const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
pub const MAX_DIMS: usize = 4;
/// Most bytes of a tensor's name that llama.cpp can hold (`GGML_MAX_NAME` less the closing zero).
pub const MAX_TENSOR_NAME_BYTES: usize = 63;

/// The metadata key that holds the alignment of the tensor data.
pub(crate) const KEY_ALIGNMENT: &str = "general.alignment";

/// Rounds `offset` up to a multiple of `alignment`, a power of two; `None` if that overflows.
pub(crate) fn align_up(offset: u64, alignment: u32) -> Option<u64> {
    let mask = u64::from(alignment).checked_sub(1)?;
    Some(offset.checked_add(mask)? & !mask)
}
