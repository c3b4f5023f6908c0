//! Every kind of replacement on tiny traces whose victims are known, and bounds on random ones.

use std::collections::BTreeMap;

use super::*;
use crate::{Trace, TraceRecord, TraceShape};

/// A trace of one layer, one expert per token.
fn line(experts: &[u16]) -> Trace {
    let shape = TraceShape { n_layers: 1, n_experts: 8, top_k: 1 };
    let mut trace = Trace::new(shape).expect("a shape that fits");
    for (token, &expert) in (0..).zip(experts) {
        trace.push(TraceRecord { token, layer: 0, experts: &[expert] }).expect("it fits");
    }
    trace
}

/// Hits, misses and evictions.
#[track_caller]
fn check(
    experts: &[u16],
    slots: u32,
    replacement: &Replacement,
    (hits, misses, evictions): (u64, u64, u64),
) {
    let trace = line(experts);
    let simulation = Simulation::new(&[&trace], 0).expect("one trace");
    let stats = simulation.run(replacement, Sharing::OnePool, slots).expect("enough slots");
    let expected = ReplayStats { lookups: hits + misses, hits, misses, evictions };
    assert_eq!(stats, expected, "{}", replacement.name());
}

#[test]
fn slru_protects_what_came_twice() {
    // Protected 0 and 1; then 4 takes the slot of 2. A third one with a second use, 3, moves 0 out,
    // and 5 takes the slot of 4. The second use of 0 moves 1 out; 4 takes the slot of 5.
    let experts = [0, 0, 1, 1, 2, 3, 4, 0, 1, 3, 5, 0, 4];
    check(&experts, 4, &Replacement::Slru { protected_share: 0.5 }, (6, 7, 3));
    check(&experts, 4, &Replacement::Lru, (4, 9, 5));
}

#[test]
fn lfru_keeps_the_last_one_and_the_frequent() {
    // The slots of 1, 2, 3, 2 are taken, never that of 0.
    let experts = [0, 0, 0, 1, 2, 3, 1, 0, 2, 1, 4, 0];
    let lfru = Replacement::Lfru { privileged_share: 0.34, period_tokens: 1000.0 };
    check(&experts, 3, &lfru, (5, 7, 4));
    check(&experts, 3, &Replacement::Lru, (4, 8, 5));
}

#[test]
fn aged_counts_let_an_old_favourite_go() {
    let experts = [0, 0, 0, 0, 1, 1, 2, 1];
    check(&experts, 2, &Replacement::AgedLfu { period_tokens: 2.0 }, (5, 3, 1));
    check(&experts, 2, &Replacement::Lfu, (4, 4, 2));
    check(&experts, 2, &Replacement::Lrfu { half_life_tokens: 2.0 }, (5, 3, 1));
}

#[test]
fn pins_stay() {
    let pins = |learned| Replacement::Pins { learned, share: 0.5, half_life_tokens: None };
    let uses = Learned::FromUses(vec![1, 9, 0, 0, 0, 0, 0, 0]);
    check(&[1, 2, 3, 4, 1], 2, &pins(uses), (1, 4, 2));
    check(&[1, 2, 3, 4, 1], 2, &Replacement::Lru, (0, 5, 3));
    let experts = [0, 0, 0, 0, 1, 2, 3, 0];
    check(&experts, 2, &pins(Learned::FromStart { tokens: 3 }), (4, 4, 2));
    check(&experts, 2, &Replacement::Lru, (3, 5, 3));
}

#[test]
fn the_layer_that_is_served_gives_way_first() {
    let shape = TraceShape { n_layers: 2, n_experts: 2, top_k: 1 };
    let mut trace = Trace::new(shape).expect("a shape that fits");
    // At the third record, layer 1's expert is the oldest, and needed next.
    for (layer, expert) in [(1, 0), (0, 0), (0, 1), (1, 0)] {
        let record = TraceRecord { token: 0, layer, experts: &[expert] };
        trace.push(record).expect("it fits");
    }
    let simulation = Simulation::new(&[&trace], 0).expect("one trace");
    let hits = |replacement: &Replacement| {
        let stats = simulation.run(replacement, Sharing::OnePool, 2).expect("enough slots");
        (stats.hits, stats.evictions)
    };
    let own = |with_pairs| Replacement::OwnLayerFirst { half_life_tokens: 64.0, with_pairs };
    assert_eq!(hits(&Replacement::Lrfu { half_life_tokens: 64.0 }), (0, 2));
    assert_eq!(hits(&own(false)), (1, 1));
    assert_eq!(hits(&own(true)), (1, 1));
}

