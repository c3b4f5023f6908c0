//! Rows of a token's experts that were not there when their layer was launched early.
//!
//! A token's experts are independent rows until they are weighted and summed. Of a layer that was
//! launched early ([`super::early`]) the rows of what was there are right; each of the others is
//! computed as soon as its expert has arrived, while the next one is copied:
//!
//! ```text
//! copy stream      expert 3 | expert 9                        |
//! compute stream   all rows | row of 3 | ...      | row of 9  | next router
//! ```
//!
//! Of one token, kernels compute a row of one expert as they do beside rows of others.

use llama_cpp_sys_2 as sys;

use super::super::compute::{Stop, status};
use super::super::passes::{Descriptions, PassScratch};
use super::Walk;
use super::assist::{DOWN, GATE, Shared, UP};
use super::stage::wait;
use crate::abi::{TENSOR_FLAG_COMPUTE, Tensor};

/// What lies between a row's products: where the graph has that, something else may lie by now.
#[derive(Default)]
pub(super) struct Late {
    between: PassScratch,
}

impl Walk<'_> {
    /// Computes those rows of `layer` that it lacked when it was launched early, behind the copies of
    /// their experts. `whole` are its products, `slots` where the choice's experts are.
    ///
    /// # Safety
    /// As [`super::graph`]; `slots` is written before these copies.
    pub(super) unsafe fn launch_late(
        &mut self,
        layer: u32,
        whole: &Shared,
        slots: *mut Tensor,
    ) -> Result<(), Stop> {
        // In the order of their arrival; what came otherwise waits for everything.
        let arrivals = std::mem::take(&mut self.stage.arrivals);
        let event_of = |expert: u32| arrivals.iter().position(|&(of, _)| of == expert);
        let mut late = std::mem::take(&mut self.stage.early.late);
        late.sort_by_key(|&(expert, _)| event_of(expert).unwrap_or(usize::MAX));
        for &(expert, row) in &late {
            // SAFETY: the caller's promise.
            unsafe {
                match event_of(expert) {
                    Some(at) => wait(self.context.inner, arrivals[at].1),
                    None => self.stage.compute_after_copies(self.context),
                }
                self.launch_row(layer, whole, (slots, row))?;
            }
        }
        self.stage.arrivals = arrivals;
        self.stage.early.late = late;
        Ok(())
    }

    /// Launches `down(glu(gate x, up x))` of one row.
    unsafe fn launch_row(
        &mut self,
        layer: u32,
        whole: &Shared,
        (slots, row): (*mut Tensor, usize),
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
            let slot = leaf(slots, 1, 4 * row);
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
            let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
            sys::ggml_build_forward_expand(small, product);
            for step in [gate, up, glu, product] {
                (*step).flags |= TENSOR_FLAG_COMPUTE;
            }
            status(sys::ggml_backend_graph_compute_async(self.context.inner, small))
        }
    }
}
