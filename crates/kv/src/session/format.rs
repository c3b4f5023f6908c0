//! The file of a session.
//!
//! ```text
//! offset    bytes
//! 0         8     magic, "HYPURA-S"
//! 8         4     version of the format, 1
//! 12        4     M, bytes of the manifest, at most 64 MiB
//! 16        4     T, number of tokens, at most 16 Mi
//! 20        M     manifest, JSON in UTF-8: an object with everything but the tokens
//! 20+M      4 T   tokens, two's complement
//! 20+M+4T   32    BLAKE3 of all bytes before
//! ```
//!
//! Numbers are little-endian. Nothing follows the checksum. Keys of the manifest that are not known
//! are ignored; a change that old programs would misread is a new version.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Session, SessionMessage};
use crate::{ScopeFields, Token};

/// Version of the file of a session.
pub const SESSION_VERSION: u32 = 1;

/// Bytes of everything in a session but its tokens, as JSON, at most.
pub const MANIFEST_BYTES_MAX: usize = 64 << 20;

/// Tokens of a session at most.
pub const TOKENS_MAX: usize = 16 << 20;

/// Bytes of a session's file at most.
pub(super) const SESSION_BYTES_MAX: usize =
    HEAD_BYTES + MANIFEST_BYTES_MAX + TOKENS_MAX * size_of::<Token>() + blake3::OUT_LEN;

const MAGIC: &[u8; 8] = b"HYPURA-S";
const HEAD_BYTES: usize = 20;

/// Bytes are no session that can be used, or a session can't be made bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum FormatError {
    #[error("it is no session of hypura; name another file")]
    Foreign,
    #[error(
        "it has version {found}, and this hypura reads version {SESSION_VERSION}; update hypura"
    )]
    Version { found: u32 },
    #[error("it is cut short after {got_bytes} bytes; fetch it again or remove it")]
    Truncated { got_bytes: usize },
    #[error("{extra_bytes} bytes follow its end; fetch it again or remove it")]
    Trailing { extra_bytes: usize },
    #[error("it is damaged: its checksum doesn't fit; fetch it again or remove it")]
    Damaged,
    #[error("it has {got} {what}, and {max} is the most; begin a new session")]
    TooLarge { what: &'static str, got: usize, max: usize },
    #[error("its description makes no sense: {source}; fetch it again or remove it")]
    Malformed { source: serde_json::Error },
}

/// Everything but the tokens.
#[derive(Serialize, Deserialize)]
struct Manifest<'a> {
    model_name: Cow<'a, str>,
    model_fingerprint: Cow<'a, str>,
    scope: Cow<'a, ScopeFields>,
    messages: Cow<'a, [SessionMessage]>,
    text: Cow<'a, str>,
    created_unix_s: u64,
    updated_unix_s: u64,
}

impl Session {
    /// The file's bytes.
    pub(super) fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let Session {
            model_name,
            model_fingerprint,
            scope,
            messages,
            tokens,
            text,
            created_unix_s,
            updated_unix_s,
        } = self;
        let manifest = Manifest {
            model_name: model_name.into(),
            model_fingerprint: model_fingerprint.into(),
            scope: Cow::Borrowed(scope),
            messages: messages.into(),
            text: text.into(),
            created_unix_s: *created_unix_s,
            updated_unix_s: *updated_unix_s,
        };
        let manifest =
            serde_json::to_vec(&manifest).map_err(|source| FormatError::Malformed { source })?;
        let manifest_bytes = limited("bytes of text", manifest.len(), MANIFEST_BYTES_MAX)?;
        let n_tokens = limited("tokens", tokens.len(), TOKENS_MAX)?;
        let mut bytes = Vec::with_capacity(
            HEAD_BYTES + manifest.len() + size_of_val(tokens.as_slice()) + blake3::OUT_LEN,
        );
        bytes.extend(MAGIC);
        bytes.extend(SESSION_VERSION.to_le_bytes());
        bytes.extend(manifest_bytes.to_le_bytes());
        bytes.extend(n_tokens.to_le_bytes());
        bytes.extend(manifest);
        bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        let checksum = blake3::hash(&bytes);
        bytes.extend(checksum.as_bytes());
        Ok(bytes)
    }

    /// The session in a file's bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Session, FormatError> {
        let truncated = || FormatError::Truncated { got_bytes: bytes.len() };
        let common = bytes.len().min(MAGIC.len());
        if bytes.get(..common) != MAGIC.get(..common) {
            return Err(FormatError::Foreign);
        }
        let rest = bytes.get(MAGIC.len()..).ok_or_else(truncated)?;
        let (version, rest) = number(rest).ok_or_else(truncated)?;
        if version != SESSION_VERSION {
            return Err(FormatError::Version { found: version });
        }
        let (manifest_bytes, rest) = number(rest).ok_or_else(truncated)?;
        let (n_tokens, rest) = number(rest).ok_or_else(truncated)?;
        let (manifest_bytes, n_tokens) = (manifest_bytes as usize, n_tokens as usize);
        limited("bytes of text", manifest_bytes, MANIFEST_BYTES_MAX)?;
        limited("tokens", n_tokens, TOKENS_MAX)?;
        let (manifest, rest) = rest.split_at_checked(manifest_bytes).ok_or_else(truncated)?;
        let (tokens, rest) =
            rest.split_at_checked(n_tokens * size_of::<Token>()).ok_or_else(truncated)?;
        let (checksum, rest) =
            rest.split_first_chunk::<{ blake3::OUT_LEN }>().ok_or_else(truncated)?;
        if !rest.is_empty() {
            return Err(FormatError::Trailing { extra_bytes: rest.len() });
        }
        let content_bytes = bytes.len() - blake3::OUT_LEN;
        let content = bytes.get(..content_bytes).ok_or_else(truncated)?;
        if blake3::hash(content) != blake3::Hash::from_bytes(*checksum) {
            return Err(FormatError::Damaged);
        }
        let manifest: Manifest<'static> =
            serde_json::from_slice(manifest).map_err(|source| FormatError::Malformed { source })?;
        let (tokens, _) = tokens.as_chunks();
        Ok(Session {
            model_name: manifest.model_name.into_owned(),
            model_fingerprint: manifest.model_fingerprint.into_owned(),
            scope: manifest.scope.into_owned(),
            messages: manifest.messages.into_owned(),
            tokens: tokens.iter().map(|token| Token::from_le_bytes(*token)).collect(),
            text: manifest.text.into_owned(),
            created_unix_s: manifest.created_unix_s,
            updated_unix_s: manifest.updated_unix_s,
        })
    }
}

