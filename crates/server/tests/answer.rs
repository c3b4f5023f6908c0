//! What all APIs share: prompts from conversations, events from text, memory of what was said.

mod common;

use common::{N_CTX, Script, Served, text_of, tokenize};
use hypura_chat::{Conversation, Delta, Message, Think, Tool};
use hypura_server::ErrorKind;
use hypura_server::answer::{
    Answer, Ask, EmbedAsk, EmbedInput, Event, Finish, Input, Overflow, Summary, ToolChoice, ask,
    embed,
};
use serde_json::json;

fn chat(messages: &[(&str, &str)]) -> Input {
    let messages = messages.iter().map(|&(role, text)| Message::new(role, text)).collect();
    Input::Chat(Conversation { messages, ..Conversation::default() })
}

fn question(input: Input) -> Ask {
    Ask::new("demo", input, "")
}

/// All deltas, joined where they are of one kind, and the end.
async fn collect(mut answer: Answer) -> (String, String, Vec<String>, Summary) {
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    let mut summary = None;
    while let Some(event) = answer.next().await {
        match event.unwrap() {
            Event::Delta(Delta::Content(text)) => content.push_str(&text),
            Event::Delta(Delta::Reasoning(text)) => reasoning.push_str(&text),
            Event::Delta(Delta::ToolCallBegin { name, .. }) => calls.push(name),
            Event::Delta(Delta::ToolCallArguments { json, .. }) => {
                calls.last_mut().unwrap().push_str(&json);
            }
            Event::Done(done) => summary = Some(*done),
            _ => {}
        }
    }
    (content, reasoning, calls, summary.unwrap())
}

#[tokio::test]
async fn a_conversation_is_rendered_and_answered() {
    let served = Served::new();
    served.script(Script::say(&["<think>Hm", "m</think>\n\nGood", " day"]));
    let answer = ask(&served.app, question(chat(&[("user", "Hi")]))).await.unwrap();
    let (content, reasoning, calls, summary) = collect(answer).await;
    assert_eq!(served.prompt(), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!((content.as_str(), reasoning.as_str()), ("Good day", "Hmm"));
    assert!(calls.is_empty());
    assert_eq!(summary.finish, Finish::Stop);
    assert!(summary.reasoning_tokens > 0 && summary.reasoning_tokens < summary.generated_tokens);
}

#[tokio::test]
async fn what_was_said_keeps_its_tokens() {
    let served = Served::new();
    let ids = |text: &str| tokenize(text);
    served.script(Script::say(&["Good day"]));
    let first = ask(&served.app, question(chat(&[("user", "Hi")]))).await.unwrap();
    collect(first).await;
    let turns = [("user", "Hi"), ("assistant", "Good day"), ("user", "And?")];
    let next = ask(&served.app, question(chat(&turns))).await.unwrap();
    collect(next).await;
    let request = served.request();
    assert_eq!(request.prompt, ids(&served.prompt()));
    // Before what begins the answer: later prompts begin with just that.
    let start = request.turn_start.unwrap();
    assert!(text_of(&request.prompt[..start]).ends_with("And?<|im_end|>\n"));
}

#[tokio::test]
async fn what_the_assistant_began_goes_on() {
    let served = Served::new();
    let turns = [("user", "Hi"), ("assistant", "Once upon ")];
    collect(ask(&served.app, question(chat(&turns))).await.unwrap()).await;
    let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nOnce upon ";
    assert_eq!(served.prompt(), expected);
}

#[tokio::test]
async fn tools_are_called_or_not() {
    let served = Served::new();
    let call = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1}}\n</tool_call>";
    let tool = Tool {
        name: "look".into(),
        description: "Looks".into(),
        parameters: json!({"type": "object"}),
        strict: false,
    };
    let conversation = Conversation {
        messages: vec![Message::new("user", "Hi")],
        tools: vec![tool],
        think: Some(Think::Off),
        ..Conversation::default()
    };
    let asked = |tool_choice| Ask { tool_choice, ..question(Input::Chat(conversation.clone())) };
    served.script(Script::say(&[call]));
    let answer = ask(&served.app, asked(ToolChoice::Auto)).await.unwrap();
    let (content, _, calls, summary) = collect(answer).await;
    assert_eq!(content, "");
    assert_eq!(calls.len(), 1);
    assert!(calls[0].starts_with("look{"), "{calls:?}");
    assert_eq!(summary.finish, Finish::ToolCalls);
    assert!(served.prompt().contains("\"look\""));
    assert!(served.prompt().ends_with("<think>\n\n</think>\n\n"), "thinking is off");

    served.script(Script::say(&[call]));
    let answer = ask(&served.app, asked(ToolChoice::Never)).await.unwrap();
    let (content, _, calls, summary) = collect(answer).await;
    assert_eq!((content.as_str(), calls.len()), (call, 0));
    assert_eq!(summary.finish, Finish::Stop);
    assert!(!served.prompt().contains("look"));

    let forced = ask(&served.app, asked(ToolChoice::Function("look".into()))).await.unwrap();
    collect(forced).await;
    assert!(served.request().constraint.is_some());
    let missing = ask(&served.app, asked(ToolChoice::Function("sing".into()))).await;
    assert_eq!(missing.err().unwrap().kind, ErrorKind::BadRequest);
}

