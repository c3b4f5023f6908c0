//! What lies in the cells that experts pass through, and which stream waits for which.
//!
//! A cell is filled in the copy stream, behind the computation that used it last, and computed with
//! behind its copies. Cells are filled in turn, across layers: what the next layer will need is on its
//! way while this one is computed. What sinks to host memory passes through those that are free
//! ([`super::sink`]).

use llama_cpp_sys_2 as sys;

use super::super::compute::Stop;
use super::super::device::BackendContext;
use super::super::{Residency, StreamMemory};
use super::begin_uploads;
use super::stage::{Stage, record, wait};
use crate::abi::{Dev, Event};

/// See the module. One per context.
pub(super) struct Cells {
    cells: Vec<Cell>,
    /// Slots of a cell.
    per_cell: u32,
    /// The one that is filled next.
    next: usize,
}

struct Cell {
    held: Option<Held>,
    /// Recorded behind the copies to it.
    brought: Event,
    /// Recorded behind the last computation that reads it.
    computed: Event,
    was_computed: bool,
}

/// What a cell holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) layer: u32,
    /// The parts of its experts, as a mask.
    pub(super) parts: u8,
    /// In the order of their slots.
    pub(super) experts: Vec<u32>,
    /// Whether the router had not chosen yet when they were copied.
    pub(super) is_expected: bool,
}

impl Cells {
    pub(super) const fn new() -> Cells {
        Cells { cells: Vec::new(), per_cell: 0, next: 0 }
    }

    /// A graph begins, and nothing is under way on the device: all cells are free.
    pub(super) fn begin(&mut self, memory: &StreamMemory, device: (usize, Dev)) {
        let transit = memory.front(device.0).and_then(|front| front.transit());
        let (n_cells, per_cell) = transit.map_or((0, 0), |t| (t.n_cells, t.per_cell));
        self.per_cell = per_cell;
        // SAFETY: a device of ggml's; events are freed in `Drop`.
        let event = || unsafe { sys::ggml_backend_event_new(device.1) };
        let n_cells = n_cells as usize;
        while self.cells.len() < n_cells {
            let (brought, computed) = (event(), event());
            self.cells.push(Cell { held: None, brought, computed, was_computed: false });
        }
        self.forget();
    }

    /// What lies in them is not wanted any more.
    pub(super) fn forget(&mut self) {
        self.cells.iter_mut().for_each(|cell| cell.held = None);
    }

    /// Experts that fit in one.
    pub(super) fn per_cell(&self) -> usize {
        self.per_cell as usize
    }

    /// Experts that can be brought now.
    pub(super) fn room(&self) -> usize {
        let in_turn = (0..self.cells.len()).map(|i| (self.next + i) % self.cells.len());
        let n_free = in_turn.take_while(|&cell| self.cells[cell].held.is_none()).count();
        n_free * self.per_cell()
    }

    /// A slot of a cell that holds nothing: the first, the second, ... of them.
    pub(super) fn free_slot(&self, n: u32) -> Option<u32> {
        let mut free = (0..).zip(&self.cells).filter(|(_, cell)| cell.held.is_none());
        let (cell, _) = free.nth(n.checked_div(self.per_cell)? as usize)?;
        Some(self.first_slot(cell) + n % self.per_cell)
    }

    /// What is recorded behind the last computation that reads a slot, if there was one.
    pub(super) fn last_read(&self, slot: u32) -> Option<Event> {
        let cell = self.cells.get(slot.checked_div(self.per_cell)? as usize)?;
        cell.was_computed.then_some(cell.computed)
    }

    /// Those that hold these parts of experts of a layer, in the order in which they were filled, and
    /// what. What others hold is not wanted any more.
    pub(super) fn holding(&mut self, layer: u32, parts: u8) -> Vec<(usize, Held)> {
        let is_other = |held: &Held| (held.layer, held.parts) != (layer, parts);
        for cell in self.cells.iter_mut().filter(|cell| cell.held.as_ref().is_some_and(is_other)) {
            cell.held = None;
        }
        let in_turn = (0..self.cells.len()).map(|i| (self.next + i) % self.cells.len());
        in_turn.filter_map(|cell| Some((cell, self.cells[cell].held.clone()?))).collect()
    }

    /// What a cell holds.
    pub(super) fn held(&self, cell: usize) -> Option<&Held> {
        self.cells.get(cell)?.held.as_ref()
    }

