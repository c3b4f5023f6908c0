//! What a model's manifest says of how it is asked.

use hypura_hub::Entry;
use serde_json::Value;

use crate::answer::Sampling;

/// Settings of a model, where a request says nothing. The names are Ollama's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Tokens of an answer at most (`num_predict`).
    pub max_tokens: Option<usize>,
    /// Tokens of context (`num_ctx`).
    pub num_ctx: Option<u32>,
    /// The system's message.
    pub system: Option<String>,
    /// What comes before a conversation: roles and texts.
    pub messages: Vec<(String, String)>,
}

impl Settings {
    /// Those of a model. What is no sound value is left out, with a warning.
    pub fn of(entry: &Entry) -> Settings {
        let Some(manifest) = &entry.manifest else { return Settings::default() };
        let mut settings = Settings {
            system: manifest.system.clone().filter(|text| !text.is_empty()),
            messages: manifest
                .messages
                .iter()
                .map(|message| (message.role.clone(), message.content.clone()))
                .collect(),
            ..Settings::default()
        };
        for (name, value) in &manifest.parameters {
            if !settings.set(name, value) {
                tracing::warn!(model = %entry.name, "parameter {name} = {value} is not used");
            }
        }
        settings
    }

    /// Sets a parameter; false if it is not known or no sound value.
    fn set(&mut self, name: &str, value: &Value) -> bool {
        #[allow(clippy::cast_possible_truncation)] // f32 is what samplers take
        let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        let int = value.as_i64();
        let small = int.and_then(|n| i32::try_from(n).ok());
        let sampling = &mut self.sampling;
        match name {
            "temperature" => sampling.temperature = number,
            "top_k" => sampling.top_k = small,
            "top_p" => sampling.top_p = number,
            "min_p" => sampling.min_p = number,
            "typical_p" => sampling.typical_p = number,
            "repeat_penalty" => sampling.repeat_penalty = number,
            "repeat_last_n" => sampling.repeat_last_n = small,
            "presence_penalty" => sampling.presence_penalty = number,
            "frequency_penalty" => sampling.frequency_penalty = number,
            "seed" => sampling.seed = int,
            "num_ctx" => self.num_ctx = int.and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0),
            "num_predict" => {
                // Negative: no limit.
                self.max_tokens = int.and_then(|n| usize::try_from(n).ok());
                return int.is_some();
            }
            "stop" => {
                let texts: Vec<&str> = match value {
                    Value::String(text) => vec![text],
                    Value::Array(texts) => texts.iter().filter_map(Value::as_str).collect(),
                    _ => return false,
                };
                self.stop.extend(texts.into_iter().map(str::to_owned));
                return true;
            }
            _ => return false,
        }
        number.is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_have_ollamas_names() {
        let mut settings = Settings::default();
        for (name, value, is_used) in [
            ("temperature", json!(0.5), true),
            ("num_ctx", json!(8192), true),
            ("num_predict", json!(-1), true),
            ("stop", json!(["a", "b"]), true),
            ("stop", json!("c"), true),
            ("top_k", json!("many"), false),
            ("use_mmap", json!(true), false),
        ] {
            assert_eq!(settings.set(name, &value), is_used, "{name}");
        }
        assert_eq!(settings.sampling.temperature, Some(0.5));
        assert_eq!(settings.num_ctx, Some(8192));
        assert_eq!(settings.max_tokens, None);
        assert_eq!(settings.stop, ["a", "b", "c"]);
    }
}
