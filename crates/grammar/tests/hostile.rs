//! Rules that ask for too much: each is refused, or obeyed at a bounded cost.

mod common;

use common::{Random, constraint, refused};
use hypura_grammar::{
    ConstraintError, PATTERN_BYTES_MAX, REFERENCE_REACH_MAX, Rule, SCHEMA_DEPTH_MAX,
    SCHEMA_TEXT_BYTES_MAX, lark_schema,
};
use serde_json::{Map, Value, json};

fn check_too_complex(name: &str, schema: Value) {
    let error = refused(&Rule::JsonSchema(schema));
    assert!(matches!(error, ConstraintError::TooComplex { .. }), "{name}: {error}");
}

fn check_invalid(schema: Value) {
    let error = refused(&Rule::JsonSchema(schema.clone()));
    assert!(matches!(error, ConstraintError::Invalid { .. }), "{schema}: {error}");
}

/// Takes a few dozen steps; a constraint may give up, but neither panic nor hang.
fn check_bounded(rule: &Rule) {
    let mut random = Random(7);
    let mut constraint = constraint(rule);
    for _ in 0..60 {
        let tokens: Vec<u32> = match constraint.mask() {
            Ok(mask) => mask.iter().collect(),
            Err(ConstraintError::Failed { .. }) => return,
            Err(error) => panic!("{rule:?}: {error}"),
        };
        assert!(!tokens.is_empty());
        if constraint.must_end() {
            return;
        }
        match constraint.accept(tokens[random.below(tokens.len())]) {
            Ok(()) => {}
            Err(ConstraintError::Failed { .. }) => return,
            Err(error) => panic!("{rule:?}: {error}"),
        }
    }
}

fn named(count: usize, schema: &Value) -> Map<String, Value> {
    (0..count).map(|number| (format!("p{number}"), schema.clone())).collect()
}

fn nested(levels: usize, wrap: impl Fn(Value) -> Value) -> Value {
    (0..levels).fold(json!({"type": "string"}), |inner, _| wrap(inner))
}

#[test]
fn too_much_of_one_thing() {
    let item = |inner| json!({"type": "array", "items": inner});
    check_too_complex("depth", nested(SCHEMA_DEPTH_MAX, item));
    check_too_complex(
        "constants",
        json!({"const": (0..SCHEMA_DEPTH_MAX).fold(json!(1), |v, _| json!([v]))}),
    );
    check_too_complex("values", json!({"enum": vec![1; 20_000]}));
    check_too_complex("text", json!({"const": "x".repeat(SCHEMA_TEXT_BYTES_MAX + 1)}));
    check_too_complex("name", json!({"properties": {"x".repeat(2000): true}}));
    check_too_complex("pattern", json!({"pattern": "x".repeat(PATTERN_BYTES_MAX + 1)}));
    check_too_complex("properties", json!({"properties": named(1001, &json!(true))}));
    let required: Vec<String> = (0..1001).map(|number| number.to_string()).collect();
    check_too_complex("required", json!({"type": "object", "required": required}));
    check_too_complex("multipleOf", json!({"type": "integer", "multipleOf": 999_983}));
    check_too_complex(
        "multiples",
        json!({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}], "type": "integer"}),
    );
    let patterns: Map<String, Value> = (0..9).map(|i| (format!("^{i}"), json!(true))).collect();
    check_too_complex("patternProperties", json!({"patternProperties": patterns}));
    check_too_complex(
        "one of many properties",
        json!({"properties": named(65, &json!(true)), "minProperties": 1,
               "additionalProperties": false}),
    );
    check_too_complex(
        "a number's digits",
        json!({"type": "number", "minimum": -1.7e308, "maximum": 1.7e308}),
    );
    let patterns: Vec<Value> =
        (0..20).map(|i| json!({"pattern": format!("[a-z]{{{i}}}{i}")})).collect();
    check_too_complex("patterns of one text", json!({"type": "string", "allOf": patterns}));
}

