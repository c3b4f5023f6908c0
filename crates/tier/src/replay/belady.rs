//! Hindsight.

use std::collections::BTreeSet;

use super::cache::Pools;
use super::{Demand, ReplayStats};

/// The fewest misses that any policy without read-ahead could have in records whose token is
/// `warm_up_tokens` or later; `None` if a pool can't hold a record.
///
/// Earlier records count nothing, and nothing gives way in them: the cache goes from them into the
/// counted records with the best of all that was ever touched. That is a bound, as a real cache has
/// at most that; without a warm-up it is Belady's optimum itself.
pub(super) fn belady(
    demands: &[Demand],
    pools: &Pools,
    warm_up_tokens: u32,
) -> Option<ReplayStats> {
    let next_uses = next_uses(demands, pools, warm_up_tokens);
    let mut stats = ReplayStats::default();
    // Residents of each pool by next use; the last one gives way. `use_of` finds a unit's entry.
    let mut residents = vec![BTreeSet::new(); pools.slots_of_pool.len()];
    let mut use_of = vec![None; pools.n_units()];
    for (demand, next) in demands.iter().zip(&next_uses) {
        let (pool, slots) = pools.of(demand.layer);
        let residents = &mut residents[pool];
        if demand.experts.len() > slots {
            return None;
        }
        // What this record needs leaves the order first, so that none of it gives way.
        let mut hits = 0;
        for &expert in &demand.experts {
            let unit = pools.unit(demand.layer, expert);
            if let Some(next_use) = use_of[unit].take() {
                residents.remove(&(next_use, unit));
                hits += 1;
            }
        }
        if demand.token >= warm_up_tokens {
            stats.lookups += demand.experts.len() as u64;
            stats.hits += hits;
            stats.misses += demand.experts.len() as u64 - hits;
            while residents.len() + demand.experts.len() > slots {
                if let Some((_, victim)) = residents.pop_last() {
                    use_of[victim] = None;
                    stats.evictions += 1;
                }
            }
        }
        for (&expert, &next_use) in demand.experts.iter().zip(next) {
            let unit = pools.unit(demand.layer, expert);
            use_of[unit] = Some(next_use);
            residents.insert((next_use, unit));
        }
    }
    Some(stats)
}

/// For each expert of each demand, the index of the next demand that has it; `usize::MAX` if there is
/// none, or if that one is not counted: then nothing is lost by reading it again.
fn next_uses(demands: &[Demand], pools: &Pools, warm_up_tokens: u32) -> Vec<Vec<usize>> {
    let mut next_of_unit = vec![usize::MAX; pools.n_units()];
    let mut next_uses: Vec<Vec<usize>> = demands
        .iter()
        .enumerate()
        .rev()
        .map(|(index, demand)| {
            let index = if demand.token >= warm_up_tokens { index } else { usize::MAX };
            let unit = |&expert: &u32| pools.unit(demand.layer, expert);
            let next = demand.experts.iter().map(unit);
            next.map(|unit| std::mem::replace(&mut next_of_unit[unit], index)).collect()
        })
        .collect();
    next_uses.reverse();
    next_uses
}
