//! The thread of a ring: gives pieces to the kernel and takes what it has read.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};

use crate::job::lock;
use crate::queue::{Closed, Shared, Taken};
use crate::range::{BOUNCE_BYTES_MIN, Moved, RangeError, RangeRead};
use crate::sys::{SEGMENTS_MAX, shortened};
use crate::{AllocError, Buffer, DIRECT_ALIGN_MAX};

/// Marks the completion of the read that waits to be woken; all others are numbers of slots.
const WAKE: u64 = u64::MAX;

/// How often in a row a read is tried again that was interrupted or found the kernel short of
/// something. A signal per try would be needed to get here.
const TRIES_MAX: u32 = 1000;

/// How long the thread waits before it tries again what the kernel had no memory for.
const PAUSE: Duration = Duration::from_millis(1);

/// How often a ring that has failed is asked for the reads that it still has.
const SETTLE_TRIES: u32 = 1000;

/// Buffers for what can't land in place, as many as there may be reads: one that takes all of a
/// piece, or one that takes the blocks at both ends of it (or a piece bit by bit).
#[derive(Debug)]
pub(super) struct Bounces {
    ends: Vec<Buffer>,
    wholes: Vec<Buffer>,
}

impl Bounces {
    /// Memory that is not used costs nothing: the kernel gives it when it is first written to.
    pub(super) fn new(ends: usize, wholes: usize, whole: usize) -> Result<Bounces, AllocError> {
        let buffers = |count, len| -> Result<Vec<Buffer>, AllocError> {
            (0..count).map(|_| Buffer::aligned(len, DIRECT_ALIGN_MAX)).collect()
        };
        Ok(Bounces { ends: buffers(ends, BOUNCE_BYTES_MIN)?, wholes: buffers(wholes, whole)? })
    }

    /// A buffer, as long as there are fewer taken than `ends`.
    fn take(&mut self, wanted: usize) -> Option<Buffer> {
        let whole = if wanted > BOUNCE_BYTES_MIN { self.wholes.pop() } else { None };
        whole.or_else(|| self.ends.pop())
    }

    fn put(&mut self, buffer: Buffer) {
        match buffer.len() > BOUNCE_BYTES_MIN {
            true => self.wholes.push(buffer),
            false => self.ends.push(buffer),
        }
    }
}

/// A ring, and the reads that the kernel has.
pub(super) struct Ring {
    ring: IoUring,
    shared: Arc<Shared>,
    wake: Arc<OwnedFd>,
    /// Where the count of the eventfd goes; nobody looks at it.
    wake_count: Buffer,
    /// Whether the kernel has a read of the eventfd.
    is_wake_armed: bool,
    /// Never grows: the kernel is given addresses inside it.
    slots: Vec<Option<Op>>,
    free: Vec<usize>,
    bounces: Bounces,
}

/// A piece that is being read.
struct Op {
    taken: Taken,
    range: RangeRead,
    moved: Moved,
    bounce: Option<Buffer>,
    /// What the kernel is given when there are several segments.
    vectors: [libc::iovec; SEGMENTS_MAX],
    tries: u32,
}

impl Ring {
    /// # Errors
    /// What the kernel says; `Unsupported` if it lacks something.
    pub(super) fn new(
        depth: usize,
        bounces: Bounces,
        shared: Arc<Shared>,
        wake: Arc<OwnedFd>,
    ) -> io::Result<Ring> {
        // One more for the read of the eventfd. So the queue always has room.
        let entries = u32::try_from(depth + 1).map_err(io::Error::other)?;
        let ring = set_up(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let reads = [opcode::Read::CODE, opcode::Readv::CODE];
        if !reads.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is too old"));
        }
        let wake_count = Buffer::aligned(8, 8).map_err(io::Error::other)?;
        let slots = (0..depth).map(|_| None).collect();
        let free = (0..depth).rev().collect();
        Ok(Ring { ring, shared, wake, wake_count, is_wake_armed: false, slots, free, bounces })
    }

