//! Which bytes of a read go where: in place if they can, through a bounce buffer if they must.
//!
//! A direct read covers whole blocks. With `|` at multiples of the block size, a read of the bytes
//! marked `#` has to fetch the blocks around them:
//!
//! ```text
//! file      |....####|########|########|##......|
//!            head                          tail
//! ```
//!
//! Where head and tail fit into the request's slack, or there are none, everything lands in place
//! with one system call. Where they don't, the first or last block goes to the bounce buffer by
//! the same (vectored) call, and its part is copied. Only if the address in memory doesn't suit
//! the whole blocks in the middle, all of it goes through the bounce buffer.

use std::io;

use crate::sys::{Segment, Segments, read_at};
use crate::{Buffer, DIRECT_ALIGN_MAX, DirectAlign, File, ReadError, Slack};

/// Size of the detour for [`read_exact_at`], in bytes.
const EXACT_BOUNCE_BYTES: usize = 1 << 20;

/// Reads `out.len()` bytes at `offset`, on the calling thread, by the same rules as the engines.
///
/// For headers and the like; for many or large reads use a [`ReadEngine`](crate::ReadEngine).
///
/// # Errors
/// [`ReadError::UnexpectedEof`] if the file ends first, [`ReadError::Io`] if the read fails.
pub fn read_exact_at(file: &File, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
    if !fits_a_file(offset, out.len()) {
        return Err(ReadError::BadRequest {
            offset,
            len: out.len(),
            buffer_offset: 0,
            buffer_len: out.len(),
        });
    }
    let align = file.alignment();
    let mut bounce = match align {
        DirectAlign::BUFFERED => Buffer::aligned(0, 1)?,
        DirectAlign { offset, memory } => {
            let whole = (out.len().min(EXACT_BOUNCE_BYTES) + 2 * offset).next_multiple_of(offset);
            Buffer::aligned(whole, memory.max(offset))?
        }
    };
    let destination = Destination { ptr: out.as_mut_ptr(), len: out.len(), slack: Slack::NONE };
    // SAFETY: `out` is borrowed mutably for the whole call and no slack is claimed around it.
    let read = unsafe { read_range(file, offset, destination, &mut bounce, &mut Moved::default()) };
    read.map_err(|error| error.at(file, offset, out.len()))
}

/// Memory that a read writes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Destination {
    pub(crate) ptr: *mut u8,
    pub(crate) len: usize,
    pub(crate) slack: Slack,
}

/// What a read moved.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moved {
    pub(crate) read_bytes: u64,
    pub(crate) bounced_bytes: u64,
    pub(crate) system_calls: u64,
}

/// Why a range wasn't read, not yet knowing which request it belonged to.
#[derive(Debug)]
pub(crate) enum RangeError {
    /// The file ended after this many bytes of the range.
    Eof {
        got: usize,
    },
    Io(io::Error),
    Panicked,
}

impl RangeError {
    /// As the error of a read of `len` bytes at `offset`, in which the range was the first to fail.
    pub(crate) fn at(self, file: &File, offset: u64, len: usize) -> ReadError {
        let path = file.path().to_owned();
        match self {
            RangeError::Eof { got } => ReadError::UnexpectedEof { path, offset, wanted: len, got },
            RangeError::Io(source) => ReadError::Io { path, offset, len, source },
            RangeError::Panicked => ReadError::Panicked { path, offset },
        }
    }
}

/// Whether the range, rounded out to whole blocks, can be named by a file offset.
pub(crate) fn fits_a_file(offset: u64, len: usize) -> bool {
    u64::try_from(len)
        .ok()
        .and_then(|len| offset.checked_add(len)?.checked_add(DIRECT_ALIGN_MAX as u64))
        .is_some_and(|end| i64::try_from(end).is_ok())
}

/// The smallest bounce buffer that a [`RangeRead`] works with, in bytes, for any file.
pub(crate) const BOUNCE_BYTES_MIN: usize = 2 * DIRECT_ALIGN_MAX;

/// The size of a bounce buffer for a piece of any file and the blocks that it shares with its
/// neighbours, in bytes.
pub(crate) fn bounce_bytes(chunk_bytes: usize) -> usize {
    chunk_bytes.saturating_add(BOUNCE_BYTES_MIN).next_multiple_of(DIRECT_ALIGN_MAX)
}

