//! The device, its buffer types and its backend, as ggml sees them.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use llama_cpp_sys_2 as sys;

use super::group::{Shared, Stream};
use super::ledger::{self, Allocated};
use super::staged::Stage;
use super::{StreamKind, StreamedTensor, buffers, compute, graph, repacked, staged};
use crate::abi::{
    self, Backend, BackendI, BackendObject, BufferType, Buft, Dev, DeviceI, DeviceObject, Event,
    Graph, Reg, RegI, RegObject, Tensor,
};
use crate::context::DecodeError;
use crate::cpu::cpu;
use crate::gpu::{DEVICES_MAX, Gpu};
use crate::threads::Threadpool;

/// A ggml device that wraps another and streams weights to it.
///
/// Its address is known to C: it lives in an `Arc` that models and backends hold.
pub(super) struct TieredDevice {
    device: DeviceObject,
    reg: RegObject,
    /// Buffers of this type hold streamed tensors: addresses without memory.
    streamed: BufferType,
    /// The wrapped device's default type, with a ledger.
    resident: BufferType,
    /// For resident tensors that come rearranged.
    repacked: BufferType,
    pub(super) inner: Dev,
    /// Whether the wrapped device is the CPU.
    pub(super) is_cpu: bool,
    /// Whether the wrapped device has memory of its own, to which bytes are copied from ours.
    pub(super) is_staged: bool,
    /// Whether the CPU computes beside it.
    cpu_assists: bool,
    /// Its place among the devices that a model is spread over.
    pub(super) index: usize,
    this: Weak<TieredDevice>,
    /// What it has in common with them.
    pub(super) shared: Arc<Shared>,
    state: Mutex<State>,
}

/// What is known of the streamed weights.
#[derive(Default)]
pub(super) struct State {
    pub(super) expected: HashMap<String, StreamedTensor>,
    pub(super) weights: HashMap<usize, Weight>,
    pub(super) reserved: Vec<buffers::Reserved>,
    pub(super) misused: BTreeSet<String>,
    pub(super) threads: Option<Arc<Threadpool>>,
}

/// A streamed tensor that llama.cpp has created.
#[derive(Clone)]
pub(super) struct Weight {
    pub(super) kind: StreamKind,
    pub(super) is_repacked: bool,
    pub(super) name: String,
}

/// The context of a backend object: one per llama.cpp context.
pub(super) struct BackendContext {
    pub(super) device: Arc<TieredDevice>,
    pub(super) inner: Backend,
    /// How bytes get to a device with memory of its own.
    pub(super) stage: Option<Mutex<Stage>>,
    /// Threads of the wrapped backend, freed after it.
    _threads: Option<Arc<Threadpool>>,
}

// SAFETY: the C structures inside are written once, before anybody shares the device; all that
// changes later is behind mutexes and atomics.
unsafe impl Send for TieredDevice {}
// SAFETY: as above.
unsafe impl Sync for TieredDevice {}

impl TieredDevice {
    /// Wraps a GPU, or ggml's CPU device.
    ///
    /// # Errors
    /// When the linked library is not the one that the mirrors in `abi` were written for.
    pub(super) fn new(
        index: usize,
        shared: &Arc<Shared>,
        tensors: &[StreamedTensor],
        gpu: Option<&Gpu>,
        cpu_assists: bool,
    ) -> Result<Arc<TieredDevice>, String> {
        let cpu = cpu().ok_or("ggml has no CPU backend")?.device;
        let inner = gpu.map_or(cpu, Gpu::dev);
        let expected = tensors.iter().map(|t| (t.name.clone(), t.clone())).collect();
        let device = Arc::new_cyclic(|weak: &Weak<TieredDevice>| {
            let this = weak.as_ptr().cast_mut();
            // SAFETY: only addresses of fields are taken; the object is not there yet.
            let (dev, reg) = unsafe { (&raw mut (*this).device, &raw mut (*this).reg) };
            let context = this.cast::<c_void>();
            TieredDevice {
                device: DeviceObject { iface: DEVICE, reg: reg.cast(), context },
                reg: RegObject { api_version: abi::API_VERSION, iface: REG, context },
                streamed: BufferType { iface: buffers::STREAMED, device: dev.cast(), context },
                resident: BufferType { iface: buffers::RESIDENT, device: dev.cast(), context },
                repacked: BufferType { iface: repacked::REPACKED, device: dev.cast(), context },
                inner,
                is_cpu: inner == cpu,
                is_staged: gpu.is_some_and(|gpu| !gpu.is_unified()),
                cpu_assists,
                index,
                this: Weak::clone(weak),
                shared: Arc::clone(shared),
                state: Mutex::new(State { expected, ..State::default() }),
            }
        });
        Ok(device)
    }

