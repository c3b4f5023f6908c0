//! Caches that a simulation asks for experts.

use std::collections::BTreeSet;

use crate::policy::AgedLfu;
use crate::table::OWN_LAYER_DISCOUNT;
use crate::{
    Coactivation, Parts, Policy, Predictor, SlotTable, SpecError, TableSpec, TraceShape, UnitId,
};

/// What one record did to a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) hits: u64,
    pub(super) evictions: u64,
}

/// A cache: pools of equal slots, of which each layer uses one.
pub(super) trait Cache {
    /// Experts of one layer, each named once, are needed at once. `None`, and nothing changes, if
    /// their pool has too few slots.
    fn demand(&mut self, now_tokens: f64, layer: u32, experts: &[u32]) -> Option<Outcome>;
}

/// The pools of a simulated cache.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    pub(super) shape: TraceShape,
    pub(super) pool_of_layer: Vec<u32>,
    pub(super) slots_of_pool: Vec<u32>,
}

impl Pools {
    /// One pool for all layers.
    pub(super) fn shared(shape: TraceShape, slots: u32) -> Self {
        let pool_of_layer = vec![0; shape.n_layers as usize];
        Self { shape, pool_of_layer, slots_of_pool: vec![slots] }
    }

    /// A pool for each layer, of as nearly the same size as can be.
    pub(super) fn per_layer(shape: TraceShape, slots: u32) -> Self {
        let (each, more) = (slots / shape.n_layers, slots % shape.n_layers);
        Self {
            shape,
            pool_of_layer: (0..shape.n_layers).collect(),
            slots_of_pool: (0..shape.n_layers).map(|l| each + u32::from(l < more)).collect(),
        }
    }

    /// The pool of `layer`, and its slots.
    pub(super) fn of(&self, layer: u32) -> (usize, usize) {
        let pool = self.pool_of_layer[layer as usize] as usize;
        (pool, self.slots_of_pool[pool] as usize)
    }

    pub(super) fn unit(&self, layer: u32, expert: u32) -> usize {
        layer as usize * self.shape.n_experts as usize + expert as usize
    }

    pub(super) fn n_units(&self) -> usize {
        self.shape.n_layers as usize * self.shape.n_experts as usize
    }
}

/// The engine's own slot table, with any policy, and reads that take no time.
pub(super) struct TableCache<P: Policy> {
    table: SlotTable<P>,
    pools: Pools,
    free_of_pool: Vec<u64>,
    grants: Vec<crate::Grant>,
    /// If the table is told what the next token will probably choose, by pairs.
    pairs: Option<Coactivation>,
    outlook: Vec<f64>,
}

impl<P: Policy> TableCache<P> {
    pub(super) fn new(pools: Pools, policy: P) -> Result<Self, SpecError> {
        let spec = TableSpec {
            n_experts: pools.shape.n_experts,
            n_used: pools.shape.top_k,
            pool_of_layer: pools.pool_of_layer.clone(),
            slots_of_pool: pools.slots_of_pool.clone(),
            parts_of_layer: vec![Parts::DOWN; pools.shape.n_layers as usize],
        };
        let free_of_pool = pools.slots_of_pool.iter().copied().map(u64::from).collect();
        let table = SlotTable::with_policy(spec, policy)?;
        let (grants, outlook) = (Vec::new(), Vec::new());
        Ok(Self { table, pools, free_of_pool, grants, pairs: None, outlook })
    }

    /// See [`SlotTable::set_own_layer_discount`].
    pub(super) fn own_layer_first(&mut self) {
        self.table.set_own_layer_discount(OWN_LAYER_DISCOUNT);
    }

    /// See [`SlotTable::set_outlook`].
    pub(super) fn look_out(&mut self, pairs: Coactivation) {
        self.pairs = Some(pairs);
    }
}

impl<P: Policy> Cache for TableCache<P> {
    fn demand(&mut self, _now_tokens: f64, layer: u32, experts: &[u32]) -> Option<Outcome> {
        let (pool, slots) = self.pools.of(layer);
        if experts.len() > slots {
            return None;
        }
        self.table.note_routing(layer, experts);
        if let Some(pairs) = &mut self.pairs {
            pairs.observe(layer, experts);
            pairs.outlook(layer, &mut self.outlook);
            self.table.set_outlook(layer, &self.outlook);
        }
        self.table.acquire(layer, experts, Parts::ALL, &mut self.grants).ok()?;
        let mut hits = 0;
        for grant in self.grants.drain(..) {
            if grant.fill.is_empty() {
                hits += 1;
            } else {
                self.table.filled(UnitId { layer, expert: grant.expert }, grant.fill);
            }
        }
        self.table.release_all();
        let misses = experts.len() as u64 - hits;
        let free = &mut self.free_of_pool[pool];
        let evictions = misses.saturating_sub(*free);
        *free = free.saturating_sub(misses);
        Some(Outcome { hits, evictions })
    }
}

