//! ggml's thread pool.
//!
//! Without one, ggml starts its threads anew for every graph it computes, and a streamed model
//! computes a graph per layer.

use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use llama_cpp_sys_2 as sys;

use crate::cpu::cpu;

/// A pool of compute threads; the thread that computes is one of them.
#[derive(Debug)]
pub struct Threadpool {
    pool: NonNull<sys::ggml_threadpool>,
    n_threads: i32,
    busy: Mutex<()>,
}

// SAFETY: `busy` lets one computation use the pool at a time; ggml locks what its threads share.
unsafe impl Send for Threadpool {}
// SAFETY: as above; a shared reference only hands the pointer on.
unsafe impl Sync for Threadpool {}

impl Threadpool {
    /// A pool of `n_threads` threads (at least one).
    ///
    /// `poll` is how eagerly idle threads spin between graphs, 0 (sleep at once) to 100.
    pub fn new(n_threads: u32, poll: u32) -> Option<Threadpool> {
        let cpu = cpu()?;
        let n_threads = i32::try_from(n_threads.max(1)).ok()?;
        // SAFETY: the parameters are filled by ggml and live for the call.
        let pool = unsafe {
            let mut params = sys::ggml_threadpool_params_default(n_threads);
            params.poll = poll.min(100);
            (cpu.threadpool_new)(&raw mut params)
        };
        Some(Threadpool { pool: NonNull::new(pool)?, n_threads, busy: Mutex::new(()) })
    }

    /// How many threads compute, the calling one included.
    pub fn n_threads(&self) -> i32 {
        self.n_threads
    }

    /// Held while a context computes.
    pub(crate) fn claim(&self) -> MutexGuard<'_, ()> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::ggml_threadpool {
        self.pool.as_ptr()
    }
}

impl Drop for Threadpool {
    fn drop(&mut self) {
        if let Some(cpu) = cpu() {
            // SAFETY: contexts hold an `Arc` of the pool, so nothing computes with it any more.
            unsafe { (cpu.threadpool_free)(self.pool.as_ptr()) };
        }
    }
}