    pub(super) fn dev(&self) -> Dev {
        (&raw const self.device).cast_mut().cast()
    }

    pub(super) fn streamed_type(&self) -> Buft {
        (&raw const self.streamed).cast_mut().cast()
    }

    pub(super) fn repacked_type(&self) -> Buft {
        (&raw const self.repacked).cast_mut().cast()
    }

    /// Whether it is the CPU, treated as a GPU.
    pub(super) fn is_emulated(&self) -> bool {
        self.is_cpu && self.is_staged
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stream(&self) -> MutexGuard<'_, Option<Stream>> {
        self.shared.stream()
    }

    pub(super) fn set_error(&self, error: DecodeError) {
        self.shared.set_error(error);
    }

    /// Whether the computation has been asked to stop.
    pub(super) fn aborted(&self) -> bool {
        self.shared.aborted()
    }

    /// What llama.cpp has allocated from the wrapped device, now.
    pub(super) fn allocated(&self) -> Allocated {
        ledger::allocated(std::ptr::from_ref(self) as usize)
    }

    /// A streamed tensor's kind, when `op` uses it as something that can be streamed; notes it as
    /// misused when `op` uses it in another way.
    fn check_use(&self, op: *const Tensor) {
        // SAFETY: ggml asks about live tensors.
        unsafe {
            let sources = (*op).src;
            for (i, src) in sources.iter().enumerate() {
                if src.is_null() {
                    continue;
                }
                let owner = graph::base(*src);
                let mut state = self.state();
                let Some(weight) = state.weights.get(&(owner as usize)).cloned() else { continue };
                let fits = i == 0
                    && owner == src.cast_const()
                    && match weight.kind {
                        StreamKind::Experts { .. } => (*op).op == sys::GGML_OP_MUL_MAT_ID,
                        StreamKind::Matrix { .. } => (*op).op == sys::GGML_OP_MUL_MAT,
                        StreamKind::Rows => (*op).op == sys::GGML_OP_GET_ROWS,
                    };
                if !fits {
                    state.misused.insert(weight.name);
                }
            }
        }
    }
}

/// # Safety
/// `context` is the context of one of our C objects.
unsafe fn this<'a>(context: *mut c_void) -> &'a TieredDevice {
    // SAFETY: it is the address of a device that models and backends keep alive.
    unsafe { &*context.cast::<TieredDevice>() }
}

unsafe fn of_dev<'a>(dev: Dev) -> &'a TieredDevice {
    // SAFETY: ggml calls with the device that the table came with.
    unsafe { this((*dev.cast::<DeviceObject>()).context) }
}

pub(super) unsafe fn of_buft<'a>(buft: Buft) -> &'a TieredDevice {
    // SAFETY: as above.
    unsafe { this((*buft.cast::<BufferType>()).context) }
}

pub(super) unsafe fn of_backend<'a>(backend: Backend) -> &'a BackendContext {
    // SAFETY: as above; the context was made in `init_backend`.
    unsafe { &*(*backend.cast::<BackendObject>()).context.cast::<BackendContext>() }
}

// ---- device ----

