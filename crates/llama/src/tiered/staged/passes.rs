//! A prompt's experts that do not fit the device's slots at once.
//!
//! As in [`super::super::passes`], groups of experts are done one after the other, and rows are
//! gathered and scattered: `get_rows -> mul_mat_id -> set_rows`. Here what is missing passes through
//! half of the slots, those of the coldest experts, so that the others are still there afterwards. A
//! group takes at most half of these, so that the next one's bytes are copied while it is computed,
//! and nothing is waited for: the copy stream waits for the group before the last one, whose slots it
//! overwrites, and the compute stream for the copies.
//!
//! A group's tables go before its experts in the copy stream. In the compute stream they would wait
//! for its experts, and then, in the device's copy engine, for those of the next group.
//!
//! Where nothing lies between a layer's products but the gate, all of them are done for a group
//! before the next one, `down(glu(gate x, up x))`: product by product, the slots would be given away
//! three times.
//!
//! How a group's rows are arranged is in [`rows`].

mod rows;

use llama_cpp_sys_2 as sys;

use super::super::compute::{Stop, status};
use super::super::device::BackendContext;
use super::super::graph;
use super::super::group::Stream;
use super::super::passes::{Descriptions, PassScratch, place_views};
use super::{Stage, begin_uploads};
use crate::abi::{self, Tensor};

use rows::{Routed, Rows};

/// What to do in passes.
pub(super) struct Job {
    pub(super) steps: Steps,
    pub(super) layer: u32,
    /// The parts of experts that it reads, as a mask.
    pub(super) parts: u8,
    pub(super) n_used: usize,
    pub(super) n_tokens: usize,
}

/// The products of a job; each with the node that it stands for, and the device's slots for its
/// part.
pub(super) enum Steps {
    /// One product.
    One(Product),
    /// Gate, up, what gates them, and down.
    All { gate: Product, up: Product, glu: *mut Tensor, down: Product },
}

#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) node: *mut Tensor,
    pub(super) slots: *mut Tensor,
}

impl Steps {
    /// What is multiplied first.
    unsafe fn input(&self) -> *mut Tensor {
        let (Steps::One(first) | Steps::All { gate: first, .. }) = self;
        // SAFETY: a node of a live graph.
        unsafe { (*first.node).src[1] }
    }

    /// What gets the rows.
    fn output(&self) -> *mut Tensor {
        let (Steps::One(last) | Steps::All { down: last, .. }) = self;
        last.node
    }
}

/// Experts that are done together.
#[derive(Default)]
struct Group {
    experts: Vec<u32>,
    rows: Rows,
    tables: Option<Tables>,
}

