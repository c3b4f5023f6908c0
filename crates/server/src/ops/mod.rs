//! What operators need: health, metrics, the description of the API.

use axum::Router;

use crate::app::Shared;

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {}

impl Metrics {
    /// An answer ended.
    pub(crate) fn answer_ended(&self, _summary: &crate::answer::Summary) {}
}

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
}
