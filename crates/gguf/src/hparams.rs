//! The shape of a model, as far as a planner needs it.
//!
//! Keys and defaults are those of `llama_model_base::load_hparams` and the `load_arch_hparams` of
//! each architecture in llama.cpp; the sizes of rows and states are those of `llama-hparams.cpp`.
//! Nothing here fails: a planner can do without a number, and llama.cpp itself judges the file.
//! What is not covered: caches beyond K, V and recurrent state (sparse attention's indexer,
//! DeepSeek-V4's compressed cache, cross-attention), and layers run in loops.

use crate::metadata::Metadata;
use crate::value::Value;

/// Most layers that llama.cpp takes (`LLAMA_MAX_LAYERS`); what a file says beyond it is not believed.
const MAX_LAYERS: u32 = 512;

/// The shape of a model. Vectors have one element per layer, [`n_layer`](Self::n_layer) of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hparams {
    /// `general.architecture`.
    pub architecture: String,
    /// Layers, those for multi-token prediction at the end included.
    pub n_layer: u32,
    /// Layers at the end that serve multi-token prediction only (`nextn_predict_layers`).
    pub n_layer_nextn: u32,
    /// Width of the hidden state.
    pub n_embd: u32,
    /// Tokens in the vocabulary: rows of the token embedding, else the tokenizer's list.
    pub n_vocab: Option<u32>,
    /// Tokens of context that the model was trained on.
    pub n_ctx_train: Option<u32>,
    /// Width of the dense feed-forward network; 0 where there is none.
    pub n_ff: Vec<u32>,
    /// Query heads.
    pub n_head: Vec<u32>,
    /// Key and value heads; by default as many as query heads.
    pub n_head_kv: Vec<u32>,

    /// Elements of a key head; by default `n_embd / n_head`.
    pub key_length: u32,
    /// Elements of a value head; by default `n_embd / n_head`.
    pub value_length: u32,
    /// Elements of a key head in layers with a sliding window; by default `key_length`.
    pub key_length_swa: u32,
    /// Elements of a value head in layers with a sliding window; by default `value_length`.
    pub value_length_swa: u32,
    /// Elements of a key head that are rotated; by default `key_length`.
    pub rope_dimension_count: u32,
    /// Multi-head latent attention: elements of a key head after decompression.
    pub key_length_mla: Option<u32>,
    /// Multi-head latent attention: elements of a value head after decompression.
    pub value_length_mla: Option<u32>,
    /// Multi-head latent attention: rank of the compressed keys and values.
    pub kv_lora_rank: Option<u32>,

    /// Tokens that a sliding window (or chunk) spans; `None` if no layer has one.
    pub sliding_window: Option<u32>,
    /// Layers with a sliding window.
    pub is_sliding: Vec<bool>,
    /// Layers with recurrent state.
    pub is_recurrent: Vec<bool>,
    /// Layers with keys and values of their own in the cache.
    pub has_kv: Vec<bool>,
    /// Sizes of the recurrent state; `None` if no layer has one.
    pub recurrent: Option<RecurrentHparams>,

    /// Routed experts in a layer; 0 for a dense model.
    pub n_expert: u32,
    /// Routed experts that a token uses.
    pub n_expert_used: Vec<u32>,
    /// Shared experts (`expert_shared_count`).
    pub n_expert_shared: u32,
    /// Width of a routed expert (`expert_feed_forward_length`); 0 where unknown.
    pub n_ff_expert: Vec<u32>,
    /// Layers at the start without routed experts.
    pub leading_dense_block_count: u32,
}

