//! The slots and the ring in a GPU's own memory.
//!
//! Each layer has slots of its own. One pool of all layers would follow the routing better, but
//! `MUL_MAT_ID` of a prompt does something for every expert of its weights, and a pool of all
//! layers has that many times more of them. (Passes give it the slots of a group alone; where all
//! experts of a prompt fit, it gets the layer's.)

use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::device::{TieredDevice, Weight};
use super::memory::PoolSpec;
use super::transit::Transit;
use super::{PartIndex, StreamKind, graph};
use crate::abi::{Buffer, Tensor};

/// Parts that experts may have: bits of a mask.
const PARTS_MAX: usize = 8;

/// Slots of all layers, and what the device reads beside them.
pub(super) struct Front {
    ctx: NonNull<sys::ggml_context>,
    buffers: Vec<Buffer>,
    layers: Vec<Layer>,
    /// Remapped expert ids, one table per layer, with room for `ids_max`.
    ids: HashMap<u32, *mut Tensor>,
    ids_max: i64,
    /// By layer: where its experts are, and what a token's are found at.
    finders: HashMap<u32, Finder>,
    n_used_max: i64,
    /// 0, 1, 2, ...: for kernels that read the number of a slot from memory.
    numbers: Option<*mut Tensor>,
    /// What matrices pass through: bytes, as ggml sees them.
    ring: Option<*mut Tensor>,
    /// Stand-ins for streamed matrices, by the matrix's index; their data is set at each use.
    matrices: HashMap<u32, Matrix>,
    transit: Option<Transit>,
    bytes: u64,
}

/// A matrix that passes through the ring.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) tensor: *mut Tensor,
    pub(super) bytes: usize,
    /// With the room behind it that kernels read too (they multiply it with zero).
    pub(super) padded_bytes: usize,
}

/// For slots that the device looks up by itself.
#[derive(Clone, Copy)]
pub(super) struct Finder {
    /// The slot of each expert: `[1, n_experts]`.
    pub(super) table: *mut Tensor,
    /// The slots of a token's choice, with room for as many as any layer uses.
    pub(super) found: *mut Tensor,
}

struct Layer {
    slots: u32,
    parts: HashMap<PartIndex, Part>,
}

#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) tensor: *mut Tensor,
    /// Of one expert.
    pub(super) bytes: usize,
    /// What kernels read behind the last one (they multiply it with zero).
    pub(super) padding: usize,
}

