//! What a model is: one hash of all bytes of all its files, read once and remembered.
//!
//! The fingerprint depends on content alone, on no path and no time, so that it means the same on
//! another machine. Files of a split set are hashed one by one: the same tensors split elsewhere
//! are another model. It is built in three layers, with BLAKE3 and little-endian numbers of 64
//! bits:
//!
//! - of a chunk: the plain hash of its bytes. A file is cut into chunks of 1 MiB, the last of which
//!   may be shorter; a file without bytes has none.
//! - of a file: the hash in the mode for deriving keys, context `hypura model file 1`, of the
//!   file's size in bytes, then the hashes of its chunks in order.
//! - of the model: likewise, context `hypura model fingerprint 1`, of the number of files, then the
//!   hashes of the files in order.
//!
//! Chunks may come from the drive in any order and could be hashed by several threads. One does it:
//! it keeps up with most drives, and it is done once per file.

mod chunks;
mod remember;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use hypura_io::{AllocError, ChangedError, File, ReadEngine, ReadError};

pub use chunks::BUFFER_BYTES_MAX as FINGERPRINT_BUFFER_BYTES_MAX;

const FILE_CONTEXT: &str = "hypura model file 1";
const MODEL_CONTEXT: &str = "hypura model fingerprint 1";

/// A hash of all bytes of a model. Shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Its 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self:.8})")
    }
}

/// A model has no fingerprint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FingerprintError {
    #[error(transparent)]
    Changed(#[from] ChangedError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Alloc(#[from] AllocError),
    #[error("reading the model was interrupted; start again")]
    Interrupted,
    #[error("the reader of the model has other work; this is a bug: report it")]
    ReaderBusy,
}

/// The fingerprint of the model in `files`, in their order.
///
/// What is remembered in `cache_dir` of a file of the same device, inode, size and modification
/// time is not read again. Files are read past the page cache as far as they were opened so, with
/// at most [`FINGERPRINT_BUFFER_BYTES_MAX`] of buffers. Nothing may be in flight in `reader`, and
/// nothing is when this returns. That something can't be remembered only costs time.
///
/// `progress` is told the bytes read so far and those to be read, at least ten times a second while
/// something is read, and not at all otherwise; it returns false to interrupt. Files that were read
/// to their end by then are remembered.
///
/// # Errors
/// [`FingerprintError`]; also if a file is not what it was when it was opened.
pub fn fingerprint(
    files: &[Arc<File>],
    cache_dir: Option<&Path>,
    reader: &mut dyn ReadEngine,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Fingerprint, FingerprintError> {
    let known = cache_dir.map(remember::read).unwrap_or_default();
    let known: Vec<_> =
        files.iter().map(|file| (file, remember::find(&known, file.identity()))).collect();
    let unread = known.iter().filter(|(_, hash)| hash.is_none());
    let (mut done_bytes, total_bytes) = (0, unread.map(|(file, _)| file.len()).sum());
    let mut advance = |bytes: u64| {
        done_bytes += bytes;
        progress(done_bytes, total_bytes)
    };
    let mut model = blake3::Hasher::new_derive_key(MODEL_CONTEXT);
    model.update(&(files.len() as u64).to_le_bytes());
    for (file, known) in known {
        let hash = match known {
            Some(hash) => hash,
            None => {
                let began = SystemTime::now();
                let hash = read_file(file, reader, &mut advance)?;
                if let Some(cache_dir) = cache_dir {
                    remember::keep(cache_dir, file.identity(), hash, began);
                }
                hash
            }
        };
        model.update(hash.as_bytes());
    }
    // Again, since the first one may have changed while the last one was read.
    files.iter().try_for_each(|file| file.check_unchanged())?;
    Ok(Fingerprint(*model.finalize().as_bytes()))
}

/// The hash of a file that didn't change while it was read.
fn read_file(
    file: &Arc<File>,
    reader: &mut dyn ReadEngine,
    advance: &mut dyn FnMut(u64) -> bool,
) -> Result<blake3::Hash, FingerprintError> {
    file.check_unchanged()?;
    let mut hash = blake3::Hasher::new_derive_key(FILE_CONTEXT);
    hash.update(&file.len().to_le_bytes());
    chunks::read(file, reader, advance, &mut |chunk| {
        hash.update(chunk.as_bytes());
    })?;
    file.check_unchanged()?;
    Ok(hash.finalize())
}

#[cfg(test)]
mod tests;
