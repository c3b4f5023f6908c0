//! The memory that streamed weights pass through: slot pools, the ring, and small tables.
//!
//! All of it is allocated from the wrapped device, so that its kernels read it where it lies.

use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use hypura_io::Buffer;
use llama_cpp_sys_2 as sys;

use super::device::{TieredDevice, Weight};
use super::front::Front;
use super::{MatrixFrom, PartIndex, StreamKind, graph, repacked};
use crate::abi::{Buffer as GgmlBuffer, Tensor};
use crate::model::Model;

/// What is to be allocated.
#[derive(Debug, Clone, Default)]
pub struct PoolSpec {
    /// Slots of each pool. A slot holds one expert.
    pub slots: Vec<u32>,
    /// The pool of each expert layer.
    pub pool_of_layer: Vec<u32>,
    /// Bytes of the ring that whole matrices are streamed through.
    pub ring_bytes: usize,
    /// Tokens of the largest micro-batch.
    pub n_ubatch: usize,
    /// The most experts per token.
    pub n_used_max: usize,
    /// Direct reads begin and end at multiples of this, in bytes; 0 or 1 if it does not matter.
    pub block: usize,
    /// By pool and part: where most of its slices begin in their files, modulo `block`. A slot
    /// begins there too, with room for the rest of its first and last block, so that direct reads
    /// land in place. A part that is absent lies slice by slice.
    pub phases: HashMap<(u32, PartIndex), usize>,
    /// Slots of each expert layer in the memory of a device that has its own; empty if none does.
    pub device_slots: Vec<u32>,
    /// Slots there that experts of any layer pass through.
    pub device_transit_slots: u32,
    /// Bytes of the ring in that memory.
    pub device_ring_bytes: usize,
    /// Bytes of matrices that stay in host memory and are copied from there.
    pub store_bytes: usize,
}

/// One part of the slots of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPart {
    /// Which part of the expert.
    pub part: PartIndex,
    /// Its bytes.
    pub bytes: usize,
}

/// A span of memory that the host can write.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostSpan {
    ptr: NonNull<u8>,
    len: usize,
}

/// Pools, ring and tables, allocated.
pub struct StreamMemory {
    ctx: NonNull<sys::ggml_context>,
    buffers: Vec<GgmlBuffer>,
    pools: Vec<Pool>,
    pool_of_layer: Vec<u32>,
    ring: Option<HostSpan>,
    ring_buffer: GgmlBuffer,
    /// Matrices that stay, to be copied to a device.
    store: Option<HostSpan>,
    /// Lends its type to stand-ins for rearranged matrices; nothing is stored in it.
    lender: GgmlBuffer,
    /// Stand-ins for streamed matrices, by the matrix's index; their data is set at each use.
    matrices: HashMap<u32, *mut Tensor>,
    rows: Option<Rows>,
    /// Remapped expert ids, one table per layer.
    ids: Vec<*mut Tensor>,
    ids_capacity: usize,
    bytes: u64,
    /// Slots in the memory of each device that has its own. Pools and ring are then what is copied
    /// from.
    fronts: Vec<Front>,
    /// Pieces that are being filled: start address and length.
    lent: Mutex<BTreeMap<usize, usize>>,
}

struct Pool {
    slots: u32,
    /// By part number.
    parts: HashMap<PartIndex, PoolPart>,
}

struct PoolPart {
    tensor: *mut Tensor,
    bytes: usize,
    /// From one slot to the next.
    stride: usize,
    /// Bytes before a slot's first that are its own.
    head: usize,
}

/// One part of one slot, lent to be filled.
#[derive(Debug)]
pub struct SlotBuffer {
    /// The slot with the room around it.
    pub buffer: Buffer,
    /// Bytes of it before the slice.
    pub head: usize,
    /// Bytes of it after the slice.
    pub tail: usize,
}