/// A number of four bytes, and what follows it.
fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*number), rest))
}

/// `got` if it is within the limit.
fn limited(what: &'static str, got: usize, max: usize) -> Result<u32, FormatError> {
    let within = u32::try_from(got).ok().filter(|_| got <= max);
    within.ok_or(FormatError::TooLarge { what, got, max })
}

#[cfg(test)]
mod tests {
    use super::super::samples::session;
    use super::*;

    /// What is wrong with `bytes`, in words.
    fn refusal(bytes: &[u8]) -> String {
        Session::decode(bytes).expect_err("refused").to_string()
    }

    #[test]
    fn sessions_come_back_as_they_were() {
        let empty =
            Session { messages: Vec::new(), tokens: Vec::new(), text: String::new(), ..session() };
        for session in [session(), empty] {
            let bytes = session.encode().expect("small enough");
            assert_eq!(Session::decode(&bytes).expect("a session"), session);
        }
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let bytes = session().encode().expect("small enough");
        for len in 0..bytes.len() {
            let told = refusal(&bytes[..len]);
            assert!(told.contains(&format!("cut short after {len} bytes")), "{len}: {told}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut spoiled = bytes.clone();
            spoiled[bit / 8] ^= 1 << (bit % 8);
            refusal(&spoiled);
        }
    }

    type Change = fn(&mut Vec<u8>);

    #[test]
    fn each_fault_has_its_sentence() {
        let bytes = session().encode().expect("small enough");
        let cases: [(&str, Change); 8] = [
            ("no session", |b| b[0] = b'X'),
            ("version 2, and this hypura reads version 1", |b| b[8] = 2),
            ("version 0", |b| b[8] = 0),
            ("1 bytes follow", |b| b.push(0)),
            ("checksum", |b| b[100] ^= 1),
            ("bytes of text, and 67108864 is the most", |b| b[15] = 0xff),
            ("tokens, and 16777216 is the most", |b| b[19] = 0xff),
            ("makes no sense", |b| {
                b[20] = b'[';
                let end = b.len() - blake3::OUT_LEN;
                let checksum = blake3::hash(&b[..end]);
                b[end..].copy_from_slice(checksum.as_bytes());
            }),
        ];
        for (words, change) in cases {
            let mut spoiled = bytes.clone();
            change(&mut spoiled);
            let told = refusal(&spoiled);
            assert!(told.contains(words), "{told}");
        }
        assert!(refusal(b"GGUF").contains("no session"));
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let tokens = Session { tokens: vec![0; TOKENS_MAX + 1], ..session() };
        let text = Session { text: "x".repeat(MANIFEST_BYTES_MAX), ..session() };
        for session in [tokens, text] {
            assert!(matches!(session.encode(), Err(FormatError::TooLarge { .. })));
        }
        let most = Session { tokens: vec![7; TOKENS_MAX], ..session() };
        let bytes = most.encode().expect("just small enough");
        assert!(bytes.len() <= SESSION_BYTES_MAX);
        assert!(Session::decode(&bytes).expect("a session") == most);
    }
}
