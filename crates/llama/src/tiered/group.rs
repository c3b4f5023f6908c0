//! The devices that a model is spread over, and what they have in common.
//!
//! llama.cpp gives each device a run of layers and computes them one after the other. So one
//! [`Residency`] serves all of them: it knows layers, and each layer's memory is on its own device.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llama_cpp_sys_2 as sys;

use super::device::{TieredDevice, Weight};
use super::ledger::Allocated;
use super::memory::StreamMemory;
use super::{Residency, StreamedTensor, compute};
use crate::abi::{self, Backend, Tensor};
use crate::context::DecodeError;
use crate::gpu::{DEVICES_MAX, Gpu};
use crate::threads::Threadpool;

/// What the devices of one model have in common.
#[derive(Default)]
pub(super) struct Shared {
    /// Unless loading is over, streamed buffers claim to be host memory: llama.cpp would otherwise
    /// build a staging copy of each tensor.
    is_loaded: AtomicBool,
    stream: Mutex<Option<Stream>>,
    error: Mutex<Option<DecodeError>>,
    abort: Mutex<Option<Arc<AtomicBool>>>,
    copiers: Mutex<Vec<Copier>>,
}

/// A stream of copies.
struct Copier(Backend);

// SAFETY: ggml's backends may be waited for by any thread, one at a time.
unsafe impl Send for Copier {}

/// Where streamed bytes go and who brings them.
pub(super) struct Stream {
    pub(super) memory: Arc<StreamMemory>,
    pub(super) residency: Box<dyn Residency>,
    pub(super) scratch: compute::Scratch,
}

impl Shared {
    pub(super) fn is_loading(&self) -> bool {
        !self.is_loaded.load(Ordering::Relaxed)
    }

    /// A device has streams of copies from now on.
    pub(super) fn add_copiers(&self, copiers: [Backend; 2]) {
        let mut all = self.copiers.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(copiers.map(Copier));
    }

