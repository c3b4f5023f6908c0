//! The page cache, emptied of a model.

use std::path::Path;

#[cfg(target_os = "linux")]
use anyhow::Context;

/// Makes the system forget what it holds of a file in memory. Needs no rights beyond reading it.
///
/// # Errors
/// If the file can't be opened, or the system can't forget.
#[cfg(target_os = "linux")]
pub(super) fn forget(path: &Path) -> anyhow::Result<()> {
    let what = || format!("can't empty the page cache of {}", path.display());
    let file = std::fs::File::open(path).with_context(what)?;
    // Pages that are not yet written can't be forgotten.
    file.sync_data().with_context(what)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(std::io::Error::from)
        .with_context(what)
}

/// # Errors
/// Always: there is no such request here.
#[cfg(not(target_os = "linux"))]
pub(super) fn forget(_path: &Path) -> anyhow::Result<()> {
    let sentence = "the page cache can't be emptied on this system; use --warm";
    Err(crate::failure::UsageError(sentence.to_owned()).into())
}
