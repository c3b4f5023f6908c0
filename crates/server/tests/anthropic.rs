//! Anthropic's API, from request to response, over a scripted model.

mod common;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use common::{Script, Served, request};
use serde_json::{Value, json};

fn ask(fields: Value) -> Value {
    let mut body = json!({
        "model": "demo", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}],
    });
    for (field, value) in fields.as_object().unwrap() {
        body[field] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_message_is_answered() {
    let served = Served::new();
    served.script(Script::say(&["<think>Hm", "m</think>\n\nGood", " day"]));
    let body =
        ask(json!({"system": "Be brief.", "thinking": {"type": "enabled", "budget_tokens": 9}}));
    let message = served.post("/v1/messages", &body).await.json();
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    let content = json!([
        {"type": "thinking", "thinking": "Hmm", "signature": ""},
        {"type": "text", "text": "Good day"},
    ]);
    assert_eq!(message["content"], content);
    assert_eq!(message["stop_reason"], "end_turn");
    let usage = &message["usage"];
    let tokens = |field: &str| usage[field].as_u64().unwrap();
    let prompt = u64::try_from(served.request().prompt.len()).unwrap();
    assert_eq!(tokens("input_tokens") + tokens("cache_read_input_tokens"), prompt);
    assert!(served.prompt().starts_with("<|im_start|>system\nBe brief.<|im_end|>"));
}

#[tokio::test]
async fn who_does_not_ask_for_thoughts_gets_none() {
    let served = Served::new();
    served.post("/v1/messages", &ask(json!({}))).await;
    assert!(served.prompt().ends_with("<think>\n\n</think>\n\n"), "{}", served.prompt());
}

#[tokio::test]
async fn a_message_is_streamed() {
    let served = Served::new();
    let call = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1}}\n</tool_call>";
    served.script(Script::say(&["Let me", " look.", &call[..20], &call[20..]]));
    let tools = json!([{"name": "look", "input_schema": {"type": "object"}}]);
    let answered = served.post("/v1/messages", &ask(json!({"stream": true, "tools": tools}))).await;
    assert_eq!(answered.headers["content-type"], "text/event-stream");
    let events: Vec<Value> = answered
        .events()
        .iter()
        .map(|(name, data)| {
            let event: Value = serde_json::from_str(data).unwrap();
            assert_eq!(event["type"], name.as_str());
            event
        })
        .collect();
    let of = |delta: &str, field: &str| -> String {
        let deltas = events.iter().map(|event| &event["delta"]);
        deltas.filter(|d| d["type"] == delta).filter_map(|d| d[field].as_str()).collect()
    };
    assert_eq!(events[0]["type"], "message_start");
    assert_eq!(of("text_delta", "text").trim_end(), "Let me look.");
    let input: Value = serde_json::from_str(&of("input_json_delta", "partial_json")).unwrap();
    assert_eq!(input, json!({"at": 1}));
    let [.., delta, stop] = events.as_slice() else { panic!("too few events") };
    assert_eq!(delta["delta"]["stop_reason"], "tool_use");
    assert!(delta["usage"]["output_tokens"].as_u64().unwrap() > 0);
    assert_eq!(stop["type"], "message_stop");
}

#[tokio::test]
async fn tokens_are_counted() {
    let served = Served::new();
    let mut body = ask(json!({}));
    body.as_object_mut().unwrap().remove("max_tokens");
    let count = served.post("/v1/messages/count_tokens", &body).await.json();
    served.post("/v1/messages", &ask(json!({}))).await;
    assert_eq!(count, json!({"input_tokens": served.request().prompt.len()}));
}

#[tokio::test]
async fn models_are_listed_in_its_form() {
    let served = Served::new();
    let get = async |path: &str| {
        let mut request = request(Method::GET, path, Body::empty());
        request.headers_mut().insert("anthropic-version", "2023-06-01".parse().unwrap());
        served.send(request).await
    };
    let list = get("/v1/models").await.json();
    assert_eq!(list["has_more"], false);
    assert_eq!(list["data"][0]["type"], "model");
    let model = get("/v1/models/demo").await.json();
    assert_eq!(model["id"], "demo");
    let unknown = get("/v1/models/nobody").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.json()["error"]["type"], "not_found_error");
}

#[tokio::test]
async fn failures_have_their_form() {
    let served = Served::new();
    let error = async |fields: Value, status: u16| {
        let answered = served.post("/v1/messages", &ask(fields)).await;
        assert_eq!(answered.status, status, "{}", answered.text());
        let body = answered.json();
        assert_eq!(body["type"], "error");
        body["error"].clone()
    };
    let unknown = error(json!({"model": "nobody"}), 404).await;
    assert_eq!(unknown["type"], "not_found_error");
    let wrong = error(json!({"max_tokens": 0}), 400).await;
    assert_eq!(wrong["type"], "invalid_request_error");
    let long = json!([{"role": "user", "content": "x".repeat(5000)}]);
    let long = error(json!({"messages": long}), 400).await;
    assert!(long["message"].as_str().unwrap().contains("prompt is too long"));
    let get = served.get("/v1/messages").await;
    assert_eq!(get.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(get.json()["type"], "error");
}
