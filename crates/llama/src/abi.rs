//! The private half of ggml's backend interface, mirrored by hand.
//!
//! llama.cpp lets a program bring its own device, but the structures for that are declared in
//! `ggml/src/ggml-backend-impl.h` and `ggml-impl.h`, which the binding crate does not export.
//! They are repeated here field by field for the version pinned in the workspace's `Cargo.toml`
//! (`GGML_BACKEND_API_VERSION` 3). [`verify`] compares the mirror with live objects of the linked
//! library before anything is built on it, so that a moved field is an error at start-up and not
//! a wild call.

use std::ffi::{CStr, c_char, c_int, c_void};

use llama_cpp_sys_2 as sys;

/// The value of `GGML_BACKEND_API_VERSION` that these mirrors were written for.
pub(crate) const API_VERSION: c_int = 3;

pub(crate) type Buft = sys::ggml_backend_buffer_type_t;
pub(crate) type Buffer = sys::ggml_backend_buffer_t;
pub(crate) type Dev = sys::ggml_backend_dev_t;
pub(crate) type Backend = sys::ggml_backend_t;
pub(crate) type Reg = sys::ggml_backend_reg_t;
pub(crate) type Tensor = sys::ggml_tensor;
pub(crate) type Event = sys::ggml_backend_event_t;

type Fn1<A, R> = Option<unsafe extern "C" fn(A) -> R>;
type Fn2<A, B, R> = Option<unsafe extern "C" fn(A, B) -> R>;

/// `struct ggml_backend_buffer_type_i`.
#[repr(C)]
pub(crate) struct BufferTypeI {
    pub(crate) get_name: Fn1<Buft, *const c_char>,
    pub(crate) alloc_buffer: Fn2<Buft, usize, Buffer>,
    pub(crate) alloc_buffer_n:
        Option<unsafe extern "C" fn(Buft, *mut *mut Tensor, c_int) -> Buffer>,
    pub(crate) get_alignment: Fn1<Buft, usize>,
    pub(crate) get_max_size: Fn1<Buft, usize>,
    pub(crate) get_alloc_size: Fn2<Buft, *const Tensor, usize>,
    pub(crate) get_alloc_size_n:
        Option<unsafe extern "C" fn(Buft, *mut *mut Tensor, c_int) -> usize>,
    pub(crate) is_host: Fn1<Buft, bool>,
}

/// `struct ggml_backend_buffer_type`.
#[repr(C)]
pub(crate) struct BufferType {
    pub(crate) iface: BufferTypeI,
    pub(crate) device: Dev,
    pub(crate) context: *mut c_void,
}

/// `struct ggml_backend_buffer_i`.
#[repr(C)]
pub(crate) struct BufferI {
    pub(crate) free_buffer: Fn1<Buffer, ()>,
    pub(crate) get_base: Fn1<Buffer, *mut c_void>,
    pub(crate) init_tensor: Fn2<Buffer, *mut Tensor, sys::ggml_status>,
    pub(crate) memset_tensor: Option<unsafe extern "C" fn(Buffer, *mut Tensor, u8, usize, usize)>,
    pub(crate) set_tensor:
        Option<unsafe extern "C" fn(Buffer, *mut Tensor, *const c_void, usize, usize)>,
    pub(crate) get_tensor:
        Option<unsafe extern "C" fn(Buffer, *const Tensor, *mut c_void, usize, usize)>,
    pub(crate) set_tensor_2d: Option<unsafe extern "C" fn()>,
    pub(crate) get_tensor_2d: Option<unsafe extern "C" fn()>,
    pub(crate) cpy_tensor: Option<unsafe extern "C" fn(Buffer, *const Tensor, *mut Tensor) -> bool>,
    pub(crate) clear: Fn2<Buffer, u8, ()>,
    pub(crate) reset: Fn1<Buffer, ()>,
}

/// `struct ggml_backend_buffer`.
#[repr(C)]
pub(crate) struct BufferObject {
    pub(crate) iface: BufferI,
    pub(crate) buft: Buft,
    pub(crate) context: *mut c_void,
    pub(crate) size: usize,
    pub(crate) usage: sys::ggml_backend_buffer_usage,
}

