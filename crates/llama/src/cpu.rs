//! Functions of ggml's CPU backend, by name.
//!
//! In a portable build the CPU backend is a library that is chosen at run time, so nothing of it
//! can be linked. Its registry hands out the functions in every build.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

use crate::abi::{self, Backend, Dev};

type SetThreads = unsafe extern "C" fn(Backend, c_int);
type SetAbort = unsafe extern "C" fn(Backend, sys::ggml_abort_callback, *mut c_void);
type PoolNew = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
type PoolFree = unsafe extern "C" fn(*mut sys::ggml_threadpool);
type SetPool = unsafe extern "C" fn(Backend, *mut sys::ggml_threadpool);

/// The functions, and the device that they belong to.
pub(crate) struct Cpu {
    pub(crate) device: Dev,
    pub(crate) set_n_threads: SetThreads,
    pub(crate) set_abort_callback: SetAbort,
    pub(crate) threadpool_new: PoolNew,
    pub(crate) threadpool_free: PoolFree,
    pub(crate) set_threadpool: SetPool,
}

// SAFETY: addresses of functions and of a static object.
unsafe impl Send for Cpu {}
// SAFETY: as above.
unsafe impl Sync for Cpu {}

/// The CPU backend; `None` when there is none, or it is not the pinned one.
pub(crate) fn cpu() -> Option<&'static Cpu> {
    static CPU: OnceLock<Option<Cpu>> = OnceLock::new();
    crate::init();
    // SAFETY: the names and types are those of `ggml-cpu.h` and `ggml-backend.h`; the functions
    // stay for the life of the process.
    CPU.get_or_init(|| unsafe { find() }).as_ref()
}

unsafe fn find() -> Option<Cpu> {
    // SAFETY: devices and registries are static objects; each address is turned into the type of
    // the function of that name.
    unsafe {
        let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
        if device.is_null() {
            return None;
        }
        let address = |name: &CStr| abi::function(device, name);
        Some(Cpu {
            device,
            set_n_threads: std::mem::transmute::<*mut c_void, SetThreads>(address(
                c"ggml_backend_set_n_threads",
            )?),
            set_abort_callback: std::mem::transmute::<*mut c_void, SetAbort>(address(
                c"ggml_backend_set_abort_callback",
            )?),
            threadpool_new: std::mem::transmute::<*mut c_void, PoolNew>(address(
                c"ggml_threadpool_new",
            )?),
            threadpool_free: std::mem::transmute::<*mut c_void, PoolFree>(address(
                c"ggml_threadpool_free",
            )?),
            set_threadpool: std::mem::transmute::<*mut c_void, SetPool>(address(
                c"ggml_backend_cpu_set_threadpool",
            )?),
        })
    }
}
