//! As much of a JSON Schema validator as the tests' schemas need, written apart from the crate.

use serde_json::Value;

/// What is wrong with `value`, if anything.
pub(crate) fn validate(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let Value::Object(keywords) = schema else {
        return if *schema == Value::Bool(false) { Err("false".to_owned()) } else { Ok(()) };
    };
    for (keyword, argument) in keywords {
        if !holds(root, schema, keyword, argument, value) {
            return Err(format!("{value} is not {keyword}: {argument}"));
        }
    }
    Ok(())
}

fn holds(root: &Value, schema: &Value, keyword: &str, argument: &Value, value: &Value) -> bool {
    let valid = |schema: &Value, value: &Value| validate(root, schema, value).is_ok();
    let number = |value: &Value| value.as_f64().expect("a number");
    let count = || usize::try_from(argument.as_u64().expect("a count")).expect("a usize");
    let schemas = || argument.as_array().expect("schemas").iter();
    match keyword {
        "$ref" => {
            let pointer = argument.as_str().and_then(|text| text.strip_prefix('#'));
            valid(pointer.and_then(|pointer| root.pointer(pointer)).expect("a target"), value)
        }
        "type" => match argument {
            Value::Array(types) => types.iter().any(|name| is_type(name, value)),
            name => is_type(name, value),
        },
        "enum" => schemas().any(|option| option == value),
        "const" => argument == value,
        "anyOf" | "oneOf" => schemas().any(|option| valid(option, value)),
        "allOf" => schemas().all(|option| valid(option, value)),
        "minimum" => value.as_f64().is_none_or(|value| value >= number(argument)),
        "maximum" => value.as_f64().is_none_or(|value| value <= number(argument)),
        "exclusiveMinimum" => value.as_f64().is_none_or(|value| value > number(argument)),
        "minLength" => value.as_str().is_none_or(|text| text.chars().count() >= count()),
        "maxLength" => value.as_str().is_none_or(|text| text.chars().count() <= count()),
        "minItems" => value.as_array().is_none_or(|items| items.len() >= count()),
        "maxItems" => value.as_array().is_none_or(|items| items.len() <= count()),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|i| valid(argument, i))),
        "required" => value.as_object().is_none_or(|fields| {
            schemas().all(|name| fields.contains_key(name.as_str().expect("a name")))
        }),
        "properties" => value.as_object().is_none_or(|fields| {
            let properties = argument.as_object().expect("properties");
            fields.iter().all(|(name, value)| properties.get(name).is_none_or(|s| valid(s, value)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|fields| {
            let known = |name: &str| schema["properties"].get(name).is_some();
            fields.iter().all(|(name, value)| known(name) || valid(argument, value))
        }),
        "$defs" | "title" | "description" | "default" | "$schema" | "format" | "discriminator" => {
            true
        }
        _ => panic!("the tests' validator knows no {keyword}"),
    }
}

fn is_type(name: &Value, value: &Value) -> bool {
    match name.as_str().expect("a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        name => panic!("no type {name}"),
    }
}
