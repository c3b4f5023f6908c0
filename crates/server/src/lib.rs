//! The server: the wire formats of Ollama, OpenAI and Anthropic.
//!
//! Nothing is here yet, and the command line has no `serve`.
#![forbid(unsafe_code)]
