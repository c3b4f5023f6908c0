//! Plans with a GPU that computes: its memory over main memory over storage.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use common::{GIB, MIB, all, machine, request};
use hypura_gguf::{Model, Role};
use hypura_plan::memory::GPU_BASE_BYTES;
use hypura_plan::{
    BandwidthPoint, GpuPlan, GpuRates, GpuRequest, Limit, Machine, Mode, Placement, Plan,
    PlanError, Request, explain, plan, split_layers,
};

/// Requests that differ in what changes a plan with a GPU, but the budgets.
fn requests() -> Vec<(&'static str, Request)> {
    let default = Request::default();
    vec![
        ("default", default.clone()),
        ("no flash attention", Request { flash_attention: false, ..default.clone() }),
        ("long", Request { ctx_tokens: 32768, full_sliding_windows: true, ..default.clone() }),
        ("batch of 128", Request { n_seq: 4, ubatch_tokens: Some(128), ..default.clone() }),
        ("tiers of attention state", Request { kv_tier_bytes: GIB, ..default }),
    ]
}

fn with(request: &Request, gpu_bytes: u64, memory_bytes: u64) -> Request {
    Request {
        memory_bytes,
        gpu: Some(GpuRequest { memory_bytes: gpu_bytes, devices: 1 }),
        ..request.clone()
    }
}

fn plan_with(model: &Model, gpu_bytes: u64, memory_bytes: u64) -> Plan {
    plan(model, &machine(), &with(&Request::default(), gpu_bytes, memory_bytes))
        .expect("large enough")
}

fn gpu(plan: &Plan) -> &GpuPlan {
    plan.gpu.as_ref().expect("it was planned with one")
}

fn gpu_smallest(model: &Model, request: &Request) -> u64 {
    match plan(model, &machine(), &with(request, 0, u64::MAX)) {
        Err(PlanError::GpuBudgetTooSmall { smallest_bytes, budget_bytes: 0, .. }) => smallest_bytes,
        other => panic!("no GPU memory at all was enough: {other:?}"),
    }
}

fn smallest(model: &Model, request: &Request, gpu_bytes: u64) -> u64 {
    match plan(model, &machine(), &with(request, gpu_bytes, 0)) {
        Err(PlanError::BudgetTooSmall { smallest_bytes, budget_bytes: 0, .. }) => smallest_bytes,
        other => panic!("no memory at all was enough: {other:?}"),
    }
}

struct Random(u64);

impl Random {
    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + self.0 % (high - low).max(1)
    }
}

fn is_input(role: Role) -> bool {
    matches!(role, Role::TokenEmbedding | Role::PerLayerEmbedding | Role::PositionEmbedding)
}

/// The two largest of `bytes`, together.
fn two_largest(bytes: impl Iterator<Item = u64>) -> u64 {
    let mut bytes: Vec<u64> = bytes.collect();
    bytes.sort_unstable_by_key(|&bytes| std::cmp::Reverse(bytes));
    bytes.iter().take(2).sum()
}

/// Bytes of a slot that streamed experts of any layer fit.
fn widest_expert(plan: &Plan, model: &Model) -> u64 {
    let mut widest = BTreeMap::new();
    for (tensor, placement) in model.tensors.iter().zip(&plan.placements) {
        if let (Role::Expert(part), Placement::ExpertPool { .. }) = (tensor.role, placement) {
            let bytes: &mut u64 = widest.entry(format!("{part:?}")).or_default();
            *bytes = (*bytes).max(tensor.bytes / tensor.dims[2]);
        }
    }
    widest.into_values().sum()
}

