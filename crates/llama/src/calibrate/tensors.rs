//! Weights to measure with, and the memory of small graphs.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::{CalibrateError, Case, Product};
use crate::Layout;
use crate::abi::{self, Buffer, Buft, Dev, Tensor};

/// Weights of one tensor at most, in bytes: about a millisecond of work, which other programs leave
/// alone often enough to be measured beside them.
const TENSOR_BYTES_MAX: usize = 12 << 20;
/// Elements of one tensor at least, where the shape allows it: smaller ones would measure steps.
const TENSOR_ELEMENTS_MIN: i64 = 1 << 20;
/// Experts of one tensor, and how many of them a row uses.
const EXPERTS: i64 = 8;
pub(super) const EXPERTS_USED: i64 = 4;
/// So many rows meet all experts of a tensor.
pub(super) const TURNS: usize = 2;

/// The shape of each tensor of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    ty: u32,
    pub(super) n_in: i64,
    n_out: i64,
    /// 0 for a matrix.
    pub(super) experts: i64,
    /// Of a whole tensor.
    pub(super) bytes: usize,
}

impl Shape {
    pub(super) fn of(case: &Case) -> Result<Shape, CalibrateError> {
        let &Case { ty, n_in, n_out, product, .. } = case;
        let unsupported = CalibrateError::Unsupported { ty, n_in, n_out };
        crate::init();
        if ty >= sys::GGML_TYPE_COUNT {
            return Err(unsupported);
        }
        // Integers are types too, but nothing multiplies with them.
        // SAFETY: `ty` is one of ggml's types, and the traits of a type are static.
        let is_number = unsafe { (*sys::ggml_get_type_traits(ty)).to_float.is_some() };
        // SAFETY: as above; removed types have no size.
        let (block, block_bytes) = unsafe { (sys::ggml_blck_size(ty), sys::ggml_type_size(ty)) };
        let (Ok(n_in), Ok(n_out)) = (i64::try_from(n_in), i64::try_from(n_out)) else {
            return Err(unsupported);
        };
        if !(is_number || ty == sys::GGML_TYPE_F32)
            || block <= 0
            || block_bytes == 0
            || n_in <= 0
            || n_out <= 0
            || n_in % block != 0
        {
            return Err(unsupported);
        }
        // SAFETY: as above, and `n_in` is a whole number of blocks.
        let row_bytes = unsafe { sys::ggml_row_size(ty, n_in) }.max(1);
        let experts = if product == Product::Experts { EXPERTS } else { 0 };
        let slices = usize::try_from(experts.max(1)).unwrap_or(1);
        // Fewer rows of a large matrix do: a whole number of what kernels take at a time.
        let rows_max = i64::try_from(TENSOR_BYTES_MAX / slices / row_bytes).unwrap_or(1).max(1);
        let rows_min = (TENSOR_ELEMENTS_MIN / n_in).max(1);
        let rows = n_out.min(rows_max).max(rows_min.min(rows_max));
        let n_out = if rows >= 64 { rows - rows % 64 } else { rows };
        let rows = usize::try_from(n_out).unwrap_or(1);
        Ok(Shape { ty, n_in, n_out, experts, bytes: row_bytes * rows * slices })
    }

    /// Weights that one row is multiplied with.
    pub(super) fn elements_used(&self) -> i64 {
        let slices = if self.experts > 0 { EXPERTS_USED } else { 1 };
        self.n_in * self.n_out * slices
    }

    /// Bytes of them.
    pub(super) fn bytes_used(&self) -> usize {
        if self.experts > 0 { self.bytes / TURNS } else { self.bytes }
    }
}

/// Tensors of weights with memory and values.
pub(super) struct Weights {
    pub(super) tensors: Vec<*mut Tensor>,
    pub(super) repacked: bool,
    // Dropped in this order: the buffer's tensors are described in the arena.
    _buffer: Owned,
    _arena: Arena,
}