/// A small text that stands for a large one.
#[test]
fn multiplied() {
    let mut definitions: Map<String, Value> = (0..24)
        .map(|level| {
            let next = json!({"$ref": format!("#/$defs/{}", level + 1), "type": "object"});
            (level.to_string(), json!({"type": "object", "properties": {"x": next, "y": next}}))
        })
        .collect();
    definitions.insert("24".to_owned(), json!({"type": "object"}));
    check_too_complex("references", json!({"$defs": definitions, "$ref": "#/$defs/0"}));

    let names: Vec<String> = (0..5000).map(|number| format!("v{number}")).collect();
    let options: Vec<Value> = (0..500).map(|i| json!({"required": [format!("r{i}")]})).collect();
    check_too_complex(
        "copies",
        json!({"type": "object", "properties": {"x": {"enum": names}}, "anyOf": options}),
    );
    let options: Vec<Value> = (0..8)
        .map(|j| {
            let options = (0..8).map(|i| json!({"properties": {format!("{i}-{j}"): {}}}));
            json!({"anyOf": options.collect::<Value>()})
        })
        .collect();
    check_too_complex("alternatives", json!({"allOf": options}));
    check_too_complex("nested alternatives", nested(14, |inner| json!({"anyOf": [inner, inner]})));
    check_too_complex(
        "mismatches",
        json!({"type": "object", "properties": named(1000, &json!({"type": "integer"})),
               "anyOf": vec![json!({"type": "null"}); 3000]}),
    );
}

#[test]
fn references() {
    let chain = |length: usize, beside: Value| {
        let mut definitions: Map<String, Value> = (0..length)
            .map(|i| {
                let mut item = beside.clone();
                item["$ref"] = json!(format!("#/$defs/{}", i + 1));
                (i.to_string(), json!({"type": "array", "items": item}))
            })
            .collect();
        definitions.insert(length.to_string(), json!({"type": "array"}));
        json!({"$defs": definitions, "$ref": "#/$defs/0"})
    };
    check_bounded(&Rule::JsonSchema(chain(REFERENCE_REACH_MAX / 2 - 1, json!({}))));
    check_too_complex("a chain", chain(REFERENCE_REACH_MAX / 2, json!({})));
    let combined = |length| chain(length, json!({"type": "array", "minItems": 1}));
    check_bounded(&Rule::JsonSchema(combined(100)));
    check_too_complex("a combined chain", combined(REFERENCE_REACH_MAX / 2 - 1));

    check_invalid(json!({"$ref": "#"}));
    check_invalid(json!({"anyOf": [{"$ref": "#"}, {"$ref": "#/anyOf/0"}]}));
    check_invalid(json!({"allOf": [{"$ref": "#"}, {"type": "object"}]}));
    check_invalid(json!({"$ref": "#/$defs/missing"}));
    check_invalid(json!({"$ref": "#name"}));
    check_invalid(json!({"$ref": "other.json#/a"}));
    check_invalid(json!({"$ref": "http://127.0.0.1:1/schema.json"}));
    check_invalid(json!({"$ref": "file:///etc/hostname"}));
    check_invalid(json!({"$ref": 1}));
    check_invalid(json!({"properties": {"x": {"$ref": "#/properties/x/y/z"}}}));
}

