//! Grammars that force a tool call.

use serde_json::{Map, Value, json};

use super::{Body, Syntax, Tags};
use crate::message::Tool;

/// Calls of a forced answer at most: small models don't stop by themselves.
const CALLS_MAX: usize = 8;

/// A Lark grammar of calls of these tools.
pub(super) fn write(syntax: &Syntax, tools: &[Tool], parallel: bool) -> Option<String> {
    if tools.is_empty() || !tools.iter().all(|tool| can_be_named(&tool.name)) {
        return None;
    }
    let mut rules = Vec::new();
    let mut names = Vec::new();
    for (i, tool) in tools.iter().enumerate() {
        let body = body(syntax, i, tool, &mut rules)?;
        names.push(format!("call_{i}"));
        rules.push(format!("call_{i}: {body}"));
    }
    let (group, call) = (syntax.group, syntax.call);
    let one = sequence(&[marks(call.0), "( any )".to_owned(), marks(call.1)]);
    let in_list = matches!(syntax.body, Body::Json { list: true, .. } | Body::Python);
    let start = match (in_list, parallel) {
        (true, false) => {
            sequence(&[marks(group.0), literal("["), one, literal("]"), marks(group.1)])
        }
        (true, true) => {
            let more = format!("( {} {one} ){{0,{}}}", literal(", "), CALLS_MAX - 1);
            sequence(&[marks(group.0), literal("["), one, more, literal("]"), marks(group.1)])
        }
        (false, false) => sequence(&[marks(group.0), one, marks(group.1)]),
        (false, true) if call == ("", "") => {
            let group = sequence(&[marks(group.0), one, marks(group.1)]);
            format!("{group} ( {} {group} ){{0,{}}}", literal("\n"), CALLS_MAX - 1)
        }
        // Only one call per message: the next needs a header of its own.
        (false, true) if call.1 == "<|call|>" => one,
        (false, true) => {
            sequence(&[marks(group.0), format!("( {one} ){{1,{CALLS_MAX}}}"), marks(group.1)])
        }
    };
    // gpt-oss begins a new message behind its reasoning.
    let header = if call.1 == "<|call|>" { "( \"<|start|>\" \"assistant\" )? " } else { "" };
    let mut grammar = format!("start: {header}{start}\nany: {}\n", names.join(" | "));
    for rule in rules {
        grammar.push_str(&rule);
        grammar.push('\n');
    }
    Some(grammar)
}

