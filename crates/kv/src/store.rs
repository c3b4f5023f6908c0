//! The store: blocks go in, and come out by the tokens that they are the state of.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypura_io::ReadEngine;

use crate::block::{PAYLOAD_BYTES_MAX, image_bytes};
use crate::clock::{Clock, unix_ns};
use crate::disk::Disk;
use crate::memory::MemBlock;
use crate::name::BlockId;
use crate::shared::{Queued, Shared, WEAR_RESERVED_BYTES};
use crate::stats::{Health, StoreStats, reason};
use crate::writer;
use crate::{Block, BlockKey};

/// Makes the engines that files are read with; more than one only while fetches overlap.
pub type ReaderFactory = Arc<dyn Fn() -> Result<Box<dyn ReadEngine>, String> + Send + Sync>;

/// Cold reads in flight during a fetch at most, whatever is configured.
pub const READ_DEPTH_MAX: usize = 256;

/// How long dropping a store waits for what is not yet written.
pub const DROP_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a store is made with.
#[derive(Clone)]
pub struct StoreConfig {
    /// The folder; without one there is memory only.
    pub cold: Option<ColdConfig>,
    /// Bytes of blocks kept in memory, beside those that wait to be written; 0 keeps none.
    pub hot_bytes_max: u64,
    /// Bytes of payloads that wait to be written at most.
    pub pending_bytes_max: u64,
    /// Blocks being read at once during a fetch; 1 to [`READ_DEPTH_MAX`].
    pub read_depth: usize,
    /// Makes engines to read with.
    pub reader: ReaderFactory,
}

/// The cold tier.
#[derive(Debug, Clone)]
pub struct ColdConfig {
    /// Its folder, which is made if there is none.
    pub dir: PathBuf,
    /// Bytes of everything in the folder at most.
    pub bytes_max: u64,
    /// Bytes written per day (UTC) at most, by all processes.
    pub writes_per_day_max: u64,
}

/// A store can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder can't be made or listed.
    #[error("can't use the folder {}: {}; choose another", dir.display(), reason(source))]
    Dir {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The writer can't be started.
    #[error("can't start a thread for writing: {source}")]
    Spawn {
        /// What the system said.
        source: std::io::Error,
    },
}

/// What became of a block that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It will be written; without a folder: it is kept in memory.
    Queued,
    /// It was there.
    Known,
    /// It is larger than what it would be kept in.
    TooLarge,
    /// It is not written: the day's budget is used up, the drive failed, or the queue is busy with
    /// another one. It may be kept in memory.
    Refused,
    /// It contradicts itself ([`Block::check`]); this is a bug of the caller.
    Malformed,
}

/// Whether a block can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No.
    Miss,
    /// Yes, but it is not yet durable.
    Pending,
    /// Yes.
    Hit,
}

/// Blocks in memory and in a folder. Clones are handles of one store.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    _handle: Arc<Handle>,
}

