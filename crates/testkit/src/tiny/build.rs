//! What the recipes are written with: metadata keys and random tensors.

use hypura_gguf::{GgmlType, Metadata, Value};
use hypura_llama::quants;

use super::{Mix, TinyError};
use crate::blocks::inverse_root;
use crate::rng::Rng;
use crate::tokenizer;

/// Tokens of the vocabulary.
pub(super) const N_VOCAB: u64 = tokenizer::N_VOCAB_MIN as u64;

/// A tensor with its data.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) ty: GgmlType,
    pub(super) dims: Vec<u64>,
    pub(super) bytes: Vec<u8>,
}

/// The sizes that depend on the mix, since rows of K-quants are multiples of 256.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) n_embd: u64,
    /// Width of a dense feed-forward network.
    pub(super) n_ff: u64,
    /// Width of an expert.
    pub(super) n_ff_exp: u64,
    /// Width of a head.
    pub(super) head: u64,
    pub(super) n_head: u64,
    pub(super) n_head_kv: u64,
    /// Rank of latent attention.
    pub(super) rank: u64,
}

/// A model in the making.
#[derive(Debug)]
pub(super) struct Build {
    arch: &'static str,
    mix: Mix,
    seed: u64,
    pub(super) sizes: Sizes,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    /// The first error, told by [`Build::finish`]: recipes read better without.
    error: Option<TinyError>,
}

impl Build {
    pub(super) fn new(name: &str, mix: Mix, seed: u64) -> Build {
        let sizes = if mix.needs_256() {
            Sizes {
                n_embd: 256,
                n_ff: 512,
                n_ff_exp: 256,
                head: 64,
                n_head: 4,
                n_head_kv: 2,
                rank: 256,
            }
        } else {
            Sizes {
                n_embd: 128,
                n_ff: 384,
                n_ff_exp: 64,
                head: 32,
                n_head: 4,
                n_head_kv: 2,
                rank: 64,
            }
        };
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", "");
        metadata.insert("general.name", format!("tiny random {name}"));
        metadata.insert("general.file_type", mix.file_type());
        metadata.insert("general.quantization_version", 2u32);
        Build { arch: "", mix, seed, sizes, metadata, tensors: Vec::new(), error: None }
    }

    /// Experts of a layer: `wanted`, or 8 where K-quants make each of them large.
    pub(super) fn n_expert(&self, wanted: u64) -> u64 {
        if self.mix.needs_256() { wanted.min(8) } else { wanted }
    }

    /// Names the architecture and sets the keys that every transformer has.
    pub(super) fn transformer(&mut self, arch: &'static str, n_layer: u32) {
        let sizes = self.sizes;
        self.arch = arch;
        self.metadata.insert("general.architecture", arch);
        self.key("block_count", n_layer);
        self.key("context_length", 8192u32);
        self.size("embedding_length", sizes.n_embd);
        self.size("feed_forward_length", sizes.n_ff);
        self.size("attention.head_count", sizes.n_head);
        self.size("attention.head_count_kv", sizes.n_head_kv);
        self.size("attention.key_length", sizes.head);
        self.size("attention.value_length", sizes.head);
        self.size("rope.dimension_count", sizes.head);
        self.key("rope.freq_base", 10_000f32);
        self.key("attention.layer_norm_rms_epsilon", 1e-6f32);
        self.size("vocab_size", N_VOCAB);
    }

    /// Sets `ARCH.NAME`.
    pub(super) fn key(&mut self, name: &str, value: impl Into<Value>) {
        self.metadata.insert(format!("{}.{name}", self.arch), value);
    }

    /// Sets `ARCH.NAME` to a size.
    pub(super) fn size(&mut self, name: &str, value: u64) {
        self.key(name, u32::try_from(value).unwrap_or(u32::MAX));
    }

    /// A matrix (or a stack of them) of the mix's type that keeps the variance times `gain`².
    pub(super) fn matrix(&mut self, name: &str, dims: &[u64], gain: f32) {
        let columns = dims.first().copied().unwrap_or(1);
        let ty = self.mix.type_of(name, columns);
        self.random(name, ty, dims, 0.0, gain * inverse_root(columns));
    }

    /// A matrix that stays in F32: routers, convolutions.
    pub(super) fn matrix_f32(&mut self, name: &str, dims: &[u64], gain: f32) {
        let columns = dims.first().copied().unwrap_or(1);
        self.random(name, GgmlType::F32, dims, 0.0, gain * inverse_root(columns));
    }

    /// The weights of a norm: about 1.
    pub(super) fn norm(&mut self, name: &str, n: u64) {
        self.random(name, GgmlType::F32, &[n], 1.0, 0.1);
    }

    /// A bias or the like: values around `mean`, in F32.
    pub(super) fn vector(&mut self, name: &str, dims: &[u64], mean: f32, deviation: f32) {
        self.random(name, GgmlType::F32, dims, mean, deviation);
    }

    /// A tensor of normal values.
    fn random(&mut self, name: &str, ty: GgmlType, dims: &[u64], mean: f32, deviation: f32) {
        let mut rng = Rng::stream(self.seed, self.tensors.len() as u64);
        let n: u64 = dims.iter().product();
        let values: Vec<f32> = (0..n).map(|_| mean + deviation * rng.normal()).collect();
        let columns = usize::try_from(dims.first().copied().unwrap_or(1)).unwrap_or(0);
        match quants::quantize_rows(ty.id(), &values, columns) {
            Ok(bytes) => {
                let (name, dims) = (name.to_owned(), dims.to_vec());
                self.tensors.push(Tensor { name, ty, dims, bytes });
            }
            Err(source) => {
                let name = name.to_owned();
                self.error.get_or_insert(TinyError::Quant { name, source });
            }
        }
    }

    pub(super) fn finish(mut self) -> Result<(Metadata, Vec<Tensor>), TinyError> {
        let n_vocab = u32::try_from(N_VOCAB).unwrap_or(tokenizer::N_VOCAB_MIN);
        tokenizer::add(&mut self.metadata, n_vocab);
        match self.error {
            None => Ok((self.metadata, self.tensors)),
            Some(error) => Err(error),
        }
    }
}
