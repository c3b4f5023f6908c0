//! What requests to `/api/chat` and `/api/generate` have in common.
//!
//! As in Go, a field that is null is as good as absent.

use hypura_chat::Think;
use hypura_grammar::Rule;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::keep_alive::keep_alive;
use super::options::Options;
use crate::answer::{Ask, Input, KeepAlive, Overflow};
use crate::config::Limits;
use crate::error::ApiError;

/// Bytes of a model's name at most.
const MODEL_BYTES_MAX: usize = 1024;
/// Likeliest tokens that are told at most.
const TOP_LOGPROBS_MAX: usize = 20;
/// Characters of a wrong value that an error shows.
const SHOWN_CHARS_MAX: usize = 40;

/// The common fields, as they arrive.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Common {
    model: Option<String>,
    stream: Option<bool>,
    format: Option<Value>,
    keep_alive: Option<Value>,
    options: Option<Map<String, Value>>,
    think: Option<Value>,
    truncate: Option<bool>,
    /// Nothing is ever shifted: an answer ends where the context does.
    shift: Option<bool>,
    #[serde(rename = "_debug_render_only")]
    debug_render_only: Option<bool>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
}

/// The common fields, understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) format: Option<Rule>,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) options: Options,
    pub(super) think: Option<Think>,
    pub(super) overflow: Overflow,
    pub(super) logprobs: Option<usize>,
}

impl Common {
    /// Checks all fields.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub(super) fn resolve(self, limits: &Limits) -> Result<Settings, ApiError> {
        if self.debug_render_only == Some(true) {
            let message = "_debug_render_only is not supported; leave it out";
            return Err(ApiError::not_implemented(message));
        }
        if self.shift == Some(true) {
            tracing::debug!("shift changes nothing here: an answer ends where the context does");
        }
        Ok(Settings {
            model: model_name(self.model)?,
            stream: self.stream.unwrap_or(true),
            format: format(self.format)?,
            keep_alive: keep_alive(self.keep_alive.as_ref())?,
            options: Options::read(self.options.as_ref(), limits)?,
            think: think(self.think.as_ref())?,
            overflow: match self.truncate {
                Some(false) => Overflow::Refuse,
                _ => Overflow::DropOldest,
            },
            logprobs: logprobs(self.logprobs, self.top_logprobs)?,
        })
    }
}

impl Settings {
    /// Whether nothing but unloading was asked for, given that there is nothing to answer.
    pub(super) fn unloads(&self) -> bool {
        matches!(self.keep_alive, Some(KeepAlive::For(time)) if time.is_zero())
    }

    /// The question with these settings.
    pub(super) fn ask(&self, input: Input, tenant: &str) -> Ask {
        Ask {
            sampling: self.options.sampling.clone(),
            max_tokens: self.options.max_tokens,
            stop: self.options.stop.clone(),
            format: self.format.clone(),
            logprobs: self.logprobs,
            overflow: self.overflow,
            keep_alive: self.keep_alive,
            num_ctx: self.options.num_ctx,
            ..Ask::new(self.model.as_str(), input, tenant)
        }
    }
}

/// A model's name, which has to be there. Whether it is one, its store says.
///
/// # Errors
/// When it is missing or endless.
pub(super) fn model_name(name: Option<String>) -> Result<String, ApiError> {
    match name.filter(|name| !name.is_empty()) {
        None => Err(ApiError::bad_field("model", "model is required")),
        Some(name) if name.len() > MODEL_BYTES_MAX => {
            Err(ApiError::bad_field("model", "invalid model name"))
        }
        Some(name) => Ok(name),
    }
}

/// `"json"`, or a schema; an empty text is as good as absent.
fn format(value: Option<Value>) -> Result<Option<Rule>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text == "json" => Ok(Some(Rule::Json)),
        Some(schema @ Value::Object(_)) => Ok(Some(Rule::JsonSchema(schema))),
        Some(other) => {
            let shown: String = other.to_string().chars().take(SHOWN_CHARS_MAX).collect();
            let message = format!(
                "invalid format: {shown:?}; expected \"json\" or a valid JSON Schema object"
            );
            Err(ApiError::bad_field("format", message))
        }
    }
}

