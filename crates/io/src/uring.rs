//! Reads through io_uring: one thread, which mostly sleeps, keeps many reads in flight.

mod ring;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use crate::queue::{Front, News};
use crate::range::{BOUNCE_BYTES_MIN, bounce_bytes};
use crate::{
    AllocError, Completion, PoolConfig, QueueFull, ReadEngine, ReadRequest, ReadStats, Wait,
};
use ring::Ring;

/// A [`ReadEngine`] on Linux's io_uring.
///
/// A request larger than a chunk is split into pieces, which the drive works on at the same time;
/// it is complete when all of them are there. Pieces are given to the kernel demand first, and
/// never more of them than `depth`, so that what is submitted late can still go first.
///
/// The ring belongs to a thread of its own, which sleeps until the kernel or the owner has
/// something for it: reading goes on while the owner computes.
///
/// Files and buffers are not registered with the ring. Files gave nothing that could be measured.
/// Buffers saved three quarters of the time of a core, but would have to stay locked in memory;
/// [`prefer_huge_pages`](crate::prefer_huge_pages) saves as much.
#[derive(Debug)]
pub struct UringEngine {
    config: UringConfig,
    front: Front,
    /// Wakes the thread; a read of it is always waiting in the ring.
    wake: Arc<OwnedFd>,
    /// `None` once it is joined.
    thread: Option<thread::JoinHandle<()>>,
}

/// How a [`UringEngine`] is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UringConfig {
    /// Pieces that the kernel has at once; 1 to [`UringConfig::DEPTH_MAX`].
    pub depth: usize,
    /// How many of them may be read-ahead, so that a demand read finds the drive nearly free; 1 to
    /// `depth`. A drive needs a few reads at once to be as fast as it can.
    pub read_ahead_depth: usize,
    /// Larger requests are split into pieces of about this size, in bytes;
    /// [`PoolConfig::CHUNK_BYTES_MIN`] to [`PoolConfig::CHUNK_BYTES_MAX`].
    pub chunk_bytes: usize,
    /// Requests in flight at most; 1 to [`PoolConfig::QUEUE_REQUESTS_MAX`].
    pub queue_requests: usize,
}

impl UringConfig {
    pub const DEPTH_MAX: usize = 256;

    /// Whole pieces that can take a detour at the same time; more of them take it bit by bit.
    const WHOLE_BOUNCES_MAX: usize = 8;

    /// Memory that the engine takes for itself once it had to bounce as much as it can at the same
    /// time, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let ends = self.depth.saturating_mul(BOUNCE_BYTES_MIN);
        let wholes = self.whole_bounces().saturating_mul(bounce_bytes(self.chunk_bytes));
        ends.saturating_add(wholes)
    }

    fn whole_bounces(&self) -> usize {
        self.depth.min(Self::WHOLE_BOUNCES_MAX)
    }

    fn check(&self) -> Result<(), UringError> {
        let in_range = |what, value, min, max| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(UringError::BadConfig { what, value, min, max }),
        };
        in_range("depth", self.depth, 1, Self::DEPTH_MAX)?;
        in_range("read_ahead_depth", self.read_ahead_depth, 1, self.depth)?;
        let (min, max) = (PoolConfig::CHUNK_BYTES_MIN, PoolConfig::CHUNK_BYTES_MAX);
        in_range("chunk_bytes", self.chunk_bytes, min, max)?;
        in_range("queue_requests", self.queue_requests, 1, PoolConfig::QUEUE_REQUESTS_MAX)
    }
}

impl Default for UringConfig {
    /// Pieces of 1 MiB, sixteen of them: what keeps a drive busy for several milliseconds, in which
    /// the thread may have to wait for a core that computes. Four of read-ahead were as fast as
    /// eight, and two were not.
    fn default() -> UringConfig {
        UringConfig { depth: 16, read_ahead_depth: 4, chunk_bytes: 1 << 20, queue_requests: 4096 }
    }
}

