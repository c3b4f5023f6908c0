//! How fast the CPU multiplies with weights: ggml's own matrix products, measured.
//!
//! A token is bound by how fast weights stream through the cores, a long prompt by arithmetic, and
//! a tiny model by the steps of its graph. So three things are measured: bytes of weights per second
//! with one row, operations per second with many rows, and seconds per step. Weights lie as they do
//! in a run (as in the file, or rearranged by ggml for this CPU), and there are more of them than
//! the caches hold, since a token uses each weight once.

mod gpu;
mod tensors;

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use llama_cpp_sys_2 as sys;

use crate::cpu::{Cpu, cpu};
use crate::{Layout, Threadpool};
pub use gpu::{GpuSpeed, gpu};
use tensors::{Arena, EXPERTS_USED, Owned, Shape, TURNS, Weights, choose, fill_f32, graph_size};

/// Weights that are multiplied with in turn, in bytes: more than the caches of most processors.
const WORKING_SET_BYTES: usize = 320 << 20;
/// Rows of a prompt's products; half as many for each expert.
const PROMPT_ROWS: i64 = 64;
/// How long each of the numbers is measured, at least.
const TIME_PER_NUMBER: Duration = Duration::from_millis(200);
/// Measurements at least. The fifth of them that is fastest counts: the others were disturbed, if
/// only a little.
const ROUNDS_MIN: usize = 10;
/// Where half of the measurements took so many times longer, other programs were in the way, ...
const DISTURBED: f64 = 1.3;
/// ... and so they were where our threads, which wait by spinning, got less of the time than this.
const CPU_SHARE_MIN: f64 = 0.9;
/// Steps of the graph by which the time of a step is measured, and the floats that each works on.
const STEPS: usize = 256;
const STEP_FLOATS: i64 = 256;
/// How eagerly idle compute threads spin between graphs; ggml's own default.
const POLL: u32 = 50;

/// Which kind of product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Product {
    /// With one matrix (`MUL_MAT`).
    Matrix,
    /// With the experts that a router chose (`MUL_MAT_ID`).
    Experts,
}

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// ggml's number of the weights' type.
    pub ty: u32,
    /// How the weights lie.
    pub layout: Layout,
    /// The kind of product.
    pub product: Product,
    /// Elements of a row of weights (the inputs), a whole number of the type's blocks.
    pub n_in: u64,
    /// Rows of weights (the outputs).
    pub n_out: u64,
}

/// How fast a product is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Bytes of weights per second, with one row of input.
    pub decode_bytes_per_s: f64,
    /// Operations per second with many rows: two per weight and row.
    pub prompt_flops_per_s: f64,
    /// Whether ggml rearranged the weights; never in the plain layout.
    pub repacked: bool,
    /// Whether other programs kept the cores busy, so that the rates may be too low.
    pub disturbed: bool,
}

/// How long a step of a graph takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Seconds.
    pub seconds: f64,
    /// As in [`Rate`].
    pub disturbed: bool,
}

/// Why a product could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// There is no CPU backend of the pinned version.
    #[error("ggml has no CPU backend that can be measured")]
    NoCpu,
    /// ggml has no such type, or no such product for it.
    #[error("ggml can't multiply with {n_out} rows of {n_in} elements of type {ty}")]
    Unsupported {
        /// ggml's number of the type.
        ty: u32,
        /// Elements of a row.
        n_in: u64,
        /// Rows.
        n_out: u64,
    },
    /// There is no memory for the weights.
    #[error("measuring the speed of computing needs {WORKING_SET_BYTES} bytes of memory")]
    NoMemory,
    /// ggml failed.
    #[error("ggml failed while its speed was measured (status {status})")]
    Failed {
        /// What it said.
        status: i32,
    },
}

/// Measures matrix products of the CPU, with a thread pool of its own.
pub struct Calibrator {
    cpu: &'static Cpu,
    backend: NonNull<sys::ggml_backend>,
    threads: Threadpool,
}

// SAFETY: the backend is used through `&mut self` only, one thread at a time.
unsafe impl Send for Calibrator {}

impl Calibrator {
    /// For `n_threads` compute threads.
    ///
    /// # Errors
    /// [`CalibrateError::NoCpu`], [`CalibrateError::NoMemory`].
    pub fn new(n_threads: u32) -> Result<Calibrator, CalibrateError> {
        let cpu = cpu().ok_or(CalibrateError::NoCpu)?;
        let threads = Threadpool::new(n_threads, POLL).ok_or(CalibrateError::NoMemory)?;
        // SAFETY: the device is a static object; the pool lives as long as the backend.
        let backend = unsafe {
            let backend = sys::ggml_backend_dev_init(cpu.device, std::ptr::null());
            let backend = NonNull::new(backend).ok_or(CalibrateError::NoCpu)?;
            (cpu.set_n_threads)(backend.as_ptr(), threads.n_threads());
            (cpu.set_threadpool)(backend.as_ptr(), threads.as_ptr());
            backend
        };
        Ok(Calibrator { cpu, backend, threads })
    }

