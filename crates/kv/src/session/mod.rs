//! Sessions: a conversation under a name, kept in a folder of ours or in one file for elsewhere.
//!
//! A session doesn't hold attention state. It holds what state is named by (the scope and the
//! tokens), so that the blocks are found again, and what people see (the messages).

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

mod folder;
mod format;
pub(crate) mod fuzz;
mod lock;
mod name;
mod portable;

use serde::{Deserialize, Serialize};

use crate::{ScopeFields, Token};

pub use folder::{SessionError, SessionOutline, SessionStore, SessionSummary};
pub use format::{FormatError, MANIFEST_BYTES_MAX, SESSION_VERSION, TOKENS_MAX};
pub use lock::{LockError, SessionLock};
pub use name::{NAME_LEN_MAX, NameError, SessionName};
pub use portable::{
    BLOCK_IMAGE_BYTES_MAX, BLOCK_IMAGES_MAX, PORTABLE_VERSION, PortableError, PortableReader,
    PortableSummary, write_portable,
};

/// A conversation, and what its attention state is named by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// What people call the model.
    pub model_name: String,
    /// Fingerprint of all bytes of the model, in hexadecimal.
    pub model_fingerprint: String,
    /// What the state depends on, beside tokens.
    pub scope: ScopeFields,
    /// What was said, oldest first.
    pub messages: Vec<SessionMessage>,
    /// All tokens of prompts and answers so far.
    pub tokens: Vec<Token>,
    /// The text that the tokens stand for, as rendered by the chat template.
    pub text: String,
    /// When it began, in seconds since 1970.
    pub created_unix_s: u64,
    /// When it was last added to, in seconds since 1970.
    pub updated_unix_s: u64,
}

/// What one side said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMessage {
    /// Who said it, such as `user`.
    pub role: String,
    /// What was said.
    pub content: String,
}

#[cfg(test)]
mod samples {
    use super::*;

    pub(super) fn session() -> Session {
        let text = str::to_owned;
        let fingerprint = "5a".repeat(32);
        Session {
            model_name: text("tiny"),
            model_fingerprint: fingerprint.clone(),
            scope: ScopeFields {
                model: fingerprint,
                type_k: text("f16"),
                type_v: text("f16"),
                rotation: text("on"),
                flash_attention: text("auto"),
                positions: String::new(),
                adapters: String::new(),
                library: text("llama.cpp 1"),
                backend: text("CPU"),
                layout: text("plain"),
                tenant: String::new(),
            },
            messages: vec![
                SessionMessage { role: text("user"), content: text("Say \"grüezi\".\n") },
                SessionMessage { role: text("assistant"), content: text("grüezi") },
            ],
            tokens: vec![1, 0, -1, i32::MAX, i32::MIN, 77],
            text: text("<|user|>Say \"grüezi\".\n<|assistant|>grüezi"),
            created_unix_s: 1_800_000_000,
            updated_unix_s: u64::MAX,
        }
    }
}
