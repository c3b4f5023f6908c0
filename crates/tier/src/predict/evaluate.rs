//! How often predictors are right.

use serde::Serialize;

use super::Predictor;
use crate::{Parts, ReplayError, SlotTable, TableSpec, Trace, UnitId};

/// What came of predicting a number of experts for each record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PredictionStats {
    /// Experts asked for.
    pub n: usize,
    /// Experts predicted: up to `n` per record.
    pub predicted: u64,
    /// Experts that the router chose.
    pub chosen: u64,
    /// Those of both.
    pub right: u64,
    /// Chosen experts that were not in the cache.
    pub misses: u64,
    /// Those of them that were predicted: their reads could have begun earlier.
    pub misses_predicted: u64,
    /// Predicted experts that were not in the cache: they would have been read.
    pub reads: u64,
}

impl PredictionStats {
    /// Share of the chosen experts that were predicted, 0 to 1.
    pub fn recall(&self) -> Option<f64> {
        share(self.right, self.chosen)
    }

    /// Share of the predicted experts that were chosen, 0 to 1.
    pub fn precision(&self) -> Option<f64> {
        share(self.right, self.predicted)
    }

    /// Share of the cache's misses that were predicted, 0 to 1.
    pub fn miss_recall(&self) -> Option<f64> {
        share(self.misses_predicted, self.misses)
    }

    /// Share of the reads ahead that the same token needed, 0 to 1.
    pub fn read_precision(&self) -> Option<f64> {
        share(self.misses_predicted, self.reads)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            n: self.n,
            predicted: self.predicted + other.predicted,
            chosen: self.chosen + other.chosen,
            right: self.right + other.right,
            misses: self.misses + other.misses,
            misses_predicted: self.misses_predicted + other.misses_predicted,
            reads: self.reads + other.reads,
        }
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Lets `predictor` see the traces one after the other, token by token and layer by layer, and
/// predict each record before it sees it: one result for each of `ns`, the numbers of experts to
/// predict. The first `warm_up_tokens` tokens of each trace are not counted.
///
/// Beside it stands a cache of `slots` slots for all layers, of the default policy and without
/// read-ahead: most of what is predicted is there anyhow, and only misses can be spared.
///
/// # Errors
/// [`ReplayError`] if there is no trace, the traces differ in shape, or the slots can't hold the
/// experts of one token.
pub fn evaluate(
    traces: &[&Trace],
    predictor: &mut dyn Predictor,
    ns: &[usize],
    warm_up_tokens: u32,
    slots: u32,
) -> Result<Vec<PredictionStats>, ReplayError> {
    let shape = traces.first().ok_or(ReplayError::NoTrace)?.shape();
    if let Some(other) = traces.iter().map(|trace| trace.shape()).find(|&s| s != shape) {
        return Err(ReplayError::Shapes { first: shape, other });
    }
    let mut table = SlotTable::new(TableSpec {
        n_experts: shape.n_experts,
        n_used: shape.top_k,
        pool_of_layer: vec![0; shape.n_layers as usize],
        slots_of_pool: vec![slots],
        parts_of_layer: vec![Parts::DOWN; shape.n_layers as usize],
    })?;
    let mut results: Vec<PredictionStats> =
        ns.iter().map(|&n| PredictionStats { n, ..PredictionStats::default() }).collect();
    let n_max = ns.iter().copied().max().unwrap_or(0);
    let (mut predicted, mut grants) = (Vec::new(), Vec::new());
    for (token, layer, experts) in traces.iter().flat_map(|trace| trace.by_token()) {
        let mut experts: Vec<u32> = experts.iter().copied().map(u32::from).collect();
        experts.sort_unstable();
        experts.dedup();
        if token >= warm_up_tokens {
            let is_absent = |&expert: &u32| table.lookup(UnitId { layer, expert }).is_none();
            predictor.predict(layer, n_max, &mut predicted);
            for result in &mut results {
                let predicted = &predicted[..result.n.min(predicted.len())];
                let right = || experts.iter().filter(|expert| predicted.contains(expert));
                *result = result.plus(PredictionStats {
                    n: result.n,
                    predicted: predicted.len() as u64,
                    chosen: experts.len() as u64,
                    right: right().count() as u64,
                    misses: experts.iter().copied().filter(|e| is_absent(e)).count() as u64,
                    misses_predicted: right().copied().filter(|e| is_absent(e)).count() as u64,
                    reads: predicted.iter().copied().filter(|e| is_absent(e)).count() as u64,
                });
            }
        }
        predictor.observe(layer, &experts);
        table.note_routing(layer, &experts);
        table
            .acquire(layer, &experts, Parts::ALL, &mut grants)
            .map_err(|_| ReplayError::TooFewSlots { slots, top_k: shape.top_k })?;
        for grant in grants.drain(..) {
            table.filled(UnitId { layer, expert: grant.expert }, grant.fill);
        }
        table.release_all();
    }
    Ok(results)
}