/// Reads the range at `offset` into `destination`, falling back to buffered reads for good if the
/// file turns out to refuse direct ones. The range must satisfy [`fits_a_file`].
///
/// `bounce` must have two blocks of the file at least and be aligned to a block.
///
/// # Safety
/// The destination with its slack must be valid for writes, and nobody else may touch it during
/// the call.
///
/// # Errors
/// [`RangeError`]; the destination then holds undefined bytes.
pub(crate) unsafe fn read_range(
    file: &File,
    offset: u64,
    destination: Destination,
    bounce: &mut Buffer,
    moved: &mut Moved,
) -> Result<(), RangeError> {
    if destination.len == 0 {
        return Ok(());
    }
    let mut range = RangeRead::new(file.alignment(), offset, destination);
    range.use_bounce(bounce);
    loop {
        // SAFETY: the segments lie in the destination and its slack, or in `bounce`, which is
        // borrowed mutably.
        let got = unsafe { read_at(file.as_std(), range.next_offset(), range.next()) };
        // SAFETY: that was the read asked for, and it has ended.
        if unsafe { range.took(file, got, moved) }? {
            return Ok(());
        }
    }
}

/// A range while it is read: says which read is next and takes what that read gave. It does no
/// reading itself, so that threads and an asynchronous queue can share it.
#[derive(Debug)]
pub(crate) struct RangeRead {
    offset: u64,
    destination: Destination,
    align: DirectAlign,
    shape: Shape,
    /// Where what can't land in place goes.
    bounce: Segment,
    /// Where the window begins that is being read, from the start of the first block.
    at: usize,
    /// What the window consists of.
    window: Segments,
    /// Bytes of the window that have to arrive: fewer than it has, if the last block is not
    /// wanted to its end.
    needed: usize,
    /// Whole blocks of the window that are there, in bytes.
    done: usize,
}

/// How the blocks of a range lie in memory.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Bytes between the start of the first block and the first byte wanted.
    head: usize,
    /// Bytes between the last byte wanted and the end of the last block.
    tail: usize,
    /// Bytes of the destination that arrive in the bounce buffer's first block.
    head_copy: usize,
    /// Bytes of the destination that arrive in the bounce buffer's second block.
    tail_copy: usize,
    /// The whole blocks that land in place; none if everything has to be copied.
    middle: Option<Segment>,
}

impl Shape {
    fn of(align: DirectAlign, offset: u64, destination: Destination) -> Shape {
        let Destination { ptr, len, slack } = destination;
        let block = align.offset;
        let head = usize::try_from(offset % block as u64).unwrap_or(0); // less than a block
        let used = (head + len) % block;
        let tail = if used == 0 { 0 } else { block - used };
        let head_copy = if head <= slack.head { 0 } else { block - head };
        let tail_copy = if tail <= slack.tail { 0 } else { block - tail };
        let mut shape = Shape { head, tail, head_copy, tail_copy, middle: None };
        if head_copy + tail_copy < len {
            let before = if head_copy == 0 { head } else { 0 };
            let after = if tail_copy == 0 { tail } else { 0 };
            // Wrapping, as these are addresses to look at; all that is written lies in the slack.
            let middle = Segment {
                ptr: ptr.wrapping_add(head_copy).wrapping_sub(before),
                len: before + (len - head_copy - tail_copy) + after,
            };
            shape.middle = middle.ptr.addr().is_multiple_of(align.memory).then_some(middle);
        }
        shape
    }
}

impl RangeRead {
    /// Begins to read the range at `offset`, which satisfies [`fits_a_file`] and isn't empty.
    /// If it [needs](RangeRead::bounce_bytes) a bounce buffer, give it one before anything else.
    pub(crate) fn new(align: DirectAlign, offset: u64, destination: Destination) -> RangeRead {
        let mut range = RangeRead {
            offset,
            destination,
            align,
            shape: Shape::of(align, offset, destination),
            bounce: Segment { ptr: std::ptr::null_mut(), len: 0 },
            at: 0,
            window: Segments::default(),
            needed: 0,
            done: 0,
        };
        range.open_window();
        range
    }