#[track_caller]
fn check(plan: &Plan, model: &Model, context: &str) {
    let gpu = gpu(plan);
    assert!(plan.bytes.total() <= plan.budget_bytes, "{context}: {:?}", plan.bytes);
    assert!(plan.load_peak_bytes <= plan.bytes.total(), "{context}");
    assert!(gpu.bytes.total() <= gpu.budget_bytes, "{context}: {:?}", gpu.bytes);
    let base = GPU_BASE_BYTES * u64::from(gpu.devices);
    let is_exact = gpu.devices == 1;
    assert!(gpu.bytes.base == base || gpu.bytes.base > base && !is_exact, "{context}");
    assert_eq!(gpu.bytes.kv_tiers, 0, "{context}");
    assert_eq!((plan.bytes.kv, gpu.bytes.io_buffers), (0, 0), "{context}");
    assert_eq!(plan.placements.len(), model.tensors.len(), "{context}");

    let is_tied = model.tensor("output.weight").is_none();
    let host: BTreeSet<usize> = plan.host_matrices.iter().copied().collect();
    assert!(plan.host_matrices.is_sorted() && host.len() == plan.host_matrices.len());
    let (mut on_gpu, mut in_memory) = (0, 0);
    let (mut ring, mut staged) = (Vec::new(), Vec::new());
    for (index, (tensor, placement)) in model.tensors.iter().zip(&plan.placements).enumerate() {
        let is_held = host.contains(&index);
        assert!(!is_held || *placement == Placement::Ring, "{context}: {}", tensor.name);
        match placement {
            Placement::Resident => {
                let is_table = is_input(tensor.role);
                in_memory += if is_table { tensor.bytes } else { 0 };
                on_gpu += if is_table && !is_tied { 0 } else { tensor.bytes };
            }
            Placement::Ring => {
                in_memory += if is_held { tensor.bytes } else { 0 };
                ring.push(tensor.bytes);
                staged.extend((!is_held).then_some(tensor.bytes));
            }
            Placement::ExpertPool { pool } => assert!((*pool as usize) < plan.pools.len()),
            Placement::Rows | Placement::Unused => panic!("{context}: {}", tensor.name),
        }
    }
    assert_eq!(on_gpu, gpu.bytes.resident_weights, "{context}");
    assert_eq!(in_memory, plan.bytes.resident_weights, "{context}");
    for (bytes, streamed, which) in
        [(gpu.ring_bytes, &ring, "GPU"), (plan.ring_bytes, &staged, "memory")]
    {
        let needed = two_largest(streamed.iter().copied());
        assert!(bytes >= needed, "{context}: double buffering in {which}");
        assert!(bytes <= streamed.iter().sum(), "{context}: {which}");
    }
    let rings = gpu.ring_bytes * u64::from(gpu.devices);
    assert_eq!((gpu.bytes.ring, plan.bytes.ring), (rings, plan.ring_bytes), "{context}");
    let transit = u64::from(gpu.transit_slots * gpu.devices) * widest_expert(plan, model);
    assert_eq!((gpu.bytes.transit, plan.bytes.transit), (transit, 0), "{context}");
    let n_experts = plan.pools.iter().map(|pool| pool.n_experts).max().unwrap_or(0);
    let transit = gpu.transit_slots;
    assert_eq!(plan.pools.is_empty(), transit == 0, "{context}");
    assert!(transit < 8 || transit.is_multiple_of(8), "{context}: {transit}");
    assert!(transit != 1 && transit <= n_experts.max(2), "{context}: {transit} of {n_experts}");

    assert_eq!(gpu.slots.len(), plan.pools.len(), "{context}");
    let (mut slots, mut gpu_slots) = (0, 0);
    for (pool, &on_gpu) in plan.pools.iter().zip(&gpu.slots) {
        let units = pool.layers.len() as u64 * u64::from(pool.n_experts);
        for n in [pool.slots, on_gpu] {
            assert!(n >= pool.n_used && u64::from(n) <= units, "{context}: {n} of {units}");
        }
        slots += pool.slot_bytes * u64::from(pool.slots);
        gpu_slots += pool.slot_bytes * u64::from(on_gpu);
    }
    assert_eq!((slots, gpu_slots), (plan.bytes.expert_slots, gpu.bytes.expert_slots), "{context}");
    match plan.mode {
        Mode::FullResident => {
            assert!(plan.pools.is_empty() && plan.expert_layers.is_empty() && ring.is_empty());
            assert_eq!(plan.speed.copied_bytes_per_token, 0, "{context}");
        }
        Mode::ExpertStreaming => assert!(!plan.pools.is_empty(), "{context}"),
        Mode::DenseStreaming => assert!(plan.pools.is_empty() && !ring.is_empty(), "{context}"),
    }
    let speed = &plan.speed;
    assert!(speed.read_bytes_per_token <= speed.copied_bytes_per_token, "{context}: {speed:?}");
    for [low, point, high] in [
        [speed.decode_tokens_per_s_low, speed.decode_tokens_per_s, speed.decode_tokens_per_s_high],
        [speed.prompt_tokens_per_s_low, speed.prompt_tokens_per_s, speed.prompt_tokens_per_s_high],
    ] {
        assert!(0.0 < low && low <= point && point <= high, "{context}: {speed:?}");
        assert!(high.is_finite(), "{context}: {speed:?}");
    }
}

