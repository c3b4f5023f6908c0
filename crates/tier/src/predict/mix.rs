//! The guesses of the others, weighed by how right they were.

use super::{Coactivation, Frequency, Predictor, PredictorError, PreviousToken, Source, best};
use crate::TraceShape;

/// Estimates of one expert: both kinds of pairs, frequency, recency, and a constant.
const N_FEATURES: usize = 5;
/// The mean of the two kinds of pairs, until something better is learned.
const START_WEIGHTS: [f64; N_FEATURES] = [0.5, 0.5, 0.0, 0.0, 0.0];
/// Step of the gradient descent: a weight moves by about 1 in a thousand tokens of one layer.
const LEARNING_RATE: f64 = 0.002;
/// Probabilities are kept this far from 0 and 1, so that their logarithms are finite.
const MARGIN: f64 = 0.002;

/// A logistic regression over the estimates of [`Coactivation`] (both kinds), [`Frequency`] and
/// [`PreviousToken`], in log odds, whose weights are learned as it goes by gradient descent on the
/// logarithmic loss ("stacking": Wolpert, "Stacked generalization", Neural Networks 5(2), 1992). The
/// weights are common to all layers.
#[derive(Clone, Debug)]
pub struct Mix {
    across: Coactivation,
    within: Coactivation,
    frequency: Frequency,
    recency: PreviousToken,
    weights: [f64; N_FEATURES],
    /// Estimates of one layer: per expert.
    features: Vec<[f64; N_FEATURES]>,
    column: Vec<f64>,
    ratings: Vec<f64>,
}

impl Mix {
    /// Has seen nothing yet. It keeps twice the counters of a [`Coactivation`].
    ///
    /// # Errors
    /// [`PredictorError::TooLarge`].
    pub fn new(shape: TraceShape) -> Result<Self, PredictorError> {
        Ok(Self {
            across: Coactivation::new(shape, Source::LayerBefore)?,
            within: Coactivation::new(shape, Source::TokenBefore)?,
            frequency: Frequency::new(shape),
            recency: PreviousToken::new(shape),
            weights: START_WEIGHTS,
            features: Vec::new(),
            column: Vec::new(),
            ratings: Vec::new(),
        })
    }

    fn gather(&mut self, layer: u32) {
        let (features, column) = (&mut self.features, &mut self.column);
        features.clear();
        features.extend(
            self.recency
                .ages(layer)
                .map(|age| [0.0, 0.0, 0.0, age.map_or(0.0, |age| 1.0 / age as f64), 1.0]),
        );
        let mut fill = |index: usize, column: &[f64]| {
            for (features, &p) in features.iter_mut().zip(column) {
                features[index] = log_odds(p);
            }
        };
        self.across.rate(layer, column);
        fill(0, column);
        self.within.rate(layer, column);
        fill(1, column);
        self.frequency.rate(layer, column);
        fill(2, column);
    }

    fn probability(&self, features: &[f64; N_FEATURES]) -> f64 {
        let sum: f64 = self.weights.iter().zip(features).map(|(w, x)| w * x).sum();
        1.0 / (1.0 + (-sum).exp())
    }
}

impl Predictor for Mix {
    fn observe(&mut self, layer: u32, experts: &[u32]) {
        self.gather(layer);
        let mut gradient = [0.0; N_FEATURES];
        for (expert, features) in (0_u32..).zip(&self.features) {
            let is_chosen = if experts.contains(&expert) { 1.0 } else { 0.0 };
            let error = is_chosen - self.probability(features);
            for (sum, x) in gradient.iter_mut().zip(features) {
                *sum += error * x;
            }
        }
        for (weight, gradient) in self.weights.iter_mut().zip(gradient) {
            *weight += LEARNING_RATE * gradient;
        }
        self.across.observe(layer, experts);
        self.within.observe(layer, experts);
        self.frequency.observe(layer, experts);
        self.recency.observe(layer, experts);
    }

    fn predict(&mut self, layer: u32, n: usize, out: &mut Vec<u32>) {
        self.gather(layer);
        let mut ratings = std::mem::take(&mut self.ratings);
        ratings.clear();
        ratings.extend(self.features.iter().map(|features| self.probability(features)));
        best(&ratings, n, out);
        self.ratings = ratings;
    }
}

pub(super) fn log_odds(p: f64) -> f64 {
    let p = p.clamp(MARGIN, 1.0 - MARGIN);
    (p / (1.0 - p)).ln()
}
