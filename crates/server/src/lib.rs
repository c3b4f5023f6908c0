//! The server: Ollama's, OpenAI's and Anthropic's APIs over models that are loaded on demand.
//!
//! ```text
//! guard     who may ask: Host, Origin, keys, sizes, times
//! wire      JSON of Ollama, OpenAI, Anthropic     <->  Ask, Event
//! answer    Ask -> template -> tokens -> engine -> text -> Event
//! models    what lies here, what is loaded, what gives way
//! ops       health, metrics, the API's description
//! ui        the page
//! ```
//!
//! Only this crate knows HTTP, and JSON on the wire.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod answer;
mod app;
mod config;
mod error;
pub mod fuzz;
mod guard;
mod http;
pub mod models;
mod ops;
mod serve;
#[cfg(test)]
mod testing;
mod ui;
mod wire;

pub use app::{App, Shared, router};
pub use config::{Config, Limits, TlsConfig};
pub use error::{ApiError, ErrorKind};
pub use serve::{ServeError, Server};
