//! A file that appears whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Room that is left free on the disk, in bytes: as much again for a small file, and for a large one
/// at most so much.
const SPARE_BYTES_MIN: u64 = 1 << 20;
const SPARE_BYTES_MAX: u64 = 64 << 20;

/// Why a file can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum OutputError {
    #[error("{path:?} is a folder; name a file")]
    Folder { path: PathBuf },
    #[error("{path:?} exists already; name another file, or use --force to replace it")]
    Exists { path: PathBuf },
    #[error("{path:?} is the model that is read; write to another file")]
    Source { path: PathBuf },
    #[error("{path:?} is no regular file; name another one")]
    Special { path: PathBuf },
    #[error(
        "{path:?} needs {} MiB, but its disk has only {} MiB free; make room or write elsewhere",
        .needed_bytes.div_ceil(1 << 20),
        .free_bytes >> 20
    )]
    DiskFull { path: PathBuf, needed_bytes: u64, free_bytes: u64 },
    #[error("{path:?} is being written by another process; wait for it or write elsewhere")]
    Busy { path: PathBuf },
    #[error("{path:?} can't be written: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A file under its temporary name, removed when dropped before [`NewFile::publish`].
#[derive(Debug)]
pub struct NewFile {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    replace: bool,
    is_published: bool,
}

impl NewFile {
    /// Opens `PATH.partial`, after a look whether `path` may be written and its disk has room for
    /// `bytes`. An existing file is refused unless it may be replaced, and one of `sources` always.
    ///
    /// # Errors
    /// [`OutputError`], with nothing changed.
    pub fn create<'a>(
        path: &Path,
        bytes: u64,
        replace: bool,
        sources: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self, OutputError> {
        check_target(path, replace, sources)?;
        let io_error = |source| OutputError::Io { path: path.to_owned(), source };
        let free_bytes = free_bytes(folder_of(path)).map_err(io_error)?;
        let needed_bytes = bytes.saturating_add(bytes.clamp(SPARE_BYTES_MIN, SPARE_BYTES_MAX));
        if free_bytes < needed_bytes {
            return Err(OutputError::DiskFull { path: path.to_owned(), needed_bytes, free_bytes });
        }
        let partial = partial_path(path);
        // Not truncated before it is ours: another process may be writing it.
        let file = File::options()
            .read(true)
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
        // Who had it before may have published or removed it since it was opened here: then this is
        // no longer the file of that name, and must not be emptied.
        let opened = file.metadata().map_err(io_error)?;
        if !fs::metadata(&partial).is_ok_and(|there| is_same_file(&there, &opened)) {
            return Err(OutputError::Busy { path: path.to_owned() });
        }
        let new = Self { file, partial, path: path.to_owned(), replace, is_published: false };
        new.file.set_len(0).map_err(io_error)?;
        Ok(new)
    }

