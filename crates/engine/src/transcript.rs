//! What was said, as text and as tokens.
//!
//! A chat sends the whole conversation again with each message, as text, and text can be cut into
//! tokens in more than one way: a model does not always choose the tokens that a tokenizer would.
//! So the tokens of what was said are remembered with their text, and only what is new is tokenized.
//! That is what the model saw and said, and its attention state is known.

use hypura_llama::Token;

use crate::engine::Engine;
use crate::generate::{Finish, Generated};

/// A text, and the tokens that it came as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transcript {
    text: String,
    tokens: Vec<Token>,
}

impl Transcript {
    /// Of a text and tokens that come from elsewhere: nothing if they don't say the same.
    pub fn checked(engine: &Engine, text: String, tokens: Vec<Token>) -> Transcript {
        let is_sound = !text.is_empty() && engine.could_be(&tokens, &text);
        if is_sound { Transcript { text, tokens } } else { Transcript::default() }
    }

    /// The text, as the chat template rendered it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its tokens.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Tokens of `text`, which says everything from the beginning: those that are known as far as
    /// it begins with what was said, and new ones after that.
    pub fn tokenize(&self, engine: &Engine, text: &str) -> Vec<Token> {
        let rest = text.strip_prefix(&self.text).filter(|_| !self.tokens.is_empty());
        if let Some(rest) = rest
            && let Some(new) = engine.tokenize_exactly(rest)
        {
            return [self.tokens.as_slice(), &new].concat();
        }
        engine.tokenize(text, true)
    }

    /// Of a prompt that is not answered yet.
    pub fn of_prompt(text: String, prompt: Vec<Token>) -> Transcript {
        Transcript { text, tokens: prompt }
    }

    /// What was said after a prompt was answered.
    pub fn after(text: String, prompt: Vec<Token>, answer: &Generated) -> Transcript {
        let mut all = Transcript { text, tokens: prompt };
        // A stop text is in the tokens and not in the answer; neither are tokens without text.
        if answer.is_exact && !matches!(answer.finish, Finish::Stop(_)) {
            all.text.push_str(&answer.text);
            all.tokens.extend_from_slice(&answer.tokens);
        }
        all
    }
}
