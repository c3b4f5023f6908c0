//! The layout in which ggml multiplies fastest on this CPU: weights rearranged ahead of time.
//!
//! ggml's CPU backend has a buffer type (`CPU_REPACK`, `ggml-cpu/repack.cpp`) that interleaves the
//! rows of some quantized types as its kernels want them. It does so when a whole tensor is set.
//! [`Repacker`] lets it do so for one slice of a tensor of experts, or for some rows of a large
//! matrix, and hands out the bytes. Written to a file, they can later be read straight into a
//! tensor of that buffer type.
//!
//! What is rearranged, and how, differs between CPUs. Nothing of that is known here: ggml is asked.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::abi::{self, Buft, Dev, Tensor};
use crate::cpu::cpu;

/// The name by which ggml's buffer type is found.
const BUFFER_TYPE: &CStr = c"CPU_REPACK";
/// Bytes of the buffer that lends its type to the tensors; nothing is stored in it.
const LENDER_BYTES: usize = 64;
/// The most rows and row elements of a block that a fingerprint is taken of. No kernel interleaves
/// more rows, and no type has longer blocks.
const SAMPLE_ROWS: u64 = 64;
const SAMPLE_ELEMENTS: u64 = 512;
/// What ggml reads and writes must begin at a multiple of this; its blocks need 4.
const ALIGNMENT: usize = 8;

/// Why a slice can't be rearranged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepackError {
    /// ggml leaves weights of this type and shape as they are.
    #[error("ggml does not rearrange {ne1} rows of {ne0} elements of type {ty} on this CPU")]
    NotRepacked {
        /// ggml's number of the type.
        ty: u32,
        /// Elements of a row.
        ne0: u64,
        /// Rows.
        ne1: u64,
    },
    /// Source or destination has another length than the shape.
    #[error("{given} bytes were passed for a slice of {wanted}")]
    Length {
        /// What was passed.
        given: usize,
        /// What the slice takes.
        wanted: usize,
    },
    /// There is no memory for a tensor's description.
    #[error("there is no memory to rearrange weights with")]
    NoMemory,
}

/// Rearranges slices of weights as ggml's CPU backend does.
pub struct Repacker {
    device: Dev,
    buft: Buft,
    lender: NonNull<sys::ggml_backend_buffer>,
    fingerprints: HashMap<(u32, u64, u64), [u8; 32]>,
}

// SAFETY: device and buffer type are static objects; the buffer is used by whoever owns this, and
// its functions touch only the tensor that they are given.
unsafe impl Send for Repacker {}

impl Repacker {
    /// `None` when the CPU backend rearranges nothing.
    #[must_use]
    pub fn new() -> Option<Repacker> {
        let device = cpu()?.device;
        let buft = buffer_type()?;
        // SAFETY: a static buffer type; the buffer is freed in `Drop`.
        let lender = unsafe { sys::ggml_backend_buft_alloc_buffer(buft, LENDER_BYTES) };
        Some(Repacker { device, buft, lender: NonNull::new(lender)?, fingerprints: HashMap::new() })
    }

