//! One question, many answers: the same traces and slots under every kind of replacement.

use super::cache::{self, Cache, Segmented, Segments, TableCache};
use super::{Demand, ReplayError, ReplayStats, belady, demands};
use crate::policy::{AgedLfu, Pinned};
use crate::{Coactivation, Lfu, Lrfu, Lru, Policy, Source, Trace, TraceShape};

/// Who gives way.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Replacement {
    /// [`Lru`].
    Lru,
    /// [`Lfu`]: counts are never forgotten.
    Lfu,
    /// [`AgedLfu`]: counts are halved after each period.
    AgedLfu {
        /// Tokens from one halving to the next.
        period_tokens: f64,
    },
    /// [`Lrfu`].
    Lrfu {
        /// Tokens after which a use counts half.
        half_life_tokens: f64,
    },
    /// [`Lrfu`], but the experts of the layer that is being served count half: they are needed a
    /// whole token later, those of other layers earlier
    /// ([`SlotTable::set_own_layer_discount`](crate::SlotTable::set_own_layer_discount)).
    OwnLayerFirst {
        /// Tokens after which a use counts half.
        half_life_tokens: f64,
        /// Whether among the coldest it counts which ones the next token will probably choose, by
        /// [`Coactivation`] within their layers
        /// ([`SlotTable::set_outlook`](crate::SlotTable::set_outlook)).
        with_pairs: bool,
    },
    /// Segmented LRU (Karedla, Love and Wherry, "Caching strategies to improve disk system
    /// performance", IEEE Computer 27(3), 1994): a second use brings a unit into the protected
    /// segment; when that is full, its least recently used unit moves back.
    Slru {
        /// Share of the slots that is protected.
        protected_share: f64,
    },
    /// Least frequent, recently used (Bilal and Kang, "A cache management scheme for efficient
    /// content eviction and replication in cache networks", IEEE Access 5, 2017): what was used
    /// last is privileged, and of the rest the least frequently used gives way. Counts age as in
    /// [`AgedLfu`].
    Lfru {
        /// Share of the slots that is privileged.
        privileged_share: f64,
        /// Tokens from one halving of the counts to the next.
        period_tokens: f64,
    },
    /// The most used units stay ([`Pinned`]), the others go by [`Lru`] or [`Lrfu`].
    Pins {
        /// How the most used ones are known.
        learned: Learned,
        /// Share of the slots that is given to them.
        share: f64,
        /// [`Lrfu`] of this half-life for the others, or [`Lru`].
        half_life_tokens: Option<f64>,
    },
}

/// From what pins are learned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Learned {
    /// From the first tokens of what is replayed.
    FromStart {
        /// How many tokens.
        tokens: u32,
    },
    /// From other traces: how often each unit was used there, as [`Trace::unit_uses`] counts it.
    FromUses(Vec<u64>),
}

impl Replacement {
    /// A name for tables, such as `LRFU 128`: half-lives and periods in tokens.
    pub fn name(&self) -> String {
        let percent = |share: &f64| format!("{:.0}%", share * 100.0);
        match self {
            Self::Lru => "LRU".to_owned(),
            Self::Lfu => "LFU".to_owned(),
            Self::AgedLfu { period_tokens } => format!("LFU halved each {period_tokens:.0}"),
            Self::Lrfu { half_life_tokens } => format!("LRFU {half_life_tokens:.0}"),
            Self::OwnLayerFirst { half_life_tokens, with_pairs } => {
                let pairs = if *with_pairs { ", pairs" } else { "" };
                format!("LRFU {half_life_tokens:.0}, own layer first{pairs}")
            }
            Self::Slru { protected_share } => format!("SLRU {}", percent(protected_share)),
            Self::Lfru { privileged_share, period_tokens } => {
                format!("LFRU {} / {period_tokens:.0}", percent(privileged_share))
            }
            Self::Pins { learned, share, half_life_tokens } => {
                let source = match learned {
                    Learned::FromStart { tokens } => format!("of {tokens} tokens"),
                    Learned::FromUses(_) => "of the others".to_owned(),
                };
                let rest = half_life_tokens.map_or("LRU".to_owned(), |h| format!("LRFU {h:.0}"));
                format!("{} pinned {source}, {rest}", percent(share))
            }
        }
    }
}

