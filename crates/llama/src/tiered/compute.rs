//! Computing a graph whose weights are streamed.

use std::collections::HashMap;
use std::ffi::c_int;
use std::time::Instant;

use llama_cpp_sys_2 as sys;

use super::device::BackendContext;
use super::group::Stream;
use super::predict::{Guesses, Router};
use super::{ResidencyError, Routing, StreamKind, graph, passes};
use crate::abi::{self, Graph, Tensor};

/// Why a graph was not computed to its end.
pub(super) enum Stop {
    Aborted,
    Status(sys::ggml_status),
    /// For the user.
    Residency(String),
    /// A bug of ours.
    Internal(String),
}

impl From<ResidencyError> for Stop {
    fn from(error: ResidencyError) -> Stop {
        match error {
            ResidencyError::Aborted => Stop::Aborted,
            ResidencyError::Internal(reason) => Stop::Internal(reason),
            other => Stop::Residency(other.to_string()),
        }
    }
}

/// There is no residency (any more).
pub(super) const STOPPED: &str = "streaming has stopped after an error; load the model again";

/// Buffers that are reused from one graph to the next.
#[derive(Default)]
pub(super) struct Scratch {
    raw: Vec<u8>,
    /// The router's choice in the layer that the walk is in.
    pub(super) ids: Vec<i32>,
    pub(super) needed: Vec<u32>,
    pub(super) slots: Vec<u32>,
    /// Slot of each expert of the current layer.
    pub(super) slot_of: HashMap<u32, u32>,
    pub(super) remapped: Vec<i32>,
    rows: Vec<i32>,
    pub(super) pass: passes::PassScratch,
    guesses: Guesses,
    ready: Vec<u32>,
    is_needed: Vec<bool>,
}

impl Scratch {
    /// The distinct experts of the choice, in order.
    pub(super) fn find_needed(&mut self) {
        self.is_needed.clear();
        for id in &self.ids {
            let expert = id.unsigned_abs() as usize;
            if expert >= self.is_needed.len() {
                self.is_needed.resize(expert + 1, false);
            }
            self.is_needed[expert] = true;
        }
        self.needed.clear();
        let all = (0..).zip(&self.is_needed);
        self.needed.extend(all.filter(|(_, needed)| **needed).map(|(expert, _)| expert));
    }
}

/// A node's sources before we changed them.
struct Changed {
    node: *mut Tensor,
    src: [*mut Tensor; 10],
}

/// Puts the sources back, whatever happens: llama.cpp may use the graph again.
#[derive(Default)]
pub(super) struct Restore(Vec<Changed>);

impl Restore {
    pub(super) unsafe fn note(&mut self, node: *mut Tensor) {
        // SAFETY: a node of the graph that is being computed.
        self.0.push(Changed { node, src: unsafe { (*node).src } });
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        for changed in self.0.iter().rev() {
            // SAFETY: the graph outlives its computation.
            unsafe { (*changed.node).src = changed.src };
        }
    }
}

/// Computes `graph` on the wrapped backend.
///
/// # Safety
/// `graph` is a live graph of tensors with memory, as ggml's scheduler passes it.
pub(super) unsafe fn graph(context: &BackendContext, graph: *mut Graph) -> Result<(), Stop> {
    let mut guard = context.device.stream();
    // SAFETY: the caller's promise.
    let nodes = unsafe { graph::nodes(graph) };
    // SAFETY: as above.
    let uses = unsafe { find_uses(context, nodes)? };
    let Some(stream) = guard.as_mut() else {
        if uses.is_empty() {
            // SAFETY: as above.
            return unsafe { delegate(context, graph, 0, nodes.len()) };
        }
        return Err(Stop::Residency(STOPPED.into()));
    };
    // SAFETY: as above; the walk changes only sources, and puts them back.
    unsafe { Walk::new(context, stream, graph, nodes).run(&uses) }
}

/// A node that uses a streamed weight.
pub(super) struct Use {
    pub(super) node: usize,
    pub(super) kind: StreamKind,
}

