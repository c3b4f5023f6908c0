//! Loading a model onto the tiered device.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::sync::Arc;

use hypura_gguf as gguf;
use hypura_io as io;
use llama_cpp_sys_2 as sys;

use super::StreamedTensor;
use super::group::Tiered;
use crate::abi::{Buft, Dev};
use crate::cookie::Stream;
use crate::gpu::{Gpu, Split};
use crate::model::{self, Layout, LoadError, Model, Progress, ProgressSlot};
use crate::virtual_gguf::{ServeCounts, VirtualGguf};

/// What to load, and how.
pub struct TieredParams<'a> {
    /// The model's description.
    pub model: &'a gguf::Model,
    /// Where its tensors really lie, if it is the view of a hot file.
    pub hot: Option<&'a gguf::hot::HotModel>,
    /// Its files, in the order of [`gguf::Model::files`].
    pub files: Vec<Arc<io::File>>,
    /// Reads the resident tensors.
    pub reader: Box<dyn io::ReadEngine>,
    /// The tensors that are not to be loaded.
    pub streamed: &'a [StreamedTensor],
    /// The layout of resident weights; on a GPU it is that of the file.
    pub layout: Layout,
    /// The GPUs that compute, if any do.
    pub gpus: &'a [Gpu],
    /// Which layers each of them has.
    pub split: &'a Split,
    /// Whether the CPU may compute experts that lie in host memory, beside the GPU.
    pub cpu_assists: bool,
    /// Told how far it is; answers whether to go on.
    pub progress: Progress<'a>,
}

/// What loading did.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadStats {
    /// Bytes of resident tensors that were read.
    pub resident_bytes_read: u64,
    /// Bytes of streamed tensors that were read: 0, or the trick has failed.
    pub streamed_bytes_read: u64,
    /// Streamed tensors that were skipped.
    pub streamed_tensors: usize,
}

/// Loads the resident tensors of a model; the streamed ones get addresses and no memory.
///
/// # Errors
/// When llama.cpp refuses the model, a read fails, or the loader's assumptions about llama.cpp's
/// internals do not hold.
pub fn load(params: TieredParams<'_>) -> Result<(Model, LoadStats), LoadError> {
    let tiered =
        Tiered::new(params.streamed, params.gpus, params.cpu_assists).map_err(LoadError::Abi)?;
    let last = tiered.devices().len() - 1;
    let skip: HashSet<&str> = params.streamed.iter().map(|t| t.name.as_str()).collect();
    let (file, counts) =
        VirtualGguf::new((params.model, params.hot), params.files, params.reader, |name| {
            skip.contains(name)
        })?;
    let mut stream = Stream::open(Box::new(file))?;

    let repacked = patterns(resident_repacked(params.model, params.hot, &skip));
    let with = |patterns: Vec<String>, buft: Buft| {
        let pattern = |pattern| Some((CString::new(pattern).ok()?, buft));
        patterns.into_iter().filter_map(pattern).collect::<Vec<_>>()
    };
    let mut types = Vec::new();
    for device in tiered.devices() {
        let names = params.streamed.iter().map(|t| t.name.as_str());
        let own = names.filter(|name| params.split.device_of(name).min(last) == device.index);
        types.extend(with(patterns(own), device.streamed_type()));
    }
    types.extend(with(repacked, tiered.devices()[last].repacked_type()));
    let mut overrides: Vec<sys::llama_model_tensor_buft_override> = types
        .iter()
        .map(|(pattern, buft)| sys::llama_model_tensor_buft_override {
            pattern: pattern.as_ptr(),
            buft: *buft,
        })
        .collect();
    let is_repacking = params.layout == Layout::Fast && params.gpus.is_empty();
    if is_repacking {
        // llama.cpp considers repacking only for tensors that are overridden to the CPU's type.
        overrides.push(sys::llama_model_tensor_buft_override {
            pattern: c".*".as_ptr(),
            // SAFETY: a static object.
            buft: unsafe { sys::ggml_backend_cpu_buffer_type() },
        });
    }
    overrides.push(sys::llama_model_tensor_buft_override {
        pattern: std::ptr::null(),
        buft: std::ptr::null_mut(),
    });

    crate::take_log_error();
    let mut slot = ProgressSlot { callback: params.progress, cancelled: false };
    let mut devices: Vec<Dev> = tiered.devices().iter().map(|device| device.dev()).collect();
    devices.push(std::ptr::null_mut());
    let shares = params.split.shares();
    // SAFETY: all that the parameters point to outlives the call; the device is kept by the model.
    let model = unsafe {
        let mut p = sys::llama_model_default_params();
        p.devices = devices.as_mut_ptr();
        p.tensor_split = shares.as_ptr();
        p.n_gpu_layers = i32::MAX / 2;
        p.tensor_buft_overrides = overrides.as_ptr();
        p.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        p.lazy_mode = sys::LLAMA_LAZY_MODE_OFF;
        p.use_extra_bufts = is_repacking;
        p.check_tensors = false;
        (p.progress_callback, p.progress_callback_user_data) = model::progress_callback(&mut slot);
        let ptr = sys::llama_model_load_from_file_ptr(stream.as_ptr().cast(), p);
        Model::from_raw(ptr, Some(Arc::clone(&tiered)))
    };
    if let Some(error) = stream.take_error() {
        return Err(LoadError::Io(error));
    }
    if slot.cancelled {
        return Err(LoadError::Cancelled);
    }
    let model = model?;
    tiered.finish_loading();
    let stats = check(&tiered, params.model, params.streamed, &counts)?;
    Ok((model, stats))
}

