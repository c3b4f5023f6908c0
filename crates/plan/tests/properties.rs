//! What must be true of every plan.

mod common;

use common::{GIB, all, machine, request, streamed_bytes};
use hypura_gguf::Model;
use hypura_plan::{KvType, Layout, Mode, Placement, Plan, PlanError, Request, plan};

/// Requests that differ in everything that changes a plan but the budget.
fn requests() -> Vec<(&'static str, Request)> {
    let default = Request::default();
    vec![
        ("default", default.clone()),
        ("no flash attention", Request { flash_attention: false, ..default.clone() }),
        ("fast layout", Request { layout: Layout::Fast, ..default.clone() }),
        ("long", Request { ctx_tokens: 32768, full_sliding_windows: true, ..default.clone() }),
        (
            "quantized, four sequences, batch of 128",
            Request {
                kv_type_k: KvType::Q8_0,
                kv_type_v: KvType::Q4_0,
                n_seq: 4,
                ubatch_tokens: Some(128),
                ..default.clone()
            },
        ),
        ("tiers of attention state", Request { kv_tier_bytes: GIB, n_seq: 2, ..default.clone() }),
        ("few weights", Request { weights_memory_bytes: Some(3 * GIB), ..default }),
    ]
}

fn smallest(model: &Model, request: &Request) -> u64 {
    match plan(model, &machine(), &Request { memory_bytes: 0, ..request.clone() }) {
        Err(PlanError::BudgetTooSmall { smallest_bytes, .. }) => smallest_bytes,
        other => panic!("no budget at all was enough: {other:?}"),
    }
}

#[test]
fn the_smallest_budget_works_and_one_byte_less_does_not() {
    for (name, model) in all() {
        for (kind, request) in requests() {
            let smallest_bytes = smallest(&model, &request);
            let at = |memory_bytes| {
                plan(&model, &machine(), &Request { memory_bytes, ..request.clone() })
            };
            match at(smallest_bytes) {
                Ok(plan) => {
                    assert_eq!(plan.smallest_bytes, smallest_bytes, "{name}, {kind}");
                    check(&plan, &model, &format!("{name}, {kind}, smallest"));
                }
                Err(PlanError::WeightsBudgetTooSmall { smallest_bytes, .. }) => {
                    assert!(smallest_bytes > 3 * GIB, "{name}, {kind}");
                }
                Err(error) => panic!("{name}, {kind}: {error}"),
            }
            match at(smallest_bytes - 1) {
                Err(PlanError::BudgetTooSmall { smallest_bytes: named, .. }) => {
                    assert_eq!(named, smallest_bytes, "{name}, {kind}");
                }
                other => panic!("{name}, {kind}: {other:?}"),
            }
        }
    }
}

#[test]
fn every_plan_keeps_its_budget_and_more_memory_never_streams_more() {
    let mut streaming = 0;
    for (name, model) in all() {
        for (kind, request) in requests() {
            let smallest_bytes = smallest(&model, &request);
            let most = smallest_bytes + model.weight_bytes() + GIB;
            let mut last = u64::MAX;
            // Steps that are no round numbers of anything.
            let step = (most - smallest_bytes) / 97 + 12_345;
            for memory_bytes in (0..120).map(|i| smallest_bytes + i * step) {
                let request = Request { memory_bytes, ..request.clone() };
                let Ok(plan) = plan(&model, &machine(), &request) else {
                    assert!(request.weights_memory_bytes.is_some(), "{name}, {kind}");
                    continue;
                };
                let context = format!("{name}, {kind}, {memory_bytes}");
                check(&plan, &model, &context);
                if let Some(limit) = request.weights_memory_bytes {
                    assert!(plan.bytes.weights() <= limit, "{context}");
                }
                assert!(
                    streamed_bytes(&plan) <= last,
                    "{context}: {} > {last}",
                    streamed_bytes(&plan)
                );
                last = streamed_bytes(&plan);
                streaming += u32::from(last > 0);
            }
            if request.weights_memory_bytes.is_none() {
                assert_eq!(last, 0, "{name}, {kind}: everything fits at last");
            }
        }
    }
    assert!(streaming > 1000, "only {streaming} plans streamed");
}

/// Near the steps of slots, matrices and batches, where rounding could go wrong.
#[test]
fn more_memory_never_streams_more_in_small_steps() {
    for (name, model) in all() {
        let smallest_bytes = smallest(&model, &request(0));
        for start in [smallest_bytes, smallest_bytes + model.weight_bytes() / 3] {
            let mut last = u64::MAX;
            for memory_bytes in (0..200).map(|i| start + i * 77_777) {
                let plan = plan(&model, &machine(), &request(memory_bytes)).expect("large enough");
                assert!(streamed_bytes(&plan) <= last, "{name}, {memory_bytes}");
                last = streamed_bytes(&plan);
            }
        }
    }
}

