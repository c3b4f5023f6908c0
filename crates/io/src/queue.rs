//! What engines have in common: requests that wait to be read, and requests that were read.
//!
//! [`Front`] is the side of the owner, who submits and takes completions. [`Shared`] is what it
//! shares with whatever reads: there pieces are taken, demand first, and handed back.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::job::{Job, Piece, Unread, lock};
use crate::range::{Moved, RangeError};
use crate::{Completion, Priority, QueueFull, ReadError, ReadRequest, ReadStats, Wait};

/// The owner's side of an engine.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) shared: Arc<Shared>,
    chunk_bytes: usize,
    queue_requests: usize,
    in_flight: usize,
    requests: u64,
    failed: u64,
    cancelled: u64,
    asked_bytes: u64,
    cancelled_bytes: u64,
}

/// What changed for the readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct News {
    /// Pieces that have come, or that may be read now and could not be before.
    pub(crate) pieces: usize,
    /// Whether a reader that found nothing to read would find something now. Said once.
    pub(crate) ends_starving: bool,
}

impl Front {
    pub(crate) fn new(chunk_bytes: usize, queue_requests: usize, read_ahead_max: usize) -> Front {
        Front {
            shared: Arc::new(Shared::new(read_ahead_max)),
            chunk_bytes,
            queue_requests,
            in_flight: 0,
            requests: 0,
            failed: 0,
            cancelled: 0,
            asked_bytes: 0,
            cancelled_bytes: 0,
        }
    }

    pub(crate) fn submit(&mut self, request: ReadRequest) -> Result<News, QueueFull> {
        if self.in_flight >= self.queue_requests {
            return Err(QueueFull(request));
        }
        self.in_flight += 1;
        self.requests += 1;
        self.asked_bytes = self.asked_bytes.saturating_add(request.len as u64);
        if let Err(error) = request.check() {
            self.shared.finish(Job::refuse(request, error));
            return Ok(News::default());
        }
        let unread = Job::begin(request, self.chunk_bytes);
        if let Some(completion) = unread.complete_if_empty() {
            self.shared.finish(Some(completion));
            return Ok(News::default());
        }
        Ok(self.shared.add(unread))
    }

    pub(crate) fn promote(&mut self, tag: u64) -> News {
        lock(&self.shared.queues).promote(tag)
    }

    pub(crate) fn cancel(&mut self, tag: u64) {
        let unread = lock(&self.shared.queues).remove(tag);
        for unread in unread {
            self.cancelled_bytes += unread.bytes() as u64;
            self.shared.finish(unread.cancel());
        }
    }

    pub(crate) fn complete(&mut self, out: &mut Vec<Completion>, wait: Wait) {
        if self.in_flight == 0 {
            return;
        }
        let mut finished = self.shared.wait_finished(wait);
        self.in_flight -= finished.len();
        for one in finished.iter() {
            match one.result {
                Ok(()) => {}
                Err(ReadError::Cancelled { .. }) => self.cancelled += 1,
                Err(_) => self.failed += 1,
            }
        }
        out.append(&mut finished);
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn stats(&self) -> ReadStats {
        let moved = &self.shared.moved;
        ReadStats {
            requests: self.requests,
            failed: self.failed,
            cancelled: self.cancelled,
            asked_bytes: self.asked_bytes,
            cancelled_bytes: self.cancelled_bytes,
            read_bytes: moved.read_bytes.load(Ordering::Relaxed),
            bounced_bytes: moved.bounced_bytes.load(Ordering::Relaxed),
            system_calls: moved.system_calls.load(Ordering::Relaxed),
            busy: lock(&self.shared.queues).busy.total(),
        }
    }
}

/// What the owner of an engine shares with its threads.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) queues: Mutex<Queues>,
    finished: Mutex<Vec<Completion>>,
    finished_changed: Condvar,
    moved: MovedTotal,
}

#[derive(Debug, Default)]
struct MovedTotal {
    read_bytes: AtomicU64,
    bounced_bytes: AtomicU64,
    system_calls: AtomicU64,
}

impl Shared {
    fn new(read_ahead_max: usize) -> Shared {
        Shared {
            queues: Mutex::new(Queues::new(read_ahead_max)),
            finished: Mutex::new(Vec::new()),
            finished_changed: Condvar::new(),
            moved: MovedTotal::default(),
        }
    }

