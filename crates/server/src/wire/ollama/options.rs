//! `options`: how tokens are chosen, and how a model is loaded.
//!
//! The names and types are those of `api.Options` and `api.Runner` in Ollama's `api/types.go`. As
//! there, whole numbers may be written with a fraction, null is as good as absent, and names that
//! nobody knows are left out with a warning. What is out of range is an error here, where Ollama lets
//! it through to llama.cpp.

use serde_json::{Map, Value};

use crate::answer::Sampling;
use crate::config::Limits;
use crate::error::ApiError;

/// Options of a request at most.
const OPTIONS_MAX: usize = 256;
/// Unknown options that a warning names, and bytes of each.
const SHOWN_MAX: usize = 8;
const SHOWN_CHARS_MAX: usize = 40;
/// Most of a penalty, and of the temperature: far beyond what changes anything.
const FACTOR_MAX: f64 = 100.0;
/// Tokens of context that llama.cpp needs at least (Ollama raises smaller numbers to it).
const NUM_CTX_MIN: i64 = 4;

/// Whole numbers that Ollama knows and that mean nothing here: the planner decides these things.
const IGNORED_INTEGERS: &[&str] =
    &["num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict"];
/// Truth values of that kind.
const IGNORED_BOOLEANS: &[&str] = &["use_mmap"];

/// Options that were understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Options {
    /// How tokens are chosen.
    pub(super) sampling: Sampling,
    /// Tokens of the answer at most.
    pub(super) max_tokens: Option<usize>,
    /// Texts that end the answer.
    pub(super) stop: Option<Vec<String>>,
    /// Tokens of context.
    pub(super) num_ctx: Option<u32>,
}

impl Options {
    /// Reads options.
    ///
    /// # Errors
    /// When one has the wrong type or is out of range, or there are too many.
    pub(super) fn read(
        map: Option<&Map<String, Value>>,
        limits: &Limits,
    ) -> Result<Options, ApiError> {
        let mut options = Options::default();
        let Some(map) = map else { return Ok(options) };
        if map.len() > OPTIONS_MAX {
            let message = format!("there are {} options, {OPTIONS_MAX} are allowed", map.len());
            return Err(ApiError::bad_field("options", message));
        }
        let mut unknown = Vec::new();
        for (name, value) in map.iter().filter(|(_, value)| !value.is_null()) {
            if !options.set(name, value, limits)? {
                unknown.push(name.as_str());
            }
        }
        warn_of(&unknown);
        Ok(options)
    }

