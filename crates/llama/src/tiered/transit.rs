//! Slots of a device that belong to no layer: what a prompt needs and the device lacks passes through
//! them, and leaves alone what lies in the layers' own slots.
//!
//! They are divided into cells, which are filled and given back one after the other. A cell holds
//! experts of one layer at a time, side by side, so that one matmul reads them; layers of other types
//! and sizes come after it, so a slot has its place by the size of what is in it.
//!
//! ```text
//! computed |   cell 0, layer 4   |   cell 1, layer 4   |  next layer's router |  cell 2, layer 5 ...
//! copied       cell 1  |  cell 2, layer 5  |  cell 3, layer 5  |  cell 0, layer 5 ...
//! ```

use std::collections::HashMap;

use super::PartIndex;
use crate::abi::Tensor;

/// Where there is room for so many: one is computed with, and the others are filled meanwhile, or
/// while the next layer's router is waited for.
const CELLS: u32 = 8;

/// How so many transit slots are divided: cells, and slots of each.
const fn cells(n_slots: u32) -> (u32, u32) {
    match n_slots {
        0..CELLS => (n_slots, 1),
        _ => (CELLS, n_slots / CELLS),
    }
}

/// The memory of the cells of one device.
pub(super) struct Transit {
    pub(super) n_cells: u32,
    /// Slots of a cell.
    pub(super) per_cell: u32,
    lanes: HashMap<PartIndex, Lane>,
}

/// One part of all cells.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    /// Bytes, as ggml sees them.
    pub(super) tensor: *mut Tensor,
    cell_bytes: usize,
}

impl Transit {
    pub(super) fn new(n_slots: u32) -> Transit {
        let (n_cells, per_cell) = cells(n_slots);
        Transit { n_cells, per_cell, lanes: HashMap::new() }
    }

    /// Bytes of one cell's part, for experts of `bytes` and the room behind the last that kernels read
    /// too.
    pub(super) const fn cell_bytes(&self, bytes: usize, padding: usize) -> usize {
        (self.per_cell as usize * bytes + padding).next_multiple_of(ALIGNMENT)
    }

    pub(super) fn add_lane(&mut self, part: PartIndex, tensor: *mut Tensor, cell_bytes: usize) {
        self.lanes.insert(part, Lane { tensor, cell_bytes });
    }

    /// Where a part of `bytes` of the expert in a slot begins, in the memory of all cells.
    pub(super) fn place(&self, part: PartIndex, slot: u32, bytes: usize) -> Option<(Lane, usize)> {
        let (cell, at) = (slot.checked_div(self.per_cell)?, slot % self.per_cell);
        let lane = self.lanes.get(&part).filter(|_| cell < self.n_cells)?;
        Some((*lane, cell as usize * lane.cell_bytes + at as usize * bytes))
    }
}

/// Tensors of GPUs begin at multiples of this, in bytes (`GGML_CUDA` uses 128, others up to 256).
const ALIGNMENT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_divided_into_cells() {
        let divided = [0, 2, 7, 8, 15, 16, 72].map(cells);
        let expected = [(0, 1), (2, 1), (7, 1), (8, 1), (8, 1), (8, 2), (8, 9)];
        assert_eq!(divided, expected);
    }

    /// Whatever their size, experts lie side by side in a cell, with room behind the last one, and
    /// never in another.
    #[test]
    fn cells_do_not_overlap() {
        let mut transit = Transit::new(24);
        let (bytes, padding) = (1000, 36);
        let cell_bytes = transit.cell_bytes(bytes, padding);
        transit.add_lane(0, std::ptr::null_mut(), cell_bytes);
        for slice in [bytes, 1, 999] {
            let start = |slot| transit.place(0, slot, slice).map(|(_, at)| at).unwrap();
            for slot in 0..24 {
                let cell = slot as usize / 3;
                assert_eq!(start(slot), cell * cell_bytes + (slot as usize % 3) * slice);
                assert!(start(slot) + slice + padding <= (cell + 1) * cell_bytes);
            }
        }
        assert!(transit.place(0, 24, bytes).is_none() && transit.place(1, 0, bytes).is_none());
    }
}
