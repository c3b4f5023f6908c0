//! The table against hand-made cases, and against a naive model under random operations.

use std::collections::BTreeMap;

use super::*;
use crate::{History, HistoryError, Lfu, Lru};

const GU: Parts = Parts::from_bits(Parts::GATE.bits() | Parts::UP.bits());
const GUD: Parts = Parts::from_bits(GU.bits() | Parts::DOWN.bits());

pub(super) fn spec(n_experts: u32, pool_of_layer: &[u32], slots_of_pool: &[u32]) -> TableSpec {
    TableSpec {
        n_experts,
        n_used: 2,
        pool_of_layer: pool_of_layer.to_vec(),
        slots_of_pool: slots_of_pool.to_vec(),
        parts_of_layer: vec![GUD; pool_of_layer.len()],
    }
}

fn table(n_experts: u32, pool_of_layer: &[u32], slots_of_pool: &[u32]) -> SlotTable<Lru> {
    let spec = spec(n_experts, pool_of_layer, slots_of_pool);
    let policy = Lru::new(spec.n_units());
    SlotTable::with_policy(spec, policy).expect("a spec that fits")
}

pub(super) const fn unit(layer: u32, expert: u32) -> UnitId {
    UnitId { layer, expert }
}

/// Routes, acquires, fills everything and releases, as one token in one layer does.
pub(super) fn use_experts<P: Policy>(
    table: &mut SlotTable<P>,
    layer: u32,
    experts: &[u32],
) -> Vec<Grant> {
    let mut grants = Vec::new();
    table.note_routing(layer, experts);
    table.acquire(layer, experts, Parts::ALL, &mut grants).expect("enough slots");
    for grant in &grants {
        assert_eq!(table.filled(unit(layer, grant.expert), grant.fill), grant.fill);
    }
    table.release_all();
    grants
}

#[test]
fn an_expected_unit_takes_the_coldest_slot_whatever_its_past() {
    let mut table = table(4, &[0], &[2]);
    use_experts(&mut table, 0, &[0]);
    use_experts(&mut table, 0, &[1]);
    assert_eq!(table.speculate(unit(0, 2), GUD, Claim::Warmer), None, "never used: colder");
    let grant = table.speculate(unit(0, 2), GUD, Claim::Expected).expect("expert 0 gives way");
    assert_eq!((grant.slot, grant.fill), (SlotId(0), GUD));
    assert_eq!(table.lookup(unit(0, 0)), None);
    // What is being filled gives way to nobody.
    assert!(table.speculate(unit(0, 3), GUD, Claim::Expected).is_some_and(|g| g.slot.0 == 1));
    assert_eq!(table.speculate(unit(0, 0), GUD, Claim::Expected), None);
}

#[test]
fn what_is_held_gives_way_last() {
    let mut table = table(4, &[0], &[2]);
    use_experts(&mut table, 0, &[0]);
    use_experts(&mut table, 0, &[1]);
    table.hold(unit(0, 0));
    table.hold(unit(0, 3));
    use_experts(&mut table, 0, &[2]);
    assert!(table.lookup(unit(0, 0)).is_some(), "held, though colder than expert 1");
    assert_eq!(table.lookup(unit(0, 1)), None);
    // When slots run out, nothing is held any more.
    use_experts(&mut table, 0, &[1, 3]);
    assert_eq!(table.lookup(unit(0, 0)), None);
    table.let_go(0);
    use_experts(&mut table, 0, &[0, 2]);
    table.hold(unit(0, 0));
    table.let_go(0);
    use_experts(&mut table, 0, &[3]);
    assert_eq!(table.lookup(unit(0, 0)), None, "let go: the coldest again");
}

