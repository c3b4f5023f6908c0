//! A request while a pool reads it, and the pieces that it is read in.

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
    priority: Priority,
    submitted: Instant,
    /// The first byte of the buffer that `state` holds.
    memory: Address,
    pieces_left: AtomicUsize,
    state: Mutex<JobState>,
}

#[derive(Debug)]
struct JobState {
    /// Taken when the job is finished.
    buffer: Option<Buffer>,
    /// The failed piece that is first in the file: its place in the request, and its error.
    error: Option<(usize, RangeError)>,
}

/// The memory of a job's buffer, seen from its pieces.
#[derive(Debug, Clone, Copy)]
struct Address(*mut u8);

// SAFETY: the address is used only by the pieces of the job whose buffer it belongs to. The buffer
// stays in the job until all pieces are done, and the pieces write to disjoint parts of it.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

/// A part of a request that one thread reads.
#[derive(Debug)]
pub(crate) struct Piece {
    job: Arc<Job>,
    /// Where it begins in the request, in bytes.
    at: usize,
    len: usize,
}

/// The lengths of the pieces of a request: about equal, at most a chunk, with their borders at
/// multiples of the alignment in the file, so that only the ends of the request are unaligned.
fn lengths(request: &ReadRequest, chunk_bytes: usize) -> Vec<usize> {
    let block = request.file.alignment().offset;
    let head = usize::try_from(request.offset % block as u64).unwrap_or(0); // less than a block
    let total = head + request.len;
    let chunk_bytes = chunk_bytes / block * block; // at least a block, see CHUNK_BYTES_MIN
    let count = total.div_ceil(chunk_bytes).max(1);
    let step = total.div_ceil(count).next_multiple_of(block);
    let mut lengths = Vec::with_capacity(count);
    let mut at = head;
    while at < total {
        let end = (at / step + 1).saturating_mul(step).min(total);
        lengths.push(end - at);
        at = end;
    }
    lengths
}

impl Job {
    /// A job that has nothing to read.
    pub(crate) fn without_pieces(request: ReadRequest) -> Arc<Job> {
        Arc::new(Job::new(request, 0))
    }

    /// The pieces of a request, which must have been checked: in the order of the file, none if it
    /// asks for no bytes.
    pub(crate) fn split(request: ReadRequest, chunk_bytes: usize) -> (Arc<Job>, Vec<Piece>) {
        let lengths = lengths(&request, chunk_bytes);
        let job = Arc::new(Job::new(request, lengths.len()));
        let mut at = 0;
        let piece = |len| {
            let piece = Piece { job: Arc::clone(&job), at, len };
            at += len;
            piece
        };
        let pieces = lengths.into_iter().map(piece).collect();
        (job, pieces)
    }

    fn new(mut request: ReadRequest, pieces: usize) -> Job {
        Job {
            tag: request.tag,
            offset: request.offset,
            len: request.len,
            buffer_offset: request.buffer_offset,
            slack: request.slack,
            priority: request.priority,
            submitted: Instant::now(),
            memory: Address(request.buffer.as_mut_ptr()),
            pieces_left: AtomicUsize::new(pieces),
            state: Mutex::new(JobState { buffer: Some(request.buffer), error: None }),
            file: request.file,
        }
    }

    /// Gives the buffer back with the result, once all pieces are done; `None` if that has
    /// happened before.
    pub(crate) fn complete(&self, result: Result<(), ReadError>) -> Option<Completion> {
        let buffer = lock(&self.state).buffer.take()?;
        Some(Completion {
            tag: self.tag,
            buffer,
            result,
            offset: self.offset,
            len: self.len,
            buffer_offset: self.buffer_offset,
            priority: self.priority,
            latency: self.submitted.elapsed(),
        })
    }
}

impl Piece {
    pub(crate) fn priority(&self) -> Priority {
        self.job.priority
    }

    /// # Errors
    /// [`RangeError`], to be handed to [`Piece::finish`].
    pub(crate) fn read(&self, bounce: &mut Buffer, moved: &mut Moved) -> Result<(), RangeError> {
        let job = &self.job;
        // Only the ends of the request have slack; between pieces there is somebody else's data.
        let is_first = self.at == 0;
        let is_last = self.at + self.len == job.len;
        let destination = Destination {
            ptr: job.memory.0.wrapping_add(job.buffer_offset + self.at),
            len: self.len,
            slack: Slack {
                head: if is_first { job.slack.head } else { 0 },
                tail: if is_last { job.slack.tail } else { 0 },
            },
        };
        // SAFETY: the request was checked to lie inside its buffer with its slack; the buffer
        // stays in the job until its last piece is done; pieces don't overlap, nor does the slack
        // at the ends of the request overlap any piece.
        unsafe { read_range(&job.file, job.offset + self.at as u64, destination, bounce, moved) }
    }

    /// Notes how the piece went; the whole request if it was the last piece of it.
    pub(crate) fn finish(self, read: Result<(), RangeError>) -> Option<Completion> {
        let job = &self.job;
        if let Err(error) = read {
            let mut state = lock(&job.state);
            let is_first = state.error.as_ref().is_none_or(|(at, _)| self.at < *at);
            if is_first {
                state.error = Some((self.at, error));
            }
        }
        // AcqRel: whoever sees zero sees what all other pieces wrote.
        if job.pieces_left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return None;
        }
        let error = lock(&job.state).error.take();
        job.complete(match error {
            None => Ok(()),
            Some((at, RangeError::Eof { got })) => {
                Err(RangeError::Eof { got: at + got }.at(&job.file, job.offset, job.len))
            }
            Some((_, error)) => Err(error.at(&job.file, job.offset, job.len)),
        })
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
            let (job, pieces) = Job::split(ReadRequest::new(file, offset, buffer, 0), chunk);
            assert_eq!(job.pieces_left.load(Ordering::Relaxed), pieces.len());
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
            let job = Arc::new(Job::new(request, 3));
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
}
