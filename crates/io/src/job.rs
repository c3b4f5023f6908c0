//! A request while an engine reads it, and the pieces that it is read in.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::range::{Destination, Moved, RangeError, read_range};
use crate::{Buffer, Completion, File, Priority, ReadError, ReadRequest, Slack};

/// A request that is being read.
#[derive(Debug)]
pub(crate) struct Job {
    tag: u64,
    file: Arc<File>,
    offset: u64,
    len: usize,
    buffer_offset: usize,
    slack: Slack,
    submitted: Instant,
    /// The first byte of the buffer that `state` holds.
    memory: Address,
    cut: Cut,
    pieces_left: AtomicUsize,
    state: Mutex<JobState>,
}

#[derive(Debug)]
struct JobState {
    /// Taken when the job is finished.
    buffer: Option<Buffer>,
    priority: Priority,
    /// The failed piece that is first in the file: its place in the request, and its error.
    error: Option<(usize, RangeError)>,
    /// Whether pieces were dropped because somebody asked for it.
    is_cancelled: bool,
}

/// The memory of a job's buffer, seen from its pieces.
#[derive(Debug, Clone, Copy)]
struct Address(*mut u8);

// SAFETY: the address is used only by the pieces of the job whose buffer it belongs to. The buffer
// stays in the job until all pieces are done, and the pieces write to disjoint parts of it.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

/// The part of a request that nobody has begun to read.
#[derive(Debug)]
pub(crate) struct Unread {
    job: Arc<Job>,
    /// Where it begins in the request, in bytes; it goes on to the end.
    at: usize,
}

/// A part of a request that is read at one go.
#[derive(Debug)]
pub(crate) struct Piece {
    job: Arc<Job>,
    /// Where it begins in the request, in bytes.
    at: usize,
    len: usize,
}

/// Where a request is cut: into about equal pieces of at most a chunk, at multiples of the
/// alignment in the file, so that only the ends of the request are unaligned.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// From the start of the first block to the first byte of the request.
    head: usize,
    /// From the start of the first block to the last byte of the request.
    total: usize,
    /// Pieces end at multiples of this, counted from the start of the first block.
    step: usize,
}

impl Cut {
    fn of(request: &ReadRequest, chunk_bytes: usize) -> Cut {
        let block = request.file.alignment().offset;
        let head = usize::try_from(request.offset % block as u64).unwrap_or(0); // less than a block
        let total = head + request.len;
        let chunk_bytes = chunk_bytes / block * block; // at least a block, see CHUNK_BYTES_MIN
        let count = total.div_ceil(chunk_bytes).max(1);
        let step = total.div_ceil(count).next_multiple_of(block).max(1);
        Cut { head, total, step }
    }

    /// The length of the piece that begins at `at` in the request.
    fn len(&self, at: usize) -> usize {
        let begin = self.head + at;
        (begin / self.step + 1).saturating_mul(self.step).min(self.total) - begin
    }

    /// Pieces from `at` in the request to its end.
    fn pieces(&self, at: usize) -> usize {
        match self.head + at < self.total {
            true => self.total.div_ceil(self.step) - (self.head + at) / self.step,
            false => 0,
        }
    }
}

impl Job {
    /// Takes a request, which must have been checked, to be read in pieces of about a chunk.
    pub(crate) fn begin(request: ReadRequest, chunk_bytes: usize) -> Unread {
        let cut = Cut::of(&request, chunk_bytes);
        Unread { job: Arc::new(Job::new(request, cut)), at: 0 }
    }

    /// Gives a request back as it came.
    pub(crate) fn refuse(request: ReadRequest, error: ReadError) -> Option<Completion> {
        Job::new(request, Cut { head: 0, total: 0, step: 1 }).complete(Err(error))
    }

    fn new(mut request: ReadRequest, cut: Cut) -> Job {
        Job {
            tag: request.tag,
            offset: request.offset,
            len: request.len,
            buffer_offset: request.buffer_offset,
            slack: request.slack,
            submitted: Instant::now(),
            memory: Address(request.buffer.as_mut_ptr()),
            cut,
            pieces_left: AtomicUsize::new(cut.pieces(0)),
            state: Mutex::new(JobState {
                buffer: Some(request.buffer),
                priority: request.priority,
                error: None,
                is_cancelled: false,
            }),
            file: request.file,
        }
    }

    /// Notes that `count` pieces are done with; the whole request if they were the last ones.
    fn done_with(&self, count: usize) -> Option<Completion> {
        // AcqRel: whoever sees zero sees what all other pieces wrote.
        if self.pieces_left.fetch_sub(count, Ordering::AcqRel) != count {
            return None;
        }
        let (error, is_cancelled) = {
            let mut state = lock(&self.state);
            (state.error.take(), state.is_cancelled)
        };
        self.complete(match error {
            None if is_cancelled => Err(ReadError::Cancelled {
                path: self.file.path().to_owned(),
                offset: self.offset,
                len: self.len,
            }),
            None => Ok(()),
            Some((at, RangeError::Eof { got })) => {
                Err(RangeError::Eof { got: at + got }.at(&self.file, self.offset, self.len))
            }
            Some((_, error)) => Err(error.at(&self.file, self.offset, self.len)),
        })
    }

