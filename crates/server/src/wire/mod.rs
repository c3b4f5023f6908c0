//! The wire formats: JSON in, JSON out, nothing decided.

pub(crate) mod anthropic;
mod blocks;
mod fields;
mod ids;
mod keep_alive;
pub(crate) mod ollama;
pub(crate) mod openai;
mod sse;
mod stream;