#[test]
fn a_layer_takes_from_itself_first() {
    let victim = |discount| {
        let mut table = table(4, &[0; 2], &[2]);
        table.set_own_layer_discount(discount);
        use_experts(&mut table, 1, &[0]);
        use_experts(&mut table, 0, &[0]);
        use_experts(&mut table, 0, &[1]);
        [unit(1, 0), unit(0, 0)].into_iter().find(|&id| table.lookup(id).is_none())
    };
    assert_eq!(victim(0.0), Some(unit(1, 0)), "used least recently");
    assert_eq!(victim(2.0), Some(unit(0, 0)), "a token later, but of the layer itself");
}

#[test]
fn what_is_expected_stays() {
    let mut table = SlotTable::new(spec(4, &[0], &[3])).expect("a spec that fits");
    (0..3).for_each(|expert| drop(use_experts(&mut table, 0, &[expert])));
    // The oldest two are likelier than usual.
    table.set_outlook(0, &[3.0, 2.0, 0.0, 0.0]);
    table.speculate(unit(0, 3), Parts::ALL, Claim::Warmer);
    assert_eq!(table.lookup(unit(0, 3)), None, "never used, and so not warmer than any");
    use_experts(&mut table, 0, &[3]);
    assert_eq!(table.lookup(unit(0, 2)), None);
}

/// A prompt uses all experts of all layers in turn. With slots for three of four layers LRU finds
/// nothing; scanning, one pass after the other finds what had its turn long ago.
#[test]
fn scanning_keeps_what_is_needed_next() {
    let hits = |scanning| {
        let mut table = table(4, &[0; 4], &[12]);
        table.set_scanning(scanning);
        let mut hits = 0;
        for pass in 0..6 {
            for layer in 0..4 {
                let grants = use_experts(&mut table, layer, &[0, 1, 2, 3]);
                let found = grants.iter().filter(|grant| grant.fill.is_empty()).count();
                hits += if pass > 0 { found } else { 0 };
            }
        }
        hits
    };
    assert_eq!(hits(false), 0);
    // Of 16 lookups in a pass; Belady's optimum is 12 less the slots of the layer that is in use.
    assert!(hits(true) >= 5 * 8, "{}", hits(true));
}

#[test]
fn the_life_of_a_slot() {
    let mut table = table(4, &[0], &[2]);
    let mut grants = Vec::new();
    table.acquire(0, &[3], GU, &mut grants).expect("a free slot");
    let slot = SlotId(0);
    assert_eq!(grants, [Grant { expert: 3, slot, fill: GU, pending: Parts::EMPTY }]);
    assert_eq!(table.state(0, slot), Some(SlotState::InUse));
    assert_eq!(table.lookup(unit(0, 3)), Some((slot, Parts::EMPTY)));
    assert_eq!(table.filled(unit(0, 3), Parts::GATE), Parts::GATE);

    // Asked for again with one part more: what is under way is not read twice.
    grants.clear();
    table.acquire(0, &[3], Parts::ALL, &mut grants).expect("it has a slot");
    assert_eq!(grants, [Grant { expert: 3, slot, fill: Parts::DOWN, pending: Parts::UP }]);

    // Released while bytes are under way: filling, and not to be had.
    table.release_all();
    assert_eq!(table.state(0, slot), Some(SlotState::Filling));
    let error = table.acquire(0, &[0, 1], GUD, &mut grants);
    assert_eq!(error, Err(NotEnoughSlots { wanted: 2, available: 1 }));
    assert_eq!(table.filled(unit(0, 3), GUD), Parts::UP | Parts::DOWN);
    assert_eq!(table.state(0, slot), Some(SlotState::Ready));
    assert_eq!(table.lookup(unit(0, 3)), Some((slot, GUD)));

    table.acquire(0, &[0, 1], GUD, &mut grants).expect("a ready slot gives way");
    assert_eq!(table.lookup(unit(0, 3)), None);
    assert_eq!(table.filled(unit(0, 3), GUD), Parts::EMPTY, "it holds no slot any more");
    assert_eq!(table.state(0, SlotId(2)), None);
    let total = table.stats().total;
    assert_eq!((total.lookups, total.misses, total.partial_hits), (4, 3, 1));
    assert_eq!((total.hits, total.evictions), (0, 1));
}

