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

use crate::sys::{SEGMENTS_MAX, Segment, read_at};
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

/// The smallest bounce buffer that [`read_range`] works with, in bytes, for any file.
pub(crate) const BOUNCE_BYTES_MIN: usize = 2 * DIRECT_ALIGN_MAX;

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
    loop {
        let align = file.alignment();
        let mut attempt = Attempt { file, align, offset, destination, moved };
        // SAFETY: the caller's promise is passed on.
        match unsafe { attempt.run(bounce) } {
            Err(RangeError::Io(error))
                if error.raw_os_error() == Some(libc::EINVAL) && align != DirectAlign::BUFFERED =>
            {
                file.fall_back("the file system refused a direct read").map_err(RangeError::Io)?;
            }
            other => return other,
        }
    }
}

/// One try at a range, at one alignment.
struct Attempt<'a> {
    file: &'a File,
    align: DirectAlign,
    offset: u64,
    destination: Destination,
    moved: &'a mut Moved,
}

/// A vectored read that puts whole blocks in place, and at most two into the bounce buffer.
struct InPlace {
    segments: [Segment; SEGMENTS_MAX],
    count: usize,
    /// Bytes of the destination that arrive in the bounce buffer's first block.
    head_copy: usize,
    /// Bytes of the destination that arrive in the bounce buffer's second block.
    tail_copy: usize,
}

impl Attempt<'_> {
    /// # Safety
    /// See [`read_range`].
    unsafe fn run(&mut self, bounce: &mut Buffer) -> Result<(), RangeError> {
        match self.in_place(bounce) {
            // SAFETY: passed on.
            Some(plan) => unsafe { self.read_in_place(&plan, bounce) },
            // SAFETY: passed on.
            None => unsafe { self.read_through(bounce) },
        }
    }

    /// Bytes between the start of the first block and the first byte wanted.
    fn head(&self) -> usize {
        let block = self.align.offset as u64;
        usize::try_from(self.offset % block).unwrap_or(0) // less than a block: always fits
    }

    /// Bytes between the last byte wanted and the end of the last block.
    fn tail(&self) -> usize {
        let used = (self.head() + self.destination.len) % self.align.offset;
        if used == 0 { 0 } else { self.align.offset - used }
    }

    /// Where the first block begins in the file.
    fn start(&self) -> u64 {
        self.offset - self.head() as u64
    }

    /// The vectored read, or `None` if no block can land in place.
    fn in_place(&self, bounce: &mut Buffer) -> Option<InPlace> {
        let Destination { ptr, len, slack } = self.destination;
        let (head, tail, block) = (self.head(), self.tail(), self.align.offset);
        // Bytes of the destination that don't land in place, at either end.
        let head_copy = if head <= slack.head { 0 } else { block - head };
        let tail_copy = if tail <= slack.tail { 0 } else { block - tail };
        if head_copy + tail_copy >= len {
            return None;
        }
        let (before, after) =
            (if head_copy == 0 { head } else { 0 }, if tail_copy == 0 { tail } else { 0 });
        // Wrapping, as these are addresses to look at; all that is written lies in the slack.
        let middle = Segment {
            ptr: ptr.wrapping_add(head_copy).wrapping_sub(before),
            len: before + (len - head_copy - tail_copy) + after,
        };
        if !middle.ptr.addr().is_multiple_of(self.align.memory) {
            return None;
        }
        let mut plan = InPlace { segments: [middle; SEGMENTS_MAX], count: 0, head_copy, tail_copy };
        let bounce = bounce.as_mut_ptr();
        if head_copy > 0 {
            plan.push(Segment { ptr: bounce, len: block });
        }
        plan.push(middle);
        if tail_copy > 0 {
            plan.push(Segment { ptr: bounce.wrapping_add(block), len: block });
        }
        Some(plan)
    }

    /// # Safety
    /// See [`read_range`].
    unsafe fn read_in_place(&mut self, plan: &InPlace, bounce: &Buffer) -> Result<(), RangeError> {
        let Destination { ptr, len, .. } = self.destination;
        let head = self.head();
        let segments = plan.segments.get(..plan.count).unwrap_or_default();
        // SAFETY: the middle lies in the destination and its slack, the others in `bounce`.
        let got = unsafe { self.fill(self.start(), segments, head + len) }?;
        if got < head + len {
            return Err(RangeError::Eof { got: got.saturating_sub(head) });
        }
        let block = self.align.offset;
        // SAFETY: both copies stay inside a block of `bounce` and inside the destination, and the
        // two memories don't overlap.
        unsafe {
            copy(bounce.as_ptr().wrapping_add(head), ptr, plan.head_copy);
            copy(
                bounce.as_ptr().wrapping_add(block),
                ptr.wrapping_add(len - plan.tail_copy),
                plan.tail_copy,
            );
        }
        self.moved.bounced_bytes += (plan.head_copy + plan.tail_copy) as u64;
        Ok(())
    }

    /// Reads window after window into the bounce buffer and copies out of it.
    ///
    /// # Safety
    /// See [`read_range`].
    unsafe fn read_through(&mut self, bounce: &mut Buffer) -> Result<(), RangeError> {
        let Destination { ptr, len, .. } = self.destination;
        let window_max = bounce.len() / self.align.offset * self.align.offset;
        assert!(window_max > 0, "a bounce buffer holds a block at least");
        let (head, end) = (self.head(), self.head() + len + self.tail());
        let mut at = 0; // from the start of the first block
        while at < end {
            let window = window_max.min(end - at);
            let needed = window.min(head + len - at);
            let segment = Segment { ptr: bounce.as_mut_ptr(), len: window };
            // SAFETY: `window` is no longer than `bounce`, which is borrowed mutably.
            let got = unsafe { self.fill(self.start() + at as u64, &[segment], needed) }?;
            if got < needed {
                return Err(RangeError::Eof { got: (at + got).saturating_sub(head) });
            }
            let skip = head.saturating_sub(at);
            let to = (at + skip) - head;
            // SAFETY: `skip..needed` lies in the window, and its bytes belong at `to` of the
            // destination, which ends at `head + len` in this count; the memories are distinct.
            unsafe { copy(bounce.as_ptr().wrapping_add(skip), ptr.wrapping_add(to), needed - skip) }
            self.moved.bounced_bytes += (needed - skip) as u64;
            at += window;
        }
        Ok(())
    }

    /// Reads into `segments` until `needed` bytes from `start` on are there; the bytes that are,
    /// which is fewer only if the file ends.
    ///
    /// # Safety
    /// The segments must be valid for writes, and nobody else may touch them during the call.
    unsafe fn fill(
        &mut self,
        start: u64,
        segments: &[Segment],
        needed: usize,
    ) -> Result<usize, RangeError> {
        let block = self.align.offset;
        let mut done = 0; // whole blocks
        loop {
            let (rest, count) = after(segments, done);
            let rest = rest.get(..count).unwrap_or_default();
            // SAFETY: `rest` is a part of `segments`.
            let read = unsafe { read_at(self.file.as_std(), start + done as u64, rest) };
            let got = read.map_err(RangeError::Io)?;
            self.moved.system_calls += 1;
            self.moved.read_bytes += got as u64;
            let reached = done + got;
            if got == 0 || reached >= needed {
                return Ok(reached);
            }
            let whole = reached / block * block;
            if whole == done {
                // Less than a block: the end of the file, or a file system that answers direct
                // reads with odd lengths, which has to be read through the page cache.
                let size = self.file.size_now().map_err(RangeError::Io)?;
                if start + reached as u64 >= size {
                    return Ok(reached);
                }
                return Err(RangeError::Io(io::Error::from_raw_os_error(libc::EINVAL)));
            }
            done = whole;
        }
    }
}

