//! What a trace is like: how uneven the experts are used, and how often they repeat.

use serde::Serialize;

use super::Trace;

/// A trace in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceSummary {
    /// Layers that have experts.
    pub n_layers: u32,
    /// Experts of each layer.
    pub n_experts: u32,
    /// Experts per token and layer.
    pub top_k: u32,
    /// Decisions recorded: at most one per token and layer.
    pub records: u64,
    /// Tokens that some layer saw.
    pub tokens: u64,
    /// Each layer in order.
    pub layers: Vec<LayerSummary>,
    /// All layers together: means over the layers that were seen, weighted by their uses.
    pub mean: LayerSummary,
}

/// One layer in numbers. All shares are 0 to 1, and 0 for a layer that was never seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LayerSummary {
    /// Experts chosen, over all tokens.
    pub uses: u64,
    /// Different experts that were chosen at all.
    pub experts_used: f64,
    /// Share of the uses that went to the busiest quarter of the experts.
    pub busiest_quarter: f64,
    /// How many equally busy experts would be as unpredictable: 2 to the entropy of the uses.
    pub effective_experts: f64,
    /// Share of a token's experts that the token before it had chosen too.
    pub repeats: f64,
    /// What that share would be if each token chose without regard to the one before.
    pub repeats_by_chance: f64,
}

impl Trace {
    /// Looks through the whole trace.
    pub fn summary(&self) -> TraceSummary {
        let shape = self.shape();
        let n_experts = shape.n_experts as usize;
        let mut counts = vec![vec![0_u64; n_experts]; shape.n_layers as usize];
        let mut previous: Vec<&[u16]> = vec![&[]; shape.n_layers as usize];
        // Per layer: experts that had a token before them, and those of them that repeat.
        let mut pairs = vec![(0_u64, 0_u64); shape.n_layers as usize];
        let records = self.by_token();
        for &(_, layer, experts) in &records {
            let layer = layer as usize;
            for &expert in experts {
                counts[layer][usize::from(expert)] += 1;
            }
            if !previous[layer].is_empty() {
                let repeats = experts.iter().filter(|expert| previous[layer].contains(expert));
                pairs[layer].0 += experts.len() as u64;
                pairs[layer].1 += repeats.count() as u64;
            }
            previous[layer] = experts;
        }
        let layers: Vec<LayerSummary> = counts
            .iter()
            .zip(&pairs)
            .map(|(counts, &pairs)| layer_summary(counts, pairs, shape.top_k))
            .collect();
        TraceSummary {
            n_layers: shape.n_layers,
            n_experts: shape.n_experts,
            top_k: shape.top_k,
            records: records.len() as u64,
            tokens: records.last().map_or(0, |&(token, ..)| u64::from(token) + 1),
            mean: mean(&layers),
            layers,
        }
    }
}

fn layer_summary(counts: &[u64], (followers, repeats): (u64, u64), top_k: u32) -> LayerSummary {
    let uses: u64 = counts.iter().sum();
    if uses == 0 {
        return LayerSummary::default();
    }
    let mut shares: Vec<f64> = counts.iter().map(|&count| count as f64 / uses as f64).collect();
    shares.sort_by(|a, b| b.total_cmp(a));
    let entropy_bits: f64 = shares.iter().filter(|&&p| p > 0.0).map(|p| -p * p.log2()).sum();
    // A token chooses expert e with probability q = top_k * p. Of its top_k experts, the sum of q * q
    // over all experts is expected among those of an unrelated token.
    let chance = f64::from(top_k) * shares.iter().map(|p| p * p).sum::<f64>();
    LayerSummary {
        uses,
        experts_used: counts.iter().filter(|&&count| count > 0).count() as f64,
        busiest_quarter: shares.iter().take(counts.len().div_ceil(4)).sum(),
        effective_experts: entropy_bits.exp2(),
        repeats: repeats as f64 / followers.max(1) as f64,
        repeats_by_chance: chance.min(1.0),
    }
}

fn mean(layers: &[LayerSummary]) -> LayerSummary {
    let uses: u64 = layers.iter().map(|layer| layer.uses).sum();
    let mean = |value: fn(&LayerSummary) -> f64| {
        let sum: f64 = layers.iter().map(|layer| value(layer) * layer.uses as f64).sum();
        sum / uses.max(1) as f64
    };
    LayerSummary {
        uses,
        experts_used: mean(|layer| layer.experts_used),
        busiest_quarter: mean(|layer| layer.busiest_quarter),
        effective_experts: mean(|layer| layer.effective_experts),
        repeats: mean(|layer| layer.repeats),
        repeats_by_chance: mean(|layer| layer.repeats_by_chance),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Trace, TraceRecord, TraceShape};

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
    }

    #[test]
    fn numbers_of_a_small_trace() {
        let shape = TraceShape { n_layers: 2, n_experts: 8, top_k: 2 };
        let mut trace = Trace::new(shape).expect("a shape that fits");
        let tokens: [[u16; 2]; 5] = [[0, 1], [1, 0], [0, 2], [0, 3], [5, 4]];
        for (token, experts) in (0..).zip(&tokens) {
            trace.push(TraceRecord { token, layer: 0, experts }).expect("it fits");
        }
        let summary = trace.summary();
        assert_eq!((summary.records, summary.tokens), (5, 5));
        assert_eq!(summary.layers[1], super::LayerSummary::default());
        let layer = summary.layers[0];
        assert_eq!(layer.uses, 10);
        close(layer.experts_used, 6.0);
        // Uses: 4, 2, 1, 1, 1, 1, and two experts without.
        close(layer.busiest_quarter, 0.6);
        let bits = 0.4 * (10.0_f64 / 4.0).log2() + 0.2 * 5.0_f64.log2() + 0.4 * 10.0_f64.log2();
        close(layer.effective_experts, bits.exp2());
        // Of the eight experts after the first token, 1 0, 0 and 0 repeat.
        close(layer.repeats, 0.5);
        close(layer.repeats_by_chance, 2.0 * (0.16 + 0.04 + 4.0 * 0.01));
        close(summary.mean.repeats, 0.5);
    }

    #[test]
    fn an_empty_trace() {
        let shape = TraceShape { n_layers: 2, n_experts: 8, top_k: 2 };
        let summary = Trace::new(shape).expect("a shape that fits").summary();
        assert_eq!((summary.tokens, summary.mean.uses), (0, 0));
        close(summary.mean.repeats, 0.0);
    }
}
