//! Chats, completions and embeddings.

use axum::http::StatusCode;
use hypura_engine::GenerateError;
use serde_json::{Value, json};

use crate::common::{Answered, Script, Served, text_of};

fn hello() -> Value {
    json!({"model": "demo", "messages": [{"role": "user", "content": "Hi"}]})
}

fn with(mut value: Value, more: Value) -> Value {
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    value
}

fn content_type(answered: &Answered) -> &str {
    answered.headers["content-type"].to_str().unwrap()
}

fn error_of(answered: &Answered) -> (u16, String) {
    (answered.status.as_u16(), answered.json()["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_chat_streams_lines() {
    let served = Served::new();
    served.script(Script::say(&["Good", " day"]));
    let answered = served.post("/api/chat", &hello()).await;
    assert_eq!(answered.status, StatusCode::OK);
    assert_eq!(content_type(&answered), "application/x-ndjson");
    let lines = answered.lines();
    let pieces = lines.iter().map(|line| line["message"]["content"].as_str().unwrap());
    assert_eq!(pieces.collect::<String>(), "Good day");
    let (last, before) = lines.split_last().unwrap();
    assert!(before.iter().all(|line| line["done"] == false && line.get("hypura").is_none()));
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert_eq!(last["model"], "demo");
    assert!(last["prompt_eval_count"].as_u64().unwrap() > 0);
    assert_eq!(last["eval_count"], 8);
    assert!(last["hypura"]["reused_tokens"].as_u64().unwrap() > 0);
    assert!(last["created_at"].as_str().unwrap().ends_with('Z'));
    let prompt = served.prompt();
    assert!(prompt.starts_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
}

#[tokio::test]
async fn a_chat_without_stream_is_one_value() {
    let served = Served::new();
    served.script(Script::say(&["<think>Hm</think>\n\n", "Good", " day"]));
    let answered = served.post("/api/chat", &with(hello(), json!({"stream": false}))).await;
    assert_eq!(content_type(&answered), "application/json");
    let answer = answered.json();
    assert_eq!(answer["message"]["content"], "Good day");
    assert_eq!(answer["message"]["thinking"], "Hm");
    assert_eq!(answer["message"]["role"], "assistant");
    assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("stop")));
}

#[tokio::test]
async fn tools_are_called_with_whole_arguments() {
    let served = Served::new();
    let call = ["<tool_call>\n{\"name\": \"look\", \"argu", "ments\": {\"at\": 1}}\n</tool_call>"];
    let tools = json!({"think": false, "tools": [{"type": "function", "function":
        {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]});
    for stream in [true, false] {
        served.script(Script::say(&call));
        let request = with(with(hello(), tools.clone()), json!({"stream": stream}));
        let lines = served.post("/api/chat", &request).await.lines();
        let calls: Vec<&Value> = lines
            .iter()
            .filter_map(|line| line["message"]["tool_calls"].as_array())
            .flatten()
            .collect();
        assert_eq!(calls.len(), 1, "{lines:?}");
        let function = json!({"index": 0, "name": "look", "arguments": {"at": 1}});
        assert_eq!(calls[0]["function"], function);
        assert!(!calls[0]["id"].as_str().unwrap().is_empty());
        assert_eq!(lines.last().unwrap()["done_reason"], "stop");
        assert!(served.prompt().contains("Looks."));
        assert!(served.prompt().ends_with("<think>\n\n</think>\n\n"));
    }
    let result = json!({"messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls":
            [{"function": {"name": "look", "arguments": {"at": 1}}}]},
        {"role": "tool", "tool_name": "look", "content": "a wall"},
    ]});
    let answered = served.post("/api/chat", &with(with(hello(), tools), result)).await;
    assert_eq!(answered.status, StatusCode::OK);
    let prompt = served.prompt();
    assert!(prompt.contains("a wall") && prompt.contains("\"at\""), "{prompt}");
}

#[tokio::test]
async fn options_and_forms_reach_the_engine() {
    let served = Served::new();
    let request = with(
        hello(),
        json!({"format": "json", "logprobs": true, "top_logprobs": 2, "think": false,
            "options": {"temperature": 0.25, "num_predict": 1, "stop": ["END"], "seed": 3}}),
    );
    served.script(Script::say(&["{}", "x"]));
    let lines = served.post("/api/chat", &request).await.lines();
    let asked = served.request();
    assert!(asked.constraint.is_some());
    assert_eq!(asked.stop, ["END"]);
    assert!((asked.sampler.temperature - 0.25).abs() < f32::EPSILON);
    assert_eq!((asked.sampler.seed, asked.max_tokens), (3, Some(1)));
    assert_eq!(lines[0]["logprobs"][0]["token"], "{}");
    assert_eq!(lines[0]["logprobs"][0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(lines.last().unwrap()["done_reason"], "length");
}

#[tokio::test]
async fn completions_are_chats_unless_they_are_raw() {
    let served = Served::new();
    let request = json!({"model": "demo", "prompt": "Hi", "system": "Be kind", "stream": false});
    let answer = served.post("/api/generate", &request).await.json();
    assert_eq!(answer["response"], "Hello there");
    assert!(served.prompt().starts_with("<|im_start|>system\nBe kind<|im_end|>\n"));
    let context = answer["context"].clone();
    let tokens: Vec<i32> = serde_json::from_value(context.clone()).unwrap();
    assert_eq!(text_of(&tokens), served.prompt() + "Hello there");

    let next = json!({"model": "demo", "prompt": "And?", "context": context, "stream": false});
    served.post("/api/generate", &next).await;
    let prompt = served.prompt();
    assert!(prompt.starts_with(&text_of(&tokens)), "{prompt}");
    assert!(prompt[text_of(&tokens).len()..].starts_with("<|im_start|>user\nAnd?"), "{prompt}");

    let raw = json!({"model": "demo", "prompt": "Once upon", "raw": true, "stream": false});
    let answer = served.post("/api/generate", &raw).await.json();
    assert_eq!(served.prompt(), "Once upon");
    assert_eq!(answer.get("context"), None);

    let lines =
        served.post("/api/generate", &json!({"model": "demo", "prompt": "Hi"})).await.lines();
    let pieces = lines.iter().map(|line| line["response"].as_str().unwrap());
    assert_eq!(pieces.collect::<String>(), "Hello there");
}

#[tokio::test]
async fn nothing_to_answer_loads_and_unloads() {
    let served = Served::new();
    let loaded = || served.app.models.loaded().len();
    for path in ["/api/chat", "/api/generate"] {
        let answered = served.post(path, &json!({"model": "demo"})).await;
        let answer = answered.json();
        assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("load")));
        assert_eq!(loaded(), 1);
        let gone = served.post(path, &json!({"model": "demo", "keep_alive": 0})).await.json();
        assert_eq!(gone["done_reason"], "unload");
        assert_eq!(loaded(), 0);
    }
    let chat = served.post("/api/chat", &json!({"model": "demo", "messages": []})).await.json();
    assert_eq!(chat["message"], json!({"role": "assistant", "content": ""}));
    served.post("/api/chat", &with(hello(), json!({"keep_alive": -1}))).await;
    assert!(served.app.models.loaded()[0].expires_at.is_none());
    assert_eq!(served.stage.loads.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn errors_are_ollamas() {
    let served = Served::new();
    for path in ["/api/chat", "/api/generate"] {
        let missing = served.post(path, &json!({"model": "nobody", "prompt": "x"})).await;
        assert_eq!(error_of(&missing), (404, "model 'nobody' not found".to_owned()));
        let unload = served.post(path, &json!({"model": "nobody", "keep_alive": 0})).await;
        assert_eq!(unload.status, StatusCode::NOT_FOUND);
        let nameless = served.post(path, &json!({})).await;
        assert_eq!(error_of(&nameless), (400, "model is required".to_owned()));
        let wrong = served.post(path, &json!({"model": 1})).await;
        assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
        let list = served.post(path, &json!(["model"])).await;
        assert_eq!(list.status, StatusCode::BAD_REQUEST);
    }
    let gap = json!({"model": "demo", "prompt": "a", "suffix": "b"});
    let gap = served.post("/api/generate", &gap).await;
    assert_eq!(error_of(&gap), (400, "\"demo\" does not support insert".to_owned()));
    let long = json!({"role": "user", "content": "word ".repeat(4000)});
    let long = served
        .post("/api/chat", &with(hello(), json!({"messages": [long], "truncate": false})))
        .await;
    assert_eq!(long.status, StatusCode::BAD_REQUEST);
    *served.stage.is_busy.lock().unwrap() = true;
    let busy = served.post("/api/chat", &hello()).await;
    assert_eq!(busy.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(busy.headers["retry-after"], "7");
}

#[tokio::test]
async fn an_answer_that_fails_before_its_first_word_has_a_status() {
    let served = Served::new();
    for stream in [true, false] {
        let fails = Some(GenerateError::EmptyPrompt);
        served.script(Script { fails, ..Script::say(&[]) });
        let answered = served.post("/api/chat", &with(hello(), json!({"stream": stream}))).await;
        assert_eq!(answered.status, StatusCode::BAD_REQUEST);
        assert!(answered.json()["error"].is_string());
    }
}

#[tokio::test]
async fn embeddings_have_two_forms() {
    let served = Served::new();
    let request = json!({"model": "demo", "input": ["abc", "de"]});
    let answer = served.post("/api/embed", &request).await.json();
    assert_eq!(answer["model"], "demo");
    assert_eq!(answer["embeddings"], json!([[3.0, 1.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]]));
    assert_eq!(answer["prompt_eval_count"], 5);
    assert!(answer["total_duration"].as_u64().unwrap() > 0);
    let one = json!({"model": "demo", "input": "abc", "dimensions": 1});
    let answer = served.post("/api/embed", &one).await.json();
    assert_eq!(answer["embeddings"], json!([[1.0]]));
    let empty = served.post("/api/embed", &json!({"model": "demo"})).await.json();
    assert_eq!(empty, json!({"model": "demo", "embeddings": []}));

    let old = json!({"model": "demo", "prompt": "abc"});
    let answer = served.post("/api/embeddings", &old).await.json();
    assert_eq!(answer, json!({"embedding": [3.0, 1.0, 0.0, 0.0]}));
    let empty = served.post("/api/embeddings", &json!({"model": "demo"})).await.json();
    assert_eq!(empty, json!({"embedding": []}));

    let long = json!({"model": "demo", "input": "x".repeat(5000), "truncate": false});
    let long = served.post("/api/embed", &long).await;
    assert_eq!(error_of(&long), (400, "the input length exceeds the context length".to_owned()));
    let missing = served.post("/api/embed", &json!({"model": "nobody", "input": "x"})).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}