    fn add(&self, unread: Unread) -> News {
        let refused = {
            let mut queues = lock(&self.queues);
            match queues.closed {
                None => return queues.add(unread),
                Some(why) => (unread, why),
            }
        };
        let (unread, why) = refused;
        self.finish(unread.fail(why.error()));
        News::default()
    }

    /// Ends reading: no more pieces are handed out, and what was queued is dropped unread.
    pub(crate) fn close(&self) {
        drop(lock(&self.queues).close(Closed::Dropped));
    }

    /// Ends reading because there is nobody left to read, while the owner is still there: what was
    /// queued, and what will be submitted, comes back with an error.
    #[cfg_attr(not(any(target_os = "linux", test)), allow(dead_code))]
    pub(crate) fn close_broken(&self, why: Closed) {
        let unread = lock(&self.queues).close(why);
        for unread in unread {
            self.finish(unread.fail(why.error()));
        }
    }

    /// Notes what a piece moved.
    pub(crate) fn count(&self, moved: &Moved) {
        self.moved.read_bytes.fetch_add(moved.read_bytes, Ordering::Relaxed);
        self.moved.bounced_bytes.fetch_add(moved.bounced_bytes, Ordering::Relaxed);
        self.moved.system_calls.fetch_add(moved.system_calls, Ordering::Relaxed);
    }

    /// Hands a request that is done, if it is, back to the owner.
    pub(crate) fn finish(&self, completion: Option<Completion>) {
        if let Some(completion) = completion {
            lock(&self.finished).push(completion);
            self.finished_changed.notify_one();
        }
    }

