//! What a model of Hypura's own folder is made of: a small JSON file.
//!
//! ```text
//! { "version": 1,
//!   "model": {"blobs": [{"sha256": "HEX", "bytes": N}, ...]}   files in this store, in order
//!         or {"file": "/absolute/path.gguf"},                  a file that lies elsewhere
//!   "system": TEXT, "template": TEXT, "license": TEXT,         each may be missing
//!   "parameters": {"num_ctx": 4096, "stop": ["..."], ...},     named as Ollama names them
//!   "messages": [{"role": "user", "content": TEXT}, ...] }
//! ```
//!
//! Other fields are refused: a manifest that asks for what this version doesn't know would be half
//! obeyed otherwise. There are no adapters.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::blobs::Digest;

/// The version that is written, and the only one that is read.
pub const MANIFEST_VERSION: u32 = 1;
/// Most files of a model.
pub const PARTS_MAX: usize = 1024;
/// Most bytes of a manifest.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Most parameters, and most elements of one that is a list.
const PARAMETERS_MAX: usize = 256;
/// Most messages.
const MESSAGES_MAX: usize = 4096;
/// Most bytes of a role.
const ROLE_BYTES_MAX: usize = 64;
/// Most bytes of a path.
const PATH_BYTES_MAX: usize = 4096;

/// What a model is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The weights.
    pub model: ModelRef,
    /// What is said to the model before all messages, unless a request says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The chat template, in Jinja, in place of the GGUF file's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Defaults of a request's options: `num_ctx`, `temperature`, `stop` and so on, as Ollama names
    /// them. Numbers, texts, truth values, and lists of these.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    /// Messages that come before those of a request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// The licence's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

/// Where the weights are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ModelRef {
    /// Files of Hypura's own folder by their content: one, or all of a split set in order.
    Blobs(Vec<Blob>),
    /// A GGUF file, or the first of a split set, that lies elsewhere; an absolute path.
    File(PathBuf),
}

