//! From experts to slots, on the device.
//!
//! A layer's products are given slots in the place of experts. For one token the device looks its
//! own choice up, in a table that it keeps of each layer, while the choice is still on its way to the
//! host: what is launched next then waits for nothing that the host would have to write. The host
//! knows what is in those tables, and uses what was looked up if it agrees with the slots that the
//! chosen experts have. If not, and for prompts, it writes the slots.

use std::collections::HashMap;
use std::ptr::null_mut;

use llama_cpp_sys_2 as sys;

use super::super::Upload;
use super::super::compute::{Stop, status};
use super::super::device::BackendContext;
use super::super::graph;
use super::super::group::Stream;
use super::super::passes::Descriptions;
use super::{Stage, Walk};
use crate::abi::{Buffer, TENSOR_FLAG_COMPUTE, Tensor};

/// Tensors of the device that stay.
pub(super) struct Kept {
    ctx: *mut sys::ggml_context,
    buffer: Buffer,
}

impl Kept {
    /// Whatever `describe` makes in a context that has room for `n` tensors, in memory of the device.
    ///
    /// # Safety
    /// The context's backend is alive.
    pub(super) unsafe fn new<T>(
        context: &BackendContext,
        n: usize,
        describe: impl FnOnce(*mut sys::ggml_context) -> T,
    ) -> Option<(Kept, T)> {
        // SAFETY: a context for descriptions, freed in `Drop` with its tensors' memory.
        unsafe {
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * n,
                mem_buffer: null_mut(),
                no_alloc: true,
            });
            if ctx.is_null() {
                return None;
            }
            let described = describe(ctx);
            let own = sys::ggml_backend_dev_buffer_type(context.device.inner);
            let buffer = sys::ggml_backend_alloc_ctx_tensors_from_buft(ctx, own);
            if buffer.is_null() {
                sys::ggml_free(ctx);
                return None;
            }
            Some((Kept { ctx, buffer }, described))
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once.
        unsafe {
            sys::ggml_backend_buffer_free(self.buffer);
            sys::ggml_free(self.ctx);
        }
    }
}

/// The tables of the layers that computed a single token.
#[derive(Default)]
pub(super) struct SlotTables(HashMap<u32, SlotTable>);

struct SlotTable {
    _kept: Kept,
    /// What is written at once: the slot of each expert, and then one token's slots.
    whole: *mut Tensor,
    /// Of `whole`, the slots of experts, as rows of one.
    slots: *mut Tensor,
    /// Of `whole`, one token's slots: `[n_used, 1]`.
    chosen: *mut Tensor,
    /// What was written, or is to be.
    values: Vec<i32>,
    n_experts: usize,
    is_written: bool,
}

/// In the place of the slot of an expert that was never there.
const NOWHERE: i32 = -1;

impl SlotTables {
    /// The table of a layer. `None` if the device has no memory for it.
    ///
    /// # Safety
    /// The context's backend is alive.
    unsafe fn get(
        &mut self,
        context: &BackendContext,
        layer: u32,
        (n_experts, n_used): (usize, usize),
    ) -> Option<&mut SlotTable> {
        if !self.0.contains_key(&layer) {
            let len = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let n = n_experts + n_used;
            // SAFETY: views lie within their owner, which is described before them.
            let (kept, (whole, slots, chosen)) = unsafe {
                Kept::new(context, 3, |c| {
                    let whole = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I32, len(n));
                    let slots = sys::ggml_view_2d(c, whole, 1, len(n_experts), 4, 0);
                    let chosen = (len(n_used), 4 * n_used, 4 * n_experts);
                    let chosen = sys::ggml_view_2d(c, whole, chosen.0, 1, chosen.1, chosen.2);
                    (whole, slots, chosen)
                })?
            };
            let values = vec![NOWHERE; n];
            let is_written = false;
            let table =
                SlotTable { _kept: kept, whole, slots, chosen, values, n_experts, is_written };
            self.0.insert(layer, table);
        }
        self.0.get_mut(&layer).filter(|table| table.values.len() == n_experts + n_used)
    }
}

impl SlotTable {
    /// Whether looking `ids` up gives these slots.
    fn gives(&self, ids: &[i32], slots: &[i32]) -> bool {
        let looked_up = |id: &i32| self.values.get(id.unsigned_abs() as usize);
        self.is_written && ids.iter().map(looked_up).eq(slots.iter().map(Some))
    }

