//! Sessions in a folder: `NAME.session`, one file each.
//!
//! A file is written under a temporary name, made durable and renamed, so that a crash leaves the
//! old session or the new one.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::format::SESSION_BYTES_MAX;
use super::{FormatError, LockError, Session, SessionLock, SessionName};

const SUFFIX: &str = ".session";
const PARTIAL_SUFFIX: &str = ".partial";

/// Nobody writes a file for so long: what is older was left by a crash.
const PARTIAL_AGE_MAX: Duration = Duration::from_hours(24);

/// Sessions by name, in a folder.
#[derive(Debug)]
pub struct SessionStore {
    folder: PathBuf,
}

/// A session in a list.
#[derive(Debug)]
pub struct SessionSummary {
    /// What it is called.
    pub name: SessionName,
    /// What it is; or why it can't be used.
    pub outline: Result<SessionOutline, SessionError>,
}

/// A session without what was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOutline {
    /// What people call the model.
    pub model_name: String,
    /// Fingerprint of the model, in hexadecimal.
    pub model_fingerprint: String,
    /// Messages so far.
    pub n_messages: usize,
    /// Tokens so far.
    pub n_tokens: usize,
    /// When it began, in seconds since 1970.
    pub created_unix_s: u64,
    /// When it was last added to, in seconds since 1970.
    pub updated_unix_s: u64,
}

