//! What parsers make of answers, as data.

use serde_json::{Value, json};

use super::Delta;
use crate::format::{Format, SYNTAXES};
use crate::fuzz::join;
use crate::message::{Tool, ToolCall};

fn tools() -> Vec<Tool> {
    let tool = |name: &str, properties: Value| Tool {
        name: name.to_owned(),
        description: String::new(),
        parameters: json!({"type": "object", "properties": properties}),
        strict: false,
    };
    vec![
        tool(
            "f",
            json!({
                "a": {"type": "string"},
                "b": {"type": "integer"},
                "c": {"type": ["string", "null"]},
                "d": {"type": "object"},
                "e": {"anyOf": [{"type": "boolean"}, {"type": "string"}]},
            }),
        ),
        tool("get_b", json!({})),
    ]
}

/// `R` reasoning, `C` content, `+` a call's name, its arguments, `.` its end.
fn written(deltas: Vec<Delta>) -> String {
    let write = |delta| match delta {
        Delta::Reasoning(text) => format!("R{text:?} "),
        Delta::Content(text) => format!("C{text:?} "),
        Delta::ToolCallBegin { name, .. } => format!("+{name}"),
        Delta::ToolCallArguments { json, .. } => json,
        Delta::ToolCallEnd { .. } => ". ".to_owned(),
    };
    join(deltas).into_iter().map(write).collect::<String>().trim_end().to_owned()
}

fn parse(format: &Format, prompt: &str, tools: &[Tool], pieces: &[&str]) -> Vec<Delta> {
    let mut parser = format.parser(prompt, tools);
    let mut deltas: Vec<Delta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    deltas
}

/// The text in one piece and cut at every place gives what is expected.
#[track_caller]
fn check_with(template: &str, prompt: &str, tools: &[Tool], text: &str, expected: &str) {
    let format = Format::detect(template);
    assert_eq!(written(parse(&format, prompt, tools, &[text])), expected, "{text:?}");
    for (at, _) in text.char_indices() {
        let (before, after) = text.split_at(at);
        let cut = parse(&format, prompt, tools, &[before, after]);
        assert_eq!(written(cut), expected, "{before:?} {after:?}");
    }
}

#[track_caller]
fn check(template: &str, text: &str, expected: &str) {
    check_with(template, "", &tools(), text, expected);
}

const HERMES: &str = "<tool_call> <think> </think> <|im_end|>";