    /// Measures one product. Takes about half a second, and some 320 MiB while it runs.
    ///
    /// # Errors
    /// See [`CalibrateError`].
    pub fn rate(&mut self, case: &Case) -> Result<Rate, CalibrateError> {
        self.rate_within(case, WORKING_SET_BYTES, TIME_PER_NUMBER)
    }

    fn rate_within(
        &mut self,
        case: &Case,
        working_set_bytes: usize,
        time: Duration,
    ) -> Result<Rate, CalibrateError> {
        let shape = Shape::of(case)?;
        let n_tensors = working_set_bytes.div_ceil(shape.bytes).max(1);
        let weights = Weights::new(self.cpu.device, case.layout, &shape, n_tensors)?;
        let decode = self.products(&weights, &shape, 1, time)?;
        let prompt = self.products(&weights, &shape, PROMPT_ROWS, time)?;
        let elements = shape.elements_used() as f64;
        Ok(Rate {
            decode_bytes_per_s: shape.bytes_used() as f64 / decode.seconds,
            prompt_flops_per_s: 2.0 * elements * PROMPT_ROWS as f64 / prompt.seconds,
            repacked: weights.repacked,
            disturbed: decode.disturbed || prompt.disturbed,
        })
    }

    /// Measures a step of a graph that computes next to nothing: starting it on all threads and
    /// waiting for the last.
    ///
    /// # Errors
    /// See [`CalibrateError`].
    pub fn step(&mut self) -> Result<Step, CalibrateError> {
        let arena = Arena::new(STEPS + 1, 1, STEPS)?;
        let context = arena.context();
        // SAFETY: tensors of one context, which lives until the end; the buffer is theirs.
        unsafe {
            let first = sys::ggml_new_tensor_1d(context, sys::GGML_TYPE_F32, STEP_FLOATS);
            let mut last = first;
            for _ in 0..STEPS {
                last = sys::ggml_rms_norm(context, last, 1e-6);
            }
            let graph = sys::ggml_new_graph_custom(context, graph_size(STEPS), false);
            sys::ggml_build_forward_expand(graph, last);
            let plain = sys::ggml_backend_dev_buffer_type(self.cpu.device);
            let _buffer = Owned::for_context(context, plain)?;
            fill_f32(first);
            let taken = self.time(&[graph], TIME_PER_NUMBER)?;
            let seconds = taken.seconds / STEPS as f64;
            Ok(Step { seconds, disturbed: taken.disturbed })
        }
    }

    /// How long one product with `rows` rows of input takes. Tensors take turns, and so do the
    /// experts of a tensor.
    fn products(
        &mut self,
        weights: &Weights,
        shape: &Shape,
        rows: i64,
        time: Duration,
    ) -> Result<Taken, CalibrateError> {
        let turns = if shape.experts > 0 { TURNS } else { 1 };
        let n_graphs = weights.tensors.len() * turns;
        let arena = Arena::new(n_graphs + turns + 1, n_graphs, 1)?;
        let context = arena.context();
        // SAFETY: tensors of contexts that live until the end; weights have memory, the others get
        // theirs here before anything is computed.
        unsafe {
            let (input, choices) = if shape.experts > 0 {
                let input =
                    sys::ggml_new_tensor_3d(context, sys::GGML_TYPE_F32, shape.n_in, 1, rows);
                let ids =
                    |_| sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_I32, EXPERTS_USED, rows);
                (input, (0..turns).map(ids).collect::<Vec<_>>())
            } else {
                let input = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, shape.n_in, rows);
                (input, Vec::new())
            };
            let graph = |product| {
                let graph = sys::ggml_new_graph_custom(context, graph_size(1), false);
                sys::ggml_build_forward_expand(graph, product);
                graph
            };
            let mut graphs = Vec::with_capacity(n_graphs);
            for &tensor in &weights.tensors {
                if choices.is_empty() {
                    graphs.push(graph(sys::ggml_mul_mat(context, tensor, input)));
                }
                for &ids in &choices {
                    graphs.push(graph(sys::ggml_mul_mat_id(context, tensor, input, ids)));
                }
            }
            let plain = sys::ggml_backend_dev_buffer_type(self.cpu.device);
            let _buffer = Owned::for_context(context, plain)?;
            fill_f32(input);
            for (turn, &ids) in choices.iter().enumerate() {
                choose(ids, turn, rows);
            }
            self.time(&graphs, time)
        }
    }

    /// How long each of these graphs takes, which are alike: one after the other, over and over,
    /// until `time` is over.
    ///
    /// # Safety
    /// The tensors of the graphs have memory.
    unsafe fn time(
        &mut self,
        graphs: &[*mut sys::ggml_cgraph],
        time: Duration,
    ) -> Result<Taken, CalibrateError> {
        let _turn = self.threads.claim();
        let compute = |graph| {
            let begin = Instant::now();
            // SAFETY: the caller's promise; nobody else uses this backend or its threads.
            let status = unsafe { sys::ggml_backend_graph_compute(self.backend.as_ptr(), graph) };
            match status {
                sys::GGML_STATUS_SUCCESS => Ok(begin.elapsed()),
                status => Err(CalibrateError::Failed { status }),
            }
        };
        // Wakes the threads and makes the work buffer.
        if let Some(&first) = graphs.first() {
            compute(first)?;
        }
        let (begin, cpu_begin_s) = (Instant::now(), cpu_seconds());
        let mut taken = Vec::new();
        for &graph in graphs.iter().cycle() {
            if taken.len() >= ROUNDS_MIN && begin.elapsed() >= time {
                break;
            }
            taken.push(compute(graph)?.as_secs_f64().max(1e-9));
        }
        let threads_s = begin.elapsed().as_secs_f64() * f64::from(self.threads.n_threads());
        let cpu_share = (cpu_seconds() - cpu_begin_s) / threads_s.max(1e-9);
        taken.sort_unstable_by(f64::total_cmp);
        let at = |part: usize| taken.get(taken.len() / part).copied().unwrap_or(1e-9);
        Ok(Taken {
            seconds: at(5),
            disturbed: at(2) > DISTURBED * at(5) || cpu_share < CPU_SHARE_MIN,
        })
    }
}

