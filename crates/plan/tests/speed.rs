//! The expected speed, against times that were worked out by hand.

mod common;

use common::{Builder, GIB};
use hypura_gguf::{GgmlType, Model};
use hypura_plan::{
    BandwidthPoint, ComputeRate, Layout, Limit, Machine, Mode, Plan, Product, Request, Routing,
    forecast, plan, weight_uses,
};

use GgmlType::{F32, Q8_0};

/// One expert's matrix: 1024 * 2048 elements in blocks of 32, which take 34 bytes.
const PART_BYTES: f64 = 2_228_224.0;
/// Two experts' gate and up take 2 ms, their down 1 ms.
const DECODE_BYTES_PER_S: f64 = 2.0 * PART_BYTES * 1e3;
/// A drive that reads anything with this.
const DRIVE_BYTES_PER_S: f64 = 1e9;
/// Reading one missing expert: three parts, each with half a block more at each end.
const READ_S: f64 = 3.0 * (PART_BYTES + 4096.0) / DRIVE_BYTES_PER_S;

fn experts() -> Model {
    Builder::new("qwen3moe")
        .keys(&[
            ("block_count", 1),
            ("context_length", 256),
            ("embedding_length", 1024),
            ("attention.head_count", 8),
            ("expert_count", 8),
            ("expert_used_count", 2),
        ])
        .tensor("token_embd.weight", F32, &[1024, 32])
        .block(
            0,
            &[
                ("ffn_gate_inp", F32, &[1024, 8]),
                ("ffn_gate_exps", Q8_0, &[1024, 2048, 8]),
                ("ffn_up_exps", Q8_0, &[1024, 2048, 8]),
                ("ffn_down_exps", Q8_0, &[2048, 1024, 8]),
            ],
        )
        .build()
}

fn dense() -> Model {
    Builder::new("llama")
        .keys(&[
            ("block_count", 1),
            ("context_length", 256),
            ("embedding_length", 1024),
            ("attention.head_count", 8),
        ])
        .tensor("token_embd.weight", F32, &[1024, 32])
        .block(
            0,
            &[
                ("ffn_gate", Q8_0, &[1024, 2048]),
                ("ffn_up", Q8_0, &[1024, 2048]),
                ("ffn_down", Q8_0, &[2048, 1024]),
            ],
        )
        .build()
}

fn machine() -> Machine {
    let rate = |ty: GgmlType, product| ComputeRate {
        ty: ty.name().to_owned(),
        layout: Layout::Plain,
        product,
        n_in: 1024,
        decode_bytes_per_s: DECODE_BYTES_PER_S,
        // A token's experts, 6 * 2^21 weights, take 1 ms.
        prompt_flops_per_s: 12.0 * 2_097_152.0 * 1e3,
    };
    let size = |read_bytes| BandwidthPoint { read_bytes, depth: 1, bytes_per_s: DRIVE_BYTES_PER_S };
    Machine {
        gpu: None,
        free_memory_bytes: GIB,
        cores: 1,
        storage: vec![size(4096), size(1 << 20)],
        storage_is_fresh: true,
        read_latency_s: 0.0,
        compute: vec![
            rate(Q8_0, Product::Matrix),
            rate(Q8_0, Product::Experts),
            rate(F32, Product::Matrix),
        ],
        step_s: 1e-12,
    }
}

/// Router and (tied) output matrix, 40 * 1024 floats; steps and vocabulary are next to nothing.
const REST_S: f64 = 4.0 * 40.0 * 1024.0 / DECODE_BYTES_PER_S;

fn plan_for(model: &Model, weights_share: f64) -> Plan {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few megabytes")]
    let limit = (model.weight_bytes() as f64 * weights_share) as u64;
    let request = Request {
        memory_bytes: 8 * GIB,
        weights_memory_bytes: Some(limit),
        ubatch_tokens: Some(64),
        ..Request::default()
    };
    plan(model, &machine(), &request).expect("large enough")
}

