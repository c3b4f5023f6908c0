//! The page at `/ui`: its files, and what it shows of the server.

mod files;
mod rates;
mod sessions;
mod status;

use axum::Router;
use axum::routing::get;

use crate::app::Shared;

pub(crate) use rates::Rates;

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/ui", get(files::index))
        .route("/ui/", get(files::index))
        .route("/ui/status", get(status::show))
        .route("/ui/{*file}", get(files::file))
}
