//! A C `FILE*` whose bytes come from Rust.
//!
//! Linux has `fopencookie` (glibc, musl), macOS and the BSDs have `funopen`. The callbacks are the
//! same; only the opening differs. The macOS half has not been run by us yet.

use std::ffi::{c_char, c_int, c_void};
use std::io::{Read, Seek, SeekFrom};
use std::ptr::NonNull;

/// The stdio buffer, and so the alignment to which glibc rounds seeks down: a tensor that starts
/// on a multiple of it gets an exact seek (measured; see ARCHITECTURE.md, "Loading").
pub(crate) const STDIO_BUFFER_BYTES: usize = 64 * 1024;

/// An open stream over a `Read + Seek`. Closed on drop.
pub(crate) struct Stream {
    file: NonNull<libc::FILE>,
    /// Kept until the stream is closed: stdio reads into it.
    _buffer: Vec<u8>,
    source: *mut Source,
}

struct Source {
    inner: Box<dyn ReadSeek>,
    error: Option<std::io::Error>,
}

pub(crate) trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

impl Stream {
    pub(crate) fn open(inner: Box<dyn ReadSeek>) -> std::io::Result<Stream> {
        let source = Box::into_raw(Box::new(Source { inner, error: None }));
        // SAFETY: `source` is a live box that `Drop` takes back after closing.
        let file = unsafe { open_cookie(source.cast()) };
        let Some(file) = NonNull::new(file) else {
            // SAFETY: nobody else has it.
            drop(unsafe { Box::from_raw(source) });
            return Err(std::io::Error::last_os_error());
        };
        let mut buffer = vec![0u8; STDIO_BUFFER_BYTES];
        // SAFETY: the buffer lives as long as the stream.
        let rc = unsafe {
            libc::setvbuf(
                file.as_ptr(),
                buffer.as_mut_ptr().cast::<c_char>(),
                libc::_IOFBF,
                buffer.len(),
            )
        };
        let stream = Stream { file, _buffer: buffer, source };
        if rc == 0 { Ok(stream) } else { Err(std::io::Error::last_os_error()) }
    }

    pub(crate) fn as_ptr(&self) -> *mut libc::FILE {
        self.file.as_ptr()
    }

    /// The first error of the source, which C only saw as a short read.
    pub(crate) fn take_error(&mut self) -> Option<std::io::Error> {
        // SAFETY: no callback runs while we are here: stdio is used by one thread.
        unsafe { &mut *self.source }.error.take()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: closing runs no callback of ours; afterwards the source is ours alone.
        unsafe {
            libc::fclose(self.file.as_ptr());
            drop(Box::from_raw(self.source));
        }
    }
}

impl Source {
    fn read(&mut self, buffer: &mut [u8]) -> isize {
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.inner.read(buffer)));
        let error = match result {
            Ok(Ok(n)) => return isize::try_from(n).unwrap_or(-1),
            Ok(Err(error)) => error,
            Err(_) => std::io::Error::other("reading panicked"),
        };
        self.error.get_or_insert(error);
        -1
    }

    fn seek(&mut self, offset: i64, whence: c_int) -> Option<u64> {
        let to = match whence {
            libc::SEEK_SET => SeekFrom::Start(u64::try_from(offset).ok()?),
            libc::SEEK_CUR => SeekFrom::Current(offset),
            libc::SEEK_END => SeekFrom::End(offset),
            _ => return None,
        };
        match self.inner.seek(to) {
            Ok(position) => Some(position),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }
}

#[cfg(target_os = "linux")]
unsafe fn open_cookie(source: *mut c_void) -> *mut libc::FILE {
    #[repr(C)]
    struct Functions {
        read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> isize>,
        write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> isize>,
        seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
        close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    }
    unsafe extern "C" {
        fn fopencookie(
            cookie: *mut c_void,
            mode: *const c_char,
            functions: Functions,
        ) -> *mut libc::FILE;
    }
    unsafe extern "C" fn seek(source: *mut c_void, offset: *mut i64, whence: c_int) -> c_int {
        // SAFETY: stdio passes the cookie and a valid offset.
        unsafe {
            let position = (*source.cast::<Source>()).seek(*offset, whence);
            match position.and_then(|p| i64::try_from(p).ok()) {
                Some(position) => {
                    *offset = position;
                    0
                }
                None => -1,
            }
        }
    }
    unsafe extern "C" fn read(source: *mut c_void, buffer: *mut c_char, len: usize) -> isize {
        // SAFETY: stdio passes the cookie and a buffer of `len` bytes.
        unsafe {
            let buffer = std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len);
            (*source.cast::<Source>()).read(buffer)
        }
    }
    let functions = Functions { read: Some(read), write: None, seek: Some(seek), close: None };
    // SAFETY: the functions fit the cookie.
    unsafe { fopencookie(source, c"rb".as_ptr(), functions) }
}

#[cfg(target_os = "macos")]
unsafe fn open_cookie(source: *mut c_void) -> *mut libc::FILE {
    unsafe extern "C" {
        fn funopen(
            cookie: *const c_void,
            read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, c_int) -> c_int>,
            write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, c_int) -> c_int>,
            seek: Option<unsafe extern "C" fn(*mut c_void, i64, c_int) -> i64>,
            close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
        ) -> *mut libc::FILE;
    }
    unsafe extern "C" fn seek(source: *mut c_void, offset: i64, whence: c_int) -> i64 {
        // SAFETY: stdio passes the cookie.
        let position = unsafe { (*source.cast::<Source>()).seek(offset, whence) };
        position.and_then(|p| i64::try_from(p).ok()).unwrap_or(-1)
    }
    unsafe extern "C" fn read(source: *mut c_void, buffer: *mut c_char, len: c_int) -> c_int {
        // SAFETY: stdio passes the cookie and a buffer of `len` bytes.
        unsafe {
            let len = usize::try_from(len).unwrap_or(0);
            let buffer = std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len);
            c_int::try_from((*source.cast::<Source>()).read(buffer)).unwrap_or(-1)
        }
    }
    // SAFETY: the functions fit the cookie.
    unsafe { funopen(source, Some(read), None, Some(seek), None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the drive is gone"))
        }
    }
    impl Seek for Failing {
        fn seek(&mut self, _: SeekFrom) -> std::io::Result<u64> {
            Ok(0)
        }
    }

    fn fread(stream: &Stream, len: usize) -> Vec<u8> {
        let mut out = vec![0u8; len];
        // SAFETY: `out` has `len` bytes.
        let n = unsafe { libc::fread(out.as_mut_ptr().cast(), 1, len, stream.as_ptr()) };
        out.truncate(n);
        out
    }

    #[test]
    fn reads_and_seeks_like_a_file() {
        let data: Vec<u8> = (0..200_000u32).map(|i| i.to_le_bytes()[0] ^ 0x5a).collect();
        let stream = Stream::open(Box::new(std::io::Cursor::new(data.clone()))).unwrap();
        assert_eq!(fread(&stream, 100), data[..100]);
        // SAFETY: the stream is open.
        unsafe { libc::fseeko(stream.as_ptr(), 131_072, libc::SEEK_SET) };
        assert_eq!(fread(&stream, 70_000), data[131_072..]);
    }

    #[test]
    fn an_error_of_the_source_is_kept() {
        let mut stream = Stream::open(Box::new(Failing)).unwrap();
        assert!(fread(&stream, 10).is_empty());
        assert_eq!(stream.take_error().unwrap().to_string(), "the drive is gone");
    }
}
