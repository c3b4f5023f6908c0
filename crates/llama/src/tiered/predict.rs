//! The next layers' routers, applied early.
//!
//! A router reads the residual stream after a norm. From one layer to the next the stream changes
//! little: what layer `l` feeds to its experts, rescaled from the weights of its norm to those of
//! the norm of layer `l + 1`, and multiplied with the router of layer `l + 1`, names most of the
//! experts that layer will choose, while there is still time to read them. It is a guess, and
//! decides only what is read ahead.

use std::collections::HashMap;

use llama_cpp_sys_2 as sys;

use super::compute::{Stop, compute_and_wait};
use super::device::BackendContext;
use super::graph;
use super::passes::{Descriptions, PassScratch};
use crate::abi::{self, Graph, Tensor};

/// How far from the router's product the choice may be, in nodes.
const STEPS_MAX: usize = 32;

/// The router of one layer, as it stands in the graph.
pub(super) struct Router {
    /// `[n_embd, n_expert]`.
    pub(super) weight: *mut Tensor,
    /// What it is multiplied with, `[n_embd, n_tokens]`.
    pub(super) input: *mut Tensor,
    /// The weights of the norm that made the input, `[n_embd]`, if that is what made it.
    pub(super) norm: Option<*mut Tensor>,
    /// What happens to the product before the choice, last step first.
    pub(super) steps: Vec<Step>,
}

/// A step that may change the order of experts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// A bias per expert.
    Add(*mut Tensor),
    Sigmoid,
}

/// Memory for guesses, and what was computed once.
#[derive(Default)]
pub(super) struct Guesses {
    scratch: PassScratch,
    /// By layer and later layer: the ratio of their norms' weights.
    ratios: HashMap<(u32, u32), Vec<f32>>,
    raw: Vec<f32>,
    scores: Vec<f32>,
}

impl Router {
    /// Finds the router whose choice `ids` is.
    ///
    /// # Safety
    /// `ids` is a node of a live graph.
    pub(super) unsafe fn of(ids: *mut Tensor) -> Option<Router> {
        let mut steps = Vec::new();
        let mut at = ids;
        for _ in 0..STEPS_MAX {
            // SAFETY: sources of live nodes are alive; null is checked.
            unsafe {
                if at.is_null() {
                    return None;
                }
                let [first, second, ..] = (*at).src;
                match (*at).op {
                    sys::GGML_OP_MUL_MAT => {
                        let norm = norm_weights(second);
                        return Some(Router { weight: first, input: second, norm, steps });
                    }
                    sys::GGML_OP_ADD if is_leaf(second) => steps.push(Step::Add(second)),
                    sys::GGML_OP_UNARY
                        if sys::ggml_get_unary_op(at) == sys::GGML_UNARY_OP_SIGMOID =>
                    {
                        steps.push(Step::Sigmoid);
                    }
                    _ => {}
                }
                at = first;
            }
        }
        None
    }

    /// Experts that it chooses among.
    pub(super) fn n_experts(&self) -> usize {
        // SAFETY: a tensor of the live graph that the router was found in.
        unsafe { graph::dim(self.weight, 1) }
    }
}

/// # Safety
/// `tensor` is null or alive.
unsafe fn is_leaf(tensor: *mut Tensor) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        !tensor.is_null() && (*tensor).op == sys::GGML_OP_NONE && (*tensor).view_src.is_null()
    }
}

/// The weights that a norm's result was multiplied with.
///
/// # Safety
/// `input` is null or a node of a live graph.
unsafe fn norm_weights(input: *mut Tensor) -> Option<*mut Tensor> {
    // SAFETY: the caller's promise.
    unsafe {
        if input.is_null() {
            return None;
        }
        let made = graph::base(input);
        let weights = (*made).src[1];
        let fits = (*made).op == sys::GGML_OP_MUL
            && is_leaf(weights)
            && (*weights).type_ == sys::GGML_TYPE_F32
            && sys::ggml_nelements(weights) == (&(*input).ne)[0];
        fits.then_some(weights)
    }
}

