//! How fast a GPU is: copies to it, its own memory, and its arithmetic.

use std::ptr::{NonNull, null_mut};
use std::time::Instant;

use llama_cpp_sys_2 as sys;

use crate::abi::{Backend, Buffer, TENSOR_FLAG_COMPUTE, Tensor};
use crate::gpu::Gpu;

/// Sizes of copies, in bytes: small experts to large matrices.
const COPY_BYTES: [usize; 4] = [64 << 10, 512 << 10, 4 << 20, 32 << 20];
/// Bytes that are copied for one measurement, and measurements of each size.
const COPY_TOTAL_BYTES: usize = 128 << 20;
const COPY_ROUNDS: usize = 5;
/// Q8_0 weights: a square matrix, and as many of them as no cache holds.
const WIDTH: i64 = 4096;
const MATRICES: usize = 24;
const PROMPT_ROWS: i64 = 512;
const COMPUTE_ROUNDS: usize = 7;

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuSpeed {
    /// Copies from pinned host memory: bytes of one copy, and bytes per second of many in a row.
    pub host_to_device: Vec<(u64, f64)>,
    /// Copies back, of 4 MiB each, in bytes per second.
    pub device_to_host_bytes_per_s: f64,
    /// Bytes of `Q8_0` weights per second that one token's products get through.
    pub decode_bytes_per_s: f64,
    /// Operations per second of a prompt's products: two per weight and token.
    pub prompt_flops_per_s: f64,
}

/// Measures a GPU; takes about a second and some 450 MiB of its memory.
///
/// # Errors
/// When it has no memory for that, or fails; one sentence.
pub fn gpu(gpu: &Gpu) -> Result<GpuSpeed, String> {
    let mut bench = Bench::new(gpu, MATRICES).ok_or("the GPU gives no memory to measure with")?;
    let mut host_to_device = Vec::new();
    for bytes in COPY_BYTES {
        host_to_device.push((bytes as u64, bench.copies(bytes, Direction::Up)));
    }
    let device_to_host_bytes_per_s = bench.copies(4 << 20, Direction::Down);
    let failed = || "the GPU fails to compute".to_owned();
    let decode_s = bench.products(1).ok_or_else(failed)?;
    let prompt_s = bench.products(PROMPT_ROWS).ok_or_else(failed)?;
    let weights = (WIDTH * WIDTH) as f64 * MATRICES as f64;
    Ok(GpuSpeed {
        host_to_device,
        device_to_host_bytes_per_s,
        decode_bytes_per_s: bench.weight_bytes as f64 / decode_s,
        prompt_flops_per_s: 2.0 * weights * PROMPT_ROWS as f64 / prompt_s,
    })
}

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

/// A backend with weights on it, and pinned memory.
struct Bench {
    ctx: NonNull<sys::ggml_context>,
    backend: Backend,
    device: Buffer,
    pinned: Buffer,
    matrices: Vec<*mut Tensor>,
    weight_bytes: usize,
    input: *mut Tensor,
}

