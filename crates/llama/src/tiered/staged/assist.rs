//! Experts that the CPU computes where they lie, while the device computes the others.
//!
//! One token's experts are independent rows until they are weighted and summed. For those that are
//! not in the device's memory, the CPU computes `down(glu(gate x, up x))` from the slots in host
//! memory, and its rows are written over those of the device's last product. Or it computes `glu(gate
//! x, up x)` while `down` is copied to the device, its rows are written over those that go into the
//! last product, and the rest is copied when nobody waits for the link. The sum is the graph's own,
//! in its order. The CPU rounds otherwise than the device, so the answer depends on which expert is
//! where: it is the same for the same history, and off unless asked for.

use std::ptr::null_mut;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::super::compute::{Stop, status};
use super::super::group::Stream;
use super::super::passes::Descriptions;
use super::super::{HostShare, StreamKind, graph};
use super::Walk;
use super::stage::Pinned;
use crate::abi::{Backend, Dev, TENSOR_FLAG_COMPUTE, Tensor};
use crate::cpu::cpu;
use crate::threads::Threadpool;

/// Numbers of parts, as the engine gives them.
pub(super) const GATE: u8 = 0;
pub(super) const UP: u8 = 1;
pub(super) const DOWN: u8 = 2;

/// The CPU's side.
pub(super) struct Assist {
    backend: Backend,
    /// The layer's input.
    input: Pinned,
    /// What is gated, and the last product's rows, on their way to the device.
    gated: Pinned,
    rows: Pinned,
    /// What lies between.
    scratch: Pinned,
    _threads: Arc<Threadpool>,
}

impl Assist {
    /// Beside `device`. `None` if there is no CPU backend.
    pub(super) fn new(threads: &Arc<Threadpool>, device: Dev) -> Option<Assist> {
        let cpu = cpu()?;
        // SAFETY: a device of ggml's; the threads outlive the backend.
        unsafe {
            let backend = sys::ggml_backend_dev_init(cpu.device, std::ptr::null());
            if backend.is_null() {
                return None;
            }
            (cpu.set_n_threads)(backend, threads.n_threads());
            (cpu.set_threadpool)(backend, threads.as_ptr());
            Some(Assist {
                backend,
                input: Pinned::new(device),
                gated: Pinned::new(device),
                rows: Pinned::new(device),
                scratch: Pinned::new(cpu.device),
                _threads: Arc::clone(threads),
            })
        }
    }
}

impl Drop for Assist {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once.
        unsafe { sys::ggml_backend_free(self.backend) };
    }
}

/// What the CPU computes of a layer.
pub(super) struct Shared {
    /// Where the layer's input was read to: `[n_embd]` in f32.
    input: *mut u8,
    n_in: i64,
    pub(super) gate: *mut Tensor,
    pub(super) up: *mut Tensor,
    pub(super) glu: *mut Tensor,
    /// The last product's node.
    pub(super) down: usize,
    pub(super) share: HostShare,
    /// Its experts' slots in host memory.
    slots: Vec<u32>,
    /// What is gated of them, once it is computed.
    gated: Option<Computed>,
}

fn no_pool(layer: u32) -> Stop {
    Stop::Internal(format!("layer {layer} has no pool"))
}

