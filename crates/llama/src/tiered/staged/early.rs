//! Launching a layer's experts before the host knows which ones they are.
//!
//! Where all that a router chooses is in the device's slots, waiting for its choice leaves the device
//! idle for nothing. So the device looks the slots up itself, in a table of where the layer's experts
//! were when it was launched, and computes, while the host reads the choice behind its back:
//!
//! ```text
//! compute stream   ...router | look up, experts |                ...next router | look up, experts
//! beside                     | ids ->                                            | ids ->
//! host                           wait, compare, launch ->
//! ```
//!
//! Rows of experts that were not there are garbage, in memory that is the layer's own. They are
//! computed once more behind the copies ([`super::late`]), or all of them, where something lies between
//! the products. Products read nothing that one of them overwrites, or they are not launched early.

use std::collections::HashMap;
use std::time::Instant;

use llama_cpp_sys_2 as sys;

use super::super::StreamKind;
use super::super::compute::{Restore, Stop};
use super::super::front::Finder;
use super::super::graph;
use super::super::passes::Descriptions;
use super::Walk;
use super::assist::Shared;
use super::late::{LateRow, LateRows};
use super::launch::{launch_nodes, part_uid};
use super::stage::{record, wait};
use crate::abi::{Dev, Event, TENSOR_FLAG_COMPUTE, Tensor};

/// Layers are launched early while at least this share of their last choices was all there, ...
const RATE_MIN: f32 = 0.5;
/// ... and those whose experts take so many bytes always, if single rows can be computed anew: their
/// copies take longer than what is launched in vain. Seen with an H200: experts of 13 MB gain, those
/// of 0.2 MB lose; none between were compared.
const LARGE_BYTES: usize = 1 << 20;
/// The weight of a choice in that share.
const RATE_STEP: f32 = 1.0 / 16.0;
/// Nodes from a layer's first product to its last, at most.
const NODES_MAX: usize = 32;
/// An expert without a slot, or one that is still on its way there.
const NO_SLOT: i32 = -1;

/// What was learned of layers, and what they are launched with.
pub(super) struct Early {
    /// Recorded behind the router.
    routed: Event,
    /// Recorded behind the reading of its choice.
    chosen: Event,
    has_events: bool,
    layers: HashMap<u32, Layer>,
}

#[derive(Default)]
struct Layer {
    /// Of the last choices, the share that was all there.
    rate: f32,
    lookup: Option<Lookup>,
    /// The slot of each expert when the layer was launched.
    slots: Vec<i32>,
    /// What the table on the device holds.
    written: Vec<i32>,
}

/// A node that looks the slots of a choice up.
struct Lookup {
    _ctx: Descriptions,
    /// Slot by expert.
    table: *mut Tensor,
    /// Its second source are the ids.
    node: *mut Tensor,
    /// What the node writes, in the shape of ids.
    found: *mut Tensor,
}

impl Early {
    pub(super) fn new(device: Dev) -> Early {
        // SAFETY: a device of ggml's; the events are freed in `Drop`.
        let (routed, chosen) =
            unsafe { (sys::ggml_backend_event_new(device), sys::ggml_backend_event_new(device)) };
        Early {
            routed,
            chosen,
            has_events: !routed.is_null() && !chosen.is_null(),
            layers: HashMap::new(),
        }
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        for event in [self.routed, self.chosen] {
            if !event.is_null() {
                // SAFETY: made in `new`, freed once.
                unsafe { sys::ggml_backend_event_free(event) };
            }
        }
    }
}

impl Lookup {
    /// For a choice of `n_used`; `None` if the device has no room for so many.
    ///
    /// # Safety
    /// The finder's tensors outlive it.
    unsafe fn new(Finder { table, found: room }: Finder, n_used: usize) -> Option<Lookup> {
        let ctx = Descriptions::new().ok()?;
        let c = ctx.as_ptr();
        // SAFETY: described, then given memory that is theirs.
        unsafe {
            if n_used > graph::dim(room, 0) {
                return None;
            }
            let n = i64::try_from(n_used).unwrap_or(i64::MAX);
            let found = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_I32, n, 1);
            let node = sys::ggml_get_rows(c, table, found);
            for tensor in [found, node] {
                ((*tensor).buffer, (*tensor).data) = ((*room).buffer, (*room).data);
            }
            (*node).flags |= TENSOR_FLAG_COMPUTE;
            Some(Lookup { _ctx: ctx, table, node, found })
        }
    }
}