    /// The size of the bounce buffer with which the range takes one read only; 0 if it needs none.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn bounce_bytes(&self) -> usize {
        let Shape { head, tail, head_copy, tail_copy, middle } = self.shape;
        match middle {
            Some(_) if head_copy + tail_copy == 0 => 0,
            Some(_) => 2 * self.align.offset,
            None => head + self.destination.len + tail,
        }
    }

    /// Gives it a bounce buffer of two blocks at least, aligned to a block, which belongs to the
    /// range until it is read.
    pub(crate) fn use_bounce(&mut self, bounce: &mut Buffer) {
        self.bounce = Segment { ptr: bounce.as_mut_ptr(), len: bounce.len() };
        self.open_window();
    }

    /// The memory that the next read has to fill, in this order.
    pub(crate) fn next(&self) -> Segments {
        self.window.after(self.done)
    }

    /// Where in the file the next read begins.
    pub(crate) fn next_offset(&self) -> u64 {
        self.offset - self.shape.head as u64 + (self.at + self.done) as u64
    }

    /// Takes the number of bytes that the [next](RangeRead::next) read gave, 0 at the end of the
    /// file, or its error. Whether the whole range is there now; if not, there is another read.
    ///
    /// # Safety
    /// The read is the one asked for, and nothing writes to destination, slack or bounce buffer
    /// any more.
    pub(crate) unsafe fn took(
        &mut self,
        file: &File,
        got: io::Result<usize>,
        moved: &mut Moved,
    ) -> Result<bool, RangeError> {
        let got = match got {
            Ok(got) => got,
            Err(error) => return self.failed(file, error),
        };
        moved.system_calls += 1;
        moved.read_bytes += got as u64;
        let reached = self.done + got;
        if got > 0 && reached < self.needed {
            let whole = reached / self.align.offset * self.align.offset;
            if whole > self.done {
                self.done = whole;
                return Ok(false);
            }
            // Less than a block: the end of the file, or a file system that answers direct reads
            // with odd lengths, which has to be read through the page cache.
            let size = file.size_now().map_err(RangeError::Io)?;
            if self.next_offset() + (got as u64) < size {
                return self.failed(file, io::Error::from_raw_os_error(libc::EINVAL));
            }
        }
        if reached < self.needed {
            return Err(RangeError::Eof {
                got: (self.at + reached).saturating_sub(self.shape.head),
            });
        }
        // SAFETY: the window has arrived, and passed on.
        Ok(unsafe { self.close_window(moved) })
    }

    /// Begins again with buffered reads if that may help.
    fn failed(&mut self, file: &File, error: io::Error) -> Result<bool, RangeError> {
        let is_refusal = error.raw_os_error() == Some(libc::EINVAL);
        if !is_refusal || self.align == DirectAlign::BUFFERED {
            return Err(RangeError::Io(error));
        }
        file.fall_back("the file system refused a direct read").map_err(RangeError::Io)?;
        *self = RangeRead::new(DirectAlign::BUFFERED, self.offset, self.destination);
        Ok(false)
    }

    /// Decides what is read next, at `at`: everything, whole blocks in place and at most two into
    /// the bounce buffer, or as much as fits into the bounce buffer.
    fn open_window(&mut self) {
        let Shape { head, tail, head_copy, tail_copy, middle } = self.shape;
        let (block, wanted) = (self.align.offset, head + self.destination.len);
        self.window = Segments::default();
        self.done = 0;
        match middle {
            Some(middle) => {
                if head_copy > 0 {
                    self.window.push(Segment { ptr: self.bounce.ptr, len: block });
                }
                self.window.push(middle);
                if tail_copy > 0 {
                    let ptr = self.bounce.ptr.wrapping_add(block);
                    self.window.push(Segment { ptr, len: block });
                }
                self.needed = wanted;
            }
            None => {
                let room = self.bounce.len / block * block;
                let len = room.min(wanted + tail - self.at);
                self.window.push(Segment { ptr: self.bounce.ptr, len });
                self.needed = len.min(wanted - self.at);
            }
        }
    }

    /// Copies what didn't land in place, and opens the next window; whether there was none left.
    ///
    /// # Safety
    /// The needed bytes of the window have arrived, and nothing writes to the memory any more.
    unsafe fn close_window(&mut self, moved: &mut Moved) -> bool {
        let Destination { ptr, len, .. } = self.destination;
        let Shape { head, tail, head_copy, tail_copy, middle } = self.shape;
        let bounce = self.bounce.ptr.cast_const();
        if middle.is_some() {
            let last = bounce.wrapping_add(self.align.offset);
            // SAFETY: both copies stay inside a block of the bounce buffer and inside the
            // destination, and the two memories don't overlap. Without a bounce buffer both
            // are empty.
            unsafe {
                copy(bounce.wrapping_add(head), ptr, head_copy);
                copy(last, ptr.wrapping_add(len - tail_copy), tail_copy);
            }
            moved.bounced_bytes += (head_copy + tail_copy) as u64;
            return true;
        }
        let skip = head.saturating_sub(self.at);
        let (to, count) = (self.at + skip - head, self.needed - skip);
        // SAFETY: `skip..needed` lies in the window, and its bytes belong at `to` of the
        // destination, which ends at `head + len` in this count; the memories are distinct.
        unsafe { copy(bounce.wrapping_add(skip), ptr.wrapping_add(to), count) }
        moved.bounced_bytes += count as u64;
        self.at += self.window.bytes();
        if self.at >= head + len + tail {
            return true;
        }
        self.open_window();
        false
    }
}

