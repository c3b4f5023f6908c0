//! Hashes of files, kept as JSON in a cache folder: `fingerprints.json`.
//!
//! Replaced as a whole, so that whoever reads it sees the old one or the new one. Of two processes
//! that keep something at the same moment one may win: the other's file is read once more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hypura_io::Identity;
use serde::{Deserialize, Serialize};

use crate::cache::replace;

/// Changes with the format of the file, and with the definition of the hash.
const VERSION: u32 = 1;

/// Files remembered at most; the one that was read first goes first.
pub(super) const ENTRIES_MAX: usize = 1024;

/// Largest file of hashes that is read, in bytes.
const CACHE_BYTES_MAX: u64 = 1 << 20;

/// A file that was written less than this before it was read could be written again in what its
/// file system takes for the same moment, and would look the same. (FAT counts in two seconds.)
const SETTLED: Duration = Duration::from_secs(3);

#[derive(Serialize, Deserialize)]
struct Cache {
    version: u32,
    files: Vec<Entry>,
}

/// A file, and the hash of its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified_unix_ns: i64,
    hash: String,
    /// A checksum of all that: a wrong hash would be a wrong answer, not just a miss.
    check: String,
}

impl Entry {
    /// `None` for a time that can't be written.
    pub(super) fn new(identity: Identity, hash: blake3::Hash) -> Option<Entry> {
        let Identity { device, inode, size_bytes, modified_unix_ns } = identity;
        let modified_unix_ns = i64::try_from(modified_unix_ns).ok()?;
        let hash = hash.to_hex().to_string();
        let content = format!("{device} {inode} {size_bytes} {modified_unix_ns} {hash}");
        let check = blake3::hash(content.as_bytes()).to_hex().chars().take(16).collect();
        Some(Entry { device, inode, size_bytes, modified_unix_ns, hash, check })
    }
}

/// What is remembered; nothing if the file is missing or damaged.
pub(super) fn read(cache_dir: &Path) -> Vec<Entry> {
    let path = path_in(cache_dir);
    let text = || -> io::Result<String> {
        let metadata = fs::metadata(&path)?;
        if !metadata.is_file() || metadata.len() > CACHE_BYTES_MAX {
            return Err(io::Error::other("it is too large, or no file"));
        }
        fs::read_to_string(&path)
    };
    let parse = |text: String| Ok(serde_json::from_str::<Cache>(&text)?);
    match text().and_then(parse) {
        Ok(cache) if cache.version == VERSION => cache.files,
        Ok(_) => Vec::new(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), "ignoring remembered fingerprints: {error}");
            Vec::new()
        }
    }
}

/// The hash of a file, if it is the one that was read.
pub(super) fn find(entries: &[Entry], identity: Identity) -> Option<blake3::Hash> {
    entries.iter().find_map(|entry| {
        let hash = blake3::Hash::from_hex(&entry.hash).ok()?;
        (Entry::new(identity, hash).as_ref() == Some(entry)).then_some(hash)
    })
}

/// Remembers the hash of a file that was read from `began` on, if its identity will tell when it
/// changes.
pub(super) fn keep(cache_dir: &Path, identity: Identity, hash: blake3::Hash, began: SystemTime) {
    if !is_settled(identity.modified_unix_ns, began) {
        return;
    }
    if let Some(new) = Entry::new(identity, hash) {
        let mut entries = read(cache_dir);
        add(&mut entries, new);
        write(cache_dir, entries);
    }
}

/// Puts a hash in the place of the one that the file had before.
pub(super) fn add(entries: &mut Vec<Entry>, new: Entry) {
    entries.retain(|old| (old.device, old.inode) != (new.device, new.inode));
    entries.push(new);
    let extra = entries.len().saturating_sub(ENTRIES_MAX);
    entries.drain(..extra);
}

pub(super) fn write(cache_dir: &Path, files: Vec<Entry>) {
    let json = serde_json::to_vec_pretty(&Cache { version: VERSION, files });
    let path = path_in(cache_dir);
    if let Err(error) = json.map_err(io::Error::from).and_then(|json| replace(&path, &json)) {
        tracing::warn!(path = %path.display(), "can't remember a fingerprint: {error}");
    }
}

/// Whether a write from `began` on would get another time. So it would also if the last one came
/// from a clock that is ahead.
fn is_settled(modified_unix_ns: i128, began: SystemTime) -> bool {
    let Ok(began) = began.duration_since(SystemTime::UNIX_EPOCH) else { return false };
    let began_unix_ns = i128::try_from(began.as_nanos()).unwrap_or(i128::MAX);
    began_unix_ns.abs_diff(modified_unix_ns) >= SETTLED.as_nanos()
}

fn path_in(cache_dir: &Path) -> PathBuf {
    cache_dir.join("fingerprints.json")
}