/// Sizes of the recurrent state of one layer and sequence, and what they come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecurrentHparams {
    /// Elements (f32) of the rolling part: Mamba's convolution, RWKV's token shift (`n_embd_r`).
    pub conv_state_elements: u64,
    /// Elements (f32) of the state itself (`n_embd_s`).
    pub state_elements: u64,
    /// `ssm.conv_kernel`.
    pub ssm_conv_kernel: u32,
    /// `ssm.inner_size`.
    pub ssm_inner_size: u32,
    /// `ssm.state_size`.
    pub ssm_state_size: u32,
    /// `ssm.time_step_rank`.
    pub ssm_time_step_rank: u32,
    /// `ssm.group_count`.
    pub ssm_group_count: u32,
}

impl Hparams {
    /// Reads the shape from a model's metadata. `n_embd_rows` is the number of rows of the token
    /// embedding, where that is known.
    #[must_use]
    pub fn read(metadata: &Metadata, n_embd_rows: Option<u32>) -> Self {
        let architecture = metadata.str("general.architecture").unwrap_or_default().to_owned();
        let keys = Keys { metadata, architecture: &architecture };
        let n_layer = keys.u32("block_count").unwrap_or(0).min(MAX_LAYERS);
        let n_layer_nextn = keys.u32("nextn_predict_layers").unwrap_or(0).min(n_layer);
        let n_embd = keys.u32("embedding_length").unwrap_or(0);
        let n_ff = keys.per_layer("feed_forward_length", n_layer).unwrap_or_else(|| zeros(n_layer));
        let n_head =
            keys.per_layer("attention.head_count", n_layer).unwrap_or_else(|| zeros(n_layer));
        let n_head_kv =
            keys.per_layer("attention.head_count_kv", n_layer).unwrap_or_else(|| n_head.clone());

        // llama.cpp divides by the first layer's heads and gives up on heads if it has none.
        let n_head_first = n_head.first().copied().unwrap_or(0);
        let head_length = n_embd.checked_div(n_head_first);
        let length = |key| head_length.map_or(0, |default| keys.u32(key).unwrap_or(default));
        let key_length = length("attention.key_length");
        let value_length = length("attention.value_length");

        let mut hparams = Self {
            n_layer,
            n_layer_nextn,
            n_embd,
            n_vocab: n_embd_rows.or_else(|| keys.vocabulary()),
            n_ctx_train: keys.u32("context_length"),
            key_length,
            value_length,
            key_length_swa: keys.u32("attention.key_length_swa").unwrap_or(key_length),
            value_length_swa: keys.u32("attention.value_length_swa").unwrap_or(value_length),
            rope_dimension_count: match head_length {
                Some(_) => keys.u32("rope.dimension_count").unwrap_or(key_length),
                None => 0,
            },
            key_length_mla: keys.positive("attention.key_length_mla"),
            value_length_mla: keys.positive("attention.value_length_mla"),
            kv_lora_rank: keys.positive("attention.kv_lora_rank"),
            n_expert: keys.u32("expert_count").unwrap_or(0),
            n_expert_used: keys
                .per_layer("expert_used_count", n_layer)
                .unwrap_or_else(|| zeros(n_layer)),
            n_expert_shared: keys.u32("expert_shared_count").unwrap_or(0),
            n_ff_expert: keys
                .per_layer("expert_feed_forward_length", n_layer)
                .unwrap_or_else(|| zeros(n_layer)),
            leading_dense_block_count: keys.u32("leading_dense_block_count").unwrap_or(0),
            n_ff,
            n_head,
            n_head_kv,
            ..Self::default()
        };
        hparams.is_recurrent = recurrent_layers(&keys, &hparams);
        if hparams.is_recurrent.contains(&true) {
            hparams.recurrent = Some(recurrent_sizes(&keys, &hparams));
        }
        (hparams.sliding_window, hparams.is_sliding) = sliding_layers(&keys, &hparams);
        hparams.has_kv = kv_layers(&keys, &hparams);
        hparams.architecture = architecture;
        hparams
    }

    /// Layers of the model proper, without those for multi-token prediction.
    #[must_use]
    pub const fn n_layer_trunk(&self) -> u32 {
        self.n_layer.saturating_sub(self.n_layer_nextn)
    }

