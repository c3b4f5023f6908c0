//! What a user may say of the tiers of attention state, and what follows from it for a model.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypura_gguf as gguf;
use hypura_kv::{Disk, ScopeFields};
use hypura_llama as llama;
use hypura_plan::{self as plan, KvType};

use crate::options::{LoadOptions, ReaderFactory};

/// Tokens of a block at most.
const BLOCK_TOKENS_MAX: u64 = 256;
/// Bytes of a block at most, as long as it holds a token. Each block that is under way is memory
/// that weights could have, and drives reach their bandwidth with less.
const BLOCK_BYTES_MAX: u64 = 5 << 19;
/// The same where a GPU with memory of its own holds the context: llama.cpp copies each layer's part of
/// a block by itself, and waits for it.
const GPU_BLOCK_BYTES_MAX: u64 = 16 << 20;
/// Blocks that wait to be written, or are being read, at most.
pub(crate) const BLOCKS_UNDER_WAY: u64 = 4;

/// Where attention state is kept beside the context: what was computed once is read back.
#[derive(Clone)]
pub struct KvOptions {
    /// The folder of the cold tier; `None` keeps blocks in memory only.
    pub cold_dir: Option<PathBuf>,
    /// Bytes of all files in it, at most.
    pub cold_bytes_max: u64,
    /// Bytes that are written to it per day, at most.
    pub cold_writes_per_day_max: u64,
    /// What of an idle conversation stays in memory; `None`: all of it, in the context.
    pub hot: Option<HotLimit>,
    /// A conversation is idle when nobody has asked anything for this long.
    pub idle: Duration,
    /// Tokens of a block; `None` is what suits the model, at most 256.
    pub block_tokens: Option<u32>,
    /// Whose state it is.
    pub tenant: String,
    /// Where fingerprints of models are kept; `None` reads each model anew.
    pub fingerprint_dir: Option<PathBuf>,
    /// Restore whatever is known, even where computing it would be faster.
    pub always_restore: bool,
    /// Reads blocks; `None` is a pool of threads. Tests put a faulty one here.
    pub reader: Option<ReaderFactory>,
    /// Writes blocks; `None` is the file system. Likewise.
    pub disk: Option<Arc<dyn Disk>>,
}

impl Default for KvOptions {
    /// 8 GiB of files, 64 GiB of writes per day, but no folder.
    fn default() -> KvOptions {
        KvOptions {
            cold_dir: None,
            cold_bytes_max: 8 << 30,
            cold_writes_per_day_max: 64 << 30,
            hot: None,
            idle: Duration::from_secs(3),
            block_tokens: None,
            tenant: String::new(),
            fingerprint_dir: None,
            always_restore: false,
            reader: None,
            disk: None,
        }
    }
}

impl KvOptions {
    /// Whether there is a tier at all.
    pub(crate) fn keeps_something(&self) -> bool {
        self.cold_dir.is_some() || self.hot.is_some()
    }
}

/// A limit of the hot tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HotLimit {
    /// In tokens.
    Tokens(u64),
    /// In bytes.
    Bytes(u64),
}

/// Sizes of blocks for a model, and what they take of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) block_tokens: usize,
    pub(crate) token_bytes: u64,
    /// Bytes of a block, about.
    pub(crate) block_bytes: u64,
    /// Bytes of a checkpoint; 0 if the model needs none.
    pub(crate) checkpoint_bytes: u64,
    /// Bytes of the hot tier.
    pub(crate) hot_bytes: u64,
}

impl Sizes {
    /// `has_copies` if a GPU with memory of its own holds the context.
    pub(crate) fn of(
        model: &gguf::Model,
        options: &LoadOptions,
        kv: &KvOptions,
        has_copies: bool,
    ) -> Sizes {
        let hparams = model.hparams();
        let request = plan::Request {
            kv_type_k: options.kv_type_k,
            kv_type_v: options.kv_type_v,
            ..plan::Request::default()
        };
        let token_bytes = plan::kv::token_bytes(&hparams, &request).max(1);
        // What a window has moved past is not written: a block has to lie within one. Powers of two
        // divide the chunks of models that have chunks for windows.
        let window = hparams.sliding_window.map_or(u64::MAX, |window| u64::from(window).max(1));
        let bytes_max = if has_copies { GPU_BLOCK_BYTES_MAX } else { BLOCK_BYTES_MAX };
        let fitting = (bytes_max / token_bytes).clamp(1, BLOCK_TOKENS_MAX);
        let wanted = kv.block_tokens.map_or(fitting, |n| u64::from(n).clamp(1, BLOCK_TOKENS_MAX));
        let block_tokens = 1_u64 << wanted.min(window).ilog2();
        // Positions, headers and the like.
        let overhead = 64 * block_tokens + (8 << 10);
        let hot_bytes = match kv.hot {
            None => 0,
            Some(HotLimit::Bytes(bytes)) => bytes,
            Some(HotLimit::Tokens(tokens)) => tokens.saturating_mul(token_bytes + 64),
        };
        Sizes {
            block_tokens: usize::try_from(block_tokens).unwrap_or(1),
            token_bytes,
            block_bytes: block_tokens * token_bytes + overhead,
            checkpoint_bytes: plan::kv::checkpoint_bytes(&hparams),
            hot_bytes,
        }
    }

