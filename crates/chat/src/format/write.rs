//! Tool calls as models write them, for templates that leave that to others.

use serde_json::{Map, Value, json};

use super::{Body, Syntax, Tags};
use crate::json::spaced;
use crate::message::ToolCall;

/// `calls` in this syntax; `None` if the arguments are no objects, or can't be written in it.
pub(super) fn calls(syntax: &Syntax, calls: &[ToolCall]) -> Option<String> {
    let bodies: Option<Vec<String>> =
        calls.iter().enumerate().map(|(i, call)| body(syntax, i, call)).collect();
    let bodies = bodies?;
    let (group, call) = (syntax.group, syntax.call);
    let in_list = matches!(syntax.body, Body::Json { list: true, .. } | Body::Python);
    if in_list {
        return Some(format!("{}[{}]{}", group.0, bodies.join(", "), group.1));
    }
    if call == ("", "") {
        // Each call is a group of its own.
        let groups: Vec<String> =
            bodies.iter().map(|body| format!("{}{body}{}", group.0, group.1)).collect();
        return Some(groups.join("\n"));
    }
    let calls: String = bodies.iter().map(|body| format!("{}{body}{}", call.0, call.1)).collect();
    Some(format!("{}{calls}{}", group.0, group.1))
}

fn body(syntax: &Syntax, index: usize, call: &ToolCall) -> Option<String> {
    let ToolCall { id, name, arguments } = call;
    let object = arguments.as_object()?;
    match syntax.body {
        Body::Json { name: "", .. } => Some(spaced(&json!({name: arguments}))),
        Body::Json { name: name_key, arguments: arguments_key, id: id_key, .. } => {
            let mut map = Map::new();
            if !id_key.is_empty() && !id.is_empty() {
                map.insert(id_key.to_owned(), json!(id));
            }
            map.insert(name_key.to_owned(), json!(name));
            map.insert(arguments_key.to_owned(), arguments.clone());
            Some(spaced(&Value::Object(map)))
        }
        Body::Named { before, id: id_mark, head_end, tail } => {
            let id = match id_mark {
                "" => String::new(),
                ":" => format!(":{index}"),
                _ if id.is_empty() => String::new(),
                mark => format!("{mark}{id}"),
            };
            let arguments = spaced(arguments);
            Some(format!("{before}{name}{id}{head_end}{arguments}{tail}"))
        }
        Body::Tagged(tags) => {
            let arguments: Option<Vec<String>> =
                object.iter().map(|(key, value)| tagged(&tags, key, value)).collect();
            let line = if tags.name_end.ends_with('\n') { "" } else { "\n" };
            Some(format!("{name}{}{line}{}", tags.name_end, arguments?.concat()))
        }
        Body::Python => {
            let arguments: Vec<String> =
                object.iter().map(|(key, value)| format!("{key}={}", spaced(value))).collect();
            Some(format!("{name}({})", arguments.join(", ")))
        }
        Body::Gemma => Some(format!("{name}{}", gemma(arguments)?)),
    }
}

fn tagged(tags: &Tags, key: &str, value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        value => spaced(value),
    };
    if text.contains(tags.value_end) || key.contains(tags.key_end) {
        return None;
    }
    let kind = tags.kinds.map_or("", |kinds| if value.is_string() { kinds.0 } else { kinds.1 });
    let line = if tags.padded { "\n" } else { "" };
    let Tags { open, key_end, value_begin, value_end, .. } = tags;
    Some(format!("{open}{key}{key_end}{kind}{value_begin}{line}{text}{line}{value_end}\n"))
}

fn gemma(value: &Value) -> Option<String> {
    const QUOTE: &str = "<|\"|>";
    Some(match value {
        Value::String(text) if text.contains(QUOTE) => return None,
        Value::String(text) => format!("{QUOTE}{text}{QUOTE}"),
        Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(gemma).collect();
            format!("[{}]", items?.join(","))
        }
        Value::Object(items) => {
            let item = |(key, value): (&String, &Value)| {
                let plain = !key.is_empty() && !key.contains([':', '<', '"', '{', '}', ',']);
                Some(format!("{key}:{}", gemma(value).filter(|_| plain && key.trim() == key)?))
            };
            let items: Option<Vec<String>> = items.iter().map(item).collect();
            format!("{{{}}}", items?.join(","))
        }
        plain => plain.to_string(),
    })
}
