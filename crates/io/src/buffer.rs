//! Memory that a read fills.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// A uniquely owned piece of memory: the destination of a read.
///
/// A buffer is moved into a [`ReadRequest`](crate::ReadRequest) and comes back in the
/// [`Completion`](crate::Completion), so that nothing else can touch the memory while the kernel
/// writes to it.
pub struct Buffer {
    ptr: NonNull<u8>,
    len: usize,
    owner: Owner,
}

enum Owner {
    /// Memory of ours: where the allocation begins (in front of the first aligned byte), and the
    /// layout to free it with.
    Heap { base: NonNull<u8>, layout: Layout },
    /// Zero bytes, nothing to free.
    Nothing,
    /// Somebody else's memory, kept alive by this.
    Foreign { _keep_alive: Arc<dyn Any + Send + Sync> },
}

/// Memory for a [`Buffer`] couldn't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// The alignment is no power of two, or `len` rounded up to it overflows.
    #[error("a buffer of {len} bytes can't be aligned to {align} bytes; ask for a power of two")]
    BadLayout { len: usize, align: usize },
    /// The allocator has no memory left.
    #[error("no memory for a buffer of {len} bytes; lower the memory budget or close programs")]
    OutOfMemory { len: usize },
}

impl Buffer {
    /// `len` zeroed bytes at an address that is a multiple of `align` (a power of two, in bytes).
    ///
    /// # Errors
    /// [`AllocError::BadLayout`] when `align` is no power of two, [`AllocError::OutOfMemory`] when
    /// the allocator refuses.
    pub fn aligned(len: usize, align: usize) -> Result<Buffer, AllocError> {
        let bad = AllocError::BadLayout { len, align };
        if !align.is_power_of_two() {
            return Err(bad);
        }
        if len == 0 {
            return Ok(Buffer { ptr: NonNull::dangling(), len, owner: Owner::Nothing });
        }
        // Aligned by hand: zeroed memory of a large alignment is zeroed by touching all of it,
        // where zeroed memory of alignment 1 comes untouched from the kernel.
        let layout = len
            .checked_add(align - 1)
            .and_then(|size| Layout::from_size_align(size, 1).ok())
            .ok_or(bad)?;
        // SAFETY: the layout's size is at least `len`, which is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let base = NonNull::new(base).ok_or(AllocError::OutOfMemory { len })?;
        let gap = base.addr().get().wrapping_neg() & (align - 1);
        // SAFETY: `gap < align`, so `gap + len` bytes lie inside the allocation.
        let ptr = unsafe { base.add(gap) };
        Ok(Buffer { ptr, len, owner: Owner::Heap { base, layout } })
    }

    /// Borrows `len` bytes at `ptr` that belong to somebody else, such as a slot in a pool that a
    /// compute library allocated. `owner` is kept until the buffer is dropped.
    ///
    /// # Safety
    /// From this call until the buffer is dropped:
    /// - `ptr..ptr + len` is one allocation, mapped, readable, writable and initialised, and stays
    ///   where it is for as long as `owner` (or a clone of it) lives;
    /// - nobody else writes to any byte of it, nor reads bytes that this buffer may write. Two
    ///   buffers over the same memory must not overlap, slack included.
    pub unsafe fn foreign(
        ptr: NonNull<u8>,
        len: usize,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Buffer {
        Buffer { ptr, len, owner: Owner::Foreign { _keep_alive: owner } }
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr..ptr + len` is valid and initialised (zeroed by us, or promised by the
        // caller of `foreign`), and nobody writes to it while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// Its bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// The address of its first byte; dangling when the buffer is empty.
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    /// The address of its first byte, to write through.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Whether the memory is ours rather than a foreign region.
    pub fn is_own(&self) -> bool {
        !matches!(self.owner, Owner::Foreign { .. })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Owner::Heap { base, layout } = self.owner {
            // SAFETY: `base` came from `alloc_zeroed` with this very layout and is freed once.
            unsafe { dealloc(base.as_ptr(), layout) }
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("ptr", &self.ptr)
            .field("len", &self.len)
            .field("own", &self.is_own())
            .finish()
    }
}

// SAFETY: the buffer is the only one that touches its memory (ours by construction, foreign memory
// by the contract of `foreign`), the owner is `Send + Sync`, and freeing is not bound to a thread.
unsafe impl Send for Buffer {}
// SAFETY: through `&Buffer` the memory can only be read.
unsafe impl Sync for Buffer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_memory_is_zeroed_and_aligned() {
        for align in [1, 8, 512, 4096, 65536] {
            for len in [0, 1, 511, 4096, 100_000] {
                let mut buffer = Buffer::aligned(len, align).expect("memory");
                assert_eq!(buffer.len(), len);
                assert_eq!(buffer.is_empty(), len == 0);
                assert!(buffer.as_slice().iter().all(|&byte| byte == 0));
                if len > 0 {
                    assert_eq!(buffer.as_ptr().align_offset(align), 0);
                }
                buffer.as_mut_slice().fill(7);
                assert!(buffer.as_slice().iter().all(|&byte| byte == 7));
            }
        }
    }

    #[test]
    fn absurd_layouts_are_errors() {
        assert!(matches!(Buffer::aligned(8, 3), Err(AllocError::BadLayout { align: 3, .. })));
        assert!(matches!(Buffer::aligned(8, 0), Err(AllocError::BadLayout { align: 0, .. })));
        assert!(matches!(Buffer::aligned(usize::MAX, 4096), Err(AllocError::BadLayout { .. })));
    }

    #[test]
    fn foreign_memory_is_kept_alive_by_its_owner_and_written_through() {
        struct Region(std::cell::UnsafeCell<[u8; 64]>);
        // SAFETY: the test touches the region through one buffer at a time.
        unsafe impl Sync for Region {}

        let region = Arc::new(Region(std::cell::UnsafeCell::new([1; 64])));
        let ptr = NonNull::new(region.0.get().cast::<u8>()).expect("not null");
        // SAFETY: 64 bytes inside `region`, which the buffer keeps alive; nobody else touches them.
        let mut buffer = unsafe { Buffer::foreign(ptr, 64, region.clone()) };
        assert!(!buffer.is_own());
        buffer.as_mut_slice().fill(9);
        assert_eq!(Arc::strong_count(&region), 2);
        drop(buffer);
        assert_eq!(Arc::strong_count(&region), 1);
        // SAFETY: the buffer is gone, so this is the only access.
        assert_eq!(unsafe { *region.0.get() }, [9; 64]);
    }
}
