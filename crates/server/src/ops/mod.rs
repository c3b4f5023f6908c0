//! What operators need: health, metrics, the description of the API.

use axum::Router;

use crate::app::Shared;

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {}

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
}
