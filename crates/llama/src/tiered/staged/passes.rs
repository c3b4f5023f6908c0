//! A prompt's experts that do not fit the device's slots at once.
//!
//! As in [`super::super::passes`], groups of experts are done one after the other, and rows are
//! gathered and scattered: `get_rows -> mul_mat_id -> set_rows`. Here what has slots is done from
//! them, and what is missing passes through cells of no layer ([`super::cells`]), so that the slots
//! hold the same afterwards, but for what is worth keeping. Nothing is waited for: a group waits for
//! the copies to its cell, and copies to a cell for the group that used it last.
//!
//! A group's tables have a stream of their own. In the compute stream they would wait for the group
//! before, and then, in the device's copy engine, for experts; in the copy stream they would wait for
//! the experts that were begun ahead.
//!
//! Where nothing lies between a layer's products but the gate, all of them are done for a group
//! before the next one, `down(glu(gate x, up x))`: product by product, experts would pass three times.
//!
//! How a group's rows are arranged is in [`rows`].

mod rows;
mod tables;

use std::collections::VecDeque;

use llama_cpp_sys_2 as sys;

use super::super::compute::{Stop, status};
use super::super::device::BackendContext;
use super::super::graph;
use super::super::group::Stream;
use super::super::passes::{Descriptions, PassScratch, place_views};
use super::super::{PartIndex, Passed, Residency, Routing, StreamMemory};
use super::cells::Held;
use super::{Stage, begin};
use crate::abi::{self, Tensor};

pub(super) use rows::Rows;
pub(super) use tables::TableMemory;

use rows::Routed;
use tables::{Laid, Tables};

/// What to do in passes.
pub(super) struct Job {
    pub(super) steps: Steps,
    pub(super) layer: u32,
    /// The parts of experts that it reads, as a mask.
    pub(super) parts: u8,
    pub(super) n_used: usize,
    pub(super) n_tokens: usize,
    /// Whether the choice is noted for later ones.
    pub(super) is_noted: bool,
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
    pub(super) part: PartIndex,
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
struct Group {
    experts: Vec<u32>,
    /// Where they are: slots of the layer, or of a cell, counted from its first.
    slots: Vec<u32>,
    place: GroupPlace,
    /// Whether it is the last group that reads its cell.
    is_last: bool,
}

/// Where a group's experts are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GroupPlace {
    /// In slots of the layer.
    Own,
    /// In a cell.
    Cell(usize),
    /// In the cell that is the first one, the second, ... to be filled for this job.
    Coming(usize),
}

/// Launches the matmul; which experts the layer lacked.
///
/// # Safety
/// The job's nodes are of the graph being computed, and everything before them is launched.
pub(super) unsafe fn run(
    context: &BackendContext,
    stage: &mut Stage,
    stream: &mut Stream,
    job: &Job,
) -> Result<Vec<u32>, Stop> {
    let Stream { memory, residency, scratch } = stream;
    let (layer, parts) = (job.layer, job.parts);
    let routed = Routed::new(&scratch.ids);
    let mut counts = Passed::default();
    let Divided { groups, missing, unbrought } =
        divide(stage, residency.as_ref(), job, &routed, &mut counts);
    let per_cell = stage.cells.per_cell().max(1);
    let mut unbrought = unbrought.chunks(per_cell);
    let mut filled = Vec::new();
    // SAFETY: the caller's promise.
    let kept = unsafe { keep_input(context, &mut stage.kept, &job.steps)? };
    // SAFETY: as above.
    let input = kept.as_ref().map_or_else(|| unsafe { job.steps.input() }, |(_, copy)| *copy);
    // SAFETY: as above.
    let n_abreast = unsafe { graph::dim(input, 1) };
    let divisor = if n_abreast == 1 { job.n_used } else { 1 };
    // SAFETY: as above.
    unsafe { stage.compute_after_admission(context, layer) };
    let n_own = groups.iter().filter(|group| group.place == GroupPlace::Own).count();
    let mut is_noted = job.is_noted;
    let mut laid = VecDeque::new();
    let mut n_launched = 0;
    // Copies begin before what the device computes meanwhile is launched, which takes the host
    // longer; but something to compute comes first.
    loop {
        if context.device.aborted() {
            return Err(Stop::Aborted);
        }
        let group = groups.get(n_launched);
        let cell = match group.map(|group| group.place) {
            Some(GroupPlace::Cell(cell)) => Some(cell),
            Some(GroupPlace::Coming(i)) => filled.get(i).copied(),
            Some(GroupPlace::Own) | None => None,
        };
        let is_there = group.is_some_and(|group| group.place == GroupPlace::Own || cell.is_some());
        if (n_launched > 0 || !is_there)
            && stage.cells.room() > 0
            && let Some(experts) = unbrought.next()
        {
            let held = Held { layer, parts, experts: experts.to_vec(), is_expected: false };
            // SAFETY: the caller's promise.
            filled.push(unsafe { stage.fill_cell(memory, residency.as_mut(), held)? });
            continue;
        }
        let Some(group) = group.filter(|_| is_there) else { break };
        if laid.is_empty() {
            let next = if n_launched == 0 { &groups[..1] } else { &groups[n_launched..] };
            // SAFETY: as above.
            laid.extend(unsafe { tables::lay(context, stage, job, (&routed, divisor), next)? });
        }
        let Some(rows) = laid.pop_front() else { break };
        // SAFETY: as above.
        unsafe { launch_group(context, stage, job, (input, memory), &rows, cell)? };
        n_launched += 1;
        if !std::mem::replace(&mut is_noted, true) {
            // While the device computes.
            residency.note_routing(layer, Routing { ids: &scratch.ids, n_used: job.n_used });
        }
        if n_launched == n_own {
            // SAFETY: as above.
            unsafe { stage.mark_launched(context) };
        }
        if let Some(cell) = cell.filter(|_| group.is_last) {
            // SAFETY: as above.
            unsafe {
                if let Steps::All { .. } = job.steps {
                    keep_cell(stage, memory, residency.as_mut(), (layer, cell))?;
                }
                stage.give_back_cell(context, cell);
            }
        }
    }
    if n_launched < groups.len() {
        return Err(Stop::Internal(format!("layer {layer} has no room for experts to pass")));
    }
    counts.groups = n_launched;
    residency.passed(counts);
    Ok(missing)
}

