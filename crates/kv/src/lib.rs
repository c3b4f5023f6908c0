//! Attention state in blocks: a hot tier in memory, a cold tier on disk, sessions.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod chain;

pub use chain::{Chain, FORMAT_VERSION, NodeId, Scope, ScopeFields, Token, hex};
