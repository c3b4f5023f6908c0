//! llama.cpp's own loader: no device, pool or virtual file of ours.
//!
//! This is full-resident mode, and the baseline that streaming is compared with.

use std::path::Path;

use llama_cpp_sys_2 as sys;

use crate::abi::Dev;
use crate::gpu::{Gpu, Split};
use crate::model::{self, Layout, LoadError, Model, Progress, ProgressSlot};

/// How the weights get into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Read into buffers, through the page cache.
    Read,
    /// Read into buffers past the page cache, where the file system allows it.
    Direct,
    /// Mapped: pages come and go as the system likes.
    Mmap,
}

/// llama.cpp's own pattern for them (`LLM_FFN_EXPS_REGEX` in its `common/arg.cpp`).
const EXPERTS: &std::ffi::CStr = c"\\.ffn_(up|down|gate|gate_up)_(ch|)exps";

/// What computes, and where weights lie.
#[derive(Debug, Clone, Copy)]
pub enum On<'a> {
    /// The CPU.
    Cpu,
    /// GPUs, with all weights in their memory but the input embedding, and who has which layers.
    Gpu(&'a [Gpu], &'a Split),
    /// GPUs, and the CPU for all experts (llama.cpp's `--cpu-moe`): how a model that GPUs can't hold
    /// is run without us.
    GpuWithExpertsOnCpu(&'a [Gpu]),
    /// GPUs for so many of the last layers, of which the output matrix is one, and the CPU for the
    /// others (llama.cpp's `--n-gpu-layers`).
    GpuForLayers(&'a [Gpu], u32),
}

/// Loads a model (the first file of a split set) onto a GPU, or the CPU.
///
/// # Errors
/// When llama.cpp refuses it, with its reason, or when `progress` asks to stop.
pub fn load(
    path: &Path,
    source: Source,
    layout: Layout,
    on: On<'_>,
    progress: Progress<'_>,
) -> Result<Model, LoadError> {
    crate::init();
    crate::take_log_error();
    let path = model::c_path(path)?;
    let mut slot = ProgressSlot { callback: progress, cancelled: false };
    let mut devices: Vec<Dev> = match on {
        On::Cpu => Vec::new(),
        On::Gpu(gpus, _) | On::GpuWithExpertsOnCpu(gpus) | On::GpuForLayers(gpus, _) => {
            gpus.iter().map(Gpu::dev).collect()
        }
    };
    let n_gpu_layers = match on {
        On::Cpu => 0,
        On::GpuForLayers(_, n) => i32::try_from(n).unwrap_or(i32::MAX / 2),
        On::Gpu(..) | On::GpuWithExpertsOnCpu(_) => i32::MAX / 2,
    };
    devices.push(std::ptr::null_mut());
    let shares =
        if let On::Gpu(_, split) = on { split.shares() } else { Split::default().shares() };
    let on_cpu = [
        sys::llama_model_tensor_buft_override {
            pattern: EXPERTS.as_ptr(),
            // SAFETY: a static object.
            buft: unsafe { sys::ggml_backend_cpu_buffer_type() },
        },
        sys::llama_model_tensor_buft_override {
            pattern: std::ptr::null(),
            buft: std::ptr::null_mut(),
        },
    ];
    // SAFETY: all that the parameters point to outlives the call.
    let model = unsafe {
        let mut params = sys::llama_model_default_params();
        params.devices = devices.as_mut_ptr();
        params.n_gpu_layers = n_gpu_layers;
        params.tensor_split = shares.as_ptr();
        if matches!(on, On::GpuWithExpertsOnCpu(_)) {
            params.tensor_buft_overrides = on_cpu.as_ptr();
        }
        params.load_mode = match source {
            Source::Read => sys::LLAMA_LOAD_MODE_NONE,
            Source::Direct => sys::LLAMA_LOAD_MODE_DIRECT_IO,
            Source::Mmap => sys::LLAMA_LOAD_MODE_MMAP,
        };
        params.lazy_mode = sys::LLAMA_LAZY_MODE_OFF;
        params.use_extra_bufts = layout == Layout::Fast;
        params.check_tensors = false;
        (params.progress_callback, params.progress_callback_user_data) =
            model::progress_callback(&mut slot);
        let ptr = sys::llama_model_load_from_file(path.as_ptr(), params);
        Model::from_raw(ptr, None)
    };
    if slot.cancelled { Err(LoadError::Cancelled) } else { model }
}
