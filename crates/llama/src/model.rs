//! A loaded model.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use crate::tiered::Tiered;
use crate::vocab::Vocab;

/// How resident weights lie in memory. The layouts round differently, so text is comparable only
/// within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As in the file.
    Plain,
    /// As the CPU kernels like it best: llama.cpp interleaves rows of some types when it loads
    /// them (`CPU_REPACK`). Streamed weights stay as in the file.
    Fast,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The path can't be passed to C.
    #[error("{0} has a zero byte in its name")]
    Path(PathBuf),
    /// llama.cpp refused the model.
    #[error("llama.cpp can't load this model: {reason}")]
    Refused {
        /// What llama.cpp logged last.
        reason: String,
    },
    /// The loading was cancelled.
    #[error("loading was cancelled")]
    Cancelled,
    /// The linked library does not look as this build expects.
    #[error("the linked llama.cpp is not the pinned one: {0}")]
    Abi(String),
    /// A virtual file could not be served.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// llama.cpp used a streamed tensor in a way that can't be streamed.
    #[error("{} can't be streamed: {}", names.join(", "), "llama.cpp uses them in an operation that needs them resident")]
    Unstreamable {
        /// The tensors' names.
        names: Vec<String>,
    },
    /// Something of ours went wrong.
    #[error("{0}")]
    Internal(String),
}

/// What llama.cpp says of a model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// A one-line description: architecture, size, type.
    pub description: String,
    /// Context length that it was trained for, in tokens.
    pub n_ctx_train: u32,
    /// Width of its embeddings.
    pub n_embd: u32,
    /// Layers.
    pub n_layer: u32,
    /// Tokens that the layers with a sliding window look back; 0 when there are none.
    pub n_swa: u32,
    /// Parameters.
    pub n_params: u64,
    /// Whether its state is one state that changes with each token, and no list of tokens.
    pub is_recurrent: bool,
    /// Whether it has layers of both kinds.
    pub is_hybrid: bool,
    /// Whether it needs an encoder pass first.
    pub has_encoder: bool,
    /// Whether it can generate text.
    pub has_decoder: bool,
}

/// A model in memory. Clones share it; the last one frees it.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    ptr: NonNull<sys::llama_model>,
    /// Freed after the model: its buffers call into the device.
    tiered: Option<Arc<Tiered>>,
}

// SAFETY: llama.cpp's model is immutable after loading.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: contexts hold a clone of the model, so none is left.
        unsafe { sys::llama_model_free(self.ptr.as_ptr()) };
    }
}

impl Model {
    /// # Safety
    /// `ptr` is null or a model that nobody else frees; `tiered` the devices it was loaded on.
    pub(crate) unsafe fn from_raw(
        ptr: *mut sys::llama_model,
        tiered: Option<Arc<Tiered>>,
    ) -> Result<Model, LoadError> {
        let Some(ptr) = NonNull::new(ptr) else {
            let reason = crate::take_log_error().unwrap_or_else(|| "it gave no reason".into());
            return Err(LoadError::Refused { reason: tidy(&reason) });
        };
        Ok(Model { inner: Arc::new(Inner { ptr, tiered }) })
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_model {
        self.inner.ptr.as_ptr()
    }

    /// The tiered devices that serve this model's streamed weights, if it has any.
    pub fn tiered(&self) -> Option<&Arc<Tiered>> {
        self.inner.tiered.as_ref()
    }

    /// What llama.cpp says of it.
    pub fn info(&self) -> ModelInfo {
        let ptr = self.as_ptr();
        let mut text = [0u8; 256];
        // SAFETY: the model is alive; the buffer's length is passed.
        unsafe {
            sys::llama_model_desc(ptr, text.as_mut_ptr().cast::<c_char>(), text.len());
            let count = |n: i32| u32::try_from(n).unwrap_or(0);
            ModelInfo {
                description: CStr::from_bytes_until_nul(&text)
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                n_ctx_train: count(sys::llama_model_n_ctx_train(ptr)),
                n_embd: count(sys::llama_model_n_embd(ptr)),
                n_layer: count(sys::llama_model_n_layer(ptr)),
                n_swa: count(sys::llama_model_n_swa(ptr)),
                n_params: sys::llama_model_n_params(ptr),
                is_recurrent: sys::llama_model_is_recurrent(ptr),
                is_hybrid: sys::llama_model_is_hybrid(ptr),
                has_encoder: sys::llama_model_has_encoder(ptr),
                has_decoder: sys::llama_model_has_decoder(ptr),
            }
        }
    }

    /// The model's vocabulary.
    pub fn vocab(&self) -> Vocab<'_> {
        // SAFETY: the vocabulary belongs to the model, which the result borrows.
        let ptr = unsafe { sys::llama_model_get_vocab(self.as_ptr()) };
        Vocab { ptr, _model: std::marker::PhantomData }
    }

    /// The model's own chat template (Jinja), if it has one.
    pub fn chat_template(&self) -> Option<String> {
        // SAFETY: returns null or a string that lives as long as the model.
        unsafe {
            let text = sys::llama_model_chat_template(self.as_ptr(), std::ptr::null());
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}

/// A callback that is told the progress of a load (0 to 1) and answers whether to go on.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(f32) -> bool;

/// Hands a Rust callback to llama.cpp. The returned pair is valid as long as `slot` is.
pub(crate) fn progress_callback(
    slot: &mut ProgressSlot<'_>,
) -> (sys::llama_progress_callback, *mut c_void) {
    unsafe extern "C" fn call(progress: f32, data: *mut c_void) -> bool {
        // SAFETY: `data` is the slot below, alive during the load.
        let slot = unsafe { &mut *data.cast::<ProgressSlot<'_>>() };
        let call = std::panic::AssertUnwindSafe(|| (slot.callback)(progress));
        let go_on = std::panic::catch_unwind(call).unwrap_or(false);
        slot.cancelled |= !go_on;
        go_on
    }
    (Some(call), std::ptr::from_mut(slot).cast())
}

/// See [`progress_callback`].
pub(crate) struct ProgressSlot<'a> {
    pub(crate) callback: Progress<'a>,
    pub(crate) cancelled: bool,
}

pub(crate) fn c_path(path: &Path) -> Result<CString, LoadError> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| LoadError::Path(path.to_owned()))
}

/// llama.cpp prefixes its messages with the name of a function.
fn tidy(message: &str) -> String {
    let text = message.split_once(": ").map_or(message, |(head, tail)| {
        let is_function = head.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        if is_function { tail } else { message }
    });
    text.trim_start_matches("error loading model: ").trim().to_owned()
}
