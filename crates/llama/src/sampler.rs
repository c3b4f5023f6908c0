//! Choosing the next token, by llama.cpp's samplers.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::{Context, Token};

/// How the next token is chosen; the names are llama.cpp's and Ollama's.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// 0 is greedy: always the likeliest token.
    pub temperature: f32,
    /// Keep the K likeliest tokens; 0 keeps all.
    pub top_k: i32,
    /// Keep the likeliest tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the likeliest; 0 drops none.
    pub min_p: f32,
    /// Keep the tokens whose information is near what is expected, up to this probability; 1 keeps all.
    pub typical_p: f32,
    /// Divide the logits of repeated tokens by this; 1 changes nothing.
    pub repeat_penalty: f32,
    /// Among how many of the last tokens a repetition counts; 0 switches the penalties off.
    pub repeat_last_n: u32,
    /// Subtracted once from a token that was seen.
    pub presence_penalty: f32,
    /// Subtracted for each time that a token was seen.
    pub frequency_penalty: f32,
    /// The seed of the random choice.
    pub seed: u32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(Token, f32)>,
}

impl Default for SamplerParams {
    /// Ollama's defaults, without its repetition penalty.
    fn default() -> SamplerParams {
        SamplerParams {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
        }
    }
}

/// A chain of samplers with its random state.
#[derive(Debug)]
pub struct Sampler {
    chain: NonNull<sys::llama_sampler>,
}

// SAFETY: the chain has no ties to a thread and is used through `&mut`.
unsafe impl Send for Sampler {}

impl Sampler {
    /// Builds the chain: bias, penalties, top-k, typical, top-p, min-p, temperature, choice; for a vocabulary of
    /// `n_vocab` tokens.
    pub fn new(params: &SamplerParams, n_vocab: usize) -> Option<Sampler> {
        crate::init();
        // SAFETY: each sampler is handed to the chain, which frees it.
        unsafe {
            let chain = sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params());
            let sampler = Sampler { chain: NonNull::new(chain)? };
            let add = |s| sys::llama_sampler_chain_add(chain, s);
            if !params.logit_bias.is_empty() {
                let bias: Vec<_> = params
                    .logit_bias
                    .iter()
                    .map(|&(token, bias)| sys::llama_logit_bias { token, bias })
                    .collect();
                add(sys::llama_sampler_init_logit_bias(
                    i32::try_from(n_vocab).unwrap_or(i32::MAX),
                    i32::try_from(bias.len()).unwrap_or(i32::MAX),
                    bias.as_ptr(),
                ));
            }
            let penalised = params.repeat_penalty.to_bits() != 1f32.to_bits()
                || params.presence_penalty != 0.0
                || params.frequency_penalty != 0.0;
            if penalised {
                add(sys::llama_sampler_init_penalties(
                    i32::try_from(n_vocab).unwrap_or(i32::MAX),
                    i32::try_from(params.repeat_last_n).unwrap_or(i32::MAX),
                    params.repeat_penalty,
                    params.frequency_penalty,
                    params.presence_penalty,
                ));
            }
            if params.temperature <= 0.0 {
                add(sys::llama_sampler_init_greedy());
            } else {
                add(sys::llama_sampler_init_top_k(params.top_k));
                if params.typical_p < 1.0 {
                    add(sys::llama_sampler_init_typical(params.typical_p, 1));
                }
                add(sys::llama_sampler_init_top_p(params.top_p, 1));
                add(sys::llama_sampler_init_min_p(params.min_p, 1));
                add(sys::llama_sampler_init_temp(params.temperature));
                add(sys::llama_sampler_init_dist(params.seed));
            }
            Some(sampler)
        }
    }

    /// Chooses a token from the logits of output `index` of the last decode (-1: the last one)
    /// and remembers it. `None` when that token had no output.
    pub fn sample(&mut self, context: &mut Context, index: i32) -> Option<Token> {
        context.logits(index)?;
        // SAFETY: both are alive, and there are logits; `sample` also accepts the token.
        Some(unsafe { sys::llama_sampler_sample(self.chain.as_ptr(), context.as_ptr(), index) })
    }

    /// Tells the chain of a token that was not sampled by it (a prompt), for the penalties.
    pub fn accept(&mut self, token: Token) {
        // SAFETY: the chain is alive.
        unsafe { sys::llama_sampler_accept(self.chain.as_ptr(), token) };
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: the chain was made here and is freed once, with its samplers.
        unsafe { sys::llama_sampler_free(self.chain.as_ptr()) };
    }
}