    /// Reads until the engine is closed, and leaves nothing to the kernel that it could write to.
    pub(super) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let why = match served {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::error!("io_uring failed, and nothing is read any more: {error}");
                Closed::Failed(error.raw_os_error().unwrap_or(libc::EIO))
            }
            Err(_) => Closed::Panicked,
        };
        self.shared.close_broken(why);
        self.settle(why);
    }

    /// Returns when the engine is closed and the kernel has nothing any more.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let is_closed = self.issue();
            if !is_closed && !self.is_wake_armed {
                self.arm_wake()?;
            }
            if is_closed && self.is_idle() && !self.is_wake_armed {
                return Ok(());
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_interruption(&error) => {}
                Err(error) if is_shortage(&error) => thread::sleep(PAUSE),
                Err(error) => return Err(error),
            }
            self.reap()?;
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Begins as many pieces as there is room for; whether the engine is closed.
    fn issue(&mut self) -> bool {
        loop {
            let taken = {
                let mut queues = lock(&self.shared.queues);
                if queues.is_closed() {
                    return true;
                }
                // Looking without room would count as starving.
                if self.free.is_empty() { None } else { queues.take() }
            };
            let Some(taken) = taken else { return false };
            self.begin(taken);
        }
    }

    fn begin(&mut self, taken: Taken) {
        let Some(slot) = self.free.pop() else { return };
        let piece = &taken.piece;
        let mut range =
            RangeRead::new(piece.file().alignment(), piece.offset(), piece.destination());
        let mut bounce = match range.bounce_bytes() {
            0 => None,
            wanted => self.bounces.take(wanted),
        };
        if let Some(bounce) = &mut bounce {
            range.use_bounce(bounce);
        }
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let vectors = [nothing; SEGMENTS_MAX];
        let op = Op { taken, range, moved: Moved::default(), bounce, vectors, tries: 0 };
        self.go_on(slot, op);
    }

    /// Gives the next read of a piece to the kernel.
    fn go_on(&mut self, slot: usize, op: Op) {
        let Some(place) = self.slots.get_mut(slot) else { return };
        let op = place.insert(op);
        let fd = Fd(op.taken.piece.file().as_std().as_raw_fd());
        let next = op.range.next();
        let entry = match next.as_slice() {
            // A piece is much shorter; if it weren't, the read would be short and go on.
            [one] => opcode::Read::new(fd, one.ptr, u32::try_from(one.len).unwrap_or(1 << 31))
                .offset(op.range.next_offset())
                .build(),
            many => {
                let count = u32::try_from(many.len()).unwrap_or(0); // three at most
                op.vectors = next.vectors().0;
                opcode::Readv::new(fd, op.vectors.as_ptr(), count)
                    .offset(op.range.next_offset())
                    .build()
            }
        };
        let entry = entry.user_data(slot as u64);
        // SAFETY: the file, the destination, the bounce buffer and the vectors belong to the op,
        // which stays where it is until the kernel says that the read has ended.
        if let Err(error) = unsafe { self.push(&entry) } {
            self.finish(slot, Err(RangeError::Io(error)));
        }
    }

    /// Gives a read of the eventfd to the kernel, which ends when the owner calls.
    fn arm_wake(&mut self) -> io::Result<()> {
        let fd = Fd(self.wake.as_raw_fd());
        let entry = opcode::Read::new(fd, self.wake_count.as_mut_ptr(), 8).build().user_data(WAKE);
        // SAFETY: descriptor and buffer stay until the kernel says that the read has ended.
        unsafe { self.push(&entry) }?;
        self.is_wake_armed = true;
        Ok(())
    }

    /// # Safety
    /// What the entry refers to must stay until its completion has been taken.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: as promised by the caller.
        unsafe { self.ring.submission().push(entry) }.map_err(io::Error::other)
    }

    /// Takes what the kernel has finished.
    fn reap(&mut self) -> io::Result<()> {
        while let Some(entry) = { self.ring.completion().next() } {
            let result = outcome(entry.result());
            if entry.user_data() == WAKE {
                self.is_wake_armed = false;
                match result {
                    Err(error) if !is_interruption(&error) && !is_shortage(&error) => {
                        return Err(error);
                    }
                    _ => continue,
                }
            }
            let slot = usize::try_from(entry.user_data()).ok();
            let op = slot.and_then(|slot| self.slots.get_mut(slot)?.take());
            if let (Some(slot), Some(op)) = (slot, op) {
                self.took(slot, op, result);
            }
        }
        Ok(())
    }

    /// Takes the end of a read: of a piece, or of a part of it.
    fn took(&mut self, slot: usize, mut op: Op, result: io::Result<usize>) {
        match result {
            Err(error)
                if (is_interruption(&error) || is_shortage(&error)) && op.tries < TRIES_MAX =>
            {
                op.tries += 1;
                return self.go_on(slot, op);
            }
            _ => {}
        }
        let result = result.map(shortened);
        let (file, range, moved) = (op.taken.piece.file(), &mut op.range, &mut op.moved);
        // Without this a panic would leave the request in flight for ever.
        let step = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: this is the read that `go_on` asked for, and the kernel says it has ended.
            unsafe { range.took(file, result, moved) }
        }));
        match step.unwrap_or(Err(RangeError::Panicked)) {
            Ok(false) => self.go_on(slot, op),
            Ok(true) => self.end(slot, op, Ok(())),
            Err(error) => self.end(slot, op, Err(error)),
        }
    }

    fn finish(&mut self, slot: usize, read: Result<(), RangeError>) {
        if let Some(op) = self.slots.get_mut(slot).and_then(Option::take) {
            self.end(slot, op, read);
        }
    }

    fn end(&mut self, slot: usize, op: Op, read: Result<(), RangeError>) {
        self.free.push(slot);
        if let Some(bounce) = op.bounce {
            self.bounces.put(bounce);
        }
        self.shared.count(&op.moved);
        lock(&self.shared.queues).ended(op.taken.priority);
        self.shared.finish(op.taken.piece.finish(read));
    }

    /// After a failure: waits for the reads that the kernel still has, and ends them. Memory of
    /// reads that the kernel doesn't give back is never freed, and their requests stay in flight.
    fn settle(mut self, why: Closed) {
        super::wake(&self.wake);
        for _ in 0..SETTLE_TRIES {
            if let Err(error) = self.wait_a_little() {
                tracing::debug!("the ring gives nothing back: {error}");
                thread::sleep(PAUSE);
            }
            while let Some(entry) = { self.ring.completion().next() } {
                match usize::try_from(entry.user_data()) {
                    Ok(slot) if entry.user_data() != WAKE => self.finish(slot, Err(why.error())),
                    _ => self.is_wake_armed = false,
                }
            }
            if self.is_idle() && !self.is_wake_armed {
                return;
            }
        }
        let stuck = self.slots.len() - self.free.len();
        tracing::error!("the kernel keeps {stuck} reads; their memory is given up");
        std::mem::forget(self);
    }

    /// Waits until the kernel has finished something, or has not for a while.
    fn wait_a_little(&self) -> io::Result<usize> {
        if !self.ring.params().is_feature_ext_arg() {
            return self.ring.submit();
        }
        let pause = Timespec::from(PAUSE);
        self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&pause))
    }
}

