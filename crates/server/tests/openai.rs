//! OpenAI's API, from request to response, over a scripted model.

mod common;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use common::{Answered, Script, Served, request};
use hypura_engine::Finish;
use serde_json::{Value, json};

fn chat(fields: Value) -> Value {
    let mut body = json!({"model": "demo", "messages": [{"role": "user", "content": "Hi"}]});
    for (field, value) in fields.as_object().unwrap() {
        body[field] = value.clone();
    }
    body
}

/// The chunks of a stream that ended as it should.
fn chunks(answered: &Answered) -> Vec<Value> {
    assert_eq!(answered.status, StatusCode::OK);
    assert_eq!(answered.headers["content-type"], "text/event-stream");
    let mut events = answered.events();
    assert_eq!(events.pop().unwrap().1, "[DONE]");
    events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect()
}

const CALL: &str = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1}}\n</tool_call>";

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}])
}

#[tokio::test]
async fn a_chat_is_answered() {
    let served = Served::new();
    served.script(Script::say(&["<think>Hm", "m</think>\n\nGood", " day"]));
    let answered = served.post("/v1/chat/completions", &chat(json!({"user": "x"}))).await;
    assert_eq!(answered.status, StatusCode::OK);
    let object = answered.json();
    assert!(object["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(object["model"], "demo");
    let message = &object["choices"][0]["message"];
    assert_eq!(message["content"], "Good day");
    assert_eq!(message["reasoning_content"], "Hmm");
    assert_eq!(object["choices"][0]["finish_reason"], "stop");
    let usage = &object["usage"];
    let prompt = served.request().prompt.len();
    assert_eq!(usage["prompt_tokens"], prompt);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], prompt / 2);
}

#[tokio::test]
async fn a_chat_is_streamed() {
    let served = Served::new();
    served.script(Script::say(&["Good", " day"]));
    let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = chunks(&served.post("/v1/chat/completions", &chat(fields)).await);
    let text: String =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "Good day");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["total_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn tools_are_called() {
    let served = Served::new();
    for stream in [false, true] {
        served.script(Script::say(&["<tool", &CALL[5..30], &CALL[30..]]));
        let body = chat(json!({"tools": tools(), "stream": stream}));
        let answered = served.post("/v1/chat/completions", &body).await;
        let (name, arguments, reason) = if stream {
            let chunks = chunks(&answered);
            let calls =
                chunks.iter().map(|c| &c["choices"][0]["delta"]["tool_calls"][0]["function"]);
            let calls: Vec<&Value> = calls.filter(|call| !call.is_null()).collect();
            let arguments: String = calls.iter().filter_map(|c| c["arguments"].as_str()).collect();
            let reason = chunks.last().unwrap()["choices"][0]["finish_reason"].clone();
            (calls[0]["name"].clone(), arguments, reason)
        } else {
            let object = answered.json();
            let choice = &object["choices"][0];
            let function = &choice["message"]["tool_calls"][0]["function"];
            let arguments = function["arguments"].as_str().unwrap().to_owned();
            assert_eq!(choice["message"]["content"], Value::Null);
            (function["name"].clone(), arguments, choice["finish_reason"].clone())
        };
        assert_eq!((name, reason), (json!("look"), json!("tool_calls")));
        assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap(), json!({"at": 1}));
    }
}

