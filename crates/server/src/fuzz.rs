//! Bodies of fuzz tests: given any bytes, they must neither panic, hang, nor take memory out of
//! proportion. `fuzz/` runs them under cargo-fuzz, `tests/fuzz.rs` on mutated requests in every build.

use crate::wire::{anthropic, ollama, openai};

/// Reads `data` as each kind of request of Ollama's API, and makes questions of those that are sound.
///
/// # Panics
/// If a question exceeds what the limits allow.
pub fn fuzz_ollama(data: &[u8]) {
    ollama::fuzz(data);
}

/// Reads `data` as each kind of request of OpenAI's API.
///
/// # Panics
/// If a request is understood that exceeds a limit.
pub fn fuzz_openai(data: &[u8]) {
    openai::fuzz::fuzz(data);
}

/// Reads `data` as each kind of request of Anthropic's API.
///
/// # Panics
/// If a request is understood that exceeds a limit.
pub fn fuzz_anthropic(data: &[u8]) {
    anthropic::fuzz::fuzz(data);
}
