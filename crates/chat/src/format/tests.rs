//! Grammars force what is written, and what they force is read.

use std::sync::LazyLock;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::{Format, SYNTAXES};
use crate::message::{Tool, ToolCall};

fn tools() -> Vec<Tool> {
    let properties = json!({
        "a": {"type": "string"},
        "b": {"type": "integer"},
        "c": {"$ref": "#/$defs/list"},
        "d": {"type": "string", "enum": ["x", "y"]},
    });
    let definitions = json!({"list": {"type": "array", "items": {"type": "number"}}});
    let tool = |name: &str, parameters: Value| Tool {
        name: name.to_owned(),
        description: String::new(),
        parameters,
        strict: true,
    };
    vec![
        tool(
            "f",
            json!({
                "type": "object",
                "properties": properties,
                "required": ["a", "b", "c", "d"],
                "additionalProperties": false,
                "$defs": definitions,
            }),
        ),
        tool("get_b", json!({"type": "object", "properties": {}})),
    ]
}

fn call(name: &str, arguments: Value) -> ToolCall {
    ToolCall { id: String::new(), name: name.to_owned(), arguments }
}

/// Whether `grammar` takes all of `text`, and may end there.
fn accepts(grammar: &str, text: &str) -> bool {
    static FACTORY: LazyLock<ParserFactory> =
        LazyLock::new(|| ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap());
    let parser = FACTORY.create_parser(TopLevelGrammar::from_lark(grammar.to_owned()));
    let mut matcher = Matcher::new(Ok(parser.unwrap_or_else(|e| panic!("{e:#}\n{grammar}"))));
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    let taken = matcher.try_consume_tokens(&tokens).unwrap();
    taken == tokens.len() && matcher.is_accepting().unwrap()
}

#[test]
fn forced_calls_are_those_that_are_written() {
    let full = json!({"a": "it's\n\"so\" <b>", "b": 2, "c": [1.5, 2], "d": "y"});
    let calls = [call("f", full), call("get_b", json!({}))];
    let mut forced = 0;
    for syntax in SYNTAXES {
        let format = Format::detect(&syntax.template.join(" "));
        let Some(grammar) = format.forced_call(&tools(), false) else {
            continue;
        };
        forced += 1;
        for one in calls.chunks(1) {
            let text = format.write_calls(one).unwrap();
            assert!(accepts(&grammar, &text), "{}: {text:?}\n{grammar}", syntax.name);
            assert!(!accepts(&grammar, &text.replace("get_b", "get_x").replace('2', "\"\"")));
        }
        let both = format.write_calls(&calls).unwrap();
        assert!(!accepts(&grammar, &both), "{}: {both:?}", syntax.name);
        assert!(!accepts(&grammar, "Hello"));
        let several = format.forced_call(&tools(), true).unwrap();
        if syntax.name != "harmony" {
            assert!(accepts(&several, &both), "{}: {both:?}\n{several}", syntax.name);
        }
    }
    assert_eq!(forced, SYNTAXES.len() - 1, "all but Gemma's can be forced");
}

#[test]
fn some_things_can_not_be_forced() {
    let format = Format::detect("<tool_call>");
    assert_eq!(format.forced_call(&[], false), None);
    let odd = Tool { name: "a\"b".to_owned(), ..tools().remove(0) };
    assert_eq!(format.forced_call(&[odd], false), None);
}

#[test]
fn a_grammar_is_readable() {
    let tool = Tool { parameters: json!({"type": "object"}), ..tools().remove(0) };
    assert_eq!(
        Format::detect("<tool_call>").forced_call(&[tool], false).unwrap(),
        "start: \"<tool_call>\" \"\\n\" ( any ) \"\\n\" \"</tool_call>\"\n\
         any: call_0\n\
         arguments_0: %json {\"type\":\"object\"}\n\
         call_0: \"{\\\"name\\\": \\\"f\\\", \\\"arguments\\\": \" arguments_0 \"}\"\n"
    );
}
