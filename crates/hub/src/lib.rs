//! The models that lie on this machine, and how others get here.
//!
//! * [`Stores`] finds models by name: in Hypura's own folder, in folders of GGUF files, in Ollama's
//!   store and in the Hugging Face cache. The last two belong to others and are only read.
//! * [`Entry`] is one model of a store; [`Entry::details`] is what its header says.
//! * [`Manifest`] is what a model in Hypura's own folder is made of: files, and what is said to the
//!   model beside the prompt.
//! * [`ModelName`] is the only door from a name to a path that is written to.
//! * [`Puller`] brings models from Hugging Face.
//!
//! Weights are never read here, except to check what was downloaded.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

pub mod fuzz;

mod blobs;
mod details;
mod disk;
mod entry;
mod error;
mod manifest;
mod name;
mod own;
mod pull;
mod quantization;
mod stores;

pub use blobs::Digest;
pub use details::{Details, TensorDetails};
pub use entry::{Entry, StoreKind};
pub use error::{DiskError, ResolveError, StoreError};
pub use manifest::{Blob, MANIFEST_VERSION, Manifest, ManifestError, Message, ModelRef, PARTS_MAX};
pub use name::{ModelName, NameError};
pub use pull::{Progress, PullConfig, PullError, Puller};
pub use stores::Stores;