#[test]
fn the_smallest_budgets_work_and_one_byte_less_does_not() {
    for (name, model) in all() {
        for (kind, request) in requests() {
            let least = gpu_smallest(&model, &request);
            for gpu_bytes in [least, least + model.weight_bytes() / 3, least + 64 * GIB] {
                let context = format!("{name}, {kind}, {gpu_bytes}");
                let memory_bytes = smallest(&model, &request, gpu_bytes);
                let at = |gpu_bytes, memory_bytes| {
                    plan(&model, &machine(), &with(&request, gpu_bytes, memory_bytes))
                };
                let fits = at(gpu_bytes, memory_bytes).expect("named as enough");
                check(&fits, &model, &context);
                assert_eq!(fits.smallest_bytes, memory_bytes, "{context}");
                assert_eq!(gpu(&fits).smallest_bytes, least, "{context}");
                match at(gpu_bytes, memory_bytes - 1) {
                    Err(PlanError::BudgetTooSmall { smallest_bytes, .. }) => {
                        assert_eq!(smallest_bytes, memory_bytes, "{context}");
                    }
                    other => panic!("{context}: {other:?}"),
                }
                match at(least - 1, memory_bytes) {
                    Err(PlanError::GpuBudgetTooSmall { smallest_bytes, budget_bytes, .. }) => {
                        assert_eq!((smallest_bytes, budget_bytes), (least, least - 1), "{context}");
                    }
                    other => panic!("{context}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn both_budgets_hold_for_random_ones() {
    let mut random = Random(0x5eed);
    let mut modes = [0; 3];
    for (name, model) in all() {
        for (kind, request) in requests() {
            let least = gpu_smallest(&model, &request);
            for _ in 0..40 {
                let gpu_bytes = least + random.between(0, model.weight_bytes() * 5 / 4 + GIB);
                let memory_smallest = smallest(&model, &request, gpu_bytes);
                let memory_bytes =
                    memory_smallest + random.between(0, model.weight_bytes() * 5 / 4 + GIB);
                let request = with(&request, gpu_bytes, memory_bytes);
                let plan = plan(&model, &machine(), &request).expect("large enough");
                check(&plan, &model, &format!("{name}, {kind}, {gpu_bytes}, {memory_bytes}"));
                modes[plan.mode as usize] += 1;
            }
        }
    }
    assert!(modes.iter().all(|&n| n > 50), "{modes:?}");
}

/// Layers of several GPUs, as equal ones and as others, fit into each one's memory.
#[test]
fn several_gpus_have_room_for_their_layers() {
    let mut random = Random(0xcafe);
    let mut modes = [0; 3];
    for (name, model) in all() {
        for devices in [2, 3] {
            let on = |gpu_bytes, memory_bytes| Request {
                gpu: Some(GpuRequest { memory_bytes: gpu_bytes, devices }),
                ..with(&Request::default(), gpu_bytes, memory_bytes)
            };
            let least = match plan(&model, &machine(), &on(0, u64::MAX)) {
                Err(PlanError::GpuBudgetTooSmall { smallest_bytes, .. }) => {
                    smallest_bytes * u64::from(devices)
                }
                other => panic!("no GPU memory at all was enough: {other:?}"),
            };
            for round in 0..20 {
                let gpu_bytes = least + random.between(0, model.weight_bytes() * 5 / 4 + GIB);
                let plan = plan(&model, &machine(), &on(gpu_bytes, 1 << 40)).expect("large enough");
                let context = format!("{name} on {devices}, {gpu_bytes}");
                check(&plan, &model, &context);
                modes[plan.mode as usize] += 1;
                let gpu = gpu(&plan);
                let of_each = gpu.bytes.compute + gpu.bytes.work + gpu.bytes.ring;
                let own = GPU_BASE_BYTES + of_each / u64::from(devices);
                // Equal ones, and one that is larger than the others.
                let more = if round % 2 == 0 { 0 } else { gpu_bytes / u64::from(devices) / 3 };
                let others = u64::from(devices - 1);
                let first = gpu_bytes / u64::from(devices) + more;
                let mut budgets = vec![(gpu_bytes - first) / others; devices as usize];
                budgets[0] = first;
                let room: Vec<u64> = budgets.iter().map(|b| b.saturating_sub(own)).collect();
                let runs = split_layers(&model, &plan, &room);
                let layers: u32 = runs.iter().map(|run| run.layers).sum();
                assert_eq!(layers, model.hparams().n_layer + 1, "{context}");
                for (run, room) in runs.iter().zip(&room) {
                    assert!(run.bytes <= *room, "{context}: {runs:?} in {room:?} of {room}");
                }
            }
        }
    }
    assert!(modes.iter().all(|&n| n > 10), "{modes:?}");
}

/// More of either memory never holds less in it, nor takes anything from the other, nor is slower.
#[test]
fn more_of_either_memory_is_never_worse() {
    for (name, model) in all() {
        let default = Request::default();
        let least = gpu_smallest(&model, &default);
        let weights = model.weight_bytes();
        let enough = smallest(&model, &default, least);
        for part in [0, 2, 6, 11] {
            let memory_bytes = enough + weights / 10 * part;
            let gpu_bytes = least + weights / 10 * part;
            grows(&format!("{name}, GPU memory, {memory_bytes}"), |step| {
                plan_with(&model, least + step * (weights / 61 + 12_345), memory_bytes)
            });
            grows(&format!("{name}, memory, {gpu_bytes}"), |step| {
                plan_with(&model, gpu_bytes, enough + step * (weights / 61 + 12_345))
            });
        }
    }
}

fn grows(context: &str, at: impl Fn(u64) -> Plan) {
    let mut last: Option<Plan> = None;
    for plan in (0..80).map(at) {
        if let Some(last) = &last {
            let context = format!(
                "{context}: {} and {}, {:?} then {:?}",
                gpu(&plan).budget_bytes,
                plan.budget_bytes,
                last.speed,
                plan.speed
            );
            assert!(plan.speed.decode_tokens_per_s >= last.speed.decode_tokens_per_s, "{context}");
            assert!(
                plan.speed.copied_bytes_per_token <= last.speed.copied_bytes_per_token,
                "{context}"
            );
            if plan.mode == last.mode {
                let pinned = |plan: &Plan| gpu(plan).bytes.resident_weights;
                assert!(pinned(&plan) >= pinned(last), "{context}");
                let slots = |plan: &Plan| gpu(plan).slots.clone();
                assert!(slots(&plan).iter().zip(slots(last)).all(|(&now, last)| now >= last));
            }
            if gpu(&plan).budget_bytes == gpu(last).budget_bytes {
                assert_eq!(plan.mode, last.mode, "{context}");
                let held = |plan: &Plan| plan.bytes.resident_weights;
                assert!(held(&plan) >= held(last), "{context}");
                assert!(
                    plan.pools.iter().zip(&last.pools).all(|(now, last)| now.slots >= last.slots)
                );
                assert!(plan.speed.read_bytes_per_token <= last.speed.read_bytes_per_token);
            }
        }
        last = Some(plan);
    }
}

/// A GPU that is there, but not asked for, changes nothing.
#[test]
fn without_a_gpu_nothing_changes() {
    let with_rates = Machine { gpu: Some(GpuRates::default()), ..machine() };
    for (name, model) in all() {
        let request = request(model.weight_bytes() / 2 + GIB);
        let plans = [&machine(), &with_rates].map(|machine| plan(&model, machine, &request));
        let [Ok(without), Ok(with)] = plans else { panic!("{name}: large enough") };
        assert_eq!(without, with, "{name}");
        assert!(without.gpu.is_none() && without.host_matrices.is_empty(), "{name}");
        let json = serde_json::to_string(&without).expect("plain data");
        assert!(!json.contains("gpu") && !json.contains("host") && !json.contains("cop"), "{name}");
        assert!(explain(&without, &model).gpu_budget.is_empty(), "{name}");
    }
}

#[test]
fn all_in_gpu_memory() {
    for (name, model) in all() {
        let plan = plan_with(&model, model.weight_bytes() + 8 * GIB, 2 * GIB);
        check(&plan, &model, name);
        assert_eq!((plan.mode, plan.n_ubatch), (Mode::FullResident, 512.min(plan.n_ctx)), "{name}");
        let embedding = model.tensor("token_embd.weight").expect("it has one").bytes;
        assert_eq!(plan.bytes.weights(), embedding, "{name}");
        let is_tied = model.tensor("output.weight").is_none();
        let elsewhere = if is_tied { 0 } else { embedding };
        assert_eq!(gpu(&plan).bytes.weights(), model.weight_bytes() - elsewhere, "{name}");
        assert!(gpu(&plan).slots.is_empty() && plan.speed.read_bytes_per_token == 0, "{name}");
        assert_eq!(plan.speed.limit, Limit::Compute, "{name}");
    }
}

#[test]
fn dense_matrices_in_memory_and_on_storage() {
    let model = common::llama_70b();
    let all_held = plan_with(&model, 16 * GIB, 48 * GIB);
    let streamed: Vec<usize> = (0..)
        .zip(&all_held.placements)
        .filter(|(_, place)| **place == Placement::Ring)
        .map(|(index, _)| index)
        .collect();
    assert_eq!(all_held.mode, Mode::DenseStreaming);
    assert_eq!(all_held.host_matrices, streamed);
    assert_eq!((all_held.ring_bytes, all_held.speed.read_bytes_per_token), (0, 0));
    assert_eq!(all_held.speed.limit, Limit::HostToDevice);
    let bytes: u64 = streamed.iter().map(|&index| model.tensors[index].bytes).sum();
    assert_eq!(all_held.speed.copied_bytes_per_token, bytes);
    // 52 GB/s and 1 TB/s are assumed.
    let expected = 52e9 / bytes as f64;
    assert!((all_held.speed.decode_tokens_per_s / expected - 1.0).abs() < 0.01, "{expected}");

    let part_held = plan_with(&model, 16 * GIB, 16 * GIB);
    check(&part_held, &model, "part");
    assert!(!part_held.host_matrices.is_empty());
    assert!(part_held.host_matrices.len() < streamed.len());
    assert_eq!(part_held.placements, all_held.placements);
    assert!(part_held.ring_bytes > 0 && part_held.bytes.total() > 15 * GIB);
    assert!(part_held.speed.read_bytes_per_token > 0);
    assert_eq!(part_held.speed.limit, Limit::StorageBandwidth);
    // Reads from the drive take so long that a larger micro-batch pays, though it takes GPU memory.
    let little_held = plan_with(&model, 16 * GIB, 6 * GIB);
    assert_eq!((all_held.n_ubatch, little_held.n_ubatch), (512, 2048));
}

#[test]
fn experts_over_three_tiers() {
    let model = common::qwen3_30b_a3b();
    let units = 48 * 128;
    let slots = |plan: &Plan| plan.pools.iter().map(|pool| u64::from(pool.slots)).sum::<u64>();
    let gpu_slots = |plan: &Plan| gpu(plan).slots.iter().map(|&n| u64::from(n)).sum::<u64>();

    let in_memory = plan_with(&model, 8 * GIB, 32 * GIB);
    assert_eq!((in_memory.mode, slots(&in_memory)), (Mode::ExpertStreaming, units));
    assert!((1500..units).contains(&gpu_slots(&in_memory)), "{}", gpu_slots(&in_memory));
    // As large as it takes to hide the copies.
    assert_eq!((in_memory.n_ubatch, in_memory.speed.read_bytes_per_token), (2048, 0));
    assert!(in_memory.speed.copied_bytes_per_token > 0);

    let on_storage = plan_with(&model, 8 * GIB, 6 * GIB);
    assert_eq!(gpu(&on_storage).slots, gpu(&in_memory).slots);
    assert!(slots(&on_storage) < units);
    assert!(on_storage.speed.read_bytes_per_token > 0);
    assert_eq!(on_storage.speed.copied_bytes_per_token, in_memory.speed.copied_bytes_per_token);
    assert!(on_storage.speed.decode_tokens_per_s < in_memory.speed.decode_tokens_per_s);
}

/// A limit on a layer's experts makes them stream though everything fits.
#[test]
fn a_limit_on_slots() {
    let model = common::qwen3_30b_a3b();
    let at = |gpu_slots_max| {
        let request = Request { gpu_slots_max, ..with(&Request::default(), 32 * GIB, 32 * GIB) };
        plan(&model, &machine(), &request).expect("large enough")
    };
    for (slots_max, mode) in [
        (None, Mode::FullResident),
        (Some(128), Mode::FullResident),
        (Some(127), Mode::ExpertStreaming),
        (Some(1), Mode::ExpertStreaming),
    ] {
        let plan = at(slots_max);
        check(&plan, &model, "limited");
        assert_eq!(plan.mode, mode, "{slots_max:?}");
    }
}

/// A limit on weights is one of main memory.
#[test]
fn a_limit_on_weights() {
    let model = common::qwen3_30b_a3b();
    let at = |weights_memory_bytes| {
        let request =
            Request { weights_memory_bytes, ..with(&Request::default(), 8 * GIB, 32 * GIB) };
        plan(&model, &machine(), &request)
    };
    let limited = at(Some(3 * GIB)).expect("large enough");
    check(&limited, &model, "limited");
    assert!(limited.bytes.weights() <= 3 * GIB && limited.bytes.weights() > 3 * GIB - 8 * MIB);
    assert!(gpu(&limited).bytes.weights() > 6 * GIB);
    assert!(matches!(at(Some(MIB)), Err(PlanError::WeightsBudgetTooSmall { .. })));
}

/// What a plan that streams was measured to take beside weights is believed.
#[test]
fn measured_bytes() {
    let model = common::llama_70b();
    let at = |measured_other_bytes| {
        let request = with(&Request::default(), 16 * GIB, 16 * GIB);
        plan(&model, &machine(), &Request { measured_other_bytes, ..request })
    };
    let measured = at(Some(3 * GIB)).expect("large enough");
    check(&measured, &model, "measured");
    assert_eq!(measured.bytes.total() - measured.bytes.weights(), 3 * GIB);
    match at(Some(16 * GIB)) {
        Err(PlanError::BudgetTooSmall { smallest_bytes, .. }) => assert!(smallest_bytes > 16 * GIB),
        other => panic!("{other:?}"),
    }
}

/// Measured rates are used as they are.
#[test]
fn measured_rates() {
    let model = common::qwen3_30b_a3b();
    let point = |read_bytes, bytes_per_s| BandwidthPoint { read_bytes, depth: 1, bytes_per_s };
    let rates = GpuRates {
        name: "a GPU".to_owned(),
        memory_bytes_per_s: 2e12,
        prompt_flops_per_s: 1e14,
        host_to_device: vec![point(1 << 20, 1e10), point(1 << 24, 2e10)],
        layer_s: 1e-5,
        host_bytes: 0,
    };
    assert!((rates.copy_bytes_per_s(1 << 22) - 1.5e10).abs() < 1.0);
    assert!((GpuRates::default().copy_bytes_per_s(4_500_000) - 52e9).abs() < 1.0);
    let speed = |factor: f64| {
        let faster =
            |of: &BandwidthPoint| BandwidthPoint { bytes_per_s: of.bytes_per_s * factor, ..*of };
        let host_to_device = rates.host_to_device.iter().map(faster).collect();
        let gpu = Some(GpuRates { host_to_device, ..rates.clone() });
        let request = with(&Request::default(), 8 * GIB, 32 * GIB);
        let plan = plan(&model, &Machine { gpu, ..machine() }, &request).expect("large enough");
        assert!(!plan.why.join(";").contains("guess"), "{:?}", plan.why);
        plan.speed
    };
    let (slow, fast) = (speed(1.0), speed(2.0));
    assert!((slow.copy_s / fast.copy_s - 2.0).abs() < 1e-9);
    let token_s = slow.compute_s + slow.copy_s;
    assert!((slow.decode_tokens_per_s * token_s - 1.0).abs() < 1e-9, "copies are waited for");
    assert!(fast.prompt_tokens_per_s > slow.prompt_tokens_per_s);
}

/// A file may say anything.
#[test]
fn absurd_models() {
    use hypura_gguf::GgmlType::Q4_0;
    let empty = common::Builder::new("llama").build();
    let huge = common::Builder::new("llama")
        .keys(&[
            ("block_count", u32::MAX),
            ("embedding_length", u32::MAX),
            ("attention.key_length", u32::MAX),
            ("expert_count", u32::MAX),
        ])
        .tensor("blk.0.ffn_up_exps.weight", Q4_0, &[32, 1, 1 << 40])
        .build();
    for model in [empty, huge] {
        for gpu_bytes in [0, GIB, u64::MAX] {
            for memory_bytes in [0, GIB, u64::MAX] {
                let request = with(&Request::default(), gpu_bytes, memory_bytes);
                if let Ok(plan) = plan(&model, &machine(), &request) {
                    assert!(plan.bytes.total() <= memory_bytes);
                    assert!(gpu(&plan).bytes.total() <= gpu_bytes);
                }
            }
        }
    }
}

#[test]
fn tables_add_up() {
    for (name, model) in all() {
        for gpu_bytes in [model.weight_bytes() * 2 + 8 * GIB, model.weight_bytes() / 2 + 3 * GIB] {
            let plan = plan_with(&model, gpu_bytes, model.weight_bytes() + 2 * GIB);
            let explanation = explain(&plan, &model);
            let sum =
                |rows: &[hypura_plan::BudgetRow]| rows.iter().map(|row| row.bytes).sum::<u64>();
            assert_eq!(sum(&explanation.budget), plan.budget_bytes, "{name}");
            assert_eq!(sum(&explanation.gpu_budget), gpu_bytes, "{name}");
            let tiers: u64 = explanation.tiers.iter().map(|bar| bar.bytes).sum();
            assert_eq!(tiers, model.weight_bytes(), "{name}");
            let slots: u64 =
                explanation.pools.iter().map(|row| row.gpu_slots * row.slot_bytes).sum();
            assert_eq!(slots, gpu(&plan).bytes.expert_slots, "{name}");
            let json = serde_json::to_string(&plan).expect("plain data");
            let back: Plan = serde_json::from_str(&json).expect("what was written");
            assert_eq!((back.gpu, back.host_matrices), (plan.gpu, plan.host_matrices), "{name}");
        }
    }
}

#[test]
fn why() {
    let mut text = String::new();
    for (model, gpu_bytes, memory_bytes) in [
        (common::qwen3_30b_a3b(), 24 * GIB, 16 * GIB),
        (common::qwen3_30b_a3b(), 8 * GIB, 32 * GIB),
        (common::qwen3_30b_a3b(), 8 * GIB, 6 * GIB),
        (common::llama_70b(), 24 * GIB, 64 * GIB),
        (common::llama_70b(), 16 * GIB, 16 * GIB),
    ] {
        let plan = plan_with(&model, gpu_bytes, memory_bytes);
        writeln!(text, "{}:", model.architecture()).expect("a string takes everything");
        for reason in &plan.why {
            writeln!(text, "  {reason}").expect("a string takes everything");
        }
        let speed = &plan.speed;
        writeln!(
            text,
            "  {:.1} tok/s ({:.1} to {:.1}), prompt {:.0} tok/s, {:?}",
            speed.decode_tokens_per_s,
            speed.decode_tokens_per_s_low,
            speed.decode_tokens_per_s_high,
            speed.prompt_tokens_per_s,
            speed.limit
        )
        .expect("a string takes everything");
    }
    text += &plan(&common::llama_70b(), &machine(), &with(&Request::default(), GIB, GIB))
        .expect_err("too small")
        .to_string();
    insta::assert_snapshot!(text);
}

#[test]
fn the_driver_takes_main_memory() {
    let model = common::qwen3_30b_a3b();
    let bases = |host_bytes| {
        let gpu = Some(GpuRates { host_bytes, ..GpuRates::default() });
        let machine = Machine { gpu, ..machine() };
        let without = Request { memory_bytes: 64 * GIB, ..Request::default() };
        [with(&Request::default(), 8 * GIB, 32 * GIB), without]
            .map(|request| plan(&model, &machine, &request).expect("large enough").bytes.base)
    };
    let ([none, cpu], [some, also_cpu]) = (bases(0), bases(1000));
    assert_eq!((some - none, also_cpu), (1000, cpu));
}
