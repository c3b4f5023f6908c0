//! An expert matmul whose experts do not fit the pool at once.
//!
//! The experts are taken in groups, resident ones first. For each group a small graph gathers the
//! rows routed to it, multiplies them, and scatters the results to where the whole matmul would
//! have put them: `get_rows -> mul_mat_id -> set_rows`. Grouping by expert, and keeping the rows
//! of an expert together and in order, gives the same bits as one matmul: the kernels look at how
//! many rows an expert has. Each slice is read at most once, and no arithmetic is wasted.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::compute::{Scratch, Stop, compute_and_wait};
use super::device::BackendContext;
use super::graph;
use super::group::Stream;
use crate::abi::{self, Buffer, Buft, Graph, Tensor};

/// One matmul to do in passes.
pub(super) struct Job {
    pub(super) node: *mut Tensor,
    /// The pool's tensor for this part.
    pub(super) pool: *mut Tensor,
    pub(super) layer: u32,
    pub(super) part: u8,
    pub(super) n_used: usize,
    pub(super) n_tokens: usize,
}

/// How many times the rows of the largest expert (all tokens) one pass may hold.
const ROWS_FACTOR: usize = 2;

/// Memory for the tensors of one pass; grows to the largest and stays.
#[derive(Default)]
pub(super) struct PassScratch {
    buffer: Option<(Buffer, usize)>,
    source_rows: Vec<i32>,
    slots: Vec<i32>,
    target_rows: Vec<i64>,
    order: Vec<u32>,
    group_slots: Vec<u32>,
}

// SAFETY: the buffer is used by the computing thread alone.
unsafe impl Send for PassScratch {}

impl Drop for PassScratch {
    fn drop(&mut self) {
        if let Some((buffer, _)) = self.buffer.take() {
            // SAFETY: allocated below, freed once.
            unsafe { sys::ggml_backend_buffer_free(buffer) };
        }
    }
}

/// The most bytes that a pass needs beside the pool: gathered inputs and results of
/// `ROWS_FACTOR * n_tokens` rows, and their tables. For the planner.
#[must_use]
pub const fn pass_bytes(n_tokens: u64, row_in: u64, row_out: u64) -> u64 {
    let rows = n_tokens * ROWS_FACTOR as u64;
    rows * (row_in + row_out) * 4 + rows * 16 + 4096
}

/// Does the matmul.
///
/// # Safety
/// `job.node` is a node of the graph being computed, and everything before it is computed.
pub(super) unsafe fn run(
    context: &BackendContext,
    stream: &mut Stream,
    job: &Job,
) -> Result<(), Stop> {
    let Stream { residency, scratch, .. } = stream;
    let ids = std::mem::take(&mut scratch.ids);
    let pass = &mut scratch.pass;
    let mut counts: std::collections::BTreeMap<u32, usize> = std::collections::BTreeMap::new();
    for id in &ids {
        *counts.entry(id.unsigned_abs()).or_default() += 1;
    }
    let parts = 1 << job.part;
    pass.order.clear();
    pass.order.extend(counts.keys());
    pass.order.sort_by_key(|&e| !residency.is_resident(job.layer, e, parts));
    let rows_max = (job.n_tokens * ROWS_FACTOR).max(1);
    let capacity = residency.capacity(job.layer);
    if capacity == 0 {
        return Err(Stop::Internal("a pool without slots".into()));
    }
    let order = std::mem::take(&mut pass.order);
    let mut rest = order.as_slice();
    let result = loop {
        if rest.is_empty() {
            break Ok(());
        }
        if context.device.aborted() {
            break Err(Stop::Aborted);
        }
        let mut rows = 0;
        let mut n = 0;
        while n < rest.len().min(capacity) {
            let more = counts.get(&rest[n]).copied().unwrap_or(0);
            if n > 0 && rows + more > rows_max {
                break;
            }
            rows += more;
            n += 1;
        }
        let (group, tail) = rest.split_at(n);
        rest = tail;
        pass.group_slots.clear();
        let ready = residency
            .experts(job.layer, group, parts, &mut pass.group_slots)
            .and_then(|()| residency.wait(job.layer, parts));
        if let Err(error) = ready {
            break Err(error.into());
        }
        if pass.group_slots.iter().any(|&slot| slot as usize >= capacity) {
            break Err(Stop::Internal("a pass got a slot that is not".into()));
        }
        // SAFETY: the caller's promise; the group's experts are resident.
        if let Err(stop) = unsafe { one_group(context, job, pass, &ids, group) } {
            break Err(stop);
        }
        residency.computed();
    };
    pass.order = order;
    scratch.ids = ids;
    result
}