    fn note(&mut self, expert: u32, slot: u32) {
        if let Some(value) = self.values[..self.n_experts].get_mut(expert as usize) {
            *value = i32::try_from(slot).unwrap_or(NOWHERE);
        }
    }
}

impl Walk<'_> {
    /// Lets the device look up its choice for one token in a layer.
    ///
    /// # Safety
    /// As [`super::graph`]; `ids` is computed by what was launched.
    pub(super) unsafe fn look_up(
        &mut self,
        layer: u32,
        ids: *mut Tensor,
        n_experts: usize,
    ) -> Result<(), Stop> {
        // SAFETY: the caller's promise; what is described here has memory.
        unsafe {
            let shape = (n_experts, graph::dim(ids, 0));
            let table = self.stage.slot_tables.get(self.context, layer, shape);
            let Some(table) = table.filter(|table| table.is_written) else { return Ok(()) };
            let ctx = Descriptions::new()?;
            let c = ctx.as_ptr();
            let node = sys::ggml_get_rows(c, table.slots, ids);
            ((*node).buffer, (*node).data) = ((*table.chosen).buffer, (*table.chosen).data);
            (*node).flags |= TENSOR_FLAG_COMPUTE;
            let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
            sys::ggml_graph_add_node(small, node);
            status(sys::ggml_backend_graph_compute_async(self.context.inner, small.cast()))?;
            self.stage.end_look_up(self.context);
            Ok(())
        }
    }

    /// Experts are about to be copied that a guess named, before their layer's router has chosen:
    /// looking up is to find them.
    ///
    /// # Safety
    /// As [`super::graph`]; the layer's choice is not yet looked up.
    pub(super) unsafe fn note_guessed(
        &mut self,
        layer: u32,
        copies: &[Upload],
    ) -> Result<(), Stop> {
        // Behind copies that nobody waits for, the table would be late.
        if copies.is_empty() || self.stage.has_admitted() {
            return Ok(());
        }
        let Some(table) = self.stage.slot_tables.0.get_mut(&layer) else { return Ok(()) };
        for copy in copies {
            table.note(copy.expert, copy.slot);
        }
        let (whole, values) = (table.whole, table.values.clone());
        // SAFETY: the caller's promise; the compute stream waits for the table.
        unsafe {
            self.stage.set_ahead(self.context, whole, &values)?;
            self.stage.compute_after_copies(self.context);
        }
        Ok(())
    }

    /// The slots of a layer's choice, on the device. `set` writes them if they are not there.
    ///
    /// # Safety
    /// As [`super::graph`]; what `set` writes comes after what looks slots up, and nothing else that is
    /// under way uses the layer's tables.
    pub(super) unsafe fn remap(
        &mut self,
        layer: u32,
        (n_experts, n_used, n_tokens): (usize, usize, usize),
        set: unsafe fn(&mut Stage, &BackendContext, *mut Tensor, &[i32]) -> Result<(), Stop>,
    ) -> Result<*mut Tensor, Stop> {
        let Stream { memory, scratch, .. } = &mut *self.stream;
        let front =
            memory.front(self.stage.device).ok_or_else(|| Stop::Internal("no slots".into()))?;
        if scratch.slots.iter().any(|&slot| slot >= front.n_slots(layer)) {
            return Err(Stop::Internal(format!("layer {layer} got a slot that is not")));
        }
        scratch.remapped.clear();
        for id in &scratch.ids {
            // What the CPU computes whole takes any slot here: its row is written over.
            let at = scratch.needed.binary_search(&id.unsigned_abs()).ok();
            let slot = at.and_then(|at| scratch.slots.get(at)).copied().unwrap_or(0);
            scratch.remapped.push(i32::try_from(slot).unwrap_or(0));
        }
        // SAFETY: the tables have room for what is written.
        unsafe {
            if n_tokens == 1 {
                let table = self.stage.slot_tables.get(self.context, layer, (n_experts, n_used));
                let table = table.ok_or(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED))?;
                let (whole, chosen) = (table.whole, table.chosen);
                if !table.gives(&scratch.ids, &scratch.remapped) {
                    for (&expert, &slot) in scratch.needed.iter().zip(&scratch.slots) {
                        table.note(expert, slot);
                    }
                    table.values[n_experts..].copy_from_slice(&scratch.remapped);
                    table.is_written = true;
                    let values = table.values.clone();
                    set(self.stage, self.context, whole, &values)?;
                }
                return Ok(chosen);
            }
            let too_many = || Stop::Internal("too many ids".into());
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
