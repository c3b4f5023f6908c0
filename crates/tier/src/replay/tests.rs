//! Tiny traces whose victims are known, and bounds on random ones.

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

/// Whether tokens were computed together makes no difference to what they would need by themselves.
#[test]
fn a_batch_is_replayed_token_by_token() {
    let shape = TraceShape { n_layers: 2, n_experts: 4, top_k: 1 };
    // Token by token: both layers' experts change each time, so that two slots never hold them.
    let chosen = |token: u32, layer: u32| [u16::try_from((token + layer) % 2).unwrap()];
    let order = |records: &[(u32, u32)]| {
        let mut trace = Trace::new(shape).expect("a shape that fits");
        for &(token, layer) in records {
            let experts = chosen(token, layer);
            trace
                .push(TraceRecord { token, layer, experts: &experts })
                .expect("a record that fits");
        }
        trace
    };
    let single = order(&[(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]);
    let batch = order(&[(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]);
    for trace in [&single, &batch] {
        check(replay(trace, Lru::new(8), 2), 0, 6, 4);
        check(replay(trace, Lru::new(8), 4), 2, 4, 0);
        check(belady(trace, 2), 1, 5, 3);
    }
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
