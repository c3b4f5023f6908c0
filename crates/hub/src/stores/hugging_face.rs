//! The cache of Hugging Face's tools: `models--ORG--NAME/snapshots/REVISION/.../FILE.gguf`.
//!
//! `refs/main` holds the revision that `main` was when it was last looked up. A file goes by
//! `ORG/NAME/FILE`; of several revisions it is main's, or else the last one's by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::folder::model_name;
use super::{Found, last_part, paths_in};
use crate::disk::read_small;
use crate::entry::StoreKind;
use crate::name::with_tag;

/// Folders below a revision that are looked into.
const DEPTH_MAX: usize = 4;
/// Most bytes of a reference: a commit is 40.
const REF_BYTES_MAX: u64 = 256;

/// Adds all GGUF files of the cache.
pub(super) fn list(root: &Path, all: &mut BTreeMap<String, Found>) {
    for repository in paths_in(root) {
        let Some(name) = last_part(&repository).strip_prefix("models--") else { continue };
        let name = name.replace("--", "/");
        for revision in revisions(&repository) {
            list_revision(&revision, &name, all);
        }
    }
}

/// The folders of all revisions, main's last.
fn revisions(repository: &Path) -> Vec<PathBuf> {
    let main = read_small(&repository.join("refs/main"), REF_BYTES_MAX).ok().flatten();
    let main = main.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    let mut revisions = paths_in(&repository.join("snapshots"));
    revisions.sort_by_key(|path| Some(last_part(path)) == main.as_deref());
    revisions
}

fn list_revision(revision: &Path, name: &str, all: &mut BTreeMap<String, Found>) {
    let mut folders = vec![(revision.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for path in paths_in(&folder) {
            if path.is_dir() {
                if depth < DEPTH_MAX {
                    folders.push((path, depth + 1));
                }
            } else if let Some(file) = model_name(&path) {
                let name = with_tag(&format!("{name}/{file}"));
                all.insert(name, Found { store: StoreKind::HuggingFace, path });
            }
        }
    }
}