#[track_caller]
fn assert_near(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 2e-3, "{found}, but by hand {expected}");
}

#[test]
fn all_in_memory() {
    let model = experts();
    let plan = plan_for(&model, 1.0);
    assert_eq!(plan.mode, Mode::FullResident);
    let speed = plan.speed;
    assert_near(1.0 / speed.decode_tokens_per_s, 3e-3 + REST_S);
    // What was measured may be 15% off.
    assert_near(1.0 / speed.decode_tokens_per_s_low, (3e-3 + REST_S) * 1.15);
    assert_near(1.0 / speed.decode_tokens_per_s_high, (3e-3 + REST_S) / 1.15);
    // 1 ms for the experts of each token, and its share for 40 * 1024 weights more.
    let prompt_s = 1e-3 * (1.0 + 40.0 * 1024.0 / (6.0 * 2_097_152.0));
    assert_near(1.0 / speed.prompt_tokens_per_s, prompt_s);
    assert_eq!((speed.limit, speed.read_bytes_per_token), (Limit::Compute, 0));
}

#[test]
fn experts_that_are_missing() {
    let model = experts();
    let plan = plan_for(&model, 0.5);
    assert_eq!((plan.mode, plan.pools.len()), (Mode::ExpertStreaming, 1));
    let at = |counts: &[u64]| {
        let counts = [counts.to_vec()];
        forecast(&model, &plan, &machine(), Layout::Plain, Routing::Replayed(&counts)).speed
    };
    // None: as in memory.
    let speed = at(&[5, 0, 0]);
    assert_near(1.0 / speed.decode_tokens_per_s, 3e-3 + REST_S);
    assert_eq!((speed.assumed_hit_rate, speed.limit), (Some(1.0), Limit::Compute));
    // One of two, always: the other one computes meanwhile, and the drive is idle only during
    // attention. The missing one computes when it is there.
    let speed = at(&[0, 5, 0]);
    assert_near(1.0 / speed.decode_tokens_per_s, READ_S - REST_S + 1.5e-3 + REST_S);
    assert_near(speed.read_s, READ_S);
    assert_near(speed.compute_s, 3e-3 + REST_S);
    assert_eq!((speed.assumed_hit_rate, speed.limit), (Some(0.5), Limit::StorageBandwidth));
    // Perfect overlap with 1.35 times fewer misses on a drive that is 1.2 times as fast.
    assert_near(1.0 / speed.decode_tokens_per_s_high, READ_S / 1.35 / 1.2);
    // In turn; another prompt misses no more than if routing were uniform.
    let pool = &plan.pools[0];
    let uniform = 2.0 * (1.0 - f64::from(pool.slots) / 8.0);
    let slow = (3e-3 + REST_S) * 1.15 + READ_S * uniform.clamp(1.0, 1.35) * 1.2;
    assert_near(1.0 / speed.decode_tokens_per_s_low, slow);
    // Half of the time none, and then guesses for the next layer are read.
    let waited = READ_S - (REST_S + 3e-3 / 2.0) + 1.5e-3;
    assert_near(1.0 / at(&[7, 7, 0]).decode_tokens_per_s, REST_S + (3e-3 + waited) / 2.0);
    // A recording of nothing says nothing.
    let nothing = at(&[0, 0, 0]);
    assert_eq!(nothing.decode_tokens_per_s, plan.speed.decode_tokens_per_s);
}

