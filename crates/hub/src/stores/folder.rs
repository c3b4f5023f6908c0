//! Folders of GGUF files: `NAME.gguf` goes by `NAME`.

use std::collections::BTreeMap;
use std::path::Path;

use hypura_gguf::SplitName;

use super::{Found, last_part, paths_in};
use crate::entry::StoreKind;
use crate::name::with_tag;

/// Adds what is in a folder, not below it.
pub(super) fn list(root: &Path, all: &mut BTreeMap<String, Found>) {
    for path in paths_in(root) {
        if let Some(name) = model_name(&path) {
            all.insert(with_tag(&name), Found { store: StoreKind::Folder, path });
        }
    }
}

/// The name of a GGUF file that a model begins with: its stem, without the split's numbers.
pub(super) fn model_name(path: &Path) -> Option<String> {
    let stem = last_part(path).strip_suffix(".gguf").filter(|stem| !stem.is_empty())?;
    match SplitName::parse(path) {
        Some(split) if split.no == 0 => Some(last_part(&split.prefix).to_owned()),
        Some(_) => None,
        None => Some(stem.to_owned()),
    }
}
