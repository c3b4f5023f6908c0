//! Why a name leads to no model, or a store can't be changed.

use std::io;
use std::path::{Path, PathBuf};

use crate::blobs::Digest;
use crate::manifest::ManifestError;
use crate::name::NameError;

/// Why a name leads to no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// It looks like a path, and there is nothing.
    #[error("there is no file {0:?}; check the path")]
    NoFile(PathBuf),
    /// It is a folder.
    #[error("{0:?} is a folder; name a .gguf file in it")]
    Folder(PathBuf),
    /// No store knows it.
    #[error(
        "there is no file {name:?} and no model of that name; {}",
        if known.is_empty() {
            "no local store has any model".to_owned()
        } else {
            format!("the local stores have: {}", known.join(", "))
        }
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Some names that are known.
        known: Vec<String>,
    },
    /// A store knows it, and it can't be used.
    #[error("model {name:?} can't be used: {reason}")]
    Unusable {
        /// What was asked for.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// Why Hypura's own folder can't be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum StoreError {
    #[error("there is no folder for models of hypura's own; set HYPURA_HOME to one")]
    ReadOnly,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("model {name:?} lies in {store}, at {path:?}, and {advice}")]
    Elsewhere { name: String, store: &'static str, path: PathBuf, advice: &'static str },
    #[error(
        "there is a model {existing:?}, which differs from {name:?} only by upper and lower case; use that name, or delete it first"
    )]
    CaseCollision { name: String, existing: String },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("the model's file {path:?} is not there or not whole; bring it here first")]
    NoBlob { path: PathBuf },
    #[error(transparent)]
    Model(#[from] hypura_gguf::OpenError),
    #[error("what arrived has the sha256 {found}, but should have {expected}; send it again")]
    WrongDigest { expected: Digest, found: Digest },
    #[error("{what} has more than the {limit} bytes that are allowed")]
    TooLong { what: &'static str, limit: u64 },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a file can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum DiskError {
    #[error("the disk of {path:?} is full; make room and try again")]
    Full { path: PathBuf },
    #[error(
        "{path:?} needs {} MiB, but its disk has only {} MiB free; make room and try again",
        .needed_bytes.div_ceil(1 << 20),
        .free_bytes >> 20
    )]
    NoRoom { path: PathBuf, needed_bytes: u64, free_bytes: u64 },
    #[error("{path:?} can't be written: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl DiskError {
    /// What an I/O error at a path means.
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io { path, source },
        }
    }
}