/// Ends the writer when the last [`Store`] goes.
struct Handle {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens a store. Of the folder only names and sizes are read.
    ///
    /// # Errors
    /// See [`OpenError`]. That the folder can't be written to is none: [`Store::health`] says it.
    pub fn open(
        config: StoreConfig,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<Store, OpenError> {
        let dir = config.cold.as_ref().map(|cold| cold.dir.clone());
        let shared = Arc::new(Shared::new(config, disk, clock));
        let mut thread = None;
        if let Some(dir) = dir {
            let writer = writer::Writer::open(Arc::clone(&shared))
                .map_err(|source| OpenError::Dir { dir, source })?;
            let spawned = std::thread::Builder::new()
                .name("hypura-kv-write".to_owned())
                .spawn(move || writer.run());
            thread = Some(spawned.map_err(|source| OpenError::Spawn { source })?);
        }
        let handle = Handle { shared: Arc::clone(&shared), writer: Mutex::new(thread) };
        Ok(Store { shared, _handle: Arc::new(handle) })
    }

    /// Takes a block: it can be found from now on, and is written in the background, after those
    /// that came before it. Once it is durable, the files of `replaces` are removed.
    ///
    /// Never waits for the drive. A block that is known replaces nothing. If there is no room in the queue, the oldest block in it is
    /// dropped.
    pub fn put(&self, block: Block, replaces: Vec<BlockKey>) -> Put {
        if block.payload.len() as u64 > PAYLOAD_BYTES_MAX {
            return Put::TooLarge;
        }
        if block.check().is_err() {
            return Put::Malformed;
        }
        let (id, file_bytes) = (BlockId::of(&block.key), block.image_bytes());
        let memory_bytes = block.payload.len() as u64;
        let now_ns = unix_ns(&*self.shared.clock);
        let mut inner = self.shared.lock();
        let Some(cold) = &self.shared.config.cold else {
            if inner.index.get(&id).is_some() {
                self.shared.note_use(&mut inner, [id].into_iter());
                return Put::Known;
            }
            if !inner.index.may_keep(memory_bytes) {
                return Put::TooLarge;
            }
            for key in &replaces {
                inner.remove_replaced(&BlockId::of(key));
            }
            let is_kept = inner.index.insert_hot(id, Arc::new(MemBlock::new(block)));
            inner.index.touch(&id, now_ns);
            return if is_kept { Put::Queued } else { Put::Refused };
        };
        if inner.index.get(&id).is_some_and(|entry| entry.is_pending() || entry.is_in_folder()) {
            self.shared.note_use(&mut inner, [id].into_iter());
            return Put::Known;
        }
        if file_bytes.saturating_add(WEAR_RESERVED_BYTES) > cold.bytes_max
            || memory_bytes > self.shared.config.pending_bytes_max
        {
            return Put::TooLarge;
        }
        let block = Arc::new(MemBlock::new(block));
        let may_write = inner.may_write(now_ns)
            && inner.unwritten_bytes(self.shared.clock.unix_time()).saturating_add(file_bytes)
                <= cold.writes_per_day_max
            && inner.make_room(memory_bytes, self.shared.config.pending_bytes_max);
        if may_write {
            inner.index.insert_pending(id, block);
            inner.queue.push_back(Queued { id, file_bytes, replaces });
        } else {
            inner.stats.blocks_refused += 1;
            inner.index.insert_hot(id, block);
        }
        inner.index.touch(&id, now_ns);
        drop(inner);
        if may_write {
            self.shared.work.notify_one();
            Put::Queued
        } else {
            Put::Refused
        }
    }

    /// Whether a block can be had. Looks at no file.
    pub fn state(&self, key: &BlockKey) -> State {
        let inner = self.shared.lock();
        match inner.index.get(&BlockId::of(key)) {
            Some(entry) if entry.is_pending() => State::Pending,
            Some(entry) if entry.tier().is_some() => State::Hit,
            _ => State::Miss,
        }
    }

    /// Waits until nothing is waiting to be written: all of it is durable, or given up. False if
    /// that takes longer than `at_most`.
    pub fn flush(&self, at_most: Duration) -> bool {
        self.shared.wait_until_idle(at_most)
    }

    /// Waits until a payload of so many bytes can wait to be written without another one being
    /// dropped for it. False if that takes longer than `at_most`; zero only looks.
    pub fn wait_for_room(&self, bytes: u64, at_most: Duration) -> bool {
        self.shared.wait_for_room(bytes, at_most)
    }

    /// Looks at the folder again, for what other processes did; waits as [`Store::flush`] does.
    pub fn refresh(&self, at_most: Duration) -> bool {
        if self.shared.config.cold.is_some() {
            self.shared.lock().wants_scan = true;
            self.shared.work.notify_one();
        }
        self.shared.wait_until_idle(at_most)
    }

    /// Bounds what is kept in memory, from now on.
    pub fn set_hot_bytes_max(&self, bytes: u64) {
        self.shared.lock().index.set_hot_bytes_max(bytes);
    }

    /// Counters, and what is held now.
    pub fn stats(&self) -> StoreStats {
        let inner = self.shared.lock();
        StoreStats {
            cold_bytes: inner.index.cold_bytes(),
            cold_files: inner.index.cold_files(),
            hot_bytes: inner.index.hot_bytes(),
            pending_bytes: inner.index.pending_bytes(),
            wear_today_bytes: inner.wear.today_bytes(self.shared.clock.unix_time()),
            wear_total_bytes: inner.wear.total_bytes,
            ..inner.stats
        }
    }

    /// Whether the cold tier writes.
    pub fn health(&self) -> Health {
        match &self.shared.lock().failure {
            None => Health::Healthy,
            Some(failure) => Health::Failed { reason: failure.reason.clone() },
        }
    }

    /// The largest payload that fits into a folder of `bytes_max` bytes.
    pub fn payload_bytes_max(bytes_max: u64) -> u64 {
        let page = image_bytes(0);
        let rest = bytes_max.saturating_sub(WEAR_RESERVED_BYTES + page);
        (rest - rest % page).min(PAYLOAD_BYTES_MAX)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_WAIT_MAX;
        let thread = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        self.shared.lock().stop = Some(deadline);
        self.shared.work.notify_one();
        if self.shared.wait_until_stopped(deadline) {
            let _ = thread.join(); // it has nothing left to do but end
        } else {
            tracing::warn!("the drive hangs; what was not yet written of the cache is lost");
        }
    }
}
