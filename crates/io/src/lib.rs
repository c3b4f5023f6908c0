//! Moves bytes from files into memory, and knows nothing of what they mean.
//!
//! - [`Buffer`]: a uniquely owned piece of memory, ours or somebody else's, that travels with a
//!   read and comes back with its result, also when the read failed.
//! - [`File`]: a regular file opened for direct reads (past the page cache) where the file system
//!   allows them, which says so where it doesn't.
//! - [`ReadEngine`]: a bounded queue of reads. `UringEngine` does them through Linux's io_uring,
//!   [`PreadPool`] with threads; [`open_engine`] takes the best that there is. [`FaultEngine`]
//!   wraps any engine and makes it fail on purpose; the feature `conformance` has the suite that
//!   all of them pass.
//! - [`read_exact_at`]: one read, now, on the calling thread.
//! - [`prefer_huge_pages`]: makes the memory that reads go to cheaper to fill.
//!
//! A short read is never silence: it goes on, or it is [`ReadError::UnexpectedEof`].
//!
//! This crate contains `unsafe`: memory that kernels and other libraries own has to be named by
//! address. It is kept to `buffer.rs` (owning memory), `job.rs` (sharing it among threads),
//! `range.rs` (which bytes go where), `sys.rs` (the system call), `uring/ring.rs` (the ring) and `huge.rs` (advice about memory).
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

mod buffer;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod engine;
mod fault;
mod file;
mod huge;
mod job;
mod open;
mod pool;
mod queue;
mod range;
mod sys;
#[cfg(target_os = "linux")]
mod uring;

pub use buffer::{AllocError, Buffer};
pub use engine::{
    Completion, Priority, QueueFull, ReadEngine, ReadError, ReadRequest, ReadStats, Slack, Wait,
};
pub use fault::{Fault, FaultEngine, FaultPlan};
pub use file::{Access, ChangedError, DIRECT_ALIGN_MAX, DirectAlign, File, Identity, OpenError};
pub use huge::prefer_huge_pages;
pub use open::{EngineConfig, EngineError, EngineKind, open_engine};
pub use pool::{PoolConfig, PoolError, PreadPool};
pub use range::read_exact_at;
#[cfg(target_os = "linux")]
pub use uring::{UringConfig, UringEngine, UringError};