/// Seconds that the cores have spent on this process so far.
fn cpu_seconds() -> f64 {
    // SAFETY: `time` is a plain structure that the call fills; zeros are a time too.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time);
        time
    };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// A time that was measured.
#[derive(Debug, Clone, Copy)]
struct Taken {
    seconds: f64,
    disturbed: bool,
}

impl Drop for Calibrator {
    fn drop(&mut self) {
        // SAFETY: made in `new`; the pool is freed after it.
        unsafe { sys::ggml_backend_free(self.backend.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q8_0: u32 = sys::GGML_TYPE_Q8_0;

    fn check(ty: u32, layout: Layout, product: Product) -> Rate {
        let mut calibrator = Calibrator::new(1).expect("a CPU");
        let case = Case { ty, layout, product, n_in: 512, n_out: 256 };
        let rate = calibrator.rate_within(&case, 1 << 20, Duration::ZERO).expect("a product");
        assert!(rate.decode_bytes_per_s.is_finite() && rate.decode_bytes_per_s > 0.0, "{rate:?}");
        assert!(rate.prompt_flops_per_s.is_finite() && rate.prompt_flops_per_s > 0.0, "{rate:?}");
        rate
    }

    #[test]
    fn all_products_and_layouts() {
        for ty in [sys::GGML_TYPE_F32, sys::GGML_TYPE_F16, Q8_0, sys::GGML_TYPE_Q4_K] {
            for product in [Product::Matrix, Product::Experts] {
                assert!(!check(ty, Layout::Plain, product).repacked);
                check(ty, Layout::Fast, product);
            }
        }
        // There are kernels for rearranged Q4_0 on every CPU that ggml is optimized for.
        if cfg!(any(target_feature = "avx2", target_feature = "neon")) {
            assert!(check(sys::GGML_TYPE_Q4_0, Layout::Fast, Product::Matrix).repacked);
        }
    }

    #[test]
    fn steps_take_time() {
        let step = Calibrator::new(1).expect("a CPU").step().expect("a graph");
        assert!(step.seconds > 0.0 && step.seconds.is_finite(), "{step:?}");
    }

    #[test]
    fn what_ggml_does_not_have_is_refused() {
        let mut calibrator = Calibrator::new(1).expect("a CPU");
        // No whole block, no rows, a type without products, removed and unknown types.
        for (ty, n_in, n_out) in [
            (Q8_0, 33, 8),
            (Q8_0, 32, 0),
            (Q8_0, u64::MAX, 8),
            (sys::GGML_TYPE_I32, 32, 8),
            (4, 32, 8),
            (9999, 32, 8),
        ] {
            let (layout, product) = (Layout::Plain, Product::Matrix);
            let case = Case { ty, layout, product, n_in, n_out };
            let refused = calibrator.rate_within(&case, 1, Duration::ZERO);
            assert!(matches!(refused, Err(CalibrateError::Unsupported { .. })), "{case:?}");
        }
    }
}