/// 1 always follows 0, 3 follows 2 and 5 follows 4, but which pair comes next is random: all scores
/// are about the same, and only pairs tell what must not give way now.
#[test]
fn pairs_keep_what_comes_next() {
    let mut random = Random(3);
    let experts: Vec<u16> = (0..200)
        .flat_map(|_| {
            let first = 2 * random.below(3);
            [first, first + 1]
        })
        .collect();
    let trace = line(&experts);
    let simulation = Simulation::new(&[&trace], 100).expect("one trace");
    let misses = |with_pairs| {
        let own = Replacement::OwnLayerFirst { half_life_tokens: 64.0, with_pairs };
        simulation.run(&own, Sharing::OnePool, 4).expect("enough slots").misses
    };
    let (with, without) = (misses(true), misses(false));
    assert!(with * 10 < without * 9, "{with} misses with pairs, {without} without");
}

#[test]
fn a_share_for_each_layer() {
    let shape = TraceShape { n_layers: 2, n_experts: 3, top_k: 1 };
    let mut trace = Trace::new(shape).expect("a shape that fits");
    for token in 0..6_u16 {
        for (layer, expert) in [(0, token % 3), (1, 0)] {
            let record = TraceRecord { token: token.into(), layer, experts: &[expert] };
            trace.push(record).expect("it fits");
        }
    }
    let simulation = Simulation::new(&[&trace], 0).expect("one trace");
    let run = |sharing| simulation.run(&Replacement::Lru, sharing, 4).expect("enough slots");
    let stats = |hits, evictions| ReplayStats { lookups: 12, hits, misses: 12 - hits, evictions };
    assert_eq!(run(Sharing::OnePool), stats(8, 0));
    assert_eq!(run(Sharing::PerLayer), stats(5, 4));
    assert_eq!(simulation.belady(Sharing::PerLayer, 4), Ok(stats(7, 2)));
    assert_eq!(simulation.unlimited(), stats(8, 0));
    let few = simulation.run(&Replacement::Lru, Sharing::PerLayer, 1);
    assert_eq!(few, Err(ReplayError::TooFewSlotsPerLayer { slots: 1, top_k: 1, layers: 2 }));
}

#[test]
fn warm_up_is_not_counted_and_the_cache_goes_on() {
    let (first, second) = (line(&[0, 1, 0, 1]), line(&[1, 2, 2]));
    let run = |traces: &[&Trace], warm_up| {
        let simulation = Simulation::new(traces, warm_up).expect("traces of one shape");
        let stats = simulation.run(&Replacement::Lru, Sharing::OnePool, 3).expect("enough slots");
        (stats.hits, stats.misses, simulation.counted_tokens())
    };
    assert_eq!(run(&[&first], 0), (2, 2, 4));
    assert_eq!(run(&[&first], 1), (2, 1, 3));
    assert_eq!(run(&[&first], 9), (0, 0, 0));
    assert_eq!(run(&[&first, &second], 0), (4, 3, 7));
    // The first token of each trace is left out.
    assert_eq!(run(&[&first, &second], 1), (3, 2, 5));
}

#[test]
fn traces_of_different_shapes_are_refused() {
    let other = Trace::new(TraceShape { n_layers: 2, n_experts: 8, top_k: 1 }).expect("it fits");
    let error = Simulation::new(&[&line(&[0]), &other], 0).map(drop);
    assert!(matches!(error, Err(ReplayError::Shapes { .. })), "{error:?}");
    assert_eq!(Simulation::new(&[], 0).map(drop), Err(ReplayError::NoTrace));
}

fn all() -> Vec<Replacement> {
    let pins =
        |learned, half_life_tokens| Replacement::Pins { learned, share: 0.5, half_life_tokens };
    vec![
        Replacement::Lru,
        Replacement::Lfu,
        Replacement::AgedLfu { period_tokens: 8.0 },
        Replacement::Lrfu { half_life_tokens: 8.0 },
        Replacement::OwnLayerFirst { half_life_tokens: 8.0, with_pairs: false },
        Replacement::OwnLayerFirst { half_life_tokens: 8.0, with_pairs: true },
        Replacement::Slru { protected_share: 0.5 },
        Replacement::Slru { protected_share: 1.0 },
        Replacement::Lfru { privileged_share: 0.25, period_tokens: 8.0 },
        pins(Learned::FromStart { tokens: 20 }, None),
        pins(Learned::FromStart { tokens: 20 }, Some(8.0)),
        pins(Learned::FromUses((0..24).collect()), None),
    ]
}