#[test]
fn a_failed_acquire_changes_nothing() {
    let mut table = table(4, &[0], &[2]);
    use_experts(&mut table, 0, &[0]);
    use_experts(&mut table, 0, &[1]);
    let before = table.stats();
    let mut grants = Vec::new();
    let error = table.acquire(0, &[1, 2, 3], GUD, &mut grants);
    assert_eq!(error, Err(NotEnoughSlots { wanted: 3, available: 2 }));
    assert!(grants.is_empty());
    assert_eq!(table.stats(), before);
    assert_eq!(table.state(0, SlotId(1)), Some(SlotState::Ready));
    check_invariants(&table);
}

/// An expert that is there is not the victim of another one of the same call, however cold.
#[test]
fn hits_stay() {
    let mut table = table(4, &[0], &[2]);
    use_experts(&mut table, 0, &[0]);
    use_experts(&mut table, 0, &[1]);
    let grants = use_experts(&mut table, 0, &[2, 0]);
    let fills: Vec<Parts> = grants.iter().map(|grant| grant.fill).collect();
    assert_eq!(fills, [GUD, Parts::EMPTY]);
    assert_eq!(table.lookup(unit(0, 1)), None);
}

#[test]
fn a_repeated_expert_gets_one_slot() {
    let mut table = table(4, &[0], &[2]);
    let mut grants = Vec::new();
    table.acquire(0, &[1, 1], GUD, &mut grants).expect("two slots");
    assert_eq!(grants[0].slot, grants[1].slot);
    assert_eq!((grants[1].fill, grants[1].pending), (Parts::EMPTY, GUD));
    check_invariants(&table);
}

#[test]
fn abandoned_units_hold_nothing() {
    let mut table = table(4, &[0], &[1]);
    let mut grants = Vec::new();
    table.acquire(0, &[0], GUD, &mut grants).expect("a free slot");
    table.filled(unit(0, 0), GU);
    table.abandon(unit(0, 0));
    assert_eq!(table.state(0, SlotId(0)), Some(SlotState::Free));
    assert_eq!(table.lookup(unit(0, 0)), None);
    table.release_all();
    grants.clear();
    table.acquire(0, &[0], GUD, &mut grants).expect("a free slot");
    assert_eq!(grants[0].fill, GUD, "nothing of the failed fill is believed");
}

#[test]
fn read_ahead_is_modest() {
    let mut table = table(4, &[0], &[2]);
    // Into free slots, even for a stranger.
    let grant = table.speculate(unit(0, 0), Parts::ALL, Claim::Warmer).expect("a free slot");
    assert_eq!((grant.slot, grant.fill), (SlotId(0), GUD));
    assert_eq!(table.speculate(unit(0, 0), GUD, Claim::Warmer), None, "under way already");
    table.filled(unit(0, 0), GUD);
    use_experts(&mut table, 0, &[1]);
    // A stranger is not warmer than a stranger.
    assert_eq!(table.speculate(unit(0, 2), GUD, Claim::Warmer), None);
    table.note_routing(0, &[3]);
    let grant = table.speculate(unit(0, 3), GUD, Claim::Warmer).expect("expert 0 was never routed");
    assert_eq!(grant.slot, SlotId(0));
    // Expert 1 is in use, and the other slot is being filled.
    let mut grants = Vec::new();
    table.acquire(0, &[1], GUD, &mut grants).expect("it is there");
    table.note_routing(0, &[2]);
    assert_eq!(table.speculate(unit(0, 2), GUD, Claim::Warmer), None);
    table.filled(unit(0, 3), GUD);
    table.release_all();
    use_experts(&mut table, 0, &[3]);
    let total = table.stats().total;
    assert_eq!((total.speculated, total.speculated_hits, total.hits), (2, 1, 2));
}

