//! Moves bytes from files into memory, and knows nothing of what they mean.
//!
//! - [`Buffer`]: a uniquely owned piece of memory, ours or somebody else's, that travels with a
//!   read and comes back with its result, also when the read failed.
//! - [`File`]: a regular file opened for direct reads (past the page cache) where the file system
//!   allows them, which says so where it doesn't.
//! - [`ReadEngine`]: a bounded queue of reads. [`PreadPool`] does them with threads;
//!   [`FaultEngine`] wraps any engine and makes it fail on purpose; the feature `conformance` has
//!   the suite that all of them pass.
//! - [`read_exact_at`]: one read, now, on the calling thread.
//!
//! A short read is never silence: it goes on, or it is [`ReadError::UnexpectedEof`].
//!
//! This crate contains `unsafe`: memory that kernels and other libraries own has to be named by
//! address. It is kept to `buffer.rs` (owning memory), `job.rs` (sharing it among threads),
//! `range.rs` (which bytes go where) and `sys.rs` (the system call).
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

mod buffer;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod engine;
mod fault;
mod file;
mod job;
mod pool;
mod range;
mod sys;

pub use buffer::{AllocError, Buffer};
pub use engine::{
    Completion, Priority, QueueFull, ReadEngine, ReadError, ReadRequest, ReadStats, Slack, Wait,
};
pub use fault::{Fault, FaultEngine, FaultPlan};
pub use file::{Access, ChangedError, DIRECT_ALIGN_MAX, DirectAlign, File, Identity, OpenError};
pub use pool::{PoolConfig, PoolError, PreadPool};
pub use range::read_exact_at;