    /// Notes an error, unless a piece that is earlier in the file has failed too.
    fn failed(&self, at: usize, error: RangeError) {
        let mut state = lock(&self.state);
        if state.error.as_ref().is_none_or(|(first, _)| at < *first) {
            state.error = Some((at, error));
        }
    }

    /// Gives the buffer back with the result; `None` if that has happened before.
    fn complete(&self, result: Result<(), ReadError>) -> Option<Completion> {
        let mut state = lock(&self.state);
        Some(Completion {
            tag: self.tag,
            buffer: state.buffer.take()?,
            result,
            offset: self.offset,
            len: self.len,
            buffer_offset: self.buffer_offset,
            priority: state.priority,
            latency: self.submitted.elapsed(),
        })
    }
}

impl Unread {
    pub(crate) fn tag(&self) -> u64 {
        self.job.tag
    }

    pub(crate) fn priority(&self) -> Priority {
        lock(&self.job.state).priority
    }

    pub(crate) fn set_priority(&self, priority: Priority) {
        lock(&self.job.state).priority = priority;
    }

    /// Bytes that nobody has begun to read.
    pub(crate) fn bytes(&self) -> usize {
        self.job.len - self.at
    }

    /// Pieces that nobody has begun to read.
    pub(crate) fn pieces(&self) -> usize {
        self.job.cut.pieces(self.at)
    }

    /// The next piece in the order of the file; `None` after the last.
    pub(crate) fn next_piece(&mut self) -> Option<Piece> {
        if self.pieces() == 0 {
            return None;
        }
        let piece =
            Piece { job: Arc::clone(&self.job), at: self.at, len: self.job.cut.len(self.at) };
        self.at += piece.len;
        Some(piece)
    }

    /// The request, if it asked for no bytes.
    pub(crate) fn complete_if_empty(&self) -> Option<Completion> {
        if self.job.len == 0 { self.job.complete(Ok(())) } else { None }
    }

    /// Leaves the rest unread because nobody wants it any more; the whole request if none of its
    /// pieces is being read.
    pub(crate) fn cancel(self) -> Option<Completion> {
        lock(&self.job.state).is_cancelled = true;
        self.job.done_with(self.pieces())
    }

    /// Leaves the rest unread because of an error; the whole request if none of its pieces is
    /// being read.
    pub(crate) fn fail(self, error: RangeError) -> Option<Completion> {
        self.job.failed(self.at, error);
        self.job.done_with(self.pieces())
    }
}

impl Piece {
    pub(crate) fn file(&self) -> &File {
        &self.job.file
    }

    /// Where it begins in the file, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        self.job.offset + self.at as u64
    }

    /// Where its bytes go. They and the slack may be written to until [`Piece::finish`]: the
    /// request was checked to lie inside its buffer with its slack; the buffer stays in the job
    /// until its last piece is done; pieces don't overlap, nor does the slack at the ends of the
    /// request overlap any piece.
    pub(crate) fn destination(&self) -> Destination {
        let job = &self.job;
        // Only the ends of the request have slack; between pieces there is somebody else's data.
        let is_first = self.at == 0;
        let is_last = self.at + self.len == job.len;
        Destination {
            ptr: job.memory.0.wrapping_add(job.buffer_offset + self.at),
            len: self.len,
            slack: Slack {
                head: if is_first { job.slack.head } else { 0 },
                tail: if is_last { job.slack.tail } else { 0 },
            },
        }
    }

    /// Reads it on this thread.
    ///
    /// # Errors
    /// [`RangeError`], to be handed to [`Piece::finish`].
    pub(crate) fn read(&self, bounce: &mut Buffer, moved: &mut Moved) -> Result<(), RangeError> {
        // SAFETY: see `Piece::destination`.
        unsafe { read_range(self.file(), self.offset(), self.destination(), bounce, moved) }
    }

    /// Notes how the piece went; the whole request if it was the last piece of it.
    pub(crate) fn finish(self, read: Result<(), RangeError>) -> Option<Completion> {
        if let Err(error) = read {
            self.job.failed(self.at, error);
        }
        self.job.done_with(1)
    }
}