#[test]
fn layers_are_released_one_by_one() {
    let mut table = table(4, &[0, 0], &[2]);
    let mut grants = Vec::new();
    for layer in 0..2 {
        table.acquire(layer, &[0], GUD, &mut grants).expect("a free slot");
        table.filled(unit(layer, 0), GUD);
    }
    table.release_layer(0);
    assert_eq!(table.state(0, SlotId(0)), Some(SlotState::Ready));
    assert_eq!(table.state(0, SlotId(1)), Some(SlotState::InUse));
}

#[test]
fn pools_are_apart() {
    let mut table = table(4, &[0, 1], &[1, 1]);
    use_experts(&mut table, 0, &[0]);
    use_experts(&mut table, 1, &[0]);
    assert_eq!(table.lookup(unit(0, 0)), Some((SlotId(0), GUD)));
    assert_eq!(table.lookup(unit(1, 0)), Some((SlotId(0), GUD)));
    use_experts(&mut table, 1, &[1]);
    assert_eq!(table.lookup(unit(0, 0)), Some((SlotId(0), GUD)));
    assert_eq!(table.lookup(unit(1, 0)), None);
    assert_eq!(table.unit_in(1, SlotId(0)), Some(unit(1, 1)));
}

#[test]
fn pools_grow_and_shrink() {
    let mut table = table(8, &[0], &[2]);
    use_experts(&mut table, 0, &[0, 1]);
    assert_eq!(table.resize_pool(0, 4), Ok(0));
    use_experts(&mut table, 0, &[2, 3]);
    assert!(table.lookup(unit(0, 0)).is_some(), "growing evicts nothing");
    let mut grants = Vec::new();
    table.acquire(0, &[3], GUD, &mut grants).expect("it is there");
    let slot = grants[0].slot;
    assert_eq!(table.resize_pool(0, 1), Err(ResizeError::Busy { pool: 0, slot }));
    table.release_all();
    assert_eq!(table.resize_pool(0, 1), Ok(3));
    assert_eq!(table.spec().slots_of_pool, [1]);
    assert_eq!(table.stats().total.evictions, 3);
    assert_eq!(table.resize_pool(1, 1), Err(ResizeError::NoSuchPool { pool: 1 }));
    check_invariants(&table);
}

#[test]
fn history_outlives_eviction_and_the_table() {
    let mut first = SlotTable::new(spec(4, &[0, 0], &[1])).expect("a spec that fits");
    for expert in [0, 1, 0, 0] {
        use_experts(&mut first, 0, &[expert]);
        use_experts(&mut first, 1, &[2]);
    }
    let heat: Vec<UnitHeat> = first.heat(0).collect();
    assert_eq!(heat.iter().map(|cell| cell.routed).collect::<Vec<_>>(), [3, 1, 0, 0]);
    assert!(heat[0].key > heat[1].key && heat[2].key.is_none());
    assert_eq!(first.heat(2).count(), 0);

    let json = serde_json::to_string(&first.export_history()).expect("a history is plain data");
    let history = serde_json::from_str::<History<Lrfu>>(&json).expect("what was written");
    assert_eq!(history.now_tokens, 4);
    let mut second = SlotTable::new(spec(4, &[0, 0], &[1])).expect("a spec that fits");
    second.import_history(history.clone()).expect("the same shape");
    assert_eq!(second.hottest_absent(0, 2, false), [unit(1, 2), unit(0, 0)]);
    let used = second.hottest_absent(0, 8, false);
    let all = second.hottest_absent(0, 8, true);
    assert_eq!((all.len(), &all[..used.len()]), (8, &used[..]), "the unused come last");
    assert!(used.len() < all.len());

    let mut other = SlotTable::new(spec(5, &[0, 0], &[1])).expect("a spec that fits");
    assert!(matches!(other.import_history(history.clone()), Err(HistoryError::Shape { .. })));
    let cut = History { policy: Lrfu::new(3, 1.0), ..history };
    assert_eq!(second.import_history(cut), Err(HistoryError::Damaged { unit: 3 }));
}

