//! Filling in the middle: what stands between a prompt and a `suffix`.

use hypura_engine::llama::Token;
use serde_json::{Map, Value};

use crate::models::Runner;

/// The tokens that a model was trained to fill gaps with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FillTokens {
    before: Token,
    after: Token,
    middle: Token,
    /// What all texts begin with, if there is such a token.
    begin: Option<Token>,
}

impl FillTokens {
    /// Those that the header of a GGUF file names, by today's keys or by those that llama.cpp used
    /// before (`src/llama-arch.cpp` has both).
    pub(super) fn of(metadata: &Map<String, Value>) -> Option<FillTokens> {
        let one = |key: &str| {
            let id = metadata.get(&format!("tokenizer.ggml.{key}"))?.as_i64()?;
            Token::try_from(id).ok()
        };
        let token = |keys: [&str; 2]| keys.into_iter().find_map(one);
        Some(FillTokens {
            before: token(["fim_pre_token_id", "prefix_token_id"])?,
            after: token(["fim_suf_token_id", "suffix_token_id"])?,
            middle: token(["fim_mid_token_id", "middle_token_id"])?,
            begin: one("bos_token_id"),
        })
    }

    /// The prompt whose continuation fills the gap, in the order in which models were trained and
    /// llama.cpp's server writes it: prefix, suffix, middle.
    pub(super) fn prompt(self, runner: &dyn Runner, prefix: &str, suffix: &str) -> Vec<Token> {
        // Whether the model wants its first token shows in what goes around an empty text.
        let around = runner.tokenize("", true);
        let begin = around.first().filter(|&&first| self.begin == Some(first));
        let mut tokens: Vec<Token> = begin.copied().into_iter().collect();
        tokens.push(self.before);
        tokens.extend(runner.tokenize(prefix, false));
        tokens.push(self.after);
        tokens.extend(runner.tokenize(suffix, false));
        tokens.push(self.middle);
        tokens
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_come_from_the_header() {
        let read = |value: Value| FillTokens::of(value.as_object().unwrap());
        let want = Some(FillTokens { before: 5, after: 6, middle: 7, begin: None });
        let today = json!({"tokenizer.ggml.fim_pre_token_id": 5,
            "tokenizer.ggml.fim_suf_token_id": 6, "tokenizer.ggml.fim_mid_token_id": 7});
        assert_eq!(read(today), want);
        let before = json!({"tokenizer.ggml.prefix_token_id": 5,
            "tokenizer.ggml.suffix_token_id": 6, "tokenizer.ggml.middle_token_id": 7});
        assert_eq!(read(before), want);
        assert_eq!(read(json!({"tokenizer.ggml.fim_pre_token_id": 5})), None);
        assert_eq!(read(json!({})), None);
    }
}
