//! Slices that were rearranged one by one give the same products, bit for bit, as tensors that ggml
//! rearranged whole.
#![allow(clippy::cast_possible_truncation)] // of small constants

use super::*;
use crate::abi::Buffer;

const QUANTIZED: [u32; 12] = [
    sys::GGML_TYPE_Q4_0,
    sys::GGML_TYPE_Q4_1,
    sys::GGML_TYPE_Q5_0,
    sys::GGML_TYPE_Q8_0,
    sys::GGML_TYPE_Q2_K,
    sys::GGML_TYPE_Q3_K,
    sys::GGML_TYPE_Q4_K,
    sys::GGML_TYPE_Q5_K,
    sys::GGML_TYPE_Q6_K,
    sys::GGML_TYPE_IQ4_NL,
    sys::GGML_TYPE_MXFP4,
    sys::GGML_TYPE_Q1_0,
];
const NE0: i64 = 512;
const NE1: i64 = 72;
const EXPERTS: i64 = 5;
const USED: i64 = 2;
/// Where each expert lies in a pool of more slots than experts.
const SLOT_OF: [i32; 5] = [6, 0, 3, 5, 2];
const SLOTS: i64 = 7;
/// Bytes between the slots of a pool.
const GAP: usize = 4096;

/// The types that this CPU has its own layout for, as matrix or as experts.
fn repacked_types(repacker: &Repacker, is_experts: bool) -> Vec<u32> {
    let n = if is_experts { EXPERTS as u64 } else { 1 };
    let takes = |ty: &u32| repacker.repacks(*ty, NE0 as u64, NE1 as u64, n, is_experts);
    QUANTIZED.into_iter().filter(takes).collect()
}

/// A computation: a context and all buffers of its tensors.
struct Bench {
    context: *mut sys::ggml_context,
    buffers: Vec<Buffer>,
    backend: sys::ggml_backend_t,
    device: Dev,
}

impl Bench {
    fn new() -> Bench {
        let cpu = cpu().unwrap();
        // SAFETY: freed in `Drop`.
        unsafe {
            let context = sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * 32 + sys::ggml_graph_overhead() * 8,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            let backend = sys::ggml_backend_dev_init(cpu.device, std::ptr::null());
            (cpu.set_n_threads)(backend, 2);
            Bench { context, buffers: Vec::new(), backend, device: cpu.device }
        }
    }

    /// Memory of a type for one tensor, with `gap` bytes more behind each slice.
    fn place(&mut self, tensor: *mut Tensor, buft: Buft, gap: usize) {
        // SAFETY: the tensor is described in our context and has no memory yet.
        unsafe {
            let stride = (*tensor).nb[2] + gap;
            (*tensor).nb[2] = stride;
            (*tensor).nb[3] = stride * (*tensor).ne[2] as usize;
            let buffer = sys::ggml_backend_buft_alloc_buffer(buft, (*tensor).nb[3]);
            let base = sys::ggml_backend_buffer_get_base(buffer);
            assert_eq!(
                sys::ggml_backend_tensor_alloc(buffer, tensor, base),
                sys::GGML_STATUS_SUCCESS
            );
            self.buffers.push(buffer);
        }
    }

    fn plain(&mut self, tensor: *mut Tensor, bytes: &[u8]) {
        // SAFETY: a static buffer type; the tensor gets as many bytes as it has.
        unsafe {
            self.place(tensor, sys::ggml_backend_dev_buffer_type(self.device), 0);
            assert_eq!(sys::ggml_nbytes(tensor), bytes.len());
            sys::ggml_backend_tensor_set(tensor, bytes.as_ptr().cast(), 0, bytes.len());
        }
    }

    fn input(&mut self, dims: [i64; 3]) -> *mut Tensor {
        let n: i64 = dims.iter().product();
        let values: Vec<u8> =
            (0..n).flat_map(|i| ((i * 7919 % 251) as f32 / 125.0 - 1.0).to_le_bytes()).collect();
        // SAFETY: our context has room.
        let tensor = unsafe {
            let [a, b, c] = dims;
            sys::ggml_new_tensor_3d(self.context, sys::GGML_TYPE_F32, a, b, c)
        };
        self.plain(tensor, &values);
        tensor
    }

    fn ids(&mut self, rows: i64, of: impl Fn(i64) -> i32) -> *mut Tensor {
        let ids = (0..rows * USED).flat_map(|i| of(i).to_le_bytes()).collect::<Vec<_>>();
        // SAFETY: our context has room.
        let tensor =
            unsafe { sys::ggml_new_tensor_2d(self.context, sys::GGML_TYPE_I32, USED, rows) };
        self.plain(tensor, &ids);
        tensor
    }

