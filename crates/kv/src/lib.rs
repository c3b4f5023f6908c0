//! Attention state in blocks: a hot tier in memory, a cold tier on disk, sessions.
//!
//! Nothing is here yet. Until it is, attention state lives in llama.cpp's context for as long as a
//! process runs, and a follow-up in the same chat computes only what is new.
#![forbid(unsafe_code)]
