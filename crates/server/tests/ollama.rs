//! Ollama's API through the router, over a scripted model.

#[path = "ollama/answers.rs"]
mod answers;
mod common;
#[path = "ollama/manage.rs"]
mod manage;
#[path = "ollama/models.rs"]
mod models;
#[path = "ollama/pull.rs"]
mod pull;