/// A batch routes all its tokens in one layer before the next layer; the last layer may see fewer.
#[test]
fn time_is_counted_in_tokens() {
    let mut clock = Clock::default();
    let mut times = |calls: &[u32]| -> Vec<f64> {
        calls.iter().map(|&layer| clock.advance(layer, 4)).collect()
    };
    assert_eq!(times(&[0, 1, 2, 3]), [1.0, 1.25, 1.5, 1.75]);
    assert_eq!(times(&[0, 0, 0, 1, 1, 1, 3]), [2.0, 3.0, 4.0, 2.25, 3.25, 4.25, 2.75]);
    assert_eq!(times(&[0, 3]), [5.0, 5.75]);
    let mut single = Clock::starting_at(10);
    assert_eq!([single.advance(0, 1), single.advance(0, 1)], [11.0, 12.0]);
}

#[test]
fn specs_that_contradict_themselves() {
    let check = |spec: TableSpec, n_units: usize, expected: SpecError| {
        assert_eq!(SlotTable::with_policy(spec, Lfu::new(n_units)).err(), Some(expected));
    };
    let short = TableSpec { parts_of_layer: vec![GUD], ..spec(4, &[0, 0], &[1]) };
    check(short, 8, SpecError::LayerCounts { pools: 2, parts: 1 });
    let no_pool = SpecError::NoSuchPool { layer: 1, pool: 1, pools: 1 };
    check(spec(4, &[0, 1], &[1]), 8, no_pool);
    check(spec(4, &[0, 0], &[1]), 7, SpecError::PolicySize { policy: 7, table: 8 });
    let huge = SpecError::TooManyUnits { layers: 2, experts: u32::MAX };
    check(spec(u32::MAX, &[0, 0], &[1]), 8, huge);
}

/// What a table should be, said as simply as possible.
struct Naive {
    spec: TableSpec,
    policy: Lfu,
    /// Per resident unit: pool, slot, ready, filling, in use.
    units: BTreeMap<UnitId, (u32, u32, Parts, Parts, bool)>,
}

impl Naive {
    fn pool(&self, layer: u32) -> u32 {
        self.spec.pool_of_layer[layer as usize]
    }

    fn key(&self, unit: UnitId) -> f64 {
        self.policy.key((unit.layer * self.spec.n_experts + unit.expert) as usize)
    }

    fn n_free(&self, pool: u32) -> u32 {
        let held = self.units.values().filter(|unit| unit.0 == pool).count();
        self.spec.slots_of_pool[pool as usize] - index_u32(held)
    }

    /// Units of `pool` that may give way, the coldest first.
    fn idle(&self, pool: u32) -> Vec<UnitId> {
        let idle =
            |unit: &(u32, u32, Parts, Parts, bool)| unit.0 == pool && unit.3.is_empty() && !unit.4;
        let mut units: Vec<UnitId> =
            self.units.iter().filter(|(_, unit)| idle(unit)).map(|(&id, _)| id).collect();
        units.sort_by(|&a, &b| self.key(a).total_cmp(&self.key(b)).then(a.cmp(&b)));
        units
    }

