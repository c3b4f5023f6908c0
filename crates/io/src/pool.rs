//! Reads by a pool of threads: portable, and as deep as there are threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, PoisonError};
use std::thread;

use crate::job::lock;
use crate::queue::{Front, News, Shared, Taken};
use crate::range::{Moved, RangeError, bounce_bytes};
use crate::{
    AllocError, Buffer, Completion, DIRECT_ALIGN_MAX, QueueFull, ReadEngine, ReadRequest,
    ReadStats, Wait,
};

/// A [`ReadEngine`] of threads that call `preadv`.
///
/// A request larger than a chunk is split into pieces that several threads read at once; it is
/// complete when all of them are there. Each thread has a bounce buffer for what can't land in
/// place.
#[derive(Debug)]
pub struct PreadPool {
    config: PoolConfig,
    front: Front,
    /// Told of pieces that have come, and of the end.
    news: Arc<Condvar>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// How a [`PreadPool`] is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Reads that the drive sees at once; 1 to [`PoolConfig::THREADS_MAX`].
    pub threads: usize,
    /// How many of the threads may be busy with read-ahead at the same time, so that a demand read
    /// always finds a free one soon; 1 to `threads`.
    pub read_ahead_threads: usize,
    /// Larger requests are split into pieces of about this size, in bytes;
    /// [`PoolConfig::CHUNK_BYTES_MIN`] to [`PoolConfig::CHUNK_BYTES_MAX`].
    pub chunk_bytes: usize,
    /// Requests in flight at most; 1 to [`PoolConfig::QUEUE_REQUESTS_MAX`].
    pub queue_requests: usize,
}

impl PoolConfig {
    pub const THREADS_MAX: usize = 256;
    pub const CHUNK_BYTES_MIN: usize = 64 << 10;
    pub const CHUNK_BYTES_MAX: usize = 256 << 20;
    pub const QUEUE_REQUESTS_MAX: usize = 1 << 20;

    /// Memory that the pool takes for itself once every thread had to bounce a whole piece, in
    /// bytes.
    pub fn memory_bytes(&self) -> usize {
        self.threads.saturating_mul(bounce_bytes(self.chunk_bytes))
    }

    fn check(&self) -> Result<(), PoolError> {
        let in_range = |what, value, min, max| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(PoolError::BadConfig { what, value, min, max }),
        };
        in_range("threads", self.threads, 1, Self::THREADS_MAX)?;
        in_range("read_ahead_threads", self.read_ahead_threads, 1, self.threads)?;
        let (min, max) = (Self::CHUNK_BYTES_MIN, Self::CHUNK_BYTES_MAX);
        in_range("chunk_bytes", self.chunk_bytes, min, max)?;
        in_range("queue_requests", self.queue_requests, 1, Self::QUEUE_REQUESTS_MAX)
    }
}

impl Default for PoolConfig {
    /// Eight threads, which is what it takes to keep a drive on a PCIe bus busy; pieces of 1 MiB,
    /// above which drives get no faster; one thread kept free of read-ahead.
    fn default() -> PoolConfig {
        PoolConfig { threads: 8, read_ahead_threads: 7, chunk_bytes: 1 << 20, queue_requests: 4096 }
    }
}