impl Bench {
    fn new(gpu: &Gpu, n_matrices: usize) -> Option<Bench> {
        crate::init();
        // SAFETY: everything made here is freed in `Drop`, also where it ends early.
        unsafe {
            let params = sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * (4 * MATRICES + 8)
                    + 2 * sys::ggml_graph_overhead_custom(2 * MATRICES, false),
                mem_buffer: null_mut(),
                no_alloc: true,
            };
            let ctx = NonNull::new(sys::ggml_init(params))?;
            let mut bench = Bench {
                ctx,
                backend: null_mut(),
                device: null_mut(),
                pinned: null_mut(),
                matrices: Vec::new(),
                weight_bytes: 0,
                input: null_mut(),
            };
            let c = ctx.as_ptr();
            bench.backend = sys::ggml_backend_dev_init(gpu.dev(), std::ptr::null());
            if bench.backend.is_null() {
                return None;
            }
            for _ in 0..n_matrices {
                let matrix = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_Q8_0, WIDTH, WIDTH);
                bench.weight_bytes += sys::ggml_nbytes(matrix);
                bench.matrices.push(matrix);
            }
            bench.input = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, WIDTH, PROMPT_ROWS);
            let own = sys::ggml_backend_dev_buffer_type(gpu.dev());
            bench.device = sys::ggml_backend_alloc_ctx_tensors_from_buft(c, own);
            let host = sys::ggml_backend_dev_host_buffer_type(gpu.dev());
            let host = if host.is_null() { sys::ggml_backend_cpu_buffer_type() } else { host };
            bench.pinned = sys::ggml_backend_buft_alloc_buffer(host, COPY_TOTAL_BYTES);
            if bench.device.is_null() || bench.pinned.is_null() {
                return None;
            }
            // Any finite numbers: scales of 2^-10 (F16 0x1400), weights and inputs near 1.
            let block: Vec<u8> = [0x00, 0x14].into_iter().chain((0..32).map(|i| i * 3)).collect();
            let bytes = sys::ggml_nbytes(bench.matrices[0]);
            let weights: Vec<u8> = block.iter().copied().cycle().take(bytes).collect();
            for &matrix in &bench.matrices {
                sys::ggml_backend_tensor_set(matrix, weights.as_ptr().cast(), 0, bytes);
            }
            let bytes = sys::ggml_nbytes(bench.input);
            let input: Vec<u8> = 0.5f32.to_ne_bytes().into_iter().cycle().take(bytes).collect();
            sys::ggml_backend_tensor_set(bench.input, input.as_ptr().cast(), 0, bytes);
            sys::ggml_backend_buffer_clear(bench.pinned, 7);
            Some(bench)
        }
    }

    /// Bytes per second of copies of `bytes`.
    fn copies(&mut self, bytes: usize, direction: Direction) -> f64 {
        let per_matrix = self.weight_bytes / self.matrices.len();
        let mut best = f64::INFINITY;
        for _ in 0..COPY_ROUNDS {
            let begin = Instant::now();
            let (mut done, mut at, mut matrix) = (0, 0, 0);
            while done < COPY_TOTAL_BYTES {
                // A matrix takes what fits; larger copies go in pieces as large as it.
                let n = bytes.min(per_matrix);
                if at + n > per_matrix {
                    (at, matrix) = (0, (matrix + 1) % self.matrices.len());
                }
                // SAFETY: both ends lie within their buffers.
                unsafe {
                    let base = sys::ggml_backend_buffer_get_base(self.pinned).cast::<u8>();
                    let host = base.add(done % (COPY_TOTAL_BYTES - n + 1)).cast();
                    let tensor = self.matrices[matrix];
                    match direction {
                        Direction::Up => {
                            sys::ggml_backend_tensor_set_async(self.backend, tensor, host, at, n);
                        }
                        Direction::Down => {
                            sys::ggml_backend_tensor_get_async(self.backend, tensor, host, at, n);
                        }
                    }
                }
                at += n;
                done += n;
            }
            // SAFETY: a live backend.
            unsafe { sys::ggml_backend_synchronize(self.backend) };
            best = best.min(begin.elapsed().as_secs_f64() / done as f64);
        }
        1.0 / best
    }

    /// Seconds that the products of all matrices with so many rows take.
    fn products(&mut self, rows: i64) -> Option<f64> {
        // SAFETY: a context of its own for descriptions, a buffer for results; freed below.
        unsafe {
            let params = sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * (2 * MATRICES + 8)
                    + sys::ggml_graph_overhead_custom(2 * MATRICES, false),
                mem_buffer: null_mut(),
                no_alloc: true,
            };
            let ctx = NonNull::new(sys::ggml_init(params))?;
            let c = ctx.as_ptr();
            let row_bytes = (&(*self.input).nb)[1];
            let input = sys::ggml_view_2d(c, self.input, WIDTH, rows, row_bytes, 0);
            (*input).buffer = self.device;
            (*input).data = (*self.input).data;
            let graph = sys::ggml_new_graph_custom(c, 2 * MATRICES, false);
            for &matrix in &self.matrices {
                let product = sys::ggml_mul_mat(c, matrix, input);
                (*product).flags |= TENSOR_FLAG_COMPUTE;
                sys::ggml_graph_add_node(graph, product);
            }
            let own = sys::ggml_backend_buffer_get_type(self.device);
            let results = sys::ggml_backend_alloc_ctx_tensors_from_buft(c, own);
            let mut best = f64::INFINITY;
            let mut is_sound = !results.is_null();
            for _ in 0..COMPUTE_ROUNDS {
                if !is_sound {
                    break;
                }
                let begin = Instant::now();
                let status = sys::ggml_backend_graph_compute(self.backend, graph);
                sys::ggml_backend_synchronize(self.backend);
                best = best.min(begin.elapsed().as_secs_f64());
                is_sound = status == sys::GGML_STATUS_SUCCESS;
            }
            if !results.is_null() {
                sys::ggml_backend_buffer_free(results);
            }
            sys::ggml_free(c);
            is_sound.then_some(best)
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once.
        unsafe {
            for buffer in [self.device, self.pinned] {
                if !buffer.is_null() {
                    sys::ggml_backend_buffer_free(buffer);
                }
            }
            if !self.backend.is_null() {
                sys::ggml_backend_free(self.backend);
            }
            sys::ggml_free(self.ctx.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_can_stand_in() {
        let mut bench = Bench::new(&Gpu::named("CPU").unwrap(), 2).unwrap();
        for direction in [Direction::Up, Direction::Down] {
            let rate = bench.copies(1 << 20, direction);
            assert!(rate > 0.0 && rate.is_finite(), "{rate}");
        }
        for rows in [1, 3] {
            assert!(bench.products(rows).unwrap() > 0.0);
        }
    }
}