    /// The streams are about to be freed.
    pub(super) fn remove_copiers(&self, copiers: [Backend; 2]) {
        let mut all = self.copiers.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| !copiers.contains(&other.0));
    }

    /// Waits for the copies of all devices: they share the slots in host memory.
    pub(super) fn wait_for_copies(&self) {
        for copier in self.copiers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // SAFETY: a live backend, or it would have been removed.
            unsafe { sys::ggml_backend_synchronize(copier.0) };
        }
    }

    pub(super) fn stream(&self) -> MutexGuard<'_, Option<Stream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_error(&self, error: DecodeError) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Whether the computation has been asked to stop.
    pub(super) fn aborted(&self) -> bool {
        let flag = self.abort.lock().unwrap_or_else(PoisonError::into_inner);
        flag.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

/// The devices of one model: what llama.cpp computes with, and where streamed weights pass through.
pub struct Tiered {
    devices: Vec<Arc<TieredDevice>>,
    shared: Arc<Shared>,
}

impl Tiered {
    /// Wraps GPUs, or ggml's CPU device where there are none.
    ///
    /// # Errors
    /// When the linked library is not the one that the mirrors in `abi` were written for.
    pub(super) fn new(
        tensors: &[StreamedTensor],
        gpus: &[Gpu],
        cpu_assists: bool,
    ) -> Result<Arc<Tiered>, String> {
        crate::init();
        abi::verify()?;
        if gpus.len() > DEVICES_MAX {
            return Err(format!("a model can be spread over {DEVICES_MAX} GPUs at most"));
        }
        let shared = Arc::new(Shared::default());
        let device = |(index, gpu): (usize, Option<&Gpu>)| {
            TieredDevice::new(index, &shared, tensors, gpu, cpu_assists)
        };
        let devices: Vec<Arc<TieredDevice>> = if gpus.is_empty() {
            vec![device((0, None))?]
        } else {
            gpus.iter().map(Some).enumerate().map(device).collect::<Result<_, _>>()?
        };
        Ok(Arc::new(Tiered { devices, shared }))
    }

    /// There is one at least.
    pub(super) fn devices(&self) -> &[Arc<TieredDevice>] {
        &self.devices
    }

    /// The streamed tensors that llama.cpp has created, each with the number of its device.
    pub(super) fn weights(&self) -> Vec<(usize, *const Tensor, Weight)> {
        let of = |device: &Arc<TieredDevice>| {
            let state = device.state();
            let weights = state.weights.iter();
            weights
                .map(|(address, weight)| (device.index, *address as *const Tensor, weight.clone()))
                .collect::<Vec<_>>()
        };
        self.devices.iter().flat_map(of).collect()
    }

    /// From now on nothing may touch the addresses of streamed tensors.
    pub(super) fn finish_loading(&self) {
        self.shared.is_loaded.store(true, Ordering::Relaxed);
        for device in &self.devices {
            for span in &device.state().reserved {
                // SAFETY: reserved by `buffers::streamed_alloc`, whose buffers the model holds.
                unsafe { span.forbid() };
            }
        }
    }

    pub(crate) fn take_error(&self) -> Option<DecodeError> {
        self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Threads for the context that is about to be made; false when there is one already.
    pub(crate) fn attach_threads(&self, threads: &Arc<Threadpool>) -> bool {
        let is_free = |device: &Arc<TieredDevice>| device.state().threads.is_none();
        if !self.devices.iter().all(is_free) {
            return false;
        }
        for device in &self.devices {
            device.state().threads = Some(Arc::clone(threads));
        }
        true
    }

    /// The context is no more.
    pub(crate) fn detach_threads(&self) {
        for device in &self.devices {
            device.state().threads = None;
        }
    }

    pub(crate) fn set_abort_flag(&self, flag: &Arc<AtomicBool>) {
        let abort = &self.shared.abort;
        *abort.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(flag));
    }

    /// The streamed tensors that llama.cpp has not created: it knows no use for them.
    pub(super) fn not_created(&self, streamed: &[StreamedTensor]) -> Vec<String> {
        let weights = self.weights();
        let created: HashSet<&str> = weights.iter().map(|(_, _, w)| w.name.as_str()).collect();
        let missing = streamed.iter().filter(|t| !created.contains(t.name.as_str()));
        missing.map(|t| t.name.clone()).collect()
    }

    /// Streamed tensors that llama.cpp uses in operations that can't stream. Known once a context
    /// has been made; a model with any must be loaded anew with them resident.
    pub fn misused(&self) -> Vec<String> {
        let of = |device: &Arc<TieredDevice>| device.state().misused.clone();
        self.devices.iter().flat_map(of).collect()
    }

    /// What llama.cpp has allocated from each of the wrapped devices, now.
    pub fn allocated_each(&self) -> Vec<Allocated> {
        self.devices.iter().map(|device| device.allocated()).collect()
    }

    /// What llama.cpp has allocated from the wrapped devices, now.
    pub fn allocated(&self) -> Allocated {
        let add = |sum: Allocated, one: Allocated| Allocated {
            weights_bytes: sum.weights_bytes + one.weights_bytes,
            contexts_bytes: sum.contexts_bytes + one.contexts_bytes,
        };
        self.allocated_each().into_iter().fold(Allocated::default(), add)
    }

    /// Gives the devices the memory for streamed weights and the one who fills it. Until then,
    /// computing fails.
    pub fn attach(&self, memory: Arc<StreamMemory>, residency: Box<dyn Residency>) {
        let scratch = compute::Scratch::default();
        *self.shared.stream() = Some(Stream { memory, residency, scratch });
    }

    /// Takes memory and residency away again.
    pub fn detach(&self) -> Option<Box<dyn Residency>> {
        self.shared.stream().take().map(|stream| stream.residency)
    }

    /// Runs `f` on the residency, between computations.
    pub fn with_residency<R>(&self, f: impl FnOnce(&mut dyn Residency) -> R) -> Option<R> {
        self.shared.stream().as_mut().map(|stream| f(stream.residency.as_mut()))
    }
}