    /// Whether products with such weights take the rearranged path: `n_experts` slices of `ne1` rows
    /// of `ne0` elements of ggml's type `ty`, used as experts (`MUL_MAT_ID`) or, with `n_experts`
    /// of 1, as a matrix (`MUL_MAT`). Asked as llama.cpp's loader asks, with an empty buffer.
    #[must_use]
    pub fn repacks(&self, ty: u32, ne0: u64, ne1: u64, n_experts: u64, is_experts: bool) -> bool {
        let Ok(experts) = i64::try_from(n_experts) else { return false };
        let Some(arena) = Arena::new(4) else { return false };
        let Some(shape) = Shape::new(ty, ne0, ne1) else { return false };
        let context = arena.0.as_ptr();
        if self.kernels(&shape).is_none() || experts < 1 || (!is_experts && experts != 1) {
            return false;
        }
        // SAFETY: descriptions of one context; the empty buffer outlives the question, and nothing
        // is computed.
        unsafe {
            let weights = sys::ggml_new_tensor_3d(context, shape.ty, shape.ne0, shape.ne1, experts);
            let product = if is_experts {
                let input = sys::ggml_new_tensor_3d(context, sys::GGML_TYPE_F32, shape.ne0, 1, 1);
                let ids = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_I32, 1, 1);
                sys::ggml_mul_mat_id(context, weights, input, ids)
            } else {
                let input = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, shape.ne0, 1);
                sys::ggml_mul_mat(context, weights, input)
            };
            let empty = sys::ggml_backend_buft_alloc_buffer(self.buft, 0);
            if empty.is_null() {
                return false;
            }
            (*weights).buffer = empty;
            let takes = sys::ggml_backend_dev_supports_op(self.device, product);
            // Who repacks in place can be given memory of any origin.
            let in_place = sys::ggml_backend_buft_get_alloc_size(self.buft, weights)
                == sys::ggml_nbytes(weights);
            sys::ggml_backend_buffer_free(empty);
            takes && in_place
        }
    }

    /// Into how many rows a slice of `ne1` rows may be cut, at most `bytes_max` each where that is
    /// possible, so that the pieces one after the other are the same bytes as the whole. `ne1` if it
    /// can't be cut. The last piece may have fewer rows.
    #[must_use]
    pub fn rows_at_a_time(&self, ty: u32, ne0: u64, ne1: u64, bytes_max: u64) -> u64 {
        let Some(shape) = Shape::new(ty, ne0, ne1) else { return ne1 };
        let row_bytes = shape.bytes as u64 / ne1;
        let rows = bytes_max / row_bytes / SAMPLE_ROWS * SAMPLE_ROWS;
        let rows = rows.max(SAMPLE_ROWS);
        if rows >= ne1 {
            return ne1;
        }
        // The kernels are chosen by the number of rows: each piece must get those of the whole.
        let kernels = |rows: u64| self.kernels(&Shape::new(ty, ne0, rows)?);
        let whole = kernels(ne1);
        let rest = ne1 % rows;
        let same = kernels(rows) == whole && (rest == 0 || kernels(rest) == whole);
        if whole.is_some() && same { rows } else { ne1 }
    }

    /// Rearranges one slice, `ne1` rows of `ne0` elements of type `ty`, from `src` into `dst`.
    ///
    /// # Errors
    /// See [`RepackError`]; `dst` is then as it was.
    pub fn repack(
        &mut self,
        ty: u32,
        ne0: u64,
        ne1: u64,
        src: &[u8],
        dst: &mut [u8],
    ) -> Result<(), RepackError> {
        let refused = RepackError::NotRepacked { ty, ne0, ne1 };
        let Some(shape) = Shape::new(ty, ne0, ne1) else { return Err(refused) };
        for given in [src.len(), dst.len()] {
            if given != shape.bytes {
                return Err(RepackError::Length { given, wanted: shape.bytes });
            }
        }
        let aligned = |ptr: *const u8| ptr.align_offset(ALIGNMENT) == 0;
        let src_copy = (!aligned(src.as_ptr())).then(|| Words::of(src));
        let mut dst_words = (!aligned(dst.as_ptr())).then(|| Words::new(dst.len()));
        let from = src_copy.as_ref().map_or(src.as_ptr(), Words::as_ptr);
        let to = dst_words.as_mut().map_or(dst.as_mut_ptr(), Words::as_mut_ptr);

        let arena = Arena::new(1).ok_or(RepackError::NoMemory)?;
        let tensor = self.describe(&arena, &shape).ok_or(refused)?;
        // SAFETY: the tensor's kernels are set, so that setting it writes as many bytes as it has
        // at `to`, reading as many at `from`: both have them, aligned as its blocks need.
        unsafe {
            (*tensor).data = to.cast();
            sys::ggml_backend_tensor_set(tensor, from.cast(), 0, shape.bytes);
        }
        if let Some(words) = &dst_words {
            words.copy_to(dst);
        }
        Ok(())
    }

    /// What tells layouts apart: BLAKE3 of a fixed pseudo-random block, rearranged as slices of this
    /// type and shape are. Two CPUs with equal fingerprints can use each other's bytes.
    ///
    /// # Errors
    /// [`RepackError::NotRepacked`], [`RepackError::NoMemory`].
    pub fn fingerprint(&mut self, ty: u32, ne0: u64, ne1: u64) -> Result<[u8; 32], RepackError> {
        // Rows with the remainder of the slice's: kernels are chosen by what divides their number.
        let rows = match ne1 % SAMPLE_ROWS {
            0 => SAMPLE_ROWS,
            rest => rest,
        };
        let rows = rows.min(ne1);
        let elements = ne0.min(SAMPLE_ELEMENTS);
        if let Some(known) = self.fingerprints.get(&(ty, elements, rows)) {
            return Ok(*known);
        }
        let refused = || RepackError::NotRepacked { ty, ne0, ne1 };
        let whole = Shape::new(ty, ne0, ne1).ok_or_else(refused)?;
        let shape = Shape::new(ty, elements, rows).ok_or_else(refused)?;
        if self.kernels(&whole).is_none() || self.kernels(&whole) != self.kernels(&shape) {
            return Err(refused());
        }
        let src = sample(shape.bytes);
        let mut dst = vec![0; shape.bytes];
        self.repack(ty, elements, rows, &src, &mut dst)?;
        let hash = *blake3::hash(&dst).as_bytes();
        self.fingerprints.insert((ty, elements, rows), hash);
        Ok(hash)
    }

    /// The address of the kernels that ggml chooses for a slice; `None` if it has none.
    fn kernels(&self, shape: &Shape) -> Option<usize> {
        let arena = Arena::new(1)?;
        let tensor = self.describe(&arena, shape)?;
        // SAFETY: the arena is alive.
        Some(unsafe { (*tensor).extra } as usize)
    }

    /// A tensor of the buffer type, without memory; `None` if ggml does not rearrange it.
    fn describe(&self, arena: &Arena, shape: &Shape) -> Option<*mut Tensor> {
        // SAFETY: the context has room for the description, the shape was checked. The buffer's
        // function for new tensors chooses the kernels by type and shape and looks at no data.
        unsafe {
            let tensor = sys::ggml_new_tensor_2d(arena.0.as_ptr(), shape.ty, shape.ne0, shape.ne1);
            let buffer = self.lender.as_ptr();
            (*tensor).buffer = buffer;
            let status = sys::ggml_backend_buffer_init_tensor(buffer, tensor);
            (status == sys::GGML_STATUS_SUCCESS && !(*tensor).extra.is_null()).then_some(tensor)
        }
    }
}

