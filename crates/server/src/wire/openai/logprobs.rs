//! Log probabilities in OpenAI's two forms.

use serde_json::{Map, Value, json};

use crate::answer::TokenLogprob;

/// Most alternatives of a token that a client may ask for.
pub(super) const TOP_MAX: usize = 20;

/// Stands for a probability of zero, as in OpenAI's reference: JSON has no infinity.
const NEVER: f32 = -9999.0;

/// An element of `logprobs.content` of a chat.
pub(super) fn entry(token: &TokenLogprob) -> Value {
    let top = token.top.iter().map(|(_, bytes, logprob)| one(bytes, *logprob));
    let mut entry = one(&token.bytes, token.logprob);
    if let Some(entry) = entry.as_object_mut() {
        entry.insert("top_logprobs".to_owned(), top.collect());
    }
    entry
}

fn one(bytes: &[u8], logprob: f32) -> Value {
    json!({
        "token": String::from_utf8_lossy(bytes),
        "logprob": finite(logprob),
        "bytes": bytes,
    })
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

/// `logprobs` of the older completions: parallel lists.
#[derive(Debug, Default)]
pub(super) struct Lists {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<Value>,
}

impl Lists {
    /// Adds a token whose text begins at the character `offset`; gives where it ends.
    pub(super) fn push(&mut self, token: &TokenLogprob, offset: usize) -> usize {
        let mut top = Map::new();
        for (_, bytes, logprob) in &token.top {
            top.insert(spelled(bytes), json!(finite(*logprob)));
        }
        self.tokens.push(spelled(&token.bytes).into());
        self.logprobs.push(json!(finite(token.logprob)));
        self.top.push(Value::Object(top));
        self.offsets.push(offset.into());
        offset + starts(&token.bytes)
    }

    /// The object `logprobs`.
    pub(super) fn json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.top,
            "text_offset": self.offsets,
        })
    }
}

/// How many characters begin in these bytes of UTF-8.
fn starts(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

/// Bytes that are no whole characters as OpenAI writes them: `bytes:\xe2\x82`.
fn spelled(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped: Vec<String> = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{}", escaped.concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::blocks::tests::logprob;
    use super::*;

    #[test]
    fn tokens_of_a_chat() {
        let expected = json!({
            "token": "ä",
            "logprob": -0.5,
            "bytes": [195, 164],
            "top_logprobs": [
                {"token": "ä", "logprob": -0.5, "bytes": [195, 164]},
                {"token": "\u{fffd}", "logprob": -9999.0, "bytes": [255]},
            ],
        });
        assert_eq!(entry(&logprob("ä")), expected);
    }

    #[test]
    fn tokens_of_a_completion() {
        let mut lists = Lists::default();
        let offset = lists.push(&logprob("äb"), 3);
        assert_eq!(offset, 5);
        assert_eq!(lists.push(&logprob("c"), offset), 6);
        let expected = json!({
            "tokens": ["äb", "c"],
            "token_logprobs": [-0.5, -0.5],
            "top_logprobs": [{"äb": -0.5, "bytes:\\xff": -9999.0}, {"c": -0.5, "bytes:\\xff": -9999.0}],
            "text_offset": [3, 5],
        });
        assert_eq!(lists.json(), expected);
    }
}