    fn wait_finished(&self, wait: Wait) -> MutexGuard<'_, Vec<Completion>> {
        let finished = lock(&self.finished);
        let empty = |finished: &mut Vec<Completion>| finished.is_empty();
        let condition = &self.finished_changed;
        match wait {
            Wait::None => finished,
            Wait::Forever => {
                condition.wait_while(finished, empty).unwrap_or_else(PoisonError::into_inner)
            }
            Wait::For(at_most) => {
                let waited = condition.wait_timeout_while(finished, at_most, empty);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

/// Requests that are not yet read to their end.
#[derive(Debug)]
pub(crate) struct Queues {
    demand: VecDeque<Unread>,
    read_ahead: VecDeque<Unread>,
    read_ahead_running: usize,
    busy: Busy,
    /// Pieces of read-ahead that are read at the same time at most.
    read_ahead_max: usize,
    /// A reader found nothing, and has not been told since that there is something.
    is_starving: bool,
    closed: Option<Closed>,
}

/// How long at least one piece was being read.
#[derive(Debug, Default)]
struct Busy {
    n_reading: usize,
    since: Option<Instant>,
    before: Duration,
}

impl Busy {
    fn begin(&mut self) {
        self.n_reading += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    fn end(&mut self) {
        self.n_reading -= 1;
        if self.n_reading == 0 {
            self.before = self.total();
            self.since = None;
        }
    }

    fn total(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Why an engine doesn't read any more.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Closed {
    /// Its owner drops it.
    Dropped,
    /// Its thread panicked.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    Panicked,
    /// The operating system refuses to go on, with this error number.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    Failed(i32),
}

impl Closed {
    pub(crate) fn error(self) -> RangeError {
        match self {
            Closed::Dropped | Closed::Panicked => RangeError::Panicked,
            Closed::Failed(number) => RangeError::Io(io::Error::from_raw_os_error(number)),
        }
    }
}

/// A piece to be read.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) piece: Piece,
    /// As it was when the piece was taken; to be given to [`Queues::ended`].
    pub(crate) priority: Priority,
}

impl Queues {
    fn new(read_ahead_max: usize) -> Queues {
        Queues {
            demand: VecDeque::new(),
            read_ahead: VecDeque::new(),
            read_ahead_running: 0,
            busy: Busy::default(),
            read_ahead_max,
            is_starving: false,
            closed: None,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Whether read-ahead waits that may be read now.
    pub(crate) fn has_read_ahead(&self) -> bool {
        self.read_ahead_running < self.read_ahead_max && !self.read_ahead.is_empty()
    }

    /// The next piece: the oldest demand first, then the oldest read-ahead, unless enough of it is
    /// being read.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        self.is_starving = false;
        if let Some(piece) = next_of(&mut self.demand) {
            self.busy.begin();
            return Some(Taken { piece, priority: Priority::Demand });
        }
        if self.has_read_ahead()
            && let Some(piece) = next_of(&mut self.read_ahead)
        {
            self.read_ahead_running += 1;
            self.busy.begin();
            return Some(Taken { piece, priority: Priority::ReadAhead });
        }
        self.is_starving = true;
        None
    }

    /// Notes that a piece, taken with this priority, is read.
    pub(crate) fn ended(&mut self, priority: Priority) {
        self.busy.end();
        if priority == Priority::ReadAhead {
            self.read_ahead_running -= 1;
        }
    }

    fn add(&mut self, unread: Unread) -> News {
        let pieces = unread.pieces();
        match unread.priority() {
            Priority::Demand => self.demand.push_back(unread),
            Priority::ReadAhead => self.read_ahead.push_back(unread),
        }
        self.news(pieces)
    }

    fn promote(&mut self, tag: u64) -> News {
        let mut pieces = 0;
        for unread in extract(&mut self.read_ahead, tag) {
            pieces += unread.pieces();
            unread.set_priority(Priority::Demand);
            self.demand.push_back(unread);
        }
        self.news(pieces)
    }

    /// Takes out what of the requests with this tag nobody has begun to read.
    fn remove(&mut self, tag: u64) -> Vec<Unread> {
        let mut unread = extract(&mut self.demand, tag);
        unread.append(&mut extract(&mut self.read_ahead, tag));
        unread
    }

    fn close(&mut self, why: Closed) -> Vec<Unread> {
        self.closed.get_or_insert(why);
        self.demand.drain(..).chain(self.read_ahead.drain(..)).collect()
    }

    fn news(&mut self, pieces: usize) -> News {
        let is_something = !self.demand.is_empty() || self.has_read_ahead();
        let ends_starving = self.is_starving && is_something;
        self.is_starving &= !ends_starving;
        News { pieces, ends_starving }
    }
}

/// The next piece of the first request, which leaves the queue with its last one.
fn next_of(queue: &mut VecDeque<Unread>) -> Option<Piece> {
    let first = queue.front_mut()?;
    let piece = first.next_piece();
    if first.pieces() == 0 {
        queue.pop_front();
    }
    piece
}

/// Takes the requests with this tag out of a queue; the others keep their order.
fn extract(queue: &mut VecDeque<Unread>, tag: u64) -> Vec<Unread> {
    if queue.iter().all(|unread| unread.tag() != tag) {
        return Vec::new();
    }
    let (taken, left): (VecDeque<_>, VecDeque<_>) =
        queue.drain(..).partition(|unread| unread.tag() == tag);
    *queue = left;
    taken.into()
}

#[cfg(test)]
mod tests {
    use Priority::{Demand, ReadAhead};

    use super::*;
    use crate::conformance::Sample;
    use crate::{Access, Buffer, File};

    fn request(file: &Arc<File>, priority: Priority, tag: u64, pieces: usize) -> Unread {
        let buffer = Buffer::aligned(pieces << 16, 1).expect("memory");
        let request = ReadRequest::new(Arc::clone(file), 0, buffer, tag);
        Job::begin(ReadRequest { priority, ..request }, 64 << 10)
    }

    fn file() -> Arc<File> {
        Arc::new(Sample::new(100).open(Access::Buffered))
    }

    fn take(queues: &mut Queues) -> Option<Priority> {
        queues.take().map(|taken| taken.priority)
    }

    #[test]
    fn demand_overtakes_queued_read_ahead() {
        let (file, mut queues) = (file(), Queues::new(2));
        for (tag, priority) in (0..).zip([ReadAhead, ReadAhead, ReadAhead, Demand]) {
            queues.add(request(&file, priority, tag, 1));
        }
        // The third read-ahead has to wait until one of the two is read.
        let taken = [(); 4].map(|()| take(&mut queues));
        assert_eq!(taken, [Some(Demand), Some(ReadAhead), Some(ReadAhead), None]);
        queues.ended(ReadAhead);
        assert_eq!([(); 2].map(|()| take(&mut queues)), [Some(ReadAhead), None]);
    }

    #[test]
    fn promoted_read_ahead_is_demand_from_its_next_piece_on() {
        let (file, mut queues) = (file(), Queues::new(1));
        queues.add(request(&file, ReadAhead, 1, 3));
        queues.add(request(&file, ReadAhead, 2, 1));
        assert_eq!([(); 2].map(|()| take(&mut queues)), [Some(ReadAhead), None]);
        assert_eq!(queues.promote(99), News::default());
        assert_eq!(queues.promote(1), News { pieces: 2, ends_starving: true });
        let taken = [(); 3].map(|()| take(&mut queues));
        assert_eq!(taken, [Some(Demand), Some(Demand), None], "2 is still read-ahead");
        assert_eq!(queues.promote(1), News::default(), "there is nothing left of it");
    }

    #[test]
    fn a_starving_reader_is_told_once_and_only_of_what_it_may_read() {
        let (file, mut queues) = (file(), Queues::new(1));
        let add = |queues: &mut Queues, priority| {
            queues.add(request(&file, priority, 0, 1)).ends_starving
        };
        assert!(!add(&mut queues, ReadAhead), "nobody has looked yet");
        assert_eq!([(); 2].map(|()| take(&mut queues)), [Some(ReadAhead), None]);
        assert!(!add(&mut queues, ReadAhead), "one is being read");
        assert!(add(&mut queues, Demand));
        assert!(!add(&mut queues, Demand), "it was told");
    }

    #[test]
    fn cancelling_removes_what_is_queued_under_a_tag_and_nothing_else() {
        let (file, mut queues) = (file(), Queues::new(1));
        for (tag, priority) in [(1, Demand), (2, Demand), (1, ReadAhead), (3, ReadAhead)] {
            queues.add(request(&file, priority, tag, 2));
        }
        assert_eq!(take(&mut queues), Some(Demand));
        let removed: Vec<_> = queues.remove(1).iter().map(Unread::pieces).collect();
        assert_eq!(removed, [1, 2]);
        assert_eq!(
            [(); 3].map(|()| take(&mut queues)),
            [Some(Demand), Some(Demand), Some(ReadAhead)]
        );
        assert!(queues.remove(1).is_empty());
    }

    #[test]
    fn without_readers_everything_comes_back_with_the_reason() {
        let file = file();
        let mut front = Front::new(64 << 10, 8, 1);
        let submit = |front: &mut Front, tag| {
            let buffer = Buffer::aligned(200_000, 1).expect("memory");
            front.submit(ReadRequest::new(Arc::clone(&file), 0, buffer, tag)).expect("room")
        };
        assert_eq!(submit(&mut front, 1).pieces, 4);
        assert_eq!(submit(&mut front, 2).pieces, 4);
        let running = lock(&front.shared.queues).take().expect("a piece");
        front.shared.close_broken(Closed::Failed(libc::EIO));
        assert_eq!(submit(&mut front, 3), News::default());
        let mut out = Vec::new();
        front.complete(&mut out, Wait::Forever);
        assert_eq!(out.iter().map(|done| done.tag).collect::<Vec<_>>(), [2, 3]);
        front.shared.finish(running.piece.finish(Ok(())));
        front.complete(&mut out, Wait::Forever);
        assert_eq!((out.len(), front.in_flight(), front.stats().failed), (3, 0, 3));
        assert!(out.iter().all(|done| matches!(&done.result,
            Err(ReadError::Io { source, .. }) if source.raw_os_error() == Some(libc::EIO))));
    }

    #[test]
    fn time_counts_while_anything_is_read() {
        let (file, mut queues) = (file(), Queues::new(1));
        assert_eq!(queues.busy.total(), Duration::ZERO);
        queues.add(request(&file, Demand, 0, 2));
        assert_eq!([(); 2].map(|()| take(&mut queues)), [Some(Demand), Some(Demand)]);
        queues.ended(Demand);
        assert!(queues.busy.since.is_some(), "one is still being read");
        queues.ended(Demand);
        let total = queues.busy.total();
        assert_eq!(queues.busy.total(), total, "nothing is being read");
    }
}
