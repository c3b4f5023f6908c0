//! What operators need: health, metrics, the access log, the description of the API.

pub(crate) mod access;
mod health;
mod metrics;
mod openapi;

use axum::Router;
use axum::routing::get;

use crate::app::Shared;

#[cfg(test)]
pub(crate) use metrics::show as show_metrics;
pub(crate) use metrics::{Counted, Metrics};

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/health", get(health::health))
        .route("/metrics", get(metrics::show))
        .route("/openapi.json", get(openapi::show))
}
