//! Attention state in blocks: a hot tier in memory, a cold tier on disk, sessions.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod chain;
mod session;

pub use chain::{Chain, FORMAT_VERSION, NodeId, Scope, ScopeFields, Token, hex};
pub use session::{
    FormatError, LockError, MANIFEST_BYTES_MAX, NAME_LEN_MAX, NameError, SESSION_VERSION, Session,
    SessionError, SessionLock, SessionMessage, SessionName, SessionOutline, SessionStore,
    SessionSummary, TOKENS_MAX,
};