impl Weights {
    pub(super) fn new(
        device: Dev,
        layout: Layout,
        shape: &Shape,
        n_tensors: usize,
    ) -> Result<Weights, CalibrateError> {
        let arena = Arena::new(n_tensors, 0, 0)?;
        let context = arena.context();
        let &Shape { ty, n_in, n_out, experts, .. } = shape;
        let describe = |context| {
            // SAFETY: the context has room for the description; the shape was checked.
            unsafe {
                match experts {
                    0 => sys::ggml_new_tensor_2d(context, ty, n_in, n_out),
                    n => sys::ggml_new_tensor_3d(context, ty, n_in, n_out, n),
                }
            }
        };
        let tensors: Vec<*mut Tensor> = (0..n_tensors).map(|_| describe(context)).collect();
        let fast = match layout {
            Layout::Plain => None,
            Layout::Fast => rearranging(device, shape, &describe)?,
        };
        if fast.is_none() && !multiplies(device, None, shape, &describe)? {
            let (n_in, n_out) = (n_in.unsigned_abs(), n_out.unsigned_abs());
            return Err(CalibrateError::Unsupported { ty, n_in, n_out });
        }
        // SAFETY: the device is static, and so are its buffer types; the tensors have no memory
        // yet, and get it from the buffer made here.
        let buffer = unsafe {
            let buft = fast.unwrap_or(sys::ggml_backend_dev_buffer_type(device));
            let buffer = Owned::for_context(context, buft)?;
            let bytes = sample(ty, shape.bytes);
            if let Some((&first, others)) = tensors.split_first() {
                sys::ggml_backend_tensor_set(first, bytes.as_ptr().cast(), 0, bytes.len());
                // Rearranging is slow, and alike for all: copied as it came out.
                for &other in others {
                    let from = (*first).data.cast::<u8>();
                    std::ptr::copy_nonoverlapping(from, (*other).data.cast::<u8>(), shape.bytes);
                }
            }
            buffer
        };
        Ok(Weights { tensors, repacked: fast.is_some(), _buffer: buffer, _arena: arena })
    }
}

/// The first of the device's own layouts in which it takes this product; `None` for the plain one.
fn rearranging(
    device: Dev,
    shape: &Shape,
    describe: &dyn Fn(*mut sys::ggml_context) -> *mut Tensor,
) -> Result<Option<Buft>, CalibrateError> {
    type ExtraBufts = unsafe extern "C" fn(Dev) -> *mut Buft;
    // SAFETY: device and registry are static objects. The function of this name has this type
    // (`ggml-backend.h`), and returns a list that ends with a null pointer, or a null pointer.
    unsafe {
        let Some(address) = abi::function(device, c"ggml_backend_dev_get_extra_bufts") else {
            return Ok(None);
        };
        let extra = std::mem::transmute::<*mut std::ffi::c_void, ExtraBufts>(address);
        let mut next = extra(device);
        while !next.is_null() && !(*next).is_null() {
            if multiplies(device, Some(*next), shape, describe)? {
                return Ok(Some(*next));
            }
            next = next.add(1);
        }
    }
    Ok(None)
}

/// Whether the device takes the product with weights in a buffer of type `buft` (`None`: its own),
/// asked as llama.cpp's loader asks: with an empty buffer.
fn multiplies(
    device: Dev,
    buft: Option<Buft>,
    shape: &Shape,
    describe: &dyn Fn(*mut sys::ggml_context) -> *mut Tensor,
) -> Result<bool, CalibrateError> {
    let arena = Arena::new(4, 0, 0)?;
    let context = arena.context();
    // SAFETY: descriptions of one context; the empty buffer outlives the question, and nothing is
    // computed.
    unsafe {
        let weights = describe(context);
        let product = if shape.experts > 0 {
            let input = sys::ggml_new_tensor_3d(context, sys::GGML_TYPE_F32, shape.n_in, 1, 1);
            let ids = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_I32, EXPERTS_USED, 1);
            sys::ggml_mul_mat_id(context, weights, input, ids)
        } else {
            let input = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, shape.n_in, 1);
            sys::ggml_mul_mat(context, weights, input)
        };
        let buft = buft.unwrap_or(sys::ggml_backend_dev_buffer_type(device));
        let empty = Owned::new(sys::ggml_backend_buft_alloc_buffer(buft, 0))?;
        (*weights).buffer = empty.0.as_ptr();
        Ok(sys::ggml_backend_dev_supports_op(device, product))
    }
}

/// The size of a graph with room for its nodes and the weights and inputs that they read.
pub(super) fn graph_size(n_nodes: usize) -> usize {
    n_nodes * 2 + 16
}

/// A ggml context for descriptions.
pub(super) struct Arena(NonNull<sys::ggml_context>);