impl Walk<'_> {
    /// Begins to read what the experts of a layer are multiplied with, if the CPU may compute some
    /// of them: for one token, where nothing lies between the products but the gate.
    ///
    /// # Safety
    /// As [`super::graph`].
    pub(super) unsafe fn read_input(
        &mut self,
        layer: u32,
        ids: *mut Tensor,
    ) -> Result<Option<Shared>, Stop> {
        if self.stage.assist.is_none() {
            return Ok(None);
        }
        // SAFETY: the caller's promise: nodes of a live graph.
        unsafe {
            if graph::dim(ids, 1) != 1 {
                return Ok(None);
            }
            let Some(mut shared) = self.recognise(layer, ids) else { return Ok(None) };
            let x = (*shared.gate).src[1];
            let bytes = sys::ggml_nbytes(x);
            let Some(assist) = &mut self.stage.assist else { return Ok(None) };
            assist.input.clear();
            let room = assist.input.take(bytes);
            shared.input = room.ok_or(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED))?;
            let target = shared.input.cast();
            sys::ggml_backend_tensor_get_async(self.context.inner, x, target, 0, bytes);
            Ok(Some(shared))
        }
    }

    /// The products of a layer and the gate between them, if that is all there is.
    pub(super) unsafe fn recognise(&self, layer: u32, ids: *mut Tensor) -> Option<Shared> {
        let node_of = |wanted: u8| {
            let mut found =
                self.uses.iter().filter(|u| u.kind == StreamKind::Experts { layer, part: wanted });
            let node = found.next()?.node;
            found.next().is_none().then_some(node)
        };
        let (gate, up, down) = (node_of(GATE)?, node_of(UP)?, node_of(DOWN)?);
        // SAFETY: nodes of a live graph.
        unsafe {
            let node = |i: usize| self.nodes[i];
            let mut glu: *mut Tensor = null_mut();
            for &between in self.nodes.get(gate.min(up)..down)? {
                let is_product = between == node(gate) || between == node(up);
                if is_product || graph::is_view_op((*between).op) {
                    continue;
                }
                if (*between).op != sys::GGML_OP_GLU || !glu.is_null() {
                    return None;
                }
                glu = between;
            }
            let (gate, up) = (node(gate), node(up));
            let x = (*gate).src[1];
            let is_plain = !glu.is_null()
                && (*glu).src[0] == gate
                && (*glu).src[1] == up
                && (*node(down)).src[1] == glu
                && (*up).src[1] == x
                && [gate, up, node(down)].iter().all(|&n| (*n).src[2] == ids)
                && (*x).type_ == sys::GGML_TYPE_F32
                && graph::dim(x, 1) == 1
                && sys::ggml_is_contiguous(x)
                && sys::ggml_is_contiguous(node(down));
            is_plain.then(|| Shared {
                input: null_mut(),
                n_in: (&(*x).ne)[0],
                gate,
                up,
                glu,
                down,
                share: HostShare::default(),
                slots: Vec::new(),
                gated: None,
            })
        }
    }

    /// Computes what is gated of the CPU's share, while what the device lacks is copied to it.
    ///
    /// # Safety
    /// As [`super::graph`]; the layer's input is there.
    pub(super) unsafe fn begin_shared(
        &mut self,
        layer: u32,
        shared: &mut Shared,
    ) -> Result<(), Stop> {
        let Stream { memory, residency, .. } = &mut *self.stream;
        let parts = memory.parts_of_layer(layer);
        let experts: Vec<u32> = shared.share.experts().collect();
        residency.experts(layer, &experts, parts, &mut shared.slots)?;
        residency.wait(layer, parts)?;
        let pools = (memory.pool_tensor(layer, GATE), memory.pool_tensor(layer, UP));
        let (Some(gate), Some(up)) = pools else { return Err(no_pool(layer)) };
        let Some(assist) = &mut self.stage.assist else { return Ok(()) };
        // SAFETY: the caller's promise; pools are alive, and the experts are in their slots.
        shared.gated = Some(unsafe { assist.compute_gated(shared, (gate, up))? });
        Ok(())
    }

    /// Launches the layer's last product, and writes the CPU's rows.
    ///
    /// # Safety
    /// As [`super::graph`]; the walk is at the layer's last product, and what comes before it is
    /// launched.
    pub(super) unsafe fn finish_shared(&mut self, layer: u32) -> Result<(), Stop> {
        let Some(shared) = self.layer.as_mut().and_then(|layer| layer.shared.take()) else {
            return Ok(());
        };
        let HostShare { whole, gated } = &shared.share;
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(rows) = shared.gated {
                self.write_rows(shared.glu, gated, rows.skip(whole.len()));
            }
            self.launch_to(shared.down + 1)?;
            if !whole.is_empty() {
                let down = self.stream.memory.pool_tensor(layer, DOWN);
                let down = down.ok_or_else(|| no_pool(layer))?;
                let Some(assist) = &mut self.stage.assist else { return Ok(()) };
                let rows = assist.compute_down(&shared, down)?;
                self.write_rows(self.nodes[shared.down], whole, rows);
            }
            let residency = &mut self.stream.residency;
            let mut copies = std::mem::take(&mut self.stage.copies);
            copies.clear();
            residency.admit(layer, &shared.share, &shared.slots, &mut copies);
            for copy in &copies {
                super::begin(self.stage, &self.stream.memory, copy)?;
            }
            if !copies.is_empty() {
                self.stage.end_admission(layer);
            }
            self.stage.copies = copies;
            Ok(())
        }
    }

    /// Writes the rows of `experts` (sorted) over the device's, where the router chose them.
    ///
    /// # Safety
    /// As [`super::graph`]; the node has one row for each choice.
    unsafe fn write_rows(&self, node: *mut Tensor, experts: &[u32], rows: Computed) {
        for (k, id) in self.stream.scratch.ids.iter().enumerate() {
            let Ok(at) = experts.binary_search(&id.unsigned_abs()) else { continue };
            // SAFETY: the caller's promise.
            unsafe {
                let row = rows.start.add(at * rows.row_bytes).cast();
                let offset = k * (&(*node).nb)[1];
                let inner = self.context.inner;
                sys::ggml_backend_tensor_set_async(inner, node, row, offset, rows.row_bytes);
            }
        }
    }
}

