//! What the handles, the fetches and the writer of a store share.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hypura_io::ReadEngine;

use crate::BlockKey;
use crate::clock::{Clock, as_ns, unix_ns};
use crate::disk::Disk;
use crate::index::Index;
use crate::name::{BlockId, FileName};
use crate::stats::StoreStats;
use crate::store::StoreConfig;
use crate::wear::{WEAR_BYTES_MAX, Wear};

/// Room kept for the file that counts what was written, and for the one that replaces it.
pub(crate) const WEAR_RESERVED_BYTES: u64 = 2 * WEAR_BYTES_MAX as u64;

/// After a write failed, how long none is tried.
pub const RETRY_AFTER: Duration = Duration::from_secs(60);

/// A file whose time is younger than this, in nanoseconds, is not touched again.
const TOUCH_AFTER_NS: u64 = 60 * 1_000_000_000;

/// Engines kept for the next fetch at most.
const IDLE_ENGINES_MAX: usize = 1;

pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    /// Something for the writer to do.
    pub(crate) work: Condvar,
    /// The writer did something.
    pub(crate) done: Condvar,
    engines: Mutex<Vec<Box<dyn ReadEngine>>>,
}

pub(crate) struct Inner {
    pub(crate) index: Index,
    pub(crate) queue: VecDeque<Queued>,
    /// Of the block that is being written, until they count as written.
    pub(crate) writing_bytes: u64,
    /// Files whose time is to be set to the last use.
    pub(crate) touches: BTreeSet<BlockId>,
    pub(crate) wants_scan: bool,
    /// Files went without the writer knowing; it looks before it counts bytes again.
    pub(crate) is_stale: bool,
    /// The folder's time when it was scanned last, and when it was looked at last.
    pub(crate) scanned_unix_ns: u64,
    pub(crate) looked_unix_ns: u64,
    /// The writer has something in its hands.
    pub(crate) is_busy: bool,
    /// Nothing new is written after this.
    pub(crate) stop: Option<Instant>,
    pub(crate) is_stopped: bool,
    pub(crate) failure: Option<Failure>,
    pub(crate) wear: Wear,
    /// Bytes of files in the folder that are neither blocks nor the count of what was written.
    pub(crate) other_bytes: u64,
    pub(crate) stats: StoreStats,
}

/// A block that waits to be written.
pub(crate) struct Queued {
    pub(crate) id: BlockId,
    pub(crate) file_bytes: u64,
    pub(crate) replaces: Vec<BlockKey>,
}

pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) since_unix_ns: u64,
}

impl Shared {
    pub(crate) fn new(config: StoreConfig, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Shared {
        let inner = Inner {
            index: Index::new(config.hot_bytes_max),
            queue: VecDeque::new(),
            writing_bytes: 0,
            touches: BTreeSet::new(),
            wants_scan: false,
            is_stale: false,
            scanned_unix_ns: 0,
            looked_unix_ns: 0,
            is_busy: false,
            stop: None,
            is_stopped: false,
            failure: None,
            wear: Wear::default(),
            other_bytes: 0,
            stats: StoreStats::default(),
        };
        Shared {
            config,
            disk,
            clock,
            inner: Mutex::new(inner),
            work: Condvar::new(),
            done: Condvar::new(),
            engines: Mutex::new(Vec::new()),
        }
    }

    /// The state. It is never held while the drive is asked for anything.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder; none is a folder that has nothing.
    pub(crate) fn dir(&self) -> &Path {
        self.config.cold.as_ref().map_or(Path::new(""), |cold| &cold.dir)
    }

    pub(crate) fn path(&self, id: BlockId, from: u32) -> PathBuf {
        self.dir().join(FileName { id, from }.to_string())
    }

    /// Waits for work, as the writer.
    pub(crate) fn wait_for_work<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.done.notify_all();
        self.work.wait(inner).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell_stopped(&self) {
        let mut inner = self.lock();
        (inner.is_stopped, inner.is_busy) = (true, false);
        self.done.notify_all();
    }

    pub(crate) fn wait_until_idle(&self, at_most: Duration) -> bool {
        let is_busy = |inner: &mut Inner| !inner.is_idle();
        let waited = self.done.wait_timeout_while(self.lock(), at_most, is_busy);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_idle()
    }

    pub(crate) fn wait_for_room(&self, bytes: u64, at_most: Duration) -> bool {
        let most = self.config.pending_bytes_max;
        let has_room = |inner: &Inner| {
            let pending = inner.index.pending_bytes();
            pending == 0 || pending.saturating_add(bytes) <= most
        };
        let waited = self.done.wait_timeout_while(self.lock(), at_most, |inner| !has_room(inner));
        has_room(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(crate) fn wait_until_stopped(&self, deadline: Instant) -> bool {
        let at_most = deadline.saturating_duration_since(Instant::now());
        let waited = self.done.wait_timeout_while(self.lock(), at_most, |inner| !inner.is_stopped);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_stopped
    }

    /// Removes a file that is damaged, whoever holds it.
    pub(crate) fn remove_damaged(&self, id: BlockId, from: u32) {
        let path = self.path(id, from);
        tracing::debug!(path = %path.display(), "removing a damaged block of the cache");
        // While the index has it, nobody writes another one in its place.
        let removed = self.disk.remove(&path);
        let mut inner = self.lock();
        inner.stats.blocks_damaged += 1;
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                inner.index.set_unreadable(&id);
            }
            _ => inner.forget_file(&id),
        }
    }

    /// Notes the use of blocks, the last of which is the first to go.
    pub(crate) fn note_use(&self, inner: &mut Inner, ids: impl Iterator<Item = BlockId>) {
        let now_ns = unix_ns(&*self.clock);
        for id in ids {
            inner.index.touch(&id, now_ns);
            let file = inner.index.get(&id).and_then(|entry| entry.cold);
            if file.is_some_and(|file| now_ns.abs_diff(file.modified_unix_ns) > TOUCH_AFTER_NS) {
                inner.touches.insert(id);
            }
        }
        if !inner.touches.is_empty() {
            self.work.notify_one();
        }
    }

    pub(crate) fn take_engine(&self) -> Result<Box<dyn ReadEngine>, String> {
        let idle = self.engines.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| (self.config.reader)(), Ok)
    }

