//! Attention state in blocks: a hot tier in memory, a cold tier on disk, sessions.
//!
//! - [`Chain`] names the state after some tokens: a [`NodeId`]. A [`Block`] leads from one node to
//!   another, or is a checkpoint of one.
//! - [`Store`] keeps blocks, finds the longest way along the tokens of a prompt, and fetches the
//!   blocks on it. What it delivers is what was put, or an error; a block that is gone or damaged
//!   is not found, and no failure.
//! - [`Disk`] is what the cold tier asks of a drive; [`FaultDisk`] is one that fails on purpose.
//! - [`encode`] and [`decode`]: the image of a block, in files and elsewhere.
//!
//! Here nobody knows what a payload means.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

mod block;
mod chain;
mod clock;
mod disk;
mod fault_disk;
mod fetch;
mod find;
pub mod fuzz;
mod index;
mod memory;
mod name;
mod session;
mod shared;
mod stats;
mod store;
mod wear;
mod writer;

pub use block::{
    BLOCK_TOKENS_MAX, Block, BlockError, BlockKey, BlockKind, HEADER_BYTES, PAYLOAD_BYTES_MAX,
    decode, encode,
};
pub use chain::{Chain, FORMAT_VERSION, NodeId, Scope, ScopeFields, Token, hex};
pub use clock::{Clock, SystemClock};
pub use disk::{Disk, Listed, LockGuard, SystemDisk};
pub use fault_disk::{DiskFault, FaultDisk};
pub use fetch::{Fetch, FetchError, Fetched};
pub use find::{Found, FoundBlock, PARTIAL_CANDIDATES_MAX, Want};
pub use index::Tier;
pub use session::fuzz::{fuzz_portable, fuzz_session};
pub use session::{
    BLOCK_IMAGE_BYTES_MAX, BLOCK_IMAGES_MAX, FormatError, LockError, MANIFEST_BYTES_MAX,
    NAME_LEN_MAX, NameError, PORTABLE_VERSION, PortableError, PortableReader, PortableSummary,
    SESSION_VERSION, Session, SessionError, SessionLock, SessionMessage, SessionName,
    SessionOutline, SessionStore, SessionSummary, TOKENS_MAX, write_portable,
};
pub use shared::RETRY_AFTER;
pub use stats::{Health, StoreStats};
pub use store::{
    ColdConfig, DROP_WAIT_MAX, OpenError, Put, READ_DEPTH_MAX, ReaderFactory, State, Store,
    StoreConfig,
};
