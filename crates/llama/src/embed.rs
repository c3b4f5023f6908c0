//! Embeddings: what a text means, as a vector.

use llama_cpp_sys_2 as sys;

use crate::context::{BatchToken, Context, DecodeError};
use crate::vocab::Token;

/// Why there is no embedding.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// There is nothing to compute.
    #[error("the input is empty; send some text")]
    Empty,
    /// The model looks at all of a text at once.
    #[error("this model embeds at most {tokens_max} tokens at once; shorten the input")]
    TooLong {
        /// So many.
        tokens_max: usize,
    },
    /// The computation failed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// llama.cpp has none: the model ranks texts, or it is a bug.
    #[error("this model gives no embeddings")]
    None,
}

impl Context {
    /// Whether tokens leave state behind. A model without (BERT and its kin) only makes embeddings,
    /// of all tokens at once.
    pub fn has_memory(&self) -> bool {
        // SAFETY: the context is alive.
        !unsafe { sys::llama_get_memory(self.raw()) }.is_null()
    }

    /// The embedding of some tokens, which are computed in sequence `seq` from its beginning and
    /// forgotten: the model's own pooling, or the last token's where it has none (as Ollama does).
    /// Its length is 1 (L2), unless all of it is zero.
    ///
    /// # Errors
    /// When nothing is asked for, the computation fails, or the model has no embeddings.
    pub fn embed(&mut self, seq: i32, tokens: &[Token]) -> Result<Vec<f32>, EmbedError> {
        if tokens.is_empty() {
            return Err(EmbedError::Empty);
        }
        let result = self.embed_tokens(seq, tokens);
        // SAFETY: the context is alive.
        unsafe { sys::llama_set_embeddings(self.raw(), false) };
        if self.has_memory() {
            self.forget(seq, -1, -1);
        }
        result
    }

    fn embed_tokens(&mut self, seq: i32, tokens: &[Token]) -> Result<Vec<f32>, EmbedError> {
        // SAFETY: the context is alive.
        let pooling = unsafe { sys::llama_pooling_type(self.raw()) };
        let is_pooled = pooling != sys::LLAMA_POOLING_TYPE_NONE;
        // With embeddings on, every token of a batch has an output. Without pooling only the last
        // one's is needed: it is computed apart. Pooling is over what is computed at once.
        let last = tokens.len() - 1;
        let before = if is_pooled || !self.has_memory() { 0 } else { last };
        for (i, chunk) in tokens[..before].chunks(self.n_ubatch()).enumerate() {
            let from = i * self.n_ubatch();
            self.decode(&batch(seq, from, chunk, false))?;
        }
        // SAFETY: the context is alive.
        unsafe { sys::llama_set_embeddings(self.raw(), true) };
        if tokens.len() - before > self.n_ubatch() {
            return Err(EmbedError::TooLong { tokens_max: self.n_ubatch() });
        }
        self.decode(&batch(seq, before, &tokens[before..], true))?;
        // SAFETY: returns null or a row of `n_embd_out` values, valid until the next computation.
        let row = unsafe {
            let len = usize::try_from(sys::llama_model_n_embd_out(self.model().as_ptr()));
            let row = if is_pooled {
                sys::llama_get_embeddings_seq(self.raw(), seq)
            } else {
                sys::llama_get_embeddings_ith(self.raw(), -1)
            };
            if row.is_null() || pooling == sys::LLAMA_POOLING_TYPE_RANK {
                return Err(EmbedError::None);
            }
            std::slice::from_raw_parts(row, len.unwrap_or(0)).to_vec()
        };
        Ok(normalised(row))
    }
}

fn batch(seq: i32, from: usize, tokens: &[Token], output: bool) -> Vec<BatchToken> {
    let position = |i: usize| i32::try_from(from + i).unwrap_or(i32::MAX);
    let of = |(i, &token)| BatchToken { token, pos: position(i), seq, output };
    tokens.iter().enumerate().map(of).collect()
}

/// Of length 1.
fn normalised(mut row: Vec<f32>) -> Vec<f32> {
    let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 && length.is_finite() {
        for x in &mut row {
            #[allow(clippy::cast_possible_truncation)] // f32 is what there is
            {
                *x = (f64::from(*x) / length) as f32;
            }
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_have_length_one() {
        assert_eq!(normalised(vec![3.0, 0.0, -4.0]), [0.6, 0.0, -0.8]);
        assert_eq!(normalised(vec![0.0; 2]), [0.0; 2]);
    }
}
