//! Rows of a token's experts that were not there when their layer was launched early.
//!
//! A token's experts are independent rows until they are weighted and summed. Of a layer that was
//! launched early ([`super::early`]) the rows of what was there are right; each of the others is
//! computed as soon as its expert has arrived, while the next one is copied:
//!
//! ```text
//! copy stream      gate, up, down of 3 | gate, up, down of 9              |
//! compute stream   all rows       | row of 3 | ...         | row of 9     | next router
//! ```
//!
//! Of one token, kernels compute a row of one expert as they do beside rows of others.

use llama_cpp_sys_2 as sys;

use super::super::compute::{Stop, status};
use super::super::graph;
use super::super::passes::{Descriptions, PassScratch};
use super::Walk;
use super::arrivals::Arrived;
use super::assist::{DOWN, GATE, Shared, UP};
use super::launch::launch_nodes;
use crate::abi::{TENSOR_FLAG_COMPUTE, Tensor};

/// What lies between a row's products: where the graph has that, something else may lie by now.
#[derive(Default)]
pub(super) struct Late {
    between: PassScratch,
    /// Reused.
    pub(super) rows: Vec<LateRow>,
}

/// A row whose expert was not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LateRow {
    pub(super) expert: u32,
    pub(super) row: usize,
    /// Where its expert is, or will be.
    pub(super) slot: u32,
}

/// Those of a layer.
pub(super) struct LateRows {
    pub(super) rows: Vec<LateRow>,
    /// The products of the layer, if there are any rows.
    pub(super) whole: Option<Shared>,
}

impl Walk<'_> {
    /// Computes those rows of `layer` that it lacked when it was launched early, behind the copies of
    /// their experts.
    ///
    /// # Safety
    /// As [`super::graph`].
    pub(super) unsafe fn launch_late(&mut self, layer: u32, late: LateRows) -> Result<(), Stop> {
        let LateRows { mut rows, whole } = late;
        // In the order of their arrival; what came otherwise waits for everything.
        rows.sort_by_key(|late| self.stage.arrivals.turn_of(late.expert).unwrap_or(usize::MAX));
        for &late in &rows {
            let Some(whole) = &whole else { break };
            // SAFETY: the caller's promise.
            unsafe {
                if self.stage.arrivals.turn_of(late.expert).is_none() {
                    self.stage.compute_after_copies(self.context);
                }
                self.launch_row(layer, whole, late)?;
            }
        }
        self.stage.late.rows = rows;
        Ok(())
    }

    /// Launches `down(glu(gate x, up x))` of one row, each behind the copies of its weights.
    unsafe fn launch_row(
        &mut self,
        layer: u32,
        whole: &Shared,
        LateRow { expert, row, slot }: LateRow,
    ) -> Result<(), Stop> {
        let lost = || Stop::Internal(format!("layer {layer} has no slots"));
        let front = self.stream.memory.front(self.stage.device).ok_or_else(lost)?;
        let weights = |part| front.part(layer, part).map(|of| of.tensor).ok_or_else(lost);
        // SAFETY: the caller's promise; what is described here lives until it is launched.
        unsafe {
            let down = self.nodes[whole.down];
            let ctx = Descriptions::new()?;
            let c = ctx.as_ptr();
            let x = (*whole.gate).src[1];
            // Nothing that the graph computed is gone through again: it is read as it lies there.
            let leaf = |like: *mut Tensor, n: i64, offset: usize| {
                let leaf = sys::ggml_new_tensor_2d(c, (*like).type_, n, 1);
                (*leaf).buffer = (*like).buffer;
                (*leaf).data = (*like).data.cast::<u8>().add(offset).cast();
                leaf
            };
            let input = leaf(x, (&(*x).ne)[0], 0);
            let numbers = front.numbers().ok_or_else(lost)?;
            if slot as usize >= graph::dim(numbers, 0) {
                return Err(lost());
            }
            let slot = leaf(numbers, 1, 4 * slot as usize);
            let multiply = |part, rows, like: *mut Tensor| {
                let product = sys::ggml_mul_mat_id(c, weights(part)?, rows, slot);
                (*product).op_params = (*like).op_params;
                Ok::<_, Stop>(product)
            };
            let gate = multiply(GATE, input, whole.gate)?;
            let up = multiply(UP, input, whole.up)?;
            let glu = sys::ggml_glu_split(c, gate, up, sys::ggml_get_glu_op(whole.glu));
            (*glu).op_params = (*whole.glu).op_params;
            let product = multiply(DOWN, glu, down)?;
            let place = leaf(down, (&(*down).ne)[0], row * (&(*down).nb)[1]);
            ((*product).buffer, (*product).data) = ((*place).buffer, (*place).data);
            let owners = [gate, up, glu];
            let between = &mut self.stage.late.between;
            if !between.fits(self.context, &owners) {
                sys::ggml_backend_synchronize(self.context.inner);
            }
            between.place(self.context, &owners)?;
            for step in [gate, up, glu, product] {
                (*step).flags |= TENSOR_FLAG_COMPUTE;
            }
            let inner = self.context.inner;
            let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
            sys::ggml_build_forward_expand(small, glu);
            self.stage.wait_for_arrival(inner, expert, Arrived::First);
            status(sys::ggml_backend_graph_compute_async(inner, small))?;
            self.stage.wait_for_arrival(inner, expert, Arrived::Down);
            launch_nodes(self.context, self.graph, &mut [product], 0)
        }
    }
}
