//! The ring that whole matrices are streamed through, in the order of their use.
//!
//! ```text
//!   tail                      head
//!    v                         v
//!   [ in use | ready | reading |      free      ]
//! ```
//!
//! The order is known, because every micro-batch uses the same matrices in the same order: so the
//! reads run ahead as far as the ring has room, across the end of one token and into the next.
//! A matrix lies in the ring at the same offset modulo the block size as in its file, so that
//! direct reads need no copy.

use std::collections::VecDeque;

/// Blocks of direct reads; places in the ring are multiples of it.
pub(super) const BLOCK: usize = 4096;

/// Where a streamed matrix lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MatrixSource {
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
}

/// A place in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Names the entry among all that ever were.
    pub(super) serial: u64,
    /// The matrix in it.
    pub(super) index: u32,
    /// First byte of the place.
    pub(super) start: usize,
    /// Bytes of the place: whole blocks.
    pub(super) span: usize,
    /// Where in the place the matrix begins.
    pub(super) head: usize,
    /// Whether its bytes have arrived.
    pub(super) ready: bool,
}

/// Places and their order; moves no bytes.
pub(super) struct Ring {
    sources: Vec<MatrixSource>,
    /// First usable byte, so that places are aligned in memory.
    first: usize,
    len: usize,
    head: usize,
    schedule: Vec<u32>,
    /// Index in `schedule` of the next matrix to read.
    next: usize,
    /// Whether the next micro-batch is read ahead for, behind the end of this one.
    wraps: bool,
    queue: VecDeque<Entry>,
    in_use: VecDeque<Entry>,
    serial: u64,
    /// Why entries of the queue have no bytes.
    failures: Vec<(u64, String)>,
}

impl Ring {
    /// A ring of `len` bytes whose memory begins at `base` modulo [`BLOCK`].
    pub(super) fn new(sources: Vec<MatrixSource>, len: usize, base: usize) -> Ring {
        let first = (BLOCK - base % BLOCK) % BLOCK;
        Ring {
            sources,
            first,
            len,
            head: first,
            schedule: Vec::new(),
            next: 0,
            wraps: true,
            queue: VecDeque::new(),
            in_use: VecDeque::new(),
            serial: 0,
            failures: Vec::new(),
        }
    }

    /// From now on reading ends with the schedule: another one, of another device, comes next.
    pub(super) fn stop_at_end(&mut self) {
        self.wraps = false;
    }

    pub(super) fn source(&self, index: u32) -> Option<MatrixSource> {
        self.sources.get(index as usize).copied()
    }

    /// Sets the order of use of the coming micro-batches. True when it is another one than before,
    /// and the entries read ahead are of no use.
    pub(super) fn set_schedule(&mut self, schedule: &[u32]) -> bool {
        let same = self.wraps && self.schedule == schedule;
        if !same {
            self.schedule = schedule.to_vec();
            self.next = 0;
        }
        !same
    }

    /// Makes reading go on with the matrix at `position` of the schedule.
    pub(super) fn resume_at(&mut self, position: usize) {
        self.next = position;
    }

    pub(super) fn schedule(&self) -> &[u32] {
        &self.schedule
    }

    /// Takes a place for the next matrix of the schedule; `None` when the ring is full.
    pub(super) fn place_next(&mut self) -> Option<Entry> {
        let index = *self.schedule.get(self.next)?;
        let source = self.source(index)?;
        let head = usize::try_from(source.offset % BLOCK as u64).ok()?;
        let span = (head + source.bytes).next_multiple_of(BLOCK);
        let start = self.find(span)?;
        self.head = start + span;
        self.next += 1;
        if self.wraps {
            self.next %= self.schedule.len();
        }
        let entry = Entry { serial: self.serial, index, start, span, head, ready: false };
        self.serial += 1;
        self.queue.push_back(entry);
        Some(entry)
    }

    /// Takes back the place that [`Ring::place_next`] gave last.
    pub(super) fn undo_place(&mut self) {
        if let Some(entry) = self.queue.pop_back() {
            self.head = entry.start;
            self.next = self.next.checked_sub(1).unwrap_or(self.schedule.len().saturating_sub(1));
        }
    }