/// How a [`Segmented`] cache treats its two segments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Segments {
    /// SLRU: a new unit comes into the open segment, a second use brings it into the protected one;
    /// both go by recency.
    Slru,
    /// LFRU: each use brings a unit into the protected segment, which goes by recency; the open
    /// one goes by frequency, with counts halved after each period of this many tokens.
    Lfru { period_tokens: f64 },
}

/// A cache of two segments. Units give way from the open one; when the protected one is full, its
/// least recently used unit moves to the open one.
pub(super) struct Segmented {
    kind: Segments,
    pools: Pools,
    residents: Vec<Residents>,
    /// Slots of the protected segment, per pool.
    protected_max: Vec<usize>,
    /// Per unit: where it is, and its key there.
    place_of_unit: Vec<Option<(Segment, u64)>>,
    frequency: AgedLfu,
    /// Counts changes of place: the time by which recency is told.
    stamp: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Open,
    Protected,
}

/// Units in the order in which they give way: key, then number.
#[derive(Clone, Debug, Default)]
struct Residents {
    open: BTreeSet<(u64, usize)>,
    protected: BTreeSet<(u64, usize)>,
}

impl Residents {
    fn len(&self) -> usize {
        self.open.len() + self.protected.len()
    }

    fn segment(&mut self, segment: Segment) -> &mut BTreeSet<(u64, usize)> {
        match segment {
            Segment::Open => &mut self.open,
            Segment::Protected => &mut self.protected,
        }
    }
}

impl Segmented {
    /// `protected_share` of each pool's slots are protected, 0 to 1.
    pub(super) fn new(pools: Pools, kind: Segments, protected_share: f64) -> Self {
        let share = protected_share.clamp(0.0, 1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most the slots
        let protected_max =
            pools.slots_of_pool.iter().map(|&slots| (f64::from(slots) * share) as usize).collect();
        let period_tokens = match kind {
            Segments::Slru => 1.0,
            Segments::Lfru { period_tokens } => period_tokens,
        };
        Self {
            kind,
            residents: vec![Residents::default(); pools.slots_of_pool.len()],
            protected_max,
            place_of_unit: vec![None; pools.n_units()],
            frequency: AgedLfu::new(pools.n_units(), period_tokens),
            stamp: 0,
            pools,
        }
    }

    fn put(&mut self, pool: usize, unit: usize, segment: Segment) {
        self.stamp += 1;
        let key = match (self.kind, segment) {
            // A used unit's key is not negative, and such numbers are ordered as their bits are.
            (Segments::Lfru { .. }, Segment::Open) => self.frequency.key(unit).to_bits(),
            _ => self.stamp,
        };
        self.place_of_unit[unit] = Some((segment, key));
        self.residents[pool].segment(segment).insert((key, unit));
    }
}

impl Cache for Segmented {
    fn demand(&mut self, now_tokens: f64, layer: u32, experts: &[u32]) -> Option<Outcome> {
        let (pool, slots) = self.pools.of(layer);
        if experts.len() > slots {
            return None;
        }
        // What is needed leaves the order first, so that none of it gives way.
        let mut outcome = Outcome::default();
        let mut segments = Vec::with_capacity(experts.len());
        for &expert in experts {
            let unit = self.pools.unit(layer, expert);
            self.frequency.touch(unit, now_tokens);
            let place = self.place_of_unit[unit].take();
            if let Some((segment, key)) = place {
                self.residents[pool].segment(segment).remove(&(key, unit));
                outcome.hits += 1;
            }
            segments.push(match self.kind {
                Segments::Slru if place.is_none() => Segment::Open,
                _ => Segment::Protected,
            });
        }
        while self.residents[pool].len() + experts.len() > slots {
            let residents = &mut self.residents[pool];
            let victim = residents.open.pop_first().or_else(|| residents.protected.pop_first());
            let Some((_, unit)) = victim else { break };
            self.place_of_unit[unit] = None;
            outcome.evictions += 1;
        }
        for (&expert, segment) in experts.iter().zip(segments) {
            self.put(pool, self.pools.unit(layer, expert), segment);
        }
        while self.residents[pool].protected.len() > self.protected_max[pool] {
            let Some((_, unit)) = self.residents[pool].protected.pop_first() else { break };
            self.put(pool, unit, Segment::Open);
        }
        Some(outcome)
    }
}
