//! What a store did, and how it is.

use std::io;
use std::path::Path;
use std::time::Duration;

/// Counters of a store since it was opened, and what it holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Tokens delivered from memory, of blocks that had been written or that have no folder.
    pub tokens_hit_hot: u64,
    /// Tokens delivered from memory, of blocks that waited to be written.
    pub tokens_hit_pending: u64,
    /// Tokens delivered from files.
    pub tokens_hit_cold: u64,
    /// Bytes of files read for fetches, damaged ones included.
    pub bytes_read: u64,
    /// Time that fetches waited for the drive.
    pub read_time: Duration,
    /// Bytes of files written, by this store.
    pub bytes_written: u64,
    /// Files written, by this store.
    pub blocks_written: u64,
    /// Blocks that were accepted and then given up: pushed out of the queue, or not writable.
    pub blocks_dropped: u64,
    /// Blocks that were not written because the budget was used up, the drive had failed, or
    /// nothing could make room for them.
    pub blocks_refused: u64,
    /// Files removed to make room.
    pub blocks_evicted: u64,
    /// Files removed because they were damaged.
    pub blocks_damaged: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Bytes of blocks in the folder.
    pub cold_bytes: u64,
    /// Blocks in the folder.
    pub cold_files: u64,
    /// Bytes of payload kept in memory.
    pub hot_bytes: u64,
    /// Bytes of payload waiting to be written.
    pub pending_bytes: u64,
    /// Bytes of files written to the folder today (UTC), by all processes.
    pub wear_today_bytes: u64,
    /// Bytes of files written to the folder ever, by all processes.
    pub wear_total_bytes: u64,
}

/// Whether the cold tier writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does, or there is none.
    Healthy,
    /// It failed to; it reads on, and tries to write again after a while.
    Failed {
        /// What to do about it, in one sentence.
        reason: String,
    },
}

/// What to do about an error of the folder.
pub(crate) fn advice(dir: &Path, error: &io::Error) -> String {
    let dir = dir.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("the drive of {dir} is full; make room there or choose another folder")
        }
        io::ErrorKind::NotFound => {
            format!("the folder {dir} or a part of it vanished; see whether its drive is mounted")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("writing to {dir} is not allowed; change its permissions or choose another")
        }
        _ => format!("can't write to {dir}: {}; check the drive", reason(error)),
    }
}

/// What the system said, without its number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split_once(" (os error ").map_or(text.as_str(), |(text, _)| text);
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}
