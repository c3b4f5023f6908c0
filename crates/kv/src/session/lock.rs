//! One process at a time in a session.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::SessionName;

/// Tries to lock a file that others remove at the same moment. Each of them had the session in
/// between, so that it was in use.
const TRIES_MAX: usize = 16;

/// A session can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum LockError {
    #[error(
        "session {name} is in use by another process; wait for it, end it, or name another session"
    )]
    Busy { name: SessionName },
    #[error("can't lock session {name} with {}: {source}", path.display())]
    Io { name: SessionName, path: PathBuf, source: io::Error },
}

/// While it lives, nobody else gets the lock of this session: no other process, and not this one.
#[derive(Debug)]
pub struct SessionLock {
    path: PathBuf,
    /// Its lock ends when it is closed, also if the process dies.
    _file: File,
}

impl SessionLock {
    pub(super) fn new(name: &SessionName, path: PathBuf) -> Result<SessionLock, LockError> {
        let io_error = |source| LockError::Io { name: name.clone(), path: path.clone(), source };
        for _ in 0..TRIES_MAX {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(io_error)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(source)) => return Err(io_error(source)),
            }
            // Who had it before removed the file after it was opened here: the next one to come
            // would lock a new file and have the session as well.
            if is_at(&file, &path).map_err(io_error)? {
                return Ok(SessionLock { path, _file: file });
            }
        }
        Err(LockError::Busy { name: name.clone() })
    }
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        // Still locked: whoever has it open looks whether it is there when they get the lock. If
        // it can't be removed, an empty file is left over.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether `path` still leads to the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((open.dev(), open.ino()) == (found.dev(), found.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    fn name() -> SessionName {
        SessionName::parse("chat").expect("a name")
    }

    #[test]
    fn a_session_is_had_once_and_freed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("chat.lock");
        let lock = SessionLock::new(&name(), path.clone()).expect("free");
        let error = SessionLock::new(&name(), path.clone()).expect_err("taken");
        assert!(error.to_string().starts_with("session chat is in use by another process; "));
        drop(lock);
        assert!(!path.exists(), "nothing is left");
        // Left over from a process that was killed.
        fs::write(&path, "").expect("writable");
        SessionLock::new(&name(), path).expect("free");
    }

    #[test]
    fn never_two_have_it_however_often_the_file_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("chat.lock");
        let (inside, had) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let Ok(lock) = SessionLock::new(&name(), path.clone()) else { continue };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                        had.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(had.load(Ordering::SeqCst) > 0);
    }
}