/// A job's experts in groups, in the order in which they are launched.
struct Divided {
    groups: Vec<Group>,
    /// Those that have no slots.
    missing: Vec<u32>,
    /// Of these, those that are in no cell yet.
    unbrought: Vec<u32>,
}

/// Those that are there come first, slot by slot; then those that were brought ahead; then cells that
/// are still to be filled.
fn divide(
    stage: &mut Stage,
    residency: &dyn Residency,
    job: &Job,
    routed: &Routed,
    counts: &mut Passed,
) -> Divided {
    let (layer, parts) = (job.layer, job.parts);
    // A few rows take the kernel for vectors, if the whole matmul would have.
    let rows_max = match job.n_tokens {
        n if n <= rows::VECTORS_MAX => rows::VECTORS_MAX,
        n => rows::rows_max(n),
    };
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    let mut slots = Vec::new();
    for expert in routed.experts() {
        slots.clear();
        residency.device_slots(layer, &[expert], parts, &mut slots);
        match slots.first() {
            Some(&slot) => there.push((slot, expert)),
            None => missing.push(expert),
        }
    }
    there.sort_unstable();
    (counts.found, counts.missing) = (there.len(), missing.len());
    let mut groups = Groups { all: Vec::new(), routed, rows_max };
    groups.add(&there, GroupPlace::Own);
    let mut unbrought = missing.clone();
    for (cell, held) in stage.cells.holding(layer, parts) {
        let places = (0..).zip(held.experts.iter().copied());
        let needed: Vec<(u32, u32)> =
            places.filter(|(_, expert)| missing.binary_search(expert).is_ok()).collect();
        unbrought.retain(|expert| !held.experts.contains(expert));
        if held.is_expected {
            counts.expected += held.experts.len();
            counts.expected_rightly += needed.len();
        }
        if needed.is_empty() {
            stage.drop_cell(cell);
        }
        groups.add(&needed, GroupPlace::Cell(cell));
    }
    for (i, experts) in unbrought.chunks(stage.cells.per_cell().max(1)).enumerate() {
        let places: Vec<(u32, u32)> = (0..).zip(experts.iter().copied()).collect();
        groups.add(&places, GroupPlace::Coming(i));
    }
    Divided { groups: groups.all, missing, unbrought }
}

/// Groups that are to be launched.
struct Groups<'a> {
    all: Vec<Group>,
    routed: &'a Routed,
    rows_max: usize,
}

impl Groups<'_> {
    /// Divides experts, each with its slot, into groups of not too many rows.
    fn add(&mut self, mut experts: &[(u32, u32)], place: GroupPlace) {
        while !experts.is_empty() {
            let (mut n, mut n_rows) = (0, 0);
            for &(_, expert) in experts {
                let more = self.routed.rows_of(expert).len();
                if n > 0 && n_rows + more > self.rows_max {
                    break;
                }
                (n, n_rows) = (n + 1, n_rows + more);
            }
            let (group, rest) = experts.split_at(n);
            experts = rest;
            let (slots, experts) = group.iter().copied().unzip();
            self.all.push(Group { experts, slots, place, is_last: rest.is_empty() });
        }
    }
}

