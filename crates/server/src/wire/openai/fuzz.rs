//! Any bytes as requests of OpenAI's API.

use axum::body::Bytes;

use super::{chat, completions, embeddings, responses};
use crate::config::Limits;

/// Reads `data` as each kind of request.
pub(crate) fn fuzz(data: &[u8]) {
    let (body, limits) = (Bytes::copy_from_slice(data), Limits::default());
    chat::fuzz(&body, &limits);
    completions::fuzz(&body, &limits);
    embeddings::fuzz(&body, &limits);
    responses::fuzz(&body, &limits);
}
