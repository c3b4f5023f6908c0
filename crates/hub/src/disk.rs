//! Writing files that are there whole or not at all, and that outlive a power cut.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use hypura_gguf::output::partial_path;

use crate::error::DiskError;

/// Room that is left free on a disk, in bytes.
const SPARE_BYTES: u64 = 64 << 20;

/// A file under its temporary name, locked: nobody else writes it meanwhile. It stays when it is
/// dropped, so that it can be gone on with.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) file: File,
    path: PathBuf,
    partial: PathBuf,
}

/// What [`Partial::try_open`] found.
pub(crate) enum Opened {
    /// It is ours.
    Ours(Partial),
    /// Somebody else has it.
    Busy,
    /// The file is there whole.
    Done,
}

impl Partial {
    /// Opens `PATH.partial` as it is, and makes its folder.
    pub(crate) fn try_open(path: &Path) -> Result<Opened, DiskError> {
        if path.is_file() {
            return Ok(Opened::Done);
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(DiskError::at(folder))?;
        }
        let partial = partial_path(path);
        let mut options = File::options();
        // Not truncated: what is there may be gone on with, or be written by somebody else.
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&partial).map_err(DiskError::at(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Opened::Busy),
            Err(TryLockError::Error(source)) => return Err(DiskError::at(path)(source)),
        }
        // Who had it before may have given it its name since it was opened here.
        let opened = file.metadata().map_err(DiskError::at(path))?;
        if !fs::metadata(&partial).is_ok_and(|there| is_same_file(&there, &opened)) {
            return Ok(if path.is_file() { Opened::Done } else { Opened::Busy });
        }
        Ok(Opened::Ours(Self { file, path: path.to_owned(), partial }))
    }

    /// The name that it will have.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it durable and gives it its name.
    pub(crate) fn publish(self) -> Result<(), DiskError> {
        let publish = || {
            self.file.sync_all()?;
            fs::rename(&self.partial, &self.path)?;
            sync_folder(&self.path)
        };
        publish().map_err(DiskError::at(&self.path))
    }

    /// Removes it.
    pub(crate) fn discard(self) {
        // What can't be removed is found and overwritten the next time.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Writes a small file whole or not at all, durably.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let partial = partial_path(path);
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(path)
    };
    write().map_err(DiskError::at(path))
}

/// Makes the names in a file's folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads a file that should be small; `None` if it is longer than `bytes_max`.
pub(crate) fn read_small(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
}

/// An error if the disk of an existing folder has no room for so many bytes.
pub(crate) fn check_room(folder: &Path, needed_bytes: u64) -> Result<(), DiskError> {
    let stat = rustix::fs::statvfs(folder).map_err(|e| DiskError::at(folder)(e.into()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if needed_bytes > 0 && free_bytes < needed_bytes.saturating_add(SPARE_BYTES) {
        return Err(DiskError::NoRoom { path: folder.to_owned(), needed_bytes, free_bytes });
    }
    Ok(())
}

fn is_same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(path: &Path) -> Partial {
        match Partial::try_open(path).unwrap() {
            Opened::Ours(partial) => partial,
            Opened::Busy => panic!("busy"),
            Opened::Done => panic!("done"),
        }
    }

    #[test]
    fn a_partial_file_stays_and_belongs_to_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/blob");
        let mut first = ours(&path);
        first.file.write_all(b"half").unwrap();
        assert!(matches!(Partial::try_open(&path).unwrap(), Opened::Busy));
        drop(first);
        let second = ours(&path);
        assert_eq!(fs::read(&second.partial).unwrap(), b"half");
        second.publish().unwrap();
        assert!(matches!(Partial::try_open(&path).unwrap(), Opened::Done));
        assert_eq!(fs::read(&path).unwrap(), b"half");
    }

    #[test]
    fn full_disks_are_told_apart() {
        let full = DiskError::at(Path::new("x"))(io::ErrorKind::StorageFull.into());
        assert!(matches!(full, DiskError::Full { .. }), "{full}");
        let other = DiskError::at(Path::new("x"))(io::ErrorKind::PermissionDenied.into());
        assert!(matches!(other, DiskError::Io { .. }), "{other}");
        let folder = tempfile::tempdir().unwrap();
        let room = check_room(folder.path(), u64::MAX / 2).unwrap_err();
        assert!(matches!(room, DiskError::NoRoom { .. }), "{room}");
        check_room(folder.path(), 0).unwrap();
    }

    #[test]
    fn long_files_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_whole(&path, b"1234").unwrap();
        assert_eq!(read_small(&path, 4).unwrap().as_deref(), Some(&b"1234"[..]));
        assert_eq!(read_small(&path, 3).unwrap(), None);
    }
}
