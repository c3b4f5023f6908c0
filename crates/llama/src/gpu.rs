//! The GPU that computes.

use std::ffi::{CStr, CString};

use llama_cpp_sys_2 as sys;

use crate::abi::Dev;
use crate::cpu::cpu;

/// A device that computes in place of the CPU.
#[derive(Debug, Clone)]
pub struct Gpu {
    dev: Dev,
    /// ggml's name of it, such as `CUDA0`.
    pub name: String,
    /// Name of the product.
    pub description: String,
    /// Its memory in bytes.
    pub memory_total_bytes: u64,
    /// What of it is free, in bytes.
    pub memory_free_bytes: u64,
}

// SAFETY: the address of a static object of ggml.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// There is no such GPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// None at all.
    #[error(
        "there is no GPU that this program can use; it needs a build or a backend for it (README, \
         \"GPUs\") and a driver"
    )]
    None,
    /// None of this name.
    #[error("there is no device {name}; there are: {}", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
}

impl Gpu {
    /// The first GPU.
    ///
    /// # Errors
    /// When there is none.
    pub fn first() -> Result<Gpu, GpuError> {
        crate::init();
        // Integrated ones share the memory that the CPU uses: no gain, unless it is all there is.
        let kinds = [sys::GGML_BACKEND_DEVICE_TYPE_GPU, sys::GGML_BACKEND_DEVICE_TYPE_IGPU];
        // SAFETY: devices are static objects.
        let found = kinds.into_iter().map(|kind| unsafe { sys::ggml_backend_dev_by_type(kind) });
        found.into_iter().find(|dev| !dev.is_null()).map(Gpu::of).ok_or(GpuError::None)
    }

    /// The device of this name. The CPU is one as well: it is then treated as a GPU, with memory of
    /// its own to which everything is copied; for tests.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Gpu, GpuError> {
        crate::init();
        let unknown = || GpuError::Unknown {
            name: name.to_owned(),
            known: crate::devices().into_iter().map(|device| device.name).collect(),
        };
        let c_name = CString::new(name).map_err(|_| unknown())?;
        // SAFETY: a terminated string; devices are static objects.
        let dev = unsafe { sys::ggml_backend_dev_by_name(c_name.as_ptr()) };
        if dev.is_null() { Err(unknown()) } else { Ok(Gpu::of(dev)) }
    }

    fn of(dev: Dev) -> Gpu {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: a static object, which returns static strings.
        unsafe {
            sys::ggml_backend_dev_memory(dev, &raw mut free, &raw mut total);
            let text = |p| CStr::from_ptr(p).to_string_lossy().into_owned();
            Gpu {
                dev,
                name: text(sys::ggml_backend_dev_name(dev)),
                description: text(sys::ggml_backend_dev_description(dev)),
                memory_total_bytes: total as u64,
                memory_free_bytes: free as u64,
            }
        }
    }

    pub(crate) fn dev(&self) -> Dev {
        self.dev
    }

    /// Whether it is the CPU, treated as a GPU.
    pub fn is_emulated(&self) -> bool {
        cpu().is_some_and(|cpu| cpu.device == self.dev)
    }

    /// Whether it computes with the memory that we read into (Metal), so that nothing is copied.
    pub fn is_unified(&self) -> bool {
        // SAFETY: filled by ggml; a static object. Only devices that share our memory take pointers
        // to it as buffers.
        unsafe {
            let mut props: sys::ggml_backend_dev_props = std::mem::zeroed();
            sys::ggml_backend_dev_get_props(self.dev, &raw mut props);
            props.caps.buffer_from_host_ptr && !self.is_emulated()
        }
    }
}
