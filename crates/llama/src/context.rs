//! A context: the attention state of some sequences, and the computation on them.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use crate::model::Model;
use crate::threads::Threadpool;
use crate::vocab::Token;

/// Whether attention is computed by the fused kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlashAttention {
    /// Where llama.cpp can.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The shape of a context.
#[derive(Debug, Clone)]
pub struct ContextParams {
    /// Cells of attention state, in tokens over all sequences; rounded up to a multiple of 256.
    pub n_ctx: u32,
    /// The most tokens that one [`Context::decode`] takes.
    pub n_batch: u32,
    /// The most tokens that are computed at once (micro-batch).
    pub n_ubatch: u32,
    /// The most sequences.
    pub n_seq_max: u32,
    /// The most outputs (logits) of one micro-batch; 0 is `n_batch`.
    pub n_outputs_max: u32,
    /// The attention kernel.
    pub flash_attention: FlashAttention,
    /// ggml's type of the K cache.
    pub type_k: u32,
    /// ggml's type of the V cache.
    pub type_v: u32,
    /// One pool of cells for all sequences.
    pub kv_unified: bool,
    /// Keep all cells of sliding-window layers.
    pub swa_full: bool,
}

impl Default for ContextParams {
    fn default() -> ContextParams {
        ContextParams {
            n_ctx: 4096,
            n_batch: 512,
            n_ubatch: 512,
            n_seq_max: 1,
            n_outputs_max: 0,
            flash_attention: FlashAttention::Auto,
            type_k: sys::GGML_TYPE_F16,
            type_v: sys::GGML_TYPE_F16,
            kv_unified: true,
            swa_full: false,
        }
    }
}

/// A context could not be made.
#[derive(Debug, Clone, thiserror::Error)]
#[error("llama.cpp can't make a context: {reason}")]
pub struct ContextError {
    /// What llama.cpp logged last.
    pub reason: String,
}

/// Why tokens could not be computed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The context has no room for the batch.
    #[error("the context is full: {n_ctx} tokens")]
    Full {
        /// Its size in tokens.
        n_ctx: u32,
    },
    /// The abort flag was set.
    #[error("the computation was interrupted")]
    Aborted,
    /// Streamed weights could not be made resident.
    #[error("{0}")]
    Residency(String),
    /// llama.cpp gave up.
    #[error("llama.cpp failed to compute (status {status}): {reason}")]
    Failed {
        /// What `llama_decode` returned.
        status: i32,
        /// What llama.cpp logged last.
        reason: String,
    },
}

/// One token of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchToken {
    /// The token.
    pub token: Token,
    /// Its position in the sequence.
    pub pos: i32,
    /// The sequence.
    pub seq: i32,
    /// Whether its logits are wanted.
    pub output: bool,
}

/// Attention state and computation.
pub struct Context {
    /// `None` between [`Context::release`] and [`Context::revive`].
    ptr: Option<NonNull<sys::llama_context>>,
    params: ContextParams,
    batch: sys::llama_batch,
    n_ctx: u32,
    n_batch: usize,
    n_ubatch: usize,
    n_outputs_max: usize,
    n_vocab: usize,
    abort: Arc<AtomicBool>,
    /// Dropped after the context.
    threads: Arc<Threadpool>,
    model: Model,
}

// SAFETY: a context has no ties to a thread and is used through `&mut`.
unsafe impl Send for Context {}

impl Context {
    /// Makes a context on `model` that computes with `threads`.
    ///
    /// # Errors
    /// When llama.cpp refuses the parameters or memory runs out.
    pub fn new(
        model: &Model,
        params: &ContextParams,
        threads: &Arc<Threadpool>,
    ) -> Result<Context, ContextError> {
        let abort = Arc::new(AtomicBool::new(false));
        let ptr = make(model, params, threads, &abort)?;
        // SAFETY: the context is alive; allocates arrays for `n_batch` tokens of one sequence each.
        let (n_ctx, n_batch, n_ubatch, batch) = unsafe {
            let n_batch = sys::llama_n_batch(ptr.as_ptr());
            (
                sys::llama_n_ctx(ptr.as_ptr()),
                n_batch,
                sys::llama_n_ubatch(ptr.as_ptr()),
                sys::llama_batch_init(i32::try_from(n_batch).unwrap_or(i32::MAX), 0, 1),
            )
        };
        let n_outputs_max = if params.n_outputs_max == 0 { n_batch } else { params.n_outputs_max };
        Ok(Context {
            ptr: Some(ptr),
            params: params.clone(),
            batch,
            n_ctx,
            n_batch: n_batch as usize,
            n_ubatch: n_ubatch as usize,
            n_outputs_max: n_outputs_max as usize,
            n_vocab: model.vocab().n_tokens(),
            abort,
            threads: Arc::clone(threads),
            model: model.clone(),
        })
    }

