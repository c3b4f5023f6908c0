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
    segments: &[Segment],
) -> io::Result<usize> {
    let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut vectors = [empty; SEGMENTS_MAX];
    let mut count: libc::c_int = 0;
    for (vector, segment) in vectors.iter_mut().zip(segments) {
        *vector = libc::iovec { iov_base: segment.ptr.cast(), iov_len: segment.len };
        count += 1;
    }
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
fn shortened(got: usize) -> usize {
    tests::LONGEST.with(|longest| got.min(longest.get()))
}

#[cfg(not(test))]
fn shortened(got: usize) -> usize {
    got
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// No read on this thread claims to have delivered more, in bytes.
        pub(crate) static LONGEST: Cell<usize> = const { Cell::new(usize::MAX) };
    }
}