/// A ring for one thread, as quiet as the kernel can make it.
fn set_up(entries: u32) -> io::Result<IoUring> {
    // Completions are dealt with when the thread asks for them, and never interrupt it (6.1).
    let quiet = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    match quiet {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries),
        other => other,
    }
}

/// What the kernel answers, as a system call would have.
fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()))
}

fn is_interruption(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINTR)
}

/// Whether the kernel had too little of something for now.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::conformance::Sample;
    use crate::queue::Front;
    use crate::{Access, ReadError, ReadRequest, Wait};

    #[test]
    fn a_failed_ring_gives_back_what_it_had() {
        let mut front = Front::new(64 << 10, 8, 2);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
        let bounces = Bounces::new(2, 1, 1 << 20).expect("memory");
        let Ok(mut ring) = Ring::new(2, bounces, Arc::clone(&front.shared), wake) else {
            eprintln!("not tested, io_uring can't be used here");
            return;
        };
        let file = Arc::new(Sample::new(300_000).open(Access::Direct));
        for tag in 0..2 {
            let buffer = Buffer::aligned(300_000, 4096).expect("memory");
            let request = ReadRequest::new(Arc::clone(&file), 0, buffer, tag);
            front.submit(request).expect("room");
        }
        assert!(!ring.issue());
        assert!(!ring.is_idle());
        ring.arm_wake().expect("room in the ring");
        // As `run` does after a failure.
        front.shared.close_broken(Closed::Panicked);
        ring.settle(Closed::Panicked);
        let mut out = Vec::new();
        front.complete(&mut out, Wait::None);
        assert_eq!((out.len(), front.in_flight()), (2, 0));
        let is_panic = |done: &crate::Completion| {
            matches!(done.result, Err(ReadError::Panicked { offset: 0, .. }))
        };
        assert!(out.iter().all(is_panic), "{out:?}");
    }
}