/// Does the part of the matmul that belongs to `experts`, which have the slots that `slot_of` names
/// and whose bytes are there; the rest of the result stays as it is.
///
/// # Safety
/// As [`run`].
pub(super) unsafe fn some(
    context: &BackendContext,
    scratch: &mut Scratch,
    job: &Job,
    experts: &[u32],
) -> Result<(), Stop> {
    let Scratch { pass, ids, slot_of, .. } = scratch;
    let rows_max = (job.n_tokens * ROWS_FACTOR).max(1);
    let rows_of = |expert: u32| ids.iter().filter(|id| id.unsigned_abs() == expert).count();
    let mut rest = experts;
    while !rest.is_empty() {
        let (mut rows, mut n) = (0, 0);
        while let Some(&expert) = rest.get(n) {
            rows += rows_of(expert);
            if n > 0 && rows > rows_max {
                break;
            }
            n += 1;
        }
        let (group, tail) = rest.split_at(n);
        rest = tail;
        pass.group_slots.clear();
        for expert in group {
            let slot = slot_of.get(expert).copied();
            pass.group_slots.push(slot.ok_or_else(|| Stop::Internal("no slot".into()))?);
        }
        // SAFETY: the caller's promise.
        unsafe { one_group(context, job, pass, ids, group)? };
    }
    Ok(())
}

/// Whether a matmul can be done in parts.
///
/// # Safety
/// `node` is a MUL_MAT_ID of a live graph.
pub(super) unsafe fn is_divisible(node: *mut Tensor) -> bool {
    // SAFETY: the caller's promise.
    unsafe { sys::ggml_is_contiguous((*node).src[1]) && sys::ggml_is_contiguous(node) }
}

unsafe fn one_group(
    context: &BackendContext,
    job: &Job,
    pass: &mut PassScratch,
    ids: &[i32],
    group: &[u32],
) -> Result<(), Stop> {
    // SAFETY: as `run`: all tensors are alive, `x` and `node` are contiguous (checked).
    unsafe {
        let node = job.node;
        let x = (*node).src[1];
        if !sys::ggml_is_contiguous(x) || !sys::ggml_is_contiguous(node) {
            return Err(Stop::Internal(format!(
                "{} has an input that is not contiguous",
                graph::name(node)
            )));
        }
        // One row per token when all its experts read the same input, else one per choice.
        let shared_input = graph::dim(x, 1) == 1;
        let slot_of = |id: i32| {
            let at = group.iter().position(|&e| e == id.unsigned_abs())?;
            pass.group_slots.get(at).copied()
        };
        pass.source_rows.clear();
        pass.slots.clear();
        pass.target_rows.clear();
        for (row, &id) in ids.iter().enumerate() {
            let Some(slot) = slot_of(id) else { continue };
            let source = if shared_input { row / job.n_used } else { row };
            pass.source_rows.push(i32::try_from(source).unwrap_or(0));
            pass.slots.push(i32::try_from(slot).unwrap_or(0));
            pass.target_rows.push(i64::try_from(row).unwrap_or(0));
        }
        let ctx = Descriptions::new()?;
        let c = ctx.0.as_ptr();
        let len = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let p = len(pass.slots.len());
        let (n_in, n_out) = ((&(*x).ne)[0], (&(*node).ne)[0]);
        let n_inputs = len(graph::dim(x, 1) * job.n_tokens);
        let n_outputs = len(job.n_used * job.n_tokens);

        let source_rows = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I32, p);
        let slots = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_I32, 1, p);
        let target_rows = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I64, p);
        let inputs = sys::ggml_view_2d(c, x, n_in, n_inputs, (&(*x).nb)[1], 0);
        let outputs = sys::ggml_view_2d(c, node, n_out, n_outputs, (&(*node).nb)[1], 0);
        let gathered = sys::ggml_get_rows(c, inputs, source_rows);
        let gathered3 = sys::ggml_reshape_3d(c, gathered, n_in, 1, p);
        let product = sys::ggml_mul_mat_id(c, job.pool, gathered3, slots);
        (*product).op_params = (*node).op_params;
        let product2 = sys::ggml_reshape_2d(c, product, n_out, p);
        let scattered = sys::ggml_set_rows(c, outputs, product2, target_rows);

        let owners = [source_rows, slots, target_rows, gathered, product];
        pass.place(context, &owners)?;
        place_views(&[inputs, outputs, gathered3, product2, scattered]);
        set(context, source_rows, &pass.source_rows);
        set(context, slots, &pass.slots);
        set(context, target_rows, &pass.target_rows);

        let small = sys::ggml_new_graph_custom(c, GRAPH_NODES, false);
        for step in [inputs, outputs, gathered, gathered3, product, product2, scattered] {
            (*step).flags |= abi::TENSOR_FLAG_COMPUTE;
            sys::ggml_graph_add_node(small, step);
        }
        compute_and_wait(context, small.cast::<Graph>())
    }
}

