//! Attention state in blocks: a hot tier in memory, a cold tier on disk, sessions.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod chain;
mod session;

pub use chain::{Chain, FORMAT_VERSION, NodeId, Scope, ScopeFields, Token, hex};
pub use session::fuzz::{fuzz_portable, fuzz_session};
pub use session::{
    BLOCK_IMAGE_BYTES_MAX, BLOCK_IMAGES_MAX, FormatError, LockError, MANIFEST_BYTES_MAX,
    NAME_LEN_MAX, NameError, PORTABLE_VERSION, PortableError, PortableReader, PortableSummary,
    SESSION_VERSION, Session, SessionError, SessionLock, SessionMessage, SessionName,
    SessionOutline, SessionStore, SessionSummary, TOKENS_MAX, write_portable,
};
