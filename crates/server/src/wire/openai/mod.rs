//! OpenAI's API: chat, completions, embeddings, models, responses.
//!
//! The fields are those of <https://github.com/openai/openai-openapi> and of the types of
//! `openai-python`; besides come the extensions that llama.cpp's server, vLLM and Ollama have in
//! common. Fields that have no meaning here (`user`, `metadata`, `service_tier`, `prediction` and so
//! on) and unknown ones are ignored; what would change the answer and can't be done is refused.

use axum::Router;
use axum::http::{Method, Uri};
use axum::routing::{get, post};

use self::error::OpenAiError;
use crate::app::Shared;
use crate::error::{ApiError, ErrorKind};

mod chat;
mod completions;
mod embeddings;
mod error;
mod format;
pub(crate) mod fuzz;
mod logprobs;
mod models;
mod parts;
mod responses;
mod sampling;
mod think;
mod tools;
mod usage;

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::show))
        .route("/v1/responses", post(responses::responses))
        .route("/v1/responses/input_tokens", post(responses::input_tokens))
        .method_not_allowed_fallback(method_not_allowed)
}

async fn method_not_allowed(method: Method, uri: Uri) -> OpenAiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(ErrorKind::MethodNotAllowed, message).into()
}

/// What changes with how this server computes; here, its version.
const FINGERPRINT: &str = concat!("hypura-", env!("CARGO_PKG_VERSION"));

/// What all objects and chunks of one answer begin with.
#[derive(Debug, Clone)]
struct Head {
    id: String,
    /// Seconds since 1970.
    created: i64,
    /// The model, as the client called it.
    model: String,
}

impl Head {
    fn new(prefix: &str, model: &str) -> Head {
        Head {
            id: super::ids::new(prefix),
            created: chrono::Utc::now().timestamp(),
            model: model.to_owned(),
        }
    }
}

#[cfg(test)]
impl Head {
    fn fixed(id: &str) -> Head {
        Head { id: id.to_owned(), created: 1_700_000_000, model: "demo".to_owned() }
    }
}