    /// Whether keys and values are kept compressed (multi-head latent attention). The cache then
    /// has no values: they are part of the keys.
    #[must_use]
    pub const fn is_mla(&self) -> bool {
        self.key_length_mla.is_some() && self.value_length_mla.is_some()
    }

    /// Elements that one token takes in a layer's K cache; 0 where the layer has none.
    #[must_use]
    pub fn key_row_elements(&self, layer: u32) -> u64 {
        self.row_elements(layer, self.key_length, self.key_length_swa)
    }

    /// Elements that one token takes in a layer's V cache; 0 where the layer has none.
    #[must_use]
    pub fn value_row_elements(&self, layer: u32) -> u64 {
        if self.is_mla() {
            return 0;
        }
        self.row_elements(layer, self.value_length, self.value_length_swa)
    }

    /// Most routed experts that a token uses in any layer.
    #[must_use]
    pub fn n_expert_used_max(&self) -> u32 {
        self.n_expert_used.iter().copied().max().unwrap_or(0)
    }

    fn row_elements(&self, layer: u32, length: u32, length_swa: u32) -> u64 {
        if !at(&self.has_kv, layer) {
            return 0;
        }
        let length = if at(&self.is_sliding, layer) { length_swa } else { length };
        u64::from(length) * u64::from(at(&self.n_head_kv, layer))
    }
}

/// Which layers keep recurrent state.
fn recurrent_layers(keys: &Keys<'_>, hparams: &Hparams) -> Vec<bool> {
    let n_layer = hparams.n_layer;
    let all = |value| vec![value; usize_of(n_layer)];
    let has_state = ["ssm.state_size", "wkv.head_size", "shortconv.l_cache", "kda.head_dim"]
        .iter()
        .any(|key| keys.positive(key).is_some());
    match keys.architecture {
        // Every layer has both a state and attention, or only a state.
        "falcon-h1" | "mamba" | "mamba2" | "rwkv6" | "rwkv6qwen2" | "rwkv7" | "arwkv7" => all(true),
        "qwen3next" | "qwen35" | "qwen35moe" | "qwen4exp" => by_interval(keys, hparams, 4),
        "minimax-01" => by_interval(keys, hparams, 8),
        _ if !has_state => all(false),
        _ if keys.get("full_attention_interval").is_some() => by_interval(keys, hparams, 4),
        // Jamba and its kin: no key heads means a state, but Nemotron-H also has layers that are
        // a feed-forward network and nothing else.
        architecture => {
            let needs_no_ff = architecture.starts_with("nemotron_h");
            (0..n_layer)
                .map(|layer| {
                    layer < hparams.n_layer_trunk()
                        && at(&hparams.n_head_kv, layer) == 0
                        && !(needs_no_ff && at(&hparams.n_ff, layer) > 0)
                })
                .collect()
        }
    }
}

/// Recurrent layers of models that have full attention in every `n`-th layer.
fn by_interval(keys: &Keys<'_>, hparams: &Hparams, default_interval: u32) -> Vec<bool> {
    if let Some(flags) = keys.flags("attention.recurrent_layers", hparams.n_layer) {
        return flags;
    }
    let interval = keys.positive("full_attention_interval").unwrap_or(default_interval);
    (0..hparams.n_layer)
        .map(|layer| layer < hparams.n_layer_trunk() && !(layer + 1).is_multiple_of(interval))
        .collect()
}

