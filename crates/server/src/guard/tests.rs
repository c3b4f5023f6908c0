//! All guards together, around routes that echo.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Extension;
use axum::http::{Request, StatusCode};
use axum::routing::{get, post};
use futures_util::stream;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::*;
use crate::config::{Config, Limits};
use crate::http::Caller;
use crate::testing;

fn router(config: Config) -> Router {
    let app = testing::app(config);
    let echo = || post(async |body: Bytes| body);
    let routes = Router::new()
        .route("/", get(async || "here"))
        .route("/health", get(async || "ok"))
        .route("/metrics", get(async || "numbers"))
        .route("/ui", get(async || "page"))
        .route("/ui/status", get(async || "status"))
        .route("/ui/{*file}", get(async || "file"))
        .route("/api/chat", echo())
        .route("/api/blobs/{digest}", echo())
        .route("/v1/chat/completions", echo())
        .route("/v1/messages", echo())
        .route("/tenant", get(async |Extension(caller): Extension<Caller>| caller.tenant))
        .route("/panic", get(panic))
        .route("/never", get(std::future::pending::<()>))
        .route("/headers-only", get(async || Body::from_stream(stream::pending::<Piece>())));
    wrap(routes, &app).with_state(app)
}

type Piece = Result<Bytes, std::io::Error>;

async fn panic() {
    panic!("as a test");
}