const DEVICE: DeviceI = DeviceI {
    get_name: Some(device_name),
    get_description: Some(device_description),
    get_memory: Some(device_memory),
    get_type: Some(device_type),
    get_props: Some(device_props),
    init_backend: Some(init_backend),
    get_buffer_type: Some(device_buffer_type),
    get_host_buffer_type: Some(device_host_buffer_type),
    buffer_from_host_ptr: None,
    supports_op: Some(supports_op),
    supports_buft: Some(supports_buft),
    offload_op: None,
    event_new: Some(event_new),
    event_free: Some(event_free),
    event_synchronize: Some(event_synchronize),
};

/// Names of the devices that a model is spread over, for llama.cpp's messages.
const NAMES: [&CStr; DEVICES_MAX] = [
    c"TIERED0", c"TIERED1", c"TIERED2", c"TIERED3", c"TIERED4", c"TIERED5", c"TIERED6", c"TIERED7",
];

unsafe extern "C" fn device_name(dev: Dev) -> *const c_char {
    // SAFETY: ours.
    NAMES[unsafe { of_dev(dev) }.index].as_ptr()
}

unsafe extern "C" fn device_description(_: Dev) -> *const c_char {
    c"streams weights to the device it wraps".as_ptr()
}

unsafe extern "C" fn device_memory(dev: Dev, free: *mut usize, total: *mut usize) {
    // SAFETY: forwarded.
    unsafe { sys::ggml_backend_dev_memory(of_dev(dev).inner, free, total) };
}

unsafe extern "C" fn device_type(_: Dev) -> sys::ggml_backend_dev_type {
    // llama.cpp gives whole layers to GPUs only.
    sys::GGML_BACKEND_DEVICE_TYPE_GPU
}

unsafe extern "C" fn device_props(dev: Dev, props: *mut sys::ggml_backend_dev_props) {
    // SAFETY: forwarded, then changed where we differ.
    unsafe {
        sys::ggml_backend_dev_get_props(of_dev(dev).inner, props);
        (*props).name = device_name(dev);
        (*props).description = device_description(dev);
        (*props).type_ = device_type(dev);
        (*props).caps.buffer_from_host_ptr = false;
        (*props).caps.async_ = false;
        (*props).caps.events = false;
        (*props).caps.host_buffer = false;
    }
}

unsafe extern "C" fn device_buffer_type(dev: Dev) -> Buft {
    // SAFETY: the type lives in the device.
    (unsafe { &raw const of_dev(dev).resident }).cast_mut().cast()
}

unsafe extern "C" fn device_host_buffer_type(dev: Dev) -> Buft {
    // SAFETY: forwarded; null for the CPU.
    unsafe { sys::ggml_backend_dev_host_buffer_type(of_dev(dev).inner) }
}

unsafe extern "C" fn event_new(dev: Dev) -> Event {
    // SAFETY: forwarded; null if the wrapped device has none. Events belong to that device.
    unsafe { sys::ggml_backend_event_new(of_dev(dev).inner) }
}

unsafe extern "C" fn event_free(_: Dev, event: Event) {
    // SAFETY: forwarded.
    unsafe { sys::ggml_backend_event_free(event) };
}

unsafe extern "C" fn event_synchronize(_: Dev, event: Event) {
    // SAFETY: forwarded.
    unsafe { sys::ggml_backend_event_synchronize(event) };
}

unsafe extern "C" fn supports_op(dev: Dev, op: *const Tensor) -> bool {
    // SAFETY: forwarded; ggml asks about live tensors.
    unsafe {
        let device = of_dev(dev);
        device.check_use(op);
        sys::ggml_backend_dev_supports_op(device.inner, op)
    }
}

unsafe extern "C" fn supports_buft(dev: Dev, buft: Buft) -> bool {
    // SAFETY: forwarded.
    unsafe {
        let device = of_dev(dev);
        buft == device.streamed_type()
            || buft == device_buffer_type(dev)
            || sys::ggml_backend_dev_supports_buft(device.inner, buft)
    }
}

// ---- registry: llama.cpp asks it for functions by name ----

const REG: RegI = RegI {
    get_name: Some(reg_name),
    get_device_count: Some(reg_count),
    get_device: Some(reg_device),
    get_proc_address: Some(reg_proc),
};

