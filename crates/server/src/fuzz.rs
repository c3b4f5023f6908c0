//! Bodies of fuzz tests: given any bytes, they must neither panic, hang, nor take memory out of
//! proportion. `fuzz/` runs them under cargo-fuzz, tests run them on mutated requests in every build.

use crate::wire;

/// Reads `data` as each kind of request to Ollama's API, and makes questions of those that are sound.
///
/// # Panics
/// If a question exceeds what the limits allow.
pub fn fuzz_ollama(data: &[u8]) {
    wire::ollama::fuzz(data);
}
