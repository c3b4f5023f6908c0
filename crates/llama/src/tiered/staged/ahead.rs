//! The next layer's router, applied early, without waiting for it.
//!
//! It goes into the compute stream before the experts of the layer at hand, which wait for their
//! copies, or into a stream beside them, if they are launched early. When the walk comes to the next
//! layer, its scores have arrived or are about to, and what they name is copied while the device is still
//! computing what comes before that layer's own router.

use std::collections::HashMap;
use std::ptr::null_mut;

use llama_cpp_sys_2 as sys;

use super::super::StreamKind;
use super::super::compute::{Stop, Use, status};
use super::super::device::BackendContext;
use super::super::group::Stream;
use super::super::passes::{Descriptions, PassScratch};
use super::super::predict::{self, Router, Step};
use super::Walk;
use super::stage::{Pinned, record, wait};
use crate::abi::{Backend, Buffer, Dev, Event, TENSOR_FLAG_COMPUTE, Tensor};

/// Memory for guesses, and what was computed once.
pub(super) struct Ahead {
    scratch: PassScratch,
    scored: Event,
    raw: Pinned,
    /// By layer and later layer: the ratio of their norms' weights, on the device.
    ratios: HashMap<(u32, u32), Ratio>,
    /// Biases of routers, by the address of their tensor.
    biases: HashMap<usize, Vec<f32>>,
    scores: Vec<f32>,
}

/// A vector on the device that stays.
struct Ratio {
    ctx: *mut sys::ggml_context,
    buffer: Buffer,
    tensor: *mut Tensor,
}

/// Scores that are on their way.
pub(super) struct Asked {
    layer: u32,
    raw: *const u8,
    n_experts: usize,
    n_used: usize,
    steps: Vec<Step>,
}

impl Ahead {
    pub(super) fn new(device: Dev) -> Ahead {
        Ahead {
            scratch: PassScratch::default(),
            // SAFETY: a device of ggml's; the event is freed in `Drop`.
            scored: unsafe { sys::ggml_backend_event_new(device) },
            raw: Pinned::new(device),
            ratios: HashMap::new(),
            biases: HashMap::new(),
            scores: Vec::new(),
        }
    }

    /// Recorded behind the scores that were asked for last.
    pub(super) fn scored(&self) -> Event {
        self.scored
    }

    unsafe fn ratio(
        &mut self,
        context: &BackendContext,
        (now, here): (u32, &Router),
        (later, there): (u32, &Router),
    ) -> Option<*mut Tensor> {
        let (Some(from), Some(to)) = (here.norm, there.norm) else { return None };
        if let Some(ratio) = self.ratios.get(&(now, later)) {
            return Some(ratio.tensor);
        }
        // SAFETY: the norms' weights are alive; the new tensor stays until `Drop`.
        unsafe {
            let (mut below, mut above) = (Vec::new(), Vec::new());
            predict::read_f32(context, from, &mut below);
            predict::read_f32(context, to, &mut above);
            let values = predict::ratio_of(&above, &below);
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * 2,
                mem_buffer: null_mut(),
                no_alloc: true,
            });
            if ctx.is_null() {
                return None;
            }
            let n = i64::try_from(values.len()).unwrap_or(0);
            let tensor = sys::ggml_new_tensor_1d(ctx, sys::GGML_TYPE_F32, n);
            let own = sys::ggml_backend_dev_buffer_type(context.device.inner);
            let buffer = sys::ggml_backend_alloc_ctx_tensors_from_buft(ctx, own);
            if buffer.is_null() {
                sys::ggml_free(ctx);
                return None;
            }
            super::super::passes::set(context, tensor, &values);
            self.ratios.insert((now, later), Ratio { ctx, buffer, tensor });
            Some(tensor)
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // SAFETY: made above, freed once.
        unsafe {
            if !self.scored.is_null() {
                sys::ggml_backend_event_free(self.scored);
            }
            for ratio in self.ratios.values() {
                sys::ggml_backend_buffer_free(ratio.buffer);
                sys::ggml_free(ratio.ctx);
            }
        }
    }
}

/// The expert layers of a graph in their order, and their routers.
///
/// # Safety
/// The nodes are alive.
pub(super) unsafe fn routers(nodes: &[*mut Tensor], uses: &[Use]) -> Vec<(u32, Option<Router>)> {
    let mut routers: Vec<(u32, Option<Router>)> = Vec::new();
    for usage in uses {
        if let StreamKind::Experts { layer, .. } = usage.kind
            && routers.last().is_none_or(|(last, _)| *last != layer)
        {
            // SAFETY: the third source of a MUL_MAT_ID of the live graph.
            routers.push((layer, unsafe { Router::of((*nodes[usage.node]).src[2]) }));
        }
    }
    routers
}

