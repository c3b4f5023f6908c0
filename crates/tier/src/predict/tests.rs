//! Predictors on sequences made by hand, and how they are judged.

use super::*;
use crate::{ReplayError, Trace, TraceRecord};

const SHAPE: TraceShape = TraceShape { n_layers: 2, n_experts: 6, top_k: 1 };

/// Observes `(layer, experts)` in order and predicts `n` experts of `layer`.
#[track_caller]
fn check(kind: PredictorKind, seen: &[(u32, &[u32])], layer: u32, n: usize, expected: &[u32]) {
    let mut predictor = kind.start(SHAPE).expect("a small model");
    for (layer, experts) in seen {
        predictor.observe(*layer, experts);
    }
    let mut found = vec![99];
    predictor.predict(layer, n, &mut found);
    assert_eq!(found, expected, "{kind:?}");
}

#[test]
fn the_token_before() {
    let seen: &[(u32, &[u32])] = &[(0, &[5, 4]), (0, &[1]), (1, &[0]), (0, &[3, 2])];
    check(PredictorKind::PreviousToken, seen, 0, 2, &[2, 3]);
    check(PredictorKind::PreviousToken, seen, 0, 4, &[2, 3, 1, 4]);
    check(PredictorKind::PreviousToken, seen, 0, 9, &[2, 3, 1, 4, 5]);
    check(PredictorKind::PreviousToken, seen, 1, 2, &[0]);
}

#[test]
fn the_most_used() {
    let seen: &[(u32, &[u32])] =
        &[(0, &[5]), (0, &[1]), (0, &[5]), (1, &[1]), (0, &[3]), (0, &[1])];
    check(PredictorKind::Frequency, seen, 0, 3, &[1, 5, 3]);
    check(PredictorKind::Frequency, seen, 1, 3, &[1]);
    check(PredictorKind::Frequency, &[], 0, 3, &[]);
}

#[test]
fn pairs_across_layers() {
    // In layer 0 expert 1 leads to 4 in layer 1, and 2 to 5, though 5 is used more. In layer 0
    // expert 2 follows on 4 of the token before.
    let seen: Vec<(u32, &[u32])> = vec![
        (0, &[1]),
        (1, &[4]),
        (0, &[2]),
        (1, &[5]),
        (0, &[2]),
        (1, &[5]),
        (0, &[1]),
        (1, &[4]),
        (0, &[2]),
        (1, &[5]),
        (0, &[1]),
    ];
    check(PredictorKind::AcrossLayers, &seen, 1, 1, &[4]);
    check(PredictorKind::AcrossLayers, &seen[..9], 1, 1, &[5]);
    check(PredictorKind::AcrossLayers, &seen[..8], 0, 1, &[2]);
    check(PredictorKind::AcrossLayers, &[], 0, 1, &[]);
}

#[test]
fn pairs_within_a_layer() {
    // 1 is followed by 2, and 2 by 1, with the frequent 3 between others.
    let seen: Vec<(u32, &[u32])> = [3, 3, 3, 1, 2, 1, 2, 1, 2]
        .iter()
        .map(|expert| (0, std::slice::from_ref(expert)))
        .collect();
    check(PredictorKind::WithinLayer, &seen, 0, 1, &[1]);
    check(PredictorKind::WithinLayer, &seen[..8], 0, 1, &[2]);
    check(PredictorKind::WithinLayer, &seen[..3], 0, 1, &[3]);
}

#[test]
fn pairs_are_forgotten_by_halves() {
    let mut predictor = Coactivation::new(SHAPE, Source::TokenBefore).expect("a small model");
    for _ in 0..70_000 {
        predictor.observe(0, &[1]);
    }
    for _ in 0..5000 {
        predictor.observe(0, &[2]);
        predictor.observe(0, &[1]);
    }
    let mut found = Vec::new();
    predictor.predict(0, 1, &mut found);
    assert_eq!(found, [2], "what followed lately counts more than what followed long ago");
}

/// A pattern that only one of the estimates sees: the mix finds out which.
#[test]
fn the_mix_learns_whom_to_trust() {
    let mut random = 9_u64;
    let mut mix = Mix::new(SHAPE).expect("a small model");
    let (mut right, mut found) = (0, Vec::new());
    for token in 0..1500 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let expert = u32::try_from((random >> 33) % 6).expect("below 6");
        mix.observe(0, &[expert]);
        mix.predict(1, 1, &mut found);
        let follower = (expert + 2) % 6;
        right += u32::from(token >= 1000 && found == [follower]);
        mix.observe(1, &[follower]);
    }
    assert!(right >= 495, "{right} of 500");
}

#[test]
fn too_large_a_model_is_refused() {
    let shape = TraceShape { n_layers: 65_535, n_experts: 65_536, top_k: 8 };
    for kind in [PredictorKind::AcrossLayers, PredictorKind::WithinLayer, PredictorKind::Mix] {
        let error = kind.start(shape).map(drop).expect_err("too many pairs");
        assert!(error.to_string().contains("65535 layers of 65536 experts"), "{error}");
    }
    assert!(
        Coactivation::new(
            TraceShape { n_layers: 128, n_experts: 512, top_k: 8 },
            Source::LayerBefore
        )
        .is_ok()
    );
}

#[test]
fn judged_by_hand() {
    let shape = TraceShape { n_layers: 1, n_experts: 8, top_k: 2 };
    let mut trace = Trace::new(shape).expect("a shape that fits");
    for (token, experts) in (0..).zip([[0, 1], [1, 2], [2, 3], [0, 1]]) {
        trace.push(TraceRecord { token, layer: 0, experts: &experts }).expect("it fits");
    }
    let run = |warm_up, slots| {
        let mut predictor = PreviousToken::new(shape);
        evaluate(&[&trace], &mut predictor, &[2, 4], warm_up, slots)
    };
    // Predicted two: none, 0 1, 1 2, 2 3; four: none, 0 1, 1 2 0, 2 3 1 0. The cache of three
    // slots loses 0 to 3.
    let stats = run(0, 3).expect("enough slots");
    let two = stats[0];
    assert_eq!((two.n, two.predicted, two.chosen, two.right), (2, 6, 8, 2));
    assert_eq!((two.recall(), two.precision()), (Some(0.25), Some(2.0 / 6.0)));
    let four = stats[1];
    assert_eq!((four.predicted, four.right), (9, 4));
    // 0 1 2 3 at their first use, and 0 at its second.
    assert_eq!((two.misses, two.misses_predicted, two.reads), (5, 0, 0));
    assert_eq!((four.misses, four.misses_predicted, four.reads), (5, 1, 1));
    // Two slots hold the last token's: 0 is predicted in vain for the third token, and 1 and 0 for
    // the last one not in vain.
    let four = run(0, 2).expect("enough slots")[1];
    assert_eq!((four.misses, four.misses_predicted, four.reads), (6, 2, 3));
    let warm = run(3, 3).expect("enough slots");
    assert_eq!((warm[1].chosen, warm[1].misses, warm[1].misses_predicted), (2, 1, 1));
    assert_eq!(run(0, 1), Err(ReplayError::TooFewSlots { slots: 1, top_k: 2 }));
}