/// `n_embd_r` and `n_embd_s` of `llama-hparams.cpp`.
fn recurrent_sizes(keys: &Keys<'_>, hparams: &Hparams) -> RecurrentHparams {
    let ssm = |key| keys.u32(key).unwrap_or(0);
    let sizes = RecurrentHparams {
        ssm_conv_kernel: ssm("ssm.conv_kernel"),
        ssm_inner_size: ssm("ssm.inner_size"),
        ssm_state_size: ssm("ssm.state_size"),
        ssm_time_step_rank: ssm("ssm.time_step_rank"),
        ssm_group_count: ssm("ssm.group_count"),
        ..RecurrentHparams::default()
    };
    let n_embd = u64::from(hparams.n_embd);
    let n_head = u64::from(at(&hparams.n_head, 0));
    let inner = u64::from(sizes.ssm_inner_size);
    let state = u64::from(sizes.ssm_state_size);
    let conv_steps = u64::from(sizes.ssm_conv_kernel.saturating_sub(1));
    let (conv_state, state) = if let Some(head_size) = keys.positive("wkv.head_size") {
        let shifts = u64::from(keys.u32("token_shift_count").unwrap_or(2));
        (Some(shifts * n_embd), n_embd.checked_mul(head_size.into()))
    } else if let Some(cache) = keys.positive("shortconv.l_cache") {
        (n_embd.checked_mul(u64::from(cache) - 1), Some(0))
    } else if let Some(head_dim) = keys.positive("kda.head_dim").map(u64::from) {
        let conv_steps = if sizes.ssm_conv_kernel > 0 { conv_steps } else { 3 };
        let width = n_head.checked_mul(head_dim);
        let conv_state = width.and_then(|width| width.checked_mul(3 * conv_steps));
        (conv_state, width.and_then(|width| width.checked_mul(head_dim)))
    } else if keys.architecture == "minimax-01" {
        let head_dim = u64::from(hparams.key_length);
        (Some(0), head_dim.checked_mul(head_dim).and_then(|square| square.checked_mul(n_head)))
    } else {
        let groups = u64::from(sizes.ssm_group_count);
        let width = groups.checked_mul(2 * state).and_then(|grouped| grouped.checked_add(inner));
        (width.and_then(|width| width.checked_mul(conv_steps)), state.checked_mul(inner))
    };
    RecurrentHparams {
        conv_state_elements: conv_state.unwrap_or(u64::MAX),
        state_elements: state.unwrap_or(u64::MAX),
        ..sizes
    }
}

/// How an architecture uses sliding windows where its file has no list of layers.
struct SlidingRule {
    /// One layer in this many sees everything; 0 if none does.
    period: u32,
    /// Whether the first layer of a period is the one that sees everything, instead of the last.
    full_first: bool,
    /// The window where the file has no `attention.sliding_window`.
    default_window: Option<u32>,
}

/// The calls of `load_swa_pattern` in llama.cpp's `src/models`.
fn sliding_rule(architecture: &str, n_layer_trunk: u32) -> Option<SlidingRule> {
    let (period, full_first, default_window) = match architecture {
        "afmoe" | "cohere2" | "mellum" | "muse-glimmer" | "olmo2" => (4, false, None),
        "cohere2moe" | "laguna" | "smallthinker" => (4, true, None),
        "deepseek4" => (0, false, None),
        "exaone-moe" => (4, false, Some(128)),
        "exaone4" if n_layer_trunk == 64 => (4, false, Some(4096)),
        "gemma-embedding" | "gemma3" => (6, false, None),
        "gemma2" => (2, false, Some(4096)),
        "gemma3n" => (5, false, None),
        "gpt-oss" => (2, false, None),
        "llama4" => (4, false, Some(8192)),
        "modern-bert" => (3, true, None),
        "plamo3" => (8, false, None),
        _ => return None,
    };
    Some(SlidingRule { period, full_first, default_window })
}