/// `struct ggml_backend_i`.
#[repr(C)]
pub(crate) struct BackendI {
    pub(crate) get_name: Fn1<Backend, *const c_char>,
    pub(crate) free: Fn1<Backend, ()>,
    pub(crate) set_tensor_async:
        Option<unsafe extern "C" fn(Backend, *mut Tensor, *const c_void, usize, usize)>,
    pub(crate) get_tensor_async:
        Option<unsafe extern "C" fn(Backend, *const Tensor, *mut c_void, usize, usize)>,
    pub(crate) set_tensor_2d_async: Option<unsafe extern "C" fn()>,
    pub(crate) get_tensor_2d_async: Option<unsafe extern "C" fn()>,
    pub(crate) cpy_tensor_async:
        Option<unsafe extern "C" fn(Backend, Backend, *const Tensor, *mut Tensor) -> bool>,
    pub(crate) synchronize: Fn1<Backend, ()>,
    pub(crate) graph_plan_create: Option<unsafe extern "C" fn()>,
    pub(crate) graph_plan_free: Option<unsafe extern "C" fn()>,
    pub(crate) graph_plan_update: Option<unsafe extern "C" fn()>,
    pub(crate) graph_plan_compute: Option<unsafe extern "C" fn()>,
    pub(crate) graph_compute: Fn2<Backend, *mut Graph, sys::ggml_status>,
    pub(crate) event_record: Option<unsafe extern "C" fn(Backend, Event)>,
    pub(crate) event_wait: Option<unsafe extern "C" fn(Backend, Event)>,
    pub(crate) graph_optimize: Option<unsafe extern "C" fn(Backend, *mut Graph, *mut c_void)>,
}

/// `struct ggml_backend`.
#[repr(C)]
pub(crate) struct BackendObject {
    pub(crate) guid: *mut [u8; 16],
    pub(crate) iface: BackendI,
    pub(crate) device: Dev,
    pub(crate) context: *mut c_void,
}

/// `struct ggml_backend_device_i`.
#[repr(C)]
pub(crate) struct DeviceI {
    pub(crate) get_name: Fn1<Dev, *const c_char>,
    pub(crate) get_description: Fn1<Dev, *const c_char>,
    pub(crate) get_memory: Option<unsafe extern "C" fn(Dev, *mut usize, *mut usize)>,
    pub(crate) get_type: Fn1<Dev, sys::ggml_backend_dev_type>,
    pub(crate) get_props: Option<unsafe extern "C" fn(Dev, *mut sys::ggml_backend_dev_props)>,
    pub(crate) init_backend: Fn2<Dev, *const c_char, Backend>,
    pub(crate) get_buffer_type: Fn1<Dev, Buft>,
    pub(crate) get_host_buffer_type: Fn1<Dev, Buft>,
    pub(crate) buffer_from_host_ptr:
        Option<unsafe extern "C" fn(Dev, *mut c_void, usize, usize) -> Buffer>,
    pub(crate) supports_op: Fn2<Dev, *const Tensor, bool>,
    pub(crate) supports_buft: Fn2<Dev, Buft, bool>,
    pub(crate) offload_op: Fn2<Dev, *const Tensor, bool>,
    pub(crate) event_new: Fn1<Dev, Event>,
    pub(crate) event_free: Option<unsafe extern "C" fn(Dev, Event)>,
    pub(crate) event_synchronize: Option<unsafe extern "C" fn(Dev, Event)>,
}

/// `struct ggml_backend_device`.
#[repr(C)]
pub(crate) struct DeviceObject {
    pub(crate) iface: DeviceI,
    pub(crate) reg: Reg,
    pub(crate) context: *mut c_void,
}

/// `struct ggml_backend_reg_i`.
#[repr(C)]
pub(crate) struct RegI {
    pub(crate) get_name: Fn1<Reg, *const c_char>,
    pub(crate) get_device_count: Fn1<Reg, usize>,
    pub(crate) get_device: Fn2<Reg, usize, Dev>,
    pub(crate) get_proc_address: Fn2<Reg, *const c_char, *mut c_void>,
}

/// `struct ggml_backend_reg`.
#[repr(C)]
pub(crate) struct RegObject {
    pub(crate) api_version: c_int,
    pub(crate) iface: RegI,
    pub(crate) context: *mut c_void,
}

/// `struct ggml_cgraph` of `ggml-impl.h`, up to what is used here.
#[repr(C)]
pub(crate) struct Graph {
    pub(crate) size: c_int,
    pub(crate) n_nodes: c_int,
    pub(crate) n_leafs: c_int,
    pub(crate) nodes: *mut *mut Tensor,
    pub(crate) grads: *mut *mut Tensor,
    pub(crate) grad_accs: *mut *mut Tensor,
    pub(crate) leafs: *mut *mut Tensor,
    pub(crate) use_counts: *mut i32,
    pub(crate) visited_hash_set: HashSet,
    pub(crate) order: c_int,
    pub(crate) uid: u64,
}

/// `struct ggml_hash_set` of `ggml-impl.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct HashSet {
    pub(crate) size: usize,
    pub(crate) used: *mut u32,
    pub(crate) keys: *mut *mut Tensor,
}

/// A function that a device's backend offers by name.
///
/// # Safety
/// A device of ggml's.
pub(crate) unsafe fn function(device: Dev, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the caller's promise; registries are static objects, the name is terminated.
    unsafe {
        let reg = sys::ggml_backend_dev_backend_reg(device);
        let address = sys::ggml_backend_reg_get_proc_address(reg, name.as_ptr());
        (!address.is_null()).then_some(address)
    }
}

