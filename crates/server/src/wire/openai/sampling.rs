//! How tokens are chosen: fields that chat, completions and responses share.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::fields::{TextOr, at_most, in_range, stops};
use crate::answer::{Ask, Sampling};
use crate::config::Limits;
use crate::error::ApiError;

/// Most tokens that a client may add to or take from.
const LOGIT_BIAS_MAX: usize = 1024;
/// Most that a token's logit may be changed by, as in OpenAI's reference: it bans or forces.
const BIAS_MAX: f32 = 100.0;
/// Most tokens to choose from, or to look back at.
const TOKENS_MAX: i32 = 1 << 20;

/// The fields. `top_k` and what follows are extensions that local servers have in common.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SamplingFields {
    temperature: Option<f32>,
    top_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<TextOr<String>>,
    logit_bias: Option<Map<String, Value>>,
    top_k: Option<i32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    #[serde(alias = "repetition_penalty")]
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<i32>,
}

impl SamplingFields {
    /// Temperature and nucleus, for objects that repeat them.
    pub(super) fn echo(&self) -> (Option<f32>, Option<f32>) {
        (self.temperature, self.top_p)
    }

    /// Puts them into a question.
    pub(super) fn apply(self, ask: &mut Ask, limits: &Limits) -> Result<(), ApiError> {
        ask.sampling = Sampling {
            temperature: in_range("temperature", self.temperature, 0.0..=2.0)?,
            top_k: tokens("top_k", self.top_k)?,
            top_p: in_range("top_p", self.top_p, 0.0..=1.0)?,
            min_p: in_range("min_p", self.min_p, 0.0..=1.0)?,
            typical_p: in_range("typical_p", self.typical_p, 0.0..=1.0)?,
            repeat_penalty: in_range("repeat_penalty", self.repeat_penalty, 0.01..=10.0)?,
            repeat_last_n: tokens("repeat_last_n", self.repeat_last_n)?,
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0..=2.0)?,
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?,
            seed: self.seed,
            logit_bias: biases(self.logit_bias.unwrap_or_default())?,
        };
        ask.stop = stops("stop", self.stop, limits)?;
        Ok(())
    }
}

/// A number of tokens; -1 is all.
fn tokens(field: &str, count: Option<i32>) -> Result<Option<i32>, ApiError> {
    match count {
        Some(count) if !(-1..=TOKENS_MAX).contains(&count) => {
            Err(ApiError::bad_field(field, format!("{field} must be from -1 to {TOKENS_MAX}")))
        }
        count => Ok(count),
    }
}

fn biases(map: Map<String, Value>) -> Result<Vec<(i32, f32)>, ApiError> {
    at_most("logit_bias", map.len(), LOGIT_BIAS_MAX)?;
    let mut biases = Vec::with_capacity(map.len());
    for (token, bias) in map {
        let token = token.parse::<i32>().ok().filter(|&token| token >= 0);
        #[allow(clippy::cast_possible_truncation)] // out of range is refused
        let bias = bias.as_f64().map(|bias| bias as f32);
        match (token, bias) {
            (Some(token), Some(bias)) if bias.abs() <= BIAS_MAX => biases.push((token, bias)),
            _ => {
                return Err(ApiError::bad_field(
                    "logit_bias",
                    format!(
                        "logit_bias must give token ids numbers from -{BIAS_MAX} to {BIAS_MAX}"
                    ),
                ));
            }
        }
    }
    Ok(biases)
}

/// The same question once per answer. With a seed each answer has its own, `seed + index`; the same
/// one would give the same answer.
pub(super) fn choices(ask: Ask, n: usize) -> Vec<Ask> {
    let mut asks = vec![ask; n];
    for (ask, index) in asks.iter_mut().zip(0_i64..) {
        ask.sampling.seed = ask.sampling.seed.map(|seed| match seed {
            0.. => seed.saturating_add(index),
            _ => seed,
        });
    }
    asks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::answer::Input;

    fn applied(json: Value) -> Result<Ask, ApiError> {
        let fields: SamplingFields = serde_json::from_value(json).unwrap();
        let mut ask = Ask::new("m", Input::Text(String::new()), "");
        fields.apply(&mut ask, &Limits::default())?;
        Ok(ask)
    }

    #[test]
    fn fields_become_sampling() {
        let ask = applied(json!({
            "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.05, "seed": 7,
            "presence_penalty": -1, "frequency_penalty": 1.5, "repetition_penalty": 1.1,
            "stop": "END", "logit_bias": {"5": -100, "7": 1.5}, "unknown": {}
        }))
        .unwrap();
        let expected = Sampling {
            temperature: Some(0.0),
            top_p: Some(0.5),
            top_k: Some(40),
            min_p: Some(0.05),
            seed: Some(7),
            presence_penalty: Some(-1.0),
            frequency_penalty: Some(1.5),
            repeat_penalty: Some(1.1),
            logit_bias: vec![(5, -100.0), (7, 1.5)],
            ..Sampling::default()
        };
        assert_eq!(ask.sampling, expected);
        assert_eq!(ask.stop, Some(vec!["END".to_owned()]));
    }

    #[test]
    fn nulls_say_nothing() {
        let ask = applied(json!({"temperature": null, "stop": null, "logit_bias": null})).unwrap();
        assert_eq!(ask.sampling, Sampling::default());
        assert_eq!(ask.stop, None);
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for (field, value) in [
            ("temperature", json!(2.5)),
            ("temperature", json!(1e300)),
            ("top_p", json!(-0.1)),
            ("top_k", json!(-2)),
            ("repeat_penalty", json!(0)),
            ("presence_penalty", json!(3)),
            ("logit_bias", json!({"x": 1})),
            ("logit_bias", json!({"-1": 1})),
            ("logit_bias", json!({"1": 101})),
            ("logit_bias", json!({"1": "1"})),
        ] {
            let error = applied(json!({field: value})).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(field));
        }
    }

    #[test]
    fn answers_have_seeds_of_their_own() {
        let seeds = |seed| {
            let mut ask = Ask::new("m", Input::Text(String::new()), "");
            ask.sampling.seed = seed;
            choices(ask, 2).iter().map(|ask| ask.sampling.seed).collect::<Vec<_>>()
        };
        assert_eq!(seeds(Some(5)), [Some(5), Some(6)]);
        assert_eq!(seeds(Some(-1)), [Some(-1), Some(-1)]);
        assert_eq!(seeds(None), [None, None]);
    }
}