/// One file by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Its length in bytes.
    pub bytes: u64,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant` or another one that the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Why a manifest can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum ManifestError {
    #[error("the manifest is no JSON of the kind that is needed ({0}); make the model again")]
    Json(#[from] serde_json::Error),
    #[error(
        "the manifest has version {version}, but {MANIFEST_VERSION} is needed; use the hypura that made it"
    )]
    Version { version: u32 },
    #[error("{what} is more than the {limit} that a manifest may have; leave some out")]
    TooMany { what: &'static str, limit: u64 },
    #[error("the manifest names no file; name a model")]
    NoFiles,
    #[error("{path:?} is no absolute path; name the model by its whole path")]
    Path { path: PathBuf },
    #[error("parameter {name:?} is an object or null; use a number, a text, or a list of these")]
    Parameter { name: String },
}

/// A manifest as it is in its file.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    rest: T,
}

impl Manifest {
    /// A manifest of these weights and nothing else.
    #[must_use]
    pub fn of(model: ModelRef) -> Self {
        Self {
            model,
            system: None,
            template: None,
            parameters: Map::new(),
            messages: Vec::new(),
            license: None,
        }
    }

    /// Reads a manifest and checks it.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        check_count("its length in bytes", json.len(), MANIFEST_BYTES_MAX)?;
        // In two steps, because serde can't both flatten and refuse unknown fields, and because the
        // fields of another version may be others.
        let Versioned { version, rest } = serde_json::from_slice::<Versioned<Map<_, _>>>(json)?;
        if version != MANIFEST_VERSION {
            return Err(ManifestError::Version { version });
        }
        let manifest: Self = serde_json::from_value(Value::Object(rest))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The bytes of its file.
    ///
    /// # Errors
    /// [`ManifestError`] if [`parse`](Self::parse) would refuse them.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let versioned = Versioned { version: MANIFEST_VERSION, rest: self };
        let json = serde_json::to_vec_pretty(&versioned)?;
        check_count("its length in bytes", json.len(), MANIFEST_BYTES_MAX)?;
        Ok(json)
    }

    fn check(&self) -> Result<(), ManifestError> {
        match &self.model {
            ModelRef::Blobs(blobs) if blobs.is_empty() => return Err(ManifestError::NoFiles),
            ModelRef::Blobs(blobs) => {
                check_count("the number of files", blobs.len(), PARTS_MAX as u64)?;
            }
            ModelRef::File(path) => {
                let bytes = path.as_os_str().as_encoded_bytes();
                if !path.is_absolute() || bytes.len() > PATH_BYTES_MAX || bytes.contains(&0) {
                    return Err(ManifestError::Path { path: path.clone() });
                }
            }
        }
        check_count("the number of parameters", self.parameters.len(), PARAMETERS_MAX as u64)?;
        for (name, value) in &self.parameters {
            check_parameter(name, value)?;
        }
        check_count("the number of messages", self.messages.len(), MESSAGES_MAX as u64)?;
        for message in &self.messages {
            check_count("the length of a role", message.role.len(), ROLE_BYTES_MAX as u64)?;
        }
        Ok(())
    }
}

fn check_parameter(name: &str, value: &Value) -> Result<(), ManifestError> {
    let is_plain = |value: &Value| value.is_number() || value.is_string() || value.is_boolean();
    let is_good = match value {
        Value::Array(list) => {
            check_count("the length of a parameter's list", list.len(), PARAMETERS_MAX as u64)?;
            list.iter().all(is_plain)
        }
        value => is_plain(value),
    };
    if is_good { Ok(()) } else { Err(ManifestError::Parameter { name: name.to_owned() }) }
}

fn check_count(what: &'static str, count: usize, limit: u64) -> Result<(), ManifestError> {
    if count as u64 > limit { Err(ManifestError::TooMany { what, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

    fn with_model(rest: &str) -> String {
        format!(r#"{{"version":1,"model":{{"blobs":[{{"sha256":"{HEX}","bytes":7}}]}}{rest}}}"#)
    }

    #[test]
    fn a_manifest_is_the_same_after_a_round_trip() {
        let json = with_model(
            r#","system":"Be brief.","parameters":{"temperature":0.1,"stop":["a","b"],"num_ctx":4096},
            "messages":[{"role":"user","content":"Hi"}],"license":"MIT","template":"{{ x }}""#,
        );
        let manifest = Manifest::parse(json.as_bytes()).unwrap();
        assert_eq!(manifest.system.as_deref(), Some("Be brief."));
        assert_eq!(manifest.parameters["num_ctx"], 4096);
        assert_eq!(manifest.messages[0].role, "user");
        let again = Manifest::parse(&manifest.to_json().unwrap()).unwrap();
        assert_eq!(again, manifest);
        let file = Manifest::of(ModelRef::File("/a/b.gguf".into()));
        assert_eq!(Manifest::parse(&file.to_json().unwrap()).unwrap(), file);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let check = |json: &str, reason: &str| {
            let error = Manifest::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{json}: {error}");
        };
        check("", "no JSON");
        check(r#"{"version":2,"model":{"weights":"x"}}"#, "version 2");
        check(r#"{"version":1}"#, "model");
        check(r#"{"version":1,"model":{"blobs":[]}}"#, "names no file");
        check(r#"{"version":1,"model":{"file":"a.gguf"}}"#, "absolute");
        check(r#"{"version":1,"model":{"file":"/a\u0000"}}"#, "absolute");
        check(r#"{"version":1,"model":{"blobs":[{"sha256":"../../x","bytes":1}]}}"#, "sha256");
        check(&with_model(r#","adapter":"x""#), "adapter");
        check(&with_model(r#","parameters":{"a":{"b":1}}"#), "\"a\"");
        check(&with_model(r#","parameters":{"a":[[1]]}"#), "\"a\"");
        let role = "r".repeat(65);
        let message = format!(r#","messages":[{{"role":"{role}","content":""}}]"#);
        check(&with_model(&message), "role");
    }
}
