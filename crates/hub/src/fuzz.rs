//! Bodies of fuzz tests: given any bytes, they must neither panic, hang, nor take memory out of
//! proportion. `fuzz/` runs them under cargo-fuzz, `tests/fuzz.rs` on mutated texts in every build.

use std::path::Component;

use crate::manifest::Manifest;
use crate::name::ModelName;

/// Reads `data` as a manifest, and its lines as names.
///
/// # Panics
/// If a manifest that was read is another one after it was written, or if a name leads to a path
/// that doesn't lead back to it or that could leave its folder.
pub fn fuzz_manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data)
        && let Ok(json) = manifest.to_json()
    {
        let again = Manifest::parse(&json).ok();
        assert_eq!(again.as_ref(), Some(&manifest), "a manifest changed when it was written");
    }
    for line in String::from_utf8_lossy(data).lines() {
        if let Ok(name) = ModelName::parse(line) {
            check_name(&name);
        }
    }
}

fn check_name(name: &ModelName) {
    let path = name.path();
    let plain = path.components().filter(|part| matches!(part, Component::Normal(_))).count();
    assert_eq!((plain, path.components().count()), (4, 4), "{path:?} is not four plain parts");
    assert_eq!(ModelName::of_path(&path).as_ref(), Some(name), "{path:?} is another name");
    assert_eq!(ModelName::parse(&name.to_string()).as_ref(), Ok(name), "{name} is another name");
}
