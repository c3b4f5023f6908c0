//! The trait that all read engines implement, and what goes in and comes out.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::{Buffer, File};

/// A bounded queue of reads, done in the background.
///
/// Requests go in with [`submit`](ReadEngine::submit) and come out, in any order, of
/// [`complete`](ReadEngine::complete). Each request comes back exactly once, with its buffer.
/// Dropping an engine waits until no read writes to memory any more; what had not begun is not
/// read, and its buffers are dropped.
pub trait ReadEngine: Send {
    /// Queues a read. Never waits for the drive.
    ///
    /// A request that makes no sense (bytes beyond its buffer) is accepted and comes back as
    /// [`ReadError::BadRequest`].
    ///
    /// # Errors
    /// [`QueueFull`] returns the request when as many are in flight as the engine is made for;
    /// call [`complete`](ReadEngine::complete) and try again.
    fn submit(&mut self, request: ReadRequest) -> Result<(), QueueFull>;

    /// Makes a demand of the read-ahead with this tag, as far as nobody has begun to read it. All
    /// such requests, if they share the tag; nothing happens if there is none.
    fn promote(&mut self, tag: u64);

    /// Leaves unread what nobody has begun to read of the request with this tag (of all of them,
    /// if they share the tag; nothing happens if there is none). It comes back once, like any
    /// other, as soon as what was begun has ended: as [`ReadError::Cancelled`], or as the success
    /// or error that it is if nothing of it was left to begin.
    fn cancel(&mut self, tag: u64);

    /// Appends to `out` what has finished. If nothing has, and something is in flight, waits as
    /// `wait` says.
    fn complete(&mut self, out: &mut Vec<Completion>, wait: Wait);

    /// Requests submitted and not yet handed out by [`complete`](ReadEngine::complete).
    fn in_flight(&self) -> usize;

    /// What was asked and moved since the engine was made.
    fn stats(&self) -> ReadStats;

    /// How it reads, in a word: `io_uring`, `pread`.
    fn name(&self) -> &'static str;
}

impl<E: ReadEngine + ?Sized> ReadEngine for Box<E> {
    fn submit(&mut self, request: ReadRequest) -> Result<(), QueueFull> {
        (**self).submit(request)
    }

    fn promote(&mut self, tag: u64) {
        (**self).promote(tag);
    }

    fn cancel(&mut self, tag: u64) {
        (**self).cancel(tag);
    }

    fn complete(&mut self, out: &mut Vec<Completion>, wait: Wait) {
        (**self).complete(out, wait);
    }

    fn in_flight(&self) -> usize {
        (**self).in_flight()
    }

    fn stats(&self) -> ReadStats {
        (**self).stats()
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }
}

/// Read `len` bytes at `offset` of `file` into `buffer`, beginning at `buffer_offset`.
#[derive(Debug)]
pub struct ReadRequest {
    pub file: Arc<File>,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes wanted.
    pub len: usize,
    pub buffer: Buffer,
    /// Where in the buffer the first byte goes.
    pub buffer_offset: usize,
    /// Bytes around the destination that the engine may overwrite.
    pub slack: Slack,
    pub priority: Priority,
    /// Handed back in the completion; means nothing to the engine.
    pub tag: u64,
}

impl ReadRequest {
    /// A demand read of the whole of `buffer`, without slack.
    pub fn new(file: Arc<File>, offset: u64, buffer: Buffer, tag: u64) -> ReadRequest {
        ReadRequest {
            file,
            offset,
            len: buffer.len(),
            buffer,
            buffer_offset: 0,
            slack: Slack::NONE,
            priority: Priority::Demand,
            tag,
        }
    }
}

/// Bytes before and after the destination, inside the buffer, that a read may overwrite.
///
/// Direct reads begin and end at multiples of a block. Where the blocks at both ends fit into the
/// slack they land in place; where they don't, they take a detour and are copied. What the slack
/// holds afterwards is not defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slack {
    /// Bytes before `buffer_offset`; at most `buffer_offset`.
    pub head: usize,
    /// Bytes after `buffer_offset + len`; at most what the buffer still has there.
    pub tail: usize,
}

impl Slack {
    /// Only the bytes that were asked for may be written.
    pub const NONE: Slack = Slack { head: 0, tail: 0 };
}

/// Who waits for a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// A computation waits for it: it overtakes all read-ahead that is still queued.
    #[default]
    Demand,
    /// It may be needed later.
    ReadAhead,
}

