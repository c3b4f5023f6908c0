//! Simulations over a trace: what another policy, or hindsight, would have hit.
//!
//! Both use one pool of equal slots for all layers, take the records one by one (all experts of a
//! record are needed at once), and start empty.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::{LayerStats, Parts, Policy, SlotTable, SpecError, TableSpec, Trace, TraceShape};

/// What a simulated cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayStats {
    /// Experts asked for.
    pub lookups: u64,
    /// Those that were there.
    pub hits: u64,
    /// Those that had to be read.
    pub misses: u64,
    /// Units that gave way.
    pub evictions: u64,
}

impl ReplayStats {
    /// Bytes read, if each unit has `unit_bytes`.
    pub fn read_bytes(&self, unit_bytes: u64) -> u64 {
        self.misses.saturating_mul(unit_bytes)
    }

    /// Hits per lookup, 0 to 1; `None` for an empty trace.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.lookups > 0).then(|| self.hits as f64 / self.lookups as f64)
    }
}

impl From<LayerStats> for ReplayStats {
    fn from(stats: LayerStats) -> Self {
        let LayerStats { lookups, hits, misses, evictions, .. } = stats;
        Self { lookups, hits, misses, evictions }
    }
}

/// Why a trace can't be replayed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A record needs more slots than there are.
    #[error("{slots} slots can't hold the {top_k} experts of one token: use at least {top_k}")]
    TooFewSlots {
        /// Slots.
        slots: u32,
        /// Experts per token and layer.
        top_k: u32,
    },
    /// The policy does not fit the trace.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// Replays `trace` in a cache of `slots` slots that gives way by `policy`.
///
/// # Errors
/// [`ReplayError`] if the slots can't hold one record, or the policy is of another size than
/// `n_layers * n_experts`.
pub fn replay<P: Policy>(trace: &Trace, policy: P, slots: u32) -> Result<ReplayStats, ReplayError> {
    let shape = trace.shape();
    let spec = TableSpec {
        n_experts: shape.n_experts,
        pool_of_layer: vec![0; shape.n_layers as usize],
        slots_of_pool: vec![slots],
        parts_of_layer: vec![Parts::DOWN; shape.n_layers as usize],
    };
    let mut table = SlotTable::with_policy(spec, policy)?;
    let mut grants = Vec::new();
    for record in trace.records() {
        let experts = distinct(record.experts);
        table.note_routing(record.layer, &experts);
        table
            .acquire(record.layer, &experts, Parts::ALL, &mut grants)
            .map_err(|_| too_few(shape, slots))?;
        for grant in grants.drain(..) {
            let unit = crate::UnitId { layer: record.layer, expert: grant.expert };
            table.filled(unit, grant.fill);
        }
        table.release_all();
    }
    Ok(table.stats().total.into())
}

/// The fewest misses that any policy without read-ahead could have: the unit whose next use is
/// farthest away gives way (Belady, "A study of replacement algorithms for a virtual-storage
/// computer", IBM Systems Journal 5(2), 1966).
///
/// # Errors
/// [`ReplayError::TooFewSlots`] if the slots can't hold one record.
pub fn belady(trace: &Trace, slots: u32) -> Result<ReplayStats, ReplayError> {
    let shape = trace.shape();
    let demands: Vec<Vec<usize>> = trace
        .records()
        .map(|record| {
            let first = record.layer as usize * shape.n_experts as usize;
            distinct(record.experts).into_iter().map(|expert| first + expert as usize).collect()
        })
        .collect();
    let next_uses = next_uses(&demands, shape.n_layers as usize * shape.n_experts as usize);

    let mut stats = ReplayStats::default();
    // Residents by next use; the last one gives way. `use_of` finds a unit's entry.
    let mut residents = BTreeSet::new();
    let mut use_of = vec![None; shape.n_layers as usize * shape.n_experts as usize];
    for (demand, next) in demands.iter().zip(&next_uses) {
        // What this record needs leaves the order first, so that none of it gives way.
        let mut missing = 0;
        for &unit in demand {
            stats.lookups += 1;
            match use_of[unit].take() {
                Some(next_use) => {
                    residents.remove(&(next_use, unit));
                    stats.hits += 1;
                }
                None => missing += 1,
            }
        }
        stats.misses += missing;
        if demand.len() > slots as usize {
            return Err(too_few(shape, slots));
        }
        while residents.len() + demand.len() > slots as usize {
            if let Some((_, victim)) = residents.pop_last() {
                use_of[victim] = None;
                stats.evictions += 1;
            }
        }
        for (&unit, &next_use) in demand.iter().zip(next) {
            use_of[unit] = Some(next_use);
            residents.insert((next_use, unit));
        }
    }
    Ok(stats)
}

