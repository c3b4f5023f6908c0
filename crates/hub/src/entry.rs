//! One model of a store.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use hypura_gguf::{OpenError, SplitName};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::blobs::{Digest, digest_of_set};
use crate::details::{self, Details};
use crate::error::ResolveError;
use crate::manifest::{Manifest, ModelRef, PARTS_MAX};

/// Bytes at the begin and at the end of a file that stand for all of it in a digest.
const IDENTITY_BYTES: u64 = 64 << 10;

/// Whose store a model is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreKind {
    /// Hypura's own folder: what was pulled, copied or created.
    Own,
    /// A folder of GGUF files.
    Folder,
    /// Ollama's store.
    Ollama,
    /// The cache of Hugging Face's tools.
    HuggingFace,
}

impl StoreKind {
    /// What people call it.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Own => "hypura's own folder",
            Self::Folder => "a folder of GGUF files",
            Self::Ollama => "Ollama's store",
            Self::HuggingFace => "the Hugging Face cache",
        }
    }
}

/// One model of a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Entry {
    /// Its name with its tag, as in `demo:latest`.
    pub name: String,
    /// Its files in order: one, or all of a split set. Never empty.
    pub paths: Vec<PathBuf>,
    /// Bytes of these files.
    pub bytes: u64,
    /// When its manifest, or else the latest of its files, was last changed.
    pub modified: SystemTime,
    /// What tells it from others and stays the same as long as it does: 64 hexadecimal digits.
    ///
    /// For a model with a manifest, ours or Ollama's, the SHA-256 of that file, as in Ollama's
    /// lists. Else that of its file where the file's name says it, as in the Hugging Face cache. Else
    /// the SHA-256 of its files' sizes and of their first and last 64 KiB: files are too large to
    /// hash for a list.
    pub digest: String,
    /// What is said about it beside its files; `None` for a bare file.
    pub manifest: Option<Manifest>,
    /// Where it is.
    pub store: StoreKind,
}

impl Entry {
    /// A model that is a bare file, or the first of a split set.
    ///
    /// # Errors
    /// [`ResolveError`] if it can't be read.
    pub fn of_file(name: &str, path: &Path, store: StoreKind) -> Result<Self, ResolveError> {
        let paths = parts_of(path);
        let digest = digest_of_files(&paths).map_err(|error| unreadable(name, path, &error))?;
        Self::assemble(name, paths, digest, None, None, store)
    }

    /// A model with its digest and the time of its manifest.
    pub(crate) fn assemble(
        name: &str,
        paths: Vec<PathBuf>,
        digest: Digest,
        manifest: Option<Manifest>,
        manifest_modified: Option<SystemTime>,
        store: StoreKind,
    ) -> Result<Self, ResolveError> {
        let (mut bytes, mut latest) = (0_u64, SystemTime::UNIX_EPOCH);
        for path in &paths {
            let meta = std::fs::metadata(path).map_err(|error| unreadable(name, path, &error))?;
            bytes = bytes.saturating_add(meta.len());
            latest = latest.max(meta.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        }
        Ok(Self {
            name: name.to_owned(),
            paths,
            bytes,
            modified: manifest_modified.unwrap_or(latest),
            digest: digest.into(),
            manifest,
            store,
        })
    }

    /// The file that it is opened by: the only one, or the first of a split set.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.paths.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// What its header says. Only headers are read, and only if a file has changed since the last
    /// time.
    ///
    /// # Errors
    /// [`OpenError`] if the files are not one sound model.
    pub fn details(&self) -> Result<Arc<Details>, OpenError> {
        let path = self.path();
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        let modified = std::fs::metadata(path).and_then(|meta| meta.modified()).map_err(failed)?;
        details::details(path, modified, self.bytes)
    }

    /// All of the header's metadata with whole arrays, which may be tens of megabytes.
    ///
    /// # Errors
    /// [`OpenError`] if the files are not one sound model.
    pub fn full_metadata(&self) -> Result<Map<String, Value>, OpenError> {
        details::full_metadata(self.path())
    }

    /// A manifest for a model that is made of this one: its own, or one that names its file.
    #[must_use]
    pub fn to_manifest(&self) -> Manifest {
        self.manifest.clone().unwrap_or_else(|| Manifest::of(file_ref(self.path())))
    }
}

/// A file as a manifest names it.
pub(crate) fn file_ref(path: &Path) -> ModelRef {
    ModelRef::File(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

pub(crate) fn unreadable(name: &str, path: &Path, error: &io::Error) -> ResolveError {
    let reason = format!("{path:?} can't be read ({error}); make it readable or remove the model");
    ResolveError::Unusable { name: name.to_owned(), reason }
}

/// All files of a model, those of a split set that are there included.
pub(crate) fn parts_of(path: &Path) -> Vec<PathBuf> {
    match SplitName::parse(path) {
        Some(split) if split.no == 0 && split.count as usize <= PARTS_MAX => (0..split.count)
            .map(|no| split.path_of(no))
            .filter(|part| part == path || part.exists())
            .collect(),
        _ => vec![path.to_owned()],
    }
}

/// See [`Entry::digest`].
fn digest_of_files(paths: &[PathBuf]) -> io::Result<Digest> {
    let named: Option<Vec<_>> = paths.iter().map(|path| digest_in_name(path)).collect();
    match named.as_deref() {
        Some([one]) => return Ok(one.clone()),
        Some(several) => return Ok(digest_of_set(several)),
        None => {}
    }
    let mut hasher = Sha256::new();
    for path in paths {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        hasher.update(bytes.to_le_bytes());
        io::copy(&mut (&mut file).take(IDENTITY_BYTES), &mut hasher)?;
        file.seek(SeekFrom::Start(bytes.saturating_sub(IDENTITY_BYTES)))?;
        io::copy(&mut file.take(IDENTITY_BYTES), &mut hasher)?;
    }
    Ok(Digest::finish(hasher))
}

/// The Hugging Face cache links `snapshots/REVISION/FILE` to `blobs/SHA256`.
fn digest_in_name(path: &Path) -> Option<Digest> {
    Digest::parse(std::fs::read_link(path).ok()?.file_name()?.to_str()?)
}