fn think(value: Option<&Value>) -> Result<Option<Think>, ApiError> {
    const WORDS: &str = "\"high\", \"medium\", \"low\", \"max\", true, or false";
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(Think::On)),
        Some(Value::Bool(false)) => Ok(Some(Think::Off)),
        Some(Value::String(word)) => match word.as_str() {
            "low" | "medium" | "high" => Ok(Some(Think::Effort(word.clone()))),
            // Templates know three words; to Ollama, `max` is `high` where it is one of these.
            "max" => Ok(Some(Think::Effort("high".to_owned()))),
            _ => {
                let shown: String = word.chars().take(SHOWN_CHARS_MAX).collect();
                let message = format!("invalid think value: {shown:?} (must be {WORDS})");
                Err(ApiError::bad_field("think", message))
            }
        },
        Some(_) => {
            let message = format!("think must be a boolean or string ({WORDS})");
            Err(ApiError::bad_field("think", message))
        }
    }
}

fn logprobs(wanted: Option<bool>, top: Option<i64>) -> Result<Option<usize>, ApiError> {
    let top = usize::try_from(top.unwrap_or(0)).ok().filter(|&top| top <= TOP_LOGPROBS_MAX);
    let top = top.ok_or_else(|| {
        let message = format!("top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}");
        ApiError::bad_field("top_logprobs", message)
    })?;
    Ok((wanted == Some(true)).then_some(top))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn resolve(mut value: Value) -> Result<Settings, ApiError> {
        if value.get("model").is_none() {
            value["model"] = json!("demo");
        }
        serde_json::from_value::<Common>(value).unwrap().resolve(&Limits::default())
    }

    #[test]
    fn defaults_are_those_of_ollama() {
        let settings = resolve(json!({})).unwrap();
        let nulls = json!({
            "stream": null, "format": null, "keep_alive": null, "options": null, "think": null,
            "truncate": null, "shift": null, "logprobs": null, "top_logprobs": null,
        });
        assert_eq!(resolve(nulls).unwrap(), settings);
        assert!(settings.stream && !settings.unloads());
        assert_eq!(settings.overflow, Overflow::DropOldest);
        let ask = settings.ask(Input::Text("x".to_owned()), "me");
        assert_eq!((ask.model.as_str(), ask.tenant.as_str()), ("demo", "me"));
        assert_eq!((ask.stop, ask.format, ask.max_tokens, ask.logprobs), (None, None, None, None));
    }

    #[test]
    fn fields_get_into_the_question() {
        let settings = resolve(json!({
            "stream": false, "keep_alive": "10m", "truncate": false, "logprobs": true,
            "top_logprobs": 3, "options": {"num_predict": 5, "num_ctx": 64, "stop": "x", "seed": 1},
        }))
        .unwrap();
        assert!(!settings.stream);
        let ask = settings.ask(Input::Text(String::new()), "");
        assert_eq!((ask.max_tokens, ask.num_ctx, ask.logprobs), (Some(5), Some(64), Some(3)));
        assert_eq!((ask.overflow, ask.sampling.seed), (Overflow::Refuse, Some(1)));
        assert_eq!(ask.keep_alive, Some(KeepAlive::For(Duration::from_secs(600))));
        assert_eq!(resolve(json!({"top_logprobs": 3})).unwrap().logprobs, None);
        assert!(resolve(json!({"keep_alive": 0})).unwrap().unloads());
    }

    #[test]
    fn format_and_think_take_what_ollama_takes() {
        let schema = json!({"type": "object", "properties": {}});
        for (value, want) in [
            (json!(""), None),
            (json!("json"), Some(Rule::Json)),
            (schema.clone(), Some(Rule::JsonSchema(schema))),
        ] {
            assert_eq!(resolve(json!({"format": value})).unwrap().format, want);
        }
        for (value, want) in [
            (json!(true), Think::On),
            (json!(false), Think::Off),
            (json!("low"), Think::Effort("low".to_owned())),
            (json!("max"), Think::Effort("high".to_owned())),
        ] {
            assert_eq!(resolve(json!({"think": value})).unwrap().think, Some(want));
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        for (value, field, reason) in [
            (json!({"model": null}), "model", "model is required"),
            (json!({"model": ""}), "model", "model is required"),
            (json!({"model": "m".repeat(1025)}), "model", "invalid model name"),
            (json!({"format": "xml"}), "format", "invalid format: \"\\\"xml\\\"\""),
            (json!({"format": [1]}), "format", "expected \"json\""),
            (json!({"think": "much"}), "think", "invalid think value: \"much\""),
            (json!({"think": 1}), "think", "think must be a boolean or string"),
            (json!({"top_logprobs": 21}), "top_logprobs", "between 0 and 20"),
            (json!({"top_logprobs": -1}), "top_logprobs", "between 0 and 20"),
            (json!({"options": {"top_p": 2}}), "options", "top_p"),
            (json!({"keep_alive": "x"}), "keep_alive", "invalid duration"),
        ] {
            let error = resolve(value.clone()).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(field), "{value}");
            assert!(error.message.contains(reason), "{value}: {error}");
        }
    }
}
