//! The thread that writes: the only one that adds files to the folder or makes room in it.
//!
//! It writes under the folder's lock, which it shares with the writers of other processes. A file
//! is written under a temporary name, brought to the drive, renamed, and the folder brought to the
//! drive: whatever stops this, the folder has the whole block or none of it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::block::{HEADER_BYTES, padding_bytes};
use crate::clock::unix_ns;
use crate::disk::LockGuard;
use crate::index::ColdFile;
use crate::memory::MemBlock;
use crate::name::{BlockId, FileName, LOCK_NAME, TEMPORARY_PREFIX, WEAR_NAME};
use crate::shared::{Failure, Inner, Queued, Shared, WEAR_RESERVED_BYTES};
use crate::stats::advice;
use crate::wear::{WEAR_BYTES_MAX, Wear};

/// How long a writer waits for those of other processes before it gives a block up.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Makes names of temporary files differ within this process.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// How we left the folder: unless it is still like that, somebody else wrote.
    stamp: Option<Stamp>,
}

/// Tells one state of a folder from another. The time alone is too coarse for that; each block
/// that anybody writes adds to the total first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified_unix_ns: u64,
    wear_total_bytes: u64,
}

enum Work {
    Write(Queued),
    Touch(BTreeSet<BlockId>),
    Scan,
}