    /// The expected victims and fills of a call, or the error.
    fn acquire(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: Parts,
    ) -> Result<Vec<(Parts, Parts)>, NotEnoughSlots> {
        let pool = self.pool(layer);
        let ids: Vec<UnitId> = experts.iter().map(|&expert| unit(layer, expert)).collect();
        let misses = ids.iter().filter(|id| !self.units.contains_key(id)).count();
        let idle: Vec<UnitId> =
            self.idle(pool).into_iter().filter(|id| !ids.contains(id)).collect();
        let free = self.n_free(pool) as usize;
        if misses > free + idle.len() {
            let (wanted, available) = (ids.len(), ids.len() - misses + free + idle.len());
            let (wanted, available) = (index_u32(wanted), index_u32(available));
            return Err(NotEnoughSlots { wanted, available });
        }
        for victim in idle.iter().take(misses.saturating_sub(free)) {
            self.units.remove(victim);
        }
        let grant = |id: &UnitId| {
            let entry =
                self.units.entry(*id).or_insert((pool, 0, Parts::EMPTY, Parts::EMPTY, true));
            let (fill, pending) = (parts - entry.2 - entry.3, parts & entry.3);
            entry.3 |= fill;
            entry.4 = true;
            (fill, pending)
        };
        Ok(ids.iter().map(grant).collect())
    }

    fn speculate(&mut self, id: UnitId, parts: Parts) -> Option<(Parts, Parts)> {
        let pool = self.pool(id.layer);
        if !self.units.contains_key(&id) {
            if self.n_free(pool) == 0 {
                let victim = *self.idle(pool).first()?;
                if self.key(victim) >= self.key(id) {
                    return None;
                }
                self.units.remove(&victim);
            }
            self.units.insert(id, (pool, 0, Parts::EMPTY, Parts::EMPTY, false));
        }
        let entry = self.units.get_mut(&id)?;
        let (fill, pending) = (parts - entry.2 - entry.3, parts & entry.3);
        entry.3 |= fill;
        (!fill.is_empty()).then_some((fill, pending))
    }
}

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 11) % u64::from(n)).expect("below a u32")
    }

    fn distinct(&mut self, n: u32, below: u32) -> Vec<u32> {
        let mut drawn: Vec<u32> = Vec::new();
        while drawn.len() < n as usize {
            let next = self.below(below);
            if !drawn.contains(&next) {
                drawn.push(next);
            }
        }
        drawn
    }
}

#[test]
fn random_operations_agree_with_the_naive_model() {
    for (seed, pool_of_layer, slots_of_pool) in [
        (1, [0, 0, 0, 0], vec![7]),
        (2, [0, 1, 2, 3], vec![3, 4, 2, 5]),
        (3, [0, 1, 0, 1], vec![9, 5]),
        (4, [0, 0, 0, 0], vec![32]),
    ] {
        compare(seed, spec(8, &pool_of_layer, &slots_of_pool), 6000);
    }
}

fn compare(seed: u64, spec: TableSpec, n_operations: u32) {
    let policy = Lfu::new(spec.n_units());
    let mut table = SlotTable::with_policy(spec.clone(), policy.clone()).expect("it fits");
    let mut naive = Naive { spec, policy, units: BTreeMap::new() };
    let mut random = Random(seed);
    let mut seen = [0_u32; 9];
    for _ in 0..n_operations {
        let layer = random.below(4);
        // Skewed, so that some experts are used much more often than others.
        let expert = random.below(8).min(random.below(8));
        let id = unit(layer, expert);
        let parts = Parts::from_bits(u8::try_from(1 + random.below(7)).expect("below 8"));
        let operation = random.below(9);
        let changed = match operation {
            0..=2 => {
                let n = 1 + random.below(4);
                let experts = random.distinct(n, 8);
                let mut grants = Vec::new();
                let granted = table.acquire(layer, &experts, parts, &mut grants);
                let expected = naive.acquire(layer, &experts, parts);
                let found = granted
                    .map(|()| grants.iter().map(|grant| (grant.fill, grant.pending)).collect());
                assert_eq!(found, expected);
                expected.is_ok()
            }
            3 => {
                let found = table
                    .speculate(id, parts, Claim::Warmer)
                    .map(|grant| (grant.fill, grant.pending));
                assert_eq!(found, naive.speculate(id, parts));
                found.is_some()
            }
            4 | 5 => {
                let arrived = table.filled(id, parts);
                let expected = naive.units.get_mut(&id).map_or(Parts::EMPTY, |entry| {
                    let arrived = entry.3 & parts;
                    entry.2 |= arrived;
                    entry.3 = entry.3 - arrived;
                    arrived
                });
                assert_eq!(arrived, expected);
                !arrived.is_empty()
            }
            6 => {
                table.abandon(id);
                naive.units.remove(&id).is_some()
            }
            7 => {
                table.note_routing(layer, &[expert]);
                naive.policy.touch((layer * 8 + expert) as usize, 0.0);
                true
            }
            _ => {
                let all = random.below(2) == 0;
                if all {
                    table.release_all()
                } else {
                    table.release_layer(layer)
                }
                for (id, entry) in &mut naive.units {
                    entry.4 &= !all && id.layer != layer;
                }
                true
            }
        };
        seen[operation as usize] += u32::from(changed);
        for layer in 0..4 {
            for expert in 0..8 {
                let id = unit(layer, expert);
                let ready = naive.units.get(&id).map(|entry| entry.2);
                assert_eq!(table.lookup(id).map(|(_, ready)| ready), ready, "{id:?}");
            }
        }
        check_invariants(&table);
    }
    assert!(seen.iter().all(|&count| count > 50), "each operation did something: {seen:?}");
    let total = table.stats().total;
    assert_eq!(total.lookups, total.hits + total.partial_hits + total.misses);
}

