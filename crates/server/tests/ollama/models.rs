//! What there is, and what is loaded.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::common::{Served, request};

#[tokio::test]
async fn the_server_says_what_it_is() {
    let served = Served::new();
    assert_eq!(served.get("/").await.text(), "Ollama is running");
    for path in ["/", "/api/version", "/api/tags"] {
        let head = served.send(request(Method::HEAD, path, Body::empty())).await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0), "{path}");
    }
    let version = served.get("/api/version").await.json();
    let numbers: Vec<u32> =
        version["version"].as_str().unwrap().split('.').map(|n| n.parse().unwrap()).collect();
    assert!(numbers.as_slice() >= [0, 14, 2].as_slice() && numbers.len() == 3);
    assert!(version["hypura"]["version"].is_string());
    assert_eq!(served.get("/api/status").await.json()["cloud"]["disabled"], true);
}

#[tokio::test]
async fn models_are_listed() {
    let served = Served::new();
    let list = served.get("/api/tags").await.json();
    let names: Vec<&str> =
        list["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"demo:latest") && names.contains(&"other:latest"));
    let model = &list["models"][0];
    assert_eq!(model["model"], model["name"]);
    assert_eq!(model["digest"].as_str().unwrap().len(), 64);
    assert!(model["size"].as_u64().unwrap() > 0);
    assert!(model["modified_at"].as_str().unwrap().ends_with('Z'));
    let details = &model["details"];
    assert_eq!((&details["format"], &details["family"]), (&json!("gguf"), &json!("llama")));
    assert_eq!((&details["families"], &details["parent_model"]), (&json!(["llama"]), &json!("")));
    assert!(details["parameter_size"].is_string() && details["quantization_level"].is_string());
}

#[tokio::test]
async fn loaded_models_are_listed() {
    let served = Served::new();
    assert_eq!(served.get("/api/ps").await.json(), json!({"models": []}));
    served.post("/api/generate", &json!({"model": "demo"})).await;
    let forever = json!({"model": "other", "keep_alive": -1, "options": {"num_ctx": 64}});
    served.post("/api/generate", &forever).await;
    let list = served.get("/api/ps").await.json();
    let [other, demo] = list["models"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!((&other["name"], &demo["model"]), (&json!("other:latest"), &json!("demo:latest")));
    assert_eq!((&other["context_length"], &other["size"]), (&json!(64), &json!(100)));
    assert_eq!((&demo["size_vram"], &demo["details"]["family"]), (&json!(0), &json!("llama")));
    // The year in which Ollama's longest duration ends.
    assert!(other["expires_at"].as_str().unwrap() > "2300");
    assert!(demo["expires_at"].as_str().unwrap() < "2300");
}

#[tokio::test]
async fn a_model_is_shown() {
    let served = Served::new();
    let shown = served.post("/api/show", &json!({"model": "demo"})).await.json();
    assert_eq!(shown["model_info"]["general.architecture"], "llama");
    assert!(shown["model_info"]["general.parameter_count"].as_u64().unwrap() > 0);
    assert!(shown["model_info"]["tokenizer.ggml.tokens"].is_null());
    assert!(shown["capabilities"].as_array().unwrap().contains(&json!("completion")));
    assert_eq!(shown["details"]["format"], "gguf");
    let tensor = &shown["tensors"][0];
    assert!(tensor["name"].is_string() && tensor["type"].is_string() && tensor["shape"].is_array());
    assert!(shown["modelfile"].as_str().unwrap().contains("FROM demo:latest\n"));

    let verbose = json!({"name": "demo", "verbose": true});
    let shown = served.post("/api/show", &verbose).await.json();
    assert!(shown["model_info"]["tokenizer.ggml.tokens"].as_array().unwrap().len() > 8);

    let mut copilot =
        request(Method::POST, "/api/show", Body::from(json!({"model": "demo"}).to_string()));
    copilot.headers_mut().insert("user-agent", "GitHubCopilotChat/0.30".parse().unwrap());
    assert_eq!(served.send(copilot).await.json()["model_info"]["general.basename"], "demo");

    let missing = served.post("/api/show", &json!({"model": "nobody"})).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(missing.json(), json!({"error": "model 'nobody' not found"}));
    let path = served.post("/api/show", &json!({"model": "../demo.gguf"})).await;
    assert_eq!(path.status, StatusCode::NOT_FOUND);
    let nameless = served.post("/api/show", &json!({})).await;
    assert_eq!(nameless.json(), json!({"error": "model is required"}));
}

#[tokio::test]
async fn what_is_not_done_here_says_so() {
    let served = Served::new();
    for path in ["/api/push", "/api/me", "/api/signin", "/api/signout"] {
        let answered = served.post(path, &json!({"model": "demo"})).await;
        assert_eq!(answered.status, StatusCode::NOT_IMPLEMENTED, "{path}");
        assert!(answered.json()["error"].is_string());
    }
}
