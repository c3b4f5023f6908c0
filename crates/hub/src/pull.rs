//! Bringing models from Hugging Face.
//!
//! A pull is: list the repository's files, choose some, download each into a partial file that is
//! gone on with after an interruption, compare its SHA-256 with the hub's, rename it into place, check
//! the header, write a manifest. Nothing counts before its checksum was right.

mod api;
mod choose;
mod download;
mod error;
mod http;
mod reference;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hypura_gguf::Model;
use hypura_gguf::output::partial_path;

pub use error::PullError;

use crate::blobs::{self, Digest};
use crate::disk::check_room;
use crate::entry::Entry;
use crate::error::{DiskError, StoreError};
use crate::manifest::{Blob, Manifest, ModelRef};
use crate::own::{check_case, forget_blobs};
use crate::stores::Stores;
use choose::RemoteFile;
use http::Http;
use reference::Reference;

/// How models are brought here.
#[derive(Clone)]
pub struct PullConfig {
    /// Where the hub is: `https://huggingface.co`, or a mirror that speaks the same API.
    pub endpoint: String,
    /// A token for private and gated repositories. It is sent to the endpoint only, and only over
    /// TLS or to this machine.
    pub token: Option<String>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long nothing may arrive before the connection is given up. A cancelled pull ends after
    /// this time at the latest.
    pub read_timeout: Duration,
    /// How often in a row something is tried again that brought nothing.
    pub retries: u32,
    /// The wait before the first retry; each further one is twice as long, up to 30 seconds.
    pub backoff: Duration,
    /// Most bytes of a model.
    pub bytes_max: u64,
}

impl Default for PullConfig {
    fn default() -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            token: None,
            connect_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(60),
            retries: 4,
            backoff: Duration::from_secs(1),
            bytes_max: 4 << 40,
        }
    }
}

impl fmt::Debug for PullConfig {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullConfig")
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("retries", &self.retries)
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

/// What a pull is doing, as Ollama's stream says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// `pulling manifest`, `pulling 0123456789ab`, `verifying sha256 digest`, `writing manifest`, and
    /// `success` at the end.
    pub status: String,
    /// The file that is downloaded, as `sha256:HEX`.
    pub digest: Option<String>,
    /// Its length in bytes.
    pub total: Option<u64>,
    /// Bytes of it that are here.
    pub completed: Option<u64>,
}

impl Progress {
    fn step(status: &str) -> Self {
        Self { status: status.to_owned(), ..Self::default() }
    }

    fn bytes(digest: &Digest, total: u64, completed: u64) -> Self {
        Self {
            status: format!("pulling {:.12}", digest.as_str()),
            digest: Some(format!("sha256:{digest}")),
            total: Some(total),
            completed: Some(completed),
        }
    }
}

/// Brings models here.
#[derive(Debug, Clone)]
pub struct Puller {
    config: PullConfig,
}

impl Puller {
    /// One that works as configured. It makes no connection yet.
    #[must_use]
    pub const fn new(config: PullConfig) -> Self {
        Self { config }
    }

    /// Brings a model into Hypura's own folder.
    ///
    /// Names are `hf.co/ORG/REPO[:QUANT]`, with `huggingface.co` or nothing in place of `hf.co`, or
    /// `ORG/REPO/FILE.gguf`. Without QUANT it is Q4_K_M, else Q8_0, else the first file. A model of
    /// one file is called `hf.co/ORG/REPO:FILE` afterwards, all others as they were asked for.
    ///
    /// `progress` is called often; `cancel` is looked at between reads. What was downloaded stays for
    /// the next time.
    ///
    /// # Errors
    /// [`PullError`]. The name is as it was before.
    pub fn pull(
        &self,
        name: &str,
        stores: &Stores,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Entry, PullError> {
        let reference = Reference::parse(name)?;
        let own = stores.own_folder()?;
        check_case(own, &reference.name)?;
        let http = Http::new(&self.config, reference.repository(), cancel)?;

        progress(Progress::step("pulling manifest"));
        let files = api::list_files(&http, &reference)?;
        let chosen = choose::choose(&files, &reference)?;
        let blobs: Vec<_> = chosen.iter().map(|file| file.blob.clone()).collect();
        let paths = blobs::paths(own, &blobs);
        self.check_size(own, &chosen, &paths)?;

        for (file, path) in chosen.iter().zip(&paths) {
            let url = api::file_url(&http, &reference, &file.path);
            download::download(&http, &url, file, path, progress)?;
        }
        check_model(own, &blobs, &paths)?;
        if cancel.load(Ordering::Relaxed) {
            return Err(PullError::Cancelled);
        }
        progress(Progress::step("writing manifest"));
        let manifest = Manifest::of(ModelRef::Blobs(blobs));
        let entry = stores.create(&reference.name.to_string(), &manifest)?;
        progress(Progress::step("success"));
        Ok(entry)
    }

    /// Refuses what is too large for the configuration or the disk.
    fn check_size(
        &self,
        own: &Path,
        chosen: &[&RemoteFile],
        paths: &[PathBuf],
    ) -> Result<(), PullError> {
        let (mut bytes, mut missing) = (0_u64, 0_u64);
        for (file, path) in chosen.iter().zip(paths) {
            let len = |path: &Path| path.metadata().map_or(0, |meta| meta.len());
            let here = len(path).max(len(&partial_path(path)));
            bytes = bytes.saturating_add(file.blob.bytes);
            missing = missing.saturating_add(file.blob.bytes.saturating_sub(here));
        }
        if bytes > self.config.bytes_max {
            let limit = self.config.bytes_max;
            return Err(StoreError::TooLong { what: "the model", limit }.into());
        }
        let folder = blobs::folder(own);
        fs::create_dir_all(&folder).map_err(DiskError::at(&folder))?;
        Ok(check_room(&folder, missing)?)
    }
}

/// Checks the headers of what was downloaded, and removes it if it is no model: it would be found
/// again the next time.
fn check_model(own: &Path, blobs: &[Blob], paths: &[PathBuf]) -> Result<(), PullError> {
    let first = paths.first().map_or(Path::new(""), PathBuf::as_path);
    match Model::open(first) {
        Ok(_) => Ok(()),
        Err(error) => {
            forget_blobs(own, blobs)?;
            Err(PullError::Model(error))
        }
    }
}