/// A session can't be read or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum SessionError {
    #[error("session {name} can't be used: {source}")]
    Format { name: SessionName, source: FormatError },
    #[error("can't read or write {}: {source}; check the folder of sessions", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl SessionStore {
    /// Sessions in `folder`, which is made if it doesn't exist, for its owner alone (mode 0700); a
    /// folder that exists keeps its mode. Leftovers of crashes are removed.
    ///
    /// # Errors
    /// [`SessionError::Io`] if it can't be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<SessionStore, SessionError> {
        let folder = folder.into();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| SessionError::Io { path: folder.clone(), source })?;
        remove_leftovers(&folder);
        Ok(SessionStore { folder })
    }

    /// The session of this name, if there is one.
    ///
    /// # Errors
    /// [`SessionError`] if its file can't be read or is damaged.
    pub fn get(&self, name: &SessionName) -> Result<Option<Session>, SessionError> {
        let path = self.path_of(name);
        match read(&path) {
            Ok(bytes) => Session::decode(&bytes)
                .map(Some)
                .map_err(|source| SessionError::Format { name: name.clone(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SessionError::Io { path, source }),
        }
    }

    /// Whether there is a session of this name, damaged or not.
    pub fn exists(&self, name: &SessionName) -> bool {
        self.path_of(name).symlink_metadata().is_ok()
    }

    /// Keeps a session under this name, in the place of the one that was there. Durable when it
    /// returns. Whoever changes a session should have its [lock](SessionStore::lock).
    ///
    /// # Errors
    /// [`SessionError`], and then what was there before is still there.
    pub fn put(&self, name: &SessionName, session: &Session) -> Result<(), SessionError> {
        let format_error = |source| SessionError::Format { name: name.clone(), source };
        let bytes = session.encode().map_err(format_error)?;
        let path = self.path_of(name);
        // A name for each writer, so that two of them don't write into each other's file. Its mode
        // is 0600.
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(&format!(".{name}."))
                .suffix(PARTIAL_SUFFIX)
                .tempfile_in(&self.folder)?;
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            self.sync()
        };
        write().map_err(|source| SessionError::Io { path: path.clone(), source })
    }

    /// All sessions, by name. One that is damaged says so in its place.
    ///
    /// # Errors
    /// [`SessionError::Io`] if the folder can't be read.
    pub fn list(&self) -> Result<Vec<SessionSummary>, SessionError> {
        let io_error = |source| SessionError::Io { path: self.folder.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(io_error)? {
            let file_name = entry.map_err(io_error)?.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            // Other names can't be asked for, so they are no sessions.
            names.extend(name.and_then(|name| SessionName::parse(name).ok()));
        }
        names.sort();
        let summary = |name: SessionName| {
            let session = self.get(&name).transpose()?;
            Some(SessionSummary { name, outline: session.map(|session| session.outline()) })
        };
        // One that was removed in between is in no list.
        Ok(names.into_iter().filter_map(summary).collect())
    }

    /// Removes a session; returns whether there was one. Its attention state is not touched.
    ///
    /// # Errors
    /// [`SessionError::Lock`] if it is in use, by this process or another one;
    /// [`SessionError::Io`] if its file can't be removed.
    pub fn remove(&self, name: &SessionName) -> Result<bool, SessionError> {
        let _lock = self.lock(name)?;
        let path = self.path_of(name);
        match fs::remove_file(&path).and_then(|()| self.sync()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(SessionError::Io { path, source }),
        }
    }

    /// Takes a session for this process alone, whether it exists already or not. Dropping the lock
    /// gives it back.
    ///
    /// # Errors
    /// [`LockError::Busy`] if somebody has it, in this process or another one.
    pub fn lock(&self, name: &SessionName) -> Result<SessionLock, LockError> {
        SessionLock::new(name, self.folder.join(format!("{name}.lock")))
    }

    fn path_of(&self, name: &SessionName) -> PathBuf {
        self.folder.join(format!("{name}{SUFFIX}"))
    }

    /// Makes names in the folder durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

impl Session {
    /// The session without what was said.
    pub fn outline(&self) -> SessionOutline {
        SessionOutline {
            model_name: self.model_name.clone(),
            model_fingerprint: self.model_fingerprint.clone(),
            n_messages: self.messages.len(),
            n_tokens: self.tokens.len(),
            created_unix_s: self.created_unix_s,
            updated_unix_s: self.updated_unix_s,
        }
    }
}

/// A file's bytes, and at most one more than a session has.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Looked at before opening, since opening a FIFO would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(SESSION_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes what a crash left behind. What can't be removed only takes room.
fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_partial = name
            .to_str()
            .is_some_and(|name| name.starts_with('.') && name.ends_with(PARTIAL_SUFFIX));
        let modified = || entry.metadata().and_then(|metadata| metadata.modified());
        let is_old = || {
            let age = modified().ok().and_then(|modified| modified.elapsed().ok());
            age.is_some_and(|age| age > PARTIAL_AGE_MAX)
        };
        if is_partial && is_old() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::super::samples::session;
    use super::*;

    fn name(name: &str) -> SessionName {
        SessionName::parse(name).expect("a name")
    }

    fn open(folder: &tempfile::TempDir) -> SessionStore {
        SessionStore::open(folder.path().join("deep/sessions")).expect("a folder")
    }

    fn file_names(store: &SessionStore) -> Vec<String> {
        let entries = fs::read_dir(&store.folder).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn sessions_are_kept_replaced_and_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder);
        let chat = name("chat");
        assert!(!store.exists(&chat) && store.get(&chat).expect("readable").is_none());
        store.put(&chat, &session()).expect("kept");
        let mut old_file = File::open(store.path_of(&chat)).expect("there");
        let longer = Session { tokens: vec![1; 5000], ..session() };
        store.put(&chat, &longer).expect("kept");
        let mut old_bytes = Vec::new();
        old_file.read_to_end(&mut old_bytes).expect("readable");
        assert_eq!(Session::decode(&old_bytes).expect("whole"), session(), "replaced, not changed");
        assert_eq!(file_names(&store), ["chat.session"]);
        assert!(store.exists(&chat));
        assert_eq!(open(&folder).get(&chat).expect("readable"), Some(longer));
        assert!(store.remove(&chat).expect("removed"));
        assert!(!store.remove(&chat).expect("nothing there"));
        assert!(file_names(&store).is_empty());
    }

    #[test]
    fn only_the_owner_may_look() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder);
        store.put(&name("chat"), &session()).expect("kept");
        let _lock = store.lock(&name("chat")).expect("free");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&store.folder), 0o700);
        for file in ["chat.session", "chat.lock"] {
            assert_eq!(mode(&store.folder.join(file)), 0o600);
        }
    }

    #[test]
    fn damaged_sessions_are_listed_and_do_not_hide_the_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder);
        for sound in ["b", "d"] {
            store.put(&name(sound), &session()).expect("kept");
        }
        fs::write(store.path_of(&name("a")), "").expect("written");
        fs::create_dir(store.path_of(&name("c"))).expect("made");
        fs::write(store.folder.join(".hidden.session"), "").expect("written");
        fs::write(store.folder.join("other.txt"), "").expect("written");
        let list = store.list().expect("readable");
        let sound: Vec<_> =
            list.iter().map(|summary| (summary.name.as_str(), summary.outline.is_ok())).collect();
        assert_eq!(sound, [("a", false), ("b", true), ("c", false), ("d", true)]);
        assert_eq!(list[1].outline.as_ref().expect("sound"), &session().outline());
        let told = list[0].outline.as_ref().expect_err("damaged").to_string();
        assert!(told.starts_with("session a can't be used: it is cut short"), "{told}");
    }

    #[test]
    fn a_session_in_use_is_not_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder);
        let chat = name("chat");
        store.put(&chat, &session()).expect("kept");
        let lock = store.lock(&chat).expect("free");
        assert!(matches!(store.remove(&chat), Err(SessionError::Lock(LockError::Busy { .. }))));
        assert!(store.exists(&chat));
        store.lock(&name("other")).expect("another one is free");
        drop(lock);
        assert!(store.remove(&chat).expect("removed"));
    }

    #[test]
    fn what_cannot_be_kept_leaves_the_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder);
        let chat = name("chat");
        store.put(&chat, &session()).expect("kept");
        let large = Session { tokens: vec![0; super::super::TOKENS_MAX + 1], ..session() };
        assert!(matches!(store.put(&chat, &large), Err(SessionError::Format { .. })));
        assert_eq!(store.get(&chat).expect("readable"), Some(session()));
        // A folder in its place: nothing half-written is left.
        fs::create_dir(store.path_of(&name("full"))).expect("made");
        fs::write(store.path_of(&name("full")).join("x"), "").expect("written");
        assert!(matches!(store.put(&name("full"), &session()), Err(SessionError::Io { .. })));
        assert_eq!(file_names(&store), ["chat.session", "full.session"]);
    }

    #[test]
    fn leftovers_of_crashes_go_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder);
        for left in [".a.x1.partial", ".b.x2.partial", "c.session"] {
            let file = File::create(store.folder.join(left)).expect("made");
            if left != ".b.x2.partial" {
                let old = SystemTime::now() - 2 * PARTIAL_AGE_MAX;
                file.set_modified(old).expect("set");
            }
        }
        assert_eq!(file_names(&open(&folder)), [".b.x2.partial", "c.session"]);
    }
}
