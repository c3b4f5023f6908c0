//! Direct reads on Linux: `O_DIRECT`, with the alignment from `statx` or by trying.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::{Opened, Segment, Segments, read_at};
use crate::{Buffer, DirectAlign};

/// `f_type` of file systems that live in memory: there `O_DIRECT` may be accepted, but there is
/// nothing to go past. From statfs(2).
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Opens `path` with `O_DIRECT`, or without it where the file system refuses it.
///
/// # Errors
/// Only if the file can't be opened at all.
pub(crate) fn open_direct(path: &Path) -> io::Result<Opened> {
    let flag = i32::from_ne_bytes(OFlags::DIRECT.bits().to_ne_bytes());
    let direct = fs::OpenOptions::new().read(true).custom_flags(flag).open(path);
    let inner = match direct {
        Ok(inner) => inner,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let refused = "the file system refuses to open files for direct reads".to_owned();
            return Ok(Opened { inner: fs::File::open(path)?, direct: Err(refused) });
        }
        Err(error) => return Err(error),
    };
    let direct = match in_memory(&inner) {
        true => Err("the file lies in memory".to_owned()),
        false => match alignment_told(&inner) {
            Some(told) => told,
            None => alignment_tried(&inner),
        },
    };
    Ok(Opened { inner, direct })
}

/// Clears `O_DIRECT` on an open file. Reads in flight are not touched by it.
///
/// # Errors
/// What `fcntl` says.
pub(crate) fn make_buffered(file: &fs::File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags.difference(OFlags::DIRECT))?)
}

fn in_memory(file: &fs::File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| {
        #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // its type differs by target
        let magic = found.f_type as i64;
        magic == TMPFS_MAGIC || magic == RAMFS_MAGIC
    })
}

/// The alignment from `statx` (Linux 6.1 and later; not every file system answers).
fn alignment_told(file: &fs::File) -> Option<Result<DirectAlign, String>> {
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if found.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    let offset = usize::try_from(found.stx_dio_offset_align).ok()?;
    let memory = usize::try_from(found.stx_dio_mem_align).ok()?;
    if offset == 0 || memory == 0 {
        return Some(Err("the file system has no direct reads for this file".to_owned()));
    }
    Some(Ok(DirectAlign { offset, memory }))
}

/// Tries a read of one block at the second block: 512 bytes is what most drives need, 4096 what
/// those with large sectors do. Memory is aligned like the offset, which is enough everywhere.
fn alignment_tried(file: &fs::File) -> Result<DirectAlign, String> {
    for align in [512, 4096] {
        // One address that is a multiple of `align`, but of no larger power of two.
        let mut memory = Buffer::aligned(2 * align, 2 * align).map_err(|e| e.to_string())?;
        let Some(block) = memory.as_mut_slice().get_mut(align..) else { continue };
        let mut segments = Segments::default();
        segments.push(Segment { ptr: block.as_mut_ptr(), len: align });
        // SAFETY: the segment is the second half of `memory`, which nobody else uses.
        match unsafe { read_at(file, align as u64, segments) } {
            Ok(_) => return Ok(DirectAlign { offset: align, memory: align }),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(format!("a direct read failed: {error}")),
        }
    }
    Err("direct reads of 4096 aligned bytes are refused".to_owned())
}