    /// What is written to.
    pub const fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// The temporary name.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Makes what was written so far durable.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// An I/O error with the name that the user knows.
    pub fn error(&self, source: io::Error) -> OutputError {
        OutputError::Io { path: self.path.clone(), source }
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`OutputError`]; the file is removed then.
    pub fn publish(mut self) -> Result<(), OutputError> {
        self.sync().map_err(|source| self.error(source))?;
        // Writing took a while: somebody may have put a file there.
        if !self.replace && self.path.symlink_metadata().is_ok() {
            return Err(OutputError::Exists { path: self.path.clone() });
        }
        let publish = || {
            fs::rename(&self.partial, &self.path)?;
            File::open(folder_of(&self.path))?.sync_all()
        };
        publish().map_err(|source| self.error(source))?;
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

fn check_target<'a>(
    path: &Path,
    replace: bool,
    sources: impl IntoIterator<Item = &'a Path>,
) -> Result<(), OutputError> {
    let path = || path.to_owned();
    // Another name of the source, by a link, is the source too.
    let Ok(target) = fs::metadata(path()) else {
        // A dangling link would be replaced by the file.
        return match path().symlink_metadata() {
            Ok(_) if !replace => Err(OutputError::Exists { path: path() }),
            _ => Ok(()),
        };
    };
    if target.is_dir() {
        return Err(OutputError::Folder { path: path() });
    }
    for source in sources {
        let source =
            fs::metadata(source).map_err(|source| OutputError::Io { path: path(), source });
        if is_same_file(&target, &source?) {
            return Err(OutputError::Source { path: path() });
        }
    }
    if !target.is_file() {
        return Err(OutputError::Special { path: path() });
    }
    if replace { Ok(()) } else { Err(OutputError::Exists { path: path() }) }
}

fn is_same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// The temporary name of a file.
pub fn partial_path(path: &Path) -> PathBuf {
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

    fn create(path: &Path, bytes: u64, replace: bool) -> Result<NewFile, OutputError> {
        NewFile::create(path, bytes, replace, [])
    }

    #[test]
    fn a_file_appears_only_when_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let mut new = create(&path, 3, false).unwrap();
        new.file().write_all(b"abc").unwrap();
        assert_eq!(names_in(folder.path()), ["m.gguf.partial"]);
        new.publish().unwrap();
        assert_eq!(names_in(folder.path()), ["m.gguf"]);
        assert_eq!(fs::read(&path).unwrap(), b"abc");

        let exists = create(&path, 3, false).unwrap_err();
        assert!(matches!(exists, OutputError::Exists { .. }), "{exists}");
        create(&path, 3, true).unwrap().publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn what_came_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let new = create(&path, 3, false).unwrap();
        fs::write(&path, b"theirs").unwrap();
        let exists = new.publish().unwrap_err();
        assert!(matches!(exists, OutputError::Exists { .. }), "{exists}");
        assert_eq!(names_in(folder.path()), ["m.gguf"]);
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
    }

    #[test]
    fn nothing_is_left_of_a_file_that_was_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        fs::write(partial_path(&path), b"of a process that was killed").unwrap();
        drop(create(&path, 3, false).unwrap());
        assert_eq!(names_in(folder.path()), [""; 0]);
    }

    #[test]
    fn refusals_come_before_anything_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let full = create(&path, u64::MAX / 2, false).unwrap_err();
        assert!(matches!(full, OutputError::DiskFull { .. }), "{full}");
        let is_folder = create(folder.path(), 1, true).unwrap_err();
        assert!(matches!(is_folder, OutputError::Folder { .. }), "{is_folder}");
        let nowhere = create(&folder.path().join("no/m.gguf"), 1, false).unwrap_err();
        assert!(matches!(nowhere, OutputError::Io { .. }), "{nowhere}");
        assert_eq!(names_in(folder.path()), [""; 0]);
        #[cfg(target_os = "linux")]
        {
            let special = create(Path::new("/dev/null"), 1, true).unwrap_err();
            assert!(matches!(special, OutputError::Special { .. }), "{special}");
        }

        let first = create(&path, 1, false).unwrap();
        let second = create(&path, 1, false).unwrap_err();
        assert!(matches!(second, OutputError::Busy { .. }), "{second}");
        first.publish().unwrap();
        assert_eq!(names_in(folder.path()), ["m.gguf"]);
    }

    #[test]
    fn a_source_is_never_replaced_whatever_it_is_called() {
        let folder = tempfile::tempdir().unwrap();
        let (model, hard, soft) = (
            folder.path().join("m.gguf"),
            folder.path().join("hard.gguf"),
            folder.path().join("soft.gguf"),
        );
        fs::write(&model, b"weights").unwrap();
        fs::hard_link(&model, &hard).unwrap();
        std::os::unix::fs::symlink(&model, &soft).unwrap();
        for path in [&model, &hard, &soft] {
            let refused = NewFile::create(path, 1, true, [model.as_path()]).unwrap_err();
            assert!(matches!(refused, OutputError::Source { .. }), "{refused}");
        }
        assert_eq!(names_in(folder.path()), ["hard.gguf", "m.gguf", "soft.gguf"]);
    }
}
