//! What a group's kernels are told: which rows, of which slots, and where to.

use llama_cpp_sys_2 as sys;

use super::super::super::compute::Stop;
use super::super::super::device::BackendContext;
use super::super::super::passes::{Descriptions, PassScratch, place_views};
use super::super::Stage;
use super::rows::{self, Rows};
use crate::abi::Tensor;

/// Bytes of a row in the tables of a group.
const ROW_BYTES: usize = 16;
/// Tensors of GPUs begin at multiples of this.
const ALIGNMENT: usize = 256;

/// Memory on the device for the tables of all groups of a layer: they are written before the groups
/// that come before theirs are computed.
#[derive(Default)]
pub(in super::super) struct TableMemory {
    scratch: PassScratch,
    bytes: usize,
    taken: usize,
}

impl TableMemory {
    /// Nothing that was launched reads tables any more.
    pub(in super::super) fn clear(&mut self) {
        self.taken = 0;
    }
}

/// The tables of a group.
pub(super) struct Tables {
    /// Where its rows come from: `[n_rows]`.
    pub(super) source: *mut Tensor,
    /// Which slots they are multiplied with: `[abreast, columns]`.
    pub(super) slots: *mut Tensor,
    /// Where they go: `[n_rows]`.
    pub(super) target: *mut Tensor,
}

impl Tables {
    /// Describes and writes them, in a micro-batch of so many tokens and choices.
    ///
    /// # Safety
    /// As [`super::run`]; `c` is a context for descriptions.
    pub(super) unsafe fn new(
        context: &BackendContext,
        stage: &mut Stage,
        rows: &Rows,
        c: *mut sys::ggml_context,
        (n_tokens, n_choices): (usize, usize),
    ) -> Result<Tables, Stop> {
        // SAFETY: the caller's promise; tensors have memory when they are written.
        unsafe {
            let len = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let (p, abreast) = (rows.slots.len(), rows.abreast());
            // One after the other, so that they are one copy.
            let whole = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I32, len(4 * p));
            let columns = (len(abreast), len(p / abreast));
            let target = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I64, len(p));
            let source = sys::ggml_view_1d(c, whole, len(p), 8 * p);
            let slots = sys::ggml_view_2d(c, whole, columns.0, columns.1, 4 * abreast, 12 * p);
            // Rows may be repeated.
            let most = ROW_BYTES * (2 * n_choices + rows::rows_max(n_tokens));
            place(context, stage, whole, most)?;
            rows.write_tables(&mut stage.words);
            let words = std::mem::take(&mut stage.words);
            let done = stage.set_beside(context, whole, &words);
            stage.words = words;
            done?;
            ((*target).buffer, (*target).data) = ((*whole).buffer, (*whole).data);
            place_views(&[source, slots]);
            Ok(Tables { source, slots, target })
        }
    }
}

/// Gives a group's tables memory, of `most` bytes for all groups.
unsafe fn place(
    context: &BackendContext,
    stage: &mut Stage,
    tables: *mut Tensor,
    most: usize,
) -> Result<(), Stop> {
    // SAFETY: as `Tables::new`.
    unsafe {
        let bytes = sys::ggml_nbytes(tables).next_multiple_of(ALIGNMENT);
        let memory = &mut stage.table_memory;
        let is_new = memory.bytes < most.max(bytes);
        if is_new || memory.taken + bytes > memory.bytes {
            // What is under way may read what it has.
            sys::ggml_backend_synchronize(context.inner);
            memory.taken = 0;
        }
        if is_new {
            memory.bytes = most.max(bytes);
        }
        let ctx = Descriptions::new()?;
        let n = i64::try_from(memory.bytes).unwrap_or(i64::MAX);
        let all = sys::ggml_new_tensor_1d(ctx.as_ptr(), sys::GGML_TYPE_I8, n);
        memory.scratch.place(context, &[all])?;
        ((*tables).buffer, (*tables).data) =
            ((*all).buffer, (*all).data.cast::<u8>().add(memory.taken).cast());
        memory.taken += bytes;
        Ok(())
    }
}