/// How long [`ReadEngine::complete`] waits when nothing has finished yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    None,
    /// Until at least one read has finished, or nothing is in flight.
    Forever,
    /// Like `Forever`, but at most this long.
    For(Duration),
}

/// A request that has come back.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u64,
    /// The request's buffer. After an error its destination and slack hold undefined bytes.
    pub buffer: Buffer,
    /// Whether all bytes that were asked for are in the buffer.
    pub result: Result<(), ReadError>,
    /// The request's offset in the file.
    pub offset: u64,
    /// The request's length in bytes.
    pub len: usize,
    /// The request's place in the buffer.
    pub buffer_offset: usize,
    /// The request's priority; a demand if it was [promoted](ReadEngine::promote).
    pub priority: Priority,
    /// Time from [`ReadEngine::submit`] to the last byte, queueing included.
    pub latency: Duration,
}

impl Completion {
    /// The bytes that were asked for; `None` if the read failed.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.result.as_ref().ok()?;
        self.buffer.as_slice().get(self.buffer_offset..)?.get(..self.len)
    }
}

/// The queue was full: here is the request back.
#[derive(Debug, thiserror::Error)]
#[error("the read queue is full; take completions before submitting more")]
pub struct QueueFull(pub ReadRequest);

/// A read that didn't deliver all its bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file ends before the range does: it shrank, or was never complete.
    #[error(
        "{} ends {got} bytes into a read of {wanted} bytes at offset {offset}; \
         it was truncated: fetch it again",
        path.display()
    )]
    UnexpectedEof { path: PathBuf, offset: u64, wanted: usize, got: usize },
    /// The operating system or the drive failed.
    #[error("can't read {len} bytes at offset {offset} of {}: {source}", path.display())]
    Io { path: PathBuf, offset: u64, len: usize, source: io::Error },
    /// The destination doesn't fit into the buffer, or the range doesn't fit into a file.
    #[error(
        "a read of {len} bytes at offset {offset} to place {buffer_offset} of a buffer of \
         {buffer_len} bytes is impossible; this is a bug: report it"
    )]
    BadRequest { offset: u64, len: usize, buffer_offset: usize, buffer_len: usize },
    /// A thread of the engine panicked.
    #[error("the reader of {} panicked at offset {offset}; this is a bug: report it", path.display())]
    Panicked { path: PathBuf, offset: u64 },
    /// Somebody [said](ReadEngine::cancel) that the bytes are not wanted any more, before all of
    /// them were read.
    #[error(
        "a read of {len} bytes at offset {offset} of {} was cancelled; submit it again if it is \
         wanted after all",
        path.display()
    )]
    Cancelled { path: PathBuf, offset: u64, len: usize },
    /// No memory for the detour of an unaligned read.
    #[error(transparent)]
    Alloc(#[from] crate::AllocError),
}

/// Counters of a [`ReadEngine`] since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadStats {
    /// Requests accepted.
    pub requests: u64,
    /// Requests that came back with an error, other than that they were cancelled.
    pub failed: u64,
    /// Requests that came back as [`ReadError::Cancelled`].
    pub cancelled: u64,
    /// Bytes that the requests asked for.
    pub asked_bytes: u64,
    /// Of these, bytes that were never read, because their request was cancelled before.
    pub cancelled_bytes: u64,
    /// Bytes that the system calls delivered, alignment at both ends included.
    pub read_bytes: u64,
    /// Bytes that were copied from a bounce buffer, because offset, length or address didn't suit
    /// a direct read.
    pub bounced_bytes: u64,
    /// Reads that the operating system was asked for: system calls, or entries of a ring.
    pub system_calls: u64,
    /// Time during which something was being read.
    pub busy: Duration,
}

impl ReadRequest {
    /// Whether destination and slack lie inside the buffer and the range inside what a file offset
    /// can name. Engines answer [`ReadError::BadRequest`] if not.
    pub(crate) fn check(&self) -> Result<(), ReadError> {
        let in_buffer = || {
            let end = self.buffer_offset.checked_add(self.len)?;
            let room = self.buffer.len().checked_sub(end)?;
            (self.slack.head <= self.buffer_offset && self.slack.tail <= room).then_some(())
        };
        if in_buffer().is_some() && crate::range::fits_a_file(self.offset, self.len) {
            return Ok(());
        }
        Err(ReadError::BadRequest {
            offset: self.offset,
            len: self.len,
            buffer_offset: self.buffer_offset,
            buffer_len: self.buffer.len(),
        })
    }
}