    fn compute(&mut self, product: *mut Tensor) -> Vec<u8> {
        // SAFETY: all sources have memory; the product gets some before it is computed.
        unsafe {
            self.place(product, sys::ggml_backend_dev_buffer_type(self.device), 0);
            let graph = sys::ggml_new_graph(self.context);
            sys::ggml_build_forward_expand(graph, product);
            let status = sys::ggml_backend_graph_compute(self.backend, graph);
            assert_eq!(status, sys::GGML_STATUS_SUCCESS);
            let mut out = vec![0_u8; sys::ggml_nbytes(product)];
            sys::ggml_backend_tensor_get(product, out.as_mut_ptr().cast(), 0, out.len());
            let floats = out.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            assert!(floats.clone().all(f32::is_finite) && floats.clone().any(|x| x != 0.0));
            out
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: made by us, freed once.
        unsafe {
            for &buffer in &self.buffers {
                sys::ggml_backend_buffer_free(buffer);
            }
            sys::ggml_backend_free(self.backend);
            sys::ggml_free(self.context);
        }
    }
}

/// Weights as they lie in a file.
fn weights(ty: u32, slices: i64) -> Vec<u8> {
    let shape = Shape::new(ty, NE0 as u64, NE1 as u64).unwrap();
    sample(shape.bytes * slices as usize)
}

#[test]
fn matrices_are_those_that_ggml_rearranges_whole() {
    let mut repacker = Repacker::new().expect("this CPU has a layout of its own");
    let types = repacked_types(&repacker, false);
    assert!(types.contains(&sys::GGML_TYPE_Q4_0), "{types:?}");
    for ty in types {
        let bytes = weights(ty, 1);
        let mut packed = vec![0; bytes.len()];
        repacker.repack(ty, NE0 as u64, NE1 as u64, &bytes, &mut packed).unwrap();
        assert_ne!(packed, bytes, "type {ty}");
        for rows in [1, 9] {
            let mut bench = Bench::new();
            let buft = buffer_type().unwrap();
            let input = bench.input([NE0, rows, 1]);
            // SAFETY: one context; the tensors live until `bench` ends.
            unsafe {
                let whole = sys::ggml_new_tensor_2d(bench.context, ty, NE0, NE1);
                bench.place(whole, buft, 0);
                sys::ggml_backend_tensor_set(whole, bytes.as_ptr().cast(), 0, bytes.len());
                // As the ring does it: a tensor whose memory is lent at each use.
                let ring = sys::ggml_new_tensor_2d(bench.context, ty, NE0, NE1);
                (*ring).buffer = (*whole).buffer;
                sys::ggml_backend_buffer_init_tensor((*ring).buffer, ring);
                (*ring).data = packed.as_mut_ptr().cast();
                let expected = sys::ggml_mul_mat(bench.context, whole, input);
                let expected = bench.compute(expected);
                let got = sys::ggml_mul_mat(bench.context, ring, input);
                let got = bench.compute(got);
                assert!(expected == got, "type {ty}, {rows} rows");
            }
        }
    }
}

#[test]
fn experts_in_slots_are_those_that_ggml_rearranges_whole() {
    let mut repacker = Repacker::new().unwrap();
    let types = repacked_types(&repacker, true);
    assert!(types.contains(&sys::GGML_TYPE_Q4_0), "{types:?}");
    for ty in types {
        let bytes = weights(ty, EXPERTS);
        let slice = bytes.len() / EXPERTS as usize;
        for rows in [1, 9] {
            let mut bench = Bench::new();
            let buft = buffer_type().unwrap();
            let input = bench.input([NE0, USED, rows]);
            let expert = |i: i64| (i * 3 % EXPERTS) as i32;
            let ids = bench.ids(rows, expert);
            let slots = bench.ids(rows, |i| SLOT_OF[expert(i) as usize]);
            // SAFETY: one context; each slot has as many bytes as a slice.
            unsafe {
                let whole = sys::ggml_new_tensor_3d(bench.context, ty, NE0, NE1, EXPERTS);
                bench.place(whole, buft, 0);
                sys::ggml_backend_tensor_set(whole, bytes.as_ptr().cast(), 0, bytes.len());
                let pool = sys::ggml_new_tensor_3d(bench.context, ty, NE0, NE1, SLOTS);
                bench.place(pool, buft, GAP);
                for (bytes, slot) in bytes.chunks_exact(slice).zip(SLOT_OF) {
                    let at = (*pool).data.cast::<u8>().add(slot as usize * (*pool).nb[2]);
                    let to = std::slice::from_raw_parts_mut(at, slice);
                    repacker.repack(ty, NE0 as u64, NE1 as u64, bytes, to).unwrap();
                }
                let expected = sys::ggml_mul_mat_id(bench.context, whole, input, ids);
                let expected = bench.compute(expected);
                let got = sys::ggml_mul_mat_id(bench.context, pool, input, slots);
                let got = bench.compute(got);
                assert!(expected == got, "type {ty}, {rows} rows");
            }
        }
    }
}

/// How a resident tensor can be loaded from rearranged bytes: ggml's buffer with a function of ours
/// that sets tensors as they are.
#[test]
fn a_buffer_takes_rearranged_bytes_as_they_are() {
    unsafe extern "C" fn copy(
        _: Buffer,
        tensor: *mut Tensor,
        data: *const std::ffi::c_void,
        offset: usize,
        size: usize,
    ) {
        // SAFETY: ggml has checked that the tensor has these bytes.
        unsafe {
            let to = (*tensor).data.cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(data.cast::<u8>(), to, size);
        }
    }
    let mut repacker = Repacker::new().unwrap();
    let ty = sys::GGML_TYPE_Q4_0;
    let bytes = weights(ty, 1);
    let mut packed = vec![0; bytes.len()];
    repacker.repack(ty, NE0 as u64, NE1 as u64, &bytes, &mut packed).unwrap();
    let mut bench = Bench::new();
    let buft = buffer_type().unwrap();
    let input = bench.input([NE0, 9, 1]);
    let products = [false, true].map(|as_they_are| {
        // SAFETY: one context; the buffer's structure is the one that `abi` mirrors.
        unsafe {
            let weights = sys::ggml_new_tensor_2d(bench.context, ty, NE0, NE1);
            bench.place(weights, buft, 0);
            let from = if as_they_are {
                (*(*weights).buffer.cast::<crate::abi::BufferObject>()).iface.set_tensor =
                    Some(copy);
                &packed
            } else {
                &bytes
            };
            // In two parts, as a loader with little memory would.
            let (first, second) = from.split_at(if as_they_are { 1000 } else { from.len() });
            sys::ggml_backend_tensor_set(weights, first.as_ptr().cast(), 0, first.len());
            let (rest, n) = (second.as_ptr().cast(), second.len());
            sys::ggml_backend_tensor_set(weights, rest, first.len(), n);
            let product = sys::ggml_mul_mat(bench.context, weights, input);
            bench.compute(product)
        }
    });
    assert!(products[0] == products[1]);
}

#[test]
fn pieces_and_odd_addresses_give_the_same_bytes() {
    let mut repacker = Repacker::new().unwrap();
    let (ne0, ne1) = (NE0 as u64, 200_u64);
    for ty in repacked_types(&repacker, false) {
        let shape = Shape::new(ty, ne0, ne1).unwrap();
        let row = shape.bytes / ne1 as usize;
        let bytes = sample(shape.bytes);
        let mut whole = vec![0; bytes.len()];
        repacker.repack(ty, ne0, ne1, &bytes, &mut whole).unwrap();

        let rows = repacker.rows_at_a_time(ty, ne0, ne1, 70 * row as u64);
        assert_eq!(rows, 64, "type {ty}");
        let mut pieces = vec![0; bytes.len()];
        let each = rows as usize * row;
        for (from, to) in bytes.chunks(each).zip(pieces.chunks_mut(each)) {
            repacker.repack(ty, ne0, (from.len() / row) as u64, from, to).unwrap();
        }
        assert!(pieces == whole, "type {ty}");

        let mut odd_source = vec![0];
        odd_source.extend(&bytes);
        let mut odd = vec![0; bytes.len() + 1];
        repacker.repack(ty, ne0, ne1, &odd_source[1..], &mut odd[1..]).unwrap();
        assert!(odd[1..] == whole, "type {ty}");
    }
}

#[test]
fn fingerprints_tell_types_apart_and_not_sizes() {
    let mut repacker = Repacker::new().unwrap();
    let mut seen = std::collections::HashSet::new();
    for ty in repacked_types(&repacker, false) {
        let print = repacker.fingerprint(ty, 512, 64).unwrap();
        assert_eq!(repacker.fingerprint(ty, 4096, 128_000).unwrap(), print, "type {ty}");
        assert_eq!(Repacker::new().unwrap().fingerprint(ty, 4096, 64).unwrap(), print);
        assert!(seen.insert(print), "type {ty}");
    }
}

#[test]
fn what_is_not_rearranged_is_refused() {
    let mut repacker = Repacker::new().unwrap();
    let q4_0 = sys::GGML_TYPE_Q4_0;
    for (ty, ne0, ne1) in [
        (sys::GGML_TYPE_F32, 512, 64),
        (sys::GGML_TYPE_F16, 512, 64),
        (q4_0, 512, 63),
        (q4_0, 500, 64),
        (q4_0, 0, 64),
        (q4_0, u64::MAX, 64),
        (sys::GGML_TYPE_COUNT, 512, 64),
        (4, 512, 64), // a type that ggml has removed
    ] {
        assert!(!repacker.repacks(ty, ne0, ne1, 1, false), "type {ty}, {ne0} x {ne1}");
        assert!(repacker.fingerprint(ty, ne0, ne1).is_err(), "type {ty}, {ne0} x {ne1}");
        assert!(repacker.repack(ty, ne0, ne1, &[], &mut []).is_err());
        assert_eq!(repacker.rows_at_a_time(ty, ne0, ne1, 1), ne1);
    }
    // A tensor of one expert is a matrix to ggml, and experts that are no experts are none.
    assert!(!repacker.repacks(q4_0, 512, 64, 1, true));
    assert!(!repacker.repacks(q4_0, 512, 64, 3, false));
    let short = repacker.repack(q4_0, 512, 64, &[0; 5], &mut [0; 5]);
    assert!(matches!(short, Err(RepackError::Length { given: 5, .. })), "{short:?}");
}