const GRAPH_NODES: usize = 20;

/// A ggml context for the descriptions of one small graph.
pub(super) struct Descriptions(NonNull<sys::ggml_context>);

impl Descriptions {
    /// Tensors that there is room for.
    pub(super) const NODES: usize = GRAPH_NODES;

    pub(super) fn as_ptr(&self) -> *mut sys::ggml_context {
        self.0.as_ptr()
    }

    pub(super) fn new() -> Result<Descriptions, Stop> {
        // SAFETY: descriptions only; freed in `Drop`.
        let ctx = unsafe {
            sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * GRAPH_NODES
                    + sys::ggml_graph_overhead_custom(GRAPH_NODES, false),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        NonNull::new(ctx).map(Descriptions).ok_or(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED))
    }
}

impl Drop for Descriptions {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        unsafe { sys::ggml_free(self.0.as_ptr()) };
    }
}

impl PassScratch {
    /// Whether the tensors have room without a larger buffer.
    pub(super) unsafe fn fits(&self, context: &BackendContext, tensors: &[*mut Tensor]) -> bool {
        // SAFETY: the tensors are described.
        unsafe {
            let buft = sys::ggml_backend_dev_buffer_type(context.device.inner);
            let wanted: usize = tensors.iter().map(|&t| placed_bytes(buft, t)).sum();
            self.buffer.is_some_and(|(_, have)| have >= wanted)
        }
    }

    /// Gives the tensors places in the scratch buffer, which grows if it must.
    pub(super) unsafe fn place(
        &mut self,
        context: &BackendContext,
        tensors: &[*mut Tensor],
    ) -> Result<(), Stop> {
        // SAFETY: the caller's promise.
        unsafe { self.place_of(context, tensors, (1, 1)) }
    }

    /// As [`PassScratch::place`], for a part of what may come: a buffer that grows has room for all.
    pub(super) unsafe fn place_of(
        &mut self,
        context: &BackendContext,
        tensors: &[*mut Tensor],
        (part, all): (usize, usize),
    ) -> Result<(), Stop> {
        // SAFETY: the tensors are described and have no memory yet; no computation uses the old
        // buffer any more.
        unsafe {
            let buft = sys::ggml_backend_dev_buffer_type(context.device.inner);
            let wanted: usize = tensors.iter().map(|&t| placed_bytes(buft, t)).sum();
            if self.buffer.is_none_or(|(_, have)| have < wanted) {
                let wanted = wanted.div_ceil(part.max(1)) * all.max(part);
                if let Some((old, _)) = self.buffer.take() {
                    sys::ggml_backend_buffer_free(old);
                }
                let buffer = sys::ggml_backend_buft_alloc_buffer(buft, wanted);
                if buffer.is_null() {
                    return Err(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED));
                }
                self.buffer = Some((buffer, wanted));
            }
            let Some((buffer, _)) = self.buffer else {
                return Err(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED));
            };
            let mut at = sys::ggml_backend_buffer_get_base(buffer).cast::<u8>();
            for &tensor in tensors {
                sys::ggml_backend_tensor_alloc(buffer, tensor, at.cast());
                at = at.add(placed_bytes(buft, tensor));
            }
            Ok(())
        }
    }
}

/// Gives views the memory of what they are views of.
///
/// # Safety
/// All of it is described, and the owners have memory.
pub(super) unsafe fn place_views(views: &[*mut Tensor]) {
    // SAFETY: the caller's promise.
    unsafe {
        for &view in views {
            let owner = graph::base(view);
            (*view).buffer = (*owner).buffer;
            (*view).data = (*owner).data.cast::<u8>().add((*view).view_offs).cast();
        }
    }
}

/// Bytes that a tensor takes in a buffer of this type.
unsafe fn placed_bytes(buft: Buft, tensor: *mut Tensor) -> usize {
    // SAFETY: a live type and a described tensor.
    unsafe {
        let align = sys::ggml_backend_buft_get_alignment(buft).max(1);
        sys::ggml_backend_buft_get_alloc_size(buft, tensor).next_multiple_of(align)
    }
}

/// Writes a table through the wrapped backend.
pub(super) unsafe fn set<T: Copy>(context: &BackendContext, tensor: *mut Tensor, values: &[T]) {
    // SAFETY: the tensor has the type and length of `values`.
    unsafe {
        let bytes = std::mem::size_of_val(values);
        let data = values.as_ptr().cast();
        sys::ggml_backend_tensor_set_async(context.inner, tensor, data, 0, bytes);
        sys::ggml_backend_synchronize(context.inner);
    }
}
