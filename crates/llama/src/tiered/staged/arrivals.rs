//! Which copies of experts the layer at hand may wait for, one by one.
//!
//! Gate and up can be computed while down is still copied, so each expert has two events.

use super::assist::DOWN;
use super::stage::{Stage, record, wait};
use crate::abi::{Backend, Event};

/// Experts in the order in which their copies were begun.
#[derive(Default)]
pub(super) struct Arrivals(Vec<Arrival>);

struct Arrival {
    expert: u32,
    /// Recorded behind what is multiplied first, and behind down; `None` where that was there before.
    events: [Option<Event>; 2],
}

/// What of an expert has to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrived {
    /// What is multiplied first: gate and up.
    First = 0,
    /// Down.
    Down = 1,
}

impl Arrivals {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its place among the others, if it is copied.
    pub(super) fn turn_of(&self, expert: u32) -> Option<usize> {
        self.0.iter().position(|arrival| arrival.expert == expert)
    }
}

impl Stage {
    /// A copy of a part of an expert for the layer at hand was begun.
    ///
    /// # Safety
    /// The copy stream is alive.
    pub(super) unsafe fn note_arrival(&mut self, expert: u32, part: u8) {
        let at = self.arrivals.turn_of(expert).unwrap_or_else(|| {
            self.arrivals.0.push(Arrival { expert, events: [None; 2] });
            self.arrivals.0.len() - 1
        });
        let which = if part == DOWN { Arrived::Down } else { Arrived::First } as usize;
        let event = self.arrivals.0[at].events[which].unwrap_or_else(|| self.event());
        self.arrivals.0[at].events[which] = Some(event);
        // SAFETY: the caller's promise.
        unsafe { record(event, self.copier) };
    }

    /// What `stream` is given from now on waits for that of an expert, if its copies were noted.
    ///
    /// # Safety
    /// The stream is a live one of the device's.
    pub(super) unsafe fn wait_for_arrival(&self, stream: Backend, expert: u32, what: Arrived) {
        let at = self.arrivals.turn_of(expert);
        if let Some(event) = at.and_then(|at| self.arrivals.0[at].events[what as usize]) {
            // SAFETY: the caller's promise.
            unsafe { wait(stream, event) };
        }
    }

    /// Nobody waits for what was begun any more.
    pub(super) fn forget_arrivals(&mut self) {
        let events = self.arrivals.0.drain(..).flat_map(|arrival| arrival.events);
        self.spare.extend(events.flatten().filter(|event| !event.is_null()));
    }
}
