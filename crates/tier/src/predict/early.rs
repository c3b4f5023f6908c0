//! The next layer's router, applied early, and corrected by what it got wrong so far.

use super::mix::log_odds;
use super::{Coactivation, Frequency, Predictor, Source};
use crate::TraceShape;

/// The early score, pairs across layers and tokens, frequency, and a constant.
const N_FEATURES: usize = 5;
/// What the estimates weigh before anything is learned. Frequency counts against the pairs, which
/// contain it.
const START_WEIGHTS: [f64; N_FEATURES] = [2.0, 0.6, 0.5, -0.5, -2.0];
/// Step of the gradient descent over the weights of a layer. With twice as much the first fifty tokens
/// are rated badly.
const LEARNING_RATE: f64 = 0.01;
/// Step of the gradient descent over an expert's own offset.
const OFFSET_RATE: f64 = 0.05;
/// Pairs of experts are counted up to this many counters of two bytes, twice: 4 MiB.
const PAIRS_MAX: u64 = 1 << 20;

/// Rates the experts of a layer before its router has run: a logistic regression over the score
/// that the router gives them when it is applied to the input of an earlier layer, and over how
/// often they were chosen where the experts at hand were. Each layer has weights of its own: in the
/// demo model the early score names 26% of what the second layer chooses, and 56 to 80% further up.
/// What each expert's early score misses in general is learned as an offset of its own.
#[derive(Clone, Debug)]
pub struct EarlyRouter {
    n_experts: usize,
    pairs: Option<(Coactivation, Coactivation)>,
    frequency: Frequency,
    /// Per layer.
    weights: Vec<[f64; N_FEATURES]>,
    /// Per unit.
    offsets: Vec<f64>,
    /// Per layer what the experts were rated by, until the router has run.
    rated: Vec<Vec<[f64; N_FEATURES]>>,
    column: Vec<f64>,
}

/// An expert and the probability that it will be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    /// Index of the expert in its layer.
    pub expert: u32,
    /// 0 to 1.
    pub probability: f64,
}

impl EarlyRouter {
    /// Has seen nothing yet. Pairs are left out for models that have too many of them.
    pub fn new(shape: TraceShape) -> Self {
        let (layers, experts) = (u64::from(shape.n_layers), u64::from(shape.n_experts));
        let counters = layers.saturating_mul(experts).saturating_mul(experts);
        let pairs =
            |source| Coactivation::new(shape, source).ok().filter(|_| counters <= PAIRS_MAX);
        Self {
            n_experts: shape.n_experts as usize,
            pairs: pairs(Source::LayerBefore).zip(pairs(Source::TokenBefore)),
            frequency: Frequency::new(shape),
            weights: vec![START_WEIGHTS; shape.n_layers as usize],
            offsets: vec![0.0; shape.n_layers as usize * shape.n_experts as usize],
            rated: vec![Vec::new(); shape.n_layers as usize],
            column: Vec::new(),
        }
    }