/// # Safety
/// `from..from + len` must be readable, `to..to + len` writable, and they must not overlap; if
/// `len` is 0, any address will do.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: as promised by the caller.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use crate::conformance::Sample;

    #[test]
    fn reads_exactly_what_is_asked_for() {
        let sample = Sample::new(3_000_001);
        for access in [Access::Direct, Access::Buffered] {
            let file = sample.open(access);
            let cases =
                [(0, 0), (0, 1), (4095, 2), (1, 2_500_000), (3_000_000, 1), (2_999_000, 1001)];
            for (offset, len) in cases {
                let mut out = vec![0; len];
                read_exact_at(&file, offset, &mut out).expect("a success");
                assert_eq!(out, sample.bytes(offset, len), "{offset} {len}");
            }
        }
    }

    #[test]
    fn the_end_of_the_file_is_an_error_that_says_where() {
        let sample = Sample::new(10_000);
        for access in [Access::Direct, Access::Buffered] {
            let file = sample.open(access);
            let check = |at: u64, len: usize, expected: usize| match read_exact_at(
                &file,
                at,
                &mut vec![0; len],
            ) {
                Err(ReadError::UnexpectedEof { path, offset, wanted, got }) => {
                    assert_eq!(path, file.path());
                    assert_eq!((offset, wanted, got), (at, len, expected));
                }
                other => panic!("{other:?}"),
            };
            check(0, 10_001, 10_000);
            check(9_999, 2, 1);
            check(9_000, 2_000_000, 1_000);
            check(10_000, 1, 0);
            check(1 << 40, 1, 0);
            let absurd = read_exact_at(&file, u64::MAX, &mut [0; 2]);
            assert!(matches!(absurd, Err(ReadError::BadRequest { .. })));
        }
    }

    #[test]
    fn a_refused_direct_read_falls_back_for_good_and_says_so() {
        let sample = Sample::new(100_000);
        let file = sample.open(Access::Direct);
        if !file.is_direct() {
            return; // nothing to refuse on this file system
        }
        // Claims that no alignment is needed, so that the kernel refuses.
        let file = file.with_alignment(DirectAlign { offset: 1, memory: 2 });
        let mut out = vec![0; 5_000];
        read_exact_at(&file, 77, &mut out).expect("a success");
        assert_eq!(out, sample.bytes(77, 5_000));
        assert!(!file.is_direct());
        assert_eq!(file.direct_refused(), Some("the file system refused a direct read"));
        assert_eq!(file.alignment(), DirectAlign::BUFFERED);
    }

    #[test]
    fn short_reads_go_on() {
        let sample = Sample::new(300_000);
        let check = |access, longest: usize, offset: u64, len: usize, is_still_direct: bool| {
            let file = sample.open(access);
            let was_direct = file.is_direct();
            let mut buffer = Buffer::aligned(len + 8192, 4096).expect("memory");
            let place = 4096 + usize::try_from(offset % 4096).expect("small");
            let out = buffer.as_mut_slice().get_mut(place..place + len).expect("room");
            crate::sys::tests::LONGEST.set(longest);
            let read = read_exact_at(&file, offset, out);
            crate::sys::tests::LONGEST.set(usize::MAX);
            read.expect("a success");
            assert!(out == sample.bytes(offset, len), "wrong bytes at {longest}");
            assert_eq!(file.is_direct(), was_direct && is_still_direct);
        };
        for (offset, len) in [(0, 100_000), (77, 100_000), (200_001, 99_999)] {
            check(Access::Direct, 4096, offset, len, true);
            check(Access::Direct, 3 * 4096, offset, len, true);
            // Odd lengths: what is beyond the last whole block is read again.
            check(Access::Direct, 5000, offset, len, true);
            // Less than a block at a time: no direct read gets anywhere.
            check(Access::Direct, 100, offset, len, false);
            check(Access::Buffered, 100, offset, len, false);
        }
    }
}
