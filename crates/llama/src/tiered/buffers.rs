//! The two buffer types of the tiered device: addresses for streamed tensors, and the wrapped
//! device's memory for everything else.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use llama_cpp_sys_2 as sys;

use super::device::{Weight, of_buft};
use super::{StreamedTensor, graph, ledger};
use crate::abi::{self, Buffer, BufferI, BufferTypeI, Buft, Tensor};
use crate::context::DecodeError;
use crate::gpu::DEVICES_MAX;

// ---- buffers of streamed tensors: addresses without memory ----

pub(super) const STREAMED: BufferTypeI = BufferTypeI {
    get_name: Some(streamed_name),
    alloc_buffer: Some(streamed_alloc),
    alloc_buffer_n: None,
    get_alignment: Some(streamed_alignment),
    get_max_size: None,
    get_alloc_size: None,
    get_alloc_size_n: None,
    is_host: Some(streamed_is_host),
};

const STREAMED_BUFFER: BufferI = BufferI {
    free_buffer: Some(streamed_free),
    get_base: Some(streamed_base),
    init_tensor: Some(streamed_init_tensor),
    memset_tensor: None,
    set_tensor: Some(streamed_set_tensor),
    get_tensor: Some(streamed_get_tensor),
    set_tensor_2d: None,
    get_tensor_2d: None,
    cpy_tensor: None,
    clear: Some(streamed_clear),
    reset: None,
};

/// Addresses that were reserved for streamed tensors.
#[derive(Clone, Copy)]
pub(super) struct Reserved {
    base: *mut c_void,
    bytes: usize,
}

// SAFETY: an address and a length; what may be done with them is said at the functions.
unsafe impl Send for Reserved {}

impl Reserved {
    /// Gives back what was written there, and makes every further touch a fault.
    ///
    /// # Safety
    /// The addresses are still reserved.
    pub(super) unsafe fn forbid(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            libc::madvise(self.base, self.bytes, libc::MADV_DONTNEED);
            libc::mprotect(self.base, self.bytes, libc::PROT_NONE);
        }
    }
}

/// Types of buffers by the number of their device: llama.cpp takes two of the same name for one
/// (`ggml_backend_buft_comparator` in `llama-model-loader.h`).
const STREAMED_NAMES: [&CStr; DEVICES_MAX] = [
    c"STREAMED0",
    c"STREAMED1",
    c"STREAMED2",
    c"STREAMED3",
    c"STREAMED4",
    c"STREAMED5",
    c"STREAMED6",
    c"STREAMED7",
];
const EMULATED_NAMES: [&CStr; DEVICES_MAX] = [
    c"EMULATED0",
    c"EMULATED1",
    c"EMULATED2",
    c"EMULATED3",
    c"EMULATED4",
    c"EMULATED5",
    c"EMULATED6",
    c"EMULATED7",
];

unsafe extern "C" fn streamed_name(buft: Buft) -> *const c_char {
    // SAFETY: ours.
    STREAMED_NAMES[unsafe { of_buft(buft) }.index].as_ptr()
}

unsafe extern "C" fn streamed_alignment(_: Buft) -> usize {
    4096
}

unsafe extern "C" fn streamed_is_host(buft: Buft) -> bool {
    // SAFETY: ours.
    unsafe { of_buft(buft) }.shared.is_loading()
}

unsafe extern "C" fn streamed_alloc(buft: Buft, bytes: usize) -> Buffer {
    let bytes = bytes.max(4096);
    // SAFETY: reserves addresses. They can be written until loading is over, so that a loader that
    // reads streamed tensors after all is slow, not dead.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let base = libc::mmap(null_mut(), bytes, access, flags, -1, 0);
        if base == libc::MAP_FAILED {
            return null_mut();
        }
        let reserved = Reserved { base, bytes };
        of_buft(buft).state().reserved.push(reserved);
        let context = Box::into_raw(Box::new(reserved));
        abi::ggml_backend_buffer_init(buft, STREAMED_BUFFER, context.cast(), bytes)
    }
}

unsafe fn addresses<'a>(buffer: Buffer) -> &'a Reserved {
    // SAFETY: made in `streamed_alloc`.
    unsafe { &*(*buffer.cast::<abi::BufferObject>()).context.cast::<Reserved>() }
}

unsafe extern "C" fn streamed_free(buffer: Buffer) {
    // SAFETY: made in `streamed_alloc`, freed once.
    unsafe {
        let context = (*buffer.cast::<abi::BufferObject>()).context.cast::<Reserved>();
        let addresses = Box::from_raw(context);
        libc::munmap(addresses.base, addresses.bytes);
    }
}

