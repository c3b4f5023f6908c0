//! The wire formats: JSON in, JSON out, nothing decided.

pub(crate) mod anthropic;
pub(crate) mod ollama;
pub(crate) mod openai;
