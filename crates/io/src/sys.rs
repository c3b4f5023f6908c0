//! What differs between platforms, and the one system call that reads.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use crate::DirectAlign;

#[cfg(target_os = "linux")]
#[path = "sys_linux.rs"]
mod platform;
#[cfg(target_os = "macos")]
#[path = "sys_macos.rs"]
mod platform;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
#[path = "sys_other.rs"]
mod platform;

pub(crate) use platform::{make_buffered, open_direct};

/// A freshly opened file, and what direct reads of it need, or why there are none.
pub(crate) struct Opened {
    pub(crate) inner: fs::File,
    pub(crate) direct: Result<DirectAlign, String>,
}

/// A piece of memory for the kernel to write to; an `iovec` of our own, so that no reference to
/// the memory has to exist.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) ptr: *mut u8,
    pub(crate) len: usize,
}

/// Most segments that one read is made of: a block in front, the bytes in place, a block behind.
pub(crate) const SEGMENTS_MAX: usize = 3;

/// The segments that one read fills, one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segments {
    list: [Segment; SEGMENTS_MAX],
    count: usize,
}

impl Default for Segments {
    fn default() -> Segments {
        let nothing = Segment { ptr: std::ptr::null_mut(), len: 0 };
        Segments { list: [nothing; SEGMENTS_MAX], count: 0 }
    }
}

impl Segments {
    /// # Panics
    /// If there are [`SEGMENTS_MAX`] already.
    pub(crate) fn push(&mut self, segment: Segment) {
        let Some(place) = self.list.get_mut(self.count) else { panic!("too many segments") };
        *place = segment;
        self.count += 1;
    }

    pub(crate) fn as_slice(&self) -> &[Segment] {
        self.list.get(..self.count).unwrap_or_default()
    }

    /// What they hold together, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.as_slice().iter().map(|segment| segment.len).sum()
    }

    /// The segments without their first `done` bytes.
    pub(crate) fn after(&self, done: usize) -> Segments {
        let mut rest = Segments::default();
        let mut skip = done;
        for segment in self.as_slice() {
            let here = skip.min(segment.len);
            skip -= here;
            if here < segment.len {
                let ptr = segment.ptr.wrapping_add(here);
                rest.push(Segment { ptr, len: segment.len - here });
            }
        }
        rest
    }

    /// As the operating system wants them, and how many there are.
    pub(crate) fn vectors(&self) -> ([libc::iovec; SEGMENTS_MAX], libc::c_int) {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut vectors = [empty; SEGMENTS_MAX];
        let mut count = 0;
        for (vector, segment) in vectors.iter_mut().zip(self.as_slice()) {
            *vector = libc::iovec { iov_base: segment.ptr.cast(), iov_len: segment.len };
            count += 1;
        }
        (vectors, count)
    }
}

/// Reads once at `offset` into `segments`, one after the other; the bytes read, 0 at the end of
/// the file. May be short. Repeats when a signal interrupts it.
///
/// # Safety
/// Each segment must be valid for writes, and no other access to it may happen during the call.
///
/// # Errors
/// What the operating system says.
pub(crate) unsafe fn read_at(
    file: &fs::File,
    offset: u64,
    segments: Segments,
) -> io::Result<usize> {
    let (vectors, count) = segments.vectors();
    let offset =
        libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    loop {
        // SAFETY: the descriptor is open as long as `file` is; `vectors[..count]` describe memory
        // that the caller vouches for.
        let got = unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
        match usize::try_from(got) {
            Ok(got) => return Ok(shortened(got)),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Lets tests see short reads, which regular files hardly ever give.
#[cfg(test)]
pub(crate) fn shortened(got: usize) -> usize {
    tests::LONGEST.with(|longest| got.min(longest.get()))
}

#[cfg(not(test))]
pub(crate) fn shortened(got: usize) -> usize {
    got
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// No read on this thread claims to have delivered more, in bytes.
        pub(crate) static LONGEST: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    #[test]
    fn segments_are_skipped_in_order() {
        let mut memory = [0u8; 30];
        let base = memory.as_mut_ptr();
        let mut segments = Segments::default();
        for (at, len) in [(0, 10), (10, 5), (15, 15)] {
            segments.push(Segment { ptr: base.wrapping_add(at), len });
        }
        assert_eq!(segments.bytes(), 30);
        let check = |done, expected: &[(usize, usize)]| {
            let rest = segments.after(done);
            let rest: Vec<_> = rest
                .as_slice()
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