/// Copies what is worth it from a cell to slots of its layer, while it lies there.
///
/// # Safety
/// As [`run`]; what reads these slots is launched and marked.
unsafe fn keep_cell(
    stage: &mut Stage,
    memory: &StreamMemory,
    residency: &mut dyn Residency,
    (layer, cell): (u32, usize),
) -> Result<(), Stop> {
    let Some(experts) = stage.cells.held(cell).map(|held| held.experts.clone()) else {
        return Ok(());
    };
    let mut copies = std::mem::take(&mut stage.copies);
    copies.clear();
    residency.keep_passed(layer, &experts, stage.cells.first_slot(cell), &mut copies);
    if !copies.is_empty() {
        // SAFETY: the caller's promise.
        unsafe { stage.copy_after_marked() };
    }
    // SAFETY: the caller's promise.
    let begun =
        copies.iter().try_for_each(|copy| unsafe { begin(stage, stage.copier, memory, copy) });
    if !copies.is_empty() {
        // SAFETY: as above.
        unsafe { stage.end_admission(layer) };
    }
    stage.copies = copies;
    begun
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
        if !graph::write_over(&[output], &[x]) {
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

/// Puts one group into the compute stream.
///
/// # Safety
/// As [`run`]; the group's experts are in their slots before the stream comes to it.
unsafe fn launch_group(
    context: &BackendContext,
    stage: &mut Stage,
    job: &Job,
    (x, memory): (*mut Tensor, &StreamMemory),
    laid: &Laid,
    cell: Option<usize>,
) -> Result<(), Stop> {
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
        let tables = Tables::of(laid, c);
        let Laid { n_rows, abreast, span: of_slots, .. } = laid;
        let (p, columns) = (len(*n_rows), len(n_rows / abreast));
        let abreast = len(*abreast);
        let (n_in, n_out) = ((&(*x).ne)[0], (&(*node).ne)[0]);
        let n_inputs = len(graph::dim(x, 1) * job.n_tokens);
        let n_outputs = len(job.n_used * job.n_tokens);

        let inputs = sys::ggml_view_2d(c, x, n_in, n_inputs, (&(*x).nb)[1], 0);
        let outputs = sys::ggml_view_2d(c, node, n_out, n_outputs, (&(*node).nb)[1], 0);
        let gathered = sys::ggml_get_rows(c, inputs, tables.source);
        let gathered3 = sys::ggml_reshape_3d(c, gathered, n_in, abreast, columns);
        // CUDA divides its blocks among all matrices that it is given, used or not.
        let lost = || Stop::Internal("experts in no slot".into());
        let front = memory.front(stage.device).ok_or_else(lost)?;
        let transit = cell.zip(front.transit());
        let multiply = |of: &Product, rows: *mut Tensor| {
            let (ne, bytes) = ((*of.slots).ne, (&(*of.slots).nb)[2]);
            let n = i64::from(of_slots.end - of_slots.start);
            let part = sys::ggml_new_tensor_3d(c, (*of.slots).type_, ne[0], ne[1], n);
            let (owner, at) = match transit {
                Some((cell, transit)) => {
                    let slot = stage.cells.first_slot(cell) + of_slots.start;
                    let (lane, at) = transit.place(of.part, slot, bytes).ok_or_else(lost)?;
                    (lane.tensor, at)
                }
                None => (of.slots, of_slots.start as usize * bytes),
            };
            (*part).buffer = (*owner).buffer;
            (*part).data = (*owner).data.cast::<u8>().add(at).cast();
            let product = sys::ggml_mul_mat_id(c, part, rows, tables.slots);
            (*product).op_params = (*of.node).op_params;
            Ok::<_, Stop>(product)
        };
        let mut owners = vec![gathered];
        let mut steps = vec![inputs, outputs, gathered, gathered3];
        let product = match &job.steps {
            Steps::One(of) => multiply(of, gathered3)?,
            Steps::All { gate, up, glu, down } => {
                let (gate, up) = (multiply(gate, gathered3)?, multiply(up, gathered3)?);
                let gated = sys::ggml_glu_split(c, gate, up, sys::ggml_get_glu_op(*glu));
                (*gated).op_params = (**glu).op_params;
                owners.extend([gate, up, gated]);
                steps.extend([gate, up, gated]);
                multiply(down, gated)?
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
        stage.pass.place_of(context, &owners, (*n_rows, rows::rows_max(job.n_tokens)))?;
        place_views(&[inputs, outputs, gathered3, product2, scattered]);

        let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
        for step in steps {
            (*step).flags |= abi::TENSOR_FLAG_COMPUTE;
            sys::ggml_graph_add_node(small, step);
        }
        if let Some(cell) = cell {
            stage.compute_after_cell(context, cell);
        }
        status(sys::ggml_backend_graph_compute_async(context.inner, small.cast()))
    }
}