/// A ring can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UringError {
    #[error("reading through io_uring with {what} = {value} is impossible; choose {min} to {max}")]
    BadConfig { what: &'static str, value: usize, min: usize, max: usize },
    /// The kernel is too old, or io_uring is forbidden here: by `kernel.io_uring_disabled`, by a
    /// filter of system calls as containers have it, or by a limit on locked memory.
    #[error("io_uring can't be used here ({source}); read with pread instead")]
    Unavailable { source: io::Error },
    #[error(transparent)]
    Alloc(#[from] AllocError),
    #[error("can't start a thread for reading: {source}")]
    Spawn { source: io::Error },
}

impl UringEngine {
    /// Makes a ring and starts its thread, named `hypura-uring`.
    ///
    /// # Errors
    /// See [`UringError`]. On [`UringError::Unavailable`] a [`PreadPool`](crate::PreadPool) does
    /// the same.
    pub fn new(config: UringConfig) -> Result<UringEngine, UringError> {
        config.check()?;
        let UringConfig { depth, read_ahead_depth, chunk_bytes, queue_requests } = config;
        let front = Front::new(chunk_bytes, queue_requests, read_ahead_depth);
        let wake = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| UringError::Unavailable { source: error.into() })?;
        let wake = Arc::new(wake);
        let (shared, thread_wake) = (Arc::clone(&front.shared), Arc::clone(&wake));
        let bounces = ring::Bounces::new(depth, config.whole_bounces(), bounce_bytes(chunk_bytes))?;
        let (made, is_made) = mpsc::sync_channel(1);
        #[cfg(test)]
        let longest = crate::sys::tests::LONGEST.get();
        let thread = thread::Builder::new()
            .name("hypura-uring".to_owned())
            .spawn(move || {
                #[cfg(test)]
                crate::sys::tests::LONGEST.set(longest);
                // Made here, because a ring is fastest if one thread alone ever uses it.
                let ring = Ring::new(depth, bounces, shared, thread_wake);
                match ring {
                    Ok(ring) if made.send(Ok(())).is_ok() => ring.run(),
                    Ok(_) => {}
                    Err(error) => drop(made.send(Err(error))),
                }
            })
            .map_err(|source| UringError::Spawn { source })?;
        // From here on, dropping the engine ends the thread.
        let engine = UringEngine { config, front, wake, thread: Some(thread) };
        match is_made.recv() {
            Ok(Ok(())) => Ok(engine),
            Ok(Err(source)) => Err(UringError::Unavailable { source }),
            Err(mpsc::RecvError) => {
                Err(UringError::Unavailable { source: io::Error::other("its thread panicked") })
            }
        }
    }

    /// What it was made with.
    pub fn config(&self) -> UringConfig {
        self.config
    }

    fn tell(&self, news: News) {
        // A busy thread looks at the queues by itself, after every read that ends.
        if news.ends_starving {
            wake(&self.wake);
        }
    }
}

/// Ends the thread's sleep.
fn wake(eventfd: &OwnedFd) {
    // The only failure of an eventfd that is open is that its count is full, and then the thread
    // is about to wake up anyway.
    if let Err(error) = rustix::io::write(eventfd, &1u64.to_ne_bytes()) {
        tracing::warn!("can't wake the thread that reads: {error}");
    }
}

impl ReadEngine for UringEngine {
    fn submit(&mut self, request: ReadRequest) -> Result<(), QueueFull> {
        let news = self.front.submit(request)?;
        self.tell(news);
        Ok(())
    }

    fn promote(&mut self, tag: u64) {
        let news = self.front.promote(tag);
        self.tell(news);
    }

    fn cancel(&mut self, tag: u64) {
        self.front.cancel(tag);
    }

    fn complete(&mut self, out: &mut Vec<Completion>, wait: Wait) {
        self.front.complete(out, wait);
    }

    fn in_flight(&self) -> usize {
        self.front.in_flight()
    }

    fn stats(&self) -> ReadStats {
        self.front.stats()
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for UringEngine {
    /// Waits for the reads that the kernel has; drops those that are only queued.
    fn drop(&mut self) {
        self.front.shared.close();
        wake(&self.wake);
        if let Some(thread) = self.thread.take() {
            // Panics are caught in the thread; if one slipped through, the thread has ended too.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests;