/// The window and which layers have it.
fn sliding_layers(keys: &Keys<'_>, hparams: &Hparams) -> (Option<u32>, Vec<bool>) {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let (n_layer, n_trunk) = (hparams.n_layer, hparams.n_layer_trunk());
    let none = (None, vec![false; usize_of(n_layer)]);
    let written = keys.u32("attention.sliding_window");
    let rule = sliding_rule(keys.architecture, n_trunk);
    let default_window = rule.as_ref().and_then(|rule| rule.default_window);
    let window = match (keys.architecture, written) {
        (_, Some(0)) => None,
        // Phi-3 states windows that llama.cpp does not apply.
        ("phi3", _) => None,
        // These say that there are windows, and llama.cpp knows how large.
        ("llama4", _) => default_window,
        ("smallthinker", Some(_)) => Some(4096),
        (_, written) => written.or(default_window),
    };
    let Some(window) = window else {
        return none;
    };

    let flags = if let Some(Value::Array(list)) = keys.get(PATTERN) {
        (0..n_layer).map(|layer| list.flag(usize_of(layer)).unwrap_or(false)).collect()
    } else if matches!(keys.architecture, "lfm2" | "lfm2moe") {
        (0..n_layer).map(|layer| layer < n_trunk && !at(&hparams.is_recurrent, layer)).collect()
    } else if let Some(rule) = rule {
        let period = keys.u32(PATTERN).unwrap_or(rule.period);
        let full = if rule.full_first { 0 } else { period.saturating_sub(1) };
        (0..n_layer)
            .map(|layer| layer < n_trunk && layer.checked_rem(period) != Some(full))
            .collect()
    } else {
        return none;
    };
    (Some(window), flags)
}

/// Which layers keep keys and values: not those with only a state, nor those that use another's.
fn kv_layers(keys: &Keys<'_>, hparams: &Hparams) -> Vec<bool> {
    let own_kv = match keys.architecture {
        "gemma3n" => 20,
        "gemma4" => {
            let shared = keys.u32("attention.shared_kv_layers").unwrap_or(0);
            hparams.n_layer.saturating_sub(shared)
        }
        _ => hparams.n_layer_trunk(),
    };
    let has_both = keys.architecture == "falcon-h1";
    (0..hparams.n_layer)
        .map(|layer| {
            layer < own_kv.min(hparams.n_layer_trunk())
                && at(&hparams.n_head_kv, layer) > 0
                && (has_both || !at(&hparams.is_recurrent, layer))
        })
        .collect()
}

/// The metadata under an architecture's prefix.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    fn u32(&self, key: &str) -> Option<u32> {
        self.get(key)?.as_u32()
    }

    fn positive(&self, key: &str) -> Option<u32> {
        self.u32(key).filter(|&value| value > 0)
    }

    /// A number for all layers, or a list with one for each; what a list lacks is 0.
    fn per_layer(&self, key: &str, n_layer: u32) -> Option<Vec<u32>> {
        Some(match self.get(key)? {
            Value::Array(list) => {
                (0..n_layer).map(|layer| list.u32(usize_of(layer)).unwrap_or(0)).collect()
            }
            value => vec![value.as_u32()?; usize_of(n_layer)],
        })
    }

    /// A flag for all layers, or a list with one for each.
    fn flags(&self, key: &str, n_layer: u32) -> Option<Vec<bool>> {
        Some(match self.get(key)? {
            Value::Array(list) => {
                (0..n_layer).map(|layer| list.flag(usize_of(layer)).unwrap_or(false)).collect()
            }
            value => {
                let flag = value.as_bool().or_else(|| value.as_u32().map(|number| number != 0))?;
                vec![flag; usize_of(n_layer)]
            }
        })
    }

    fn vocabulary(&self) -> Option<u32> {
        let listed = || self.metadata.array("tokenizer.ggml.tokens").map(crate::Array::len);
        self.positive("vocab_size").or_else(|| u32::try_from(listed()?).ok())
    }
}

fn zeros(n_layer: u32) -> Vec<u32> {
    vec![0; usize_of(n_layer)]
}

/// The element of a layer, or the default (0, false) where there is none.
fn at<T: Copy + Default>(per_layer: &[T], layer: u32) -> T {
    per_layer.get(usize_of(layer)).copied().unwrap_or_default()
}

/// Layers are few: every `usize` holds their number.
fn usize_of(layer: u32) -> usize {
    usize::try_from(layer).unwrap_or(usize::MAX)
}