impl Guesses {
    /// The scores that the router of layer `later` gives its experts for what layer `now` is about
    /// to compute, `[n_expert, n_tokens]`; of the steps that may follow in the model only those that
    /// change the order are done. Empty if it can't be told.
    ///
    /// # Safety
    /// Everything before the experts of layer `now` is computed, and `x`, the input of its experts,
    /// still holds what the router read.
    pub(super) unsafe fn scores(
        &mut self,
        context: &BackendContext,
        (now, here): (u32, &Router),
        (later, there): (u32, &Router),
        x: *mut Tensor,
    ) -> Result<&[f32], Stop> {
        self.scores.clear();
        let n_experts = there.n_experts();
        // SAFETY: the caller's promise.
        unsafe {
            if !fits(here, there, x) {
                return Ok(&self.scores);
            }
            self.logits(context, (now, here), (later, there))?;
            for step in there.steps.iter().rev() {
                match *step {
                    Step::Sigmoid => {
                        self.scores.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
                    }
                    Step::Add(bias) => {
                        if (*bias).type_ == sys::GGML_TYPE_F32
                            && usize::try_from(sys::ggml_nelements(bias)) == Ok(n_experts)
                        {
                            read_f32(context, bias, &mut self.raw);
                            for token in self.scores.chunks_mut(n_experts) {
                                token.iter_mut().zip(&self.raw).for_each(|(x, b)| *x += b);
                            }
                        }
                    }
                }
            }
        }
        Ok(&self.scores)
    }

    /// Multiplies the input of the layer at hand, rescaled, with the later layer's router.
    unsafe fn logits(
        &mut self,
        context: &BackendContext,
        (now, here): (u32, &Router),
        (later, there): (u32, &Router),
    ) -> Result<(), Stop> {
        // SAFETY: as `scores`; tensors that are made here live until the small graph is done.
        unsafe {
            let n_embd = (&(*here.input).ne)[0];
            if let (Some(from), Some(to)) = (here.norm, there.norm)
                && !self.ratios.contains_key(&(now, later))
            {
                let (mut below, mut above) = (Vec::new(), Vec::new());
                read_f32(context, from, &mut below);
                read_f32(context, to, &mut above);
                self.ratios.insert((now, later), ratio_of(&above, &below));
            }
            let ctx = Descriptions::new()?;
            let c = ctx.as_ptr();
            let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
            let mut input = here.input;
            let mut owners = Vec::with_capacity(3);
            let mut steps = Vec::with_capacity(2);
            let ratio = self.ratios.get(&(now, later));
            let factor = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_F32, n_embd);
            if ratio.is_some() {
                input = sys::ggml_mul(c, input, factor);
                owners.extend([factor, input]);
                steps.push(input);
            }
            let product = sys::ggml_mul_mat(c, there.weight, input);
            owners.push(product);
            steps.push(product);
            self.scratch.place(context, &owners)?;
            if let Some(ratio) = ratio {
                super::passes::set(context, factor, ratio);
            }
            for step in steps {
                (*step).flags |= abi::TENSOR_FLAG_COMPUTE;
                sys::ggml_graph_add_node(small, step);
            }
            compute_and_wait(context, small.cast::<Graph>())?;
            read_f32(context, product, &mut self.scores);
            Ok(())
        }
    }
}

/// Whether what the experts of one layer read is what its router read, and another router can read.
///
/// # Safety
/// `x` and the routers' tensors are alive.
pub(super) unsafe fn fits(here: &Router, there: &Router, x: *mut Tensor) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        graph::base(x) == graph::base(here.input)
            && (*here.input).type_ == sys::GGML_TYPE_F32
            && (&(*here.input).ne)[0] == (&(*there.weight).ne)[0]
            && sys::ggml_is_contiguous(here.input)
            && there.n_experts() > 0
    }
}

/// What an input is to be multiplied with that was scaled by the weights `below` of one norm, to be
/// scaled by those of another.
pub(super) fn ratio_of(above: &[f32], below: &[f32]) -> Vec<f32> {
    let ratio = above.iter().zip(below);
    ratio.map(|(a, b)| if b.abs() > 1e-6 { a / b } else { 0.0 }).collect()
}

/// Reads a contiguous tensor of f32 through the wrapped backend.
pub(super) unsafe fn read_f32(context: &BackendContext, tensor: *mut Tensor, out: &mut Vec<f32>) {
    // SAFETY: the tensor is computed, or a weight; `out` has room for all of it.
    unsafe {
        let n = usize::try_from(sys::ggml_nelements(tensor)).unwrap_or(0);
        out.resize(n, 0.0);
        let target = out.as_mut_ptr().cast();
        sys::ggml_backend_tensor_get_async(context.inner, tensor, target, 0, n * 4);
        sys::ggml_backend_synchronize(context.inner);
    }
}