/// How the slots are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// One pool for all layers.
    OnePool,
    /// An equal share for each layer.
    PerLayer,
}

/// Traces that one cache sees one after the other.
#[derive(Clone, Debug)]
pub struct Simulation {
    shape: TraceShape,
    /// Each trace's records.
    traces: Vec<Vec<Demand>>,
    /// In each trace, hits and misses of tokens before this one are not counted.
    warm_up_tokens: u32,
}

impl Simulation {
    /// Prepares traces to be replayed in this order. The first `warm_up_tokens` tokens of each are
    /// replayed and not counted.
    ///
    /// # Errors
    /// [`ReplayError::NoTrace`], [`ReplayError::Shapes`].
    pub fn new(traces: &[&Trace], warm_up_tokens: u32) -> Result<Self, ReplayError> {
        let shape = traces.first().ok_or(ReplayError::NoTrace)?.shape();
        if let Some(other) = traces.iter().map(|trace| trace.shape()).find(|&s| s != shape) {
            return Err(ReplayError::Shapes { first: shape, other });
        }
        let traces = traces.iter().map(|trace| demands(trace)).collect();
        Ok(Self { shape, traces, warm_up_tokens })
    }

    /// What the traces are of.
    pub fn shape(&self) -> TraceShape {
        self.shape
    }

    /// Tokens that are counted: those that some layer saw after the warm-up, in all traces.
    pub fn counted_tokens(&self) -> u64 {
        let counted = |trace: &Vec<Demand>| {
            let tokens = trace.iter().map(|demand| demand.token + 1).max().unwrap_or(0);
            u64::from(tokens.saturating_sub(self.warm_up_tokens))
        };
        self.traces.iter().map(counted).sum()
    }

    /// What a cache of `slots` slots in all does.
    ///
    /// # Errors
    /// [`ReplayError::TooFewSlots`], [`ReplayError::TooFewSlotsPerLayer`].
    pub fn run(
        &self,
        replacement: &Replacement,
        sharing: Sharing,
        slots: u32,
    ) -> Result<ReplayStats, ReplayError> {
        let pools = self.pools(sharing, slots);
        let n_units = pools.n_units();
        match replacement {
            Replacement::Lru => self.by_policy(Lru::new(n_units), sharing, slots),
            Replacement::Lfu => self.by_policy(Lfu::new(n_units), sharing, slots),
            Replacement::AgedLfu { period_tokens } => {
                self.by_policy(AgedLfu::new(n_units, *period_tokens), sharing, slots)
            }
            Replacement::Lrfu { half_life_tokens } => {
                self.by_policy(Lrfu::new(n_units, *half_life_tokens), sharing, slots)
            }
            Replacement::OwnLayerFirst { half_life_tokens, with_pairs } => {
                let mut cache = TableCache::new(pools, Lrfu::new(n_units, *half_life_tokens))?;
                cache.own_layer_first();
                if *with_pairs {
                    cache.look_out(Coactivation::new(self.shape, Source::TokenBefore)?);
                }
                self.by_cache(cache, sharing, slots)
            }
            Replacement::Slru { protected_share } => {
                let cache = Segmented::new(pools, Segments::Slru, *protected_share);
                self.by_cache(cache, sharing, slots)
            }
            Replacement::Lfru { privileged_share, period_tokens } => {
                let kind = Segments::Lfru { period_tokens: *period_tokens };
                self.by_cache(Segmented::new(pools, kind, *privileged_share), sharing, slots)
            }
            Replacement::Pins { learned, share, half_life_tokens } => match half_life_tokens {
                Some(half_life) => {
                    let inner = Lrfu::new(n_units, *half_life);
                    self.by_policy(
                        self.pinned(inner, learned, *share, sharing, slots),
                        sharing,
                        slots,
                    )
                }
                None => {
                    let inner = Lru::new(n_units);
                    self.by_policy(
                        self.pinned(inner, learned, *share, sharing, slots),
                        sharing,
                        slots,
                    )
                }
            },
        }
    }