    /// Gives the memory of attention state and compute buffers back. Everything is forgotten, and
    /// nothing but [`Context::revive`] may follow.
    pub fn release(&mut self) {
        let Some(ptr) = self.ptr.take() else { return };
        // SAFETY: made in `make`, and freed once.
        unsafe { sys::llama_free(ptr.as_ptr()) };
        if let Some(tiered) = self.model.tiered() {
            tiered.detach_threads();
        }
    }

    /// Whether it was released.
    pub fn is_released(&self) -> bool {
        self.ptr.is_none()
    }

    /// Makes a released context usable again, as it was when it was new.
    ///
    /// # Errors
    /// As [`Context::new`]; it stays released then.
    pub fn revive(&mut self) -> Result<(), ContextError> {
        if self.ptr.is_none() {
            self.ptr = Some(make(&self.model, &self.params, &self.threads, &self.abort)?);
        }
        Ok(())
    }

    pub(crate) fn raw(&self) -> *mut sys::llama_context {
        self.ptr.expect("a released context is revived before it is used").as_ptr()
    }

    pub(crate) fn as_ptr(&mut self) -> *mut sys::llama_context {
        self.raw()
    }

    /// The model that it computes.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What it was made with.
    pub fn params(&self) -> &ContextParams {
        &self.params
    }

    /// Cells in tokens, as rounded by llama.cpp.
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    /// The most tokens that are computed at once.
    pub fn n_ubatch(&self) -> usize {
        self.n_ubatch
    }

    /// The most tokens of one [`Context::decode`].
    pub fn n_batch(&self) -> usize {
        self.n_batch
    }

    /// While this flag is set, computations end with [`DecodeError::Aborted`].
    pub fn abort_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.abort)
    }

    /// Computes a batch and adds it to the attention state.
    ///
    /// # Errors
    /// On an error the state is as before the call, as far as llama.cpp can restore it: recurrent
    /// models can't go back, so their sequence is to be computed anew.
    ///
    /// # Panics
    /// When the batch is longer than `n_batch`, or wants more outputs than the context was made for.
    pub fn decode(&mut self, tokens: &[BatchToken]) -> Result<(), DecodeError> {
        assert!(tokens.len() <= self.n_batch, "a batch of {} tokens", tokens.len());
        if tokens.is_empty() {
            return Ok(());
        }
        let outputs = tokens.iter().filter(|t| t.output).count();
        assert!(outputs <= self.n_outputs_max, "{outputs} outputs of one batch");
        crate::take_log_error();
        let busy = self.threads.claim();
        // SAFETY: the batch's arrays have room for `n_batch` tokens.
        let status = unsafe {
            for (i, t) in tokens.iter().enumerate() {
                *self.batch.token.add(i) = t.token;
                *self.batch.pos.add(i) = t.pos;
                *self.batch.n_seq_id.add(i) = 1;
                **self.batch.seq_id.add(i) = t.seq;
                *self.batch.logits.add(i) = i8::from(t.output);
            }
            self.batch.n_tokens = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
            let status = sys::llama_decode(self.raw(), self.batch);
            if status == 0 {
                sys::llama_synchronize(self.raw());
            }
            status
        };
        drop(busy);
        let residency = self.model.tiered().and_then(|tiered| tiered.take_error());
        match (status, residency) {
            (0, None) => Ok(()),
            (_, Some(error)) => Err(error),
            (1, None) => Err(DecodeError::Full { n_ctx: self.n_ctx() }),
            (2, None) => Err(DecodeError::Aborted),
            (status, None) if self.abort.load(Ordering::Relaxed) => {
                tracing::debug!(status, "aborted");
                Err(DecodeError::Aborted)
            }
            (status, None) => {
                let reason = crate::take_log_error().unwrap_or_else(|| "no reason given".into());
                Err(DecodeError::Failed { status, reason })
            }
        }
    }

    /// The logits of the `i`-th token of the last batch (-1: of its last output): one per token
    /// of the vocabulary. `None` when it had no output.
    pub fn logits(&mut self, i: i32) -> Option<&[f32]> {
        // SAFETY: llama.cpp returns null or a row of `n_vocab` values, valid until the next call
        // that needs `&mut self`.
        unsafe {
            let row = sys::llama_get_logits_ith(self.raw(), i);
            (!row.is_null()).then(|| std::slice::from_raw_parts(row, self.n_vocab))
        }
    }

    /// Leaves out of the choice what `change` takes out of it: it is given the logits of the `i`-th
    /// token of the last batch, to be changed in place. False when that token had no output.
    pub fn change_logits(&mut self, i: i32, change: impl FnOnce(&mut [f32])) -> bool {
        // SAFETY: llama.cpp returns null or a row of `n_vocab` values of its own buffer, which
        // nobody else uses while `&mut self` lasts.
        let row = unsafe {
            let row = sys::llama_get_logits_ith(self.raw(), i);
            (!row.is_null()).then(|| std::slice::from_raw_parts_mut(row, self.n_vocab))
        };
        row.map(change).is_some()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.raw()), true) };
    }

    /// Forgets positions `from..to` of a sequence (-1: open end). False when the model's state
    /// can't be cut there.
    pub fn forget(&mut self, seq: i32, from: i32, to: i32) -> bool {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.raw()), seq, from, to) }
    }
}

