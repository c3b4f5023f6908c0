//! Files by their content.
//!
//! A model of one file is `blobs/sha256-HEX`. A split set is found by its files' names, so it is a
//! folder: `blobs/set-HEX/model-00001-of-00003.gguf` and so on, where HEX is the SHA-256 of the
//! digests of all its files in hexadecimal, one after the other.

use std::fmt;
use std::path::{Path, PathBuf};

use hypura_gguf::split_path;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::manifest::Blob;

/// A SHA-256: 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Reads a digest with or without `sha256:` before it; `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (hex.len() == 64 && hex.bytes().all(is_hex)).then(|| Self(hex.to_owned()))
    }

    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    pub(crate) fn finish(hasher: Sha256) -> Self {
        use fmt::Write;
        let mut hex = String::with_capacity(64);
        for byte in hasher.finalize() {
            // Writing to a string doesn't fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Self(hex)
    }

    /// The 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    /// The 64 digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a sha256 is 64 lower-case hexadecimal digits")
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// The digest of several files: of their digests' digits.
pub(crate) fn digest_of_set<'a>(digests: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let mut hasher = Sha256::new();
    for digest in digests {
        hasher.update(digest.as_str());
    }
    Digest::finish(hasher)
}

/// Where the files of a model lie below Hypura's own folder.
pub(crate) fn paths(own: &Path, blobs: &[Blob]) -> Vec<PathBuf> {
    let folder = folder(own);
    match blobs {
        [blob] => vec![folder.join(format!("sha256-{}", blob.sha256))],
        blobs => {
            let set = digest_of_set(blobs.iter().map(|blob| &blob.sha256));
            let prefix = folder.join(format!("set-{set}")).join("model");
            let count = u32::try_from(blobs.len()).unwrap_or(u32::MAX);
            (0..count).map(|no| split_path(&prefix, no, count)).collect()
        }
    }
}

/// The folder of all blobs.
pub(crate) fn folder(own: &Path) -> PathBuf {
    own.join("blobs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_64_lower_case_digits() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        assert_eq!(Digest::parse(&format!("sha256:{empty}")), Some(Digest::of(b"")));
        for bad in ["", "..", &empty[1..], &empty.to_uppercase(), &format!("{empty}0")] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn sets_are_folders_with_names_that_lead_from_one_file_to_the_next() {
        let blobs = [b"a", b"b"].map(|text| Blob { sha256: Digest::of(text), bytes: 1 });
        let own = Path::new("own");
        let one = paths(own, &blobs[..1]);
        assert_eq!(one, [own.join(format!("blobs/sha256-{}", blobs[0].sha256))]);
        let set = digest_of_set(blobs.iter().map(|blob| &blob.sha256));
        let two = paths(own, &blobs);
        assert_eq!(two[1], own.join(format!("blobs/set-{set}/model-00002-of-00002.gguf")));
    }
}
