//! Large pages for the memory that reads go to.

use std::io;
use std::ptr::NonNull;

/// Asks the kernel to make the `len` bytes at `start` of huge pages when they are first written
/// to. What the bytes hold doesn't change.
///
/// A direct read has to look up and pin each page that it fills. On a virtual drive of 2.4 GiB/s
/// a read through io_uring cost 19 ms of a core per GiB with pages of 4 KiB and 5 ms with pages of
/// 2 MiB; with [`PreadPool`](crate::PreadPool) it was 31 and 12. (Buffers registered with io_uring
/// cost 6 ms, but stay locked in memory, which most users may do with 8 MiB only.) Computing with
/// the memory misses fewer page translations, too.
///
/// Only memory that is used in full should have them: what is touched is taken in pieces of 2 MiB.
/// Memory that has been written to already is rebuilt later, if ever.
///
/// # Errors
/// What the system says, `Unsupported` where there is no such thing. Nothing is lost but speed.
pub fn prefer_huge_pages(start: NonNull<u8>, len: usize) -> io::Result<()> {
    prefer(start, len)
}

#[cfg(target_os = "linux")]
fn prefer(start: NonNull<u8>, len: usize) -> io::Result<()> {
    let page = rustix::param::page_size();
    // Whole pages only: the kernel would refuse others, and those at the ends are shared.
    let skip = start.addr().get().wrapping_neg() % page;
    let whole = len.saturating_sub(skip) / page * page;
    if whole == 0 {
        return Ok(());
    }
    let first = start.as_ptr().wrapping_add(skip).cast();
    // SAFETY: the advice changes neither what the memory holds nor what may be done with it, and
    // of addresses without memory the kernel says so.
    unsafe { rustix::mm::madvise(first, whole, rustix::mm::Advice::LinuxHugepage) }?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn prefer(_start: NonNull<u8>, _len: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::Buffer;

    /// The flags that the kernel keeps for the memory at an address.
    fn flags(address: usize) -> Vec<String> {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("a map of our memory");
        let mut is_inside = false;
        for line in maps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            if let Some((from, to)) = range {
                let number = |text| usize::from_str_radix(text, 16);
                if let (Ok(from), Ok(to)) = (number(from), number(to)) {
                    is_inside = (from..to).contains(&address);
                }
            }
            if let Some(flags) = line.strip_prefix("VmFlags:")
                && is_inside
            {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("no memory at {address:#x}");
    }

    #[test]
    fn the_kernel_is_told_and_bytes_stay() {
        let mut buffer = Buffer::aligned(5 << 20, 4096).expect("memory");
        let buffer_start = buffer.as_mut_ptr();
        buffer.as_mut_slice().fill(7);
        let is_advised =
            |at: usize| flags(buffer_start.addr() + at).iter().any(|flag| flag.as_str() == "hg");
        let start = NonNull::new(buffer_start.wrapping_add(1)).expect("not null");
        match prefer_huge_pages(start, 4 << 20) {
            Ok(()) => {
                assert!(!is_advised(0), "the first page is not ours alone");
                assert!(is_advised(4096) && is_advised((4 << 20) - 4096));
                assert!(!is_advised(4 << 20), "nor is the last");
            }
            // A kernel that is built without them.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
        }
        assert!(buffer.as_slice().iter().all(|&byte| byte == 7));
        prefer_huge_pages(start, 100).expect("no whole page, nothing to do");
    }

    #[test]
    fn no_memory_is_an_error() {
        let nowhere = NonNull::new(std::ptr::without_provenance_mut(4096)).expect("not null");
        assert!(prefer_huge_pages(nowhere, 1 << 20).is_err());
    }
}
