//! Why a model can't be brought here.

use crate::blobs::Digest;
use crate::error::{DiskError, StoreError};
use crate::name::NameError;

/// Why a model can't be brought here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum PullError {
    #[error("cancelled; what was downloaded is kept, so pull again to go on")]
    Cancelled,
    #[error(
        "{name:?} would be a model of Ollama's registry, which hypura doesn't speak; name a repository of Hugging Face (hf.co/ORG/REPO:QUANT), or get it with ollama pull, and hypura finds it there"
    )]
    OllamaRegistry { name: String },
    #[error(
        "{name:?} is no model that can be pulled; name it as hf.co/ORG/REPO, hf.co/ORG/REPO:QUANT or hf.co/ORG/REPO/FILE.gguf"
    )]
    Reference { name: String },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{repository} has no GGUF file; choose a repository whose name ends in GGUF")]
    NoGguf { repository: String },
    #[error("{repository} has no {wanted:?}; it has: {}", .available.join(", "))]
    NotThere { repository: String, wanted: String, available: Vec<String> },
    #[error("{repository} lacks {missing:?}, a part of its split model; choose another")]
    MissingPart { repository: String, missing: String },
    #[error("the hub tells no sha256 of {path:?}, so it can't be checked; download it by hand")]
    NoChecksum { path: String },
    #[error(
        "there is no repository {repository}, or it is private or gated ({status}); check the name, or {}",
        if *has_token {
            "ask for access on its page: the token that is set may not read it"
        } else {
            "set HF_TOKEN to a token that may read it"
        }
    )]
    Denied { repository: String, status: u16, has_token: bool },
    #[error("there is nothing at {url}; check the name")]
    NotFound { url: String },
    #[error(
        "the hub asks to wait{}; try again later, or set HF_TOKEN for higher limits",
        .seconds.map(|seconds| format!(" for {seconds} seconds")).unwrap_or_default()
    )]
    RateLimited { seconds: Option<u64> },
    #[error("the hub answers {url} with status {status}; try again later")]
    Status { url: String, status: u16 },
    #[error("the hub's answer to {url} is not understood ({reason}); try again later")]
    Answer { url: String, reason: String },
    #[error("{url} can't be reached: {reason}; check the network and try again")]
    Network { url: String, reason: String },
    #[error(
        "{url} ended after {received_bytes} of {expected_bytes} bytes; pull again to go on from there"
    )]
    Truncated { url: String, received_bytes: u64, expected_bytes: u64 },
    #[error(
        "{url} has {found_bytes} bytes, but the hub says {expected_bytes}; try again later, it may have just changed"
    )]
    WrongLength { url: String, found_bytes: u64, expected_bytes: u64 },
    #[error(
        "{url} arrived with the sha256 {found}, but the hub says {expected}; it was thrown away, so pull again"
    )]
    WrongDigest { url: String, expected: Digest, found: Digest },
    #[error("{url} is no GGUF file; choose another")]
    NotGguf { url: String },
    #[error("no root certificates were found on this system; install its package ca-certificates")]
    NoRootCertificates,
    #[error(
        "{endpoint:?} is no address of a hub; set HF_ENDPOINT to one that begins with https://"
    )]
    Endpoint { endpoint: String },
    #[error("what arrived is not a model that can be used: {0}")]
    Model(#[source] hypura_gguf::OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}