impl Context {
    /// The smallest position of a sequence whose attention state is still there: layers with a
    /// sliding window forget. -1 when there is none.
    pub fn first_position(&self, seq: i32) -> i32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_seq_pos_min(sys::llama_get_memory(self.raw()), seq) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and freed once.
        unsafe { sys::llama_batch_free(self.batch) };
        self.release();
    }
}

/// A context of llama.cpp. The flag, the threads and the model have to outlive it.
fn make(
    model: &Model,
    params: &ContextParams,
    threads: &Arc<Threadpool>,
    abort: &Arc<AtomicBool>,
) -> Result<NonNull<sys::llama_context>, ContextError> {
    if let Some(tiered) = model.tiered()
        && !tiered.attach_threads(threads)
    {
        let reason = "a streamed model has one context at a time".into();
        return Err(ContextError { reason });
    }
    crate::take_log_error();
    // SAFETY: flag, threads and model outlive the context, by the callers' promise.
    let ptr = unsafe {
        let mut p = sys::llama_context_default_params();
        p.n_ctx = params.n_ctx;
        p.n_batch = params.n_batch;
        p.n_ubatch = params.n_ubatch;
        p.n_seq_max = params.n_seq_max;
        p.n_outputs_max = params.n_outputs_max;
        p.n_threads = threads.n_threads();
        p.n_threads_batch = threads.n_threads();
        p.flash_attn_type = match params.flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        p.type_k = params.type_k;
        p.type_v = params.type_v;
        p.kv_unified = params.kv_unified;
        p.swa_full = params.swa_full;
        p.no_perf = true;
        p.abort_callback = Some(should_abort);
        p.abort_callback_data = Arc::as_ptr(abort).cast_mut().cast::<c_void>();
        let ptr = sys::llama_init_from_model(model.as_ptr(), p);
        let Some(ptr) = NonNull::new(ptr) else {
            let reason = crate::take_log_error().unwrap_or_else(|| "no reason given".into());
            if let Some(tiered) = model.tiered() {
                tiered.detach_threads();
            }
            return Err(ContextError { reason });
        };
        sys::llama_attach_threadpool(ptr.as_ptr(), threads.as_ptr(), threads.as_ptr());
        ptr
    };
    if let Some(tiered) = model.tiered() {
        tiered.set_abort_flag(abort);
    }
    Ok(ptr)
}

unsafe extern "C" fn should_abort(data: *mut c_void) -> bool {
    // SAFETY: `data` is the flag of the context, which outlives it.
    unsafe { &*data.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}
