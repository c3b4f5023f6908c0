//! A large dense model of random weights, for benchmarks of bandwidth.
//!
//! The weights are made directly in the quantized format, scaled such that activations keep their
//! size through the layers. The text is noise.

use std::path::Path;

use hypura_gguf::{GgmlType, Metadata};

use crate::blocks::{self, Worth, inverse_root};
use crate::stream::{self, Job, Progress, Rows, StreamError};
use crate::tokenizer;

/// The shape of the model; the default is that of an 8B model with 32,768 tokens, 4.1 GB in `Q4_0`.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Layers.
    pub n_layer: u32,
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Width of the feed-forward network.
    pub n_ff: u32,
    /// Attention heads.
    pub n_head: u32,
    /// Heads of K and V.
    pub n_head_kv: u32,
    /// Tokens of the vocabulary, of which no text ever needs more than the first 269.
    pub n_vocab: u32,
    /// Tokens of context that the file promises.
    pub n_ctx: u32,
    /// Type of all matrices.
    pub ty: GgmlType,
    /// Seed of the weights.
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            n_layer: 32,
            n_embd: 4096,
            n_ff: 14_336,
            n_head: 32,
            n_head_kv: 8,
            n_vocab: 32_768,
            n_ctx: 8192,
            ty: GgmlType::Q4_0,
            seed: 1,
        }
    }
}

/// Why a dense model can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum DenseError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(
        "weights of type {ty} can't be made up; choose one of {}",
        blocks::supported().map(GgmlType::name).collect::<Vec<_>>().join(", ")
    )]
    Type { ty: GgmlType },
    #[error("a width of {width} is no multiple of {multiple}, {reason}")]
    Width { width: u32, multiple: u64, reason: &'static str },
    #[error("{name} must be {min} to {max}, not {value}")]
    Range { name: &'static str, min: u32, max: u32, value: u32 },
}

/// Writes the model to `out`.
///
/// # Errors
/// If the shape is impossible or the output can't be written; nothing is left over then.
pub fn write(out: &Path, shape: &Shape, progress: Progress<'_>) -> Result<(), DenseError> {
    shape.check()?;
    let jobs = shape.jobs();
    Ok(stream::write(out, shape.metadata(), &jobs, shape.seed, progress)?)
}

impl Shape {
    fn check(&self) -> Result<(), DenseError> {
        if !blocks::is_supported(self.ty) {
            return Err(DenseError::Type { ty: self.ty });
        }
        // 512 is llama.cpp's LLAMA_MAX_LAYERS.
        let ranges = [
            ("the number of layers", 1, 512, self.n_layer),
            ("the width", 1, 1 << 17, self.n_embd),
            ("the feed-forward width", 1, 1 << 20, self.n_ff),
            ("the number of heads", 1, 1024, self.n_head),
            ("the number of K and V heads", 1, self.n_head, self.n_head_kv),
            ("the vocabulary", tokenizer::N_VOCAB_MIN, 1 << 20, self.n_vocab),
            ("the context", 1, 1 << 24, self.n_ctx),
        ];
        for (name, min, max, value) in ranges {
            if !(min..=max).contains(&value) {
                return Err(DenseError::Range { name, min, max, value });
            }
        }
        let block = self.ty.block_elements();
        let multiples = [
            (self.n_embd, block, "the block of its type"),
            (self.n_ff, block, "the block of its type"),
            (self.n_embd, u64::from(self.n_head) * 2, "an even width for each head"),
            (self.n_head, self.n_head_kv.into(), "the number of K and V heads"),
        ];
        for (width, multiple, reason) in multiples {
            if !u64::from(width).is_multiple_of(multiple) {
                return Err(DenseError::Width { width, multiple, reason });
            }
        }
        Ok(())
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        let head = self.n_embd / self.n_head;
        metadata.insert("general.architecture", "llama");
        metadata.insert("general.name", "random dense model");
        metadata.insert("general.quantization_version", 2u32);
        metadata.insert("llama.block_count", self.n_layer);
        metadata.insert("llama.context_length", self.n_ctx);
        metadata.insert("llama.embedding_length", self.n_embd);
        metadata.insert("llama.feed_forward_length", self.n_ff);
        metadata.insert("llama.attention.head_count", self.n_head);
        metadata.insert("llama.attention.head_count_kv", self.n_head_kv);
        metadata.insert("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        metadata.insert("llama.rope.dimension_count", head);
        metadata.insert("llama.rope.freq_base", 500_000f32);
        metadata.insert("llama.vocab_size", self.n_vocab);
        tokenizer::add(&mut metadata, self.n_vocab);
        metadata
    }

    fn jobs(&self) -> Vec<Job> {
        let n_embd = u64::from(self.n_embd);
        let (n_ff, n_vocab) = (u64::from(self.n_ff), u64::from(self.n_vocab));
        let n_kv = u64::from(self.n_embd / self.n_head * self.n_head_kv);
        let norm = |name: &str| Job::new(name, GgmlType::F32, &[n_embd], Rows::Ones);
        let matrix = |name: &str, n_in: u64, n_out: u64, gain: f32| {
            let rms = gain * inverse_root(n_in);
            Job::new(name, self.ty, &[n_in, n_out], Rows::New(Worth::Rms(rms)))
        };
        // A gain of 2 spreads the logits, so that greedy text is not one token for ever.
        let mut jobs = vec![
            Job::new("token_embd.weight", self.ty, &[n_embd, n_vocab], Rows::New(Worth::Rms(1.0))),
            norm("output_norm.weight"),
            matrix("output.weight", n_embd, n_vocab, 2.0),
        ];
        for layer in 0..self.n_layer {
            let name = |stem: &str| format!("blk.{layer}.{stem}.weight");
            jobs.extend([
                norm(&name("attn_norm")),
                matrix(&name("attn_q"), n_embd, n_embd, 1.0),
                matrix(&name("attn_k"), n_embd, n_kv, 1.0),
                matrix(&name("attn_v"), n_embd, n_kv, 1.0),
                matrix(&name("attn_output"), n_embd, n_embd, 1.0),
                norm(&name("ffn_norm")),
                matrix(&name("ffn_gate"), n_embd, n_ff, 1.0),
                matrix(&name("ffn_up"), n_embd, n_ff, 1.0),
                matrix(&name("ffn_down"), n_ff, n_embd, 1.0),
            ]);
        }
        jobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_8b_in_4_gb() {
        let shape = Shape::default();
        shape.check().unwrap();
        let bytes: u64 = shape
            .jobs()
            .iter()
            .map(|job| {
                job.ty.row_bytes(job.dims[0]).unwrap() * job.dims[1..].iter().product::<u64>()
            })
            .sum();
        assert_eq!(bytes / 10_000_000, 407);
    }

    #[test]
    fn impossible_shapes_are_refused_with_a_reason() {
        let check = |change: fn(&mut Shape), words: &str| {
            let mut shape = Shape::default();
            change(&mut shape);
            let message = shape.check().unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        };
        check(|s| s.ty = GgmlType::F16, "F16 can't be made up");
        check(|s| s.n_layer = 0, "the number of layers must be 1 to 512, not 0");
        check(|s| s.n_head_kv = 64, "the number of K and V heads must be 1 to 32, not 64");
        check(|s| s.n_head_kv = 5, "no multiple of 5, the number of K and V heads");
        check(|s| s.n_ff = 100, "a width of 100 is no multiple of 32, the block of its type");
        check(|s| s.n_embd = 4096 + 32, "an even width for each head");
        check(|s| s.n_vocab = 10, "the vocabulary must be 320 to 1048576, not 10");
    }
}
