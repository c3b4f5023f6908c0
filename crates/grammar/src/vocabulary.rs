use std::fmt;
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};
use thiserror::Error;

use crate::limits::parser_limits;

/// Bytes of a token at most; a longer one (some vocabularies have tokens of 1024 spaces) is never
/// allowed.
pub const TOKEN_BYTES_MAX: usize = 256;
/// Tokens of a vocabulary at most.
pub const VOCABULARY_TOKENS_MAX: usize = 1 << 20;
/// Bytes of all tokens together at most: the trie has 22 bits for the number of its nodes.
const VOCABULARY_BYTES_MAX: usize = (1 << 22) - 2;

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenText {
    /// These bytes of text; a character may be spread over several tokens.
    Text(Vec<u8>),
    /// A special token with this name, which is matched as itself and never as plain text.
    Control(Vec<u8>),
    /// A number without a meaning.
    Unused,
}

/// The bytes of all tokens of a model. Making one builds tries, which takes a second and tens of
/// megabytes for 150 000 tokens; clones share them.
#[derive(Clone)]
pub struct Vocabulary(Arc<Inner>);

struct Inner {
    factory: ParserFactory,
    tokens: usize,
    ends: Vec<TokenId>,
}

/// Why tokens can't be used as a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// There are more tokens, or more bytes in them, than the trie can hold.
    #[error(
        "a vocabulary of {tokens} tokens with {bytes} bytes is too large for structured output, \
         use a model with a smaller one"
    )]
    TooLarge {
        /// Number of tokens.
        tokens: usize,
        /// Bytes of all tokens.
        bytes: usize,
    },
    /// An end token is not in the vocabulary.
    #[error("end token {token} is not among the {tokens} tokens, name one that is")]
    UnknownEnd {
        /// The end token.
        token: u32,
        /// Number of tokens.
        tokens: usize,
    },
    /// The library failed.
    #[error("structured output can't use this vocabulary, check the model file: {reason}")]
    Failed {
        /// What it said.
        reason: String,
    },
}

impl Vocabulary {
    /// `tokens` in the order of their numbers; `eos`, the token that ends a text, and `ends`, all
    /// that do (with or without `eos`). End tokens are control tokens, whatever `tokens` says.
    ///
    /// # Errors
    /// See [`VocabularyError`].
    pub fn new(tokens: Vec<TokenText>, eos: u32, ends: &[u32]) -> Result<Self, VocabularyError> {
        let mut all_ends = vec![eos];
        all_ends.extend(ends.iter().filter(|&&end| end != eos));
        let words: Vec<Vec<u8>> = tokens
            .into_iter()
            .zip(0..)
            .map(|(token, id)| word(token, all_ends.contains(&id)))
            .collect();
        let bytes = words.iter().map(Vec::len).sum();
        let size = u32::try_from(words.len())
            .ok()
            .filter(|_| words.len() <= VOCABULARY_TOKENS_MAX && bytes <= VOCABULARY_BYTES_MAX)
            .ok_or(VocabularyError::TooLarge { tokens: words.len(), bytes })?;
        if let Some(&token) = all_ends.iter().find(|&&end| end >= size) {
            return Err(VocabularyError::UnknownEnd { token, tokens: words.len() });
        }
        let trie = TokTrie::from(&TokRxInfo::new(size, eos), &words).with_eos_tokens(&all_ends);
        let environment: TokEnv = Arc::new(Environment { trie });
        let mut factory = ParserFactory::new(
            &environment,
            InferenceCapabilities::default(),
            &SlicedBiasComputer::json_slices(),
        )
        .map_err(|error| VocabularyError::Failed { reason: error.to_string() })?;
        factory.quiet();
        *factory.limits_mut() = parser_limits();
        Ok(Self(Arc::new(Inner { factory, tokens: words.len(), ends: all_ends })))
    }

    /// Number of tokens, unused ones included.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.0.tokens
    }

    /// The tokens that end a text, the one given as `eos` first.
    #[must_use]
    pub fn ends(&self) -> &[u32] {
        &self.0.ends
    }

    /// The control token of that name; a Lark rule names it by `<[NUMBER]>`.
    #[must_use]
    pub fn control(&self, name: &str) -> Option<u32> {
        self.0.factory.tok_env().tok_trie().get_special_token(name)
    }

    pub(crate) fn factory(&self) -> &ParserFactory {
        &self.0.factory
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary")
            .field("tokens", &self.0.tokens)
            .field("ends", &self.0.ends)
            .finish_non_exhaustive()
    }
}

/// A token as the trie has it. The byte that marks control tokens there is none of UTF-8, so text
/// with it is of no use, and is left out.
fn word(token: TokenText, ends: bool) -> Vec<u8> {
    let (name, control) = match token {
        TokenText::Control(name) => (name, true),
        TokenText::Text(text) => (text, ends),
        TokenText::Unused => (Vec::new(), ends),
    };
    if !control {
        let usable =
            name.len() <= TOKEN_BYTES_MAX && !name.contains(&TokTrie::SPECIAL_TOKEN_MARKER);
        return if usable { name } else { Vec::new() };
    }
    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    word.extend(name.into_iter().take(TOKEN_BYTES_MAX));
    word
}

/// A trie without a tokenizer. The model is free to spell the text in any tokens: text that leaves
/// no choice isn't forced on it in tokens that it would not have used.
struct Environment {
    trie: TokTrie,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(text)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
