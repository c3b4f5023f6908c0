//! Copying, deleting and creating models.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use hypura_hub::Digest;
use hypura_server::Config;
use serde_json::{Value, json};

use crate::common::{Answered, Served, request};

async fn send(served: &Served, method: Method, path: &str, body: &Value) -> Answered {
    served.send(request(method, path, Body::from(body.to_string()))).await
}

async fn names(served: &Served) -> Vec<String> {
    let list = served.get("/api/tags").await.json();
    let names = list["models"].as_array().unwrap().iter();
    let mut names: Vec<String> =
        names.map(|model| model["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// The bytes of a model that is nowhere yet.
fn model() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let recipe = hypura_testkit::tiny::find("llama").unwrap();
    let path = folder.path().join("model.gguf");
    recipe.model(recipe.default_mix, 2).unwrap().write(&path).unwrap();
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn models_are_copied_and_deleted() {
    let served = Served::new();
    let copy = json!({"source": "demo", "destination": "mine:v1"});
    let copied = served.post("/api/copy", &copy).await;
    assert_eq!((copied.status, copied.body.len()), (StatusCode::OK, 0));
    assert_eq!(names(&served).await, ["demo:latest", "mine:v1", "other:latest"]);
    let deleted = send(&served, Method::DELETE, "/api/delete", &json!({"model": "mine:v1"})).await;
    assert_eq!(deleted.status, StatusCode::OK);
    assert_eq!(names(&served).await, ["demo:latest", "other:latest"]);

    let gone = send(&served, Method::DELETE, "/api/delete", &json!({"name": "mine:v1"})).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    assert_eq!(gone.json(), json!({"error": "model 'mine:v1' not found"}));
    let missing = json!({"source": "nobody", "destination": "x"});
    assert_eq!(served.post("/api/copy", &missing).await.status, StatusCode::NOT_FOUND);
    // It lies in a folder of somebody else.
    let other = send(&served, Method::DELETE, "/api/delete", &json!({"model": "demo"})).await;
    assert_eq!(other.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_model_is_made_of_another() {
    let served = Served::new();
    let request = json!({"model": "mario", "from": "demo", "system": "You are Mario.",
        "parameters": {"temperature": 0.5, "stop": ["a", "b"]}, "license": ["MIT", "and more"],
        "messages": [{"role": "user", "content": "Hi"}]});
    let lines = served.post("/api/create", &request).await.lines();
    let status: Vec<&str> = lines.iter().map(|line| line["status"].as_str().unwrap()).collect();
    assert_eq!(status, ["reading model metadata", "writing manifest", "success"]);
    let shown = served.post("/api/show", &json!({"model": "mario"})).await.json();
    assert_eq!(shown["system"], "You are Mario.");
    assert_eq!(shown["license"], "MIT\nand more");
    assert_eq!(shown["messages"], json!([{"role": "user", "content": "Hi"}]));
    let parameters = shown["parameters"].as_str().unwrap();
    assert!(parameters.contains(&format!("{:<30} 0.5", "temperature")), "{parameters}");
    assert!(parameters.contains(&format!("{:<30} \"b\"", "stop")), "{parameters}");

    let child = json!({"model": "luigi", "from": "mario", "parameters": {"temperature": 1},
        "stream": false});
    assert_eq!(served.post("/api/create", &child).await.json(), json!({"status": "success"}));
    let shown = served.post("/api/show", &json!({"model": "luigi"})).await.json();
    assert_eq!(shown["system"], "You are Mario.");
    let parameters = shown["parameters"].as_str().unwrap();
    assert!(parameters.contains(" 1") && parameters.contains("\"b\""), "{parameters}");
}

#[tokio::test]
async fn a_model_is_made_of_an_uploaded_file() {
    let served = Served::new();
    let bytes = model();
    let path = format!("/api/blobs/sha256:{}", Digest::of(&bytes));
    let upload = |path: &str, bytes: Vec<u8>| request(Method::POST, path, Body::from(bytes));
    let head = |path: &str| request(Method::HEAD, path, Body::empty());
    assert_eq!(served.send(head(&path)).await.status, StatusCode::NOT_FOUND);
    assert_eq!(served.send(upload(&path, b"else".to_vec())).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(served.send(head(&path)).await.status, StatusCode::NOT_FOUND);
    assert_eq!(served.send(upload(&path, bytes.clone())).await.status, StatusCode::CREATED);
    assert_eq!(served.send(head(&path)).await.status, StatusCode::OK);
    assert_eq!(served.send(upload(&path, bytes.clone())).await.status, StatusCode::OK);
    let bad = served.send(upload("/api/blobs/sha256:..", bytes.clone())).await;
    assert_eq!(bad.json(), json!({"error": "invalid digest format"}));

    let files = json!({"a.gguf": format!("sha256:{}", Digest::of(&bytes))});
    let request = json!({"model": "up", "files": files, "stream": false});
    assert_eq!(served.post("/api/create", &request).await.json(), json!({"status": "success"}));
    assert!(names(&served).await.contains(&"up:latest".to_owned()));
}

#[tokio::test]
async fn what_can_not_be_created_is_told() {
    let served = Served::new();
    for (request, status, reason) in [
        (json!({"from": "demo"}), 400, "model is required"),
        (json!({"model": "x"}), 400, "neither 'from' or 'files' was specified"),
        (json!({"model": "x", "files": {}}), 400, "no files provided"),
        (json!({"model": "x", "files": {"a": "b"}}), 400, "invalid digest format"),
        (json!({"model": "../x", "from": "demo"}), 400, "no name"),
        (json!({"model": "x", "from": "nobody"}), 404, "model 'nobody' not found"),
        (json!({"model": "x", "from": "demo", "template": "{{ .P }}"}), 400, "template"),
        (json!({"model": "x", "from": "demo", "quantize": "q4_K_M"}), 501, "quantize"),
        (json!({"model": "x", "from": "demo", "adapters": {"a": "b"}}), 501, "adapters"),
        (json!({"model": "x", "from": "demo", "parameters": {"top_p": 2}}), 400, "top_p"),
        (json!({"model": "x", "from": "demo", "license": 1}), 400, "license"),
    ] {
        // In lines the first status is sent before the store is asked.
        let mut request = request;
        request["stream"] = json!(false);
        let answered = served.post("/api/create", &request).await;
        let error = answered.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(answered.status.as_u16(), status, "{request}: {error}");
        assert!(status != 400 || reason == "no name" || error.contains(reason), "{error}");
    }
    assert_eq!(names(&served).await, ["demo:latest", "other:latest"]);
}

#[tokio::test]
async fn a_server_may_keep_its_models() {
    let served = Served::with(Config { manage: false, ..Config::default() });
    let blob = format!("/api/blobs/sha256:{}", "0".repeat(64));
    for (method, path) in [
        (Method::POST, "/api/pull"),
        (Method::POST, "/api/create"),
        (Method::POST, "/api/copy"),
        (Method::DELETE, "/api/delete"),
        (Method::POST, &blob),
        (Method::HEAD, &blob),
    ] {
        let body = json!({"model": "demo", "from": "demo", "source": "demo", "destination": "x"});
        let answered = send(&served, method, path, &body).await;
        assert_eq!(answered.status, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(names(&served).await.len(), 2);
}