/// Launches the matmul.
///
/// # Safety
/// The job's nodes are of the graph being computed, and everything before them is launched.
pub(super) unsafe fn run(
    context: &BackendContext,
    stage: &mut Stage,
    stream: &mut Stream,
    job: &Job,
) -> Result<(), Stop> {
    let Stream { memory, residency, scratch } = stream;
    let (layer, parts) = (job.layer, job.parts);
    let capacity = residency.device_capacity(layer);
    if capacity == 0 {
        return Err(Stop::Internal("a layer without slots on the device".into()));
    }
    let half = (capacity / 2).max(1);
    // Two groups are under way.
    let missing_max = (capacity / 4).max(1);
    let inside = residency.begin_passage(layer, u32::try_from(2 * missing_max).unwrap_or(u32::MAX));
    // A few rows take the kernel for vectors, if the whole matmul would have.
    let rows_max = match job.n_tokens {
        n if n <= rows::VECTORS_MAX => rows::VECTORS_MAX,
        n => rows::rows_max(n),
    };
    let routed = Routed::new(&scratch.ids);
    // Those that are there first, slot by slot, and of them those that make room.
    let mut slots = Vec::new();
    let mut order: Vec<(Option<u32>, u32)> = routed
        .experts()
        .map(|expert| {
            slots.clear();
            residency.device_slots(layer, &[expert], parts, &mut slots);
            (slots.first().copied(), expert)
        })
        .collect();
    let is_inside = |slot: Option<u32>| slot.is_some_and(|slot| inside.contains(&slot));
    order.sort_by_key(|&(slot, expert)| (slot.is_none(), !is_inside(slot), slot, expert));
    let mut rest = order.as_slice();
    let n_inside = rest.iter().filter(|&&(slot, _)| is_inside(slot)).count();
    // While the only group is computed, what is missing must find room beside it.
    let first_max = if n_inside > missing_max { n_there(rest).div_ceil(2) } else { half };
    let limits = Limits { there: half.min(first_max), missing: missing_max, rows: rows_max };
    let mut groups: [Group; 2] = Default::default();
    // SAFETY: the caller's promise.
    let kept = unsafe { keep_input(context, &mut stage.kept, &job.steps)? };
    // SAFETY: as above.
    let input = kept.as_ref().map_or_else(|| unsafe { job.steps.input() }, |(_, copy)| *copy);
    // A group's copies begin before the one before it is launched, as launching takes the host longer;
    // but the first goes ahead, as it has what is there and makes room.
    let (mut n_begun, mut n_launched) = (0, 0);
    while n_launched < n_begun || !rest.is_empty() {
        if context.device.aborted() {
            return Err(Stop::Aborted);
        }
        let is_first = (n_begun, n_launched) == (1, 0);
        if rest.is_empty() || is_first || n_begun == n_launched + groups.len() {
            let group = &groups[n_launched % 2];
            // SAFETY: the caller's promise.
            unsafe {
                stage.compute_after_group_copies(context, n_launched);
                launch_group(context, stage, job, input, group)?;
                stage.end_group(context, n_launched);
            }
            n_launched += 1;
            continue;
        }
        let i = n_begun;
        n_begun += 1;
        let (first, tail) = rest.split_at(limits.next(rest, &routed));
        rest = tail;
        let group = &mut groups[i % 2];
        let old = std::mem::take(&mut group.experts);
        group.experts.extend(first.iter().map(|&(_, expert)| expert));
        slots.clear();
        // SAFETY: as above: slots of groups under way stay in use.
        unsafe {
            if i >= 2 {
                // The group before the last one is done before any copy that begins from now on.
                stage.copy_after_group(i);
                residency.device_release(layer, &old);
            }
            residency.device_experts(layer, &group.experts, parts, &mut slots)?;
            let divisor = if graph::dim(job.steps.input(), 1) == 1 { job.n_used } else { 1 };
            group.rows.gather(&routed, divisor, &group.experts, &slots);
            group.rows.arrange(job.n_tokens, !context.device.is_cpu);
            group.tables = None;
            group.tables = Some(Tables::new(context, stage, &group.rows, (i, job.n_tokens))?);
            begin_uploads(stage, memory, residency.as_mut())?;
            stage.end_group_copies(i);
        }
    }
    // The layer's next matmul takes the same slots.
    for i in n_launched.saturating_sub(2)..n_launched {
        // SAFETY: as above.
        unsafe { stage.copy_after_group(i) };
        residency.device_release(layer, &groups[i % 2].experts);
    }
    residency.end_passage(layer);
    Ok(())
}

/// How many experts of a list, each with its slot, are there: they come first.
fn n_there(experts: &[(Option<u32>, u32)]) -> usize {
    experts.iter().take_while(|(slot, _)| slot.is_some()).count()
}

/// The most that a group may have.
struct Limits {
    /// Experts, if they are there, and if not.
    there: usize,
    missing: usize,
    rows: usize,
}