/// A pool can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    #[error("a read pool with {what} = {value} is impossible; choose {min} to {max}")]
    BadConfig { what: &'static str, value: usize, min: usize, max: usize },
    #[error(transparent)]
    Alloc(#[from] AllocError),
    #[error("can't start a thread for reading: {source}")]
    Spawn { source: std::io::Error },
}

impl PreadPool {
    /// Starts the threads, named `hypura-read-0` and so on.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn new(config: PoolConfig) -> Result<PreadPool, PoolError> {
        config.check()?;
        let PoolConfig { chunk_bytes, queue_requests, read_ahead_threads, .. } = config;
        let mut pool = PreadPool {
            config,
            front: Front::new(chunk_bytes, queue_requests, read_ahead_threads),
            news: Arc::new(Condvar::new()),
            threads: Vec::with_capacity(config.threads),
        };
        // If one fails, dropping `pool` stops the others.
        for index in 0..config.threads {
            let mut bounce = Buffer::aligned(bounce_bytes(config.chunk_bytes), DIRECT_ALIGN_MAX)?;
            let (shared, news) = (Arc::clone(&pool.front.shared), Arc::clone(&pool.news));
            let thread = thread::Builder::new()
                .name(format!("hypura-read-{index}"))
                .spawn(move || work(&shared, &news, &mut bounce))
                .map_err(|source| PoolError::Spawn { source })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// What it was made with.
    pub fn config(&self) -> PoolConfig {
        self.config
    }

    fn tell(&self, news: News) {
        for _ in 0..news.pieces.min(self.config.threads) {
            self.news.notify_one();
        }
    }
}

impl ReadEngine for PreadPool {
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
        "pread"
    }
}

impl Drop for PreadPool {
    /// Waits for the reads that threads are busy with; drops those that are only queued.
    fn drop(&mut self) {
        self.front.shared.close();
        self.news.notify_all();
        for thread in self.threads.drain(..) {
            // Panics are caught in the thread; if one slipped through, the thread has ended too.
            drop(thread.join());
        }
    }
}

/// What each thread does.
fn work(shared: &Shared, news: &Condvar, bounce: &mut Buffer) {
    while let Some(Taken { piece, priority }) = next_piece(shared, news) {
        let mut moved = Moved::default();
        // Without this a panic would leave the request in flight for ever.
        let read = catch_unwind(AssertUnwindSafe(|| piece.read(bounce, &mut moved)))
            .unwrap_or(Err(RangeError::Panicked));
        shared.count(&moved);
        {
            let mut queues = lock(&shared.queues);
            queues.ended(priority);
            // This thread may go on with a demand read, so another one has to look.
            if queues.has_read_ahead() {
                news.notify_one();
            }
        }
        shared.finish(piece.finish(read));
    }
}

/// Waits for a piece to read; `None` when the pool is being dropped.
fn next_piece(shared: &Shared, news: &Condvar) -> Option<Taken> {
    let mut queues = lock(&shared.queues);
    loop {
        if queues.is_closed() {
            return None;
        }
        if let Some(taken) = queues.take() {
            return Some(taken);
        }
        queues = news.wait(queues).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Sample, run};
    use crate::{Access, Slack};

    fn pool(config: PoolConfig) -> PreadPool {
        PreadPool::new(config).expect("a pool")
    }

    fn small(threads: usize) -> PoolConfig {
        PoolConfig {
            threads,
            read_ahead_threads: threads.div_ceil(2),
            chunk_bytes: 64 << 10,
            queue_requests: 64,
        }
    }

    #[test]
    fn conforms() {
        for config in [PoolConfig::default(), small(1), small(3)] {
            run(|| Box::new(pool(config)));
        }
    }

    #[test]
    fn refuses_absurd_configs() {
        let fine = PoolConfig::default();
        for config in [
            PoolConfig { threads: 0, ..fine },
            PoolConfig { threads: 257, ..fine },
            PoolConfig { read_ahead_threads: 0, ..fine },
            PoolConfig { read_ahead_threads: 9, ..fine },
            PoolConfig { chunk_bytes: 0, ..fine },
            PoolConfig { chunk_bytes: 1 << 40, ..fine },
            PoolConfig { queue_requests: 0, ..fine },
        ] {
            assert!(matches!(PreadPool::new(config), Err(PoolError::BadConfig { .. })));
        }
        assert_eq!(pool(fine).config(), fine);
        assert_eq!(fine.memory_bytes(), 8 * (1 << 20 | 128 << 10));
    }

    #[test]
    fn slack_and_alignment_save_the_detour() {
        let sample = Sample::new(300_000);
        let check = |offset: u64, len: usize, place: usize, slack: Slack, bounced: u64| {
            let file = Arc::new(sample.open(Access::Direct));
            if !file.is_direct() {
                return; // this file system refuses direct reads, and then nothing ever bounces
            }
            let mut pool = pool(small(2));
            let buffer = Buffer::aligned(512 << 10, DIRECT_ALIGN_MAX).expect("memory");
            let request = ReadRequest {
                len,
                buffer_offset: place,
                slack,
                ..ReadRequest::new(Arc::clone(&file), offset, buffer, 0)
            };
            pool.submit(request).expect("room");
            let mut out = Vec::new();
            pool.complete(&mut out, Wait::Forever);
            let bytes = out.first().and_then(Completion::bytes).expect("a success");
            assert_eq!(bytes, sample.bytes(offset, len));
            assert!(file.is_direct(), "fell back: {:?}", file.direct_refused());
            assert_eq!(pool.stats().bounced_bytes, bounced, "offset {offset}, place {place}");
        };
        let wide = Slack { head: DIRECT_ALIGN_MAX, tail: DIRECT_ALIGN_MAX };
        let place = DIRECT_ALIGN_MAX;
        check(65536, 131_072, place, Slack::NONE, 0);
        // Unaligned at both ends: with slack in place, without it two part blocks are copied.
        check(65537, 131_072, place + 1, wide, 0);
        let block = sample.open(Access::Direct).alignment().offset;
        check(65537, 131_072, place + 1, Slack::NONE, block as u64);
        check(65537, 131_072, place + 1, Slack { head: 0, ..wide }, block as u64 - 1);
        // An address that no alignment suits: everything takes the detour.
        if sample.open(Access::Direct).alignment().memory > 1 {
            check(65536, 131_072, place + 1, wide, 131_072);
        }
    }
}