/// Each unit holds at most one slot and each slot at most one unit; each slot is free, or in the
/// index, or busy, and never two of these.
pub(super) fn check_invariants<P: Policy>(table: &SlotTable<P>) {
    let mut held = 0;
    for (pool_index, pool) in table.pools.iter().enumerate() {
        assert_eq!(pool.slots.len(), table.spec.slots_of_pool[pool_index] as usize);
        for (slot_index, slot) in (0..).zip(&pool.slots) {
            let is_free = pool.free.contains(&slot_index);
            let in_index = pool.idle.iter().filter(|&&(_, _, slot)| slot == slot_index).count();
            assert_eq!(is_free, slot.state() == SlotState::Free);
            assert_eq!(in_index, usize::from(slot.state() == SlotState::Ready));
            assert!((slot.ready & slot.filling).is_empty());
            if let Some(unit) = slot.unit {
                held += 1;
                assert_eq!(table.slot_of_unit[unit as usize], slot_index);
                let layer = (unit / table.spec.n_experts) as usize;
                assert_eq!(table.spec.pool_of_layer[layer] as usize, pool_index);
                assert_eq!(slot.in_use, table.in_use.contains(&unit));
                if let Some(key) = slot.indexed {
                    assert!(pool.idle.contains(&(key, unit, slot_index)));
                    assert_eq!(key.get(), table.policy.key(unit as usize), "a stale key");
                }
            }
        }
        let mut free = pool.free.clone();
        free.sort_unstable();
        free.dedup();
        assert_eq!(free.len(), pool.free.len());
    }
    let residents = table.slot_of_unit.iter().filter(|&&slot| slot != NO_SLOT).count();
    assert_eq!(residents, held);
}

#[test]
fn who_loses_a_slot_is_told_once() {
    let mut table = table(4, &[0], &[2]);
    let mut victims = Vec::new();
    use_experts(&mut table, 0, &[0]);
    use_experts(&mut table, 0, &[1]);
    use_experts(&mut table, 0, &[2]);
    table.take_victims(&mut victims);
    assert!(victims.is_empty(), "nobody asked");
    table.note_victims();
    let slot = table.lookup(unit(0, 1)).expect("it is there").0;
    use_experts(&mut table, 0, &[3]);
    table.take_victims(&mut victims);
    assert_eq!(victims, [Victim { unit: unit(0, 1), slot, ready: GUD }]);
    victims.clear();
    table.take_victims(&mut victims);
    assert!(victims.is_empty());
}