    /// Whether an option of this name is known.
    fn set(&mut self, name: &str, value: &Value, limits: &Limits) -> Result<bool, ApiError> {
        let sampling = &mut self.sampling;
        let number = |min, max| float(name, value, min, max).map(Some);
        match name {
            "temperature" => sampling.temperature = number(0.0, FACTOR_MAX)?,
            "top_p" => sampling.top_p = number(0.0, 1.0)?,
            "min_p" => sampling.min_p = number(0.0, 1.0)?,
            "typical_p" => sampling.typical_p = number(0.0, 1.0)?,
            // Logits are divided by it.
            "repeat_penalty" => sampling.repeat_penalty = number(0.01, FACTOR_MAX)?,
            "presence_penalty" => sampling.presence_penalty = number(-FACTOR_MAX, FACTOR_MAX)?,
            "frequency_penalty" => sampling.frequency_penalty = number(-FACTOR_MAX, FACTOR_MAX)?,
            // To llama.cpp, zero and less keep all tokens.
            "top_k" => sampling.top_k = Some(whole_i32(name, value, i32::MIN)?.max(0)),
            "repeat_last_n" => sampling.repeat_last_n = Some(whole_i32(name, value, -1)?),
            "seed" => sampling.seed = Some(integer(name, value)?),
            // -1 is without end, and -2 until the context is full: both are what happens anyway. So
            // does zero, as in Ollama's own runner.
            "num_predict" => {
                self.max_tokens = usize::try_from(integer(name, value)?).ok().filter(|&n| n > 0);
            }
            "num_ctx" => self.num_ctx = num_ctx(name, value)?,
            "stop" => self.stop = Some(stop(value, limits)?),
            _ if IGNORED_INTEGERS.contains(&name) => {
                integer(name, value)?;
                tracing::debug!("option {name} changes nothing here");
            }
            _ if IGNORED_BOOLEANS.contains(&name) => {
                if !value.is_boolean() {
                    return Err(wrong_type(name, "boolean"));
                }
                tracing::debug!("option {name} changes nothing here");
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn warn_of(unknown: &[&str]) {
    if !unknown.is_empty() {
        let shown = unknown.iter().take(SHOWN_MAX);
        let shown: Vec<String> =
            shown.map(|name| name.chars().take(SHOWN_CHARS_MAX).collect()).collect();
        tracing::warn!("{} unknown options are left out, among them {shown:?}", unknown.len());
    }
}

/// Ollama's words.
fn wrong_type(name: &str, wanted: &str) -> ApiError {
    ApiError::bad_field("options", format!("option {name:?} must be of type {wanted}"))
}

fn out_of_range(name: &str, range: &str) -> ApiError {
    ApiError::bad_field("options", format!("option {name:?} must be {range}"))
}

fn float(name: &str, value: &Value, min: f64, max: f64) -> Result<f32, ApiError> {
    let number = value.as_f64().ok_or_else(|| wrong_type(name, "float32"))?;
    if !(min..=max).contains(&number) {
        return Err(out_of_range(name, &format!("from {min} to {max}")));
    }
    #[allow(clippy::cast_possible_truncation)] // the range is small
    Ok(number as f32)
}

/// A whole number; a fraction is cut off, as Go does it.
fn integer(name: &str, value: &Value) -> Result<i64, ApiError> {
    /// Beyond it, a float does not name one whole number.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if let Some(whole) = value.as_i64() {
        return Ok(whole);
    }
    let number = value.as_f64().ok_or_else(|| wrong_type(name, "integer"))?;
    if number.abs() > EXACT_MAX {
        return Err(out_of_range(name, "a whole number of at most 53 bits"));
    }
    #[allow(clippy::cast_possible_truncation)] // within the range of whole numbers
    Ok(number as i64)
}

fn whole_i32(name: &str, value: &Value, min: i32) -> Result<i32, ApiError> {
    let whole = i32::try_from(integer(name, value)?).ok().filter(|&whole| whole >= min);
    whole.ok_or_else(|| out_of_range(name, &format!("from {min} to {}", i32::MAX)))
}

/// Zero leaves it to the server.
fn num_ctx(name: &str, value: &Value) -> Result<Option<u32>, ApiError> {
    let wanted = integer(name, value)?;
    if wanted == 0 {
        return Ok(None);
    }
    let raised = if wanted > 0 { wanted.max(NUM_CTX_MIN) } else { wanted };
    u32::try_from(raised)
        .map(Some)
        .map_err(|_| out_of_range(name, &format!("from 0 to {}", u32::MAX)))
}

/// A list of texts, or one. Empty texts, which would end every answer at once, are left out.
fn stop(value: &Value, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let items = match value {
        Value::String(_) => std::slice::from_ref(value),
        Value::Array(items) => items.as_slice(),
        _ => return Err(wrong_type("stop", "array")),
    };
    if items.len() > limits.stops_max {
        return Err(out_of_range("stop", &format!("at most {} texts", limits.stops_max)));
    }
    let mut stops = Vec::with_capacity(items.len());
    for item in items {
        let text = item.as_str().ok_or_else(|| {
            ApiError::bad_field("options", "option \"stop\" must be of an array of strings")
        })?;
        if text.len() > limits.stop_bytes_max {
            let range = format!("made of texts of at most {} bytes", limits.stop_bytes_max);
            return Err(out_of_range("stop", &range));
        }
        if !text.is_empty() {
            stops.push(text.to_owned());
        }
    }
    Ok(stops)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Options, ApiError> {
        Options::read(value.as_object(), &Limits::default())
    }

    #[test]
    fn options_are_understood() {
        let options = read(&json!({
            "temperature": 0, "top_k": 20.9, "top_p": 0.95, "min_p": 0.05, "typical_p": 0.7,
            "repeat_last_n": -1, "repeat_penalty": 1.2, "presence_penalty": -1.5,
            "frequency_penalty": 1, "seed": 42, "num_predict": 100, "num_ctx": 1024,
            "stop": ["\n", "", "user:"], "num_keep": 5, "num_batch": 2, "num_gpu": -1, "main_gpu": 0,
            "use_mmap": true, "num_thread": 8, "mirostat": 1, "temprature": "x", "top_q": null,
        }))
        .unwrap();
        let sampling = Sampling {
            temperature: Some(0.0),
            top_k: Some(20),
            top_p: Some(0.95),
            min_p: Some(0.05),
            typical_p: Some(0.7),
            repeat_penalty: Some(1.2),
            repeat_last_n: Some(-1),
            presence_penalty: Some(-1.5),
            frequency_penalty: Some(1.0),
            seed: Some(42),
            logit_bias: Vec::new(),
        };
        assert_eq!(options.sampling, sampling);
        assert_eq!((options.max_tokens, options.num_ctx), (Some(100), Some(1024)));
        assert_eq!(options.stop, Some(vec!["\n".to_owned(), "user:".to_owned()]));
    }

    #[test]
    fn what_is_not_said_is_left_to_the_model() {
        assert_eq!(Options::read(None, &Limits::default()).unwrap(), Options::default());
        let nothing = json!({"temperature": null, "stop": null, "num_ctx": null});
        assert_eq!(read(&nothing).unwrap(), Options::default());
        for endless in [-1, -2, 0] {
            assert_eq!(read(&json!({"num_predict": endless})).unwrap().max_tokens, None);
        }
        assert_eq!(read(&json!({"top_k": -1})).unwrap().sampling.top_k, Some(0));
        assert_eq!(read(&json!({"num_ctx": 0})).unwrap().num_ctx, None);
        assert_eq!(read(&json!({"num_ctx": 1})).unwrap().num_ctx, Some(4));
        assert_eq!(read(&json!({"stop": "END"})).unwrap().stop, Some(vec!["END".to_owned()]));
        assert_eq!(read(&json!({"stop": []})).unwrap().stop, Some(Vec::new()));
    }

    #[test]
    fn wrong_values_are_refused() {
        let many: Vec<String> = (0..33).map(|n| n.to_string()).collect();
        for (value, reason) in [
            (json!({"temperature": "0.7"}), "option \"temperature\" must be of type float32"),
            (json!({"temperature": -0.1}), "from 0 to 100"),
            (json!({"top_p": 1.1}), "from 0 to 1"),
            (json!({"min_p": -1}), "from 0 to 1"),
            (json!({"repeat_penalty": 0}), "from 0.01"),
            (json!({"top_k": true}), "option \"top_k\" must be of type integer"),
            (json!({"top_k": 1e12}), "from -2147483648"),
            (json!({"repeat_last_n": -2}), "from -1"),
            (json!({"seed": "1"}), "type integer"),
            (json!({"seed": 1e30}), "53 bits"),
            (json!({"num_ctx": -5}), "from 0"),
            (json!({"num_ctx": 4294967296_u64}), "from 0"),
            (json!({"num_predict": []}), "type integer"),
            (json!({"num_gpu": "all"}), "type integer"),
            (json!({"use_mmap": 1}), "type boolean"),
            (json!({"stop": 1}), "type array"),
            (json!({"stop": ["a", 1]}), "array of strings"),
            (json!({"stop": many}), "at most 32 texts"),
            (json!({"stop": "x".repeat(1025)}), "at most 1024 bytes"),
        ] {
            let error = read(&value).unwrap_err();
            assert!(error.message.contains(reason), "{value}: {error}");
        }
        assert!(serde_json::from_str::<Value>(r#"{"temperature": 1e999}"#).is_err());
        let many: Map<String, Value> = (0..300).map(|n| (n.to_string(), json!(n))).collect();
        assert!(read(&Value::Object(many)).unwrap_err().message.contains("300 options"));
    }
}
