//! Files opened for reading past the page cache.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::sys;

/// The coarsest alignment that direct reads are done with, in bytes; a file system that wants more
/// is read through the page cache. Bounce buffers are made for it.
pub const DIRECT_ALIGN_MAX: usize = 64 * 1024;

/// A regular file, open for reading: directly, past the page cache, where the file system allows
/// that; through the page cache otherwise, and then [`File::direct_refused`] says why.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    inner: fs::File,
    identity: Identity,
    /// What direct reads need; meaningless once `refused` is set.
    direct_align: DirectAlign,
    /// Why reads are not direct. Set at most once: there is no way back to direct reads.
    refused: OnceLock<String>,
}

/// How a file is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Past the page cache if possible.
    #[default]
    Direct,
    /// Through the page cache.
    Buffered,
}

/// What direct reads of a file need; 1 and 1 for a buffered file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlign {
    /// File offset and length must be multiples of this, in bytes; a power of two.
    pub offset: usize,
    /// The address in memory must be a multiple of this, in bytes; a power of two.
    pub memory: usize,
}

impl DirectAlign {
    /// Anything goes: the page cache does the aligning.
    pub const BUFFERED: DirectAlign = DirectAlign { offset: 1, memory: 1 };
}

/// Tells one state of one file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device (file system) that the file is on.
    pub device: u64,
    pub inode: u64,
    pub size_bytes: u64,
    /// Last modification, in nanoseconds since 1970.
    pub modified_unix_ns: i128,
}

/// A file can't be opened for reading.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("there is no file {}; check the path", path.display())]
    NotFound { path: PathBuf },
    #[error("{} is a directory; name a file in it", path.display())]
    IsDirectory { path: PathBuf },
    #[error("{} is not a regular file; copy its content to one", path.display())]
    NotRegular { path: PathBuf },
    #[error("can't open {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A file is not what it was when it was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangedError {
    #[error(
        "{} changed while in use: {before_bytes} bytes before, {now_bytes} now; start again",
        path.display()
    )]
    Resized { path: PathBuf, before_bytes: u64, now_bytes: u64 },
    #[error("{} was written to while in use; start again", path.display())]
    Modified { path: PathBuf },
    #[error("can't tell whether {} is unchanged: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl File {
    /// Opens a regular file for direct reads, or for buffered ones where direct ones are refused.
    ///
    /// # Errors
    /// See [`OpenError`]. That direct reads are refused is no error.
    pub fn open(path: impl AsRef<Path>) -> Result<File, OpenError> {
        File::open_with(path, Access::Direct)
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// See [`OpenError`]. That direct reads are refused is no error.
    pub fn open_with(path: impl AsRef<Path>, access: Access) -> Result<File, OpenError> {
        let path = path.as_ref();
        // Looked at before opening, since opening a FIFO would wait for a writer.
        let found = fs::metadata(path).map_err(|source| open_error(path, source))?;
        check_regular(path, &found)?;
        let opened = match access {
            Access::Direct => sys::open_direct(path),
            Access::Buffered => fs::File::open(path).map(|inner| sys::Opened {
                inner,
                direct: Err("buffered reads were asked for".to_owned()),
            }),
        };
        let sys::Opened { inner, direct } = opened.map_err(|source| open_error(path, source))?;
        let metadata = inner.metadata().map_err(|source| open_error(path, source))?;
        check_regular(path, &metadata)?;
        let refused = OnceLock::new();
        let direct_align = match direct.and_then(usable) {
            Ok(align) => align,
            Err(why) => {
                // Reached only before the file is shared, so this is the first and only set.
                refused.get_or_init(|| why);
                sys::make_buffered(&inner).map_err(|source| open_error(path, source))?;
                DirectAlign::BUFFERED
            }
        };
        let identity = Identity::of(&metadata);
        Ok(File { path: path.to_owned(), inner, identity, direct_align, refused })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.identity.size_bytes
    }

    /// Whether it had no bytes when it was opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it was when it was opened.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether reads go past the page cache. May turn false, never true.
    pub fn is_direct(&self) -> bool {
        self.refused.get().is_none()
    }

    /// Why reads are not direct; `None` if they are.
    pub fn direct_refused(&self) -> Option<&str> {
        self.refused.get().map(String::as_str)
    }

    /// What offsets, lengths and addresses must be multiples of, for a read without a detour.
    pub fn alignment(&self) -> DirectAlign {
        if self.is_direct() { self.direct_align } else { DirectAlign::BUFFERED }
    }

    /// Whether the open file still has the size and modification time it was opened with.
    ///
    /// A file that another one was renamed over is unchanged: we keep reading the old one.
    ///
    /// # Errors
    /// [`ChangedError`] names what changed.
    pub fn check_unchanged(&self) -> Result<(), ChangedError> {
        let path = || self.path.clone();
        let metadata =
            self.inner.metadata().map_err(|source| ChangedError::Io { path: path(), source })?;
        let now = Identity::of(&metadata);
        if now.size_bytes != self.identity.size_bytes {
            return Err(ChangedError::Resized {
                path: path(),
                before_bytes: self.identity.size_bytes,
                now_bytes: now.size_bytes,
            });
        }
        if now != self.identity {
            return Err(ChangedError::Modified { path: path() });
        }
        Ok(())
    }

    /// The descriptor, for calls that this crate doesn't offer. Reads through it follow the rules
    /// of [`File::alignment`].
    pub fn as_std(&self) -> &fs::File {
        &self.inner
    }

    /// Its size now, in bytes.
    pub(crate) fn size_now(&self) -> io::Result<u64> {
        Ok(self.inner.metadata()?.len())
    }

    /// Reads through the page cache from here on, because a direct read was refused.
    pub(crate) fn fall_back(&self, why: &str) -> io::Result<()> {
        sys::make_buffered(&self.inner)?;
        let mut first = false;
        self.refused.get_or_init(|| {
            first = true;
            why.to_owned()
        });
        if first {
            tracing::warn!(
                path = %self.path.display(),
                "reading through the page cache from now on: {why}"
            );
        }
        Ok(())
    }
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Identity {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified_unix_ns: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
        }
    }
}

