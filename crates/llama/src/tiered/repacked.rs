//! Weights that come rearranged for this CPU, as ggml would have rearranged them itself
//! ([`crate::Repacker`]).
//!
//! ggml's kernels for such weights ask two things of a tensor: that its buffer is of the type
//! `CPU_REPACK`, and that `extra` names the kernels, which that buffer's `init_tensor` sets. Where
//! the bytes lie is all the same to them. So streamed ones need a buffer of that type and nothing
//! else ([`choose_kernels`]); resident ones get buffers of [`REPACKED`], which are ggml's but for
//! one function: setting a tensor copies, where ggml's would rearrange once more.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

use crate::abi::{Buffer, BufferObject, BufferTypeI, Buft, Tensor};
use crate::repack::buffer_type;

/// The type of buffers whose tensors are multiplied as rearranged ones.
pub(super) fn repack_type() -> Result<Buft, String> {
    buffer_type().ok_or_else(|| "this CPU has no layout of its own".to_owned())
}

/// Sets a tensor's kernels, after its buffer was set to one of [`repack_type`].
///
/// # Safety
/// The tensor is described, and its buffer is alive.
pub(super) unsafe fn choose_kernels(tensor: *mut Tensor) -> Result<(), String> {
    // SAFETY: the caller's promise; the function looks at type and shape only.
    let status = unsafe { sys::ggml_backend_buffer_init_tensor((*tensor).buffer, tensor) };
    // SAFETY: as above.
    if status == sys::GGML_STATUS_SUCCESS && unsafe { has_kernels(tensor) } {
        Ok(())
    } else {
        Err("ggml has no kernels for a tensor that was rearranged for it".into())
    }
}

/// Whether a tensor is multiplied as a rearranged one.
///
/// # Safety
/// The tensor is alive.
pub(super) unsafe fn has_kernels(tensor: *const Tensor) -> bool {
    // SAFETY: the caller's promise. Nothing else sets this field of a weight on the CPU.
    unsafe { !(*tensor).extra.is_null() }
}

/// The buffer type of resident tensors that come rearranged.
pub(super) const REPACKED: BufferTypeI = BufferTypeI {
    get_name: Some(name),
    alloc_buffer: Some(alloc),
    alloc_buffer_n: None,
    get_alignment: Some(alignment),
    get_max_size: None,
    get_alloc_size: None,
    get_alloc_size_n: None,
    is_host: None,
};

unsafe extern "C" fn name(_: Buft) -> *const c_char {
    c"REARRANGED".as_ptr()
}

unsafe extern "C" fn alignment(_: Buft) -> usize {
    // SAFETY: a static buffer type.
    buffer_type().map_or(1, |buft| unsafe { sys::ggml_backend_buft_get_alignment(buft) })
}

type InitTensor = unsafe extern "C" fn(Buffer, *mut Tensor) -> sys::ggml_status;

/// The function that ggml's buffers of the type come with.
static INIT_TENSOR: OnceLock<InitTensor> = OnceLock::new();

unsafe extern "C" fn alloc(_: Buft, bytes: usize) -> Buffer {
    let Some(buft) = buffer_type() else { return null_mut() };
    // SAFETY: a static buffer type; `abi::verify` has checked the buffer's structure.
    unsafe {
        let buffer = sys::ggml_backend_buft_alloc_buffer(buft, bytes);
        if buffer.is_null() {
            return buffer;
        }
        let object = &mut *buffer.cast::<BufferObject>();
        let Some(init) = object.iface.init_tensor else {
            sys::ggml_backend_buffer_free(buffer);
            return null_mut();
        };
        INIT_TENSOR.get_or_init(|| init);
        object.iface.init_tensor = Some(init_tensor);
        object.iface.set_tensor = Some(set_tensor);
        buffer
    }
}

/// Without kernels of its own a tensor would be read as if it had not been rearranged.
unsafe extern "C" fn init_tensor(buffer: Buffer, tensor: *mut Tensor) -> sys::ggml_status {
    let Some(init) = INIT_TENSOR.get() else { return sys::GGML_STATUS_FAILED };
    // SAFETY: ggml passes a live tensor that was placed in a buffer made in `alloc`.
    unsafe {
        let status = init(buffer, tensor);
        if status == sys::GGML_STATUS_SUCCESS && !has_kernels(tensor) {
            return sys::GGML_STATUS_FAILED;
        }
        status
    }
}

unsafe extern "C" fn set_tensor(
    _: Buffer,
    tensor: *mut Tensor,
    data: *const c_void,
    offset: usize,
    bytes: usize,
) {
    // SAFETY: ggml has checked that the tensor has these bytes; `data` holds as many.
    unsafe {
        let to = (*tensor).data.cast::<u8>().add(offset);
        std::ptr::copy_nonoverlapping(data.cast::<u8>(), to, bytes);
    }
}