impl Drop for Repacker {
    fn drop(&mut self) {
        // SAFETY: made in `new`; no tensor of it is left.
        unsafe { sys::ggml_backend_buffer_free(self.lender.as_ptr()) };
    }
}

/// ggml's buffer type for rearranged weights; `None` when the CPU backend has none.
pub(crate) fn buffer_type() -> Option<Buft> {
    type ExtraBufts = unsafe extern "C" fn(Dev) -> *mut Buft;
    let device = cpu()?.device;
    // SAFETY: device and registry are static objects. The function of this name has this type
    // (`ggml-backend.h`), and returns a list that ends with a null pointer, or a null pointer.
    unsafe {
        let address = abi::function(device, c"ggml_backend_dev_get_extra_bufts")?;
        let extra = std::mem::transmute::<*mut std::ffi::c_void, ExtraBufts>(address);
        let mut next = extra(device);
        while !next.is_null() && !(*next).is_null() {
            if CStr::from_ptr(sys::ggml_backend_buft_name(*next)) == BUFFER_TYPE {
                return Some(*next);
            }
            next = next.add(1);
        }
    }
    None
}

/// One slice of weights, as ggml counts it.
#[derive(Debug, Clone, Copy)]
struct Shape {
    ty: u32,
    ne0: i64,
    ne1: i64,
    bytes: usize,
}

impl Shape {
    /// `None` for what is no type or no whole number of blocks.
    fn new(ty: u32, ne0: u64, ne1: u64) -> Option<Shape> {
        if ty >= sys::GGML_TYPE_COUNT || ne0 == 0 || ne1 == 0 {
            return None;
        }
        let (ne0, ne1) = (i64::try_from(ne0).ok()?, i64::try_from(ne1).ok()?);
        // SAFETY: `ty` is one of ggml's types; removed ones have no size.
        let (block, block_bytes) = unsafe { (sys::ggml_blck_size(ty), sys::ggml_type_size(ty)) };
        if block <= 0 || block_bytes == 0 || ne0 % block != 0 {
            return None;
        }
        let row_bytes = usize::try_from(ne0 / block).ok()?.checked_mul(block_bytes)?;
        let bytes = row_bytes.checked_mul(usize::try_from(ne1).ok()?)?;
        Some(Shape { ty, ne0, ne1, bytes })
    }
}

/// A ggml context for descriptions.
struct Arena(NonNull<sys::ggml_context>);

impl Arena {
    fn new(n_tensors: usize) -> Option<Arena> {
        // SAFETY: descriptions only; freed in `Drop`.
        let context = unsafe {
            sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * (n_tensors + 1),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        NonNull::new(context).map(Arena)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        unsafe { sys::ggml_free(self.0.as_ptr()) };
    }
}

/// Bytes that begin at a multiple of [`ALIGNMENT`].
struct Words {
    words: Vec<u64>,
}

impl Words {
    fn new(len: usize) -> Words {
        Words { words: vec![0; len.div_ceil(ALIGNMENT)] }
    }

    fn of(bytes: &[u8]) -> Words {
        let mut words = Words::new(bytes.len());
        for (word, bytes) in words.words.iter_mut().zip(bytes.chunks(ALIGNMENT)) {
            let mut padded = [0; ALIGNMENT];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(padded);
        }
        words
    }

    fn copy_to(&self, bytes: &mut [u8]) {
        for (word, bytes) in self.words.iter().zip(bytes.chunks_mut(ALIGNMENT)) {
            bytes.copy_from_slice(&word.to_ne_bytes()[..bytes.len()]);
        }
    }

    fn as_ptr(&self) -> *const u8 {
        self.words.as_ptr().cast()
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast()
    }
}

/// Pseudo-random bytes that are sound weights of any type: with bit 6 of every byte clear, no
/// half-precision scale among them is infinite or "not a number". They are part of the meaning of
/// fingerprints that are already in files: never to be changed.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + ALIGNMENT);
    while bytes.len() < len {
        // Xorshift (Marsaglia, "Xorshift RNGs", 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend((state & 0xbfbf_bfbf_bfbf_bfbf).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests;