/// For each unit of each demand, the index of the next demand that has it (`usize::MAX` for none).
fn next_uses(demands: &[Vec<usize>], n_units: usize) -> Vec<Vec<usize>> {
    let mut next_of_unit = vec![usize::MAX; n_units];
    let mut next_uses: Vec<Vec<usize>> = demands
        .iter()
        .enumerate()
        .rev()
        .map(|(index, demand)| {
            demand.iter().map(|&unit| std::mem::replace(&mut next_of_unit[unit], index)).collect()
        })
        .collect();
    next_uses.reverse();
    next_uses
}

fn too_few(shape: TraceShape, slots: u32) -> ReplayError {
    ReplayError::TooFewSlots { slots, top_k: shape.top_k }
}

fn distinct(experts: &[u16]) -> Vec<u32> {
    let mut experts: Vec<u32> = experts.iter().copied().map(u32::from).collect();
    experts.sort_unstable();
    experts.dedup();
    experts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lfu, Lrfu, Lru, TraceRecord};

    fn trace(n_experts: u32, top_k: u32, demands: &[&[u16]]) -> Trace {
        let shape = TraceShape { n_layers: 1, n_experts, top_k };
        let mut trace = Trace::new(shape).expect("a shape that fits");
        for (token, &experts) in (0..).zip(demands) {
            trace.push(TraceRecord { token, layer: 0, experts }).expect("a record that fits");
        }
        trace
    }

    #[track_caller]
    fn check(stats: Result<ReplayStats, ReplayError>, hits: u64, misses: u64, evictions: u64) {
        let expected = ReplayStats { lookups: hits + misses, hits, misses, evictions };
        assert_eq!(stats, Ok(expected));
    }

    /// A cycle one larger than the cache: LRU misses everything, hindsight keeps part of it.
    #[test]
    fn a_cycle() {
        let trace = trace(3, 1, &[&[0], &[1], &[2], &[0], &[1], &[2], &[0], &[1], &[2]]);
        check(replay(&trace, Lru::new(3), 2), 0, 9, 7);
        // Misses 0 1 2 at first, then keeps 0 hit, 1 miss, 2 hit, 0 miss, 1 hit, 2 miss.
        check(belady(&trace, 2), 3, 6, 4);
        check(belady(&trace, 3), 6, 3, 0);
        check(replay(&trace, Lru::new(3), 3), 6, 3, 0);
    }

    /// A favourite among strangers: frequency keeps it, recency does not.
    #[test]
    fn a_favourite() {
        let trace = trace(8, 1, &[&[0], &[0], &[1], &[2], &[3], &[0], &[4], &[5], &[0]]);
        check(replay(&trace, Lru::new(8), 2), 1, 8, 6);
        check(replay(&trace, Lfu::new(8), 2), 3, 6, 4);
        check(replay(&trace, Lrfu::new(8, 100.0), 2), 3, 6, 4);
        check(belady(&trace, 2), 3, 6, 4);
    }

    /// Experts of one record never take each other's slot.
    #[test]
    fn sets() {
        let trace = trace(4, 2, &[&[0, 1], &[1, 2], &[0, 3], &[3, 1]]);
        check(belady(&trace, 3), 4, 4, 1);
        check(belady(&trace, 2), 2, 6, 4);
        let too_few = ReplayError::TooFewSlots { slots: 1, top_k: 2 };
        assert_eq!(belady(&trace, 1), Err(too_few.clone()));
        assert_eq!(replay(&trace, Lru::new(4), 1), Err(too_few));
        assert!(matches!(replay(&trace, Lru::new(5), 3), Err(ReplayError::Spec(_))));
    }

    /// No policy beats hindsight, and with room for everything each unit is read once.
    #[test]
    fn hindsight_is_a_bound() {
        let mut state = 11_u64;
        let mut random = move |below: u16| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u16::try_from(state % u64::from(below)).expect("below a u16")
        };
        let demands: Vec<[u16; 3]> = (0..300)
            .map(|_| {
                let (a, b) = (random(4), random(6));
                [a, 4 + b, 10 + random(10)]
            })
            .collect();
        let demands: Vec<&[u16]> = demands.iter().map(<[u16; 3]>::as_slice).collect();
        let trace = trace(20, 3, &demands);
        for slots in 3..=20 {
            let best = belady(&trace, slots).expect("enough slots");
            let others = [
                replay(&trace, Lru::new(20), slots),
                replay(&trace, Lfu::new(20), slots),
                replay(&trace, Lrfu::new(20, 16.0), slots),
            ];
            for other in others {
                assert!(other.expect("enough slots").misses >= best.misses, "{slots} slots");
            }
            if slots == 20 {
                assert_eq!((best.misses, best.evictions), (20, 0));
            }
        }
    }
}