    /// The fewest misses that any replacement could have, without read-ahead: Belady's optimum, and
    /// after a warm-up a bound that is a little lower than it, as the cache goes into the counted
    /// tokens with the best of what was touched before.
    ///
    /// # Errors
    /// [`ReplayError::TooFewSlots`], [`ReplayError::TooFewSlotsPerLayer`].
    pub fn belady(&self, sharing: Sharing, slots: u32) -> Result<ReplayStats, ReplayError> {
        let demands: Vec<Demand> = self.traces.iter().flatten().cloned().collect();
        belady::belady(&demands, &self.pools(sharing, slots), self.warm_up_tokens)
            .ok_or_else(|| self.too_few(sharing, slots))
    }

    /// What a cache with a slot for every unit does: its misses are first touches.
    pub fn unlimited(&self) -> ReplayStats {
        let mut touched = vec![false; self.shape.n_layers as usize * self.shape.n_experts as usize];
        let mut stats = ReplayStats::default();
        for demand in self.traces.iter().flatten() {
            let counts = demand.token >= self.warm_up_tokens;
            for &expert in &demand.experts {
                let unit = demand.layer * self.shape.n_experts + expert;
                let is_hit = std::mem::replace(&mut touched[unit as usize], true);
                stats.lookups += u64::from(counts);
                stats.hits += u64::from(counts && is_hit);
                stats.misses += u64::from(counts && !is_hit);
            }
        }
        stats
    }

    fn pinned<P: Policy>(
        &self,
        inner: P,
        learned: &Learned,
        share: f64,
        sharing: Sharing,
        slots: u32,
    ) -> Pinned<P> {
        let (group_units, group_slots) = match sharing {
            Sharing::OnePool => (inner.n_units(), slots),
            Sharing::PerLayer => (self.shape.n_experts as usize, slots / self.shape.n_layers),
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most the slots
        let pins = (f64::from(group_slots) * share.clamp(0.0, 1.0)) as usize;
        match learned {
            Learned::FromStart { tokens } => {
                // The table's first token is at time 1.
                Pinned::learned(inner, f64::from(*tokens) + 1.0, group_units, pins)
            }
            Learned::FromUses(uses) => Pinned::known(inner, uses, group_units, pins),
        }
    }

    fn by_policy<P: Policy>(
        &self,
        policy: P,
        sharing: Sharing,
        slots: u32,
    ) -> Result<ReplayStats, ReplayError> {
        let cache = TableCache::new(self.pools(sharing, slots), policy)?;
        self.by_cache(cache, sharing, slots)
    }

    fn by_cache(
        &self,
        mut cache: impl Cache,
        sharing: Sharing,
        slots: u32,
    ) -> Result<ReplayStats, ReplayError> {
        let mut stats = ReplayStats::default();
        let mut trace_start = 0.0;
        for trace in &self.traces {
            let mut now = trace_start;
            for demand in trace {
                now = trace_start + f64::from(demand.token);
                let outcome = cache
                    .demand(now, demand.layer, &demand.experts)
                    .ok_or_else(|| self.too_few(sharing, slots))?;
                if demand.token >= self.warm_up_tokens {
                    stats = stats.plus(outcome.stats(demand));
                }
            }
            trace_start = now + 1.0;
        }
        Ok(stats)
    }

    fn pools(&self, sharing: Sharing, slots: u32) -> cache::Pools {
        match sharing {
            Sharing::OnePool => cache::Pools::shared(self.shape, slots),
            Sharing::PerLayer => cache::Pools::per_layer(self.shape, slots),
        }
    }

    fn too_few(&self, sharing: Sharing, slots: u32) -> ReplayError {
        let TraceShape { top_k, n_layers: layers, .. } = self.shape;
        match sharing {
            Sharing::OnePool => ReplayError::TooFewSlots { slots, top_k },
            Sharing::PerLayer => ReplayError::TooFewSlotsPerLayer { slots, top_k, layers },
        }
    }
}

impl Trace {
    /// How often each unit was used, by number: `layer * n_experts + expert`.
    pub fn unit_uses(&self) -> Vec<u64> {
        let shape = self.shape();
        let mut uses = vec![0; shape.n_layers as usize * shape.n_experts as usize];
        for record in self.records() {
            let first = record.layer as usize * shape.n_experts as usize;
            for &expert in record.experts {
                uses[first + usize::from(expert)] += 1;
            }
        }
        uses
    }
}
