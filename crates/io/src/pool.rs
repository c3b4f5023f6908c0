//! Reads by a pool of threads: portable, and as deep as there are threads.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::job::{Job, Piece, lock};
use crate::range::{BOUNCE_BYTES_MIN, Moved, RangeError};
use crate::{
    AllocError, Buffer, Completion, DIRECT_ALIGN_MAX, Priority, QueueFull, ReadEngine, ReadRequest,
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
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
    in_flight: usize,
    requests: u64,
    failed: u64,
    asked_bytes: u64,
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
        self.threads.saturating_mul(self.bounce_bytes())
    }

    /// A piece, and the blocks that it shares with its neighbours.
    fn bounce_bytes(&self) -> usize {
        self.chunk_bytes.saturating_add(BOUNCE_BYTES_MIN).next_multiple_of(DIRECT_ALIGN_MAX)
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
        let shared = Arc::new(Shared::new(config.read_ahead_threads));
        let mut pool = PreadPool {
            config,
            shared,
            threads: Vec::with_capacity(config.threads),
            in_flight: 0,
            requests: 0,
            failed: 0,
            asked_bytes: 0,
        };
        // If one fails, dropping `pool` stops the others.
        for index in 0..config.threads {
            let mut bounce = Buffer::aligned(config.bounce_bytes(), DIRECT_ALIGN_MAX)?;
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new()
                .name(format!("hypura-read-{index}"))
                .spawn(move || shared.work(&mut bounce))
                .map_err(|source| PoolError::Spawn { source })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// What it was made with.
    pub fn config(&self) -> PoolConfig {
        self.config
    }
}

impl ReadEngine for PreadPool {
    fn submit(&mut self, request: ReadRequest) -> Result<(), QueueFull> {
        if self.in_flight >= self.config.queue_requests {
            return Err(QueueFull(request));
        }
        self.in_flight += 1;
        self.requests += 1;
        self.asked_bytes = self.asked_bytes.saturating_add(request.len as u64);
        if let Err(error) = request.check() {
            self.shared.finish(Job::without_pieces(request).complete(Err(error)));
            return Ok(());
        }
        let (job, pieces) = Job::split(request, self.config.chunk_bytes);
        if pieces.is_empty() {
            self.shared.finish(job.complete(Ok(())));
        } else {
            self.shared.queue(pieces);
        }
        Ok(())
    }

    fn complete(&mut self, out: &mut Vec<Completion>, wait: Wait) {
        if self.in_flight == 0 {
            return;
        }
        let mut finished = lock(&self.shared.finished);
        let empty = |finished: &mut Vec<Completion>| finished.is_empty();
        let condition = &self.shared.finished_changed;
        finished = match wait {
            Wait::None => finished,
            Wait::Forever => {
                condition.wait_while(finished, empty).unwrap_or_else(PoisonError::into_inner)
            }
            Wait::For(at_most) => {
                let waited = condition.wait_timeout_while(finished, at_most, empty);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        self.in_flight -= finished.len();
        self.failed += finished.iter().filter(|one| one.result.is_err()).count() as u64;
        out.append(&mut finished);
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn stats(&self) -> ReadStats {
        let moved = &self.shared.moved;
        ReadStats {
            requests: self.requests,
            failed: self.failed,
            asked_bytes: self.asked_bytes,
            read_bytes: moved.read_bytes.load(Ordering::Relaxed),
            bounced_bytes: moved.bounced_bytes.load(Ordering::Relaxed),
            system_calls: moved.system_calls.load(Ordering::Relaxed),
        }
    }
}

impl Drop for PreadPool {
    /// Waits for the reads that threads are busy with; drops those that are only queued.
    fn drop(&mut self) {
        {
            let mut queues = lock(&self.shared.queues);
            queues.closed = true;
            queues.demand.clear();
            queues.read_ahead.clear();
        }
        self.shared.queues_changed.notify_all();
        for thread in self.threads.drain(..) {
            // Panics are caught in the thread; if one slipped through, the thread has ended too.
            drop(thread.join());
        }
    }
}

/// What the threads and the owner of the pool share.
#[derive(Debug)]
struct Shared {
    queues: Mutex<Queues>,
    queues_changed: Condvar,
    finished: Mutex<Vec<Completion>>,
    finished_changed: Condvar,
    moved: MovedTotal,
}

#[derive(Debug)]
struct Queues {
    demand: VecDeque<Piece>,
    read_ahead: VecDeque<Piece>,
    read_ahead_running: usize,
    read_ahead_threads: usize,
    closed: bool,
}

#[derive(Debug, Default)]
struct MovedTotal {
    read_bytes: AtomicU64,
    bounced_bytes: AtomicU64,
    system_calls: AtomicU64,
}

impl Shared {
    fn new(read_ahead_threads: usize) -> Shared {
        Shared {
            queues: Mutex::new(Queues {
                demand: VecDeque::new(),
                read_ahead: VecDeque::new(),
                read_ahead_running: 0,
                read_ahead_threads,
                closed: false,
            }),
            queues_changed: Condvar::new(),
            finished: Mutex::new(Vec::new()),
            finished_changed: Condvar::new(),
            moved: MovedTotal::default(),
        }
    }

    fn queue(&self, pieces: Vec<Piece>) {
        let count = pieces.len();
        {
            let mut queues = lock(&self.queues);
            for piece in pieces {
                match piece.priority() {
                    Priority::Demand => queues.demand.push_back(piece),
                    Priority::ReadAhead => queues.read_ahead.push_back(piece),
                }
            }
        }
        for _ in 0..count {
            self.queues_changed.notify_one();
        }
    }

    /// What each thread does.
    fn work(&self, bounce: &mut Buffer) {
        while let Some(piece) = self.next_piece() {
            let mut moved = Moved::default();
            // Without this a panic would leave the request in flight for ever.
            let read = catch_unwind(AssertUnwindSafe(|| piece.read(bounce, &mut moved)))
                .unwrap_or(Err(RangeError::Panicked));
            self.moved.add(&moved);
            if piece.priority() == Priority::ReadAhead {
                let mut queues = lock(&self.queues);
                queues.read_ahead_running -= 1;
                // This thread may go on with a demand read, so another one has to look.
                if !queues.read_ahead.is_empty() {
                    self.queues_changed.notify_one();
                }
            }
            self.finish(piece.finish(read));
        }
    }

    /// Waits for a piece to read; `None` when the pool is being dropped.
    fn next_piece(&self) -> Option<Piece> {
        let mut queues = lock(&self.queues);
        loop {
            if queues.closed {
                return None;
            }
            if let Some(piece) = queues.take() {
                return Some(piece);
            }
            queues = self.queues_changed.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands a request that is done, if it is, back to the owner of the pool.
    fn finish(&self, completion: Option<Completion>) {
        if let Some(completion) = completion {
            lock(&self.finished).push(completion);
            self.finished_changed.notify_one();
        }
    }
}

impl Queues {
    fn take(&mut self) -> Option<Piece> {
        if let Some(piece) = self.demand.pop_front() {
            return Some(piece);
        }
        if self.read_ahead_running >= self.read_ahead_threads {
            return None;
        }
        let piece = self.read_ahead.pop_front()?;
        self.read_ahead_running += 1;
        Some(piece)
    }
}

impl MovedTotal {
    fn add(&self, moved: &Moved) {
        self.read_bytes.fetch_add(moved.read_bytes, Ordering::Relaxed);
        self.bounced_bytes.fetch_add(moved.bounced_bytes, Ordering::Relaxed);
        self.system_calls.fetch_add(moved.system_calls, Ordering::Relaxed);
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
    fn demand_overtakes_queued_read_ahead() {
        let mut queues = Queues {
            demand: VecDeque::new(),
            read_ahead: VecDeque::new(),
            read_ahead_running: 0,
            read_ahead_threads: 2,
            closed: false,
        };
        let file = Arc::new(Sample::new(100).open(Access::Buffered));
        let mut piece = |priority| {
            let buffer = Buffer::aligned(1, 1).expect("memory");
            let request = ReadRequest::new(Arc::clone(&file), 0, buffer, 0);
            let (_, pieces) = Job::split(ReadRequest { priority, ..request }, 1 << 20);
            let queue = match priority {
                Priority::Demand => &mut queues.demand,
                Priority::ReadAhead => &mut queues.read_ahead,
            };
            queue.extend(pieces);
        };
        let (demand, read_ahead) = (Priority::Demand, Priority::ReadAhead);
        [read_ahead, read_ahead, read_ahead, demand].into_iter().for_each(&mut piece);
        let mut take = || queues.take().map(|piece| piece.priority());
        // The third read-ahead has to wait until one of the two threads is done.
        let (demand, read_ahead) = (Some(demand), Some(read_ahead));
        assert_eq!([take(), take(), take(), take()], [demand, read_ahead, read_ahead, None]);
        queues.read_ahead_running -= 1;
        let mut take = || queues.take().map(|piece| piece.priority());
        assert_eq!([take(), take()], [read_ahead, None]);
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
