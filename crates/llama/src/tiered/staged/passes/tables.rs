//! What groups' kernels are told: which rows, of which slots, and where to.
//!
//! All groups of a layer are known when its router has chosen. So there are two copies of tables per
//! layer: those of the first group, which the device waits for, and those of all others, which are
//! written while it computes the first. (A copy for each group is three calls of the device's library
//! more, and waits in its copy engine for an expert's slice each time; on an H200 it was as fast.)

use std::ops::Range;

use llama_cpp_sys_2 as sys;

use super::super::super::compute::Stop;
use super::super::super::device::BackendContext;
use super::super::super::passes::{Descriptions, PassScratch};
use super::super::Stage;
use super::rows::{self, Routed};
use super::{Group, Job};
use crate::abi::{Buffer, Tensor};

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

/// A group's rows, as they lie before the device.
pub(super) struct Laid {
    pub(super) n_rows: usize,
    /// How many lie abreast.
    pub(super) abreast: usize,
    /// The slots from the group's first to its last.
    pub(super) span: Range<u32>,
    /// Where its tables are on the device.
    buffer: Buffer,
    at: *mut u8,
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
    /// Describes those of a group.
    ///
    /// # Safety
    /// `c` is a context for descriptions.
    pub(super) unsafe fn of(laid: &Laid, c: *mut sys::ggml_context) -> Tables {
        let len = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let (n, abreast) = (laid.n_rows, laid.abreast);
        // SAFETY: the caller's promise; the tables were written with room for all of this.
        unsafe {
            let place = |tensor: *mut Tensor, at: usize| {
                (*tensor).buffer = laid.buffer;
                (*tensor).data = laid.at.add(at).cast();
                tensor
            };
            let target = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I64, len(n));
            let source = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I32, len(n));
            let columns = len(n / abreast);
            let slots = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_I32, len(abreast), columns);
            Tables {
                target: place(target, 0),
                source: place(source, 8 * n),
                slots: place(slots, 12 * n),
            }
        }
    }
}

/// Arranges the rows of groups, and writes their tables with one copy. Row `i` of the result reads row
/// `i / divisor` of the input.
///
/// # Safety
/// As [`super::run`].
pub(super) unsafe fn lay(
    context: &BackendContext,
    stage: &mut Stage,
    job: &Job,
    (routed, divisor): (&Routed, usize),
    groups: &[Group],
) -> Result<Vec<Laid>, Stop> {
    let mut words = std::mem::take(&mut stage.words);
    words.clear();
    let mut laid: Vec<Laid> = Vec::with_capacity(groups.len());
    for group in groups {
        let rows = &mut stage.rows;
        rows.gather(routed, divisor, &group.experts, &group.slots);
        rows.arrange(job.n_tokens, !context.device.is_cpu);
        rows.write_tables(&mut words);
        let (n_rows, abreast, span) = (rows.slots.len(), rows.abreast(), rows.span());
        let (buffer, at) = (std::ptr::null_mut(), std::ptr::null_mut());
        laid.push(Laid { n_rows, abreast, span, buffer, at });
    }
    // SAFETY: the caller's promise.
    unsafe {
        let ctx = Descriptions::new()?;
        let len = i64::try_from(words.len()).unwrap_or(i64::MAX);
        let whole = sys::ggml_new_tensor_1d(ctx.as_ptr(), sys::GGML_TYPE_I32, len);
        // Rows may be repeated.
        let n_choices = job.n_used * job.n_tokens;
        let most = ROW_BYTES * (2 * n_choices + rows::rows_max(job.n_tokens));
        place(context, stage, whole, most)?;
        let done = stage.set_beside(context, whole, &words);
        stage.words = words;
        done?;
        let mut at = (*whole).data.cast::<u8>();
        for laid in &mut laid {
            (laid.buffer, laid.at) = ((*whole).buffer, at);
            at = at.add(ROW_BYTES * laid.n_rows);
        }
    }
    Ok(laid)
}

/// Gives tables memory, of `most` bytes for all groups.
unsafe fn place(
    context: &BackendContext,
    stage: &mut Stage,
    tables: *mut Tensor,
    most: usize,
) -> Result<(), Stop> {
    // SAFETY: as `lay`.
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
