//! Platforms whose way around the page cache nobody has written yet.

use std::fs;
use std::io;
use std::path::Path;

use super::Opened;

/// Opens `path` for buffered reads, and says so.
///
/// # Errors
/// If the file can't be opened.
pub(crate) fn open_direct(path: &Path) -> io::Result<Opened> {
    let refused = "direct reads are not implemented on this platform".to_owned();
    Ok(Opened { inner: fs::File::open(path)?, direct: Err(refused) })
}

/// Files are never anything else here.
///
/// # Errors
/// None.
pub(crate) fn make_buffered(_file: &fs::File) -> io::Result<()> {
    Ok(())
}
