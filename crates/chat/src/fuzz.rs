//! Bodies of fuzz tests: given any bytes, they must neither panic nor hang. `fuzz/` runs them under
//! cargo-fuzz, `tests/fuzz.rs` on seeded inputs in every build.

use serde_json::json;

use crate::format::{Format, SYNTAXES};
use crate::message::{Message, Tool};
use crate::parse::Delta;
use crate::template::ChatTemplate;

/// Parses `data` as what a model says: its first byte chooses the format and whether there are
/// tools, the second the size of pieces.
///
/// # Panics
/// If the result depends on how the text was cut, or if a call that has ended has no JSON object
/// for arguments.
pub fn fuzz_parser(data: &[u8]) {
    let Some(([format_byte, size_byte], text)) = data.split_first_chunk() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let choice = usize::from(*format_byte);
    let template = SYNTAXES.get(choice / 2 % (SYNTAXES.len() + 1)).map(|syntax| syntax.template);
    let format = Format::detect(&format!("{} </think>", template.unwrap_or_default().join(" ")));
    let tool = |name: &str| Tool {
        name: name.to_owned(),
        description: String::new(),
        parameters: json!({"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}),
        strict: false,
    };
    let tools = if choice % 2 == 0 { vec![tool("f"), tool("get_b")] } else { Vec::new() };
    let whole = parse(&format, &tools, [text.as_ref()]);
    let size = usize::from(size_byte % 8) + 1;
    let chars: Vec<char> = text.chars().collect();
    let pieces: Vec<String> = chars.chunks(size).map(|piece| piece.iter().collect()).collect();
    let cut = parse(&format, &tools, pieces.iter().map(String::as_str));
    assert_eq!(whole, cut, "the result depends on how the text was cut");
    for index in whole.iter().filter_map(|delta| match delta {
        Delta::ToolCallEnd { index } => Some(*index),
        _ => None,
    }) {
        let json = arguments(&whole, index);
        let value: Result<serde_json::Map<String, serde_json::Value>, _> =
            serde_json::from_str(&json);
        assert!(value.is_ok(), "call {index} has ended with {json:?}");
    }
}

/// Compiles `data` as a template and renders it.
///
/// # Panics
/// Never, but for a bug.
pub fn fuzz_template(data: &[u8]) {
    if let Ok(template) = ChatTemplate::new(&String::from_utf8_lossy(data), "<s>", "</s>") {
        // Whether it refuses is its own business.
        let _ = template.render(&[Message::new("user", "Hi")]);
    }
}

/// All that a parser says of these pieces, neighbours of one kind joined.
fn parse<'a>(
    format: &Format,
    tools: &[Tool],
    pieces: impl IntoIterator<Item = &'a str>,
) -> Vec<Delta> {
    let mut parser = format.parser("", tools);
    let mut deltas: Vec<Delta> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    join(deltas)
}

/// Neighbours of one kind become one.
pub(crate) fn join(deltas: Vec<Delta>) -> Vec<Delta> {
    let mut joined: Vec<Delta> = Vec::new();
    for delta in deltas {
        match (joined.last_mut(), &delta) {
            (Some(Delta::Content(last)), Delta::Content(more))
            | (Some(Delta::Reasoning(last)), Delta::Reasoning(more)) => last.push_str(more),
            (
                Some(Delta::ToolCallArguments { json: last, index: same }),
                Delta::ToolCallArguments { json: more, index },
            ) if same == index => last.push_str(more),
            _ => joined.push(delta),
        }
    }
    joined
}

fn arguments(deltas: &[Delta], wanted: usize) -> String {
    let json = |delta: &Delta| match delta {
        Delta::ToolCallArguments { index, json } if *index == wanted => Some(json.clone()),
        _ => None,
    };
    deltas.iter().filter_map(json).collect()
}