/// # Safety
/// The nodes are alive.
pub(super) unsafe fn find_uses(
    context: &BackendContext,
    nodes: &[*mut Tensor],
) -> Result<Vec<Use>, Stop> {
    let state = context.device.state();
    let mut uses = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        // SAFETY: the caller's promise.
        let (op, src, flags, is_empty) =
            unsafe { ((**node).op, (**node).src, (**node).flags, sys::ggml_is_empty(*node)) };
        if is_empty || flags & abi::TENSOR_FLAG_COMPUTE == 0 {
            // Of a micro-batch without outputs the output matrix is multiplied with nothing; of
            // several ways to an input (`ggml_build_forward_select`) only one is computed, and the
            // others read garbage.
            continue;
        }
        for (position, source) in src.iter().enumerate() {
            if source.is_null() {
                continue;
            }
            // SAFETY: sources of live nodes are alive.
            let Some(weight) = state.weights.get(&(unsafe { graph::base(*source) } as usize))
            else {
                continue;
            };
            let direct = position == 0 && state.weights.contains_key(&(*source as usize));
            let fits = match weight.kind {
                StreamKind::Experts { .. } => op == sys::GGML_OP_MUL_MAT_ID,
                StreamKind::Matrix { .. } => op == sys::GGML_OP_MUL_MAT,
                StreamKind::Rows => op == sys::GGML_OP_GET_ROWS,
            };
            if !direct || !fits {
                let text = format!("{} is used in a way that can't be streamed", weight.name);
                return Err(Stop::Internal(text));
            }
            uses.push(Use { node: i, kind: weight.kind.clone() });
        }
    }
    Ok(uses)
}

/// Computes nodes `from..to` on the wrapped backend and waits for them.
///
/// # Safety
/// As [`graph`].
unsafe fn delegate(
    context: &BackendContext,
    graph: *mut Graph,
    from: usize,
    to: usize,
) -> Result<(), Stop> {
    // SAFETY: the caller's promise; the range lies within the graph.
    unsafe {
        let nodes = graph::nodes(graph);
        let work = nodes[from..to].iter().any(|node| !graph::is_view_op((**node).op));
        if !work {
            return Ok(());
        }
        let index = |i| c_int::try_from(i).unwrap_or(c_int::MAX);
        let mut view = abi::ggml_graph_view(graph, index(from), index(to));
        compute_and_wait(context, &raw mut view)
    }
}

/// # Safety
/// As [`graph`].
pub(super) unsafe fn compute_and_wait(
    context: &BackendContext,
    graph: *mut Graph,
) -> Result<(), Stop> {
    // SAFETY: the caller's promise.
    let result = unsafe {
        let result = sys::ggml_backend_graph_compute(context.inner, graph.cast());
        sys::ggml_backend_synchronize(context.inner);
        result
    };
    status(result)
}

/// What a computation's status means.
pub(super) fn status(status: sys::ggml_status) -> Result<(), Stop> {
    match status {
        sys::GGML_STATUS_SUCCESS => Ok(()),
        sys::GGML_STATUS_ABORTED => Err(Stop::Aborted),
        other => Err(Stop::Status(other)),
    }
}

/// One walk through one graph.
struct Walk<'a> {
    context: &'a BackendContext,
    stream: &'a mut Stream,
    graph: *mut Graph,
    nodes: &'a [*mut Tensor],
    /// First node that is not computed yet.
    start: usize,
    restore: Restore,
    layer: Option<Layer>,
    /// The expert layers of the graph in their order, and their routers.
    routers: Vec<(u32, Option<Router>)>,
    /// Matmuls of which some experts are done, and the others' bytes are on their way.
    unfinished: Vec<Unfinished>,
}

/// See [`Walk::unfinished`].
struct Unfinished {
    job: passes::Job,
    /// Experts still to do.
    experts: Vec<u32>,
}

/// The expert layer that the walk is in.
struct Layer {
    layer: u32,
    ids: *mut Tensor,
    n_used: usize,
    n_tokens: usize,
    /// Whether all needed experts have slots at once; else each matmul is done in passes.
    fits: bool,
    remapped: *mut Tensor,
}

