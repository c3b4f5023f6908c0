//! The only door to llama.cpp: a safe face of its C interface, and the tiered ggml backend.
//!
//! llama.cpp does all arithmetic, tokenizing and sampling. What this crate adds is how weights
//! reach it: [`tiered`] is a ggml device that wraps the real one and passes every operation
//! through, except that it asks a [`tiered::Residency`] for the bytes of streamed weights first,
//! and [`virtual_gguf`] serves llama.cpp a GGUF in which those weights can be skipped at load.
//! [`plain`] is llama.cpp's own loader with nothing of ours in the way: the baseline of every
//! comparison, and full-resident mode.
//!
//! No policy lives here: which bytes are kept, and when they are read, is decided elsewhere.

mod abi;
pub mod calibrate;
mod context;
mod cookie;
mod cpu;
mod embed;
mod gpu;
mod log;
mod model;
pub mod plain;
pub mod process;
pub mod quants;
mod repack;
mod sampler;
mod state;
mod threads;
pub mod tiered;
pub mod virtual_gguf;
mod vocab;

use std::ffi::CStr;
use std::sync::OnceLock;

pub use context::{BatchToken, Context, ContextError, ContextParams, DecodeError, FlashAttention};
pub use embed::EmbedError;
pub use gpu::{DEVICES_MAX, Gpu, GpuError, Split};
pub use log::take_error as take_log_error;
pub use model::{Layout, LoadError, Model, ModelInfo};
pub use repack::{RepackError, Repacker};
pub use sampler::{Sampler, SamplerParams};
pub use state::{ImportBytes, SCRATCH_SEQUENCES, StateError, StateShape};
pub use threads::Threadpool;
pub use vocab::{Token, Vocab};

use llama_cpp_sys_2 as sys;

/// Initialises ggml and routes its log through `tracing`. Cheap after the first call.
pub fn init() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        log::install();
        // SAFETY: called once, before anything else of llama.cpp.
        unsafe { sys::llama_backend_init() };
        #[cfg(feature = "portable")]
        load_backends();
    });
}

/// A portable build brings its backends as libraries beside the program (or where `HYPURA_BACKENDS`
/// says), one per kind of CPU; ggml takes the best one that this machine can run.
#[cfg(feature = "portable")]
fn load_backends() {
    let beside = || std::env::current_exe().ok()?.parent().map(|dir| dir.join("backends"));
    let built = || sys::BACKENDS_DIR.map(std::path::PathBuf::from);
    let folder = std::env::var_os("HYPURA_BACKENDS")
        .map(std::path::PathBuf::from)
        .or_else(|| beside().filter(|dir| dir.is_dir()))
        .or_else(built);
    let folder = folder.and_then(|dir| {
        use std::os::unix::ffi::OsStrExt;
        std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()
    });
    if let Some(folder) = folder {
        // SAFETY: a terminated string; called once.
        unsafe { sys::ggml_backend_load_all_from_path(folder.as_ptr()) };
    }
}

/// The version of llama.cpp that is linked, as it prints it.
pub fn version() -> String {
    // SAFETY: returns a static string.
    unsafe { CStr::from_ptr(sys::llama_version()) }.to_string_lossy().into_owned()
}

/// Which CPU features llama.cpp's kernels were compiled for, as it prints them.
pub fn system_info() -> String {
    init();
    // SAFETY: returns a string that stays valid until the next call.
    unsafe { CStr::from_ptr(sys::llama_print_system_info()) }.to_string_lossy().into_owned()
}

/// A compute device that ggml found.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// Short name, such as `CPU` or `CUDA0`.
    pub name: String,
    /// Name of the product.
    pub description: String,
    /// Whether it is the CPU.
    pub is_cpu: bool,
    /// Its memory in bytes, 0 when it does not say.
    pub memory_total_bytes: u64,
    /// What of it is free, in bytes.
    pub memory_free_bytes: u64,
}

/// All devices that ggml found, the CPU included.
pub fn devices() -> Vec<DeviceInfo> {
    init();
    // SAFETY: device pointers are static; the strings they return are too.
    unsafe {
        (0..sys::ggml_backend_dev_count())
            .map(|i| {
                let dev = sys::ggml_backend_dev_get(i);
                let (mut free, mut total) = (0usize, 0usize);
                sys::ggml_backend_dev_memory(dev, &raw mut free, &raw mut total);
                let text = |p| CStr::from_ptr(p).to_string_lossy().into_owned();
                DeviceInfo {
                    name: text(sys::ggml_backend_dev_name(dev)),
                    description: text(sys::ggml_backend_dev_description(dev)),
                    is_cpu: sys::ggml_backend_dev_type(dev) == sys::GGML_BACKEND_DEVICE_TYPE_CPU,
                    memory_total_bytes: total as u64,
                    memory_free_bytes: free as u64,
                }
            })
            .collect()
    }
}