    fn find(&self, span: usize) -> Option<usize> {
        let oldest = self.in_use.front().or(self.queue.front());
        let Some(oldest) = oldest else {
            return (self.first + span <= self.len).then_some(self.first);
        };
        let tail = oldest.start;
        if self.head > tail {
            if self.head + span <= self.len {
                return Some(self.head);
            }
            return (self.first + span <= tail).then_some(self.first);
        }
        (self.head + span <= tail).then_some(self.head)
    }

    /// The entry that is to be used next.
    pub(super) fn front(&self) -> Option<Entry> {
        self.queue.front().copied()
    }

    pub(super) fn arrived(&mut self, serial: u64) {
        if let Some(entry) = self.queue.iter_mut().find(|entry| entry.serial == serial) {
            entry.ready = true;
        }
    }

    /// The read of an entry has failed.
    pub(super) fn failed(&mut self, serial: u64, reason: String) {
        if self.queue.iter().any(|entry| entry.serial == serial) {
            self.failures.push((serial, reason));
        }
    }

    /// Why an entry has no bytes, if its read has failed.
    pub(super) fn failure(&self, serial: u64) -> Option<String> {
        self.failures.iter().find(|(of, _)| *of == serial).map(|(_, reason)| reason.clone())
    }

    /// Gives the front entry to the computation; returns where its matrix begins.
    pub(super) fn use_front(&mut self) -> Option<usize> {
        let entry = self.queue.pop_front()?;
        self.in_use.push_back(entry);
        Some(entry.start + entry.head)
    }

    /// The computation has used what it was given first.
    pub(super) fn computed_first(&mut self) {
        self.in_use.pop_front();
    }

    /// The computation has used what it was given.
    pub(super) fn computed(&mut self) {
        self.in_use.clear();
    }

    /// Drops all entries that are not in use. Their reads must have ended.
    pub(super) fn clear_queue(&mut self) {
        self.queue.clear();
        self.failures.clear();
        self.head = self.in_use.back().map_or(self.first, |last| last.start + last.span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(offset: u64, bytes: usize) -> MatrixSource {
        MatrixSource { file: 0, offset, bytes }
    }

    #[test]
    fn runs_ahead_wraps_and_never_overlaps() {
        let sources = vec![source(32, 5000), source(9000, 12_000), source(40_000, 100)];
        let mut ring = Ring::new(sources, 64 * 1024, 64);
        assert!(ring.set_schedule(&[0, 1, 2]));
        assert!(!ring.set_schedule(&[0, 1, 2]));
        for round in 0..50u32 {
            while ring.place_next().is_some() {}
            let mut places: Vec<_> = ring
                .queue
                .iter()
                .chain(&ring.in_use)
                .map(|e| (e.start, e.start + e.span))
                .collect();
            places.sort_unstable();
            assert!(places.windows(2).all(|w| w[0].1 <= w[1].0), "overlap: {places:?}");
            assert!(places.iter().all(|p| p.1 <= 64 * 1024 && (p.0 + 64) % BLOCK == 0));
            assert_eq!(ring.front().map(|e| e.index), Some(round % 3));
            ring.use_front().unwrap();
            if round % 2 == 1 {
                ring.computed();
            }
        }
    }

    #[test]
    fn a_place_taken_back_is_free_again() {
        let mut ring = Ring::new(vec![source(0, 100), source(4096, 100)], 8192, 0);
        ring.set_schedule(&[0, 1]);
        let first = ring.place_next().unwrap();
        let second = ring.place_next().unwrap();
        assert!(ring.place_next().is_none());
        ring.undo_place();
        let again = ring.place_next().unwrap();
        assert_eq!((again.index, again.start), (second.index, second.start));
        assert_ne!(again.start, first.start);
    }

    #[test]
    fn a_ring_that_stops_begins_anew_with_each_schedule() {
        let mut ring = Ring::new(vec![source(0, 100), source(4096, 100)], 8 * 4096, 0);
        ring.stop_at_end();
        for _ in 0..2 {
            assert!(ring.set_schedule(&[1]));
            assert_eq!(ring.place_next().map(|entry| entry.index), Some(1));
            assert!(ring.place_next().is_none());
            ring.undo_place();
            assert_eq!(ring.place_next().map(|entry| entry.index), Some(1));
            ring.clear_queue();
        }
    }
}
