//! Whatever tokens are chosen among the allowed, the text is JSON that the schema accepts.

mod common;
#[path = "common/validate.rs"]
mod validate;

use common::{END, END_OF_TURN, Random, TOOL_CALL, UNUSED, constraint, token_bytes};
use hypura_grammar::Rule;
use serde_json::{Value, json};
use validate::validate;

/// Walks under each schema.
const WALKS: usize = 6;
/// Tokens after which a walk prefers what closes.
const TOKENS: usize = 150;
/// Tokens after which it has failed.
const TOKENS_MAX: usize = 20_000;

/// The text of a walk.
fn walk(rule: &Rule, random: &mut Random) -> String {
    let mut constraint = constraint(rule);
    let mut bytes = Vec::new();
    for step in 0..TOKENS_MAX {
        let may_end = constraint.may_end();
        let must_end = constraint.must_end();
        let allowed: Vec<u32> = constraint.mask().expect("a mask").iter().collect();
        assert!(!allowed.contains(&TOOL_CALL) && !allowed.contains(&UNUSED));
        let ends = [END, END_OF_TURN];
        assert!(ends.iter().all(|end| allowed.contains(end) == may_end), "{allowed:?}");
        assert_eq!(allowed.iter().all(|token| ends.contains(token)), must_end, "{allowed:?}");
        // A number's exponent may be beyond what serde_json reads.
        let in_number = bytes.last().is_some_and(u8::is_ascii_digit);
        let mut choice: Vec<u32> = allowed
            .into_iter()
            .filter(|&token| !(in_number && matches!(token_bytes(token), Some([b'e' | b'E', ..]))))
            .collect();
        if step > TOKENS {
            let closes = |token: &u32| {
                ends.contains(token)
                    || matches!(token_bytes(*token), Some([b'"' | b'}' | b']', ..]))
            };
            if choice.iter().any(closes) {
                choice.retain(closes);
            }
        }
        let token = choice[random.below(choice.len())];
        constraint.accept(token).expect("an allowed token");
        match token_bytes(token) {
            Some(text) => bytes.extend_from_slice(text),
            None => return String::from_utf8(bytes).expect("UTF-8"),
        }
    }
    panic!("{rule:?} led nowhere: {}", String::from_utf8_lossy(&bytes));
}

fn check(schema: &Value) {
    let rule = Rule::JsonSchema(schema.clone());
    let mut random = Random(2027);
    for _ in 0..WALKS {
        let text = walk(&rule, &mut random);
        let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        validate(schema, schema, &value).unwrap_or_else(|error| panic!("{text}: {error}"));
        check_order(schema, &value);
    }
}

/// Properties come in the schema's order.
fn check_order(schema: &Value, value: &Value) {
    let (Some(properties), Some(fields)) = (schema["properties"].as_object(), value.as_object())
    else {
        return;
    };
    let places: Vec<usize> = fields
        .keys()
        .filter_map(|name| properties.keys().position(|property| property == name))
        .collect();
    assert!(places.is_sorted(), "{value}");
}

#[test]
fn any_object() {
    let mut random = Random(2026);
    for _ in 0..WALKS {
        let text = walk(&Rule::Json, &mut random);
        assert!(
            serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()),
            "{text}"
        );
    }
}

#[test]
fn scalars() {
    for schema in [
        json!({"type": "integer", "minimum": -20, "maximum": 300}),
        json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}),
        json!({"type": "string", "minLength": 2, "maxLength": 5}),
        json!({"type": ["string", "null"]}),
        json!({"enum": ["a", 1, null, true, [1, {"b": 2}]]}),
        json!({"const": {"b": [1, "two"], "a": null}}),
        json!(true),
        json!({}),
    ] {
        check(&schema);
    }
}

#[test]
fn objects_and_lists() {
    check(&json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "email": {"type": "string", "format": "email", "maxLength": 40},
            "aliases": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        },
        "required": ["age", "name"],
        "additionalProperties": false,
    }));
    check(&json!({
        "type": "array", "minItems": 2, "maxItems": 4,
        "items": {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}}]},
    }));
    check(&json!({"type": "object", "additionalProperties": {"type": "integer"}}));
    check(&json!({
        "allOf": [
            {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
        ],
    }));
}

/// As pydantic writes them.
#[test]
fn references() {
    check(&json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Order",
        "description": "What was ordered",
        "type": "object",
        "$defs": {
            "Color": {"enum": ["red", "green"], "title": "Color", "type": "string"},
            "Item": {
                "title": "Item", "type": "object",
                "properties": {
                    "color": {"$ref": "#/$defs/Color"},
                    "count": {"default": 1, "exclusiveMinimum": 0, "title": "Count", "type": "integer"},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null},
                    "parts": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "default": []},
                },
                "required": ["color"],
                "additionalProperties": false,
            },
            "Card": {"type": "object", "properties": {"kind": {"const": "card", "type": "string"}},
                     "required": ["kind"], "additionalProperties": false},
            "Cash": {"type": "object", "properties": {"kind": {"const": "cash", "type": "string"}},
                     "required": ["kind"], "additionalProperties": false},
        },
        "properties": {
            "first": {"$ref": "#/$defs/Item", "description": "Beside a reference"},
            "rest": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "minItems": 1},
            "payment": {
                "oneOf": [{"$ref": "#/$defs/Card"}, {"$ref": "#/$defs/Cash"}],
                "discriminator": {"propertyName": "kind", "mapping": {"card": "#/$defs/Card"}},
            },
        },
        "required": ["first", "rest", "payment"],
        "additionalProperties": false,
    }));
}