/// Method, path, headers, body; a Host header is added.
async fn ask(
    config: Config,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Response {
    let mut request = Request::builder().method(method).uri(path);
    if headers.iter().all(|(name, _)| *name != "host") {
        request = request.header("host", "localhost");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    router(config).oneshot(request.body(body.into()).unwrap()).await.unwrap()
}

async fn json(response: Response) -> Value {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

fn with_keys() -> Config {
    Config { api_keys: vec!["secret".to_owned()], ..Config::default() }
}

fn with_limits(limits: Limits) -> Config {
    Config { limits, ..Config::default() }
}

#[tokio::test]
async fn errors_have_the_form_of_the_api_that_was_asked() {
    for (method, suffix, status) in [("GET", "", 405), ("GET", "/nothing", 404)] {
        let of = async |path: &str| {
            let path = format!("{path}{suffix}");
            let response = ask(Config::default(), method, &path, &[], "").await;
            assert_eq!(response.status(), status, "{path}");
            json(response).await
        };
        assert!(of("/api/chat").await["error"].is_string());
        let openai = of("/v1/chat/completions").await;
        assert_eq!(openai["error"]["type"], "invalid_request_error");
        assert!(openai["error"]["message"].is_string());
        let anthropic = of("/v1/messages").await;
        assert_eq!(anthropic["type"], "error");
        assert!(anthropic["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn an_unknown_method_says_what_is_allowed() {
    let response = ask(Config::default(), "GET", "/api/chat", &[], "").await;
    assert_eq!(response.headers()["allow"], "POST");
}

#[tokio::test]
async fn a_key_is_needed_but_for_what_is_open() {
    let cases = [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/health", 200),
        ("GET", "/ui", 200),
        ("GET", "/ui/app.js", 200),
        ("GET", "/ui/status", 401),
        ("GET", "/metrics", 401),
        ("POST", "/api/chat", 401),
        ("GET", "/nothing", 401),
        ("GET", "//ui/status", 401),
        // To the router these are files of the page, and no such file exists.
        ("GET", "/ui/%73tatus", 200),
        ("GET", "/ui/../metrics", 200),
        ("GET", "/ui//status", 200),
    ];
    for (method, path, status) in cases {
        let response = ask(with_keys(), method, path, &[], "").await;
        assert_eq!(response.status(), status, "{method} {path}");
        let key = [("authorization", "Bearer secret")];
        let with_key = ask(with_keys(), method, path, &key, "").await.status();
        assert_ne!(with_key, 401, "{method} {path}");
    }
    // What a file's route answers is not the status.
    let response = ask(with_keys(), "GET", "/ui/%73tatus", &[], "").await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "file");
}

#[tokio::test]
async fn a_missing_key_is_told_in_the_form_of_the_api() {
    let anthropic = ask(with_keys(), "POST", "/v1/messages", &[("x-api-key", "no")], "").await;
    assert_eq!(anthropic.headers()["www-authenticate"], "Bearer");
    assert_eq!(json(anthropic).await["error"]["type"], "authentication_error");
    let openai = ask(with_keys(), "POST", "/v1/chat/completions", &[], "").await;
    assert_eq!(json(openai).await["error"]["code"], "invalid_api_key");
    let ollama = ask(with_keys(), "POST", "/api/chat", &[], "").await;
    assert!(json(ollama).await["error"].is_string());
}

#[tokio::test]
async fn handlers_know_whose_request_it_is() {
    let text = async |config, headers: &[(&str, &str)]| {
        let response = ask(config, "GET", "/tenant", headers, "").await;
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap().to_bytes()
    };
    assert_eq!(text(Config::default(), &[]).await, "");
    assert_eq!(text(with_keys(), &[("x-api-key", "secret")]).await.len(), 32);
}

#[tokio::test]
async fn other_names_and_pages_are_refused_before_keys() {
    let host = ask(with_keys(), "GET", "/", &[("host", "evil.example")], "").await;
    assert_eq!(host.status(), 403);
    let origin = [("origin", "https://evil.example"), ("x-api-key", "secret")];
    let origin = ask(with_keys(), "POST", "/v1/messages", &origin, "").await;
    assert_eq!(origin.status(), 403);
    assert!(!origin.headers().contains_key("access-control-allow-origin"));
    assert_eq!(json(origin).await["error"]["type"], "permission_error");
}

#[tokio::test]
async fn a_preflight_is_answered_for_listed_pages_only_and_without_a_key() {
    let config = || Config { origins: vec!["https://chat.example".to_owned()], ..with_keys() };
    let headers = |origin| {
        [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, x-stainless-os"),
            ("access-control-request-private-network", "true"),
        ]
    };
    let good = headers("https://chat.example");
    let response = ask(config(), "OPTIONS", "/v1/messages", &good, "").await;
    assert_eq!(response.status(), 204);
    let header = |name| response.headers()[name].to_str().unwrap();
    assert_eq!(header("access-control-allow-origin"), "https://chat.example");
    assert_eq!(header("access-control-allow-headers"), "authorization, x-stainless-os");
    assert_eq!(header("access-control-allow-private-network"), "true");
    assert_eq!(header("access-control-max-age"), "600");
    assert_eq!(header("vary"), "origin");
    assert!(!response.headers().contains_key("access-control-allow-credentials"));

    let bad = headers("https://evil.example");
    let response = ask(config(), "OPTIONS", "/v1/messages", &bad, "").await;
    assert_eq!(response.status(), 403);
    assert!(!response.headers().contains_key("access-control-allow-origin"));

    // A listed page may read errors as well, else it could not say what is wrong.
    let response = ask(config(), "POST", "/v1/messages", &good[..1], "").await;
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()["access-control-allow-origin"], "https://chat.example");
}

#[tokio::test]
async fn bodies_are_bounded_announced_or_not() {
    let config = || with_limits(Limits { body_bytes_max: 10, ..Limits::default() });
    let chunked = |bytes: usize| {
        let pieces = (0..bytes).map(|_| Piece::Ok(Bytes::from_static(b"x")));
        Body::from_stream(stream::iter(pieces.collect::<Vec<_>>()))
    };
    for path in ["/api/chat", "/v1/chat/completions", "/v1/messages"] {
        assert_eq!(ask(config(), "POST", path, &[], vec![0; 10]).await.status(), 200);
        assert_eq!(ask(config(), "POST", path, &[], chunked(10)).await.status(), 200);
        assert_eq!(ask(config(), "POST", path, &[], vec![0; 11]).await.status(), 413);
        let response = ask(config(), "POST", path, &[], chunked(11)).await;
        assert_eq!(response.status(), 413);
        assert_eq!(response.headers()["connection"], "close");
    }
    // A model's file is read by its handler.
    let response = ask(config(), "POST", "/api/blobs/sha256:00", &[], chunked(11)).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn all_bodies_together_are_bounded_until_they_are_dropped() {
    let limits = Limits { body_bytes_max: 8, bodies_bytes_max: 10, ..Limits::default() };
    let bodies = limits::Bodies::new(&limits);
    let first = bodies.read(Body::from("12345678")).await.unwrap();
    let error = bodies.read(Body::from("123")).await.unwrap_err();
    assert_eq!(error.kind.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(error.retry_after.is_some());
    let part = first.slice(2..3);
    drop(first);
    assert!(bodies.read(Body::from("123")).await.is_err());
    drop(part);
    assert!(bodies.read(Body::from("12345678")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_body_has_to_come_in_time() {
    let pending = || Body::from_stream(stream::pending::<Piece>());
    let response = ask(Config::default(), "POST", "/v1/messages", &[], pending()).await;
    assert_eq!(response.status(), 408);
    assert_eq!(json(response).await["error"]["type"], "timeout_error");
    // Where the handler takes it piece by piece, it breaks off.
    let response = ask(Config::default(), "POST", "/api/blobs/x", &[], pending()).await;
    assert_eq!(response.status(), 400);
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_to_begin_in_time() {
    let limits = Limits { first_byte_timeout: Duration::from_secs(5), ..Limits::default() };
    let response = ask(with_limits(limits.clone()), "GET", "/never", &[], "").await;
    assert_eq!(response.status(), 503);
    let response = ask(with_limits(limits), "GET", "/headers-only", &[], "").await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_bug_in_a_handler_is_an_answer() {
    let response = ask(Config::default(), "GET", "/panic", &[], "").await;
    assert_eq!(response.status(), 500);
    assert!(response.headers().contains_key("x-request-id"));
    let error = json(response).await;
    assert!(!error.to_string().contains("as a test"), "{error}");
}

#[tokio::test]
async fn every_answer_is_protected() {
    for path in ["/", "/nothing", "/panic", "/ui"] {
        let response = ask(Config::default(), "GET", path, &[], "").await;
        assert_eq!(response.headers()["x-content-type-options"], "nosniff", "{path}");
        assert!(response.headers().contains_key("content-security-policy"), "{path}");
        assert_eq!(response.headers()["referrer-policy"], "no-referrer", "{path}");
    }
}

#[tokio::test]
async fn requests_are_counted_by_route_and_not_by_path() {
    let app = testing::app(Config::default());
    let routes = Router::new()
        .route("/metrics", get(crate::ops::show_metrics))
        .route("/v1/messages", post(async |body: Bytes| body));
    let router = wrap(routes, &app).with_state(app);
    let ask = async |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    };
    ask("GET", "/secret-1").await;
    ask("GET", "/secret-2").await;
    ask("POST", "/v1/messages").await;
    let text = String::from_utf8(ask("GET", "/metrics").await.to_vec()).unwrap();
    let line = r#"hypura_requests_total{api="ollama",path="other",status="404"} 2"#;
    assert!(text.contains(line), "{text}");
    let line = r#"hypura_requests_total{api="anthropic",path="/v1/messages",status="200"} 1"#;
    assert!(text.contains(line), "{text}");
    assert!(text.contains("hypura_requests_in_flight 1\n"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}
