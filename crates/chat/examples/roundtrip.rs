//! For every template of a folder: what was found out about it, and whether calls that it renders
//! are read back.
//!
//! `roundtrip TEMPLATES`

use std::path::Path;
use std::{env, fs};

use chrono::DateTime;
use hypura_chat::{ChatTemplate, Conversation, Delta, Message, Think, Tool, ToolCall};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let folder = env::args_os().nth(1).ok_or("usage: roundtrip TEMPLATES")?;
    let paths = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    let mut failures = 0;
    for path in paths {
        let outcome = check(&path)?;
        failures += usize::from(outcome.1 != "ok");
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        println!("{name}: {}\n    {}", outcome.0, outcome.1);
    }
    println!("{failures} failures");
    Ok(())
}

fn check(path: &Path) -> Result<(String, String), Failure> {
    let template = ChatTemplate::new(&fs::read_to_string(path)?, "<s>", "</s>")?;
    let about = format!("{:?} {:?}", template.capabilities(), template.format());
    let calls = [
        call("get_weather", json!({"place": "Zürich \"A\" <b>\nx", "days": 2, "detail": true})),
        call("book_table", json!({"guests": [{"name": "Ann", "age": 1.5}], "time": null})),
    ];
    let mut outcomes = Vec::new();
    for calls in [&calls[..1], &calls[1..], &calls[..]] {
        outcomes.push(match trip(&template, calls) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        });
    }
    outcomes.dedup();
    Ok((about, outcomes.join("\n    ")))
}

fn trip(template: &ChatTemplate, calls: &[ToolCall]) -> Result<(), Failure> {
    let now = DateTime::parse_from_rfc3339("2025-03-07T09:05:03+00:00")?;
    let mut conversation = Conversation {
        messages: vec![Message::new("user", "Hi")],
        tools: tools(),
        think: Some(Think::Off),
        ..Conversation::default()
    };
    // Where an answer begins: before a word that stands for one.
    let said = Message::new("assistant", "qzxword");
    conversation.messages.push(said);
    let prompt = template.render_conversation(&conversation, false, now)?;
    let prompt = prompt.split_once("qzxword").ok_or("no place for an answer")?.0;
    conversation.messages.pop();
    let message = Message { tool_calls: calls.to_vec(), ..Message::new("assistant", "") };
    conversation.messages.push(message);
    let whole = template.render_conversation(&conversation, false, now)?;
    let same = prompt.bytes().zip(whole.bytes()).take_while(|(a, b)| a == b).count();
    let mut start = (0..=same).rev().find(|at| whole.is_char_boundary(*at)).unwrap_or(0);
    // Not in the midst of a mark.
    if let Some(open) = whole[..start].rfind('<').filter(|open| !whole[*open..start].contains('>'))
    {
        start = open;
    }
    let answer = &whole[start..];
    let mut parser = template.format().parser(&whole[..start], &conversation.tools);
    let mut deltas = parser.push(answer);
    deltas.extend(parser.finish());
    let mut found: Vec<(String, String)> = Vec::new();
    for delta in &deltas {
        match delta {
            Delta::ToolCallBegin { name, .. } => found.push((name.clone(), String::new())),
            Delta::ToolCallArguments { json, .. } => {
                found.last_mut().ok_or("arguments of no call")?.1.push_str(json);
            }
            Delta::Content(text) if !text.trim().is_empty() => {
                return Err(format!("content {text:?} in {answer:?}").into());
            }
            _ => {}
        }
    }
    let expected: Vec<(String, Value)> =
        calls.iter().map(|call| (call.name.clone(), call.arguments.clone())).collect();
    let parsed = found.into_iter().map(|(name, json)| {
        let value = serde_json::from_str(&json).unwrap_or(Value::String(json));
        (name, value)
    });
    let parsed: Vec<(String, Value)> = parsed.collect();
    if parsed == expected { Ok(()) } else { Err(format!("{parsed:?} from {answer:?}").into()) }
}

fn call(name: &str, arguments: Value) -> ToolCall {
    ToolCall { id: "abcDEF123".into(), name: name.into(), arguments }
}

fn tools() -> Vec<Tool> {
    let tool = |name: &str, properties: Value| Tool {
        name: name.into(),
        description: "does something".into(),
        parameters: json!({"type": "object", "properties": properties, "required": []}),
        strict: false,
    };
    let weather = json!({
        "place": {"type": "string", "description": "where"},
        "days": {"type": "integer", "description": "how long"},
        "detail": {"type": "boolean", "description": "more"},
    });
    let guest = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "name"},
            "age": {"type": "number", "description": "age"},
        },
        "required": [],
    });
    let book = json!({
        "guests": {"type": "array", "description": "who", "items": guest},
        "time": {"type": ["string", "null"], "description": "when"},
    });
    vec![tool("get_weather", weather), tool("book_table", book)]
}
