//! Texts that rules allow and refuse, byte by byte.

mod common;

use common::{
    END, END_OF_TURN, SPELLED, TOOL_CALL, UNUSED, accepted, constraint, refused, vocabulary,
};
use hypura_grammar::{
    Constraint, ConstraintError, Rule, TOKEN_BYTES_MAX, TokenText, Vocabulary, VocabularyError,
    lark_schema,
};
use serde_json::{Value, json};

/// `text` has a `^` where it is refused; one without is accepted to its end, where it may end.
fn check(rule: &Rule, text: &str) {
    let mut constraint = constraint(rule);
    let (good, bad) = text.split_once('^').unwrap_or((text, ""));
    let whole = format!("{good}{bad}");
    let (taken, may_end) = accepted(&mut constraint, &whole);
    assert_eq!(taken, good, "of {whole:?} under {rule:?}");
    if bad.is_empty() {
        assert!(may_end, "{whole:?} may not end under {rule:?}");
        for end in [END, END_OF_TURN] {
            assert!(constraint.mask().expect("a mask").allows(end));
        }
        assert_eq!(constraint.accept(END), Ok(()));
        assert!(constraint.must_end());
        let after: Vec<u32> = constraint.mask().expect("a mask").iter().collect();
        assert_eq!(after, [END, END_OF_TURN]);
    }
}

fn check_schema(schema: Value, texts: &[&str]) {
    let rule = Rule::JsonSchema(schema);
    texts.iter().for_each(|text| check(&rule, text));
}

#[test]
fn any_object() {
    for text in [
        r#"{}"#,
        r#"{"a":1}"#,
        "{\n  \"a\": [\n    true,\n    null\n  ]\n}",
        "{\r\n\t\"a\": \"\\\"\\n\\u0007\"}",
        r#"{"a": "<tool_call> 😀"}"#,
        "^[1]",
        "^ {}",
        "{}^ ",
        "{}^\n",
        "{ ^ }",
        "{\n^\n}",
        r#"{"a": ^}"#,
        r#"{"a": 1^a}"#,
        r#"{"a": 0^0}"#,
        "{\"a\": \"^\n\"}",
        "{\"a\": \"^\u{7f}\"}",
        r#"{"a": tr^ee}"#,
        r#"{"a": 1,^}"#,
    ] {
        check(&Rule::Json, text);
    }
    let spaces = format!("{{\n{}^ }}", " ".repeat(20));
    check(&Rule::Json, &spaces);
}

