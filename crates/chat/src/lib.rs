//! Everything around a model's text in a chat.
//!
//! - [`Conversation`]: messages, tools, whether to think.
//! - [`ChatTemplate`] makes a prompt of it, by the model's own Jinja template.
//! - [`Format`] is how the model writes reasoning and tool calls; its [`Parser`] tells them apart
//!   from content while the text comes.
//!
//! Pure functions: no files, no network, no llama.cpp.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

mod error;
mod format;
mod fuzz;
mod id;
mod jinja;
mod json;
mod message;
mod parse;
mod probe;
mod shape;
mod template;

pub use error::ChatError;
pub use format::Format;
pub use fuzz::{fuzz_parser, fuzz_template};
pub use jinja::{PROMPT_BYTES_MAX, TEMPLATE_BYTES_MAX};
pub use message::{Conversation, Message, Think, Tool, ToolCall};
pub use parse::{Delta, Parser};
pub use template::{Capabilities, ChatTemplate};