/// The tensors that stay in memory and come rearranged.
fn resident_repacked<'a>(
    model: &'a gguf::Model,
    hot: Option<&gguf::hot::HotModel>,
    streamed: &HashSet<&str>,
) -> impl Iterator<Item = &'a str> {
    model.tensors.iter().enumerate().filter_map(move |(index, tensor)| {
        let place = hot?.place(index)?;
        let is_ours = place.layout.is_repacked() && !streamed.contains(tensor.name.as_str());
        is_ours.then_some(tensor.name.as_str())
    })
}

/// The loading rests on how llama.cpp reads: asserted here, each time.
fn check(
    tiered: &Tiered,
    model: &gguf::Model,
    streamed: &[StreamedTensor],
    counts: &Arc<ServeCounts>,
) -> Result<LoadStats, LoadError> {
    let served = counts.get(model);
    let names = tiered.not_created(streamed);
    if !names.is_empty() {
        return Err(LoadError::Unstreamable { names });
    }
    if let Some(tensor) = served.partial.and_then(|i| model.tensors.get(i)) {
        return Err(LoadError::Internal(format!(
            "internal error: llama.cpp read only a part of {}",
            tensor.name
        )));
    }
    if served.streamed_bytes > 0 || served.skips < streamed.len() as u64 {
        tracing::warn!(
            bytes = served.streamed_bytes,
            skips = served.skips,
            "streamed tensors were read while loading: loading is slower than it should be"
        );
    }
    Ok(LoadStats {
        resident_bytes_read: served.resident_bytes,
        streamed_bytes_read: served.streamed_bytes,
        streamed_tensors: streamed.len(),
    })
}

/// Anchored regular expressions that match exactly these tensor names.
///
/// llama.cpp compiles each pattern anew for each tensor, so few patterns are better than many:
/// names `blk.N.SUFFIX` are gathered by suffix.
fn patterns<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut by_suffix: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut single = Vec::new();
    for name in names {
        let parts = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        match parts {
            Some((layer, suffix)) if layer.bytes().all(|b| b.is_ascii_digit()) => {
                by_suffix.entry(suffix).or_default().push(layer);
            }
            _ => single.push(name),
        }
    }
    let mut by_layers: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
    for (suffix, layers) in by_suffix {
        by_layers.entry(layers).or_default().push(suffix);
    }
    let any = |names: &[&str]| names.iter().map(|n| escape(n)).collect::<Vec<_>>().join("|");
    let mut patterns: Vec<String> = by_layers
        .iter()
        .map(|(layers, suffixes)| format!(r"^blk\.({})\.({})$", layers.join("|"), any(suffixes)))
        .collect();
    if !single.is_empty() {
        patterns.push(format!("^({})$", any(&single)));
    }
    patterns
}

fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() && c != '_' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::patterns;

    #[test]
    fn patterns_gather_layers() {
        let names = [
            "blk.0.ffn_up_exps.weight",
            "blk.0.ffn_down_exps.weight",
            "blk.1.ffn_up_exps.weight",
            "blk.1.ffn_down_exps.weight",
            "blk.2.ffn_up.weight",
            "token_embd.weight",
        ];
        let expected = [
            r"^blk\.(0|1)\.(ffn_down_exps\.weight|ffn_up_exps\.weight)$",
            r"^blk\.(2)\.(ffn_up\.weight)$",
            r"^(token_embd\.weight)$",
        ];
        assert_eq!(patterns(names.into_iter()), expected);
    }
}
