//! The application: what all handlers share, and which paths there are.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;

use crate::config::Config;
use crate::models::Models;
use crate::ops::Metrics;
use crate::{guard, ops, ui, wire};

/// What all handlers share.
pub struct App {
    /// How the server runs.
    pub config: Config,
    /// What can be asked.
    pub models: Models,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// How fast models go.
    pub(crate) rates: ui::Rates,
    /// When the server began.
    pub(crate) started: Instant,
}

/// The application, as handlers hold it.
pub type Shared = Arc<App>;

impl App {
    /// An application over these models.
    pub fn new(config: Config, models: Models) -> Shared {
        Arc::new(App {
            config,
            models,
            metrics: Metrics::default(),
            rates: ui::Rates::default(),
            started: Instant::now(),
        })
    }
}

/// All paths, behind all guards.
pub fn router(app: &Shared) -> Router {
    let routes = Router::new()
        .merge(wire::ollama::routes())
        .merge(wire::openai::routes())
        .merge(wire::anthropic::routes())
        .merge(ui::routes())
        .merge(ops::routes());
    guard::wrap(routes, app).with_state(Arc::clone(app))
}
