//! What the server says about itself.

use axum::Json;
use serde_json::{Value, json};

/// The release of Ollama whose API this is. Clients compare it with the least that they need and
/// refuse what is older: VS Code's chat needs 0.6.4, some editors 0.14.2.
const OLLAMA_VERSION: &str = "0.33.0";

/// Clients look whether Ollama runs by asking for `/`.
pub(super) async fn root() -> &'static str {
    "Ollama is running"
}

/// `GET /api/version`, with Hypura's own version in a field of its own.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": OLLAMA_VERSION, "hypura": {"version": env!("CARGO_PKG_VERSION")}}))
}

/// `GET /api/status`: there is no cloud behind this server.
pub(super) async fn status() -> Json<Value> {
    Json(json!({"cloud": {"disabled": true, "source": "none"}}))
}