    /// The first slot of a cell.
    pub(super) fn first_slot(&self, cell: usize) -> u32 {
        u32::try_from(cell).unwrap_or(u32::MAX).saturating_mul(self.per_cell)
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        for event in self.cells.iter().flat_map(|cell| [cell.brought, cell.computed]) {
            if !event.is_null() {
                // SAFETY: made in `begin`, freed once.
                unsafe { sys::ggml_backend_event_free(event) };
            }
        }
    }
}

impl Stage {
    /// Begins to fill the next cell, which must be free; its number.
    ///
    /// # Safety
    /// The context's backend is alive.
    pub(super) unsafe fn fill_cell(
        &mut self,
        memory: &StreamMemory,
        residency: &mut dyn Residency,
        held: Held,
    ) -> Result<usize, Stop> {
        let cell = self.cells.next;
        let lost = || Stop::Internal("experts pass through no cell".into());
        let first_slot = self.cells.first_slot(cell);
        let next = self.cells.cells.get_mut(cell).ok_or_else(lost)?;
        next.held = Some(held.clone());
        let (computed, was_computed) = (next.computed, next.was_computed);
        // SAFETY: the caller's promise; the cell's last reader is launched.
        unsafe {
            if was_computed {
                wait(self.copier, computed);
            }
            self.copy_after_sunk();
            residency.pass(held.layer, &held.experts, held.parts, first_slot)?;
            begin_uploads(self, memory, residency, false)?;
            self.end_cell(memory, &held, first_slot)?;
        }
        let n_cells = self.cells.cells.len();
        // SAFETY: the caller's promise.
        unsafe { record(self.cells.cells[cell].brought, self.copier) };
        self.cells.next = (cell + 1) % n_cells;
        Ok(cell)
    }

    /// Writes zeros where kernels read behind a cell's last expert: what another layer left there may
    /// be no number.
    unsafe fn end_cell(
        &mut self,
        memory: &StreamMemory,
        held: &Held,
        first_slot: u32,
    ) -> Result<(), Stop> {
        let Some(front) = memory.front(self.device) else { return Ok(()) };
        let end = first_slot + u32::try_from(held.experts.len()).unwrap_or(u32::MAX);
        for part in (0..8).filter(|part| held.parts & (1 << part) != 0) {
            let Some(of) = front.part(held.layer, part).filter(|of| of.padding > 0) else {
                continue;
            };
            let last = front.transit().and_then(|t| t.place(part, end - 1, of.bytes));
            let Some((lane, at)) = last else { continue };
            let zeros = self.zeros(of.padding)?.cast();
            let (copier, tensor) = (self.copier, lane.tensor);
            // SAFETY: a cell has room behind its last expert.
            unsafe {
                sys::ggml_backend_tensor_set_async(
                    copier,
                    tensor,
                    zeros,
                    at + of.bytes,
                    of.padding,
                );
            }
        }
        Ok(())
    }

    /// What is launched from now on waits for the copies to a cell.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn compute_after_cell(&mut self, context: &BackendContext, cell: usize) {
        if let Some(cell) = self.cells.cells.get(cell) {
            // SAFETY: the caller's promise.
            unsafe { wait(context.inner, cell.brought) };
        }
    }

    /// The last computation that reads a cell is launched: it can be filled behind that.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn give_back_cell(&mut self, context: &BackendContext, cell: usize) {
        if let Some(cell) = self.cells.cells.get_mut(cell) {
            // SAFETY: the caller's promise.
            unsafe { record(cell.computed, context.inner) };
            cell.was_computed = true;
            cell.held = None;
        }
    }

    /// As [`Stage::give_back_cell`], for one that nothing read.
    pub(super) fn drop_cell(&mut self, cell: usize) {
        if let Some(cell) = self.cells.cells.get_mut(cell) {
            cell.held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use super::*;

    #[test]
    fn free_slots_are_those_of_empty_cells() {
        let held = |is_held: bool| {
            is_held.then(|| Held { layer: 0, parts: 1, experts: vec![7], is_expected: false })
        };
        let cell = |is_held| Cell {
            held: held(is_held),
            brought: null_mut(),
            computed: null_mut(),
            was_computed: false,
        };
        let cells = [false, true, false].map(cell).into();
        let cells = Cells { cells, per_cell: 2, next: 1 };
        let free: Vec<_> = (0..5).map(|n| cells.free_slot(n)).collect();
        assert_eq!(free, [Some(0), Some(1), Some(4), Some(5), None]);
        assert_eq!(Cells::new().free_slot(0), None);
    }
}