#[test]
fn objects() {
    let person = json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "x": {}},
        "required": ["age", "name"],
        "additionalProperties": false,
    });
    check_schema(
        person,
        &[
            r#"{"name": "A", "age": 3}"#,
            r#"{"name":"A","age":3,"x":[]}"#,
            r#"{"^age": 3, "name": "A"}"#,
            r#"{"name": "A"^}"#,
            r#"{"name": ^1}"#,
            r#"{"name": "A", "age": 3^.5}"#,
            r#"{"name": "A", "age": 3, "^y": 1}"#,
        ],
    );
    check_schema(
        json!({"type": "object", "properties": {"a": {"type": "null"}}}),
        &[r#"{}"#, r#"{"^b": [1]}"#, r#"{"a": null^, "b": 1}"#, r#"{"a": ^1}"#],
    );
    check_schema(
        json!({"properties": {"a": {"type": "null"}}, "additionalProperties": true,
               "type": "object"}),
        &[r#"{"b": [1]}"#, r#"{"a": null, "b": 1}"#],
    );
    check_schema(json!({"type": "object"}), &[r#"{"b": [1]}"#]);
    // One part must not close what another one adds to.
    let part = |name: &str| json!({"type": "object", "properties": {name: {"type": "null"}}});
    check_schema(json!({"allOf": [part("a"), part("b")]}), &[r#"{"a": null, "b": null}"#]);
    check_schema(
        json!({"type": "object", "patternProperties": {"^n_": {"type": "integer"}},
               "additionalProperties": false}),
        &[r#"{"n_a": 1, "n_": 2}"#, r#"{"^a": 1}"#, r#"{"n_a": ^"1"}"#],
    );
}

#[test]
fn values() {
    check_schema(
        json!({"enum": ["one", "two", 3, null]}),
        &[r#""one""#, "3", "null", r#""t^hree""#],
    );
    check_schema(json!({"const": {"a": [1]}}), &[r#"{"a": [1]}"#, r#"{"a": [^2]}"#]);
    check_schema(
        json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        &["12", "null", "^\"12\""],
    );
    check_schema(
        json!({"type": "integer"}),
        &["0", "-9007199254740991", "9007199254740991", "900719925474099^2"],
    );
    check_schema(
        json!({"type": "integer", "minimum": 3, "maximum": 12}),
        &["3", "12", "1^3", "^2"],
    );
    check_schema(json!({"type": "integer", "multipleOf": 7}), &["0", "21", "-7"]);
    check_schema(json!({"type": "number"}), &["-1.5e+10", "0^1", "^.5"]);
    check_schema(
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}),
        &["[true]", "[true, false]", "[^]", "[true, false^, true]"],
    );
    check_schema(
        json!({"type": "array", "prefixItems": [{"type": "null"}], "items": false}),
        &["[null]", "[]", "[null^, 1]"],
    );
}

#[test]
fn texts() {
    check_schema(
        json!({"type": "string", "minLength": 1, "maxLength": 2}),
        &[r#""é""#, r#""😀\n""#, r#""^""#, r#""abc"#.replace("c", "^c").as_str()],
    );
    check_schema(json!({"type": "string", "pattern": "^[a-c]+\\d$"}), &[r#""ab1""#, r#""a^d""#]);
    check_schema(
        json!({"type": "string", "pattern": "^[a-z0-9-]+$", "minLength": 3, "maxLength": 64}),
        &[r#""a-1""#, r#""a^""#],
    );
    check_schema(json!({"type": "string", "pattern": "b"}), &[r#""abc""#, r#""ac^""#]);
    check_schema(
        json!({"type": "string", "format": "date-time"}),
        &[r#""2024-02-29T12:30:00Z""#, r#""2024-1^3-01T00:00:00Z""#],
    );
    check_schema(
        json!({"type": "string", "format": "uuid"}),
        &[r#""123e4567-e89b-12d3-a456-426614174000""#, r#""^x""#],
    );
    check_schema(
        json!({"type": "string", "format": "email"}),
        &[r#""a.b@example.org""#, r#""a^ ""#],
    );
}

#[test]
fn references() {
    check_schema(
        json!({"$ref": "#/definitions/a~1b",
               "definitions": {"a/b": {"type": "array", "items": {"$ref": "#"}}}}),
        &["[]", "[[], [[]]]", "[^1]"],
    );
    // Not where definitions usually are.
    check_schema(
        json!({"components": {"x": {"type": "null"}}, "type": "array",
               "items": {"$ref": "#/components/x"}}),
        &["[null, null]", "[^1]"],
    );
    check_schema(
        json!({"oneOf": [{"type": "integer"}, {"type": "string"}],
               "anyOf": [{"type": "integer"}, {"type": "null"}]}),
        &["1", "^null", "^\"\""],
    );
}

#[test]
fn combinations() {
    let part = |name: &str| json!({"properties": {name: {"type": "integer"}}, "required": [name]});
    check_schema(
        json!({"type": "object", "allOf": [part("a"), part("b"), part("c"), part("d"), part("e")]}),
        &[r#"{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}"#, r#"{"a": 1, "b": 2, "c": 3, "d": 4^}"#],
    );
    check_schema(
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
               "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "additionalProperties": false}),
        &[r#"{"a": 1}"#, r#"{"b": 1}"#, r#"{"a": 1, "b": 2}"#, "{^}"],
    );
    check_schema(
        json!({"$defs": {"a": {"type": "object", "properties": {"x": {"type": "null"}}}},
               "allOf": [{"$ref": "#/$defs/a"}], "required": ["x"], "additionalProperties": false,
               "properties": {"x": true}}),
        &[r#"{"x": null}"#, "{^}"],
    );
}

#[test]
fn what_is_not_enforced_is_named() {
    let check = |schema: Value, names: &[&str]| {
        let constraint = constraint(&Rule::JsonSchema(schema));
        let ignored = constraint.ignored().join("\n");
        assert_eq!(constraint.ignored().len(), names.len(), "{ignored}");
        names.iter().for_each(|name| assert!(ignored.contains(name), "{name} in {ignored}"));
    };
    check(
        json!({"type": "array", "uniqueItems": true, "items": {"not": {}}}),
        &["uniqueItems", "not"],
    );
    check(json!({"type": "string", "format": "color"}), &["color"]);
    check(
        json!({"type": "string", "title": "x", "description": "x", "default": 1, "examples": [1],
               "deprecated": true, "x-order": 3, "x-guidance": {"whitespace_pattern": "x*"},
               "uniqueItems": false, "nullable": true}),
        &[],
    );
}

#[test]
fn options_of_the_library_are_not_taken_from_schemas() {
    let schema = json!({"type": "object", "x-guidance": {"item_separator": "x"}});
    check_schema(schema, &[r#"{"a":1,"b":2}"#, r#"{"a":1^x"b":2}"#]);
}

#[test]
fn regular_expressions() {
    let rule = |pattern: &str| Rule::Regex(pattern.to_owned());
    check(&rule("[ab]+/c?"), "ab/");
    check(&rule("[ab]+/c?"), "ab/c");
    check(&rule("[ab]+/c?"), "ab^c");
    check(&rule("a\n\\d"), "a\n7");
    check(&rule("é|ü"), "ü");
    check(&rule("é|ü"), "^a");
    check(&rule("x/\nstart: \"y\""), "x/\nstart: \"y\"");
    let mut empty = constraint(&rule(""));
    assert!(empty.may_end() && empty.must_end());
}

#[test]
fn tool_calls() {
    let schema = json!({
        "type": "object",
        "properties": {"name": {"const": "add"}, "arguments": {"type": "object"}},
        "required": ["name", "arguments"], "additionalProperties": false,
    });
    let body = lark_schema(&schema).expect("a schema");
    let spelled = format!("start: \"<tool_call>\\n\" body \"\\n</tool_call>\"\nbody: {body}\n");
    let spelled = Rule::Lark(spelled);
    check(&spelled, "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>");
    check(&spelled, "<tool_call>\n{\"name\": \"^sub\"");
    check(&spelled, "^{");
    let mut constraint = constraint(&spelled);
    assert!(constraint.mask().expect("a mask").allows(SPELLED));
    assert!(!constraint.mask().expect("a mask").allows(TOOL_CALL));
    assert_eq!(constraint.accept(TOOL_CALL), Err(ConstraintError::Refused { token: TOOL_CALL }));
    assert_eq!(constraint.accept(SPELLED), Ok(()));
}

#[test]
fn control_tokens_are_not_text() {
    let vocabulary = vocabulary();
    assert_eq!(vocabulary.control("<tool_call>"), Some(TOOL_CALL));
    assert_eq!(vocabulary.control("<none>"), None);
    for start in ["<tool_call>".to_owned(), format!("<[{TOOL_CALL}]>")] {
        let rule = Rule::Lark(format!("start: {start} /[a-z<>_]*/"));
        let mut constraint = constraint(&rule);
        let allowed: Vec<u32> = constraint.mask().expect("a mask").iter().collect();
        assert_eq!(allowed, [TOOL_CALL]);
        assert_eq!(constraint.accept(SPELLED), Err(ConstraintError::Refused { token: SPELLED }));
        assert_eq!(constraint.accept(TOOL_CALL), Ok(()));
        let mask = constraint.mask().expect("a mask");
        assert!(mask.allows(SPELLED) && !mask.allows(TOOL_CALL));
        assert_eq!(constraint.accept(SPELLED), Ok(()));
        assert!(constraint.may_end() && !constraint.must_end());
    }
    // An end token is no part of a text, even where a grammar says so.
    refused(&Rule::Lark(format!("start: <[{END}]> \"a\"")));
    let mut any = constraint(&Rule::Lark("start: <[*]> \"a\"".to_owned()));
    let mask = any.mask().expect("a mask");
    assert!(mask.allows(TOOL_CALL) && !mask.allows(END) && !mask.allows(END_OF_TURN));
    // Within a text of JSON, only its spelling.
    let mut constraint = constraint(&Rule::JsonSchema(json!({"type": "string"})));
    assert_eq!(constraint.accept(u32::from(b'"')), Ok(()));
    let mask = constraint.mask().expect("a mask");
    assert!(mask.allows(SPELLED));
    for token in [TOOL_CALL, END, END_OF_TURN, UNUSED, 0xff, 0xc0, 10_000, u32::MAX] {
        assert!(!mask.allows(token), "{token}");
    }
    for token in [TOOL_CALL, END, UNUSED, 0xff, 10_000, u32::MAX] {
        assert_eq!(constraint.accept(token), Err(ConstraintError::Refused { token }));
    }
    assert_eq!(constraint.accept(u32::from(b'"')), Ok(()));
}

#[test]
fn masks_on_logits() {
    let mut constraint = constraint(&Rule::JsonSchema(json!({"type": "boolean"})));
    let mask = constraint.mask().expect("a mask");
    let mut logits = vec![1.0; 300];
    mask.apply(&mut logits);
    for (logit, token) in logits.iter().zip(0..) {
        assert_eq!(*logit == 1.0, mask.allows(token), "{token}");
        assert!(*logit == 1.0 || *logit == f32::NEG_INFINITY);
    }
    let mut few = vec![1.0; 100];
    mask.apply(&mut few);
    assert_eq!(few, logits[..100]);
}

#[test]
fn vocabularies() {
    let text = |text: &str| TokenText::Text(text.as_bytes().to_vec());
    let unknown = Vocabulary::new(vec![text("a")], 0, &[3]).map(|_| ());
    assert_eq!(unknown, Err(VocabularyError::UnknownEnd { token: 3, tokens: 1 }));
    let empty = Vocabulary::new(Vec::new(), 0, &[]).map(|_| ());
    assert_eq!(empty, Err(VocabularyError::UnknownEnd { token: 0, tokens: 0 }));
    let large = Vocabulary::new(vec![text(&"a".repeat(200)); 30_000], 0, &[]).map(|_| ());
    assert!(matches!(large, Err(VocabularyError::TooLarge { tokens: 30_000, .. })), "{large:?}");

    // The same text twice, a token that is too long, an end token that is text, and one without
    // any: none of it gets in the way.
    let tokens = vec![
        text("a"),
        text("a"),
        text(&"a".repeat(TOKEN_BYTES_MAX)),
        text(&"a".repeat(TOKEN_BYTES_MAX + 1)),
        text("a"),
        TokenText::Unused,
        text(""),
        TokenText::Text(vec![0xff, b'a']),
    ];
    let vocabulary = Vocabulary::new(tokens, 4, &[5]).expect("a vocabulary");
    assert_eq!((vocabulary.tokens(), vocabulary.ends()), (8, [4, 5].as_slice()));
    let mut constraint =
        Constraint::new(&vocabulary, &Rule::Regex("a*".to_owned())).expect("a constraint");
    let allowed: Vec<u32> = constraint.mask().expect("a mask").iter().collect();
    assert_eq!(allowed, [0, 1, 2, 4, 5]);
    assert_eq!(constraint.accept(2), Ok(()));
    assert_eq!(constraint.accept(5), Ok(()));
    assert!(constraint.must_end());
    // It can't write JSON.
    let error = Constraint::new(&vocabulary, &Rule::Json).map(|_| ());
    assert!(error.is_err(), "{error:?}");
}

#[test]
fn errors_say_what_is_wrong() {
    let check = |rule: Rule, words: &[&str]| {
        let error = refused(&rule).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(error.lines().count() == 1 && error.len() < 600, "{error}");
    };
    let schema = |schema| Rule::JsonSchema(schema);
    check(schema(json!({"type": "string", "pattern": "(?=a)b"})), &["look-around"]);
    check(schema(json!({"$ref": "http://a/b"})), &["$ref", "http://a/b"]);
    check(schema(json!({"$ref": "#"})), &["no text has this form"]);
    check(schema(json!({"type": "text"})), &["Invalid type: text"]);
    check(Rule::Regex("a".repeat(5000)), &["5000 bytes", "4096"]);
}

#[test]
fn constraints_can_be_sent_and_vocabularies_shared() {
    fn sent<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    sent::<Constraint>();
    shared::<Vocabulary>();
}