impl Front {
    /// Allocates slots shaped after the streamed experts of the layers that are on this device.
    ///
    /// # Errors
    /// When the device has no memory for them.
    ///
    /// # Safety
    /// The weights are alive.
    pub(super) unsafe fn new(
        device: &TieredDevice,
        spec: &PoolSpec,
        weights: &[(*const Tensor, Weight)],
    ) -> Result<Front, String> {
        let n_layers = spec.device_slots.len();
        // SAFETY: a context for descriptions only; freed in `Drop`.
        let ctx = unsafe {
            sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead()
                    * (weights.len() + 3 * n_layers + 6 + PARTS_MAX),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        let ctx = NonNull::new(ctx).ok_or("no memory for tensor descriptions")?;
        let layer = |&slots: &u32| Layer { slots, parts: HashMap::new() };
        let mut front = Front {
            ctx,
            buffers: Vec::new(),
            layers: spec.device_slots.iter().map(layer).collect(),
            ids: HashMap::new(),
            ids_max: i64::try_from(spec.n_used_max * spec.n_ubatch).unwrap_or(i64::MAX).max(1),
            finders: HashMap::new(),
            n_used_max: i64::try_from(spec.n_used_max).unwrap_or(i64::MAX).max(1),
            numbers: None,
            ring: None,
            matrices: HashMap::new(),
            transit: None,
            bytes: 0,
        };
        // SAFETY: the caller's promise; tensors are described, then given memory.
        unsafe {
            if spec.device_ring_bytes > 0 {
                let n = i64::try_from(spec.device_ring_bytes).unwrap_or(i64::MAX);
                let ring = sys::ggml_new_tensor_1d(ctx.as_ptr(), sys::GGML_TYPE_I8, n);
                front.place(device, ring)?;
                front.ring = Some(ring);
            }
            for (like, weight) in weights {
                if weight.is_repacked {
                    return Err(format!("{} is arranged for a CPU", weight.name));
                }
                match weight.kind {
                    StreamKind::Experts { layer, part } => {
                        front.add_part(device, *like, layer, part)?;
                    }
                    StreamKind::Matrix { index } => front.add_matrix(device, *like, index)?,
                    StreamKind::Rows => {
                        return Err(format!("{} can't be read by rows there", weight.name));
                    }
                }
            }
            front.add_numbers(device)?;
            if spec.device_transit_slots > 0 {
                front.add_transit(device, spec.device_transit_slots)?;
            }
        }
        Ok(front)
    }

    /// Cells that experts of any layer fit.
    unsafe fn add_transit(&mut self, device: &TieredDevice, n_slots: u32) -> Result<(), String> {
        let mut transit = Transit::new(n_slots);
        let mut widest: BTreeMap<PartIndex, usize> = BTreeMap::new();
        for (&part, of) in self.layers.iter().flat_map(|layer| &layer.parts) {
            let bytes = widest.entry(part).or_default();
            *bytes = transit.cell_bytes(of.bytes, of.padding).max(*bytes);
        }
        for (part, cell_bytes) in widest {
            let n = i64::try_from(cell_bytes * transit.n_cells as usize).unwrap_or(i64::MAX);
            // SAFETY: described, then given memory.
            unsafe {
                let ctx = self.ctx.as_ptr();
                let lane = sys::ggml_new_tensor_1d(ctx, sys::GGML_TYPE_I8, n);
                self.place(device, lane)?;
                transit.add_lane(part, lane, cell_bytes);
            }
        }
        self.transit = Some(transit);
        Ok(())
    }

    /// The numbers of slots, of the layer that has most.
    unsafe fn add_numbers(&mut self, device: &TieredDevice) -> Result<(), String> {
        let n_slots = self.layers.iter().map(|layer| layer.slots).max().unwrap_or(0);
        let values: Vec<i32> = (0..i32::try_from(n_slots).unwrap_or(0)).collect();
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: described, given memory, and written before anything reads it.
        unsafe {
            let n = i64::from(n_slots);
            let numbers = sys::ggml_new_tensor_1d(self.ctx.as_ptr(), sys::GGML_TYPE_I32, n);
            self.place(device, numbers)?;
            let bytes = std::mem::size_of_val(values.as_slice());
            sys::ggml_backend_tensor_set(numbers, values.as_ptr().cast(), 0, bytes);
            self.numbers = Some(numbers);
        }
        Ok(())
    }

    unsafe fn add_part(
        &mut self,
        device: &TieredDevice,
        like: *const Tensor,
        layer: u32,
        part: PartIndex,
    ) -> Result<(), String> {
        // SAFETY: `like` is alive; the new tensor is described like it, with fewer matrices.
        unsafe {
            let missing = || format!("{} has no slots on the device", graph::name(like));
            let slots = self.layers.get(layer as usize).ok_or_else(missing)?.slots;
            let (ne, ty) = ((*like).ne, (*like).type_);
            let ctx = self.ctx.as_ptr();
            let tensor = sys::ggml_new_tensor_3d(ctx, ty, ne[0], ne[1], i64::from(slots));
            self.place(device, tensor)?;
            if !self.ids.contains_key(&layer) {
                let ids = sys::ggml_new_tensor_1d(ctx, sys::GGML_TYPE_I32, self.ids_max);
                self.place(device, ids)?;
                self.ids.insert(layer, ids);
                let table = sys::ggml_new_tensor_2d(ctx, sys::GGML_TYPE_I32, 1, ne[2]);
                let found = sys::ggml_new_tensor_1d(ctx, sys::GGML_TYPE_I32, self.n_used_max);
                self.place(device, table)?;
                self.place(device, found)?;
                self.finders.insert(layer, Finder { table, found });
            }
            let bytes = (*tensor).nb[2];
            let buft = sys::ggml_backend_dev_buffer_type(device.inner);
            let whole = sys::ggml_backend_buft_get_alloc_size(buft, tensor);
            let padding = whole.saturating_sub(sys::ggml_nbytes(tensor));
            if let Some(layer) = self.layers.get_mut(layer as usize) {
                layer.parts.insert(part, Part { tensor, bytes, padding });
            }
            Ok(())
        }
    }

    unsafe fn add_matrix(
        &mut self,
        device: &TieredDevice,
        like: *const Tensor,
        index: u32,
    ) -> Result<(), String> {
        let ring = self.ring.ok_or("there is no ring on the device")?;
        // SAFETY: `like` is alive; the new tensor has its type and shape.
        unsafe {
            let dims = (*like).ne;
            let tensor = sys::ggml_new_tensor(self.ctx.as_ptr(), (*like).type_, 4, dims.as_ptr());
            (*tensor).buffer = (*ring).buffer;
            let buft = sys::ggml_backend_dev_buffer_type(device.inner);
            let bytes = sys::ggml_nbytes(tensor);
            let padded_bytes = sys::ggml_backend_buft_get_alloc_size(buft, tensor).max(bytes);
            self.matrices.insert(index, Matrix { tensor, bytes, padded_bytes });
        }
        Ok(())
    }

    /// Gives a tensor memory of the device.
    unsafe fn place(&mut self, device: &TieredDevice, tensor: *mut Tensor) -> Result<(), String> {
        // SAFETY: the tensor is described and has no memory yet; the buffer is freed in `Drop`.
        unsafe {
            let buft = sys::ggml_backend_dev_buffer_type(device.inner);
            let bytes = sys::ggml_backend_buft_get_alloc_size(buft, tensor);
            let buffer = sys::ggml_backend_buft_alloc_buffer(buft, bytes);
            if buffer.is_null() {
                return Err(format!(
                    "the GPU has no memory for {bytes} bytes of expert slots; use a smaller \
                     --gpu-memory"
                ));
            }
            self.buffers.push(buffer);
            sys::ggml_backend_buffer_set_usage(buffer, sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
            self.bytes += bytes as u64;
            sys::ggml_backend_tensor_alloc(
                buffer,
                tensor,
                sys::ggml_backend_buffer_get_base(buffer),
            );
            Ok(())
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Slots of a layer.
    pub(super) fn n_slots(&self, layer: u32) -> u32 {
        self.layers.get(layer as usize).map_or(0, |layer| layer.slots)
    }

    /// What stands in for a part of a layer's experts.
    pub(super) fn part(&self, layer: u32, part: PartIndex) -> Option<Part> {
        self.layers.get(layer as usize)?.parts.get(&part).copied()
    }

    /// Bytes of one expert of a layer.
    pub(super) fn expert_bytes(&self, layer: u32) -> usize {
        let parts = self.layers.get(layer as usize).map(|layer| layer.parts.values());
        parts.into_iter().flatten().map(|part| part.bytes).sum()
    }

    /// What experts without a slot pass through.
    pub(super) fn transit(&self) -> Option<&Transit> {
        self.transit.as_ref()
    }

    /// What matrices pass through.
    pub(super) fn ring(&self) -> Option<*mut Tensor> {
        self.ring
    }

    /// Bytes that a matrix takes in the ring.
    pub(super) fn matrix(&self, index: u32) -> Option<Matrix> {
        self.matrices.get(&index).copied()
    }

    /// The stand-in for a streamed matrix whose bytes lie at `offset` in the ring.
    pub(super) fn matrix_at(&self, index: u32, offset: usize) -> Option<*mut Tensor> {
        let matrix = self.matrix(index)?;
        let ring = self.ring?;
        // SAFETY: the tensor is ours; its bytes must lie in the ring.
        unsafe {
            if offset.checked_add(matrix.padded_bytes)? > sys::ggml_nbytes(ring) {
                return None;
            }
            (*matrix.tensor).data = (*ring).data.cast::<u8>().add(offset).cast();
        }
        Some(matrix.tensor)
    }

    /// The numbers of slots, from 0: `[n]`.
    pub(super) fn numbers(&self) -> Option<*mut Tensor> {
        self.numbers
    }

    /// What the device looks slots of a layer up in.
    pub(super) fn finder(&self, layer: u32) -> Option<Finder> {
        self.finders.get(&layer).copied()
    }

    /// The table for a layer's remapped ids.
    pub(super) fn ids(&self, layer: u32) -> Option<*mut Tensor> {
        self.ids.get(&layer).copied()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once.
        unsafe {
            for buffer in &self.buffers {
                sys::ggml_backend_buffer_free(*buffer);
            }
            sys::ggml_free(self.ctx.as_ptr());
        }
    }
}
