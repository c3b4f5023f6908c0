//! Finding a model by name in all stores.

mod folder;
mod hugging_face;
mod ollama;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::entry::{Entry, StoreKind};
use crate::error::ResolveError;
use crate::name::with_tag;
use crate::own;

/// Names shown at most when one is not found.
const SUGGESTIONS_MAX: usize = 12;
/// Entries of a folder that are looked at, at most.
const ENTRIES_MAX: usize = 20_000;

/// Where models are looked for.
///
/// A name that is in several is that of Hypura's own folder, else of the folders, the last first,
/// else of Ollama's store, else of the Hugging Face cache.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    /// Folders with GGUF files.
    pub folders: Vec<PathBuf>,
    /// Ollama's store: the folder with `manifests` and `blobs`.
    pub ollama: Option<PathBuf>,
    /// The Hugging Face cache: the folder with `models--ORG--NAME`.
    pub hugging_face: Option<PathBuf>,
    /// Hypura's own folder: what is pulled, copied, created and deleted. `None`: nothing can be.
    pub own: Option<PathBuf>,
}

/// A model of a store that wasn't looked into yet.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) store: StoreKind,
    /// The file, or the manifest.
    pub(crate) path: PathBuf,
}

impl Stores {
    /// The file of a model that is named by its path or in a store. A path goes before a name.
    ///
    /// Whoever takes names from others uses [`find`](Self::find), which opens no paths.
    ///
    /// # Errors
    /// When there is none; the message lists what there is.
    pub fn resolve(&self, name: &str) -> Result<PathBuf, ResolveError> {
        let path = Path::new(name);
        if path.is_dir() {
            return Err(ResolveError::Folder(path.to_owned()));
        }
        if path.exists() {
            return Ok(path.to_owned());
        }
        let looks_like_path = name.starts_with(['.', '/', '~']) || name.ends_with(".gguf");
        match self.find(name) {
            Ok(entry) => Ok(entry.path().to_owned()),
            Err(ResolveError::Unknown { .. }) if looks_like_path => {
                Err(ResolveError::NoFile(path.to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// The model of this name in a store; never a path.
    ///
    /// Names with and without `:latest` are the same, and so are `ORG/REPO`, `hf.co/ORG/REPO` and
    /// `huggingface.co/ORG/REPO` for what was pulled. Case counts.
    ///
    /// # Errors
    /// When there is none, with a list of what there is, or when it can't be used.
    pub fn find(&self, name: &str) -> Result<Entry, ResolveError> {
        let all = self.found();
        let spelled = spellings(name).into_iter().find_map(|name| all.get_key_value(&name));
        match spelled {
            Some((name, found)) => self.open(name, found),
            None => {
                let known = all.into_keys().take(SUGGESTIONS_MAX).collect();
                Err(ResolveError::Unknown { name: name.to_owned(), known })
            }
        }
    }

    /// All models of all stores that can be used, by name.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let open = |(name, found): (&String, &Found)| match self.open(name, found) {
            Ok(entry) => Some(entry),
            Err(error) => {
                tracing::debug!("left out of the list: {error}");
                None
            }
        };
        self.found().iter().filter_map(open).collect()
    }

    fn open(&self, name: &str, found: &Found) -> Result<Entry, ResolveError> {
        match (found.store, &self.own, &self.ollama) {
            (StoreKind::Own, Some(own), _) => own::open(own, name, &found.path),
            (StoreKind::Ollama, _, Some(ollama)) => ollama::open(ollama, name, &found.path),
            _ => Entry::of_file(name, &found.path, found.store),
        }
    }

    /// What there is, by name. Parts of split sets after the first are left out.
    fn found(&self) -> BTreeMap<String, Found> {
        let mut all = BTreeMap::new();
        if let Some(root) = &self.hugging_face {
            hugging_face::list(root, &mut all);
        }
        if let Some(root) = &self.ollama {
            ollama::list(root, &mut all);
        }
        for root in &self.folders {
            folder::list(root, &mut all);
        }
        if let Some(root) = &self.own {
            own::list(root, &mut all);
        }
        all
    }
}

/// The names under which a model may be known that is asked for by this one.
fn spellings(name: &str) -> Vec<String> {
    let name = with_tag(name);
    let mut spellings = vec![name.clone()];
    if let Some(rest) = name.strip_prefix("huggingface.co/") {
        spellings.push(format!("hf.co/{rest}"));
    }
    if name.matches('/').count() == 1 {
        spellings.push(format!("hf.co/{name}"));
    }
    spellings
}

/// The paths in a folder, sorted; none when it can't be read.
pub(crate) fn paths_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(read) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = read.take(ENTRIES_MAX).flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// A path's last part as text; empty if it is none.
pub(crate) fn last_part(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
