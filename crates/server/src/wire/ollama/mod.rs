//! Ollama's API.
//!
//! Fields, defaults, status codes and error texts are those of Ollama itself: `docs/api.md`,
//! `api/types.go` and `server/routes.go` of <https://github.com/ollama/ollama>. What differs:
//!
//! - The last line of an answer has a field `hypura`: `reused_tokens` of the prompt were known
//!   already, `ttft_ms` passed until the first token (loading included), `queue_ms` of them waiting.
//! - Options that are out of range are an error. Those that say how a model is loaded (`num_gpu`,
//!   `num_batch` and so on) are read and change nothing.
//! - Templates of Go, images, adapters, quantizing and pushing are refused.
//! - Models are pulled from Hugging Face. What Ollama pulled is found where it lies.
//! - After a `context` (which Ollama deprecates) models don't think.
//! - `shift` changes nothing: an answer ends where the context does.

mod about;
mod answer;
mod blobs;
mod chat;
mod create;
mod embed;
mod error;
mod fill;
mod format;
mod fuzz;
mod generate;
mod manage;
mod message;
mod models;
mod options;
mod parts;
mod pull;
mod request;
mod show;
mod status;

use axum::Router;
use axum::routing::{delete, get, head, post};

use crate::app::Shared;

pub(crate) use fuzz::fuzz;

/// All paths of the API. Those of `GET` take `HEAD` too.
pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/", get(about::root))
        .route("/api/version", get(about::version))
        .route("/api/status", get(about::status))
        .route("/api/chat", post(chat::chat))
        .route("/api/generate", post(generate::generate))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::embeddings))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::ps))
        .route("/api/show", post(show::show))
        .route("/api/pull", post(pull::pull))
        .route("/api/create", post(create::create))
        .route("/api/copy", post(manage::copy))
        .route("/api/delete", delete(manage::delete))
        .route("/api/blobs/{digest}", head(blobs::head_blob).post(blobs::put_blob))
        .route("/api/push", post(manage::not_here))
        .route("/api/me", post(manage::not_here))
        .route("/api/signin", post(manage::not_here))
        .route("/api/signout", post(manage::not_here))
        .route("/api/user/keys/{key}", delete(manage::not_here))
        .route("/api/experimental/web_search", post(manage::not_here))
        .route("/api/experimental/web_fetch", post(manage::not_here))
}
