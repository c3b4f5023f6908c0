//! Embeddings.

use std::time::{Duration, Instant};

use hypura_engine::llama::Token;
use tokio::sync::oneshot;

use super::KeepAlive;
use super::stream::{blocking, failed, gone, refused};
use crate::app::Shared;
use crate::error::{ApiError, ErrorKind};

/// A question for embeddings.
#[derive(Debug, Clone)]
pub struct EmbedAsk {
    /// The model's name.
    pub model: String,
    /// What is to be embedded, one vector each.
    pub inputs: Vec<EmbedInput>,
    /// Leave out the end of what does not fit the context; an error if not.
    pub truncate: bool,
    /// So many numbers of each vector, of length 1 again (for models trained that way).
    pub dimensions: Option<usize>,
    /// As in [`super::Ask`].
    pub keep_alive: Option<KeepAlive>,
    /// As in [`super::Ask`].
    pub num_ctx: Option<u32>,
    /// As in [`super::Ask`].
    pub tenant: String,
}

/// What is to be embedded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedInput {
    /// Text.
    Text(String),
    /// Tokens of the model.
    Tokens(Vec<Token>),
}

/// Embeddings.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// Of each input, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub prompt_tokens: usize,
    /// Loading the model.
    pub load_time: Duration,
    /// All of it.
    pub total_time: Duration,
}

/// Computes embeddings.
///
/// # Errors
/// When the model is not there, an input is empty or too long, or too many wait.
pub async fn embed(app: &Shared, ask: EmbedAsk) -> Result<Embedded, ApiError> {
    let begin = Instant::now();
    let _counted = app.metrics.begin_answering();
    let lease = app.models.load(&ask.model, ask.keep_alive, ask.num_ctx).await?;
    let load_time = if lease.was_loaded_for_this() { begin.elapsed() } else { Duration::ZERO };
    let (dimensions, most) = (ask.dimensions, lease.runner().facts().embedding_length);
    if let Some(n) = dimensions.filter(|&n| n == 0 || most > 0 && n > most) {
        let message = format!("embeddings of this model have {most} numbers; {n} were asked for");
        return Err(ApiError::bad_field("dimensions", message));
    }
    let (sender, answer) = oneshot::channel();
    // The ticket is held until the answer is there: whoever goes away earlier cancels.
    let (lease, _ticket, prompt_tokens) = blocking(move || {
        let runner = lease.runner();
        let n_ctx = runner.facts().n_ctx;
        let mut inputs = Vec::with_capacity(ask.inputs.len());
        for input in ask.inputs {
            let mut tokens = match input {
                EmbedInput::Text(text) => runner.tokenize(&text, true),
                EmbedInput::Tokens(tokens) => tokens,
            };
            if tokens.is_empty() {
                return Err(ApiError::bad_field("input", "an input is empty; send some text"));
            }
            if let Some(unknown) = tokens.iter().find(|&&token| runner.piece(token).is_empty()) {
                let message = format!("this model has no token {unknown}");
                return Err(ApiError::bad_field("input", message));
            }
            if tokens.len() > n_ctx && !ask.truncate {
                let message =
                    format!("an input has {} tokens, but the context holds {n_ctx}", tokens.len());
                return Err(ApiError::new(ErrorKind::ContextLength, message));
            }
            tokens.truncate(n_ctx);
            inputs.push(tokens);
        }
        let prompt_tokens = inputs.iter().map(Vec::len).sum::<usize>();
        let reply = Box::new(move |result| {
            let _ = sender.send(result);
        });
        let ticket = runner.embed(inputs, reply).map_err(|error| refused(&lease, error))?;
        Ok((lease, ticket, prompt_tokens))
    })
    .await?;
    let result = answer.await.map_err(|_| gone())?;
    let mut vectors = result.map_err(|error| failed(&error))?;
    if let Some(n) = dimensions {
        vectors.iter_mut().for_each(|vector| shorten(vector, n));
    }
    app.metrics.embedded(&lease.entry().name, prompt_tokens);
    Ok(Embedded { vectors, prompt_tokens, load_time, total_time: begin.elapsed() })
}

/// The first `n` numbers, of length 1 again.
fn shorten(vector: &mut Vec<f32>, n: usize) {
    vector.truncate(n);
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_vectors_have_length_one() {
        let mut vector = vec![0.36, 0.48, 0.8];
        shorten(&mut vector, 2);
        assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6, "{vector:?}");
    }
}
