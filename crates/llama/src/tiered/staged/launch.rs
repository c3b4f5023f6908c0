//! Putting parts of a graph into the compute stream.

use llama_cpp_sys_2 as sys;

use super::super::compute::{Stop, status};
use super::super::device::BackendContext;
use super::super::graph;
use crate::abi::{self, Graph, Tensor};

/// Puts nodes `from..to` into the compute stream. `is_stable` if they read the same addresses each
/// time.
///
/// # Safety
/// As [`super::graph`].
pub(super) unsafe fn launch(
    context: &BackendContext,
    graph: *mut Graph,
    (from, to): (usize, usize),
    is_stable: bool,
) -> Result<(), Stop> {
    // SAFETY: the caller's promise; the range lies within the graph.
    unsafe {
        let nodes = graph::nodes(graph);
        if nodes[from..to].iter().all(|node| graph::is_view_op((**node).op)) {
            return Ok(());
        }
        let index = |i| std::ffi::c_int::try_from(i).unwrap_or(std::ffi::c_int::MAX);
        let mut view = abi::ggml_graph_view(graph, index(from), index(to));
        // So that the backend knows a part of a graph again without comparing its nodes, where what
        // we put in place of its sources is the same each time.
        if (*graph).uid != 0 && is_stable {
            view.uid = part_uid((*graph).uid, from, to);
        }
        status(sys::ggml_backend_graph_compute_async(context.inner, (&raw mut view).cast()))
    }
}

/// Names a part of a graph: the finaliser of `SplitMix64` (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", 2014) over the graph's name and the range. Never 0.
pub(super) fn part_uid(graph: u64, from: usize, to: usize) -> u64 {
    let mut z = graph.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((from as u64) << 32 | to as u64);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // Graphs of llama.cpp count from 1: they never have the top bit.
    (z ^ (z >> 31)) | 1 << 63
}

/// Puts nodes into the compute stream that need not follow each other in `graph`, nor be its own.
/// `uid` names them if they read the same addresses each time; else it is 0.
///
/// # Safety
/// As [`super::graph`]; the nodes have memory.
pub(super) unsafe fn launch_nodes(
    context: &BackendContext,
    graph: *mut Graph,
    nodes: &mut [*mut Tensor],
    uid: u64,
) -> Result<(), Stop> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut view = abi::ggml_graph_view(graph, 0, 0);
        view.nodes = nodes.as_mut_ptr();
        view.n_nodes = std::ffi::c_int::try_from(nodes.len()).unwrap_or(0);
        view.uid = uid;
        status(sys::ggml_backend_graph_compute_async(context.inner, (&raw mut view).cast()))
    }
}
