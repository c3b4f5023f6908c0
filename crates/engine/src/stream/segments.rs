//! What each layer of a run computed and missed, for the dependency bound.
//!
//! No expert can be read before its router has run, unless by a guess. Between one router and the
//! next lie the time that was computed and the bytes that were missing when the first one had run;
//! whatever overlaps, that takes at least the larger of the two. Their sum over a run is the
//! fastest that it could have been without guesses, with this cache.

use serde::Serialize;

/// Segments that are kept at most: some 20,000 tokens of a model of 48 layers.
const SEGMENTS_MAX: usize = 1 << 20;

/// From one router to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Segment {
    /// Time that was computed, in microseconds.
    pub compute_us: u64,
    /// Bytes of chosen experts that were not in memory when the router had run.
    pub missing_bytes: u64,
}

/// Segments of a run as they come.
#[derive(Debug, Default)]
pub(super) struct Segments {
    done: Vec<Segment>,
    now: Segment,
    nanoseconds: u128,
}

impl Segments {
    /// The next segment begins, of which so many bytes are missing.
    pub(super) fn next(&mut self, missing_bytes: u64) {
        self.now.compute_us = u64::try_from(self.nanoseconds / 1000).unwrap_or(u64::MAX);
        self.nanoseconds = 0;
        if self.done.len() < SEGMENTS_MAX && self.now != Segment::default() {
            self.done.push(self.now);
        }
        self.now = Segment { compute_us: 0, missing_bytes };
    }

    pub(super) fn computed(&mut self, elapsed: std::time::Duration) {
        self.nanoseconds += elapsed.as_nanos();
    }

    /// What is done since this was called last.
    pub(super) fn take(&mut self) -> Vec<Segment> {
        std::mem::take(&mut self.done)
    }
}