/// Whether the name is one that every syntax can carry.
fn can_be_named(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

fn body(syntax: &Syntax, index: usize, tool: &Tool, rules: &mut Vec<String>) -> Option<String> {
    let name = &tool.name;
    let arguments = format!("arguments_{index}");
    let schema = match &tool.parameters {
        Value::Object(_) => tool.parameters.clone(),
        _ => json!({"type": "object"}),
    };
    Some(match syntax.body {
        Body::Json { name: "", .. } => {
            rules.push(format!("{arguments}: %json {schema}"));
            format!("{} {arguments} {}", literal(&format!("{{{}: ", json!(name))), literal("}"))
        }
        Body::Json { name: name_key, arguments: arguments_key, .. } => {
            rules.push(format!("{arguments}: %json {schema}"));
            let head =
                format!("{{{}: {}, {}: ", json!(name_key), json!(name), json!(arguments_key));
            format!("{} {arguments} {}", literal(&head), literal("}"))
        }
        Body::Named { before, id, head_end, tail } => {
            rules.push(format!("{arguments}: %json {schema}"));
            // Kimi counts the calls of a conversation.
            let id = if id == ":" { format!("{} /[0-9]+/", literal(":")) } else { String::new() };
            let (name, head_end) = (literal(name), marks(head_end));
            sequence(&[marks(before), name, id, head_end, arguments, literal(tail)])
        }
        Body::Tagged(tags) => {
            let mut parts = vec![literal(name), literal(tags.name_end), literal("\n")];
            if tags.name_end == "\n" {
                parts.pop();
            }
            for (i, (key, schema)) in properties(&schema).into_iter().enumerate() {
                let rule = format!("argument_{index}_{i}");
                let argument = tagged(&tags, &rule, &key, &schema, rules)?;
                rules.push(format!("{rule}: {argument}"));
                parts.push(if is_required(&tool.parameters, &key) {
                    rule
                } else {
                    format!("{rule}?")
                });
            }
            sequence(&parts)
        }
        Body::Python => {
            let properties = properties(&schema);
            let mut arguments = Vec::new();
            for (i, (key, schema)) in properties.into_iter().enumerate() {
                // A list with commas between optional items has no short grammar.
                if is_required(&tool.parameters, &key) {
                    let rule = format!("argument_{index}_{i}");
                    rules.push(format!("{rule}: %json {schema}"));
                    arguments.push(format!("{} {rule}", literal(&format!("{key}="))));
                }
            }
            let comma = format!(" {} ", literal(", "));
            sequence(&[literal(&format!("{name}(")), arguments.join(&comma), literal(")")])
        }
        Body::Gemma => return None,
    })
}

fn tagged(
    tags: &Tags,
    rule: &str,
    key: &str,
    schema: &Value,
    rules: &mut Vec<String>,
) -> Option<String> {
    if key.contains(tags.key_end) {
        return None;
    }
    let choices = schema.get("enum").and_then(Value::as_array);
    let choices = choices.filter(|choices| choices.iter().all(Value::is_string));
    let is_text = choices.is_some() || schema.get("type") == Some(&json!("string"));
    let kind = tags.kinds.map_or("", |kinds| if is_text { kinds.0 } else { kinds.1 });
    let line = if tags.padded { "\n" } else { "" };
    let begin = sequence(&[
        literal(tags.open),
        marks(&format!("{key}{}{kind}", tags.key_end)),
        literal(tags.value_begin),
        literal(line),
    ]);
    let end = sequence(&[literal(line), literal(tags.value_end), literal("\n")]);
    let value = match choices {
        Some(choices) => {
            let choices: Vec<String> =
                choices.iter().filter_map(Value::as_str).map(literal).collect();
            format!("( {} )", choices.join(" | "))
        }
        // Any text, up to the mark that ends it.
        None if is_text => {
            let stop = format!("{line}{}", tags.value_end);
            rules.push(format!("{rule}_text[suffix={}]: /(.|\\n)*/", literal(&stop)));
            return Some(format!("{begin} {rule}_text {}", literal("\n")));
        }
        None => {
            rules.push(format!("{rule}_json: %json {schema}"));
            format!("{rule}_json")
        }
    };
    Some(format!("{begin} {value} {end}"))
}

/// The parameters that a schema names, with their schemas. Definitions that these refer to go along.
fn properties(schema: &Value) -> Vec<(String, Value)> {
    let definitions = ["$defs", "definitions"];
    let shared: Vec<(&str, &Value)> =
        definitions.iter().filter_map(|key| Some((*key, schema.get(*key)?))).collect();
    let properties = schema.get("properties").and_then(Value::as_object);
    let with_shared = |(key, property): (&String, &Value)| {
        let mut property = match property {
            Value::Object(map) => map.clone(),
            _ => Map::new(),
        };
        for (name, definitions) in &shared {
            property.insert((*name).to_owned(), (*definitions).clone());
        }
        (key.clone(), Value::Object(property))
    };
    properties.into_iter().flatten().map(with_shared).collect()
}

fn is_required(schema: &Value, key: &str) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    required.is_some_and(|required| required.iter().any(|name| name == key))
}

fn sequence(parts: &[String]) -> String {
    let parts: Vec<&str> =
        parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

/// Marks within a text, each a literal of its own.
fn marks(text: &str) -> String {
    let mut literals = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mark_end = rest.find('>').filter(|_| rest.starts_with('<')).map(|at| at + 1);
        let next_mark = || rest.char_indices().skip(1).find(|(_, c)| *c == '<').map(|(at, _)| at);
        let end = mark_end.or_else(next_mark).unwrap_or(rest.len());
        let (part, tail) = rest.split_at(end);
        literals.push(literal(part));
        rest = tail;
    }
    sequence(&literals)
}

/// A string literal; nothing for an empty one.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { Value::from(text).to_string() }
}