enum Written {
    Durable,
    /// For a reason that is no failure of the drive.
    Refused(&'static str),
    Dropped(&'static str),
}

impl Writer {
    /// Makes the folder if there is none, and learns what is in it.
    pub(crate) fn open(shared: Arc<Shared>) -> io::Result<Writer> {
        let mut writer = Writer { shared, stamp: None };
        writer.shared.disk.create_dir(writer.shared.dir())?;
        match writer.lock() {
            Ok(Some(guard)) => {
                let opened = writer.synchronise().and_then(|()| writer.make_room(0));
                writer.remember();
                drop(guard);
                match opened {
                    Ok(_) => return Ok(writer),
                    Err(error) => writer.fail(&error),
                }
            }
            Ok(None) => {}
            Err(error) => writer.fail(&error), // perhaps it can be read all the same
        }
        writer.scan(false)?;
        Ok(writer)
    }

    /// Works until the store is dropped.
    pub(crate) fn run(mut self) {
        while let Some(work) = self.next() {
            match work {
                Work::Write(queued) => self.write(queued),
                Work::Touch(ids) => ids.into_iter().for_each(|id| self.touch(id)),
                Work::Scan => {
                    if let Err(error) = self.scan(false) {
                        tracing::debug!("can't list the cache's folder: {error}");
                    }
                }
            }
        }
        self.shared.tell_stopped();
    }

    fn next(&self) -> Option<Work> {
        let mut inner = self.shared.lock();
        loop {
            inner.is_busy = true;
            if inner.stop.is_some_and(|deadline| deadline <= Instant::now()) {
                give_up_queue(&mut inner);
                return None;
            }
            if let Some(queued) = inner.queue.pop_front() {
                inner.writing_bytes = queued.file_bytes;
                return Some(Work::Write(queued));
            }
            if !inner.touches.is_empty() {
                return Some(Work::Touch(std::mem::take(&mut inner.touches)));
            }
            if inner.stop.is_some() {
                return None;
            }
            if std::mem::take(&mut inner.wants_scan) {
                return Some(Work::Scan);
            }
            inner.is_busy = false;
            inner = self.shared.wait_for_work(inner);
        }
    }

    fn write(&mut self, queued: Queued) {
        self.write_or_give_up(queued);
        self.shared.lock().writing_bytes = 0;
        self.shared.done.notify_all();
    }

    fn write_or_give_up(&mut self, queued: Queued) {
        let block = {
            let inner = self.shared.lock();
            let entry = inner.index.get(&queued.id).filter(|entry| entry.is_pending());
            entry.and_then(|entry| entry.memory().cloned())
        };
        let Some(block) = block else { return };
        match self.try_write(&queued, &block) {
            Ok(Written::Durable) => self.succeed(),
            Ok(Written::Refused(why)) => {
                tracing::debug!("a block of the cache is not written: {why}");
                let mut inner = self.shared.lock();
                inner.stats.blocks_refused += 1;
                inner.index.settle(&queued.id);
            }
            Ok(Written::Dropped(why)) => {
                tracing::debug!("a block of the cache is not written: {why}");
                let mut inner = self.shared.lock();
                inner.stats.blocks_dropped += 1;
                inner.index.settle(&queued.id);
            }
            Err(error) => {
                self.stamp = None;
                {
                    let mut inner = self.shared.lock();
                    if inner.index.get(&queued.id).is_some_and(|entry| entry.is_pending()) {
                        inner.stats.blocks_dropped += 1;
                        inner.index.settle(&queued.id);
                    }
                }
                self.fail(&error);
            }
        }
    }

    fn try_write(&mut self, queued: &Queued, block: &Arc<MemBlock>) -> io::Result<Written> {
        if self.shared.lock().failure.is_some() {
            self.shared.disk.create_dir(self.shared.dir())?; // it may be what was missing
        }
        let header = block.encode_header();
        let Some(guard) = self.lock()? else {
            return Ok(Written::Dropped("another process holds the folder"));
        };
        self.synchronise()?;
        let written = self.write_locked(queued, block, &header)?;
        if matches!(written, Written::Durable) {
            self.remove_replaced(queued)?;
        }
        self.remember();
        drop(guard);
        Ok(written)
    }

    fn write_locked(
        &mut self,
        queued: &Queued,
        block: &Arc<MemBlock>,
        header: &[u8],
    ) -> io::Result<Written> {
        let Queued { id, file_bytes, .. } = *queued;
        let path = self.shared.path(id, block.from);
        let known = self.shared.lock().index.get(&id).and_then(|entry| entry.cold);
        if known.is_some_and(|file| file.is_readable) {
            self.shared.lock().index.settle(&id); // another process was faster
            return Ok(Written::Durable);
        }
        if known.is_some() {
            self.remove(id, block.from)?;
        }
        let now = self.shared.clock.unix_time();
        let wear = self.shared.lock().wear;
        let budget = self.shared.config.cold.as_ref().map_or(0, |cold| cold.writes_per_day_max);
        if wear.today_bytes(now).saturating_add(file_bytes) > budget {
            return Ok(Written::Refused("the day's budget is used up"));
        }
        if !self.make_room(file_bytes)? {
            return Ok(Written::Refused("nothing else can be removed"));
        }
        // First, so that a crash doesn't write for free.
        self.write_wear(wear.plus(file_bytes, now))?;
        let zeros = [0; HEADER_BYTES];
        let payload = block.payload();
        let padding = zeros.get(..padding_bytes(payload.len())).unwrap_or_default();
        let modified_unix_ns = unix_ns(&*self.shared.clock);
        self.write_file(&path, &[header, payload, padding], Some(modified_unix_ns))?;
        let file = ColdFile { bytes: file_bytes, modified_unix_ns, is_readable: true };
        let mut inner = self.shared.lock();
        inner.index.set_cold(id, block.from, file);
        inner.index.settle(&id);
        inner.stats.blocks_written += 1;
        inner.stats.bytes_written += file_bytes;
        Ok(Written::Durable)
    }

    /// Writes a file under another name and renames it. With a time it is durable.
    fn write_file(
        &self,
        path: &Path,
        parts: &[&[u8]],
        modified_unix_ns: Option<u64>,
    ) -> io::Result<()> {
        let disk = &*self.shared.disk;
        let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMPORARY_PREFIX}{}-{number}", process::id());
        let temporary = self.shared.dir().join(name);
        let written =
            disk.write_new(&temporary, parts, modified_unix_ns.is_some()).and_then(|()| {
                modified_unix_ns.map_or(Ok(()), |unix_ns| disk.touch(&temporary, unix_ns))?;
                disk.rename(&temporary, path)
            });
        if written.is_err() {
            let _ = disk.remove(&temporary); // whoever writes next removes it otherwise
        }
        written?;
        if modified_unix_ns.is_some() {
            disk.sync_dir(self.shared.dir()).inspect_err(|_| {
                let _ = disk.remove(path); // it counts only once it is durable
            })?;
        }
        Ok(())
    }

    fn write_wear(&self, wear: Wear) -> io::Result<()> {
        self.write_file(&self.shared.dir().join(WEAR_NAME), &[&wear.encode()], None)?;
        let mut inner = self.shared.lock();
        (inner.wear, inner.writing_bytes) = (wear, 0);
        Ok(())
    }

    fn remove_replaced(&self, queued: &Queued) -> io::Result<()> {
        for key in &queued.replaces {
            let id = BlockId::of(key);
            let from = {
                let mut inner = self.shared.lock();
                inner.remove_replaced(&id);
                let entry = inner.index.get(&id).filter(|entry| entry.cold.is_some());
                entry.map(|entry| entry.from).filter(|_| !inner.index.is_pinned(&id))
            };
            if let Some(from) = from {
                self.remove(id, from)?;
            }
        }
        Ok(())
    }

    /// Removes blocks, those used longest ago first, until so many bytes more fit. False if they
    /// don't fit even so.
    fn make_room(&self, bytes: u64) -> io::Result<bool> {
        let bytes_max = self.shared.config.cold.as_ref().map_or(0, |cold| cold.bytes_max);
        loop {
            let victim = {
                let inner = self.shared.lock();
                let used = inner.index.cold_bytes() + inner.other_bytes + WEAR_RESERVED_BYTES;
                if used.saturating_add(bytes) <= bytes_max {
                    return Ok(true);
                }
                let victim = inner.index.victim();
                victim.and_then(|id| Some((id, inner.index.get(&id)?.from)))
            };
            let Some((id, from)) = victim else { return Ok(false) };
            if self.remove(id, from)? {
                self.shared.lock().stats.blocks_evicted += 1;
            }
        }
    }

    /// Removes a block's file, unless somebody got hold of it; whether it did.
    fn remove(&self, id: BlockId, from: u32) -> io::Result<bool> {
        let file = {
            let mut inner = self.shared.lock();
            if inner.index.is_pinned(&id) {
                return Ok(false);
            }
            inner.index.remove_cold(&id)
        };
        match self.shared.disk.remove(&self.shared.path(id, from)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                if let Some(file) = file {
                    self.shared.lock().index.set_cold(id, from, file);
                }
                Err(error)
            }
            _ => Ok(true),
        }
    }