impl Walk<'_> {
    /// Applies the next layer's router to what this layer's experts read, if that is wanted, in `stream`.
    ///
    /// # Safety
    /// As [`super::graph`]; `x` is what the experts of `layer` read, and computed before what the stream is
    /// given now.
    pub(super) unsafe fn ask_ahead(
        &mut self,
        layer: u32,
        n_used: usize,
        x: *mut Tensor,
        stream: Backend,
    ) -> Result<(), Stop> {
        self.asked = None;
        if self.stream.residency.look_ahead(1) == 0 {
            return Ok(());
        }
        if self.routers.is_none() {
            // SAFETY: the caller's promise.
            self.routers = Some(unsafe { routers(self.nodes, self.uses) });
        }
        let Some(routers) = &self.routers else { return Ok(()) };
        let Some(at) = routers.iter().position(|(of, _)| *of == layer) else { return Ok(()) };
        let (Some((_, Some(here))), Some((later, Some(there)))) =
            (routers.get(at), routers.get(at + 1))
        else {
            return Ok(());
        };
        // SAFETY: the caller's promise: what is described here lives until it is launched.
        unsafe {
            if !predict::fits(here, there, x) {
                return Ok(());
            }
            let ahead = &mut self.stage.ahead;
            let ratio = ahead.ratio(self.context, (layer, here), (*later, there));
            let ctx = Descriptions::new()?;
            let c = ctx.as_ptr();
            let small = sys::ggml_new_graph_custom(c, Descriptions::NODES, false);
            let mut input = here.input;
            let mut steps = Vec::with_capacity(2);
            if let Some(ratio) = ratio {
                input = sys::ggml_mul(c, input, ratio);
                steps.push(input);
            }
            let product = sys::ggml_mul_mat(c, there.weight, input);
            steps.push(product);
            if !ahead.scratch.fits(self.context, &steps) {
                sys::ggml_backend_synchronize(self.context.inner);
                sys::ggml_backend_synchronize(stream);
            }
            ahead.scratch.place(self.context, &steps)?;
            for step in steps {
                (*step).flags |= TENSOR_FLAG_COMPUTE;
                sys::ggml_graph_add_node(small, step);
            }
            // Those before it may have been computed in another stream.
            wait(stream, ahead.scored);
            status(sys::ggml_backend_graph_compute_async(stream, small.cast()))?;
            let bytes = sys::ggml_nbytes(product);
            ahead.raw.clear();
            let room = ahead.raw.take(bytes);
            let raw = room.ok_or(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED))?;
            sys::ggml_backend_tensor_get_async(stream, product, raw.cast(), 0, bytes);
            record(ahead.scored, stream);
            self.asked = Some(Asked {
                layer: *later,
                raw,
                n_experts: there.n_experts(),
                n_used,
                steps: there.steps.clone(),
            });
            Ok(())
        }
    }

    /// Begins to copy what the scores name that have arrived for `layer`, and notes the arrivals.
    ///
    /// # Safety
    /// As [`super::graph`].
    pub(super) unsafe fn copy_ahead(&mut self, layer: u32) -> Result<(), Stop> {
        self.stage.forget_arrivals();
        let Some(asked) = self.asked.take().filter(|asked| asked.layer == layer) else {
            return Ok(());
        };
        // SAFETY: live backends; the scores were asked for with this many values.
        unsafe {
            let ahead = &mut self.stage.ahead;
            if !ahead.scored.is_null() {
                sys::ggml_backend_event_synchronize(ahead.scored);
            }
            let raw = std::slice::from_raw_parts(asked.raw, asked.n_experts * 4);
            ahead.scores.clear();
            let words = raw.chunks_exact(4);
            ahead.scores.extend(words.map(|w| f32::from_ne_bytes([w[0], w[1], w[2], w[3]])));
            for step in asked.steps.iter().rev() {
                match *step {
                    Step::Sigmoid => {
                        let sigmoid = |x: &mut f32| *x = 1.0 / (1.0 + (-*x).exp());
                        ahead.scores.iter_mut().for_each(sigmoid);
                    }
                    Step::Add(bias) => {
                        let bias = ahead.biases.entry(bias as usize).or_insert_with(|| {
                            let mut values = Vec::new();
                            if (*bias).type_ == sys::GGML_TYPE_F32 {
                                predict::read_f32(self.context, bias, &mut values);
                            }
                            values
                        });
                        if bias.len() == asked.n_experts {
                            ahead.scores.iter_mut().zip(bias).for_each(|(x, b)| *x += *b);
                        }
                    }
                }
            }
            let Stream { memory, residency, .. } = &mut *self.stream;
            residency.predicted(layer, &ahead.scores, asked.n_used);
            let mut copies = std::mem::take(&mut self.stage.copies);
            copies.clear();
            residency.guessed(&mut copies);
            for copy in &copies {
                super::begin(self.stage, self.stage.copier, memory, copy)?;
                self.stage.note_arrival(copy.expert, copy.part);
            }
            if !copies.is_empty() {
                self.stage.end_admission(layer);
            }
            self.stage.copies = copies;
            Ok(())
        }
    }
}