impl Arena {
    pub(super) fn new(
        n_tensors: usize,
        n_graphs: usize,
        n_nodes: usize,
    ) -> Result<Arena, CalibrateError> {
        // SAFETY: descriptions only; freed in `Drop`.
        let context = unsafe {
            sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * (n_tensors + n_graphs * n_nodes + 4)
                    + sys::ggml_graph_overhead_custom(graph_size(n_nodes), false) * n_graphs,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        NonNull::new(context).map(Arena).ok_or(CalibrateError::NoMemory)
    }

    pub(super) fn context(&self) -> *mut sys::ggml_context {
        self.0.as_ptr()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        unsafe { sys::ggml_free(self.0.as_ptr()) };
    }
}

/// A buffer of ours.
pub(super) struct Owned(NonNull<sys::ggml_backend_buffer>);

impl Owned {
    fn new(buffer: Buffer) -> Result<Owned, CalibrateError> {
        NonNull::new(buffer).map(Owned).ok_or(CalibrateError::NoMemory)
    }

    /// Memory for all tensors of a context that have none.
    ///
    /// # Safety
    /// The context is alive, and so is the buffer type.
    pub(super) unsafe fn for_context(
        context: *mut sys::ggml_context,
        buft: Buft,
    ) -> Result<Owned, CalibrateError> {
        // SAFETY: the caller's promise.
        Owned::new(unsafe { sys::ggml_backend_alloc_ctx_tensors_from_buft(context, buft) })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by ggml for us, and freed once; nothing computes with it any more.
        unsafe { sys::ggml_backend_buffer_free(self.0.as_ptr()) };
    }
}

/// Bytes that are sound weights of any type: in none of ggml's formats do scales become infinite or
/// "not a number" while the upper two bits of all bytes are 0. Plain floats are kept away from zero,
/// where arithmetic is slow.
pub(super) fn sample(ty: u32, len: usize) -> Vec<u8> {
    let float_bytes = match ty {
        sys::GGML_TYPE_F32 => 4,
        sys::GGML_TYPE_F16 | sys::GGML_TYPE_BF16 => 2,
        _ => usize::MAX,
    };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // Xorshift (Marsaglia, "Xorshift RNGs", 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend((state & 0x3f3f_3f3f_3f3f_3f3f).to_le_bytes());
    }
    bytes.truncate(len);
    for float in bytes.chunks_exact_mut(float_bytes.min(len.max(1))) {
        if float.len() == float_bytes
            && let Some(last) = float.last_mut()
        {
            *last = 0x38 | (*last & 3);
        }
    }
    bytes
}

/// Sets a tensor of floats to values between -1 and 1.
///
/// # Safety
/// The tensor is of type F32, contiguous, and has memory.
pub(super) unsafe fn fill_f32(tensor: *mut Tensor) {
    // SAFETY: the caller's promise.
    unsafe {
        let n = usize::try_from(sys::ggml_nelements(tensor)).unwrap_or(0);
        let values: Vec<f32> =
            (0_u16..251).cycle().take(n).map(|i| f32::from(i) / 125.0 - 1.0).collect();
        let bytes = std::mem::size_of_val(values.as_slice());
        sys::ggml_backend_tensor_set(tensor, values.as_ptr().cast(), 0, bytes);
    }
}

/// Lets each row choose the experts of a turn, the next row beginning with the next expert, so that
/// a single row's turns meet all of them and many rows spread over all.
///
/// # Safety
/// The tensor is of type I32, of `EXPERTS_USED` by `rows`, and has memory.
pub(super) unsafe fn choose(tensor: *mut Tensor, turn: usize, rows: i64) {
    let turn = i64::try_from(turn).unwrap_or(0);
    let choice = |row: i64, i: i64| (row + turn * EXPERTS_USED + i) % EXPERTS;
    let ids: Vec<i32> = (0..rows)
        .flat_map(|row| (0..EXPERTS_USED).map(move |i| choice(row, i)))
        .filter_map(|id| i32::try_from(id).ok())
        .collect();
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = std::mem::size_of_val(ids.as_slice());
        sys::ggml_backend_tensor_set(tensor, ids.as_ptr().cast(), 0, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the type, the made-up weights have finite values.
    #[test]
    fn samples_are_finite() {
        for ty in 0..sys::GGML_TYPE_COUNT {
            // SAFETY: a number below that of types.
            let (block, bytes) = unsafe { (sys::ggml_blck_size(ty), sys::ggml_type_size(ty)) };
            let block = usize::try_from(block).unwrap_or(0);
            let mut values = vec![0.0; block * 64];
            let sample = sample(ty, bytes * 64);
            if crate::quants::dequantize_row(ty, &sample, &mut values).is_ok() {
                assert!(values.iter().all(|value| value.is_finite()), "type {ty}");
            }
        }
    }
}
