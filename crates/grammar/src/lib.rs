//! Which tokens may come next, so that what a model writes has a given form: JSON, JSON by a
//! schema, a regular expression, or a grammar.
//!
//! - [`Vocabulary`]: the bytes of all tokens of a model, made once and shared.
//! - [`Rule`]: the form. Rules come from strangers; what is too large is refused
//!   ([`ConstraintError::TooComplex`]), and nothing is ever fetched.
//! - [`Constraint`]: a rule applied to one answer. Before each token it gives a [`Mask`], and it is
//!   told what was chosen.
//!
//! The work is done by `llguidance`. Here are the limits, the treatment of schemas, and the border
//! between text and control tokens.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

mod constraint;
mod error;
pub mod fuzz;
mod lark;
mod limits;
mod mask;
mod rule;
mod schema;
mod stack;
mod vocabulary;

pub use constraint::Constraint;
pub use error::ConstraintError;
pub use lark::checked_lark;
pub use limits::{
    CHOSEN_PROPERTIES_MAX, COMBINED_NODES_MAX, COMBINED_PATTERNS_MAX, LARK_BYTES_MAX,
    MULTIPLE_OF_MAX, PATTERN_BYTES_MAX, PATTERN_PROPERTIES_MAX, PROPERTIES_MAX,
    PROPERTY_NAME_BYTES_MAX, REFERENCE_REACH_MAX, SCHEMA_DEPTH_MAX, SCHEMA_NODES_MAX,
    SCHEMA_TEXT_BYTES_MAX,
};
pub use mask::Mask;
pub use rule::{Rule, lark_schema};
pub use vocabulary::{
    TOKEN_BYTES_MAX, TokenText, VOCABULARY_TOKENS_MAX, Vocabulary, VocabularyError,
};
