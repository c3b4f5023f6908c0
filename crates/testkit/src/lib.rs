//! Synthesises GGUF models for tests, the demo and benchmarks.
//!
//! Three kinds, for three purposes:
//!
//! * [`tiny`]: random models of many architectures, small enough to be made in a test. They say
//!   nothing sensible, but every kernel and every tensor of the architecture is exercised.
//! * [`widen`](mod@widen): a trained model with K times the feed-forward width that says the same
//!   words and routes the same way, for whatever needs real routing at a realistic size.
//! * [`dense`]: a large random dense model, for bandwidth alone.
//!
//! Quantizing and dequantizing is ggml's work throughout; this crate knows only where the scales
//! of a block lie ([`blocks`]). All randomness is seeded: one seed gives one file.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

pub mod blocks;
pub mod dense;
mod rng;
mod stream;
pub mod text;
pub mod tiny;
mod tokenizer;
pub mod widen;

pub use hypura_gguf::output::OutputError;
pub use rng::Rng;
pub use stream::{Progress, StreamError};
