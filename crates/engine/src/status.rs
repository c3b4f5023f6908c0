//! What an engine is doing, for those who watch it.

use std::sync::Arc;

use hypura_kv::StoreStats;

use crate::stream::StreamStats;

/// A loaded model's numbers, as they were a moment ago.
#[derive(Debug, Clone, Default)]
pub struct EngineStatus {
    /// Sequences of the context, in their order.
    pub sequences: Vec<SequenceStatus>,
    /// Requests that wait for one.
    pub waiting: usize,
    /// What was done since the model was loaded.
    pub totals: Totals,
    /// What streaming did since then.
    pub stream: StreamStats,
    /// What the tiers of attention state did; `None` if there are none.
    pub kv: Option<StoreStats>,
    /// Which experts are used, and which are in memory; `None` if none are streamed.
    pub experts: Option<Arc<ExpertMap>>,
}

/// One sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SequenceStatus {
    /// What it is doing.
    pub state: SequenceState,
    /// Tokens whose attention state is in the context.
    pub tokens: usize,
}

/// What a sequence is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SequenceState {
    /// Nothing.
    #[default]
    Idle,
    /// Reading a prompt.
    Prefill,
    /// Answering.
    Decode,
}

impl SequenceState {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            SequenceState::Idle => "idle",
            SequenceState::Prefill => "prefill",
            SequenceState::Decode => "decode",
        }
    }
}

/// Sums since a model was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Answers that ended.
    pub answers: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of these, tokens whose attention state was known.
    pub reused_tokens: u64,
    /// Tokens of answers.
    pub generated_tokens: u64,
    /// Seconds in which prompts were computed, those in which answers were as well included.
    pub prompt_s: f64,
    /// Seconds in which answers alone were computed.
    pub decode_s: f64,
}

/// Experts of streamed layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpertMap {
    /// How often each expert of each layer was used since the model was loaded.
    pub uses: Vec<Vec<u64>>,
    /// Whether it is in memory.
    pub resident: Vec<Vec<bool>>,
}
