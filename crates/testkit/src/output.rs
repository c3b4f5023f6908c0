//! A file that appears whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Room that is left free on the disk, in bytes.
const SPARE_BYTES: u64 = 64 << 20;

/// Why a file can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum OutputError {
    #[error("{path:?} is a folder; name a file")]
    Folder { path: PathBuf },
    #[error("{path:?} can't be written: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path:?} needs {} MiB, but its disk has only {} MiB free; make room or write elsewhere",
        .needed_bytes.div_ceil(1 << 20),
        .free_bytes >> 20
    )]
    DiskFull { path: PathBuf, needed_bytes: u64, free_bytes: u64 },
    #[error("{path:?} is being written by another process; wait for it or write elsewhere")]
    Busy { path: PathBuf },
    #[error("{path:?} is the model that is read; write to another file")]
    Source { path: PathBuf },
}

/// A file under its temporary name, removed when dropped before [`NewFile::publish`].
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    is_published: bool,
}

impl NewFile {
    /// Opens `PATH.partial`, after a look whether the disk has room for `bytes`.
    pub(crate) fn create(path: &Path, bytes: u64) -> Result<NewFile, OutputError> {
        if path.is_dir() {
            return Err(OutputError::Folder { path: path.to_owned() });
        }
        let io_error = |source| OutputError::Io { path: path.to_owned(), source };
        let free_bytes = free_bytes(folder_of(path)).map_err(io_error)?;
        let needed_bytes = bytes.saturating_add(SPARE_BYTES);
        if free_bytes < needed_bytes {
            return Err(OutputError::DiskFull { path: path.to_owned(), needed_bytes, free_bytes });
        }
        let partial = partial_path(path);
        // Not truncated before it is ours: another process may be writing it.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OutputError::Busy { path: path.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(io_error(source)),
        }
        let new = NewFile { file, partial, path: path.to_owned(), is_published: false };
        new.file.set_len(0).map_err(io_error)?;
        Ok(new)
    }

    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn publish(mut self) -> Result<(), OutputError> {
        let publish = || {
            self.file.sync_all()?;
            fs::rename(&self.partial, &self.path)?;
            File::open(folder_of(&self.path))?.sync_all()
        };
        publish().map_err(|source| OutputError::Io { path: self.path.clone(), source })?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_published {
            // Nothing can be done about an error here, and the name says what is left over.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// The temporary name of a file.
pub(crate) fn partial_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".partial");
    name.into()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names_in(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_only_when_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let mut new = NewFile::create(&path, 3).unwrap();
        new.file().write_all(b"abc").unwrap();
        assert_eq!(names_in(folder.path()), ["m.gguf.partial"]);
        new.publish().unwrap();
        assert_eq!(names_in(folder.path()), ["m.gguf"]);
        assert_eq!(fs::read(&path).unwrap(), b"abc");
    }

    #[test]
    fn nothing_is_left_of_a_file_that_was_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        fs::write(partial_path(&path), b"of a process that was killed").unwrap();
        drop(NewFile::create(&path, 3).unwrap());
        assert_eq!(names_in(folder.path()), [""; 0]);
    }

    #[test]
    fn refusals_come_before_anything_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let full = NewFile::create(&path, u64::MAX / 2).unwrap_err();
        assert!(matches!(full, OutputError::DiskFull { .. }), "{full}");
        let is_folder = NewFile::create(folder.path(), 1).unwrap_err();
        assert!(matches!(is_folder, OutputError::Folder { .. }), "{is_folder}");
        let nowhere = NewFile::create(&folder.path().join("no/m.gguf"), 1).unwrap_err();
        assert!(matches!(nowhere, OutputError::Io { .. }), "{nowhere}");
        assert_eq!(names_in(folder.path()), [""; 0]);

        let first = NewFile::create(&path, 1).unwrap();
        let second = NewFile::create(&path, 1).unwrap_err();
        assert!(matches!(second, OutputError::Busy { .. }), "{second}");
        first.publish().unwrap();
        assert_eq!(names_in(folder.path()), ["m.gguf"]);
    }
}