impl Walk<'_> {
    /// The last product of `layer`, whose first is node `first`, if it is worth while to launch them
    /// before its choice is known, and can be done.
    ///
    /// # Safety
    /// As [`super::graph`].
    pub(super) unsafe fn can_be_early(
        &mut self,
        first: usize,
        layer: u32,
        ids: *mut Tensor,
    ) -> Option<usize> {
        let Early { has_events, layers, .. } = &self.stage.early;
        let can_wait = *has_events || self.context.device.is_emulated();
        let state = layers.get(&layer).filter(|_| can_wait)?;
        // SAFETY: the caller's promise.
        if state.rate < RATE_MIN && !unsafe { self.can_come_late(layer, ids) } {
            return None;
        }
        let state = self.stage.early.layers.get_mut(&layer)?;
        // SAFETY: the caller's promise.
        unsafe {
            if graph::dim(ids, 1) != 1 || self.has_matrices {
                return None;
            }
            if state.lookup.is_none() {
                let front = self.stream.memory.front(self.stage.device)?;
                state.lookup = Lookup::new(front.finder(layer)?, graph::dim(ids, 0));
            }
            state.lookup.as_ref()?;
            let last = self.last_product(first, layer, ids)?;
            let nodes = &self.nodes[first..=last];
            let mut read = graph::read_from_outside(nodes);
            read.push(ids);
            (!graph::write_over(nodes, &read)).then_some(last)
        }
    }

    /// Whether what is still missing of `layer`, launched early, is worth being computed row by row.
    ///
    /// # Safety
    /// As [`super::graph`].
    unsafe fn can_come_late(&self, layer: u32, ids: *mut Tensor) -> bool {
        let front = self.stream.memory.front(self.stage.device);
        let is_large = front.is_some_and(|front| front.expert_bytes(layer) >= LARGE_BYTES);
        // Tests want to see such rows. What the CPU computes is none of them.
        let is_exempt = self.context.device.is_emulated() || self.stage.assist.is_some();
        // SAFETY: the caller's promise.
        (is_large || is_exempt) && unsafe { self.recognise(layer, ids).is_some() }
    }

    /// What was begun to be copied by guesses for a `layer` that is about to be launched early: its rows
    /// come late, or else the launch waits for it.
    ///
    /// # Safety
    /// As [`super::graph`].
    unsafe fn await_guesses(&mut self, layer: u32, ids: *mut Tensor) {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.stage.arrivals.is_empty() && !self.can_come_late(layer, ids) {
                self.stage.compute_after_admission(self.context, layer);
                self.stage.forget_arrivals();
            }
        }
    }

    /// The node of the last product of a layer, if the first is at `first` and all have these ids.
    unsafe fn last_product(&self, first: usize, layer: u32, ids: *mut Tensor) -> Option<usize> {
        let is_of_layer = |kind: &StreamKind| matches!(kind, StreamKind::Experts { layer: of, .. } if *of == layer);
        let products = || self.uses.iter().filter(|usage| is_of_layer(&usage.kind));
        let last = products().map(|usage| usage.node).max()?;
        let range = first..=last;
        // SAFETY: nodes of a live graph.
        let are_alike = products().all(|usage| unsafe { (*self.nodes[usage.node]).src[2] == ids });
        // Nothing else that streams lies between.
        let n_between = self.uses.iter().filter(|usage| range.contains(&usage.node)).count();
        let is_all = n_between == products().count();
        (are_alike && is_all && last - first < NODES_MAX).then_some(last)
    }

    /// Begins to read the choice of `layer` into `raw`, and the input of what the CPU may share; launches
    /// the products behind it, from node `first` to node `last`; and asks the next layer's router. What is
    /// launched later waits for that.
    ///
    /// # Safety
    /// As [`super::graph`]; [`Walk::can_be_early`] said so, everything before `first` is launched, and
    /// `raw` is pinned memory for all of `ids`.
    pub(super) unsafe fn launch_early(
        &mut self,
        (first, last): (usize, usize),
        layer: u32,
        (ids, raw): (*mut Tensor, *mut u8),
        shared: Option<&Shared>,
    ) -> Result<(), Stop> {
        // SAFETY: the caller's promise.
        unsafe {
            record(self.stage.early.routed, self.context.inner);
            // Behind that, so that the choice is read without them.
            self.await_guesses(layer, ids);
            self.note_slots(layer);
            self.write_slots(layer)?;
            let beside = self.stage.beside;
            wait(beside, self.stage.early.routed);
            if let Some(shared) = shared {
                shared.read_input(beside);
            }
            let bytes = sys::ggml_nbytes(ids);
            sys::ggml_backend_tensor_get_async(beside, ids, raw.cast(), 0, bytes);
            record(self.stage.early.chosen, beside);
            self.launch_products((first, last), layer, ids)?;
            // Beside the products, which write over nothing that it reads. A CPU has threads in one place.
            let inner = self.context.inner;
            let stream = if self.context.device.is_emulated() { inner } else { beside };
            self.ask_ahead(layer, graph::dim(ids, 0), (*self.nodes[first]).src[1], stream)?;
            if self.asked.is_some() {
                wait(inner, self.stage.ahead.scored());
            }
            Ok(())
        }
    }

    /// Waits for the choice alone.
    pub(super) fn wait_for_choice(&mut self) {
        let begin = Instant::now();
        let early = &self.stage.early;
        if early.has_events {
            // SAFETY: a live event that was recorded.
            unsafe { sys::ggml_backend_event_synchronize(early.chosen) };
        }
        self.waited(begin);
    }

    /// A token's choice in `layer` is known, and whether all of it is there.
    pub(super) fn note_choice(&mut self, layer: u32, is_there: bool) {
        let state = self.stage.early.layers.entry(layer).or_default();
        state.rate += RATE_STEP * (f32::from(u8::from(is_there)) - state.rate);
    }

    /// What is still to be computed of `layer`, which was launched early: the rows of experts that had
    /// other slots then than they have in the scratch now, or none. `None` if all must be computed anew.
    ///
    /// # Safety
    /// As [`super::graph`].
    pub(super) unsafe fn late_rows(&mut self, layer: u32, ids: *mut Tensor) -> Option<LateRows> {
        let scratch = &self.stream.scratch;
        let state = self.stage.early.layers.get(&layer)?;
        let mut rows = std::mem::take(&mut self.stage.late.rows);
        rows.clear();
        rows.extend(scratch.ids.iter().enumerate().filter_map(|(row, id)| {
            let expert = id.unsigned_abs();
            // What is not needed here is computed elsewhere.
            let at = scratch.needed.binary_search(&expert).ok()?;
            let slot = *scratch.slots.get(at)?;
            let had = state.slots.get(expert as usize).copied();
            (had != i32::try_from(slot).ok()).then_some(LateRow { expert, row, slot })
        }));
        self.stream.residency.computed_early(rows.is_empty());
        // SAFETY: the caller's promise.
        let whole = if rows.is_empty() { None } else { unsafe { self.recognise(layer, ids) } };
        if whole.is_none() && !rows.is_empty() {
            return None;
        }
        Some(LateRows { rows, whole })
    }

    /// Notes where the experts of a layer are.
    unsafe fn note_slots(&mut self, layer: u32) {
        let parts = self.stream.memory.parts_of_layer(layer);
        let residency = &self.stream.residency;
        let arrivals = &self.stage.arrivals;
        let Some(state) = self.stage.early.layers.get_mut(&layer) else { return };
        let Some(Lookup { table, .. }) = state.lookup else { return };
        // SAFETY: a live tensor.
        let n_experts = u32::try_from(unsafe { graph::dim(table, 1) }).unwrap_or(0);
        let mut found = Vec::with_capacity(1);
        state.slots.clear();
        state.slots.extend((0..n_experts).map(|expert| {
            // What is on its way is not there.
            if arrivals.turn_of(expert).is_some() {
                return NO_SLOT;
            }
            found.clear();
            residency.device_slots(layer, &[expert], parts, &mut found);
            found.first().map_or(NO_SLOT, |&slot| i32::try_from(slot).unwrap_or(NO_SLOT))
        }));
    }

    /// Tells the device where the experts of a layer are, if that is new.
    unsafe fn write_slots(&mut self, layer: u32) -> Result<(), Stop> {
        let Some(state) = self.stage.early.layers.get_mut(&layer) else { return Ok(()) };
        let Some(Lookup { table, .. }) = state.lookup else { return Ok(()) };
        let mut is_new = state.written.len() != state.slots.len();
        state.written.resize(state.slots.len(), 0);
        for (written, &slot) in state.written.iter_mut().zip(&state.slots) {
            // What has none may take any: it will not count.
            if slot != NO_SLOT && slot != *written {
                (*written, is_new) = (slot, true);
            }
        }
        if !is_new {
            return Ok(());
        }
        let written = std::mem::take(&mut state.written);
        // SAFETY: the table has as many entries.
        let result = unsafe { self.stage.set_beside(self.context, table, &written) };
        // What could not be written is written the next time.
        if let (Ok(()), Some(state)) = (&result, self.stage.early.layers.get_mut(&layer)) {
            state.written = written;
        }
        result
    }

    /// Launches the products of a layer, with the slots that the device looks up.
    unsafe fn launch_products(
        &mut self,
        (first, last): (usize, usize),
        layer: u32,
        ids: *mut Tensor,
    ) -> Result<(), Stop> {
        let lost = || Stop::Internal(format!("layer {layer} has no slots"));
        let front = self.stream.memory.front(self.stage.device).ok_or_else(lost)?;
        let lookup = self.stage.early.layers.get(&layer).and_then(|of| of.lookup.as_ref());
        let lookup = lookup.ok_or_else(lost)?;
        // SAFETY: the caller's promise; the sources are put back at the end.
        unsafe {
            (*lookup.node).src[1] = ids;
            let mut restore = Restore::default();
            for usage in self.uses.iter().filter(|usage| (first..=last).contains(&usage.node)) {
                let StreamKind::Experts { part, .. } = usage.kind else { continue };
                let node = self.nodes[usage.node];
                restore.note(node);
                (*node).src[0] = front.part(layer, part).ok_or_else(lost)?.tensor;
                (*node).src[2] = lookup.found;
            }
            let mut nodes = Vec::with_capacity(NODES_MAX + 1);
            nodes.push(lookup.node);
            nodes.extend_from_slice(&self.nodes[first..=last]);
            // A range that no other part has: its end comes first.
            let uid = match (*self.graph).uid {
                0 => 0,
                uid => part_uid(uid, last, first),
            };
            launch_nodes(self.context, self.graph, &mut nodes, uid)
        }
    }
}