impl<'a> Walk<'a> {
    fn new(
        context: &'a BackendContext,
        stream: &'a mut Stream,
        graph: *mut Graph,
        nodes: &'a [*mut Tensor],
    ) -> Walk<'a> {
        Walk {
            context,
            stream,
            graph,
            nodes,
            start: 0,
            restore: Restore::default(),
            layer: None,
            routers: Vec::new(),
            unfinished: Vec::new(),
        }
    }

    /// # Safety
    /// As [`graph`].
    unsafe fn run(mut self, uses: &[Use]) -> Result<(), Stop> {
        let matrices: Vec<u32> = uses
            .iter()
            .filter_map(|u| match u.kind {
                StreamKind::Matrix { index } => Some(index),
                _ => None,
            })
            .collect();
        for usage in uses {
            if let StreamKind::Experts { layer, .. } = usage.kind
                && self.routers.last().is_none_or(|(last, _)| *last != layer)
            {
                // SAFETY: the third source of a MUL_MAT_ID of the live graph.
                let router = unsafe { Router::of((*self.nodes[usage.node]).src[2]) };
                self.routers.push((layer, router));
            }
        }
        self.stream.residency.begin(&matrices)?;
        for usage in uses {
            if self.context.device.aborted() {
                return Err(Stop::Aborted);
            }
            let node = self.nodes[usage.node];
            // SAFETY: the caller's promise.
            unsafe {
                match usage.kind {
                    StreamKind::Experts { layer, part } => {
                        self.experts(usage.node, node, layer, part)?;
                    }
                    StreamKind::Matrix { index } => self.matrix(usage.node, node, index)?,
                    StreamKind::Rows => self.rows(usage.node, node)?,
                }
            }
        }
        // SAFETY: as above.
        unsafe {
            self.compute_to(self.nodes.len())?;
            self.finish_all()?;
        }
        self.stream.residency.computed();
        self.stream.residency.end()?;
        Ok(())
    }

    /// Computes what comes before node `end`.
    unsafe fn compute_to(&mut self, end: usize) -> Result<(), Stop> {
        let from = self.start;
        self.start = end;
        // SAFETY: nodes of the live graph.
        if self.nodes[from..end].iter().all(|node| graph::is_view_op(unsafe { (**node).op })) {
            return Ok(());
        }
        // SAFETY: as `run`.
        unsafe { self.finish_all()? };
        let begin = Instant::now();
        // SAFETY: as `run`.
        unsafe { delegate(self.context, self.graph, from, end)? };
        self.stream.residency.compute_time(begin.elapsed());
        Ok(())
    }

    unsafe fn experts(
        &mut self,
        i: usize,
        node: *mut Tensor,
        layer: u32,
        part: u8,
    ) -> Result<(), Stop> {
        // SAFETY: `node` is a MUL_MAT_ID: its third source are the ids.
        unsafe {
            let ids = (*node).src[2];
            if self.layer.as_ref().is_none_or(|l| l.layer != layer || l.ids != ids) {
                self.enter_layer(i, layer, ids)?;
            }
            let Some(state) = &self.layer else {
                return Err(Stop::Internal("no layer".into()));
            };
            let Some(pool) = self.stream.memory.pool_tensor(layer, part) else {
                return Err(Stop::Internal(format!("layer {layer} has no pool")));
            };
            let (n_used, n_tokens, remapped) = (state.n_used, state.n_tokens, state.remapped);
            let job = passes::Job { node, pool, layer, part, n_used, n_tokens };
            if state.fits {
                if self.stream.residency.is_pending(layer, 1 << part) {
                    // What does not need these bytes is computed while they arrive: what comes
                    // before, and the experts that are there.
                    self.compute_to(i)?;
                    if passes::is_divisible(node) {
                        return self.begin_parts(i, job);
                    }
                    self.stream.residency.wait(layer, 1 << part)?;
                }
                self.restore.note(node);
                (*node).src[0] = pool;
                (*node).src[2] = remapped;
                return Ok(());
            }
            self.compute_to(i)?;
            let begin = Instant::now();
            passes::run(self.context, self.stream, &job)?;
            self.stream.residency.compute_time(begin.elapsed());
            self.start = i + 1;
            Ok(())
        }
    }

    /// Begins a matmul of which some experts are still on their way.
    unsafe fn begin_parts(&mut self, i: usize, job: passes::Job) -> Result<(), Stop> {
        // SAFETY: as `run`. Two matmuls may be unfinished at the same time only if they read the
        // same input and choice (gate and up): else the memory of what the first one reads may be
        // that of the second one's result.
        unsafe {
            let inputs = |node: *mut Tensor| ((*node).src[1], (*node).src[2]);
            if self.unfinished.iter().any(|u| inputs(u.job.node) != inputs(job.node)) {
                self.finish_all()?;
            }
            let experts = self.stream.scratch.needed.clone();
            let mut unfinished = Unfinished { job, experts };
            self.go_on(&mut unfinished)?;
            self.unfinished.push(unfinished);
            self.start = i + 1;
            Ok(())
        }
    }

    /// Ends the matmuls that were begun, expert by expert as their bytes arrive.
    unsafe fn finish_all(&mut self) -> Result<(), Stop> {
        for mut unfinished in std::mem::take(&mut self.unfinished) {
            let passes::Job { layer, part, .. } = unfinished.job;
            while !unfinished.experts.is_empty() {
                // SAFETY: as `run`.
                if unsafe { self.go_on(&mut unfinished)? } {
                    continue;
                }
                if self.stream.residency.is_pending(layer, 1 << part) {
                    self.stream.residency.wait_for_one(layer, 1 << part)?;
                // SAFETY: as `run`. What is not under way has just arrived, or never will.
                } else if !unsafe { self.go_on(&mut unfinished)? } {
                    return Err(Stop::Internal(format!("an expert of layer {layer} is lost")));
                }
            }
        }
        Ok(())
    }

    /// Does the experts of a matmul whose bytes are there; whether there were any.
    unsafe fn go_on(&mut self, unfinished: &mut Unfinished) -> Result<bool, Stop> {
        let Unfinished { job, experts } = unfinished;
        let Stream { residency, scratch, .. } = &mut *self.stream;
        let mut ready = std::mem::take(&mut scratch.ready);
        ready.clear();
        experts.retain(|&expert| {
            let is_ready = residency.is_resident(job.layer, expert, 1 << job.part);
            ready.extend(is_ready.then_some(expert));
            !is_ready
        });
        let any = !ready.is_empty();
        let begin = Instant::now();
        // SAFETY: as `run`; the experts have slots, and their bytes are there.
        let done = unsafe { passes::some(self.context, scratch, job, &ready) };
        residency.compute_time(begin.elapsed());
        scratch.ready = ready;
        done.map(|()| any)
    }

    /// Tells the residency what later layers will probably need, now that it reads for this one.
    unsafe fn look_ahead(&mut self, layer: u32, x: *mut Tensor) -> Result<(), Stop> {
        let Some(state) = &self.layer else { return Ok(()) };
        let (n_used, n_tokens) = (state.n_used, state.n_tokens);
        let Stream { residency, scratch, .. } = &mut *self.stream;
        let Some(at) = self.routers.iter().position(|(l, _)| *l == layer) else { return Ok(()) };
        let ahead = residency.look_ahead(n_tokens) as usize;
        let Some((_, Some(here))) = self.routers.get(at) else { return Ok(()) };
        for (later, there) in self.routers.iter().skip(at + 1).take(ahead) {
            let Some(there) = there else { continue };
            // SAFETY: as `run`: everything before this layer's experts is computed.
            let scores = unsafe {
                let here = (layer, here);
                scratch.guesses.scores(self.context, here, (*later, there), x)?
            };
            if !scores.is_empty() {
                residency.predicted(*later, scores, n_used);
            }
        }
        Ok(())
    }

    /// The router of a layer is known once everything before node `i` is computed: reads its
    /// choice and asks for the experts.
    unsafe fn enter_layer(&mut self, i: usize, layer: u32, ids: *mut Tensor) -> Result<(), Stop> {
        // SAFETY: as `run`; `ids` is alive and, after `compute_to`, computed.
        unsafe {
            self.compute_to(i)?;
            self.finish_all()?;
            self.stream.residency.computed();
            let Stream { memory, residency, scratch } = &mut *self.stream;
            read_i32(self.context, ids, &mut scratch.raw, &mut scratch.ids);
            if scratch.ids.iter().any(|&id| id < 0) {
                return Err(Stop::Internal(format!("layer {layer} has a negative expert")));
            }
            let (n_used, n_tokens) = (graph::dim(ids, 0), graph::dim(ids, 1));
            scratch.find_needed();
            let routing = Routing { ids: &scratch.ids, n_used };
            residency.routed(layer, routing);
            residency.note_routing(layer, routing);
            let fits = scratch.needed.len() <= residency.capacity(layer);
            let mut remapped = std::ptr::null_mut();
            if fits {
                scratch.slots.clear();
                let parts = memory.parts_of_layer(layer);
                residency.experts(layer, &scratch.needed, parts, &mut scratch.slots)?;
                if scratch.slots.iter().any(|&slot| slot >= memory.n_slots(layer)) {
                    return Err(Stop::Internal(format!("layer {layer} got a slot that is not")));
                }
                scratch.slot_of.clear();
                scratch
                    .slot_of
                    .extend(scratch.needed.iter().copied().zip(scratch.slots.iter().copied()));
                scratch.remapped.clear();
                for id in &scratch.ids {
                    let slot = scratch.slot_of.get(&id.unsigned_abs()).copied().unwrap_or(0);
                    scratch.remapped.push(i32::try_from(slot).unwrap_or(0));
                }
                remapped = memory
                    .ids_tensor(layer, n_used, n_tokens)
                    .ok_or_else(|| Stop::Internal("too many ids".into()))?;
                passes::set(self.context, remapped, &scratch.remapped);
            }
            self.layer = Some(Layer { layer, ids, n_used, n_tokens, fits, remapped });
            let x = (*self.nodes[i]).src[1];
            self.look_ahead(layer, x)
        }
    }

    unsafe fn matrix(&mut self, i: usize, node: *mut Tensor, index: u32) -> Result<(), Stop> {
        // SAFETY: `node` is a MUL_MAT whose first source is the streamed matrix.
        unsafe {
            self.compute_to(i)?;
            self.finish_all()?;
            self.stream.residency.computed();
            self.layer = None;
            let offset = self.stream.residency.matrix(index)?;
            let tensor = self.stream.memory.matrix_at(index, offset);
            let Some(tensor) = tensor else {
                return Err(Stop::Internal(format!("matrix {index} is no more")));
            };
            self.restore.note(node);
            (*node).src[0] = tensor;
            Ok(())
        }
    }

    unsafe fn rows(&mut self, i: usize, node: *mut Tensor) -> Result<(), Stop> {
        // SAFETY: `node` is a GET_ROWS: its second source are the row numbers.
        unsafe {
            self.compute_to(i)?;
            let ids = (*node).src[1];
            let Stream { memory, residency, scratch } = &mut *self.stream;
            read_i32(self.context, ids, &mut scratch.raw, &mut scratch.rows);
            let n = scratch.rows.len();
            let Some(rows) = memory.rows().filter(|r| n <= r.n_rows) else {
                return Err(Stop::Internal("too many rows".into()));
            };
            residency.rows(&scratch.rows)?;
            scratch.remapped.clear();
            scratch.remapped.extend((0..n).map(|i| i32::try_from(i).unwrap_or(0)));
            let table = rows.ids;
            (*table).ne = (*ids).ne;
            (*table).nb[0] = 4;
            for d in 1..4 {
                (*table).nb[d] = (*table).nb[d - 1] * graph::dim(table, d - 1);
            }
            passes::set(self.context, table, &scratch.remapped);
            self.restore.note(node);
            (*node).src[0] = rows.tensor;
            (*node).src[1] = table;
            Ok(())
        }
    }
}

/// Reads a (possibly strided) table of at most two dimensions into `out`.
unsafe fn read_i32(
    context: &BackendContext,
    tensor: *mut Tensor,
    raw: &mut Vec<u8>,
    out: &mut Vec<i32>,
) {
    // SAFETY: the tensor is computed; through the wrapped backend, so that a GPU's stream order
    // holds (an unsynchronized read is silent garbage there).
    unsafe {
        let bytes = sys::ggml_nbytes(tensor);
        raw.resize(bytes, 0);
        let target = raw.as_mut_ptr().cast();
        sys::ggml_backend_tensor_get_async(context.inner, tensor, target, 0, bytes);
        sys::ggml_backend_synchronize(context.inner);
        graph::table(tensor, raw, out);
    }
}
