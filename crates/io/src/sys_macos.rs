//! Direct reads on macOS: `F_NOCACHE`. Compiled, but not verified on a Mac.

use std::fs;
use std::io;
use std::path::Path;

use super::Opened;
use crate::DirectAlign;

/// Reads that are not multiples of this go through the cache even with `F_NOCACHE`.
const PAGE: DirectAlign = DirectAlign { offset: 4096, memory: 4096 };

/// Opens `path` and switches caching off for it.
///
/// # Errors
/// Only if the file can't be opened at all.
pub(crate) fn open_direct(path: &Path) -> io::Result<Opened> {
    let inner = fs::File::open(path)?;
    let direct = rustix::fs::fcntl_nocache(&inner, true)
        .map(|()| PAGE)
        .map_err(|error| format!("caching can't be switched off: {error}"));
    Ok(Opened { inner, direct })
}

/// Switches caching on again.
///
/// # Errors
/// What `fcntl` says.
pub(crate) fn make_buffered(file: &fs::File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_nocache(file, false)?)
}