unsafe extern "C" fn reg_name(_: Reg) -> *const c_char {
    c"TIERED".as_ptr()
}

unsafe extern "C" fn reg_count(_: Reg) -> usize {
    1
}

unsafe extern "C" fn reg_device(reg: Reg, _: usize) -> Dev {
    // SAFETY: the registry lives in the device.
    unsafe { this((*reg.cast::<RegObject>()).context) }.dev()
}

unsafe extern "C" fn reg_proc(reg: Reg, name: *const c_char) -> *mut c_void {
    // SAFETY: the registry lives in the device.
    if !unsafe { this((*reg.cast::<RegObject>()).context) }.is_cpu {
        return null_mut();
    }
    // SAFETY: ggml passes a terminated string.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"ggml_backend_set_n_threads" => set_n_threads as *mut c_void,
        b"ggml_backend_set_abort_callback" => set_abort_callback as *mut c_void,
        _ => null_mut(),
    }
}

unsafe extern "C" fn set_n_threads(backend: Backend, n_threads: c_int) {
    if let Some(cpu) = cpu() {
        // SAFETY: the wrapped device is the CPU.
        unsafe { (cpu.set_n_threads)(of_backend(backend).inner, n_threads) };
    }
}

unsafe extern "C" fn set_abort_callback(
    backend: Backend,
    callback: sys::ggml_abort_callback,
    data: *mut c_void,
) {
    if let Some(cpu) = cpu() {
        // SAFETY: as above; llama.cpp keeps `data` alive.
        unsafe { (cpu.set_abort_callback)(of_backend(backend).inner, callback, data) };
    }
}

// ---- backend ----

const BACKEND: BackendI = BackendI {
    get_name: Some(backend_name),
    free: Some(backend_free),
    set_tensor_async: None,
    get_tensor_async: None,
    set_tensor_2d_async: None,
    get_tensor_2d_async: None,
    cpy_tensor_async: None,
    synchronize: Some(backend_synchronize),
    graph_plan_create: None,
    graph_plan_free: None,
    graph_plan_update: None,
    graph_plan_compute: None,
    graph_compute: Some(graph_compute),
    event_record: None,
    event_wait: None,
    graph_optimize: None,
};

/// For a device that computes behind our back: what is asked of us is put into its stream, in order.
const STAGED_BACKEND: BackendI = BackendI {
    set_tensor_async: Some(set_tensor_async),
    get_tensor_async: Some(get_tensor_async),
    event_record: Some(event_record),
    event_wait: Some(event_wait),
    graph_optimize: Some(graph_optimize),
    ..BACKEND
};

unsafe extern "C" fn set_tensor_async(
    backend: Backend,
    tensor: *mut Tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: forwarded.
    unsafe {
        let inner = of_backend(backend).inner;
        sys::ggml_backend_tensor_set_async(inner, tensor, data, offset, size);
    }
}

unsafe extern "C" fn get_tensor_async(
    backend: Backend,
    tensor: *const Tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: forwarded.
    unsafe {
        let inner = of_backend(backend).inner;
        sys::ggml_backend_tensor_get_async(inner, tensor, data, offset, size);
    }
}

unsafe extern "C" fn event_record(backend: Backend, event: Event) {
    // SAFETY: forwarded.
    unsafe { sys::ggml_backend_event_record(event, of_backend(backend).inner) };
}

unsafe extern "C" fn event_wait(backend: Backend, event: Event) {
    // SAFETY: forwarded.
    unsafe { sys::ggml_backend_event_wait(of_backend(backend).inner, event) };
}

unsafe extern "C" fn graph_optimize(backend: Backend, graph: *mut Graph, params: *mut c_void) {
    // SAFETY: forwarded, if the wrapped backend has it.
    unsafe {
        let inner = of_backend(backend).inner;
        if let Some(optimize) = (*inner.cast::<BackendObject>()).iface.graph_optimize {
            optimize(inner, graph, params);
        }
        if of_backend(backend).device.is_emulated() {
            graph::move_shared_experts(graph);
        }
    }
}

