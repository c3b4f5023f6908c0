//! Running a model with llama.cpp's own loader.

use std::path::Path;
use std::sync::Arc;

use hypura_llama::plain::{self, Source};
use hypura_llama::{BatchToken, Context, ContextParams, Layout, Model, Threadpool, Token};

/// A model in a small context.
pub(crate) struct Runner {
    #[allow(dead_code)]
    pub(crate) model: Model,
    context: Context,
    n_past: i32,
}

impl Runner {
    pub(crate) fn load(path: &Path) -> Runner {
        let model = plain::load(path, Source::Read, Layout::Plain, plain::On::Cpu, &mut |_| true)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let params = ContextParams { n_ctx: 256, n_batch: 64, n_ubatch: 64, ..Default::default() };
        // One thread: tests run side by side, and ggml's barriers spin.
        let threads = Arc::new(Threadpool::new(1, 0).unwrap());
        let context = Context::new(&model, &params, &threads).unwrap();
        Runner { model, context, n_past: 0 }
    }

    /// The logits behind each of some tokens, which are computed in one batch.
    pub(crate) fn logits(&mut self, tokens: &[Token]) -> Vec<Vec<f32>> {
        let batch: Vec<BatchToken> = (self.n_past..)
            .zip(tokens)
            .map(|(pos, &token)| BatchToken { token, pos, seq: 0, output: true })
            .collect();
        self.context.decode(&batch).unwrap();
        self.n_past += i32::try_from(tokens.len()).unwrap();
        (0..i32::try_from(tokens.len()).unwrap())
            .map(|i| self.context.logits(i).unwrap().to_vec())
            .collect()
    }

    /// The `n` likeliest tokens, one after the other, behind a prompt.
    #[allow(dead_code)] // not every test binary speaks
    pub(crate) fn greedy(&mut self, prompt: &[Token], n: usize) -> Vec<Token> {
        let mut input = prompt.to_vec();
        let mut said = Vec::new();
        while said.len() < n {
            let token = argmax(self.logits(&input).last().unwrap());
            said.push(token);
            input = vec![token];
        }
        said
    }
}

/// The likeliest token.
pub(crate) fn argmax(logits: &[f32]) -> Token {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    Token::try_from(best).unwrap()
}