    /// What blocks take of memory, beside the context.
    pub(crate) fn memory_bytes(&self) -> u64 {
        // A checkpoint is copied once when it is taken, and read into one buffer.
        self.under_way_bytes() + self.checkpoint_bytes + self.hot_bytes
    }

    /// Bytes that wait to be written at most.
    pub(crate) fn under_way_bytes(&self) -> u64 {
        (BLOCKS_UNDER_WAY * self.block_bytes).max(self.checkpoint_bytes)
    }
}

/// Everything but tokens that the state depends on.
pub(crate) fn scope_fields(
    model: &gguf::Model,
    fingerprint: String,
    options: &LoadOptions,
    gpus: &[llama::Gpu],
    n_ctx: u32,
    tenant: &str,
) -> ScopeFields {
    let layout = match options.layout {
        llama::Layout::Fast if gpus.is_empty() => "fast",
        _ => "plain",
    };
    ScopeFields {
        model: fingerprint,
        type_k: kv_type_name(options.kv_type_k).to_owned(),
        type_v: kv_type_name(options.kv_type_v).to_owned(),
        // llama.cpp's own switch, read where the cache is made.
        rotation: std::env::var("LLAMA_ATTN_ROT_DISABLE").unwrap_or_default(),
        flash_attention: format!("{:?}", options.flash_attention).to_lowercase(),
        positions: positions(model, n_ctx),
        adapters: String::new(),
        library: format!("llama.cpp {}", llama::version()),
        backend: backend(gpus, options.cpu_assists),
        layout: layout.to_owned(),
        tenant: tenant.to_owned(),
    }
}

/// What computes. GPUs of one kind count once: which layer is on which of them changes nothing.
fn backend(gpus: &[llama::Gpu], cpu_assists: bool) -> String {
    let name = |gpu: &llama::Gpu| {
        let kind = gpu.name.trim_end_matches(|c: char| c.is_ascii_digit());
        format!("{kind} {}", gpu.description)
    };
    let mut names: Vec<String> = gpus.iter().map(name).collect();
    names.dedup();
    match names.join(", ") {
        none if none.is_empty() => "CPU".to_owned(),
        // Experts that the CPU computes round otherwise.
        names if cpu_assists => format!("{names} and CPU"),
        names => names,
    }
}

/// Models with two sets of factors for position encoding take one or the other by the length of the
/// context (`llama_model::get_rope_factors` in `llama-model.cpp`).
fn positions(model: &gguf::Model, n_ctx: u32) -> String {
    if !model.tensors.iter().any(|tensor| tensor.name.contains("rope_factors_long")) {
        return String::new();
    }
    let architecture = model.metadata.str("general.architecture").unwrap_or_default();
    let key = format!("{architecture}.rope.scaling.original_context_length");
    match model.metadata.u64(&key) {
        Some(original) if u64::from(n_ctx) <= original => "short".to_owned(),
        _ => "long".to_owned(),
    }
}

/// The name of a type of keys or values.
pub fn kv_type_name(ty: KvType) -> &'static str {
    match ty {
        KvType::F16 => "f16",
        KvType::Q8_0 => "q8_0",
        KvType::Q4_0 => "q4_0",
    }
}

#[cfg(test)]
mod tests {
    use hypura_testkit::tiny;

    use super::*;

    fn sizes(name: &str, kv: &KvOptions) -> Sizes {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        let recipe = tiny::find(name).unwrap();
        recipe.model(recipe.default_mix, 1).unwrap().write(&path).unwrap();
        Sizes::of(&gguf::Model::open(&path).unwrap(), &LoadOptions::default(), kv, false)
    }

    #[test]
    fn blocks_suit_the_model() {
        let kv = KvOptions::default();
        let plain = sizes("llama", &kv);
        assert_eq!((plain.block_tokens, plain.checkpoint_bytes), (256, 0));
        // A block lies within a window.
        assert_eq!(sizes("gemma3", &kv).block_tokens, 32);
        assert!(sizes("qwen3next", &kv).checkpoint_bytes > 0);
        let small = KvOptions { block_tokens: Some(100), ..kv.clone() };
        assert_eq!(sizes("llama", &small).block_tokens, 64, "a power of two");
        let hot = KvOptions { hot: Some(HotLimit::Tokens(1000)), ..kv };
        let with_hot = sizes("llama", &hot);
        assert_eq!(with_hot.hot_bytes, 1000 * (with_hot.token_bytes + 64));
        assert_eq!(with_hot.memory_bytes(), plain.memory_bytes() + with_hot.hot_bytes);
    }

    #[test]
    fn a_large_state_makes_short_blocks() {
        // 8B: 32 layers, 8 heads of 128 for K and V each, two bytes.
        let token_bytes = 32 * 8 * 128 * 2 * 2;
        assert_eq!(1 << (BLOCK_BYTES_MAX / token_bytes).ilog2(), 16);
        assert_eq!(1 << (GPU_BLOCK_BYTES_MAX / token_bytes).ilog2(), 128);
    }
}
