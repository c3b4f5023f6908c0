//! Guesses from a layer's own past.

use super::{Predictor, best};
use crate::TraceShape;

/// A layer wants what it wanted last: the experts of the token before, then those of the one before
/// that, and so on.
#[derive(Clone, Debug)]
pub struct PreviousToken {
    /// Per layer, tokens observed.
    tokens: Vec<u64>,
    /// Per layer and expert, the token of its last use, from 1; 0 if it was never used.
    last: Vec<Vec<u64>>,
    ratings: Vec<f64>,
}

impl PreviousToken {
    /// Has seen nothing yet.
    pub fn new(shape: TraceShape) -> Self {
        Self {
            tokens: vec![0; shape.n_layers as usize],
            last: vec![vec![0; shape.n_experts as usize]; shape.n_layers as usize],
            ratings: Vec::new(),
        }
    }

    /// Tokens since each expert's last use, from 1; `None` if it was never used.
    pub(super) fn ages(&self, layer: u32) -> impl Iterator<Item = Option<u64>> {
        let now = self.tokens[layer as usize] + 1;
        self.last[layer as usize].iter().map(move |&last| (last > 0).then(|| now - last))
    }
}

impl Predictor for PreviousToken {
    fn observe(&mut self, layer: u32, experts: &[u32]) {
        let token = &mut self.tokens[layer as usize];
        *token += 1;
        for &expert in experts {
            self.last[layer as usize][expert as usize] = *token;
        }
    }

    fn predict(&mut self, layer: u32, n: usize, out: &mut Vec<u32>) {
        let mut ratings = std::mem::take(&mut self.ratings);
        ratings.clear();
        ratings.extend(self.ages(layer).map(|age| age.map_or(0.0, |age| 1.0 / age as f64)));
        best(&ratings, n, out);
        self.ratings = ratings;
    }
}

/// A layer wants what it has wanted most.
#[derive(Clone, Debug)]
pub struct Frequency {
    /// Per layer, tokens observed (halved with the counts).
    tokens: Vec<u32>,
    counts: Vec<Vec<u32>>,
    ratings: Vec<f64>,
}

impl Frequency {
    /// Has seen nothing yet.
    pub fn new(shape: TraceShape) -> Self {
        Self {
            tokens: vec![0; shape.n_layers as usize],
            counts: vec![vec![0; shape.n_experts as usize]; shape.n_layers as usize],
            ratings: Vec::new(),
        }
    }

    /// The share of tokens that chose each expert, into `out`.
    pub(super) fn rate(&self, layer: u32, out: &mut Vec<f64>) {
        let tokens = f64::from(self.tokens[layer as usize].max(1));
        out.clear();
        out.extend(self.counts[layer as usize].iter().map(|&count| f64::from(count) / tokens));
    }

    /// The share of tokens that chose one expert.
    pub(super) fn rate_of(&self, layer: u32, expert: usize) -> f64 {
        let tokens = f64::from(self.tokens[layer as usize].max(1));
        f64::from(self.counts[layer as usize][expert]) / tokens
    }
}

impl Predictor for Frequency {
    fn observe(&mut self, layer: u32, experts: &[u32]) {
        let (tokens, counts) = (&mut self.tokens[layer as usize], &mut self.counts[layer as usize]);
        if *tokens == u32::MAX {
            *tokens /= 2;
            counts.iter_mut().for_each(|count| *count /= 2);
        }
        *tokens += 1;
        for &expert in experts {
            let count = &mut counts[expert as usize];
            *count = count.saturating_add(1);
        }
    }

    fn predict(&mut self, layer: u32, n: usize, out: &mut Vec<u32>) {
        let mut ratings = std::mem::take(&mut self.ratings);
        self.rate(layer, &mut ratings);
        best(&ratings, n, out);
        self.ratings = ratings;
    }
}
