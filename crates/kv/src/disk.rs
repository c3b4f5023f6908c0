//! What the cold tier asks of a drive, so that a test can be one.

use std::any::Any;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use hypura_io as hio;

/// A file in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name, without the folder.
    pub name: OsString,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its last modification, in nanoseconds since 1970.
    pub modified_unix_ns: u64,
}

/// Held until it is dropped.
pub type LockGuard = Box<dyn Any + Send>;

/// File operations. Bodies of blocks are read through a [`hypura_io::ReadEngine`] instead.
pub trait Disk: Send + Sync {
    /// Makes the folder, for the user alone, and those above it; fine if it is there.
    ///
    /// # Errors
    /// Those of the system.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Locks a file, making it first, against all other holders, of this process too. `None` if
    /// that takes longer than `at_most`.
    ///
    /// # Errors
    /// Those of the system.
    fn lock(&self, path: &Path, at_most: Duration) -> io::Result<Option<LockGuard>>;

    /// When something in the folder was made, renamed or removed last, in nanoseconds since 1970.
    ///
    /// # Errors
    /// Those of the system.
    fn dir_modified_unix_ns(&self, dir: &Path) -> io::Result<u64>;

    /// Everything in the folder, in any order.
    ///
    /// # Errors
    /// Those of the system; a file that vanishes meanwhile is none.
    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>>;

    /// The first bytes of a file: `bytes_max`, or as many as it has.
    ///
    /// # Errors
    /// Those of the system.
    fn read_start(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>>;

    /// Makes a file, for the user alone, and writes `parts` to it, one after the other. With
    /// `durable` they are on the drive, and out of the page cache, on return.
    ///
    /// # Errors
    /// Those of the system; the file may then be there, in part.
    fn write_new(&self, path: &Path, parts: &[&[u8]], durable: bool) -> io::Result<()>;

    /// Sets the time of a file's last modification, in nanoseconds since 1970.
    ///
    /// # Errors
    /// Those of the system.
    fn touch(&self, path: &Path, modified_unix_ns: u64) -> io::Result<()>;

    /// Renames a file over another one or none.
    ///
    /// # Errors
    /// Those of the system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the system.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Waits until the folder's names are on the drive.
    ///
    /// # Errors
    /// Those of the system.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Opens a file for a read engine.
    ///
    /// # Errors
    /// [`hypura_io::OpenError`].
    fn open(&self, path: &Path) -> Result<hio::File, hio::OpenError>;
}

/// The system's file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDisk;

/// Between two tries to get a lock.
const LOCK_POLL: Duration = Duration::from_millis(2);

impl Disk for SystemDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn lock(&self, path: &Path, at_most: Duration) -> io::Result<Option<LockGuard>> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Box::new(file))),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if begun.elapsed() >= at_most => return Ok(None),
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_POLL),
            }
        }
    }

    fn dir_modified_unix_ns(&self, dir: &Path) -> io::Result<u64> {
        Ok(modified_unix_ns(&fs::metadata(dir)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) => listed.push(Listed {
                    name: entry.file_name(),
                    bytes: metadata.len(),
                    modified_unix_ns: modified_unix_ns(&metadata),
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(listed)
    }

    fn read_start(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(bytes_max);
        fs::File::open(path)?.take(bytes_max as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]], durable: bool) -> io::Result<()> {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
        for part in parts {
            file.write_all(part)?;
        }
        if durable {
            file.sync_data()?;
            forget(&file);
        }
        Ok(())
    }

    fn touch(&self, path: &Path, modified_unix_ns: u64) -> io::Result<()> {
        let time = UNIX_EPOCH + Duration::from_nanos(modified_unix_ns);
        fs::File::open(path)?.set_modified(time)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn open(&self, path: &Path) -> Result<hio::File, hio::OpenError> {
        hio::File::open(path)
    }
}

/// Takes a file that was just written out of the page cache: nobody reads it from there, and under
/// a memory limit it would push out pages that somebody does read. Advice, so that errors are none.
fn forget(file: &fs::File) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

fn modified_unix_ns(metadata: &fs::Metadata) -> u64 {
    let ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    u64::try_from(ns).unwrap_or_default()
}
