//! Which experts a layer will want, guessed before its router has run.
//!
//! Predictors learn from what routers chose so far, online and without training. Each of them
//! rates all experts of a layer; the best rated are predicted. [`evaluate()`] tells from traces how
//! often they are right, and how often that would have spared a wait.

mod coactivation;
mod early;
mod evaluate;
mod history;
mod mix;

use thiserror::Error;

use crate::TraceShape;
pub use coactivation::{Coactivation, Source};
pub use early::{EarlyRouter, Guess};
pub use evaluate::{PredictionStats, evaluate};
pub use history::{Frequency, PreviousToken};
pub use mix::Mix;

/// Most counters that a predictor keeps: 64 MiB of them. [`Coactivation`] has one for each pair of
/// experts in each layer, which is enough for 128 layers of 512 experts.
pub const MAX_COUNTERS: usize = 1 << 25;

/// Predicts the experts of a layer from the routing that was observed.
///
/// Layers are named by their index among the layers that have experts, and experts by their index in
/// the layer; another one is a bug of the caller, and panics.
pub trait Predictor {
    /// The router of `layer` chose `experts` for a token. To be called token by token, and within a
    /// token layer by layer; of a batch, at least for its last token.
    fn observe(&mut self, layer: u32, experts: &[u32]);

    /// Predicts the choice of `layer` for the token whose earlier layers were observed last: up to
    /// `n` different experts into `out` (which is emptied first), likeliest first. What was never
    /// seen in a layer may be left out.
    fn predict(&mut self, layer: u32, n: usize, out: &mut Vec<u32>);
}

/// Why a predictor can't be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PredictorError {
    /// It would need more memory than it may have.
    #[error(
        "{shape} are too many to count pairs of experts: {counters} counters, at most \
         {MAX_COUNTERS} are kept"
    )]
    TooLarge {
        /// The model's shape.
        shape: TraceShape,
        /// Counters that it would need.
        counters: u128,
    },
}

/// The predictors, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PredictorKind {
    /// [`PreviousToken`].
    PreviousToken,
    /// [`Frequency`].
    Frequency,
    /// [`Coactivation`] from [`Source::LayerBefore`].
    AcrossLayers,
    /// [`Coactivation`] from [`Source::TokenBefore`].
    WithinLayer,
    /// [`Mix`].
    Mix,
}

impl PredictorKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::PreviousToken, Self::Frequency, Self::AcrossLayers, Self::WithinLayer, Self::Mix];

    /// A name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::PreviousToken => "token before",
            Self::Frequency => "most used so far",
            Self::AcrossLayers => "pairs, layer before",
            Self::WithinLayer => "pairs, token before",
            Self::Mix => "mix of all",
        }
    }

    /// A predictor that has seen nothing yet.
    ///
    /// # Errors
    /// [`PredictorError::TooLarge`].
    pub fn start(self, shape: TraceShape) -> Result<Box<dyn Predictor>, PredictorError> {
        Ok(match self {
            Self::PreviousToken => Box::new(PreviousToken::new(shape)),
            Self::Frequency => Box::new(Frequency::new(shape)),
            Self::AcrossLayers => Box::new(Coactivation::new(shape, Source::LayerBefore)?),
            Self::WithinLayer => Box::new(Coactivation::new(shape, Source::TokenBefore)?),
            Self::Mix => Box::new(Mix::new(shape)?),
        })
    }
}

/// The `n` best rated experts, best first; of equally rated ones the first. Ratings of zero and
/// below are no candidates.
fn best(ratings: &[f64], n: usize, out: &mut Vec<u32>) {
    out.clear();
    out.extend((0_u32..).zip(ratings).filter(|(_, rating)| **rating > 0.0).map(|(i, _)| i));
    out.sort_by(|&a, &b| ratings[b as usize].total_cmp(&ratings[a as usize]).then(a.cmp(&b)));
    out.truncate(n);
}

#[cfg(test)]
mod tests;
