//! Matrices that pass through the device's ring, in the order of their use.
//!
//! The order is known, so copies run ahead as far as the ring has room, and nobody waits but the
//! two streams for each other: a copy for the matrices before, whose place it may take, and a
//! product for its own matrix.

use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::super::compute::Stop;
use super::super::group::Stream;
use super::super::{MatrixFrom, MatrixUpload, StreamMemory};
use super::{Stage, Walk};

impl Walk<'_> {
    /// # Safety
    /// As [`super::graph`]; node `i` is a MUL_MAT whose first source is the streamed matrix.
    pub(super) unsafe fn matrix(&mut self, i: usize, index: u32) -> Result<(), Stop> {
        // SAFETY: the caller's promise; live backends and events.
        unsafe {
            self.launch_to(i)?;
            // Everything that used matrices so far is launched.
            self.stage.mark_launched(self.context);
            self.stage.copy_after_marked();
            let Stream { memory, residency, .. } = &mut *self.stream;
            let mut copies = std::mem::take(&mut self.stage.matrices);
            let place = loop {
                copies.clear();
                let place = residency.device_matrix(index, &mut copies)?;
                let mut from_ring = false;
                for copy in &copies {
                    begin(self.stage, memory, copy)?;
                    from_ring |= matches!(copy.from, MatrixFrom::Ring(_));
                }
                if let Some(place) = place {
                    if from_ring && let Some(serial) = self.stage.matrices_copied() {
                        residency.matrices_copied(serial);
                    }
                    break place;
                }
                sys::ggml_backend_synchronize(self.stage.copier);
                residency.matrices_copied(u64::MAX);
            };
            self.stage.matrices = copies;
            self.stage.compute_after_matrix(self.context, place.serial);
            let tensor = memory
                .front(self.stage.device)
                .and_then(|front| front.matrix_at(index, place.offset));
            let Some(tensor) = tensor else {
                return Err(Stop::Internal(format!("matrix {index} has no place")));
            };
            let node = self.nodes[i];
            self.restore.note(node);
            (*node).src[0] = tensor;
            Ok(())
        }
    }
}

/// Puts one copy into the copy stream.
unsafe fn begin(
    stage: &mut Stage,
    memory: &Arc<StreamMemory>,
    copy: &MatrixUpload,
) -> Result<(), Stop> {
    let lost = || Stop::Internal(format!("a copy to no place: {copy:?}"));
    let front = memory.front(stage.device).ok_or_else(lost)?;
    let matrix = front.matrix(copy.index).ok_or_else(lost)?;
    let ring = front.ring().ok_or_else(lost)?;
    let from = memory.host_bytes(copy.from, matrix.bytes).ok_or_else(lost)?;
    let at = copy.place.offset;
    // SAFETY: both ends lie in their memory.
    unsafe {
        if at + matrix.padded_bytes > sys::ggml_nbytes(ring) {
            return Err(lost());
        }
        sys::ggml_backend_tensor_set_async(stage.copier, ring, from.cast(), at, matrix.bytes);
        let padding = matrix.padded_bytes - matrix.bytes;
        if padding > 0 {
            let zeros = stage.zeros(padding)?;
            let end = at + matrix.bytes;
            sys::ggml_backend_tensor_set_async(stage.copier, ring, zeros.cast(), end, padding);
        }
        stage.end_matrix(copy.place.serial);
    }
    Ok(())
}