unsafe extern "C" {
    /// `ggml_graph_view` of `ggml-impl.h`: nodes `[i0, i1)` of a graph, without leafs.
    pub(crate) fn ggml_graph_view(graph: *mut Graph, i0: c_int, i1: c_int) -> Graph;
    /// `ggml_backend_buffer_init` of `ggml-backend-impl.h`.
    pub(crate) fn ggml_backend_buffer_init(
        buft: Buft,
        iface: BufferI,
        context: *mut c_void,
        size: usize,
    ) -> Buffer;
}

/// `GGML_TENSOR_FLAG_COMPUTE`: without it the CPU backend skips a node.
pub(crate) const TENSOR_FLAG_COMPUTE: i32 = sys::GGML_TENSOR_FLAG_COMPUTE as i32;

/// Compares the mirrors with the linked library.
///
/// # Errors
/// Names the first structure that does not look as expected.
pub(crate) fn verify() -> Result<(), String> {
    // SAFETY: the CPU registry and its device are static objects of the linked library; the
    // mirrors are only read, and each value is compared with what the public function returns.
    unsafe {
        let device = crate::cpu::cpu().ok_or("ggml has no CPU backend")?.device;
        let reg = sys::ggml_backend_dev_backend_reg(device);
        let mirror = &*reg.cast::<RegObject>();
        if mirror.api_version != API_VERSION {
            return Err(format!(
                "the backend interface has version {}, this build was written for {API_VERSION}",
                mirror.api_version
            ));
        }
        let Some(get_device) = mirror.iface.get_device else {
            return Err("the registry structure has moved".into());
        };
        let dev = get_device(reg, 0);
        if dev != sys::ggml_backend_reg_dev_get(reg, 0) {
            return Err("the registry structure has moved".into());
        }
        let device = &*dev.cast::<DeviceObject>();
        let same = device.reg == reg
            && device.iface.get_type.is_some_and(|f| f(dev) == sys::ggml_backend_dev_type(dev))
            && device
                .iface
                .get_buffer_type
                .is_some_and(|f| f(dev) == sys::ggml_backend_dev_buffer_type(dev));
        if !same {
            return Err("the device structure has moved".into());
        }
        let buft = sys::ggml_backend_cpu_buffer_type();
        let buffer_type = &*buft.cast::<BufferType>();
        let same = buffer_type.device == sys::ggml_backend_buft_get_device(buft)
            && buffer_type
                .iface
                .is_host
                .is_some_and(|f| f(buft) == sys::ggml_backend_buft_is_host(buft));
        if !same {
            return Err("the buffer type structure has moved".into());
        }
        verify_buffer(buft)?;
        verify_graph()
    }
}

/// # Safety
/// `buft` is a live host buffer type.
unsafe fn verify_buffer(buft: Buft) -> Result<(), String> {
    // SAFETY: the buffer is allocated and freed here, its mirror is only read in between.
    unsafe {
        let buffer = sys::ggml_backend_buft_alloc_buffer(buft, 4096);
        if buffer.is_null() {
            return Err("a buffer of 4 KiB could not be allocated".into());
        }
        let mirror = &*buffer.cast::<BufferObject>();
        let same = mirror.buft == buft
            && mirror.size == sys::ggml_backend_buffer_get_size(buffer)
            && mirror.usage == sys::ggml_backend_buffer_get_usage(buffer)
            && mirror
                .iface
                .get_base
                .is_some_and(|f| f(buffer) == sys::ggml_backend_buffer_get_base(buffer));
        sys::ggml_backend_buffer_free(buffer);
        if same { Ok(()) } else { Err("the buffer structure has moved".into()) }
    }
}

/// # Safety
/// None of its own; unsafe because everything in it is.
unsafe fn verify_graph() -> Result<(), String> {
    // SAFETY: a graph of one node is built in a context of its own, which is freed at the end.
    unsafe {
        let params = sys::ggml_init_params {
            mem_size: sys::ggml_tensor_overhead() * 4 + sys::ggml_graph_overhead_custom(8, false),
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        let ctx = sys::ggml_init(params);
        if ctx.is_null() {
            return Err("a ggml context could not be made".into());
        }
        let graph = sys::ggml_new_graph_custom(ctx, 8, false);
        let a = sys::ggml_new_tensor_1d(ctx, sys::GGML_TYPE_F32, 4);
        let b = sys::ggml_add(ctx, a, a);
        sys::ggml_build_forward_expand(graph, b);
        let mirror = &*graph.cast::<Graph>();
        let same = mirror.size == sys::ggml_graph_size(graph)
            && mirror.n_nodes == 1
            && mirror.n_leafs == 1
            && *mirror.nodes == b
            && *mirror.leafs == a
            && !mirror.use_counts.is_null()
            && mirror.visited_hash_set.size >= 8;
        sys::ggml_free(ctx);
        if same { Ok(()) } else { Err("the graph structure has moved".into()) }
    }
}