/// Numbers from a seed (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u16) -> u16 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u16::try_from(self.0 % u64::from(n)).expect("below a u16")
    }

    /// Prompts and single tokens; experts with favourites.
    fn trace(&mut self, shape: TraceShape, n_tokens: u32) -> Trace {
        let experts_max = u16::try_from(shape.n_experts).expect("few experts");
        let mut trace = Trace::new(shape).expect("a shape that fits");
        let mut token = 0;
        while token < n_tokens {
            let batch = if self.below(4) == 0 { 1 + u32::from(self.below(4)) } else { 1 };
            for layer in 0..shape.n_layers {
                for token in token..token + batch {
                    let experts: Vec<u16> = (0..shape.top_k)
                        .map(|_| self.below(experts_max).min(self.below(experts_max)))
                        .collect();
                    trace.push(TraceRecord { token, layer, experts: &experts }).expect("it fits");
                }
            }
            token += batch;
        }
        trace
    }
}

/// No replacement beats hindsight, in any way of dividing slots and counting; the lookups are the
/// same for all, and with a slot for every unit all of them read each unit once.
#[test]
fn no_replacement_beats_hindsight() {
    let mut random = Random(5);
    let shape = TraceShape { n_layers: 3, n_experts: 8, top_k: 2 };
    for round in 0..20 {
        let traces = [random.trace(shape, 60), random.trace(shape, 30)];
        for warm_up in [0, 10] {
            let simulation =
                Simulation::new(&traces.each_ref(), warm_up).expect("traces of one shape");
            let unlimited = simulation.unlimited();
            for sharing in [Sharing::OnePool, Sharing::PerLayer] {
                for slots in [6, 9, 16, 24] {
                    let best = simulation.belady(sharing, slots).expect("enough slots");
                    assert_eq!(best.lookups, unlimited.lookups);
                    for replacement in all() {
                        let stats =
                            simulation.run(&replacement, sharing, slots).expect("enough slots");
                        let what = format!("round {round}: {}, {slots}", replacement.name());
                        assert_eq!(stats.lookups, best.lookups, "{what}");
                        assert!(stats.misses >= best.misses, "{what}: {stats:?} {best:?}");
                        if slots == 24 {
                            assert_eq!(stats, unlimited, "{what}");
                        }
                    }
                }
            }
        }
    }
}

/// Hindsight against all that could be done, tried one by one.
#[test]
fn hindsight_is_what_exhaustive_search_finds() {
    let mut random = Random(17);
    let shape = TraceShape { n_layers: 2, n_experts: 3, top_k: 1 };
    for _ in 0..60 {
        let trace = random.trace(shape, 12);
        for (slots, warm_up) in [(2, 0), (3, 0), (4, 0), (2, 5), (3, 5)] {
            let simulation = Simulation::new(&[&trace], warm_up).expect("one trace");
            let found = simulation.belady(Sharing::OnePool, slots).expect("enough slots").misses;
            let fewest = exhaustive(&trace, slots, warm_up);
            if warm_up == 0 {
                assert_eq!(found, fewest, "{slots} slots");
            } else {
                assert!(found <= fewest, "{slots} slots");
            }
        }
    }
}

/// The fewest counted misses, over all contents (as a set of bits) that a cache could have.
fn exhaustive(trace: &Trace, slots: u32, warm_up: u32) -> u64 {
    let mut misses_of_contents = BTreeMap::from([(0_u32, 0_u64)]);
    for demand in demands(trace) {
        let first = demand.layer * trace.shape().n_experts;
        let wanted: u32 = demand.experts.iter().map(|expert| 1 << (first + expert)).sum();
        let mut next = BTreeMap::new();
        for (contents, misses) in misses_of_contents {
            let missing = u64::from((wanted & !contents).count_ones());
            let misses = misses + if demand.token >= warm_up { missing } else { 0 };
            let union = contents | wanted;
            for kept in (0..64_u32).map(|bits| bits & union | wanted) {
                if kept.count_ones() <= slots {
                    let best = next.entry(kept).or_insert(misses);
                    *best = misses.min(*best);
                }
            }
        }
        misses_of_contents = next;
    }
    misses_of_contents.into_values().min().expect("some contents")
}
