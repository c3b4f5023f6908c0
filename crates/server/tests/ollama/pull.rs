//! Pulling from a stand-in for the hub.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hypura_hub::{Digest, PullConfig};
use hypura_server::{Config, router};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::common::{Served, request};

/// A hub with one file.
struct Hub {
    model: Vec<u8>,
    /// Half of the file is sent, and then nothing more.
    stalls: AtomicBool,
    /// From which byte on the file was asked for, each time.
    asked_from: Mutex<Vec<usize>>,
}

async fn tree(State(hub): State<Arc<Hub>>) -> Response {
    let lfs = json!({"oid": Digest::of(&hub.model).as_str(), "size": hub.model.len()});
    axum::Json(json!([{"type": "file", "path": "demo-Q4_K_M.gguf", "lfs": lfs}])).into_response()
}

async fn file(State(hub): State<Arc<Hub>>, headers: HeaderMap) -> Response {
    let range = headers.get("range").and_then(|range| range.to_str().ok());
    let from =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    hub.asked_from.lock().unwrap().push(from.unwrap_or(0));
    let (from, all) = (from.unwrap_or(0), hub.model.len());
    let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let headers = [
        ("etag", "\"one\"".to_owned()),
        ("content-length", (all - from).to_string()),
        ("content-range", format!("bytes {from}-{}/{all}", all - 1)),
    ];
    let piece = |range: std::ops::Range<usize>| Bytes::copy_from_slice(&hub.model[range]);
    let body = if hub.stalls.load(Ordering::Relaxed) {
        let half = stream::iter([Ok::<_, std::io::Error>(piece(from..all / 2))]);
        Body::from_stream(half.chain(stream::pending()))
    } else {
        Body::from(piece(from..all))
    };
    (status, headers, body).into_response()
}

/// A server that pulls from a hub of its own.
async fn serve() -> (Served, Arc<Hub>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let recipe = hypura_testkit::tiny::find("llama").unwrap();
    recipe.model(recipe.default_mix, 3).unwrap().write(&path).unwrap();
    let hub = Arc::new(Hub {
        model: std::fs::read(path).unwrap(),
        stalls: AtomicBool::new(false),
        asked_from: Mutex::default(),
    });
    let routes = Router::new()
        .route("/api/models/org/repo/tree/main", get(tree))
        .route("/org/repo/resolve/main/demo-Q4_K_M.gguf", get(file))
        .with_state(Arc::clone(&hub));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    let pull = PullConfig {
        endpoint,
        retries: 0,
        read_timeout: Duration::from_millis(200),
        ..PullConfig::default()
    };
    (Served::with(Config { pull, ..Config::default() }), hub)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_tells_how_far_it_is() {
    let (served, hub) = serve().await;
    let answered = served.post("/api/pull", &json!({"model": "hf.co/org/repo"})).await;
    assert_eq!(answered.status, StatusCode::OK);
    assert_eq!(answered.headers["content-type"], "application/x-ndjson");
    let lines = answered.lines();
    assert_eq!(lines.first().unwrap(), &json!({"status": "pulling manifest"}));
    assert_eq!(lines.last().unwrap(), &json!({"status": "success"}));
    let digest = Digest::of(&hub.model);
    let whole = json!({"status": format!("pulling {:.12}", digest.as_str()),
        "digest": format!("sha256:{digest}"), "total": hub.model.len(),
        "completed": hub.model.len()});
    assert!(lines.contains(&whole), "{lines:?}");
    let shown = served.post("/api/show", &json!({"model": "hf.co/org/repo"})).await;
    assert_eq!(shown.status, StatusCode::OK);
    let again = json!({"name": "hf.co/org/repo", "stream": false});
    assert_eq!(served.post("/api/pull", &again).await.json(), json!({"status": "success"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told() {
    let (served, _hub) = serve().await;
    let pull = |model: &str| json!({"model": model, "stream": false});
    let missing = served.post("/api/pull", &pull("hf.co/org/nothing")).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let quant = served.post("/api/pull", &pull("hf.co/org/repo:Q8_0")).await;
    assert_eq!(quant.status, StatusCode::NOT_FOUND);
    let ollama = served.post("/api/pull", &pull("llama3.2")).await;
    assert_eq!(ollama.status, StatusCode::BAD_REQUEST);
    assert!(ollama.json()["error"].as_str().unwrap().contains("Hugging Face"));
    assert_eq!(served.post("/api/pull", &json!({})).await.status, StatusCode::BAD_REQUEST);
    // What is here need not come from anywhere.
    assert_eq!(served.post("/api/pull", &pull("demo")).await.json(), json!({"status": "success"}));
    // In lines, the status has been sent by then.
    let lines = served.post("/api/pull", &json!({"model": "hf.co/org/nothing"})).await.lines();
    assert_eq!(lines[0], json!({"status": "pulling manifest"}));
    assert!(lines.last().unwrap()["error"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_left_is_gone_on_with() {
    let (served, hub) = serve().await;
    hub.stalls.store(true, Ordering::Relaxed);
    let body = json!({"model": "hf.co/org/repo"}).to_string();
    let pull = request(Method::POST, "/api/pull", Body::from(body));
    let response = router(&served.app).oneshot(pull).await.unwrap();
    let mut lines = response.into_body();
    loop {
        let line = lines.frame().await.unwrap().unwrap().into_data().unwrap();
        let line: Value = serde_json::from_slice(&line).unwrap();
        if line["completed"].as_u64().is_some_and(|bytes| bytes > 0) {
            break;
        }
    }
    drop(lines);
    hub.stalls.store(false, Ordering::Relaxed);
    let again = json!({"model": "hf.co/org/repo", "stream": false});
    assert_eq!(served.post("/api/pull", &again).await.json(), json!({"status": "success"}));
    let asked_from = hub.asked_from.lock().unwrap();
    assert!(asked_from.len() >= 2 && *asked_from.last().unwrap() > 0, "{asked_from:?}");
}