#[track_caller]
fn check(plan: &Plan, model: &Model, context: &str) {
    assert!(plan.bytes.total() <= plan.budget_bytes, "{context}: {:?}", plan.bytes);
    assert!(plan.load_peak_bytes <= plan.budget_bytes, "{context}: {}", plan.load_peak_bytes);
    assert_eq!(plan.placements.len(), model.tensors.len(), "{context}");
    assert!(plan.n_ctx.is_multiple_of(256) && plan.n_ubatch <= plan.n_batch, "{context}");

    let (mut resident, mut ring, mut largest) = (0, 0, [0, 0]);
    for (tensor, placement) in model.tensors.iter().zip(&plan.placements) {
        match placement {
            Placement::Resident => resident += tensor.bytes,
            Placement::Unused => {
                assert!(tensor.layer >= Some(model.hparams().n_layer_trunk()), "{context}");
            }
            Placement::Ring => {
                ring += tensor.bytes;
                assert!(matches!(tensor.n_dims, 2 | 3), "{context}: {}", tensor.name);
                largest =
                    [largest[0].max(tensor.bytes), largest[1].max(largest[0].min(tensor.bytes))];
            }
            Placement::ExpertPool { pool } => {
                assert!(tensor.role.is_expert(), "{context}: {}", tensor.name);
                let pool = &plan.pools[*pool as usize];
                let bytes = tensor.expert_bytes().expect("an expert tensor");
                assert!(pool.parts.iter().any(|part| part.bytes == bytes), "{context}");
            }
            Placement::Rows => assert_eq!(tensor.name, "token_embd.weight", "{context}"),
        }
    }
    assert_eq!(resident, plan.bytes.resident_weights, "{context}");
    assert_eq!(plan.ring_bytes, plan.bytes.ring, "{context}");
    assert!(plan.ring_bytes >= largest[0] + largest[1], "{context}: double buffering");
    assert!(plan.ring_bytes <= ring, "{context}");
    let slots: u64 = plan.pools.iter().map(|pool| pool.slot_bytes * u64::from(pool.slots)).sum();
    assert_eq!(slots, plan.bytes.expert_slots, "{context}");

    for (index, layer) in plan.expert_layers.iter().enumerate() {
        let pool = &plan.pools[layer.pool as usize];
        assert!(pool.layers.iter().any(|&l| l as usize == index), "{context}");
        assert!(pool.slots >= layer.n_used, "{context}: a token needs {}", layer.n_used);
        assert!(u64::from(pool.slots) <= pool.layers.len() as u64 * u64::from(pool.n_experts));
        for (tensor, part) in layer.tensors.iter().zip(&pool.parts) {
            let info = &model.tensors[tensor.tensor];
            assert_eq!((tensor.part, info.expert_bytes()), (part.part, Some(part.bytes)));
            let placement = Placement::ExpertPool { pool: layer.pool };
            assert_eq!(plan.placements[tensor.tensor], placement, "{context}");
        }
        assert_eq!(layer.tensors.len(), pool.parts.len(), "{context}");
    }
    match plan.mode {
        Mode::FullResident => assert!(resident == model.weight_bytes() && plan.pools.is_empty()),
        Mode::ExpertStreaming => assert!(!plan.pools.is_empty(), "{context}"),
        Mode::DenseStreaming => assert!(plan.pools.is_empty(), "{context}"),
    }
    let speed = &plan.speed;
    assert!(speed.decode_tokens_per_s_low <= speed.decode_tokens_per_s, "{context}");
    assert!(speed.decode_tokens_per_s <= speed.decode_tokens_per_s_high, "{context}");
    assert!(speed.decode_tokens_per_s_low > 0.0 && speed.prompt_tokens_per_s > 0.0, "{context}");
    assert!(speed.prompt_tokens_per_s.is_finite(), "{context}");
}

#[test]
fn requests_that_contradict_themselves() {
    let model = common::demo(1);
    let refused = |request: Request| plan(&model, &machine(), &request).expect_err("refused");
    let default = request(GIB);
    assert!(matches!(
        refused(Request { ctx_tokens: 0, ..default.clone() }),
        PlanError::Zero { .. }
    ));
    assert!(matches!(refused(Request { n_seq: 0, ..default.clone() }), PlanError::Zero { .. }));
    let zero_batch = Request { ubatch_tokens: Some(0), ..default.clone() };
    assert!(matches!(refused(zero_batch), PlanError::Zero { .. }));
    let values = Request { kv_type_v: KvType::Q8_0, flash_attention: false, ..default.clone() };
    assert_eq!(refused(values), PlanError::QuantizedValuesNeedFlashAttention);
    let weights = Request { weights_memory_bytes: Some(1), ..default };
    assert!(matches!(refused(weights), PlanError::WeightsBudgetTooSmall { .. }));
}

/// A file may say anything: the planner answers with an error or a plan, never with a panic.
#[test]
fn absurd_models() {
    use hypura_gguf::GgmlType::{F32, Q4_0};
    let empty = common::Builder::new("llama").build();
    let huge_keys = common::Builder::new("llama")
        .keys(&[
            ("block_count", u32::MAX),
            ("context_length", u32::MAX),
            ("embedding_length", u32::MAX),
            ("attention.head_count", u32::MAX),
            ("attention.key_length", u32::MAX),
            ("expert_count", u32::MAX),
            ("expert_used_count", u32::MAX),
        ])
        .tensor("blk.0.ffn_up_exps.weight", Q4_0, &[32, 1, 1 << 40])
        .build();
    let odd_experts = common::Builder::new("qwen3moe")
        .keys(&[("block_count", 1), ("embedding_length", 32), ("expert_used_count", 9)])
        .tensor("blk.0.ffn_up_exps.weight", F32, &[32, 32, 4])
        .tensor("blk.0.ffn_down_exps.weight", F32, &[32, 32, 5])
        .tensor("blk.4294967295.ffn_up_exps.weight", F32, &[32, 32, 4])
        .build();
    for model in [empty, huge_keys, odd_experts] {
        for memory_bytes in [0, GIB, u64::MAX] {
            for ctx_tokens in [1, u32::MAX] {
                let request = Request { ctx_tokens, ..request(memory_bytes) };
                let unlimited = Request { cap_ctx_to_trained: false, ..request.clone() };
                for request in [request, unlimited] {
                    if let Ok(plan) = plan(&model, &machine(), &request) {
                        assert!(plan.bytes.total() <= memory_bytes);
                    }
                }
            }
        }
    }
}
