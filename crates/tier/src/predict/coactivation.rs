//! Guesses from pairs: where this one fired, that one often does.

use super::{Frequency, MAX_COUNTERS, Predictor, PredictorError, best};
use crate::TraceShape;

/// A source's row of counters is halved when it has this many observations, so that what was
/// learned long ago fades, and no counter overflows.
const ROW_MAX: u16 = 4096;
/// How many observations the plain frequency of an expert is worth beside those of a pair (the
/// weight of the prior in a Dirichlet estimate).
const PRIOR_WEIGHT: f64 = 4.0;
/// Keeps ratios of small probabilities moderate.
const SMALL_PROBABILITY: f64 = 0.001;

/// From where a [`Coactivation`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the experts of the layer before, of the same token; for the first layer, those of the
    /// last layer of the token before.
    LayerBefore,
    /// From the experts of the same layer, of the token before.
    TokenBefore,
}

/// Counts how often expert `j` was chosen where expert `i` had been before, and rates `j` by the
/// mean of these shares over the experts that were chosen there last.
///
/// It keeps `n_layers * n_experts^2` counters of two bytes, at most [`MAX_COUNTERS`].
#[derive(Clone, Debug)]
pub struct Coactivation {
    source: Source,
    n_experts: usize,
    /// Per layer the experts that were chosen last.
    last: Vec<Vec<u32>>,
    /// Per layer and source expert: how often it was a source.
    rows: Vec<u16>,
    /// Per layer, source expert, and expert: how often both were chosen.
    pairs: Vec<u16>,
    frequency: Frequency,
    ratings: Vec<f64>,
}

impl Coactivation {
    /// Has seen nothing yet.
    ///
    /// # Errors
    /// [`PredictorError::TooLarge`].
    pub fn new(shape: TraceShape, source: Source) -> Result<Self, PredictorError> {
        let (layers, experts) = (u128::from(shape.n_layers), u128::from(shape.n_experts));
        let counters = layers * experts * experts;
        let too_large = PredictorError::TooLarge { shape, counters };
        let n_pairs = usize::try_from(counters).map_err(|_| too_large.clone())?;
        if n_pairs > MAX_COUNTERS {
            return Err(too_large);
        }
        Ok(Self {
            source,
            n_experts: shape.n_experts as usize,
            last: vec![Vec::new(); shape.n_layers as usize],
            rows: vec![0; shape.n_layers as usize * shape.n_experts as usize],
            pairs: vec![0; n_pairs],
            frequency: Frequency::new(shape),
            ratings: Vec::new(),
        })
    }

    /// The probability that the coming token chooses each expert, into `out`.
    pub(crate) fn rate(&self, layer: u32, out: &mut Vec<f64>) {
        self.frequency.rate(layer, out);
        let sources = &self.last[self.source_of(layer)];
        if sources.is_empty() {
            return;
        }
        // Each source rates by (pairs + weight * prior) / (row + weight); the mean of that is the
        // sum of a part that is the prior's, and of parts that are the pairs'.
        let weights = sources.iter().map(|&source| {
            let row = self.row(layer, source);
            (row, 1.0 / ((f64::from(self.rows[row]) + PRIOR_WEIGHT) * sources.len() as f64))
        });
        let prior: f64 = weights.clone().map(|(_, weight)| weight * PRIOR_WEIGHT).sum();
        out.iter_mut().for_each(|rating| *rating *= prior);
        for (row, weight) in weights {
            let pairs = &self.pairs[row * self.n_experts..][..self.n_experts];
            for (rating, &pairs) in out.iter_mut().zip(pairs) {
                *rating += weight * f64::from(pairs);
            }
        }
    }

    /// How much likelier than usual the coming token chooses each expert, as a power of two, into
    /// `out`: see [`SlotTable::set_outlook`](crate::SlotTable::set_outlook).
    pub(crate) fn outlook(&self, layer: u32, out: &mut Vec<f64>) {
        self.rate(layer, out);
        for (expert, rating) in out.iter_mut().enumerate() {
            let usual = self.frequency.rate_of(layer, expert);
            *rating = ((*rating + SMALL_PROBABILITY) / (usual + SMALL_PROBABILITY)).log2();
        }
    }

    fn source_of(&self, layer: u32) -> usize {
        match self.source {
            Source::TokenBefore => layer as usize,
            Source::LayerBefore => (layer as usize).checked_sub(1).unwrap_or(self.last.len() - 1),
        }
    }

    fn row(&self, layer: u32, source: u32) -> usize {
        layer as usize * self.n_experts + source as usize
    }
}

impl Predictor for Coactivation {
    fn observe(&mut self, layer: u32, experts: &[u32]) {
        let source_of = self.source_of(layer);
        let sources = std::mem::take(&mut self.last[source_of]);
        for &source in &sources {
            let row = self.row(layer, source);
            let pairs = &mut self.pairs[row * self.n_experts..][..self.n_experts];
            if self.rows[row] == ROW_MAX {
                self.rows[row] /= 2;
                pairs.iter_mut().for_each(|pairs| *pairs /= 2);
            }
            self.rows[row] += 1;
            for &expert in experts {
                // A token names an expert once; if not, this must not overflow all the same.
                let pairs = &mut pairs[expert as usize];
                *pairs = pairs.saturating_add(1);
            }
        }
        self.last[source_of] = sources;
        self.last[layer as usize].clear();
        self.last[layer as usize].extend(experts);
        self.frequency.observe(layer, experts);
    }

    fn predict(&mut self, layer: u32, n: usize, out: &mut Vec<u32>) {
        let mut ratings = std::mem::take(&mut self.ratings);
        self.rate(layer, &mut ratings);
        best(&ratings, n, out);
        self.ratings = ratings;
    }
}