/// Locks, also after a panic elsewhere: no invariant spans code that may panic under a lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use crate::conformance::Sample;

    #[test]
    fn pieces_are_even_and_cut_at_blocks() {
        let sample = Sample::new(100);
        let check = |access, offset: u64, len: usize, chunk: usize| {
            let file = Arc::new(sample.open(access));
            let block = file.alignment().offset as u64;
            let buffer = Buffer::aligned(len, 1).expect("memory");
            let mut unread = Job::begin(ReadRequest::new(file, offset, buffer, 0), chunk);
            let announced = unread.pieces();
            assert_eq!(unread.job.pieces_left.load(Ordering::Relaxed), announced);
            let pieces: Vec<_> = std::iter::from_fn(|| unread.next_piece()).collect();
            assert_eq!((pieces.len(), unread.bytes()), (announced, 0));
            let mut at = 0;
            for (index, piece) in pieces.iter().enumerate() {
                assert!(piece.len > 0 && piece.len <= chunk);
                assert_eq!(piece.at, at);
                let is_cut_well = (offset + at as u64).is_multiple_of(block);
                assert!(index == 0 || is_cut_well, "cut at {at}, block {block}");
                at += piece.len;
            }
            assert_eq!(at, len);
            pieces.len()
        };
        for access in [Access::Direct, Access::Buffered] {
            assert_eq!(check(access, 0, 0, 1 << 20), 0);
            assert_eq!(check(access, 5, 1, 1 << 20), 1);
            assert_eq!(check(access, 0, 1 << 20, 1 << 20), 1);
            assert_eq!(check(access, 8192, (1 << 20) + 4096, 1 << 20), 2);
            assert!((4..=5).contains(&check(access, 4095, (4 << 20) - 1, 1 << 20)));
            assert!((99..=101).contains(&check(access, 77, 6_500_000, 64 << 10)));
        }
    }

    #[test]
    fn the_failure_that_is_first_in_the_file_is_the_result() {
        let file = Arc::new(Sample::new(100).open(Access::Buffered));
        let check = |results: [(usize, Result<(), RangeError>); 3]| {
            let buffer = Buffer::aligned(15, 1).expect("memory");
            let request = ReadRequest::new(Arc::clone(&file), 50, buffer, 7);
            let job = Arc::new(Job::new(request, Cut { head: 0, total: 15, step: 5 }));
            let piece = |at| Piece { job: Arc::clone(&job), at, len: 5 };
            let mut done = results.map(|(at, result)| piece(at).finish(result));
            assert!(done[0].is_none() && done[1].is_none(), "not before the last");
            let done = done[2].take().expect("the last piece");
            assert_eq!((done.tag, done.buffer.len()), (7, 15));
            assert!(job.complete(Ok(())).is_none(), "only once");
            done.result
        };
        let eof = |got| Err(RangeError::Eof { got });
        assert!(check([(10, Ok(())), (0, Ok(())), (5, Ok(()))]).is_ok());
        let result = check([(10, eof(0)), (5, eof(2)), (0, Ok(()))]);
        let is_the_end = |result: &_| {
            matches!(result, Err(ReadError::UnexpectedEof { offset: 50, wanted: 15, got: 7, .. }))
        };
        assert!(is_the_end(&result), "{result:?}");
        let result = check([(5, eof(2)), (0, Ok(())), (10, Err(RangeError::Panicked))]);
        assert!(is_the_end(&result), "{result:?}");
        let result = check([(5, eof(2)), (0, Err(RangeError::Panicked)), (10, eof(0))]);
        assert!(matches!(result, Err(ReadError::Panicked { offset: 50, .. })), "{result:?}");
    }

    #[test]
    fn what_is_left_unread_ends_with_the_pieces_that_were_begun() {
        let file = Arc::new(Sample::new(300_000).open(Access::Buffered));
        let begin = || {
            let buffer = Buffer::aligned(200_000, 1).expect("memory");
            Job::begin(ReadRequest::new(Arc::clone(&file), 0, buffer, 7), 50_000)
        };
        let is_cancelled = |done: Option<Completion>| {
            let result = done.expect("the request").result;
            matches!(result, Err(ReadError::Cancelled { offset: 0, len: 200_000, .. }))
        };
        assert!(is_cancelled(begin().cancel()), "nothing begun: at once");

        let mut unread = begin();
        let (first, second) = (unread.next_piece().unwrap(), unread.next_piece().unwrap());
        assert_eq!((unread.pieces(), unread.bytes()), (2, 100_000));
        assert!(unread.cancel().is_none());
        assert!(second.finish(Ok(())).is_none());
        assert!(is_cancelled(first.finish(Ok(()))));

        // An error is news, that it was cancelled is not.
        let mut unread = begin();
        let first = unread.next_piece().unwrap();
        assert!(unread.cancel().is_none());
        let done = first.finish(Err(RangeError::Eof { got: 3 })).unwrap();
        assert!(matches!(done.result, Err(ReadError::UnexpectedEof { got: 3, .. })));
    }
}
