//! Computing on a device with memory of its own: weights go from the drive to host memory, and
//! from there to slots in the device's.
//!
//! The device computes behind our back, in the order of its stream. So nothing is waited for but
//! what decides something: the router's choice, once per layer.
//!
//! ```text
//! compute stream   ...router | ids ->        | experts of the layer, next router | ids -> ...
//! host                         wait, decide  | ...
//! copy stream                     copies of what is missing ^ event
//! ```
//!
//! Slots are safe because a slot that a launched kernel reads is in use until the next wait, and
//! what is in use is not given away; in passes, copies wait for what reads a slot. Small tables are
//! written from pinned memory that is free again after the next wait.

mod ahead;
mod arrivals;
mod assist;
mod cells;
mod early;
mod late;
mod launch;
mod matrices;
mod passes;
mod sink;
mod stage;
mod uploads;

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use llama_cpp_sys_2 as sys;

pub(super) use stage::Stage;

use self::ahead::Asked;
use self::assist::Shared;
use self::cells::Held;
use self::launch::{launch, launch_nodes};
use self::uploads::{begin, begin_uploads};
use super::compute::{self, Restore, STOPPED, Stop, Use};
use super::device::BackendContext;
use super::group::Stream;
use super::predict::Router;
use super::{Routing, StreamKind, graph};
use crate::abi::{Graph, Tensor};

/// Computes `graph` on the wrapped backend, without waiting for its end.
///
/// # Safety
/// `graph` is a live graph of tensors with memory, as ggml's scheduler passes it.
pub(super) unsafe fn graph(
    context: &BackendContext,
    stage: &Mutex<Stage>,
    graph: *mut Graph,
) -> Result<(), Stop> {
    let mut guard = context.device.stream();
    let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the caller's promise.
    unsafe {
        let nodes = graph::nodes(graph);
        let uses = compute::find_uses(context, nodes)?;
        let Some(stream) = guard.as_mut() else {
            if uses.is_empty() {
                return launch(context, graph, (0, nodes.len()), true);
            }
            return Err(Stop::Residency(STOPPED.into()));
        };
        let walk = Walk {
            context,
            stage: &mut stage,
            stream,
            graph,
            nodes,
            start: 0,
            restore: Restore::default(),
            layer: None,
            has_matrices: false,
            deferred: None,
            uses: &uses,
            routers: None,
            asked: None,
        };
        walk.run()
    }
}

/// The way through one graph.
struct Walk<'a> {
    context: &'a BackendContext,
    stage: &'a mut Stage,
    stream: &'a mut Stream,
    graph: *mut Graph,
    nodes: &'a [*mut Tensor],
    /// First node that is not launched yet.
    start: usize,
    restore: Restore,
    layer: Option<Layer>,
    /// Whether matrices pass through the ring: then nodes read other addresses each time.
    has_matrices: bool,
    /// What is still to be told of the choice of the last layer, while the device computes it.
    deferred: Option<(u32, Deferred)>,
    uses: &'a [Use],
    routers: Option<Vec<(u32, Option<Router>)>>,
    /// What the next layer will probably need.
    asked: Option<Asked>,
}

/// What can wait until a layer is launched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deferred {
    /// Everything: its experts were all there.
    Booking,
    /// What it chose, for later choices.
    Noting,
}

/// The expert layer that the walk is in.
struct Layer {
    layer: u32,
    ids: *mut Tensor,
    n_used: usize,
    n_tokens: usize,
    /// Whether all needed experts have slots at once; else each matmul is done in passes.
    fits: bool,
    /// Whether all of its products are launched already.
    is_done: bool,
    /// Whether the choice is noted for later ones.
    is_noted: bool,
    remapped: *mut Tensor,
    /// What the CPU computes of it.
    shared: Option<Shared>,
}

/// The products of a layer that are done together.
struct Whole {
    steps: passes::Steps,
    /// The node of the last one.
    down: usize,
    /// What is to be computed before them.
    others: Vec<*mut Tensor>,
}

impl Layer {
    /// # Safety
    /// `ids` is a node of a live graph.
    unsafe fn new(layer: u32, ids: *mut Tensor, fits: bool) -> Layer {
        // SAFETY: the caller's promise.
        let (n_used, n_tokens) = unsafe { (graph::dim(ids, 0), graph::dim(ids, 1)) };
        let remapped = std::ptr::null_mut();
        Layer {
            layer,
            ids,
            n_used,
            n_tokens,
            fits,
            is_done: false,
            is_noted: fits,
            remapped,
            shared: None,
        }
    }
}