#[tokio::test]
async fn several_answers_at_once() {
    let served = Served::new();
    served.script(Script::say(&["a"]));
    served.script(Script::say(&["a"]));
    let chunks =
        chunks(&served.post("/v1/chat/completions", &chat(json!({"n": 2, "stream": true}))).await);
    for index in 0..2 {
        let of = |c: &&Value| c["choices"][0]["index"] == index;
        let mine: Vec<&Value> = chunks.iter().filter(of).collect();
        assert_eq!(mine.len(), 3, "{mine:?}");
        assert_eq!(mine[2]["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn logprobs_are_told() {
    let served = Served::new();
    served.script(Script::say(&["a", "b"]));
    let body = chat(json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 1}));
    let object = served.post("/v1/chat/completions", &body).await.json();
    let choice = &object["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 1);
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn texts_are_continued() {
    let served = Served::new();
    served.script(Script::say(&[" a", " b"]));
    let body = json!({"model": "demo", "prompt": "Once", "echo": true});
    let object = served.post("/v1/completions", &body).await.json();
    assert_eq!(object["choices"][0]["text"], "Once a b");
    assert_eq!(served.prompt(), "Once");
    let body = json!({"model": "demo", "prompt": ["x", "y"], "stream": true});
    let chunks = chunks(&served.post("/v1/completions", &body).await);
    let ends = chunks.iter().filter(|c| c["choices"][0]["finish_reason"] == "stop");
    assert_eq!(ends.count(), 2);
}

#[tokio::test]
async fn texts_are_embedded() {
    let served = Served::new();
    let body = json!({"model": "demo", "input": ["a", "bc"]});
    let object = served.post("/v1/embeddings", &body).await.json();
    assert_eq!(object["object"], "list");
    assert_eq!(object["data"][1]["index"], 1);
    assert_eq!(object["data"][1]["embedding"].as_array().unwrap().len(), 4);
    let body = json!({"model": "demo", "input": "a", "encoding_format": "base64"});
    let object = served.post("/v1/embeddings", &body).await.json();
    // Four floats are sixteen bytes.
    assert_eq!(object["data"][0]["embedding"].as_str().unwrap().len(), 24);
}

#[tokio::test]
async fn models_are_listed() {
    let served = Served::new();
    let list = served.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert!(ids.iter().any(|id| id.as_str().unwrap().starts_with("demo")), "{ids:?}");
    for path in ["/v1/models/demo", "/v1/models/demo:latest", "/v1/models/demo%3Alatest"] {
        let model = served.get(path).await;
        assert_eq!(model.status, StatusCode::OK, "{path}");
        assert_eq!(model.json()["object"], "model");
    }
    let unknown = served.get("/v1/models/hf.co/who/knows:Q4").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn a_response_is_answered() {
    let served = Served::new();
    served.script(Script::say(&["<think>Hm</think>\n\nGood", " day"]));
    let body = json!({"model": "demo", "instructions": "Be brief.", "input": "Hi"});
    let object = served.post("/v1/responses", &body).await.json();
    assert_eq!(object["status"], "completed");
    assert_eq!(object["output"][0]["content"][0]["text"], "Hm");
    assert_eq!(object["output"][1]["content"][0]["text"], "Good day");
    assert!(served.prompt().starts_with("<|im_start|>system\nBe brief.<|im_end|>"));
}

#[tokio::test]
async fn a_response_is_streamed() {
    let served = Served::new();
    served.script(Script::say(&["Good", " day"]));
    let body = json!({"model": "demo", "input": "Hi", "stream": true});
    let events = served.post("/v1/responses", &body).await.events();
    let names: Vec<&str> =
        events.iter().map(|(name, _)| name.strip_prefix("response.").unwrap()).collect();
    assert_eq!(names[..4], ["created", "in_progress", "output_item.added", "content_part.added"]);
    assert_eq!(names.last().unwrap(), &"completed");
    for (number, (name, data)) in events.iter().enumerate() {
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            (data["type"].as_str().unwrap(), &data["sequence_number"]),
            (name.as_str(), &json!(number))
        );
    }
}

#[tokio::test]
async fn tokens_of_a_response_are_counted() {
    let served = Served::new();
    let body = json!({"model": "demo", "input": "Hi"});
    let count = served.post("/v1/responses/input_tokens", &body).await.json();
    let usage = served.post("/v1/responses", &body).await.json()["usage"].clone();
    assert_eq!(count["input_tokens"], usage["input_tokens"]);
}

#[tokio::test]
async fn failures_have_their_status() {
    let served = Served::new();
    let path = "/v1/chat/completions";
    let error = async |body: Value, status: StatusCode| {
        let answered = served.post(path, &body).await;
        assert_eq!(answered.status, status, "{}", answered.text());
        answered.json()["error"].clone()
    };
    let unknown = error(chat(json!({"model": "nobody"})), StatusCode::NOT_FOUND).await;
    assert_eq!(unknown["code"], "model_not_found");
    let wrong = error(chat(json!({"n": 0})), StatusCode::BAD_REQUEST).await;
    assert_eq!((&wrong["param"], &wrong["type"]), (&json!("n"), &json!("invalid_request_error")));
    let long = json!([{"role": "user", "content": "x".repeat(5000)}]);
    let long = error(chat(json!({"messages": long})), StatusCode::BAD_REQUEST).await;
    assert_eq!(long["code"], "context_length_exceeded");
    let answered = served.send(request(Method::GET, path, Body::empty())).await;
    assert_eq!(answered.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answered.json()["error"]["type"], "invalid_request_error");
    *served.stage.is_busy.lock().unwrap() = true;
    let busy = served.post(path, &chat(json!({}))).await;
    assert!(busy.status == 429 || busy.status == 503, "{}", busy.text());
    assert_eq!(busy.headers["retry-after"], "7");
}

#[tokio::test]
async fn a_stream_that_breaks_says_so() {
    let served = Served::new();
    let broken = Script { finish: Finish::Interrupted, ..Script::say(&["Good"]) };
    served.script(broken);
    let answered = served.post("/v1/chat/completions", &chat(json!({"stream": true}))).await;
    let (_, last) = answered.events().pop().unwrap();
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
}
