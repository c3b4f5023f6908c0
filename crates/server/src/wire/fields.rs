//! Fields of requests that several APIs have, and their bounds.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;

use hypura_chat::Message;
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::config::Limits;
use crate::error::ApiError;

/// Most bytes of a tool's name, and of the id of a call.
pub(crate) const NAME_BYTES_MAX: usize = 256;

/// A field that is a text or a list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TextOr<T> {
    /// The text.
    Text(String),
    /// The list.
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or a list")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(TextOr::List)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// Refuses more than `max` of something.
pub(crate) fn at_most(field: &str, count: usize, max: usize) -> Result<(), ApiError> {
    if count > max {
        return Err(ApiError::bad_field(
            field,
            format!("{field} has {count} elements, at most {max} are allowed; leave some out"),
        ));
    }
    Ok(())
}

/// A number within its range, if it is given.
pub(crate) fn in_range(
    field: &str,
    number: Option<f32>,
    range: RangeInclusive<f32>,
) -> Result<Option<f32>, ApiError> {
    match number {
        Some(number) if !range.contains(&number) => Err(ApiError::bad_field(
            field,
            format!("{field} must be from {} to {}", range.start(), range.end()),
        )),
        number => Ok(number),
    }
}

/// A number of tokens; -1 is what some clients write for no bound.
pub(crate) fn token_count(field: &str, count: Option<i64>) -> Result<Option<usize>, ApiError> {
    match count {
        None | Some(-1) => Ok(None),
        Some(count) => match usize::try_from(count) {
            Ok(count) if count > 0 => Ok(Some(count)),
            _ => Err(ApiError::bad_field(field, format!("{field} must be at least 1"))),
        },
    }
}

/// Texts that end the answer. Empty ones mean nothing; if no other is left, the model's own apply.
pub(crate) fn stops(
    field: &str,
    stop: Option<TextOr<String>>,
    limits: &Limits,
) -> Result<Option<Vec<String>>, ApiError> {
    let mut stops = match stop {
        None => return Ok(None),
        Some(TextOr::Text(text)) => vec![text],
        Some(TextOr::List(texts)) => texts,
    };
    at_most(field, stops.len(), limits.stops_max)?;
    if stops.iter().any(|text| text.len() > limits.stop_bytes_max) {
        let max = limits.stop_bytes_max;
        return Err(ApiError::bad_field(field, format!("{field} has a text of over {max} bytes")));
    }
    stops.retain(|text| !text.is_empty());
    Ok(Some(stops).filter(|stops| !stops.is_empty()))
}

/// The name of a tool or of a call.
pub(crate) fn name(field: &str, name: &str) -> Result<(), ApiError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(ApiError::bad_field(
            field,
            format!(
                "{field} must have 1 to {NAME_BYTES_MAX} bytes, none of them a control character"
            ),
        ));
    }
    Ok(())
}

/// The schema of a tool that takes nothing.
pub(crate) fn no_parameters() -> Value {
    serde_json::json!({"type": "object", "properties": {}})
}

/// The arguments of a call from their text. Text that is no JSON stays text: a model may have
/// written it so, and what it said is part of the conversation.
pub(crate) fn arguments(text: &str) -> Value {
    if text.trim().is_empty() {
        return Value::Object(Map::new());
    }
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// Puts the tool's name into messages that answer a call and don't say it: APIs name the call only,
/// some templates the tool.
pub(crate) fn name_results(messages: &mut [Message]) {
    let mut names: HashMap<String, String> = HashMap::new();
    for message in messages {
        for call in &message.tool_calls {
            names.insert(call.id.clone(), call.name.clone());
        }
        if message.role == "tool" && message.name.is_none() {
            let id = message.tool_call_id.as_deref().unwrap_or_default();
            message.name = names.get(id).cloned();
        }
    }
}

#[cfg(test)]
mod tests {
    use hypura_chat::ToolCall;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_or_a_list() {
        let read = |json: Value| serde_json::from_value::<Option<TextOr<i32>>>(json);
        assert_eq!(read(json!("a")).unwrap(), Some(TextOr::Text("a".into())));
        assert_eq!(read(json!([1, 2])).unwrap(), Some(TextOr::List(vec![1, 2])));
        assert_eq!(read(json!(null)).unwrap(), None);
        let error = read(json!({})).unwrap_err().to_string();
        assert!(error.contains("a string or a list"), "{error}");
    }

    #[test]
    fn stops_are_bounded() {
        let limits = Limits { stops_max: 2, stop_bytes_max: 3, ..Limits::default() };
        let list = |texts: &[&str]| {
            let texts = texts.iter().map(|&text| text.to_owned()).collect();
            stops("stop", Some(TextOr::List(texts)), &limits)
        };
        assert_eq!(list(&["a", ""]).unwrap(), Some(vec!["a".to_owned()]));
        assert_eq!(list(&[]).unwrap(), None);
        assert_eq!(list(&[""]).unwrap(), None);
        assert!(list(&["a", "b", "c"]).is_err());
        assert!(list(&["abcd"]).is_err());
        let one = stops("stop", Some(TextOr::Text("x".into())), &limits).unwrap();
        assert_eq!(one, Some(vec!["x".to_owned()]));
    }

    #[test]
    fn numbers_are_bounded() {
        assert_eq!(token_count("n", Some(-1)).unwrap(), None);
        assert_eq!(token_count("n", Some(7)).unwrap(), Some(7));
        assert!(token_count("n", Some(0)).is_err());
        assert!(token_count("n", Some(-2)).is_err());
        assert_eq!(in_range("t", Some(2.0), 0.0..=2.0).unwrap(), Some(2.0));
        assert!(in_range("t", Some(f32::NAN), 0.0..=2.0).is_err());
        assert!(in_range("t", Some(f32::INFINITY), 0.0..=2.0).is_err());
    }

    #[test]
    fn arguments_need_not_be_json() {
        assert_eq!(arguments(r#"{"a": 1}"#), json!({"a": 1}));
        assert_eq!(arguments(" "), json!({}));
        assert_eq!(arguments("{oops"), json!("{oops"));
    }

    #[test]
    fn results_are_named_after_their_calls() {
        let call = ToolCall { id: "1".into(), name: "look".into(), arguments: json!({}) };
        let result =
            |id: &str| Message { tool_call_id: Some(id.to_owned()), ..Message::new("tool", "x") };
        let asks = Message { tool_calls: vec![call], ..Message::new("assistant", "") };
        let mut messages = [asks, result("1"), result("2")];
        name_results(&mut messages);
        assert_eq!(messages[1].name.as_deref(), Some("look"));
        assert_eq!(messages[2].name, None);
    }
}
