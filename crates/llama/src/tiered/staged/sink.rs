//! Copying what lost its slot on the device back to host memory, while what takes the slot comes up.
//!
//! The link goes both ways at once, but not by way of one slot: what is in it must be out before it is
//! written over. So an expert is moved aside on the device first, to a cell that nothing passes through
//! at the moment, which takes little, and sinks from there in a stream of its own:
//!
//! ```text
//! copy stream   slot -> cell | host -> slot       | host -> slot ...
//! sink stream                | cell -> host       |
//! ```

use llama_cpp_sys_2 as sys;

use super::super::compute::Stop;
use super::super::{PartCopy, Place, StreamMemory};
use super::stage::{Stage, record, wait};
use super::uploads::begin;
use crate::abi::{Backend, Dev, Event};

/// See the module. One per context.
pub(super) struct Sink {
    stream: Backend,
    /// Recorded behind what was moved aside last.
    aside: Event,
    /// Recorded behind what sank last.
    sunk: Event,
    /// The expert that was moved aside last, and slots of cells taken, of the copies at hand.
    last: Option<(u32, u32)>,
    n_taken: u32,
}

impl Sink {
    /// `None` if the device gives no other stream.
    pub(super) fn new(device: Dev) -> Option<Sink> {
        // SAFETY: a device of ggml's; everything is freed in `Drop`.
        unsafe {
            let stream = sys::ggml_backend_dev_init(device, std::ptr::null());
            let event = || sys::ggml_backend_event_new(device);
            let [aside, sunk] = [event(), event()];
            let sink = Sink { stream, aside, sunk, last: None, n_taken: 0 };
            (!stream.is_null()).then_some(sink)
        }
    }

    pub(super) fn stream(&self) -> Backend {
        self.stream
    }

    /// Other copies are at hand: those before them are under way.
    pub(super) fn begin(&mut self) {
        (self.last, self.n_taken) = (None, 0);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once.
        unsafe {
            for event in [self.aside, self.sunk].into_iter().filter(|event| !event.is_null()) {
                sys::ggml_backend_event_free(event);
            }
            if !self.stream.is_null() {
                sys::ggml_backend_synchronize(self.stream);
                sys::ggml_backend_free(self.stream);
            }
        }
    }
}

impl Stage {
    /// Puts a copy from a slot of the device to host memory into the streams: by way of a cell where one
    /// is free, else directly.
    ///
    /// # Safety
    /// As [`super::uploads::begin_uploads`]; the slot is written over in the copy stream only.
    pub(super) unsafe fn sink(
        &mut self,
        memory: &StreamMemory,
        copy: &PartCopy,
    ) -> Result<(), Stop> {
        let unit = (copy.layer, copy.expert);
        let is_new = self.sink.last != Some(unit);
        let place = self.sink.n_taken - u32::from(!is_new);
        let Some(slot) = self.cells.free_slot(place) else {
            // SAFETY: the caller's promise.
            return unsafe { begin(self, self.copier, memory, copy) };
        };
        // SAFETY: the caller's promise; what reads the cell is waited for.
        unsafe {
            if is_new {
                if self.sink.n_taken == 0 {
                    wait(self.copier, self.sink.sunk);
                }
                if let Some(read) = self.cells.last_read(slot) {
                    wait(self.copier, read);
                }
                self.sink.last = Some(unit);
                self.sink.n_taken += 1;
            }
            let cell = Place::Transit(slot);
            begin(self, self.copier, memory, &PartCopy { to: cell, ..*copy })?;
            record(self.sink.aside, self.copier);
            wait(self.sink.stream, self.sink.aside);
            begin(self, self.sink.stream, memory, &PartCopy { from: cell, ..*copy })?;
            record(self.sink.sunk, self.sink.stream);
        }
        Ok(())
    }

    /// Copies that begin from now on wait for what sinks.
    ///
    /// # Safety
    /// The stage's streams are alive.
    pub(super) unsafe fn copy_after_sunk(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { wait(self.copier, self.sink.sunk) };
    }
}