    fn touch(&self, id: BlockId) {
        let entry = {
            let inner = self.shared.lock();
            let entry = inner.index.get(&id).filter(|entry| entry.cold.is_some());
            entry.map(|entry| (entry.from, entry.used.unix_ns))
        };
        let Some((from, unix_ns)) = entry else { return };
        match self.shared.disk.touch(&self.shared.path(id, from), unix_ns) {
            Ok(()) => self.shared.lock().index.set_modified(&id, unix_ns),
            Err(error) => tracing::debug!("can't touch a block of the cache: {error}"),
        }
    }

    fn lock(&self) -> io::Result<Option<LockGuard>> {
        self.shared.disk.lock(&self.shared.dir().join(LOCK_NAME), LOCK_WAIT_MAX)
    }

    /// Learns what others did to the folder. Needs the lock.
    fn synchronise(&mut self) -> io::Result<()> {
        let modified_unix_ns = self.shared.disk.dir_modified_unix_ns(self.shared.dir())?;
        let path = self.shared.dir().join(WEAR_NAME);
        let wear = match self.shared.disk.read_start(&path, WEAR_BYTES_MAX + 1) {
            Ok(text) => Wear::decode(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let wear = wear.unwrap_or(self.shared.lock().wear);
        let stamp = Stamp { modified_unix_ns, wear_total_bytes: wear.total_bytes };
        let is_stale = std::mem::take(&mut self.shared.lock().is_stale);
        if is_stale || self.stamp != Some(stamp) {
            self.shared.lock().wear = wear;
            self.scan(true)?;
        }
        Ok(())
    }

    /// Notes how the folder is left. Needs the lock.
    fn remember(&mut self) {
        let modified = self.shared.disk.dir_modified_unix_ns(self.shared.dir()).ok();
        let mut inner = self.shared.lock();
        self.stamp = modified.map(|modified_unix_ns| {
            inner.scanned_unix_ns = modified_unix_ns;
            Stamp { modified_unix_ns, wear_total_bytes: inner.wear.total_bytes }
        });
    }

    /// Lists the folder. With the lock, temporary files are nobody's: they are removed.
    fn scan(&mut self, is_locked: bool) -> io::Result<()> {
        self.stamp = None;
        let disk = &*self.shared.disk;
        let scanned_unix_ns = disk.dir_modified_unix_ns(self.shared.dir())?;
        let mut other_bytes = 0u64;
        let mut blocks = Vec::new();
        for listed in disk.list(self.shared.dir())? {
            let name = listed.name.to_str().unwrap_or_default();
            if let Some(name) = FileName::parse(name) {
                blocks.push((name, listed.bytes, listed.modified_unix_ns));
                continue;
            }
            let is_garbage = is_locked && name.starts_with(TEMPORARY_PREFIX);
            if is_garbage && disk.remove(&self.shared.dir().join(name)).is_ok() {
                continue;
            }
            if name != WEAR_NAME {
                other_bytes = other_bytes.saturating_add(listed.bytes);
            }
        }
        blocks.sort_by_key(|&(_, _, modified_unix_ns)| modified_unix_ns);
        let mut inner = self.shared.lock();
        inner.scanned_unix_ns = scanned_unix_ns;
        inner.other_bytes = other_bytes;
        let there: BTreeSet<BlockId> = blocks.iter().map(|(name, ..)| name.id).collect();
        let gone: Vec<BlockId> = inner.index.cold_ids().filter(|id| !there.contains(id)).collect();
        for id in gone {
            inner.index.remove_cold(&id);
        }
        for (FileName { id, from }, bytes, modified_unix_ns) in blocks {
            let known = inner.index.get(&id).and_then(|entry| entry.cold);
            let is_readable = known
                .is_none_or(|file| file.is_readable || file.modified_unix_ns != modified_unix_ns);
            inner.index.set_cold(id, from, ColdFile { bytes, modified_unix_ns, is_readable });
        }
        Ok(())
    }

    fn succeed(&self) {
        if let Some(failure) = self.shared.lock().failure.take() {
            tracing::info!("the cache is written again, after: {}", failure.reason);
        }
    }

    /// Stops writing for a while.
    fn fail(&self, error: &io::Error) {
        let reason = advice(self.shared.dir(), error);
        let since_unix_ns = unix_ns(&*self.shared.clock);
        let mut inner = self.shared.lock();
        inner.stats.write_errors += 1;
        give_up_queue(&mut inner);
        let failure = Failure { reason, since_unix_ns };
        if inner.failure.is_none() {
            tracing::warn!("the cache is not written for now: {}", failure.reason);
        }
        inner.failure = Some(failure);
    }
}

/// Nothing that waits will be written; it is kept as long as there is room.
fn give_up_queue(inner: &mut Inner) {
    while let Some(queued) = inner.queue.pop_front() {
        inner.stats.blocks_dropped += 1;
        inner.index.settle(&queued.id);
    }
}