impl Limits {
    /// How many of `rest`, of which those that are there come first, are done next. They don't mix:
    /// their slots would lie far apart. Even groups: a small one at the end would use the device
    /// badly.
    fn next(&self, rest: &[(Option<u32>, u32)], routed: &Routed) -> usize {
        let (n_alike, limit) = match n_there(rest) {
            0 => (rest.len(), self.missing),
            n => (n, self.there),
        };
        let even = n_alike.div_ceil(n_alike.div_ceil(limit));
        let (mut n, mut n_rows) = (0, 0);
        for &(_, expert) in &rest[..even] {
            let more = routed.rows_of(expert).len();
            if n > 0 && n_rows + more > self.rows {
                break;
            }
            (n, n_rows) = (n + 1, n_rows + more);
        }
        n
    }
}

/// A copy of what is multiplied, where the rows that come out take its memory: ggml gives the memory
/// of a tensor away when the last of its readers is done, and here groups read it anew after others
/// have written.
///
/// # Safety
/// As [`run`]; the copy lives as long as its description and `memory`.
unsafe fn keep_input(
    context: &BackendContext,
    memory: &mut PassScratch,
    steps: &Steps,
) -> Result<Option<(Descriptions, *mut Tensor)>, Stop> {
    // SAFETY: the caller's promise.
    unsafe {
        let (x, output) = (steps.input(), steps.output());
        let span = |t: *mut Tensor| {
            let start = (*t).data as usize;
            start..start + sys::ggml_nbytes(t)
        };
        let (read, written) = (span(x), span(output));
        if read.start >= written.end || written.start >= read.end {
            return Ok(None);
        }
        let ctx = Descriptions::new()?;
        let c = ctx.as_ptr();
        let copy = sys::ggml_dup(c, x);
        if !memory.fits(context, &[copy]) {
            sys::ggml_backend_synchronize(context.inner);
        }
        memory.place(context, &[copy])?;
        let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
        (*copy).flags |= abi::TENSOR_FLAG_COMPUTE;
        sys::ggml_graph_add_node(small, copy);
        status(sys::ggml_backend_graph_compute_async(context.inner, small.cast()))?;
        Ok(Some((ctx, copy)))
    }
}

/// Where a group's rows come from, which slots they are multiplied with, and where they go.
struct Tables {
    _ctx: Descriptions,
    source: *mut Tensor,
    slots: *mut Tensor,
    target: *mut Tensor,
}

impl Tables {
    /// Writes those of group `i` in the order of the copy stream.
    ///
    /// # Safety
    /// As [`run`]; copies wait for group `i - 2`, and the compute stream will wait for this one.
    unsafe fn new(
        context: &BackendContext,
        stage: &mut Stage,
        rows: &Rows,
        (i, n_tokens): (usize, usize),
    ) -> Result<Tables, Stop> {
        // SAFETY: the caller's promise; tensors have memory when they are written.
        unsafe {
            let ctx = Descriptions::new()?;
            let c = ctx.as_ptr();
            let len = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let (p, abreast) = (rows.slots.len(), rows.abreast());
            // One after the other, so that they are one copy: 16 bytes for a row.
            let whole = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I32, len(4 * p));
            let columns = (len(abreast), len(p / abreast));
            let target = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I64, len(p));
            let source = sys::ggml_view_1d(c, whole, len(p), 8 * p);
            let slots = sys::ggml_view_2d(c, whole, columns.0, columns.1, 4 * abreast, 12 * p);
            // A larger buffer takes the place of one that a group under way may still use.
            if !stage.tables_of[i % 2].fits(context, &[whole]) {
                stage.synchronize(context);
            }
            let rows_of_all = (p, rows::rows_max(n_tokens));
            stage.tables_of[i % 2].place_of(context, &[whole], rows_of_all)?;
            ((*target).buffer, (*target).data) = ((*whole).buffer, (*whole).data);
            place_views(&[source, slots]);
            rows.write_tables(&mut stage.words);
            let words = std::mem::take(&mut stage.words);
            let done = stage.set_ahead(context, whole, &words);
            stage.words = words;
            done?;
            Ok(Tables { _ctx: ctx, source, slots, target })
        }
    }
}