impl InPlace {
    fn push(&mut self, segment: Segment) {
        if let Some(place) = self.segments.get_mut(self.count) {
            *place = segment;
            self.count += 1;
        }
    }
}

/// `segments` without their first `done` bytes, and how many are left.
fn after(segments: &[Segment], done: usize) -> ([Segment; SEGMENTS_MAX], usize) {
    let mut rest = [Segment { ptr: std::ptr::null_mut(), len: 0 }; SEGMENTS_MAX];
    let mut count = 0;
    let mut skip = done;
    for segment in segments {
        let here = skip.min(segment.len);
        skip -= here;
        if here < segment.len
            && let Some(place) = rest.get_mut(count)
        {
            let ptr = segment.ptr.wrapping_add(here);
            *place = Segment { ptr, len: segment.len - here };
            count += 1;
        }
    }
    (rest, count)
}

/// # Safety
/// `from..from + len` must be readable, `to..to + len` writable, and they must not overlap; null
/// is no pointer even when `len` is 0, but may dangle.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: as promised by the caller.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
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

    #[test]
    fn segments_are_skipped_in_order() {
        let mut memory = [0u8; 30];
        let base = memory.as_mut_ptr();
        let of = |at: usize, len| Segment { ptr: base.wrapping_add(at), len };
        let check = |done, expected: &[(usize, usize)]| {
            let (rest, count) = after(&[of(0, 10), of(10, 5), of(15, 15)], done);
            let rest: Vec<_> = rest[..count]
                .iter()
                .map(|segment| (segment.ptr.addr() - base.addr(), segment.len))
                .collect();
            assert_eq!(rest, expected, "after {done}");
        };
        check(0, &[(0, 10), (10, 5), (15, 15)]);
        check(4, &[(4, 6), (10, 5), (15, 15)]);
        check(10, &[(10, 5), (15, 15)]);
        check(29, &[(29, 1)]);
        check(30, &[]);
    }
}
