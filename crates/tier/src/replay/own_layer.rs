//! A cache that knows in which order layers are used.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::cache::{Cache, Outcome, Pools};
use crate::policy::{Lrfu, Policy};
use crate::{Coactivation, Predictor, PredictorError, Source};

/// By how much, as a power of two, the score of the layer that is being served is lowered: its
/// other experts are needed a whole token later, those of all other layers earlier.
const OWN_LAYER_HALVINGS: f64 = 1.0;
/// Keeps ratios of small probabilities moderate.
const SMALL_PROBABILITY: f64 = 0.001;

/// [`Lrfu`], but the experts of the layer that is being served count half; and, if wanted, each
/// score is multiplied by how much likelier than usual the expert is for the next token, by pairs
/// within the layer, to some power.
pub(super) struct OwnLayerFirst {
    pools: Pools,
    policy: Lrfu,
    pairs: Option<Pairs>,
    /// Per layer: its residents, the coldest first.
    residents: Vec<BTreeSet<(Key, usize)>>,
    /// Per unit: its key, if it is resident.
    key_of_unit: Vec<Option<Key>>,
    /// Per pool.
    n_residents: Vec<usize>,
}

struct Pairs {
    counts: Coactivation,
    weight: f64,
    /// Per unit, what is added to the logarithm of its score.
    bonus: Vec<f64>,
    ratings: Vec<f64>,
    usual: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Key(f64);

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl OwnLayerFirst {
    /// `pair_weight` is the power; `None` leaves pairs out.
    pub(super) fn new(
        pools: Pools,
        half_life_tokens: f64,
        pair_weight: Option<f64>,
    ) -> Result<Self, PredictorError> {
        let n_units = pools.n_units();
        let pairs = match pair_weight {
            None => None,
            Some(weight) => Some(Pairs {
                counts: Coactivation::new(pools.shape, Source::TokenBefore)?,
                weight,
                bonus: vec![0.0; n_units],
                ratings: Vec::new(),
                usual: Vec::new(),
            }),
        };
        Ok(Self {
            policy: Lrfu::new(n_units, half_life_tokens),
            pairs,
            residents: vec![BTreeSet::new(); pools.shape.n_layers as usize],
            key_of_unit: vec![None; n_units],
            n_residents: vec![0; pools.slots_of_pool.len()],
            pools,
        })
    }

    fn key(&self, unit: usize) -> Key {
        let bonus = self.pairs.as_ref().map_or(0.0, |pairs| pairs.bonus[unit]);
        Key(self.policy.key(unit) + bonus)
    }

    fn insert(&mut self, layer: u32, unit: usize) {
        let key = self.key(unit);
        self.key_of_unit[unit] = Some(key);
        self.residents[layer as usize].insert((key, unit));
    }

    /// The coldest resident of `layer`'s pool, while `layer` is being served.
    fn victim(&self, layer: u32) -> Option<(Key, u32, usize)> {
        let (pool, _) = self.pools.of(layer);
        let layers = (0_u32..).zip(&self.residents);
        let of_pool = layers.filter(|(other, _)| self.pools.of(*other).0 == pool);
        let coldest = of_pool.filter_map(|(other, residents)| {
            let &(key, unit) = residents.first()?;
            let halvings = if other == layer { OWN_LAYER_HALVINGS } else { 0.0 };
            Some((Key(key.0 - halvings), other, unit))
        });
        coldest.min()
    }

    /// What the pairs say about the next token of `layer`, after they saw this one.
    fn expect(&mut self, layer: u32, experts: &[u32]) {
        let Some(pairs) = &mut self.pairs else { return };
        pairs.observe(layer, experts, self.pools.unit(layer, 0));
        let units: Vec<usize> = std::mem::take(&mut self.residents[layer as usize])
            .into_iter()
            .map(|(_, u)| u)
            .collect();
        for unit in units {
            self.insert(layer, unit);
        }
    }
}

impl Pairs {
    fn observe(&mut self, layer: u32, experts: &[u32], first_unit: usize) {
        self.counts.observe(layer, experts);
        self.counts.rate(layer, &mut self.ratings);
        self.counts.rate_usual(layer, &mut self.usual);
        for (index, (p, usual)) in self.ratings.iter().zip(&self.usual).enumerate() {
            let ratio = (p + SMALL_PROBABILITY) / (usual + SMALL_PROBABILITY);
            self.bonus[first_unit + index] = self.weight * ratio.log2();
        }
    }
}

impl Cache for OwnLayerFirst {
    fn demand(&mut self, now_tokens: f64, layer: u32, experts: &[u32]) -> Option<Outcome> {
        let (pool, slots) = self.pools.of(layer);
        if experts.len() > slots {
            return None;
        }
        let now = now_tokens + f64::from(layer) / f64::from(self.pools.shape.n_layers);
        self.expect(layer, experts);
        // What is needed leaves the order first, so that none of it gives way.
        let mut outcome = Outcome::default();
        for &expert in experts {
            let unit = self.pools.unit(layer, expert);
            if let Some(key) = self.key_of_unit[unit].take() {
                self.residents[layer as usize].remove(&(key, unit));
                self.n_residents[pool] -= 1;
                outcome.hits += 1;
            }
            self.policy.touch(unit, now);
        }
        while self.n_residents[pool] + experts.len() > slots {
            let Some((_, other, unit)) = self.victim(layer) else { break };
            if let Some(key) = self.key_of_unit[unit].take() {
                self.residents[other as usize].remove(&(key, unit));
            }
            self.n_residents[pool] -= 1;
            outcome.evictions += 1;
        }
        for &expert in experts {
            self.insert(layer, self.pools.unit(layer, expert));
        }
        self.n_residents[pool] += experts.len();
        Some(outcome)
    }
}
