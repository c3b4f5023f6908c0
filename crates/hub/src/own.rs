//! Hypura's own folder.
//!
//! ```text
//! manifests/HOST/NAMESPACE/NAME/TAG            a manifest; "-" for a missing host or namespace
//! blobs/sha256-HEX                             a GGUF file by its content
//! blobs/set-HEX/model-00001-of-00003.gguf      a split set
//! blobs/....partial                            a download under way, or to be gone on with
//! lock                                         held while manifests and blobs are changed
//! ```
//!
//! A name is valid from the moment at which its manifest is renamed into place, and then all its
//! files are there. GGUF files may lie in the folder beside these; they are a folder's.

mod change;

pub(crate) use change::{check_case, forget_blobs};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::blobs::{self, Digest};
use crate::disk::read_small;
use crate::entry::{Entry, StoreKind, parts_of, unreadable};
use crate::error::ResolveError;
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest, ModelRef};
use crate::name::ModelName;
use crate::stores::{Found, paths_in};

/// Where manifests are.
fn manifests(root: &Path) -> PathBuf {
    root.join("manifests")
}

/// All names with their manifests.
fn names(root: &Path) -> Vec<(ModelName, PathBuf)> {
    let root = manifests(root);
    let below = |paths: Vec<PathBuf>| paths.iter().flat_map(|path| paths_in(path)).collect();
    let (hosts, mut names) = (paths_in(&root), Vec::new());
    let tags: Vec<PathBuf> = below(below(below(hosts)));
    for path in tags {
        let name = path.strip_prefix(&root).ok().and_then(ModelName::of_path);
        if let Some(name) = name {
            names.push((name, path));
        }
    }
    names
}

/// Adds the names of all manifests.
pub(crate) fn list(root: &Path, all: &mut BTreeMap<String, Found>) {
    for (name, path) in names(root) {
        all.insert(name.to_string(), Found { store: StoreKind::Own, path });
    }
}

/// The model of a manifest.
pub(crate) fn open(root: &Path, name: &str, path: &Path) -> Result<Entry, ResolveError> {
    let json = read_small(path, MANIFEST_BYTES_MAX).map_err(|e| unreadable(name, path, &e))?;
    let unusable = |reason: String| ResolveError::Unusable { name: name.to_owned(), reason };
    let json = json.ok_or_else(|| unusable(format!("{path:?} is too long; delete it")))?;
    let manifest = Manifest::parse(&json).map_err(|error| unusable(error.to_string()))?;
    let paths = match &manifest.model {
        ModelRef::Blobs(blobs) => blobs::paths(root, blobs),
        ModelRef::File(file) => parts_of(file),
    };
    let modified = path.metadata().and_then(|meta| meta.modified()).ok();
    Entry::assemble(name, paths, Digest::of(&json), Some(manifest), modified, StoreKind::Own)
}
