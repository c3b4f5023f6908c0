//! Experts that the CPU computes where they lie, while the device computes the others.
//!
//! One token's experts are independent rows until they are weighted and summed. For those that are
//! not in the device's memory, the CPU computes `down(glu(gate x, up x))` from the slots in host
//! memory, and its rows are written over those of the device's last product. The sum is the graph's
//! own, in its order. The CPU rounds otherwise than the device, so the answer depends on which
//! expert is where: it is the same for the same history, and off unless asked for.

use std::ptr::null_mut;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::super::compute::{Stop, status};
use super::super::group::Stream;
use super::super::passes::Descriptions;
use super::super::{StreamKind, graph};
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
    /// The rows on their way to the device.
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
    /// What lies between these and has nothing to do with them: shared experts.
    pub(super) others: Vec<*mut Tensor>,
    /// Sorted.
    pub(super) experts: Vec<u32>,
    /// Their slots in host memory.
    pub(super) slots: Vec<u32>,
}

impl Shared {
    /// Begins to read what the experts are multiplied with.
    ///
    /// # Safety
    /// As [`super::graph`]; it is computed before what `stream` is given from now on.
    pub(super) unsafe fn read_input(&self, stream: Backend) {
        // SAFETY: the caller's promise; the memory was taken for it.
        unsafe {
            let x = (*self.gate).src[1];
            let bytes = sys::ggml_nbytes(x);
            sys::ggml_backend_tensor_get_async(stream, x, self.input.cast(), 0, bytes);
        }
    }
}

impl Walk<'_> {
    /// The products of a layer, if the CPU may compute some of them: for one token, where
    /// [`Walk::recognise`] knows them. Their input is still to be read.
    ///
    /// # Safety
    /// As [`super::graph`].
    pub(super) unsafe fn may_share(
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
            let bytes = sys::ggml_nbytes((*shared.gate).src[1]);
            let Some(assist) = &mut self.stage.assist else { return Ok(None) };
            assist.input.clear();
            let room = assist.input.take(bytes);
            shared.input = room.ok_or(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED))?;
            Ok(Some(shared))
        }
    }

    /// The products of a layer and the gate between them, if that is all there is, but for what could
    /// as well be computed before them.
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
            let glu = (*node(down)).src[1];
            let range = gate.min(up)..down;
            let (gate, up) = (node(gate), node(up));
            let own = [gate, up, glu];
            // Nothing else that streams: it would have to be brought first.
            let n_streamed = self.uses.iter().filter(|usage| range.contains(&usage.node)).count();
            if n_streamed != 2 {
                return None;
            }
            let between = self.nodes.get(range)?.iter().copied();
            let others: Vec<*mut Tensor> =
                between.filter(|node| !own.contains(node) && graph::is_computed(*node)).collect();
            let x = (*gate).src[1];
            let reads_own = |source: &*mut Tensor| {
                own.iter().any(|&node| node.cast_const() == graph::base(*source))
            };
            if graph::read_from_outside(&others).iter().any(reads_own)
                || graph::write_over(&others, &[x, ids])
            {
                return None;
            }
            let is_plain = (*glu).op == sys::GGML_OP_GLU
                && (*glu).src[0] == gate
                && (*glu).src[1] == up
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
                others,
                experts: Vec::new(),
                slots: Vec::new(),
            })
        }
    }

    /// Computes the CPU's share of a layer, if it has one, and writes its rows over those of the
    /// device.
    ///
    /// # Safety
    /// As [`super::graph`]; the layer's products are launched.
    pub(super) unsafe fn finish_shared(&mut self, layer: u32) -> Result<(), Stop> {
        let Some(shared) = self.layer.as_mut().and_then(|layer| layer.shared.take()) else {
            return Ok(());
        };
        // SAFETY: the caller's promise.
        unsafe {
            let Stream { memory, residency, scratch } = &mut *self.stream;
            let parts = memory.parts_of_layer(layer);
            residency.wait(layer, parts)?;
            let pool = |part| memory.pool_tensor(layer, part);
            let pools = (pool(GATE), pool(UP), pool(DOWN));
            let (Some(gate), Some(up), Some(down)) = pools else {
                return Err(Stop::Internal(format!("layer {layer} has no pool")));
            };
            let Some(assist) = &mut self.stage.assist else { return Ok(()) };
            let row_bytes = assist.compute(&shared, (gate, up, down))?;
            let node = self.nodes[shared.down];
            for (k, id) in scratch.ids.iter().enumerate() {
                let Ok(at) = shared.experts.binary_search(&id.unsigned_abs()) else { continue };
                let row = assist.rows_at().add(at * row_bytes).cast();
                let offset = k * (&(*node).nb)[1];
                let inner = self.context.inner;
                sys::ggml_backend_tensor_set_async(inner, node, row, offset, row_bytes);
            }
            let mut copies = std::mem::take(&mut self.stage.copies);
            copies.clear();
            residency.admit(layer, &shared.experts, &shared.slots, &mut copies);
            for copy in &copies {
                super::begin(self.stage, self.stage.copier, memory, copy)?;
            }
            if !copies.is_empty() {
                self.stage.end_admission(layer);
            }
            self.stage.copies = copies;
            Ok(())
        }
    }
}

impl Assist {
    fn rows_at(&self) -> *const u8 {
        // SAFETY: the buffer was made when rows were computed into it.
        unsafe { sys::ggml_backend_buffer_get_base(self.rows.buffer()).cast::<u8>() }
    }

    /// Computes the rows of the CPU's experts, one after the other; the bytes of one.
    unsafe fn compute(
        &mut self,
        shared: &Shared,
        (gate, up, down): (*mut Tensor, *mut Tensor, *mut Tensor),
    ) -> Result<usize, Stop> {
        let failed = || Stop::Status(sys::GGML_STATUS_ALLOC_FAILED);
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
            let rows = sys::ggml_mul_mat_id(c, down, glu, ids);

            let between = [ids, gated, upped, glu];
            let size = |t: *mut Tensor| sys::ggml_nbytes(t).next_multiple_of(64);
            self.scratch.clear();
            let room = self.scratch.take(between.iter().map(|&t| size(t)).sum());
            let mut at = room.ok_or_else(failed)?;
            for tensor in between {
                sys::ggml_backend_tensor_alloc(self.scratch.buffer(), tensor, at.cast());
                at = at.add(size(tensor));
            }
            sys::ggml_backend_tensor_alloc(self.input.buffer(), x, shared.input.cast());
            self.rows.clear();
            let room = self.rows.take(sys::ggml_nbytes(rows)).ok_or_else(failed)?;
            sys::ggml_backend_tensor_alloc(self.rows.buffer(), rows, room.cast());
            let slots: Vec<i32> =
                shared.slots.iter().map(|&slot| i32::try_from(slot).unwrap_or(0)).collect();
            std::ptr::copy_nonoverlapping(slots.as_ptr(), (*ids).data.cast(), slots.len());

            let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
            for step in [gated, upped, glu, rows] {
                (*step).flags |= TENSOR_FLAG_COMPUTE;
                sys::ggml_graph_add_node(small, step);
            }
            status(sys::ggml_backend_graph_compute(self.backend, small))?;
            Ok((&(*rows).nb)[1])
        }
    }
}
