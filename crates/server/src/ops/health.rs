//! `/health`: whether the server answers and may be sent requests.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::app::Shared;

/// 200 while requests are taken, 503 from the moment that the server was asked to stop.
pub(super) async fn health(State(app): State<Shared>) -> Response {
    if app.metrics.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "stopping" })))
            .into_response();
    }
    Json(json!({ "status": "ok" })).into_response()
}
