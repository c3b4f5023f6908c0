//! A disk that fails on purpose.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypura_io as hio;

use crate::disk::{Disk, Listed, LockGuard};

/// What goes wrong with an operation of a [`FaultDisk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFault {
    /// It fails like a broken drive. A write leaves half of its bytes.
    Error,
    /// It fails like a full drive. A write leaves half of its bytes.
    Full,
    /// The machine stops: a write leaves half of its bytes, and nothing works from then on.
    Crash,
}

/// Wraps a [`Disk`] and lets single operations fail, by number; the first one is number 0.
pub struct FaultDisk<D> {
    inner: D,
    operations: AtomicU64,
    faults: Mutex<Vec<(u64, DiskFault)>>,
    crashed: AtomicBool,
    gate: Mutex<()>,
    is_synced: bool,
    /// Locks that somebody has.
    locks: Arc<AtomicU64>,
    unlocked_writes: AtomicU64,
}

/// A lock of the inner disk, and the count of them.
struct Counted {
    _lock: LockGuard,
    locks: Arc<AtomicU64>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.locks.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<D: Disk> FaultDisk<D> {
    /// Nothing fails yet.
    pub fn new(inner: D) -> FaultDisk<D> {
        FaultDisk {
            inner,
            operations: AtomicU64::new(0),
            faults: Mutex::new(Vec::new()),
            crashed: AtomicBool::new(false),
            gate: Mutex::new(()),
            is_synced: true,
            locks: Arc::default(),
            unlocked_writes: AtomicU64::new(0),
        }
    }

    /// Doesn't wait for the drive, which is what takes most of a test's time.
    pub fn unsynced(inner: D) -> FaultDisk<D> {
        FaultDisk { is_synced: false, ..FaultDisk::new(inner) }
    }

    /// Lets the operation fail that comes after `skip` others, counted from now.
    pub fn fail_after(&self, skip: u64, fault: DiskFault) {
        let at = self.operations().saturating_add(skip);
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push((at, fault));
    }

    /// Takes back all faults that have not come, and a crash.
    pub fn heal(&self) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.crashed.store(false, Ordering::SeqCst);
    }

    /// While the guard lives, a [`Disk::lock`] is begun, and counted, and doesn't return.
    pub fn hold_locks(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::SeqCst)
    }

    /// Files written or renamed while nobody had a lock of this disk.
    pub fn unlocked_writes(&self) -> u64 {
        self.unlocked_writes.load(Ordering::SeqCst)
    }

    fn note_write(&self) {
        if self.locks.load(Ordering::SeqCst) == 0 {
            self.unlocked_writes.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Counts an operation; the fault that it meets.
    fn fault(&self) -> Option<DiskFault> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = faults.iter().find(|(at, _)| *at == number).map(|&(_, fault)| fault);
        if fault == Some(DiskFault::Crash) {
            self.crashed.store(true, Ordering::SeqCst);
        }
        fault
    }

    fn check(&self) -> io::Result<()> {
        if self.crashed.load(Ordering::SeqCst) {
            return Err(error(DiskFault::Crash));
        }
        self.fault().map_or(Ok(()), |fault| Err(error(fault)))
    }
}

fn error(fault: DiskFault) -> io::Error {
    match fault {
        DiskFault::Error => io::Error::other("injected error"),
        DiskFault::Full => io::ErrorKind::StorageFull.into(),
        DiskFault::Crash => io::Error::other("injected crash"),
    }
}

impl<D: Disk> Disk for FaultDisk<D> {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.check()?;
        self.inner.create_dir(dir)
    }

    fn lock(&self, path: &Path, at_most: Duration) -> io::Result<Option<LockGuard>> {
        self.check()?;
        drop(self.hold_locks());
        let lock = self.inner.lock(path, at_most)?;
        Ok(lock.map(|lock| {
            self.locks.fetch_add(1, Ordering::SeqCst);
            Box::new(Counted { _lock: lock, locks: Arc::clone(&self.locks) }) as LockGuard
        }))
    }

    fn dir_modified_unix_ns(&self, dir: &Path) -> io::Result<u64> {
        self.check()?;
        self.inner.dir_modified_unix_ns(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        self.check()?;
        self.inner.list(dir)
    }

    fn read_start(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        self.check()?;
        self.inner.read_start(path, bytes_max)
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]], durable: bool) -> io::Result<()> {
        self.note_write();
        if self.crashed.load(Ordering::SeqCst) {
            return Err(error(DiskFault::Crash));
        }
        let Some(fault) = self.fault() else {
            return self.inner.write_new(path, parts, durable && self.is_synced);
        };
        let mut left = parts.iter().map(|part| part.len()).sum::<usize>() / 2;
        let torn: Vec<&[u8]> = parts
            .iter()
            .map(|part| {
                let len = part.len().min(left);
                left -= len;
                part.get(..len).unwrap_or_default()
            })
            .collect();
        self.inner.write_new(path, &torn, false)?;
        Err(error(fault))
    }

    fn touch(&self, path: &Path, modified_unix_ns: u64) -> io::Result<()> {
        self.check()?;
        self.inner.touch(path, modified_unix_ns)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note_write();
        self.check()?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        self.inner.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.check()?;
        if self.is_synced { self.inner.sync_dir(dir) } else { Ok(()) }
    }

    fn open(&self, path: &Path) -> Result<hio::File, hio::OpenError> {
        self.check().map_err(|source| hio::OpenError::Io { path: path.to_owned(), source })?;
        self.inner.open(path)
    }
}