    /// Takes back an engine that has nothing in flight.
    pub(crate) fn keep_engine(&self, engine: Box<dyn ReadEngine>) {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if engines.len() < IDLE_ENGINES_MAX {
            engines.push(engine);
        }
    }
}

impl Inner {
    fn is_idle(&self) -> bool {
        self.is_stopped
            || (self.queue.is_empty()
                && self.touches.is_empty()
                && !self.wants_scan
                && !self.is_busy)
    }

    /// Whether the drive works, or may be tried again.
    pub(crate) fn may_write(&self, now_unix_ns: u64) -> bool {
        // A clock that was set back is no reason to wait.
        self.failure
            .as_ref()
            .is_none_or(|failure| now_unix_ns.abs_diff(failure.since_unix_ns) >= as_ns(RETRY_AFTER))
    }

    /// Bytes written today, being written, and those that wait to be.
    pub(crate) fn unwritten_bytes(&self, unix_time: Duration) -> u64 {
        let queued: u64 = self.queue.iter().map(|queued| queued.file_bytes).sum();
        self.wear.today_bytes(unix_time).saturating_add(queued + self.writing_bytes)
    }

    /// Drops the oldest blocks in the queue until there is room; false if the one being written
    /// takes too much of it.
    pub(crate) fn make_room(&mut self, bytes: u64, bytes_max: u64) -> bool {
        let memory_bytes = |queued: &Queued| {
            let block = self.index.get(&queued.id).and_then(|entry| entry.memory());
            block.map_or(0, |block| block.memory_bytes())
        };
        let queued_bytes: u64 = self.queue.iter().map(memory_bytes).sum();
        let stuck_bytes = self.index.pending_bytes().saturating_sub(queued_bytes);
        if stuck_bytes.saturating_add(bytes) > bytes_max {
            return false;
        }
        while self.index.pending_bytes().saturating_add(bytes) > bytes_max {
            let Some(oldest) = self.queue.pop_front() else { return false };
            self.index.remove_memory(&oldest.id);
            self.stats.blocks_dropped += 1;
        }
        true
    }

    /// Forgets a file that is not there any more.
    pub(crate) fn forget_file(&mut self, id: &BlockId) {
        self.index.remove_cold(id);
        self.is_stale = true;
    }

    /// Takes a block that was replaced out of memory, unless it is held or not yet written.
    pub(crate) fn remove_replaced(&mut self, id: &BlockId) {
        let is_pending = self.index.get(id).is_some_and(|entry| entry.is_pending());
        if !is_pending && !self.index.is_pinned(id) {
            self.index.remove_memory(id);
        }
    }
}