impl Walk<'_> {
    /// # Safety
    /// As [`graph`].
    unsafe fn run(mut self) -> Result<(), Stop> {
        let uses = self.uses;
        // SAFETY: as above.
        unsafe {
            // What an interrupted computation left under way ends before its slots are given away.
            self.wait();
            if !self.stream.residency.is_at_rest() {
                self.stage.synchronize(self.context);
                self.context.device.shared.wait_for_copies();
            }
            let matrices: Vec<u32> = uses
                .iter()
                .filter_map(|u| match u.kind {
                    StreamKind::Matrix { index } => Some(index),
                    _ => None,
                })
                .collect();
            self.has_matrices = !matrices.is_empty();
            self.stream.residency.begin(&matrices)?;
            let device = (self.stage.device, self.context.device.inner);
            self.stage.cells.begin(&self.stream.memory, device);
            self.begin_next(None, Vec::new())?;
            for usage in uses {
                if self.context.device.aborted() {
                    self.wait();
                    return Err(Stop::Aborted);
                }
                match usage.kind {
                    StreamKind::Experts { layer, part } => {
                        self.experts(usage.node, layer, part)?;
                    }
                    StreamKind::Matrix { index } => self.matrix(usage.node, index)?,
                    StreamKind::Rows => {
                        return Err(Stop::Internal("rows don't stream to this device".into()));
                    }
                }
            }
            self.launch_to(self.nodes.len())?;
            self.book()?;
            self.stream.residency.end()?;
            Ok(())
        }
    }

    /// Waits until the device has done everything that it was given.
    fn wait(&mut self) {
        let begin = Instant::now();
        // SAFETY: a live backend.
        unsafe { sys::ggml_backend_synchronize(self.context.inner) };
        self.waited(begin);
    }

    /// All that was launched before what was waited for since `begin` is done.
    fn waited(&mut self, begin: Instant) {
        if self.stream.residency.reuses_host_slots() {
            self.context.device.shared.wait_for_copies();
        }
        self.stage.tables.clear();
        self.stage.table_memory.clear();
        self.stream.residency.compute_time(begin.elapsed());
    }

    /// Launches what comes before node `end`.
    unsafe fn launch_to(&mut self, end: usize) -> Result<(), Stop> {
        let from = std::mem::replace(&mut self.start, end);
        // SAFETY: as `run`.
        unsafe { launch(self.context, self.graph, (from, end), !self.has_matrices) }
    }

    unsafe fn experts(&mut self, i: usize, layer: u32, part: u8) -> Result<(), Stop> {
        // SAFETY: node `i` is a MUL_MAT_ID: its third source are the ids.
        unsafe {
            let node = self.nodes[i];
            let ids = (*node).src[2];
            if self.layer.as_ref().is_none_or(|l| l.layer != layer || l.ids != ids) {
                self.enter_layer(i, layer, ids)?;
            }
            let Some(state) = &self.layer else {
                return Err(Stop::Internal("no layer".into()));
            };
            let slots = self
                .stream
                .memory
                .front(self.stage.device)
                .and_then(|front| front.part(layer, part));
            let Some(slots) = slots else {
                return Err(Stop::Internal(format!("layer {layer} has no slots on the device")));
            };
            if state.is_done {
                return Ok(());
            }
            if state.fits {
                self.restore.note(node);
                (*node).src[0] = slots.tensor;
                (*node).src[2] = state.remapped;
                if state.shared.as_ref().is_some_and(|shared| shared.down == i) {
                    self.launch_to(i + 1)?;
                    return self.finish_shared(layer);
                }
                return Ok(());
            }
            let Layer { n_used, n_tokens, is_noted, .. } = *state;
            self.launch_to(i)?;
            let one = passes::Product { node, part, slots: slots.tensor };
            let (steps, parts, end) = match self.all_steps(layer, ids) {
                Some(Whole { steps, down, mut others }) => {
                    if !others.is_empty() {
                        launch_nodes(self.context, self.graph, &mut others, 0)?;
                    }
                    (steps, self.stream.memory.parts_of_layer(layer), down)
                }
                None => (passes::Steps::One(one), 1 << part, i),
            };
            let is_done = end > i;
            let job = passes::Job { steps, layer, parts, n_used, n_tokens, is_noted };
            let missing = passes::run(self.context, self.stage, self.stream, &job)?;
            self.start = end + 1;
            if let Some(state) = &mut self.layer {
                (state.is_done, state.is_noted) = (is_done, true);
            }
            self.begin_next(Some((end, layer)), missing)
        }
    }

    /// Fills what cells are free with what the next product of experts in the graph will probably need.
    /// `behind` which node, whose layer lacks `missing`; none at the beginning.
    unsafe fn begin_next(
        &mut self,
        behind: Option<(usize, u32)>,
        mut missing: Vec<u32>,
    ) -> Result<(), Stop> {
        let room = self.stage.cells.room();
        let comes_next = |usage: &&Use| behind.is_none_or(|(node, _)| usage.node > node);
        let Some(usage) = self.uses.iter().find(comes_next).filter(|_| room > 0) else {
            return Ok(());
        };
        let StreamKind::Experts { layer, part } = usage.kind else { return Ok(()) };
        // SAFETY: as `run`: the node is a MUL_MAT_ID.
        unsafe {
            let ids = (*self.nodes[usage.node]).src[2];
            // What another product of the same layer lacks is known.
            let is_expected = behind.is_none_or(|(_, of)| of != layer);
            if is_expected {
                missing.clear();
                let n_choices = graph::dim(ids, 0) * graph::dim(ids, 1);
                self.stream.residency.expected(layer, n_choices, room, &mut missing);
            }
            missing.truncate(room);
            if missing.is_empty() {
                return Ok(());
            }
            let has_all = self.all_steps(layer, ids).is_some();
            let Stream { memory, residency, .. } = &mut *self.stream;
            let parts = if has_all { memory.parts_of_layer(layer) } else { 1 << part };
            for experts in missing.chunks(self.stage.cells.per_cell().max(1)) {
                let held = Held { layer, parts, experts: experts.to_vec(), is_expected };
                self.stage.fill_cell(memory, residency.as_mut(), held)?;
            }
            Ok(())
        }
    }

    /// All products of a layer, if [`Walk::recognise`] does.
    unsafe fn all_steps(&self, layer: u32, ids: *mut Tensor) -> Option<Whole> {
        // SAFETY: as `run`.
        unsafe {
            let found = self.recognise(layer, ids)?;
            let front = self.stream.memory.front(self.stage.device)?;
            let product = |node: *mut Tensor, part: u8| {
                Some(passes::Product { node, part, slots: front.part(layer, part)?.tensor })
            };
            let steps = passes::Steps::All {
                gate: product(found.gate, assist::GATE)?,
                up: product(found.up, assist::UP)?,
                glu: found.glu,
                down: product(self.nodes[found.down], assist::DOWN)?,
            };
            Some(Whole { steps, down: found.down, others: found.others })
        }
    }

    /// The router of a layer is known once everything before node `i` is computed: reads its
    /// choice, and sees to it that the chosen experts are in the device's slots before what is
    /// launched next.
    unsafe fn enter_layer(&mut self, i: usize, layer: u32, ids: *mut Tensor) -> Result<(), Stop> {
        // SAFETY: as `run`; `ids` is alive and computed before what we read of it.
        unsafe {
            self.launch_to(i)?;
            let bytes = sys::ggml_nbytes(ids);
            let raw = self.stage.raw(bytes)?;
            let early = self.can_be_early(i, layer, ids);
            let mut shared = self.may_share(layer, ids)?;
            if early.is_none() {
                let inner = self.context.inner;
                sys::ggml_backend_tensor_get_async(inner, ids, raw.cast(), 0, bytes);
                if let Some(shared) = &shared {
                    shared.read_input(inner);
                }
            }
            // While the device computes.
            self.book()?;
            self.stage.compute_after_admission(self.context, layer);
            self.copy_ahead(layer)?;
            match early {
                Some(last) => {
                    self.launch_early((i, last), layer, (ids, raw), shared.as_ref())?;
                    self.wait_for_choice();
                }
                None => self.wait(),
            }
            let x = (*self.nodes[i]).src[1];
            let raw = std::slice::from_raw_parts(raw, bytes);
            let Stream { memory, residency, scratch } = &mut *self.stream;
            graph::table(ids, raw, &mut scratch.ids);
            if scratch.ids.iter().any(|&id| id < 0) {
                return Err(Stop::Internal(format!("layer {layer} has a negative expert")));
            }
            let (n_used, n_tokens) = (graph::dim(ids, 0), graph::dim(ids, 1));
            scratch.find_needed();
            let parts = memory.parts_of_layer(layer);
            scratch.slots.clear();
            let are_there =
                residency.device_slots(layer, &scratch.needed, parts, &mut scratch.slots);
            if n_tokens == 1 {
                self.note_choice(layer, are_there);
            }
            if are_there {
                self.stage.cells.forget();
                self.deferred = Some((layer, Deferred::Booking));
                let mut state = Layer::new(layer, ids, true);
                if let Some(last) = early
                    && let Some(rows) = self.late_rows(layer, ids)
                {
                    self.launch_late(layer, rows)?;
                    self.start = last + 1;
                    state.is_done = true;
                }
                if !state.is_done {
                    if n_tokens == 1 && early.is_none() {
                        self.ask_ahead(layer, n_used, x, self.context.inner)?;
                    }
                    self.stage.compute_after_admission(self.context, layer);
                    state.remapped = self.remap(layer, (n_used, n_tokens), Stage::set)?;
                }
                self.layer = Some(state);
                return Ok(());
            }
            let Stream { residency, scratch, .. } = &mut *self.stream;
            residency.computed();
            let routing = Routing { ids: &scratch.ids, n_used };
            residency.routed(layer, routing);
            let fits = scratch.needed.len() <= residency.device_capacity(layer);
            let mut state = Layer::new(layer, ids, fits);
            if !fits {
                self.layer = Some(state);
                return Ok(());
            }
            // What was expected of it is in the wrong place.
            self.stage.cells.forget();
            self.deferred = Some((layer, Deferred::Noting));
            if let Some(shared) = &mut shared {
                residency.host_share(layer, &scratch.needed, &mut shared.experts);
                let host = &shared.experts;
                scratch.needed.retain(|expert| host.binary_search(expert).is_err());
            }
            residency.device_experts(layer, &scratch.needed, parts, &mut scratch.slots)?;
            let late = match early {
                Some(last) => self.late_rows(layer, ids).map(|rows| (last, rows)),
                None => None,
            };
            if late.is_none() {
                // What is under way reads nothing of the table, and behind the copies it would be late.
                state.remapped = self.remap(layer, (n_used, n_tokens), Stage::set_ahead)?;
            }
            let Stream { memory, residency, .. } = &mut *self.stream;
            begin_uploads(self.stage, memory, residency.as_mut(), early.is_some())?;
            if let Some(shared) = shared.as_mut().filter(|shared| !shared.experts.is_empty()) {
                let Shared { experts, slots, .. } = shared;
                residency.experts(layer, experts, parts, slots)?;
            }
            // Before what waits for the copies.
            if n_tokens == 1 && early.is_none() {
                self.ask_ahead(layer, n_used, x, self.context.inner)?;
            }
            state.shared = shared.filter(|shared| !shared.experts.is_empty());
            if let Some((last, rows)) = late {
                self.launch_late(layer, rows)?;
                self.start = last + 1;
                state.is_done = true;
            } else {
                self.stage.compute_after_copies(self.context);
                self.stage.compute_after_admission(self.context, layer);
            }
            let is_done = state.is_done;
            self.layer = Some(state);
            if is_done {
                self.finish_shared(layer)?;
            }
            Ok(())
        }
    }

    /// Books the choice of a layer that was launched.
    fn book(&mut self) -> Result<(), Stop> {
        let deferred = self.deferred.take().zip(self.layer.as_ref());
        let Some(((layer, what), state)) = deferred else { return Ok(()) };
        let Stream { memory, residency, scratch } = &mut *self.stream;
        let routing = Routing { ids: &scratch.ids, n_used: state.n_used };
        if what == Deferred::Noting {
            residency.note_routing(layer, routing);
            return Ok(());
        }
        residency.computed();
        residency.routed(layer, routing);
        residency.note_routing(layer, routing);
        scratch.slots.clear();
        let parts = memory.parts_of_layer(layer);
        residency.device_experts(layer, &scratch.needed, parts, &mut scratch.slots)?;
        Ok(())
    }

    /// Tells the device which slot each expert of the choice has.
    unsafe fn remap(
        &mut self,
        layer: u32,
        (n_used, n_tokens): (usize, usize),
        set: unsafe fn(&mut Stage, &BackendContext, *mut Tensor, &[i32]) -> Result<(), Stop>,
    ) -> Result<*mut Tensor, Stop> {
        let Stream { memory, scratch, .. } = &mut *self.stream;
        let front =
            memory.front(self.stage.device).ok_or_else(|| Stop::Internal("no slots".into()))?;
        let too_many = || Stop::Internal("too many ids".into());
        if scratch.slots.iter().any(|&slot| slot >= front.n_slots(layer)) {
            return Err(Stop::Internal(format!("layer {layer} got a slot that is not")));
        }
        scratch.remapped.clear();
        for id in &scratch.ids {
            // What the CPU computes takes any slot here: its row is written over.
            let at = scratch.needed.binary_search(&id.unsigned_abs()).unwrap_or(0);
            let slot = scratch.slots.get(at).copied().unwrap_or(0);
            scratch.remapped.push(i32::try_from(slot).unwrap_or(0));
        }
        // SAFETY: the table is the front's; it has room for as many ids as a micro-batch has.
        unsafe {
            let table = front.ids(layer).ok_or_else(too_many)?;
            let buffer_bytes = sys::ggml_backend_buffer_get_size((*table).buffer);
            if scratch.remapped.len() * 4 > buffer_bytes {
                return Err(too_many());
            }
            graph::reshape(table, n_used, n_tokens);
            set(self.stage, self.context, table, &scratch.remapped)?;
            Ok(table)
        }
    }
}