    /// Rates the experts of `layer` for one token by the `scores` that its router gives them early,
    /// one per expert; the likeliest first into `out`, which is emptied before. The experts of the
    /// layer before should have been observed.
    pub fn rate(&mut self, layer: u32, scores: &[f32], out: &mut Vec<Guess>) {
        out.clear();
        if scores.len() != self.n_experts || layer as usize >= self.rated.len() {
            return;
        }
        let mut features = std::mem::take(&mut self.rated[layer as usize]);
        features.clear();
        features.extend(standardized(scores).map(|z| [z, 0.0, 0.0, 0.0, 1.0]));
        let mut fill = |index: usize, column: &[f64]| {
            for (features, &p) in features.iter_mut().zip(column) {
                features[index] = log_odds(p);
            }
        };
        let column = &mut self.column;
        if let Some((across, within)) = &self.pairs {
            across.rate(layer, column);
            fill(1, column);
            within.rate(layer, column);
            fill(2, column);
        }
        self.frequency.rate(layer, column);
        fill(3, column);
        out.extend((0_u32..).zip(&features).map(|(expert, features)| Guess {
            expert,
            probability: self.probability(layer, expert, features),
        }));
        out.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.expert.cmp(&b.expert)));
        self.rated[layer as usize] = features;
    }

    /// After what was observed of `layer` last: how much likelier than usual each of its experts is for
    /// the next token, as a power of two, into `out`; empty for models that have too many pairs.
    pub fn outlook(&self, layer: u32, out: &mut Vec<f64>) {
        out.clear();
        if let Some((_, within)) = &self.pairs {
            within.outlook(layer, out);
        }
    }

    /// The router of `layer` chose `experts` for a token.
    pub fn observe(&mut self, layer: u32, experts: &[u32]) {
        if layer as usize >= self.rated.len() {
            return;
        }
        let mut features = std::mem::take(&mut self.rated[layer as usize]);
        let mut gradient = [0.0; N_FEATURES];
        for (expert, features) in (0_u32..).zip(&features) {
            let is_chosen = if experts.contains(&expert) { 1.0 } else { 0.0 };
            let error = is_chosen - self.probability(layer, expert, features);
            for (sum, x) in gradient.iter_mut().zip(features) {
                *sum += error * x;
            }
            self.offsets[layer as usize * self.n_experts + expert as usize] += OFFSET_RATE * error;
        }
        for (weight, gradient) in self.weights[layer as usize].iter_mut().zip(gradient) {
            *weight += LEARNING_RATE * gradient;
        }
        features.clear();
        self.rated[layer as usize] = features;
        if let Some((across, within)) = &mut self.pairs {
            across.observe(layer, experts);
            within.observe(layer, experts);
        }
        self.frequency.observe(layer, experts);
    }

    fn probability(&self, layer: u32, expert: u32, features: &[f64; N_FEATURES]) -> f64 {
        let offset = self.offsets[layer as usize * self.n_experts + expert as usize];
        let weights = &self.weights[layer as usize];
        let sum: f64 = weights.iter().zip(features).map(|(w, x)| w * x).sum();
        1.0 / (1.0 + (-sum - offset).exp())
    }
}

/// Scores less their mean, in standard deviations.
fn standardized(scores: &[f32]) -> impl Iterator<Item = f64> {
    let n = scores.len().max(1) as f64;
    let mean = scores.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = scores.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let deviation = variance.sqrt().max(1e-9);
    scores.iter().map(move |&x| (f64::from(x) - mean) / deviation)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: TraceShape = TraceShape { n_layers: 2, n_experts: 4, top_k: 1 };

    #[test]
    fn scores_decide_before_anything_is_learned() {
        let mut early = EarlyRouter::new(SHAPE);
        let mut out = Vec::new();
        early.rate(1, &[0.1, 2.0, -1.0, 0.5], &mut out);
        let order: Vec<u32> = out.iter().map(|guess| guess.expert).collect();
        assert_eq!(order, [1, 3, 0, 2]);
        assert!(out.iter().all(|guess| (0.0..=1.0).contains(&guess.probability)));
        early.rate(1, &[1.0, 2.0], &mut out);
        assert!(out.is_empty(), "scores of another model");
    }

    /// The early router always names expert 1, but expert 2 is chosen.
    #[test]
    fn a_router_that_errs_in_the_same_way_is_corrected() {
        let mut early = EarlyRouter::new(SHAPE);
        let mut out = Vec::new();
        for _ in 0..100 {
            early.observe(0, &[0]);
            early.rate(1, &[0.0, 1.0, 0.9, 0.0], &mut out);
            early.observe(1, &[2]);
        }
        early.observe(0, &[0]);
        early.rate(1, &[0.0, 1.0, 0.9, 0.0], &mut out);
        assert_eq!(out[0].expert, 2);
        assert!(out[0].probability > 0.8 && out[1].probability < 0.2, "{out:?}");
    }

    /// What one layer's early score is worth says nothing of another one's.
    #[test]
    fn layers_are_weighed_apart() {
        let shape = TraceShape { n_layers: 3, n_experts: 4, top_k: 1 };
        let mut early = EarlyRouter::new(shape);
        let mut out = Vec::new();
        let mut random = 1_u32;
        let mut draw = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random >> 30
        };
        let named = |expert: u32| [0, 1, 2, 3].map(|e| if e == expert { 1.0 } else { 0.0 });
        let mut last = (0.0, 0.0);
        for _ in 0..2_000 {
            early.observe(0, &[0]);
            let (noise, chosen) = (draw(), draw());
            early.rate(1, &named(noise), &mut out);
            last.0 = out.iter().find(|guess| guess.expert == noise).map_or(0.0, |g| g.probability);
            early.observe(1, &[draw()]);
            early.rate(2, &named(chosen), &mut out);
            last.1 = out.iter().find(|guess| guess.expert == chosen).map_or(0.0, |g| g.probability);
            early.observe(2, &[chosen]);
        }
        assert!(last.0 < 0.5 && last.1 > 0.9, "{last:?}");
    }
}