unsafe extern "C" fn streamed_base(buffer: Buffer) -> *mut c_void {
    // SAFETY: as above.
    unsafe { addresses(buffer) }.base
}

unsafe extern "C" fn streamed_init_tensor(buffer: Buffer, tensor: *mut Tensor) -> sys::ggml_status {
    // SAFETY: ggml passes a live tensor that was placed in this buffer.
    unsafe {
        if !(*tensor).view_src.is_null() {
            return sys::GGML_STATUS_SUCCESS;
        }
        let device = of_buft((*buffer.cast::<abi::BufferObject>()).buft);
        let name = graph::name(tensor);
        let mut state = device.state();
        match state.expected.get(&name).cloned() {
            Some(StreamedTensor { kind, is_repacked, .. }) => {
                let weight = Weight { kind, is_repacked, name };
                state.weights.insert(tensor as usize, weight);
                sys::GGML_STATUS_SUCCESS
            }
            None => sys::GGML_STATUS_FAILED,
        }
    }
}

unsafe extern "C" fn streamed_set_tensor(
    _: Buffer,
    _: *mut Tensor,
    _: *const c_void,
    _: usize,
    _: usize,
) {
    // Nothing: the bytes are read when they are needed.
}

unsafe extern "C" fn streamed_get_tensor(
    buffer: Buffer,
    tensor: *const Tensor,
    data: *mut c_void,
    _: usize,
    size: usize,
) {
    // SAFETY: ggml passes a live tensor and room for `size` bytes.
    unsafe {
        let device = of_buft((*buffer.cast::<abi::BufferObject>()).buft);
        let name = graph::name(tensor);
        let reason = format!("internal error: the streamed tensor {name} was read directly");
        device.set_error(DecodeError::Residency(reason));
        std::ptr::write_bytes(data.cast::<u8>(), 0xff, size);
    }
}

unsafe extern "C" fn streamed_clear(_: Buffer, _: u8) {}

// ---- the wrapped device's default buffers, with a ledger ----

pub(super) const RESIDENT: BufferTypeI = BufferTypeI {
    get_name: Some(resident_name),
    alloc_buffer: Some(resident_alloc),
    alloc_buffer_n: None,
    get_alignment: Some(resident_alignment),
    get_max_size: Some(resident_max_size),
    get_alloc_size: Some(resident_alloc_size),
    get_alloc_size_n: None,
    is_host: Some(resident_is_host),
};

unsafe fn wrapped_type(buft: Buft) -> Buft {
    // SAFETY: ours.
    ledger::default_type(unsafe { of_buft(buft) }.inner)
}

unsafe extern "C" fn resident_name(buft: Buft) -> *const c_char {
    // SAFETY: ours, or forwarded.
    unsafe {
        let device = of_buft(buft);
        if device.is_emulated() {
            return EMULATED_NAMES[device.index].as_ptr();
        }
        sys::ggml_backend_buft_name(wrapped_type(buft))
    }
}

unsafe extern "C" fn resident_alloc(buft: Buft, bytes: usize) -> Buffer {
    // SAFETY: forwarded; the new buffer is noted.
    unsafe {
        let buffer = sys::ggml_backend_buft_alloc_buffer(wrapped_type(buft), bytes);
        if !buffer.is_null() {
            let device = of_buft(buft);
            let loading = device.shared.is_loading();
            ledger::note(std::ptr::from_ref(device) as usize, buffer, loading);
            if device.is_emulated() {
                // As a GPU's: nobody else reads it, and work on it is this device's.
                (*buffer.cast::<abi::BufferObject>()).buft = buft;
            }
        }
        buffer
    }
}

unsafe extern "C" fn resident_alignment(buft: Buft) -> usize {
    // SAFETY: forwarded.
    unsafe { sys::ggml_backend_buft_get_alignment(wrapped_type(buft)) }
}

unsafe extern "C" fn resident_max_size(buft: Buft) -> usize {
    // SAFETY: forwarded.
    unsafe { sys::ggml_backend_buft_get_max_size(wrapped_type(buft)) }
}

unsafe extern "C" fn resident_alloc_size(buft: Buft, tensor: *const Tensor) -> usize {
    // SAFETY: forwarded.
    unsafe { sys::ggml_backend_buft_get_alloc_size(wrapped_type(buft), tensor) }
}

unsafe extern "C" fn resident_is_host(buft: Buft) -> bool {
    // SAFETY: forwarded.
    unsafe { !of_buft(buft).is_emulated() && sys::ggml_backend_buft_is_host(wrapped_type(buft)) }
}
