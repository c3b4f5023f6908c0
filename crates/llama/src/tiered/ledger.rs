//! What llama.cpp allocates from the wrapped device.
//!
//! The planner estimates compute buffers; this counts the real ones. llama.cpp allocates
//! attention state and compute buffers from the device's default buffer type, and ours is the
//! wrapped device's with one difference: each buffer it hands out is noted here until it is freed.

use std::collections::HashMap;
use std::sync::Mutex;

use llama_cpp_sys_2 as sys;

use crate::abi::{Buffer, BufferObject};

/// Bytes that are allocated now, by when they were allocated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allocated {
    /// While the model was loaded: weights in the layout of the file.
    pub weights_bytes: u64,
    /// After that: attention state and compute buffers of the contexts.
    pub contexts_bytes: u64,
}

impl Allocated {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights_bytes + self.contexts_bytes
    }
}

type FreeFn = Option<unsafe extern "C" fn(Buffer)>;

struct Entry {
    bytes: u64,
    free: FreeFn,
    loading: bool,
}

/// All noted buffers of the process: the C callback that frees one gets nothing but its address.
static LIVE: Mutex<Option<HashMap<(usize, usize), Entry>>> = Mutex::new(None);

fn with<R>(f: impl FnOnce(&mut HashMap<(usize, usize), Entry>) -> R) -> R {
    let mut live = LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    f(live.get_or_insert_default())
}

/// Notes a new buffer for `owner` and arranges for it to be forgotten when it is freed.
///
/// # Safety
/// `buffer` is a live buffer that was just allocated.
pub(super) unsafe fn note(owner: usize, buffer: Buffer, loading: bool) {
    // SAFETY: the caller's promise; `abi::verify` has checked the structure.
    let object = unsafe { &mut *buffer.cast::<BufferObject>() };
    let entry = Entry { bytes: object.size as u64, free: object.iface.free_buffer, loading };
    object.iface.free_buffer = Some(forget_and_free);
    with(|live| live.insert((owner, buffer as usize), entry));
}

/// What `owner` has allocated now.
pub(super) fn allocated(owner: usize) -> Allocated {
    let mut sum = Allocated::default();
    with(|live| {
        for ((of, _), entry) in live.iter() {
            if *of == owner {
                let field =
                    if entry.loading { &mut sum.weights_bytes } else { &mut sum.contexts_bytes };
                *field += entry.bytes;
            }
        }
    });
    sum
}

unsafe extern "C" fn forget_and_free(buffer: Buffer) {
    let entry = with(|live| {
        let key = live.keys().find(|(_, address)| *address == buffer as usize).copied()?;
        live.remove(&key)
    });
    if let Some(free) = entry.and_then(|entry| entry.free) {
        // SAFETY: the function that the buffer came with.
        unsafe { free(buffer) };
    }
}

/// The wrapped device's default buffer type.
pub(super) fn default_type(device: sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: devices are static objects of ggml.
    unsafe { sys::ggml_backend_dev_buffer_type(device) }
}