#[tokio::test]
async fn long_conversations_lose_their_oldest_messages() {
    let served = Served::new();
    let long = "word ".repeat(N_CTX / 10);
    let turns = [
        ("system", "Be kind"),
        ("user", &long),
        ("assistant", &long),
        ("user", &long),
        ("user", "last"),
    ];
    let refused = ask(&served.app, question(chat(&turns))).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::ContextLength);
    let asked = Ask { overflow: Overflow::DropOldest, ..question(chat(&turns)) };
    collect(ask(&served.app, asked).await.unwrap()).await;
    let prompt = served.prompt();
    assert!(prompt.len() < N_CTX);
    assert!(prompt.starts_with("<|im_start|>system\nBe kind"));
    assert!(prompt.contains("last<|im_end|>"));
}

#[tokio::test]
async fn whoever_goes_away_ends_the_answer() {
    let served = Served::new();
    served.script(Script { is_held: true, ..Script::say(&["never"]) });
    let answer = ask(&served.app, question(chat(&[("user", "Hi")]))).await.unwrap();
    drop(answer);
    while *served.stage.cancelled.lock().unwrap() == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let served = Served::new();
    let missing = ask(&served.app, Ask::new("nobody", chat(&[("user", "Hi")]), "")).await;
    let missing = missing.err().unwrap();
    assert_eq!(missing.kind, ErrorKind::NotFound);
    assert_eq!(missing.message, "model 'nobody' not found");
    *served.stage.is_busy.lock().unwrap() = true;
    let busy = ask(&served.app, question(chat(&[("user", "Hi")]))).await.err().unwrap();
    assert_eq!(busy.kind, ErrorKind::Unavailable);
    assert_eq!(busy.retry_after.unwrap().as_secs(), 7);
}

#[tokio::test]
async fn models_share_the_server() {
    let served = Served::new();
    for name in ["demo", "other", "demo"] {
        let asked = Ask::new(name, chat(&[("user", "Hi")]), "");
        collect(ask(&served.app, asked).await.unwrap()).await;
    }
    assert_eq!(*served.stage.loads.lock().unwrap(), ["demo:latest", "other:latest"]);
    assert_eq!(served.app.models.loaded().len(), 2);
    assert!(served.app.models.unload("demo").await.unwrap());
    assert_eq!(served.app.models.loaded().len(), 1);
    assert!(!served.app.models.unload("demo").await.unwrap());
    served.app.models.close().await;
    let late = ask(&served.app, question(chat(&[("user", "Hi")]))).await.err().unwrap();
    assert_eq!(late.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_model_whose_engine_has_stopped_is_loaded_anew() {
    let served = Served::new();
    *served.stage.has_stopped.lock().unwrap() = true;
    let gone = ask(&served.app, question(chat(&[("user", "Hi")]))).await.err().unwrap();
    assert_eq!(gone.kind, ErrorKind::Unavailable);
    *served.stage.has_stopped.lock().unwrap() = false;
    collect(ask(&served.app, question(chat(&[("user", "Hi")]))).await.unwrap()).await;
    assert_eq!(served.stage.loads.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn embeddings_come_in_order() {
    let served = Served::new();
    let asked = EmbedAsk {
        model: "demo".into(),
        inputs: vec![EmbedInput::Text("abc".into()), EmbedInput::Tokens(vec![65, 66])],
        truncate: true,
        dimensions: Some(1),
        keep_alive: None,
        num_ctx: None,
        tenant: String::new(),
    };
    let embedded = embed(&served.app, asked.clone()).await.unwrap();
    assert_eq!(embedded.vectors, [[1.0], [1.0]]);
    assert_eq!(embedded.prompt_tokens, 5);
    let wrong = EmbedAsk { dimensions: Some(5), ..asked.clone() };
    assert_eq!(embed(&served.app, wrong).await.err().unwrap().kind, ErrorKind::BadRequest);
    let unknown = EmbedAsk { inputs: vec![EmbedInput::Tokens(vec![999])], ..asked };
    assert_eq!(embed(&served.app, unknown).await.err().unwrap().kind, ErrorKind::BadRequest);
}