#[test]
fn matrices_that_stream() {
    let model = dense();
    // Two of three matrices stay.
    let plan = plan_for(&model, 0.99);
    assert_eq!(plan.mode, Mode::DenseStreaming);
    let rest_s = 4.0 * 32.0 * 1024.0 / DECODE_BYTES_PER_S;
    let streamed_bytes = plan.speed.read_bytes_per_token as f64;
    assert_near(streamed_bytes / PART_BYTES, (streamed_bytes / PART_BYTES).round());
    assert!(streamed_bytes > 0.0);
    let (read_s, compute_s) = (streamed_bytes / DRIVE_BYTES_PER_S, 1.5e-3 + rest_s);
    let speed = plan.speed;
    assert_near(1.0 / speed.decode_tokens_per_s, read_s.max(compute_s));
    assert_near(1.0 / speed.decode_tokens_per_s_low, read_s * 1.2 + compute_s * 1.15);
    assert_near(1.0 / speed.decode_tokens_per_s_high, (read_s / 1.2).max(compute_s / 1.15));
    // A micro-batch of 64 tokens reads once; with one layer only, it is waited for.
    let prompt_s = 64.0 * 0.5e-3 * (1.0 + 32.0 * 1024.0 / (3.0 * 2_097_152.0)) + read_s;
    assert_near(64.0 / speed.prompt_tokens_per_s, prompt_s);
}

/// The less is known, the wider the range, and each thing that is not known is said.
#[test]
fn what_is_not_known_is_said() {
    let model = experts();
    let plan = plan_for(&model, 0.5);
    let with = |change: fn(&mut Machine)| {
        let mut machine = machine();
        change(&mut machine);
        forecast(&model, &plan, &machine, Layout::Plain, Routing::Assumed)
    };
    let says = |forecast: &hypura_plan::Forecast, words: &str| {
        forecast.assumptions.iter().any(|sentence| sentence.contains(words))
    };
    let range = |forecast: &hypura_plan::Forecast| {
        forecast.speed.decode_tokens_per_s_high / forecast.speed.decode_tokens_per_s_low
    };
    let fresh = with(|_| ());
    let known = with(|machine| machine.storage_is_fresh = false);
    let guessed = with(|machine| machine.storage.clear());
    let blind = with(|machine| *machine = Machine { cores: 1, ..Machine::default() });
    for wider in [&fresh, &known, &guessed, &blind].windows(2) {
        assert!(range(wider[0]) < range(wider[1]), "{wider:?}");
    }
    for forecast in [&fresh, &known, &guessed, &blind] {
        assert!(says(forecast, "of experts are found in memory, as no routing was recorded"));
        assert!(says(forecast, "whole micro-batches of 64 tokens"));
        assert!(forecast.assumptions.iter().all(|sentence| sentence.starts_with("assumes ")));
    }
    let drive = "assumes that the drive is as fast as when it was measured";
    assert!(!says(&fresh, "drive") && says(&known, drive));
    assert!(says(&guessed, "assumes a drive that reads 1.0 GB/s"));
    assert!(!says(&guessed, "per core") && says(&blind, "for Q8_0 in plain layout"));
    let counts = [vec![3, 1, 0]];
    let replayed = forecast(&model, &plan, &machine(), Layout::Plain, Routing::Replayed(&counts));
    assert!(says(&replayed, "assumes routing like the recorded one, by which 88% of experts"));
}

#[test]
fn uses_of_weights() {
    let model = experts();
    let uses = weight_uses(&model, &plan_for(&model, 0.5), Layout::Fast);
    let found: Vec<_> =
        uses.iter().map(|of| (of.ty, of.layout, of.product, of.n_in, of.bytes)).collect();
    // What streams lies as in the file; gate and up are of one kind.
    let expected = [
        (Q8_0, Layout::Plain, Product::Experts, 1024, 4.0 * PART_BYTES),
        (Q8_0, Layout::Plain, Product::Experts, 2048, 2.0 * PART_BYTES),
        (F32, Layout::Fast, Product::Matrix, 1024, 4.0 * 40.0 * 1024.0),
    ];
    assert_eq!(found, expected);
    let resident = weight_uses(&model, &plan_for(&model, 1.0), Layout::Fast);
    assert!(resident.iter().all(|of| of.layout == Layout::Fast));
}