#[test]
fn malformed() {
    check_invalid(json!(null));
    check_invalid(json!("string"));
    check_invalid(json!([]));
    check_invalid(json!(false));
    check_invalid(json!({"type": "text"}));
    check_invalid(json!({"type": 1}));
    check_invalid(json!({"type": vec!["array"; 20_000 / 2]}));
    check_invalid(json!({"properties": []}));
    check_invalid(json!({"items": 1}));
    check_invalid(json!({"anyOf": {}}));
    check_invalid(json!({"anyOf": []}));
    check_invalid(json!({"enum": "a"}));
    check_invalid(json!({"minLength": -1, "type": "string"}));
    check_invalid(json!({"minimum": "1", "type": "integer"}));
    check_invalid(json!({"multipleOf": 0, "type": "integer"}));
    check_invalid(json!({"type": "string", "pattern": "("}));
    check_invalid(json!({"type": "string", "pattern": "(?=a)b"}));
    check_invalid(json!({"type": "string", "pattern": "(a)\\1"}));
    check_invalid(json!({"type": "string", "pattern": "(".repeat(2000) + &")".repeat(2000)}));
    check_invalid(json!({"type": "integer", "minimum": 3, "maximum": 2}));
    check_invalid(json!({"type": "array", "minItems": 3, "maxItems": 2}));
    check_invalid(json!({"type": "object", "required": ["x"], "additionalProperties": false}));
    assert!(matches!(refused(&Rule::Regex("[".to_owned())), ConstraintError::Invalid { .. }));
    assert!(matches!(
        refused(&Rule::Lark("start: missing".to_owned())),
        ConstraintError::Invalid { .. }
    ));
    assert!(lark_schema(&json!({"items": 1})).is_err());
    assert!(lark_schema(&json!({"const": "x".repeat(SCHEMA_TEXT_BYTES_MAX + 1)})).is_err());
}

#[test]
fn large_numbers() {
    for schema in [
        json!({"type": "string", "minLength": 1_000_000_000}),
        json!({"type": "string", "maxLength": 1_000_000_000}),
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000}),
        json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000_000}),
        json!({"type": "object", "minProperties": 1_000_000_000}),
        json!({"type": "integer", "minimum": -9.2e18, "maximum": 9.2e18}),
        json!({"type": "integer", "multipleOf": 2003}),
        nested(8, |inner| json!({"type": "array", "items": inner, "minItems": 1000})),
        json!({"enum": (0..6000).map(|i| format!("v{i}")).collect::<Vec<_>>()}),
        json!({"type": "object", "properties": named(400, &json!({"type": "integer"}))}),
        json!({"oneOf": [{"enum": (0..2000).map(|i| format!("v{i}")).collect::<Vec<_>>()},
                         {"enum": (0..2000).map(|i| format!("w{i}")).collect::<Vec<_>>()}]}),
    ] {
        check_bounded(&Rule::JsonSchema(schema));
    }
}

#[test]
fn costly_patterns() {
    for pattern in [
        "^(a+)+$",
        "^(a|a)*(a|a)*(a|a)*b$",
        "^(a|b)*a(a|b){20}$",
        "(a|b)*a(a|b){400}c",
        "^((((a{1000}){1000}){1000}){1000}){1000}$",
        "^\\p{L}{1000}\\p{N}{1000}$",
        "^[\\w\\W]{1,1000}[^a]{5,900}x$",
        "x.*x.*x.*x.*x.*x.*x.*x.*x.*x.*x.*x.*x.*x.*x.*x.*x",
        "^(.*a.{12}|.*b.{13}|.*c.{14}|.*d.{15})$",
    ] {
        check_bounded(&Rule::JsonSchema(json!({"type": "string", "pattern": pattern})));
        check_bounded(&Rule::Regex(pattern.replace(['^', '$'], "")));
    }
    let repeated = "[\\w]{0,1000}".repeat(300);
    check_bounded(&Rule::JsonSchema(json!({"type": "string", "pattern": repeated})));
}

#[test]
fn grammars() {
    for grammar in [
        "start: s\ns: s s s | s s | \"a\" | \"\"\n",
        "start: s\ns: s s | s \"a\" s | \"a\"\n",
        "start: a{100000}\na: b{100000}\nb: \"x\"{100000}",
    ] {
        check_bounded(&Rule::Lark(grammar.to_owned()));
    }
    let deep = format!("start: {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000));
    refused(&Rule::Lark(deep));
    refused(&Rule::Lark("start: \"a\" ".repeat(100_000)));
}