/// Bytes of [`StreamMemory::lender`].
const LENDER_BYTES: usize = 64;
/// Smaller allocations would waste a good part of a huge page.
const HUGE_FROM_BYTES: usize = 16 << 20;

/// Bytes from one slot to the next, for slices of `bytes` that begin at `phase` modulo `block`. Those
/// that begin at a block need not end at one: what the last block has behind them is read too.
#[must_use]
pub const fn slot_stride(bytes: usize, block: usize, phase: Option<usize>) -> usize {
    match phase {
        // The last block of a slot and the first of the next one are not the same.
        Some(phase) if phase > 0 => bytes + block,
        Some(_) => bytes.next_multiple_of(block),
        None => bytes,
    }
}

/// The area that single rows of a table are read into.
pub(super) struct Rows {
    pub(super) tensor: *mut Tensor,
    pub(super) ids: *mut Tensor,
    pub(super) row_bytes: usize,
    pub(super) n_rows: usize,
}

// SAFETY: the tensors are used by the computing thread alone; others only fill slots that were
// handed to them, which nobody reads until they are given back.
unsafe impl Send for StreamMemory {}
// SAFETY: as above.
unsafe impl Sync for StreamMemory {}

impl StreamMemory {
    /// Allocates what `spec` asks for, shaped after the streamed tensors of a loaded model.
    ///
    /// # Errors
    /// When memory runs out, or layers of one pool differ in shape.
    pub fn new(model: &Model, spec: &PoolSpec) -> Result<Arc<StreamMemory>, String> {
        let tiered = model.tiered().ok_or("the model streams nothing")?;
        let device = tiered.devices().first().ok_or("the model is on no device")?;
        let weights = tiered.weights();
        let n_tensors = weights.len() + spec.pool_of_layer.len() + 8;
        // SAFETY: a context for descriptions only; freed in `Drop`.
        let ctx = unsafe {
            sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * (n_tensors + 4),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        let ctx = NonNull::new(ctx).ok_or("no memory for tensor descriptions")?;
        let mut memory = StreamMemory {
            ctx,
            buffers: Vec::new(),
            pools: spec.slots.iter().map(|&slots| Pool { slots, parts: HashMap::new() }).collect(),
            pool_of_layer: spec.pool_of_layer.clone(),
            ring: None,
            ring_buffer: std::ptr::null_mut(),
            store: None,
            lender: std::ptr::null_mut(),
            matrices: HashMap::new(),
            rows: None,
            ids: Vec::new(),
            ids_capacity: (spec.n_used_max * spec.n_ubatch).max(1),
            bytes: 0,
            fronts: Vec::new(),
            lent: Mutex::new(BTreeMap::new()),
        };
        // SAFETY: the weights are tensors of a model that the caller holds.
        unsafe {
            for device in tiered.devices().iter().filter(|device| device.is_staged) {
                let own: Vec<(*const Tensor, Weight)> = weights
                    .iter()
                    .filter(|(index, ..)| *index == device.index)
                    .map(|(_, tensor, weight)| (*tensor, weight.clone()))
                    .collect();
                memory.fronts.push(Front::new(device, spec, &own)?);
            }
            if spec.store_bytes > 0 {
                memory.store = Some(memory.allocate(buft(device), spec.store_bytes)?.1);
            }
            if spec.ring_bytes > 0 {
                let (buffer, span) = memory.allocate(buft(device), spec.ring_bytes)?;
                (memory.ring_buffer, memory.ring) = (buffer, Some(span));
            }
            for (_, tensor, weight) in weights {
                let like = (tensor, weight.is_repacked);
                match weight.kind {
                    StreamKind::Experts { layer, part } => {
                        memory.add_pool_part(device, spec, like, layer, part)?;
                    }
                    StreamKind::Matrix { .. } if device.is_staged => {}
                    StreamKind::Matrix { index } => memory.add_matrix(like, index)?,
                    StreamKind::Rows => memory.add_rows(device, tensor, spec.n_ubatch)?,
                }
            }
            let n_ids = if device.is_staged { 0 } else { spec.pool_of_layer.len() };
            for _ in 0..n_ids {
                let n = i64::try_from(memory.ids_capacity).unwrap_or(i64::MAX);
                let ids = sys::ggml_new_tensor_1d(memory.ctx.as_ptr(), sys::GGML_TYPE_I32, n);
                memory.place(device, ids)?;
                memory.ids.push(ids);
            }
        }
        Ok(Arc::new(memory))
    }

    /// Bytes of the devices' own memory that were allocated.
    pub fn device_bytes(&self) -> u64 {
        self.fronts.iter().map(Front::bytes).sum()
    }

    /// What a device has in its own memory, by its number.
    pub(super) fn front(&self, device: usize) -> Option<&Front> {
        self.fronts.get(device)
    }

    /// Where a part of an expert lies in host memory.
    pub(super) fn host_slot(&self, layer: u32, part: PartIndex, slot: u32) -> Option<*const u8> {
        let pool = self.pools.get(*self.pool_of_layer.get(layer as usize)? as usize)?;
        let part = pool.parts.get(&part).filter(|_| slot < pool.slots)?;
        // SAFETY: the tensor holds `slots` slices.
        Some(unsafe { (*part.tensor).data.cast::<u8>().add(slot as usize * part.stride) })
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The parts of a pool's slots.
    pub fn slot_parts(&self, pool: u32) -> Vec<SlotPart> {
        let mut parts: Vec<_> = self.pools[pool as usize]
            .parts
            .iter()
            .map(|(&part, p)| SlotPart { part, bytes: p.bytes })
            .collect();
        parts.sort_by_key(|p| p.part);
        parts
    }

    /// Lends one part of one slot, to be filled.
    ///
    /// `None` when there is no such slot or part, or it is lent already.
    pub fn lend_slot(
        self: &Arc<Self>,
        pool: u32,
        part: PartIndex,
        slot: u32,
    ) -> Option<SlotBuffer> {
        let pool = self.pools.get(pool as usize)?;
        let &PoolPart { tensor, bytes, stride, head } = pool.parts.get(&part)?;
        if slot >= pool.slots {
            return None;
        }
        // SAFETY: the tensor holds `slots` slices, with `head` bytes before the first one.
        let start = unsafe { (*tensor).data.cast::<u8>().add(slot as usize * stride).sub(head) };
        let buffer = self.lend(start, stride)?;
        Some(SlotBuffer { buffer, head, tail: stride - head - bytes })
    }

    /// Lends `len` bytes of the ring from `offset` on, to be filled.
    ///
    /// `None` when they lie outside the ring, or some are lent already.
    pub fn lend_ring(self: &Arc<Self>, offset: usize, len: usize) -> Option<Buffer> {
        let ring = self.ring?;
        if offset.checked_add(len)? > ring.len {
            return None;
        }
        // SAFETY: inside the ring.
        self.lend(unsafe { ring.ptr.as_ptr().add(offset) }, len)
    }

    /// Lends `len` bytes of the store from `offset` on, to be filled.
    ///
    /// `None` when they lie outside of it, or some are lent already.
    pub fn lend_store(self: &Arc<Self>, offset: usize, len: usize) -> Option<Buffer> {
        let start = self.host_bytes(MatrixFrom::Store(offset), len)?.cast_mut();
        self.lend(start, len)
    }

    /// Where bytes of a matrix lie in host memory.
    pub(super) fn host_bytes(&self, from: MatrixFrom, len: usize) -> Option<*const u8> {
        let (span, offset) = match from {
            MatrixFrom::Store(offset) => (self.store?, offset),
            MatrixFrom::Ring(offset) => (self.ring?, offset),
        };
        let is_inside = offset.checked_add(len)? <= span.len;
        // SAFETY: inside the span.
        is_inside.then(|| unsafe { span.ptr.as_ptr().add(offset).cast_const() })
    }

    /// The address that offsets in the store count from, modulo `alignment`.
    pub fn store_base(&self, alignment: usize) -> usize {
        self.store.map_or(0, |store| store.ptr.as_ptr() as usize % alignment.max(1))
    }

    /// Bytes that a streamed matrix takes in the device's ring.
    pub fn device_matrix_bytes(&self, index: u32) -> Option<usize> {
        Some(self.fronts.iter().find_map(|front| front.matrix(index))?.padded_bytes)
    }

    /// Bytes of the ring, and the address that offsets count from modulo `alignment`.
    pub fn ring_shape(&self, alignment: usize) -> Option<(usize, usize)> {
        self.ring.map(|r| (r.len, r.ptr.as_ptr() as usize % alignment.max(1)))
    }

    /// Lends the `i`-th row of the area for single rows, to be filled.
    ///
    /// `None` when there is no such row, or it is lent already.
    pub fn lend_row(self: &Arc<Self>, i: usize) -> Option<Buffer> {
        let rows = self.rows.as_ref().filter(|rows| i < rows.n_rows)?;
        // SAFETY: the tensor holds `n_rows` rows.
        let start = unsafe { (*rows.tensor).data.cast::<u8>().add(i * rows.row_bytes) };
        self.lend(start, rows.row_bytes)
    }

    /// A buffer over `start..start + len`, unless part of that is lent already: two buffers over
    /// one byte would let two reads write it.
    fn lend(self: &Arc<Self>, start: *mut u8, len: usize) -> Option<Buffer> {
        let ptr = NonNull::new(start)?;
        let address = start as usize;
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let before = lent.range(..address + len.max(1)).next_back();
        if before.is_some_and(|(&from, &len)| from + len > address) {
            return None;
        }
        lent.insert(address, len);
        drop(lent);
        let lease = Arc::new(Lease { memory: Arc::clone(self), address });
        // SAFETY: the memory lives as long as the lease, nobody else may write it meanwhile, and
        // the protocol of `Residency` keeps the computation from reading it.
        Some(unsafe { Buffer::foreign(ptr, len, lease) })
    }

    /// Bytes of one row of the row-streamed table, and how many fit.
    pub fn row_shape(&self) -> Option<(usize, usize)> {
        self.rows.as_ref().map(|r| (r.row_bytes, r.n_rows))
    }

    /// The pool tensor that stands in for a part of an expert layer.
    pub(super) fn pool_tensor(&self, layer: u32, part: PartIndex) -> Option<*mut Tensor> {
        let pool = *self.pool_of_layer.get(layer as usize)?;
        self.pools.get(pool as usize)?.parts.get(&part).map(|p| p.tensor)
    }

    /// Slots of the pool of a layer.
    pub(super) fn n_slots(&self, layer: u32) -> u32 {
        let pool = self.pool_of_layer.get(layer as usize).copied().unwrap_or(u32::MAX);
        self.pools.get(pool as usize).map_or(0, |pool| pool.slots)
    }

    /// The parts that experts of a layer have, as a mask.
    pub(super) fn parts_of_layer(&self, layer: u32) -> u8 {
        let pool = self.pool_of_layer.get(layer as usize).copied().unwrap_or(0);
        let pool = self.pools.get(pool as usize);
        pool.map_or(0, |p| p.parts.keys().fold(0, |mask, part| mask | (1 << part)))
    }

    /// The table for a layer's remapped ids, shaped `[n_used, n_tokens]`.
    pub(super) fn ids_tensor(
        &self,
        layer: u32,
        n_used: usize,
        n_tokens: usize,
    ) -> Option<*mut Tensor> {
        let tensor = *self.ids.get(layer as usize)?;
        if n_used * n_tokens > self.ids_capacity {
            return None;
        }
        // SAFETY: the table has room for the shape.
        unsafe { graph::reshape(tensor, n_used, n_tokens) };
        Some(tensor)
    }

    /// The stand-in for a streamed matrix whose bytes lie at `offset` in the ring.
    pub(super) fn matrix_at(&self, index: u32, offset: usize) -> Option<*mut Tensor> {
        let tensor = *self.matrices.get(&index)?;
        let ring = self.ring?;
        // SAFETY: the tensor is ours; its bytes must lie in the ring.
        unsafe {
            if offset.checked_add(sys::ggml_nbytes(tensor))? > ring.len {
                return None;
            }
            (*tensor).data = ring.ptr.as_ptr().add(offset).cast();
        }
        Some(tensor)
    }

    pub(super) fn rows(&self) -> Option<&Rows> {
        self.rows.as_ref()
    }

    unsafe fn add_pool_part(
        &mut self,
        device: &TieredDevice,
        spec: &PoolSpec,
        (like, is_repacked): (*const Tensor, bool),
        layer: u32,
        part: PartIndex,
    ) -> Result<(), String> {
        // SAFETY: `like` is a live weight; the new tensor is described like one of its matrices.
        unsafe {
            let index = self.pool_of_layer.get(layer as usize).copied();
            let index = index.ok_or_else(|| format!("layer {layer} has no pool"))? as usize;
            let pool = self.pools.get(index).ok_or_else(|| format!("there is no pool {index}"))?;
            let (ne, ty) = ((*like).ne, (*like).type_);
            let bytes = (*like).nb[2];
            if let Some(have) = pool.parts.get(&part) {
                let same = (*have.tensor).type_ == ty
                    && (&(*have.tensor).ne)[..2] == ne[..2]
                    && repacked::has_kernels(have.tensor) == is_repacked;
                return if same {
                    Ok(())
                } else {
                    Err(format!("{} does not fit its pool", graph::name(like)))
                };
            }
            let slots = pool.slots;
            let ctx = self.ctx.as_ptr();
            let tensor = sys::ggml_new_tensor_3d(ctx, ty, ne[0], ne[1], i64::from(slots));
            let (block, key) = (spec.block.max(1), (u32::try_from(index).unwrap_or(0), part));
            // The kernels want whole blocks of their own too.
            let align = sys::ggml_backend_buft_get_alignment(buft(device)).max(1);
            let phase = spec.phases.get(&key).copied();
            let is_sound = |p: &usize| *p < block && p.is_multiple_of(align);
            let phase = phase.filter(|p| is_sound(p) && (*p == 0 || bytes % block == 0));
            let stride = slot_stride(bytes, block, phase);
            let head = phase.unwrap_or(0);
            (*tensor).nb[2] = stride;
            (*tensor).nb[3] = stride * slots as usize;
            let buft = if is_repacked { repacked::repack_type()? } else { buft(device) };
            let (buffer, span) = self.allocate(buft, block + stride * slots as usize)?;
            let first = span.ptr.as_ptr();
            let first = first.add(first.align_offset(block)).add(head);
            sys::ggml_backend_tensor_alloc(buffer, tensor, first.cast());
            if is_repacked {
                repacked::choose_kernels(tensor)?;
            }
            self.pools[index].parts.insert(part, PoolPart { tensor, bytes, stride, head });
            Ok(())
        }
    }

    unsafe fn add_matrix(
        &mut self,
        (like, is_repacked): (*const Tensor, bool),
        index: u32,
    ) -> Result<(), String> {
        if self.ring_buffer.is_null() {
            return Err("there is no ring for streamed matrices".into());
        }
        // SAFETY: `like` is a live weight; the new tensor has its type and shape.
        unsafe {
            let dims = (*like).ne;
            let tensor = sys::ggml_new_tensor(self.ctx.as_ptr(), (*like).type_, 4, dims.as_ptr());
            (*tensor).buffer = self.ring_buffer;
            if is_repacked {
                (*tensor).buffer = self.lender()?;
                repacked::choose_kernels(tensor)?;
            }
            self.matrices.insert(index, tensor);
        }
        Ok(())
    }

    /// See [`StreamMemory::lender`].
    fn lender(&mut self) -> Result<GgmlBuffer, String> {
        if self.lender.is_null() {
            self.lender = self.allocate(repacked::repack_type()?, LENDER_BYTES)?.0;
        }
        Ok(self.lender)
    }

    unsafe fn add_rows(
        &mut self,
        device: &TieredDevice,
        like: *const Tensor,
        n_rows: usize,
    ) -> Result<(), String> {
        // SAFETY: `like` is a live weight of two dimensions.
        unsafe {
            let n = i64::try_from(n_rows).unwrap_or(i64::MAX);
            let ctx = self.ctx.as_ptr();
            let tensor = sys::ggml_new_tensor_2d(ctx, (*like).type_, (&(*like).ne)[0], n);
            let ids = sys::ggml_new_tensor_1d(ctx, sys::GGML_TYPE_I32, n);
            self.place(device, tensor)?;
            self.place(device, ids)?;
            self.rows = Some(Rows { tensor, ids, row_bytes: (*tensor).nb[1], n_rows });
        }
        Ok(())
    }

    /// Gives a tensor a buffer of its own.
    unsafe fn place(&mut self, device: &TieredDevice, tensor: *mut Tensor) -> Result<(), String> {
        // SAFETY: the tensor is described and has no memory yet.
        unsafe {
            let (buffer, span) = self.allocate(buft(device), sys::ggml_nbytes(tensor))?;
            sys::ggml_backend_tensor_alloc(buffer, tensor, span.ptr.as_ptr().cast());
        }
        Ok(())
    }

    fn allocate(
        &mut self,
        buft: sys::ggml_backend_buffer_type_t,
        bytes: usize,
    ) -> Result<(GgmlBuffer, HostSpan), String> {
        // SAFETY: buffer types are static objects; the buffer is freed in `Drop`.
        unsafe {
            let buffer = sys::ggml_backend_buft_alloc_buffer(buft, bytes);
            if buffer.is_null() {
                return Err(format!("no memory for {bytes} bytes of streamed weights"));
            }
            self.buffers.push(buffer);
            sys::ggml_backend_buffer_set_usage(buffer, sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
            self.bytes += bytes as u64;
            let base = sys::ggml_backend_buffer_get_base(buffer).cast::<u8>();
            let ptr = NonNull::new(base).ok_or("a buffer without address")?;
            // Before the first touch: direct reads into small pages cost the kernel four times as
            // much.
            if bytes >= HUGE_FROM_BYTES
                && buft == sys::ggml_backend_cpu_buffer_type()
                && let Err(error) = hypura_io::prefer_huge_pages(ptr, bytes)
            {
                tracing::debug!("no huge pages: {error}");
            }
            Ok((buffer, HostSpan { ptr, len: bytes }))
        }
    }
}

/// Memory that bytes are read into: the wrapped device's, or what it copies from fastest.
fn buft(device: &TieredDevice) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: the device is alive as long as the backend registry.
    unsafe {
        if !device.is_staged {
            return sys::ggml_backend_dev_buffer_type(device.inner);
        }
        let pinned = sys::ggml_backend_dev_host_buffer_type(device.inner);
        if pinned.is_null() { sys::ggml_backend_cpu_buffer_type() } else { pinned }
    }
}

impl Drop for StreamMemory {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once; whoever fills memory holds an `Arc` of us.
        unsafe {
            for buffer in &self.buffers {
                sys::ggml_backend_buffer_free(*buffer);
            }
            sys::ggml_free(self.ctx.as_ptr());
        }
    }
}

/// Ends when the buffer that it came with is dropped.
struct Lease {
    memory: Arc<StreamMemory>,
    address: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut lent = self.memory.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.remove(&self.address);
    }
}