static mut GUID: [u8; 16] = *b"hypura-tiered-01";

unsafe extern "C" fn init_backend(dev: Dev, params: *const c_char) -> Backend {
    // SAFETY: the device is held by an `Arc` somewhere (a model that is being given a context), so
    // its count may be raised.
    unsafe {
        let device = of_dev(dev);
        let inner = sys::ggml_backend_dev_init(device.inner, params);
        if inner.is_null() {
            return null_mut();
        }
        let threads = device.state().threads.clone();
        if let (Some(threads), Some(cpu), true) = (&threads, cpu(), device.is_cpu) {
            (cpu.set_n_threads)(inner, threads.n_threads());
            (cpu.set_threadpool)(inner, threads.as_ptr());
        }
        let stage = if device.is_staged {
            let helpers = threads.as_ref().filter(|_| device.cpu_assists);
            let Some(stage) = Stage::new(device.inner, device.index, helpers) else {
                sys::ggml_backend_free(inner);
                return null_mut();
            };
            Some(stage)
        } else {
            None
        };
        let Some(device) = device.this.upgrade() else { return null_mut() };
        let stage = stage.map(|stage| {
            device.shared.add_copiers(stage.copiers());
            Mutex::new(stage)
        });
        let iface = if stage.is_some() { STAGED_BACKEND } else { BACKEND };
        let context = Box::new(BackendContext { device, inner, stage, _threads: threads });
        Box::into_raw(Box::new(BackendObject {
            guid: &raw mut GUID,
            iface,
            device: dev,
            context: Box::into_raw(context).cast(),
        }))
        .cast()
    }
}

unsafe extern "C" fn backend_name(backend: Backend) -> *const c_char {
    // SAFETY: ours.
    unsafe { device_name(of_backend(backend).device.dev()) }
}

unsafe extern "C" fn backend_free(backend: Backend) {
    // SAFETY: both boxes were made in `init_backend`; ggml frees a backend once.
    unsafe {
        let object = Box::from_raw(backend.cast::<BackendObject>());
        let mut context = Box::from_raw(object.context.cast::<BackendContext>());
        sys::ggml_backend_synchronize(context.inner);
        if let Some(stage) = context.stage.take() {
            let stage = stage.into_inner().unwrap_or_else(PoisonError::into_inner);
            context.device.shared.remove_copiers(stage.copiers());
        }
        sys::ggml_backend_free(context.inner);
    }
}

unsafe extern "C" fn backend_synchronize(backend: Backend) {
    // SAFETY: forwarded.
    unsafe { sys::ggml_backend_synchronize(of_backend(backend).inner) };
}

/// After a bug nobody knows what the slots hold: streaming ends, and says so from now on.
fn broken(context: &BackendContext, reason: &str) -> sys::ggml_status {
    drop(context.device.stream().take());
    context.device.set_error(DecodeError::Residency(format!("internal error: {reason}")));
    sys::GGML_STATUS_FAILED
}

unsafe extern "C" fn graph_compute(backend: Backend, graph: *mut Graph) -> sys::ggml_status {
    // SAFETY: ggml passes one of our backends.
    let context = unsafe { of_backend(backend) };
    // SAFETY: ggml passes a live graph whose tensors are allocated.
    let compute = AssertUnwindSafe(|| unsafe {
        match &context.stage {
            Some(stage) => staged::graph(context, stage, graph),
            None => compute::graph(context, graph),
        }
    });
    match catch_unwind(compute) {
        Ok(Ok(())) => sys::GGML_STATUS_SUCCESS,
        Ok(Err(compute::Stop::Aborted)) => sys::GGML_STATUS_ABORTED,
        Ok(Err(compute::Stop::Status(status))) => status,
        Ok(Err(compute::Stop::Residency(reason))) => {
            context.device.set_error(DecodeError::Residency(reason));
            sys::GGML_STATUS_FAILED
        }
        Ok(Err(compute::Stop::Internal(reason))) => broken(context, &reason),
        Err(_) => broken(context, "the tiered backend panicked"),
    }
}