/// Rows in host memory, one after the other.
#[derive(Clone, Copy)]
struct Computed {
    start: *const u8,
    row_bytes: usize,
}

impl Computed {
    /// Those behind the first `n`, of which there are as many.
    fn skip(self, n: usize) -> Computed {
        Computed { start: self.start.wrapping_add(n * self.row_bytes), ..self }
    }
}

impl Assist {
    /// Computes `glu(gate x, up x)` of all experts of the CPU.
    unsafe fn compute_gated(
        &mut self,
        shared: &Shared,
        (gate, up): (*mut Tensor, *mut Tensor),
    ) -> Result<Computed, Stop> {
        // SAFETY: pools and the read input are alive; what is described here gets memory of ours.
        unsafe {
            let ctx = Descriptions::new()?;
            let c = ctx.as_ptr();
            let n = i64::try_from(shared.slots.len()).unwrap_or(0);
            let x = sys::ggml_new_tensor_3d(c, sys::GGML_TYPE_F32, shared.n_in, 1, 1);
            let ids = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_I32, n, 1);
            let gated = sys::ggml_mul_mat_id(c, gate, x, ids);
            (*gated).op_params = (*shared.gate).op_params;
            let upped = sys::ggml_mul_mat_id(c, up, x, ids);
            (*upped).op_params = (*shared.up).op_params;
            let glu = sys::ggml_glu_split(c, gated, upped, sys::ggml_get_glu_op(shared.glu));
            (*glu).op_params = (*shared.glu).op_params;

            self.scratch.clear();
            place(&mut self.scratch, &[ids, gated, upped])?;
            sys::ggml_backend_tensor_alloc(self.input.buffer(), x, shared.input.cast());
            self.gated.clear();
            place(&mut self.gated, &[glu])?;
            write_ids(ids, &shared.slots);
            self.run(c, &[gated, upped, glu])?;
            Ok(Computed { start: (*glu).data.cast(), row_bytes: (&(*glu).nb)[1] })
        }
    }

    /// Multiplies what was gated with the down projections of those experts that the CPU computes
    /// whole.
    unsafe fn compute_down(
        &mut self,
        shared: &Shared,
        down: *mut Tensor,
    ) -> Result<Computed, Stop> {
        // SAFETY: as above; the gated rows of these experts are the first ones.
        unsafe {
            let ctx = Descriptions::new()?;
            let c = ctx.as_ptr();
            let slots = &shared.slots[..shared.share.whole.len()];
            let n = i64::try_from(slots.len()).unwrap_or(0);
            let x = sys::ggml_new_tensor_3d(c, sys::GGML_TYPE_F32, (&(*down).ne)[0], n, 1);
            let ids = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_I32, n, 1);
            let rows = sys::ggml_mul_mat_id(c, down, x, ids);

            let base = sys::ggml_backend_buffer_get_base(self.gated.buffer());
            sys::ggml_backend_tensor_alloc(self.gated.buffer(), x, base);
            self.scratch.clear();
            place(&mut self.scratch, &[ids])?;
            self.rows.clear();
            place(&mut self.rows, &[rows])?;
            write_ids(ids, slots);
            self.run(c, &[rows])?;
            Ok(Computed { start: (*rows).data.cast(), row_bytes: (&(*rows).nb)[1] })
        }
    }

    /// Computes nodes, in their order.
    unsafe fn run(&self, c: *mut sys::ggml_context, nodes: &[*mut Tensor]) -> Result<(), Stop> {
        // SAFETY: described in `c`, with memory.
        unsafe {
            let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
            for &node in nodes {
                (*node).flags |= TENSOR_FLAG_COMPUTE;
                sys::ggml_graph_add_node(small, node);
            }
            status(sys::ggml_backend_graph_compute(self.backend, small))
        }
    }
}

/// Gives tensors their memory, one after the other.
unsafe fn place(memory: &mut Pinned, tensors: &[*mut Tensor]) -> Result<(), Stop> {
    // SAFETY: described, and without memory.
    unsafe {
        let size = |t: *mut Tensor| sys::ggml_nbytes(t).next_multiple_of(64);
        let room = memory.take(tensors.iter().map(|&t| size(t)).sum());
        let mut at = room.ok_or(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED))?;
        for &tensor in tensors {
            sys::ggml_backend_tensor_alloc(memory.buffer(), tensor, at.cast());
            at = at.add(size(tensor));
        }
        Ok(())
    }
}

unsafe fn write_ids(ids: *mut Tensor, slots: &[u32]) {
    let slots: Vec<i32> = slots.iter().map(|&slot| i32::try_from(slot).unwrap_or(0)).collect();
    // SAFETY: a tensor in host memory of this length.
    unsafe { std::ptr::copy_nonoverlapping(slots.as_ptr(), (*ids).data.cast(), slots.len()) };
}
