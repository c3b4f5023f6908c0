//! Reading the graph that llama.cpp hands over.

use llama_cpp_sys_2 as sys;

use crate::abi::{Graph, TENSOR_FLAG_COMPUTE, Tensor};

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

/// Whether a node is computed: it is no view, and not on a way that was not chosen.
///
/// # Safety
/// `node` is alive.
pub(super) unsafe fn is_computed(node: *const Tensor) -> bool {
    // SAFETY: the caller's promise.
    unsafe { !is_view_op((*node).op) && (*node).flags & TENSOR_FLAG_COMPUTE != 0 }
}

/// What nodes read that none of them is.
///
/// # Safety
/// Nodes of a live graph.
pub(super) unsafe fn read_from_outside(nodes: &[*mut Tensor]) -> Vec<*mut Tensor> {
    // SAFETY: the caller's promise.
    let is_outside = |source: &*mut Tensor| unsafe {
        !source.is_null() && !nodes.iter().any(|&node| node.cast_const() == base(*source))
    };
    // SAFETY: as above.
    nodes.iter().flat_map(|&node| unsafe { (*node).src }).filter(is_outside).collect()
}

/// Whether what nodes compute lies where one of `read` does.
///
/// # Safety
/// Nodes of a live graph, which have memory, as `read` has.
pub(super) unsafe fn write_over(nodes: &[*mut Tensor], read: &[*mut Tensor]) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let span = |tensor: *mut Tensor| {
            let start = (*tensor).data as usize;
            start..start + sys::ggml_nbytes(tensor)
        };
        let mut written = nodes.iter().filter(|node| is_computed(**node)).map(|&node| span(node));
        written.any(|w| read.iter().any(|&r| span(r).start < w.end && w.start < span(r).end))
    }
}

/// Moves the products of shared experts ahead, behind what gates the routed ones: so does CUDA's
/// `graph_optimize`, which computes both at once. Between the products of a layer is then something
/// else than the gate.
///
/// # Safety
/// The graph is alive, and no memory was given to its nodes yet.
pub(super) unsafe fn move_shared_experts(graph: *mut Graph) {
    use sys::{GGML_OP_GLU, GGML_OP_MUL_MAT, GGML_OP_MUL_MAT_ID, GGML_OP_RESHAPE};
    // SAFETY: the caller's promise; whatever moves reads the input of the routed experts, and weights.
    unsafe {
        let n = usize::try_from((*graph).n_nodes).unwrap_or(0);
        if n == 0 {
            return;
        }
        let nodes = std::slice::from_raw_parts_mut((*graph).nodes, n);
        let is_gated = |nodes: &[*mut Tensor], i: usize, op: sys::ggml_op| {
            let three = [nodes[i], nodes[i + 1], nodes[i + 2]];
            three.map(|node| (*node).op) == [op, op, GGML_OP_GLU]
                && three[..2].iter().all(|product| (&(*three[2]).src)[..2].contains(product))
        };
        for i in 0..n.saturating_sub(5) {
            let input = (*nodes[i]).src[1];
            if !is_gated(nodes, i, GGML_OP_MUL_MAT_ID) || (*input).op != GGML_OP_RESHAPE {
                continue;
            }
            let is_shared = |&j: &usize| {
                is_gated(nodes, j, GGML_OP_MUL_MAT)
                    && nodes[j..j + 2].iter().all(|&product| (*product).src[1] == (*input).src[0])
            };
            if let Some(j) = (i + 3..n - 2).find(is_shared) {
                nodes[i + 3..j + 3].rotate_right(3);
            }
        }
    }
}