#[test]
fn reasoning_is_told_from_content() {
    check(HERMES, "<think>\nso\n</think>\n\nHi", r#"R"so" C"Hi""#);
    check(HERMES, "<think>\n\n</think>\n\nHi \n", "C\"Hi \\n\"");
    check(HERMES, "Hi <think>x</think>", r#"C"Hi <think>x</think>""#);
    check(HERMES, "</think>Hi", r#"C"Hi""#);
    check(HERMES, "<think>never ends ", r#"R"never ends ""#);
    check_with(HERMES, "<think>\n", &[], "so\n</think>Hi", r#"R"so" C"Hi""#);
    check_with(HERMES, "<think>\n\n</think>\n", &[], "Hi", r#"C"Hi""#);
    check("[THINK][/THINK]", "[THINK]so[/THINK]Hi", r#"R"so" C"Hi""#);
    check("<seed:think>", "<seed:think>so</seed:think>Hi", r#"R"so" C"Hi""#);
    check(
        "<|START_THINKING|> <|END_THINKING|> <|START_RESPONSE|> <|END_RESPONSE|>",
        "<|START_THINKING|>so<|END_THINKING|><|START_RESPONSE|>Hi<|END_RESPONSE|>",
        r#"R"so" C"Hi""#,
    );
    check(
        "<think></think><response></response>",
        "<think>so</think>\n<response>Hi</response>",
        r#"R"so" C"Hi""#,
    );
    check("none", "<think>so</think>", r#"C"<think>so</think>""#);
}

#[test]
fn tokens_at_the_end_are_dropped() {
    check(HERMES, "Hi<|im_end|>", r#"C"Hi""#);
    check(HERMES, "Hi <|im_end|>\n<|im_end|>", r#"C"Hi ""#);
    check(HERMES, "a <|im_end|> b", r#"C"a <|im_end|> b""#);
    check(HERMES, "a <|im_e", r#"C"a <|im_e""#);
    check(HERMES, "<tool_call>{\"name\": \"get_b\"}</tool_call>\n<|im_end|>", "+get_b{}.");
}

#[test]
fn without_tools_calls_are_content() {
    let call = r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    check_with(HERMES, "", &[], call, &format!("C{call:?}"));
}

#[test]
fn json_calls_are_read() {
    let call = r#"{"name": "f", "arguments": {"a": "x}\"</tool_call>", "b": [1]}}"#;
    let read = r#"+f{"a": "x}\"</tool_call>", "b": [1]}."#;
    check(HERMES, &format!("<tool_call>\n{call}\n</tool_call>"), read);
    check(
        HERMES,
        &format!("Well:\n\n<tool_call>{call}</tool_call>\n<tool_call>{call}</tool_call> Done"),
        &format!("C\"Well:\" {read} {read} C\"Done\""),
    );
    let other_orders = [
        r#"{"arguments": {"b": 1}, "name": "f"}"#,
        r#"{"name": "f", "arguments": "{\"b\":1}"}"#,
        r#"{"type": "function", "function": {"name": "f", "parameters": {"b":1}}}"#,
        r#"{"id": "7", "function": "f", "arguments": {"b":1}}"#,
    ];
    for (i, call) in other_orders.into_iter().enumerate() {
        let read = if i == 0 { r#"+f{"b": 1}."# } else { r#"+f{"b":1}."# };
        check(HERMES, &format!("<tool_call>{call}</tool_call>"), read);
    }
    let list = r#"[{"name": "f", "arguments": {"b": 1}}, {"name": "get_b", "arguments": {}}]"#;
    let read = r#"+f{"b": 1}. +get_b{}."#;
    check("[TOOL_CALLS] </s>", &format!("[TOOL_CALLS]{list}</s>"), read);
    check("<|tool_call|>", &format!("<|tool_call|>{list}"), read);
    check("<TOOLCALL>", &format!("<TOOLCALL>{list}</TOOLCALL>"), read);
    check("<tool_calls>", &format!("<tool_calls>{list}</tool_calls>"), read);
    check(
        "<|START_ACTION|>",
        r#"<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {"b": 1}}]<|END_ACTION|>"#,
        r#"+f{"b": 1}."#,
    );
    check(
        "<|tools_prefix|>",
        r#"<|tools_prefix|>[{"f": {"b": 1}}, {"get_b": {}}]<|tools_suffix|>"#,
        read,
    );
}

#[test]
fn calls_without_marks_must_name_a_tool() {
    let llama = "<|python_tag|>";
    check(llama, r#"{"name": "f", "parameters": {"b": 1}}"#, r#"+f{"b": 1}."#);
    check(
        llama,
        r#"{"name": "g", "parameters": {}}"#,
        r#"C"{\"name\": \"g\", \"parameters\": {}}""#,
    );
    check(llama, r#"{"x": "f"}"#, r#"C"{\"x\": \"f\"}""#);
    check(llama, r#"Say {"name": "f"}"#, r#"C"Say {\"name\": \"f\"}""#);
    check(llama, r#"<|python_tag|>{"name": "f", "parameters": {}}"#, "+f{}.");
    check(llama, r#"<|python_tag|>f.call(a="x")"#, r#"+f{"a": "x"}."#);
    check(
        llama,
        r#"{"name": "f", "parameters": {}}; {"name": "get_b", "parameters": {}}"#,
        "+f{}. +get_b{}.",
    );
    check("none", "```json\n{\"name\": \"f\", \"arguments\": {}}\n```", "+f{}.");
    check("none", "[f(b=1)]", r#"+f{"b": 1}."#);
    check("none", "[1, 2]", r#"C"[1, 2]""#);
    check("none", "```json\n{\"a\": 1}\n```", "C\"```json\\n{\\\"a\\\": 1}\\n```\"");
}

#[test]
fn named_calls_are_read() {
    let mistral = "[TOOL_CALLS] [ARGS]";
    check(
        mistral,
        r#"[TOOL_CALLS]f[ARGS]{"b": 1}[TOOL_CALLS]get_b[ARGS]{}"#,
        r#"+f{"b": 1}. +get_b{}."#,
    );
    check(mistral, r#"[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}"#, "+f{}.");
    check(mistral, r#"[TOOL_CALLS][{"name": "f", "arguments": {}}]"#, "+f{}.");
    check(
        "<｜tool▁calls▁begin｜> ```json",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"b\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_b\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        r#"+f{"b": 1}. +get_b{}."#,
    );
    check(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"b\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        r#"+f{"b": 1}."#,
    );
    check(
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        "+f{}.",
    );
    check("<function=", r#"<function=f>{"b": 1}</function>"#, r#"+f{"b": 1}."#);
    check_with(">>>all", ">>>", &tools(), "f\n{\"b\": 1}", r#"+f{"b": 1}."#);
    check_with(">>>all", ">>>", &tools(), "all\nHi>>>f\n{}", r#"C"Hi" +f{}."#);
}

#[test]
fn tagged_calls_are_typed_by_the_schema() {
    let qwen = "<tool_call> <function= <parameter=";
    check(
        qwen,
        "<tool_call>\n<function=f>\n<parameter=a>\n 1\n\"x\" </p>\n</parameter>\n<parameter=b>\n2\n</parameter>\n</function>\n</tool_call>",
        r#"+f{"a": " 1\n\"x\" </p>", "b": 2}."#,
    );
    check(
        qwen,
        "<tool_call><function=f><parameter=c>None</parameter><parameter=d>{'k': True}</parameter><parameter=e>maybe</parameter></function></tool_call>",
        r#"+f{"c": null, "d": {"k":true}, "e": "maybe"}."#,
    );
    check(qwen, "<tool_call>\n<function=get_b>\n</function>\n</tool_call>", "+get_b{}.");
    check(
        "<arg_key>",
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>x</arg_value>\n<arg_key>b</arg_key>\n<arg_value>2</arg_value>\n</tool_call><tool_call>get_b</tool_call>",
        r#"+f{"a": "x", "b": 2}. +get_b{}."#,
    );
    check(
        "<minimax:tool_call>",
        "<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"a\">x</parameter>\n</invoke>\n<invoke name=\"get_b\">\n</invoke>\n</minimax:tool_call>",
        r#"+f{"a": "x"}. +get_b{}."#,
    );
    check(
        "DSML tool_calls",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"z\" string=\"true\">1</｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" string=\"false\">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        r#"+f{"z": "1", "b": 2}."#,
    );
}

#[test]
fn pythons_calls_are_read() {
    check(
        "<|tool_call_start|>",
        "<|tool_call_start|>[f(a='x, \\'y)', d={'k': [1, None]}), get_b()]<|tool_call_end|>Ok",
        r#"+f{"a": "x, 'y)", "d": {"k":[1,null]}}. +get_b{}. C"Ok""#,
    );
    check(
        "<|tool_call>call:",
        "<|tool_call>call:f{a:<|\"|>x, {y}<|\"|>,d:{k:[1,true]}}<tool_call|>",
        r#"+f{"a":"x, {y}","d":{"k":[1,true]}}."#,
    );
}

#[test]
fn channels_are_read() {
    let harmony = "<|channel|> <|message|> <|start|> <|return|>";
    let prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant";
    let check = |text: &str, expected: &str| check_with(harmony, prompt, &tools(), text, expected);
    check(
        "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        r#"R"so" C"Hi""#,
    );
    check(
        "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"b\": 1}<|call|>",
        r#"R"so" +f{"b": 1}."#,
    );
    check(" to=functions.f<|channel|>commentary json<|message|>{}<|call|>", "+f{}.");
    check("<|channel|>final<|message|>Hi", r#"C"Hi""#);
    check("no channel at all", r#"C"no channel at all""#);
}

#[test]
fn what_is_broken_stays_readable() {
    check(HERMES, "<tool_call>oops</tool_call>", r#"C"<tool_call>oops</tool_call>""#);
    check(
        HERMES,
        "<tool_call>{\"name\": 1}</tool_call>",
        "C\"<tool_call>{\\\"name\\\": 1}</tool_call>\"",
    );
    check(HERMES, "a <tool_call>{\"name\": \"f\"", "C\"a <tool_call>{\\\"name\\\": \\\"f\\\"\"");
    // What was given out can't be taken back: the call has no end.
    check(
        HERMES,
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1, oops",
        r#"+f{"a": 1, C"oops""#,
    );
    check(HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1", r#"+f{"a": 1"#);
}

#[test]
fn text_is_given_out_at_once() {
    let format = Format::detect(HERMES);
    let mut parser = format.parser("<think>", &tools());
    assert!(parser.is_in_reasoning());
    assert_eq!(parser.push("so it"), [Delta::Reasoning("so it".into())]);
    assert_eq!(parser.push(" is</th"), [Delta::Reasoning(" is".into())]);
    assert_eq!(parser.push("ink>A <b"), [Delta::Content("A <b".into())]);
    assert!(!parser.is_in_reasoning());
    assert_eq!(parser.push(" <tool"), []);
    assert_eq!(parser.push("s> c"), [Delta::Content(" <tools> c".into())]);
    assert_eq!(parser.push("<tool_call>{\"name\": \"f\", "), []);
    let begin = parser.push("\"arguments\": {\"a\": \"be");
    assert!(
        matches!(&*begin, [Delta::ToolCallBegin { index: 0, .. }, Delta::ToolCallArguments { json, .. }] if json == "{\"a\": \"be")
    );
    let more = parser.push("gun");
    assert_eq!(more, [Delta::ToolCallArguments { index: 0, json: "gun".into() }]);
}

#[test]
fn ids_are_the_models_or_made_up() {
    let id = |template: &str, prompt: &str, text: &str| {
        let format = Format::detect(template);
        let deltas = parse(&format, prompt, &tools(), &[text]);
        deltas.into_iter().find_map(|delta| match delta {
            Delta::ToolCallBegin { id, .. } => Some(id),
            _ => None,
        })
    };
    let mistral = "[TOOL_CALLS] [ARGS]";
    assert_eq!(id(mistral, "", "[TOOL_CALLS]f[CALL_ID]abcDEF123[ARGS]{}").unwrap(), "abcDEF123");
    let kimi = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:3<|tool_call_argument_begin|>{}";
    assert_eq!(id("<|tool_calls_section_begin|>", "", kimi).unwrap(), "functions.f:3");
    let made_up = |prompt: &str| id(mistral, prompt, "[TOOL_CALLS]f[ARGS]{}").unwrap();
    assert_eq!(made_up("a").len(), 9);
    assert_eq!(made_up("a"), made_up("a"));
    assert_ne!(made_up("a"), made_up("b"));
}

/// Whatever we write in a syntax, we read back.
#[test]
fn calls_that_are_written_are_read_back() {
    let call = |name: &str, arguments: Value| ToolCall {
        id: String::new(),
        name: name.to_owned(),
        arguments,
    };
    let long = json!({
        "a": "line\nbreak \"q\" 'p' \\ {[<tag>]} é",
        "b": -3,
        "c": null,
        "d": {"x": [1, 2.5, true, "y, z)"], "y": {}},
        "e": "false friend",
    });
    let calls = [call("f", long), call("get_b", json!({})), call("f", json!({"a": ""}))];
    for syntax in SYNTAXES {
        let format = Format::detect(&syntax.template.join(" "));
        for some in [&calls[..1], &calls[1..2], &calls[2..], &calls[..]] {
            // gpt-oss calls one tool per message.
            if syntax.name == "harmony" && some.len() > 1 {
                continue;
            }
            let text = format.write_calls(some).unwrap();
            for pieces in [vec![text.as_str()], text.split_inclusive(['"', '<', '\n']).collect()] {
                let deltas = join(parse(&format, "", &tools(), &pieces));
                let mut read = Vec::new();
                for delta in &deltas {
                    match delta {
                        Delta::ToolCallBegin { name, .. } => read.push(call(name, Value::Null)),
                        Delta::ToolCallArguments { json, index } => {
                            read[*index].arguments = serde_json::from_str(json).unwrap();
                        }
                        Delta::ToolCallEnd { .. } => {}
                        other => panic!("{}: {other:?} in {text:?}", syntax.name),
                    }
                }
                assert_eq!(read, some, "{}: {text:?}", syntax.name);
            }
        }
    }
}