/// Puts one group into the compute stream.
///
/// # Safety
/// As [`run`]; the group's experts are in their slots, and its tables written, before the stream
/// comes to it.
unsafe fn launch_group(
    context: &BackendContext,
    stage: &mut Stage,
    job: &Job,
    x: *mut Tensor,
    group: &Group,
) -> Result<(), Stop> {
    let rows = &group.rows;
    let tables =
        group.tables.as_ref().ok_or_else(|| Stop::Internal("a group without tables".into()))?;
    // SAFETY: all tensors are alive; `x` and `node` are contiguous (checked).
    unsafe {
        let node = job.steps.output();
        if !sys::ggml_is_contiguous(x) || !sys::ggml_is_contiguous(node) {
            return Err(Stop::Internal(format!(
                "{} has an input that is not contiguous",
                graph::name(node)
            )));
        }
        let ctx = Descriptions::new()?;
        let c = ctx.as_ptr();
        let len = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let of_slots = rows.span();
        let (n_rows, abreast) = (rows.slots.len(), rows.abreast());
        let (p, columns) = (len(n_rows), len(n_rows / abreast));
        let abreast = len(abreast);
        let (n_in, n_out) = ((&(*x).ne)[0], (&(*node).ne)[0]);
        let n_inputs = len(graph::dim(x, 1) * job.n_tokens);
        let n_outputs = len(job.n_used * job.n_tokens);

        let inputs = sys::ggml_view_2d(c, x, n_in, n_inputs, (&(*x).nb)[1], 0);
        let outputs = sys::ggml_view_2d(c, node, n_out, n_outputs, (&(*node).nb)[1], 0);
        let gathered = sys::ggml_get_rows(c, inputs, tables.source);
        let gathered3 = sys::ggml_reshape_3d(c, gathered, n_in, abreast, columns);
        // CUDA divides its blocks among all matrices that it is given, used or not.
        let multiply = |of: &Product, rows: *mut Tensor| {
            let (ne, nb) = ((*of.slots).ne, (*of.slots).nb);
            let (first, n) = (of_slots.start as usize, i64::from(of_slots.end - of_slots.start));
            let part = sys::ggml_view_3d(c, of.slots, ne[0], ne[1], n, nb[1], nb[2], first * nb[2]);
            place_views(&[part]);
            let product = sys::ggml_mul_mat_id(c, part, rows, tables.slots);
            (*product).op_params = (*of.node).op_params;
            product
        };
        let mut owners = vec![gathered];
        let mut steps = vec![inputs, outputs, gathered, gathered3];
        let product = match &job.steps {
            Steps::One(of) => multiply(of, gathered3),
            Steps::All { gate, up, glu, down } => {
                let (gate, up) = (multiply(gate, gathered3), multiply(up, gathered3));
                let gated = sys::ggml_glu_split(c, gate, up, sys::ggml_get_glu_op(*glu));
                (*gated).op_params = (**glu).op_params;
                owners.extend([gate, up, gated]);
                steps.extend([gate, up, gated]);
                multiply(down, gated)
            }
        };
        owners.push(product);
        let product2 = sys::ggml_reshape_2d(c, product, n_out, p);
        let scattered = sys::ggml_set_rows(c, outputs, product2, tables.target);
        steps.extend([product, product2, scattered]);

        // A larger buffer takes the place of one that a group under way may still use.
        if !stage.pass.fits(context, &owners) {
            sys::ggml_backend_synchronize(context.inner);
        }
        stage.pass.place_of(context, &owners, (n_rows, rows::rows_max(job.n_tokens)))?;
        place_views(&[inputs, outputs, gathered3, product2, scattered]);

        let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
        for step in steps {
            (*step).flags |= abi::TENSOR_FLAG_COMPUTE;
            sys::ggml_graph_add_node(small, step);
        }
        status(sys::ggml_backend_graph_compute_async(context.inner, small.cast()))
    }
}