/// An alignment that the rest of the crate can work with, or why it can't.
fn usable(align: DirectAlign) -> Result<DirectAlign, String> {
    let DirectAlign { offset, memory } = align;
    let fine = |n: usize| n.is_power_of_two() && n <= DIRECT_ALIGN_MAX;
    if fine(offset) && fine(memory) {
        return Ok(align);
    }
    Err(format!(
        "direct reads here need offsets aligned to {offset} and memory aligned to {memory} bytes"
    ))
}

fn check_regular(path: &Path, metadata: &fs::Metadata) -> Result<(), OpenError> {
    let path = || path.to_owned();
    if metadata.is_dir() {
        return Err(OpenError::IsDirectory { path: path() });
    }
    if !metadata.is_file() {
        return Err(OpenError::NotRegular { path: path() });
    }
    Ok(())
}

fn open_error(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound { path },
        _ => OpenError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::conformance::Sample;

    impl File {
        /// The same file with another idea of what direct reads need.
        pub(crate) fn with_alignment(self, direct_align: DirectAlign) -> File {
            File { direct_align, ..self }
        }
    }

    #[test]
    fn says_how_it_reads() {
        let sample = Sample::new(5_000);
        let buffered = sample.open(Access::Buffered);
        assert!(!buffered.is_direct());
        assert_eq!(buffered.direct_refused(), Some("buffered reads were asked for"));
        assert_eq!(buffered.alignment(), DirectAlign::BUFFERED);
        assert_eq!((buffered.len(), buffered.is_empty()), (5_000, false));

        let file = sample.open(Access::Direct);
        assert_eq!(file.is_direct(), file.direct_refused().is_none());
        assert_eq!(file.is_direct(), file.alignment() != DirectAlign::BUFFERED);
        assert_eq!(file.identity(), buffered.identity());
    }

    #[test]
    fn refuses_what_is_no_regular_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = folder.path().join("missing");
        assert!(
            matches!(File::open(&missing), Err(OpenError::NotFound { path }) if path == missing)
        );
        assert!(matches!(File::open(folder.path()), Err(OpenError::IsDirectory { .. })));
        assert!(matches!(File::open("/dev/null"), Err(OpenError::NotRegular { .. })));
        let message = File::open(&missing).expect_err("missing").to_string();
        assert!(message.contains("missing; check the path"), "{message}");
    }

    #[test]
    fn notices_changes() {
        let sample = Sample::new(5_000);
        let file = sample.open(Access::Direct);
        file.check_unchanged().expect("unchanged");
        let writer = || fs::OpenOptions::new().write(true).open(sample.path()).expect("writable");

        let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
        writer().set_modified(at).expect("a time");
        assert!(matches!(file.check_unchanged(), Err(ChangedError::Modified { .. })));

        writer().set_len(4_000).expect("truncated");
        let changed = file.check_unchanged();
        assert!(
            matches!(
                changed,
                Err(ChangedError::Resized { before_bytes: 5_000, now_bytes: 4_000, .. })
            ),
            "{changed:?}"
        );
    }

    #[test]
    fn a_replaced_file_is_still_the_old_one() {
        let sample = Sample::new(5_000);
        let file = sample.open(Access::Direct);
        let path = sample.path();
        let mut other =
            tempfile::NamedTempFile::new_in(path.parent().expect("a folder")).expect("a file");
        other.write_all(b"something else").expect("written");
        other.persist(&path).expect("renamed");
        file.check_unchanged().expect("the open file is unchanged");
        let mut out = [0; 100];
        crate::read_exact_at(&file, 4_900, &mut out).expect("a success");
        assert_eq!(out.as_slice(), sample.bytes(4_900, 100));
    }

    #[test]
    fn odd_alignments_mean_buffered_reads() {
        for (offset, memory) in [(0, 512), (512, 0), (3, 4), (1 << 20, 512)] {
            assert!(usable(DirectAlign { offset, memory }).is_err());
        }
        assert!(usable(DirectAlign { offset: 4096, memory: 4 }).is_ok());
    }
}
