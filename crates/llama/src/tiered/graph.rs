//! Reading the graph that llama.cpp hands over.

use llama_cpp_sys_2 as sys;

use crate::abi::{Graph, Tensor};

/// The nodes of a graph.
///
/// # Safety
/// The graph is alive and not changed while the slice is used.
pub(super) unsafe fn nodes<'a>(graph: *mut Graph) -> &'a [*mut Tensor] {
    // SAFETY: `n_nodes` entries of `nodes` are set.
    unsafe {
        let n = usize::try_from((*graph).n_nodes).unwrap_or(0);
        if n == 0 { &[] } else { std::slice::from_raw_parts((*graph).nodes, n) }
    }
}

/// Whether a node computes nothing: a view of other data.
pub(super) fn is_view_op(op: sys::ggml_op) -> bool {
    matches!(
        op,
        sys::GGML_OP_NONE
            | sys::GGML_OP_VIEW
            | sys::GGML_OP_RESHAPE
            | sys::GGML_OP_PERMUTE
            | sys::GGML_OP_TRANSPOSE
    )
}

/// The tensor that owns the data of `tensor`: itself, or what it is a view of.
///
/// # Safety
/// `tensor` is alive.
pub(super) unsafe fn base(tensor: *const Tensor) -> *const Tensor {
    // SAFETY: ggml keeps `view_src` pointing at the owner, never at another view.
    unsafe { if (*tensor).view_src.is_null() { tensor } else { (*tensor).view_src } }
}

/// The name of a tensor.
///
/// # Safety
/// `tensor` is alive.
pub(super) unsafe fn name(tensor: *const Tensor) -> String {
    // SAFETY: names are terminated arrays inside the tensor.
    unsafe { std::ffi::CStr::from_ptr((*tensor).name.as_ptr()) }.to_string_lossy().into_owned()
}

/// A dimension as a length.
///
/// # Safety
/// `tensor` is alive.
pub(super) unsafe fn dim(tensor: *const Tensor, i: usize) -> usize {
    // SAFETY: the caller's promise; dimensions are never negative.
    usize::try_from(unsafe { (&(*tensor).ne)[i] }).unwrap_or(0)
}

/// Puts a (possibly strided) table of at most two dimensions, whose bytes are `raw`, into `out`.
///
/// # Safety
/// `tensor` is alive.
pub(super) unsafe fn table(tensor: *const Tensor, raw: &[u8], out: &mut Vec<i32>) {
    out.clear();
    // SAFETY: the caller's promise.
    let (nb, columns, rows) = unsafe { ((*tensor).nb, dim(tensor, 0), dim(tensor, 1)) };
    for row in 0..rows {
        for column in 0..columns {
            let at = row * nb[1] + column * nb[0];
            let word = raw.get(at..at + 4).and_then(|w| <[u8; 4]>::try_from(w).ok());
            out.push(word.map_or(0, i32::from_ne_bytes));
        }
    }
}

/// Gives a table of ids the shape `[n_used, n_tokens]`.
///
/// # Safety
/// `table` is ours, and has room.
pub(super) unsafe fn reshape(table: *mut Tensor, n_used: usize, n_tokens: usize) {
    let len = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    // SAFETY: the caller's promise.
    unsafe {
        (*table).ne = [len(n_used), len(n_tokens), 1, 1];
        let row = 4 * n_used;
        (*table).nb = [4, row, row * n_tokens, row * n_tokens];
    }
}
