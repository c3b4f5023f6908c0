use thiserror::Error;

/// Bytes of a reason at most: it goes into an answer to whoever sent the rule.
const REASON_BYTES_MAX: usize = 400;

/// Why a rule can't be used, or can't be followed any further.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The rule is malformed, can't be satisfied, or asks for something that is not supported: the
    /// mistake of whoever wrote it.
    #[error("the output format can't be used, correct it: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The rule would take too much time or memory: for its author, too, to make smaller.
    #[error("the output format is too complex, make it smaller: {reason}")]
    TooComplex {
        /// Which limit it exceeds.
        reason: String,
    },
    /// The token is not one that the mask allows. The constraint is as it was before.
    #[error("token {token} may not come here, choose one that the mask allows")]
    Refused {
        /// The token's number.
        token: u32,
    },
    /// The text can't be continued under the rule: a limit per token was reached, or the library
    /// failed. The constraint is of no use any more.
    #[error("the output format can't be followed any further, end the answer: {reason}")]
    Failed {
        /// What failed.
        reason: String,
    },
}

impl ConstraintError {
    pub(crate) fn invalid(reason: &str) -> Self {
        Self::Invalid { reason: brief(reason) }
    }

    pub(crate) fn too_complex(reason: &str) -> Self {
        Self::TooComplex { reason: brief(reason) }
    }

    pub(crate) fn failed(message: &str) -> Self {
        Self::Failed { reason: brief(message) }
    }

    /// What `llguidance` says when it refuses a rule. It has one kind of error for everything, so
    /// limits are told from mistakes by its words.
    pub(crate) fn refused_rule(message: &str) -> Self {
        const LIMIT_WORDS: [&str; 8] = [
            "too large",
            "too big",
            "too complex",
            "Too many",
            "fuel",
            "level exceeded",
            "lexer precomputation failed",
            "determine if",
        ];
        let reason = brief(message);
        if message.starts_with("panic: ") {
            return Self::Failed { reason };
        }
        if LIMIT_WORDS.iter().any(|words| message.contains(words)) {
            Self::TooComplex { reason }
        } else {
            Self::Invalid { reason }
        }
    }
}

/// The line of a message of `llguidance` that says most: regular expressions are refused with a
/// drawing and an `error:`; of others, which may go on with dumps, it is the first.
fn brief(message: &str) -> String {
    let line = message
        .lines()
        .find_map(|line| line.strip_prefix("error: "))
        .or_else(|| message.lines().next())
        .unwrap_or_default();
    if line == "NoExtensionBias" {
        return "no text has this form".to_owned();
    }
    let end = line.floor_char_boundary(REASON_BYTES_MAX);
    line.get(..end).unwrap_or_default().to_owned()
}
