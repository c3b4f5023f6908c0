//! (machine, model, budget) and the plan, as snapshots. `INSTA_UPDATE=always cargo test` rewrites
//! them; read the difference.

mod common;

use std::fmt::Write;
use std::path::Path;

use common::{GIB, MIB, all, machine, request};
use hypura_gguf::{Model, Role};
use hypura_plan::{KvType, Layout, Mode, Placement, Plan, Request, explain, plan};

/// The plan in a few lines.
fn summary(model: &Model, request: &Request) -> String {
    let mut out = String::new();
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / MIB as f64);
    let plan = match plan(model, &machine(), request) {
        Ok(plan) => plan,
        Err(error) => return format!("  {error}\n"),
    };
    let bytes = &plan.bytes;
    writeln!(
        out,
        "  {:?}, ctx {}, batch {}, ubatch {}",
        plan.mode, plan.n_ctx, plan.n_batch, plan.n_ubatch
    )
    .expect("a string takes everything");
    writeln!(
        out,
        "  MiB: resident {}, slots {}, ring {}, kv {}, compute {}, work {}, io {}, base {}; total {}, at least {}",
        mib(bytes.resident_weights), mib(bytes.expert_slots), mib(bytes.ring), mib(bytes.kv),
        mib(bytes.compute), mib(bytes.work), mib(bytes.io_buffers), mib(bytes.base),
        mib(bytes.total()), mib(plan.smallest_bytes),
    )
    .expect("a string takes everything");
    for row in explain(&plan, model).pools {
        writeln!(
            out,
            "  {} pool(s) of {} layers: {} slots of {} bytes for {} experts",
            row.pools, row.layers, row.slots, row.slot_bytes, row.units
        )
        .expect("a string takes everything");
    }
    for row in explain(&plan, model).roles {
        if row.ring_bytes + row.rows_bytes > 0 {
            writeln!(
                out,
                "  {}: {} of {} MiB through the ring, {} by rows",
                row.role,
                mib(row.ring_bytes),
                mib(row.bytes),
                mib(row.rows_bytes)
            )
            .expect("a string takes everything");
        }
    }
    let speed = &plan.speed;
    writeln!(
        out,
        "  {:.2} tok/s ({:.2} to {:.2}), prompt {:.0} tok/s, {} MiB per token, hits {}, limit {:?}",
        speed.decode_tokens_per_s,
        speed.decode_tokens_per_s_low,
        speed.decode_tokens_per_s_high,
        speed.prompt_tokens_per_s,
        mib(speed.read_bytes_per_token),
        speed.assumed_hit_rate.map_or("none".to_owned(), |rate| format!("{rate:.2}")),
        speed.limit,
    )
    .expect("a string takes everything");
    out
}

/// From large to too small.
#[test]
fn plans() {
    for (name, model) in all() {
        let weights = model.weight_bytes();
        let smallest = plan_at(&model, u64::MAX).smallest_bytes;
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let mut text = String::new();
        for percent in [120, 100, 80, 55, 25, 8, 0] {
            let memory_bytes = smallest + weights / 100 * percent;
            writeln!(text, "{:.1} MiB for {:.1} MiB of weights:", mib(memory_bytes), mib(weights))
                .expect("a string takes everything");
            text += &summary(&model, &request(memory_bytes));
        }
        text += "one byte too few:\n";
        text += &summary(&model, &request(smallest - 1));
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn tiers_of_attention_state_are_part_of_the_budget() {
    for (name, model) in all() {
        let without = plan_at(&model, u64::MAX);
        let memory_bytes = without.smallest_bytes + model.weight_bytes() / 2 + 64 * MIB;
        let with = Request { kv_tier_bytes: 64 * MIB, ..request(memory_bytes) };
        let with = plan(&model, &machine(), &with).expect("large enough");
        assert_eq!(with.bytes.kv_tiers, 64 * MIB, "{name}");
        assert!(with.bytes.total() <= memory_bytes, "{name}");
        assert_eq!(with.smallest_bytes, without.smallest_bytes + 64 * MIB, "{name}");
    }
}

#[test]
fn types_of_keys_and_values_are_planned_at_their_size() {
    let model = common::llama_70b();
    let kv = |kv_type_k, kv_type_v| {
        let request = Request { kv_type_k, kv_type_v, ..request(1 << 40) };
        let plan = plan(&model, &machine(), &request).expect("large enough");
        let hparams = model.hparams();
        assert_eq!(
            hypura_plan::kv::token_bytes(&hparams, &request) * u64::from(plan.n_ctx),
            plan.bytes.kv
        );
        plan.bytes.kv
    };
    // 32 elements take 64, 34 and 18 bytes.
    let f16 = kv(KvType::F16, KvType::F16);
    assert_eq!(kv(KvType::Q8_0, KvType::Q8_0) * 64, f16 * 34);
    assert_eq!(kv(KvType::Q4_0, KvType::Q4_0) * 64, f16 * 18);
    assert_eq!(kv(KvType::Q8_0, KvType::F16) * 2 * 64, f16 * (34 + 64));
}

#[test]
fn why() {
    let mut text = String::new();
    for (model, memory_bytes) in [
        (common::qwen3_30b_a3b(), 8 * GIB),
        (common::llama_70b(), 24 * GIB),
        (common::gemma3_27b(), 64 * GIB),
        (common::demo(24), 400 * MIB),
    ] {
        let plan = plan(&model, &machine(), &request(memory_bytes)).expect("large enough");
        writeln!(text, "{}:", model.architecture()).expect("a string takes everything");
        for reason in &plan.why {
            writeln!(text, "  {reason}").expect("a string takes everything");
        }
    }
    insta::assert_snapshot!(text);
}

fn plan_at(model: &Model, memory_bytes: u64) -> Plan {
    plan(model, &machine(), &request(memory_bytes)).expect("large enough")
}

/// What streams is spread over the layers: between two streamed layers there are never many that
/// are not, compared with the average.
#[test]
fn streamed_matrices_are_spread() {
    let model = common::llama_70b();
    let plan = plan_at(&model, 30 * GIB);
    assert_eq!(plan.mode, Mode::DenseStreaming);
    let mut streamed = [false; 80];
    for (tensor, placement) in model.tensors.iter().zip(&plan.placements) {
        if *placement == Placement::Ring {
            assert_eq!(tensor.role, Role::DenseFfn, "FFN is enough here");
            streamed[tensor.layer.expect("FFN is in a layer") as usize] = true;
        }
    }
    let share = streamed.iter().filter(|&&streamed| streamed).count() as f64 / 80.0;
    let longest_pause =
        streamed.split(|&streamed| streamed).map(<[bool]>::len).max().expect("at least one");
    assert!(share > 0.1 && share < 0.5, "{share}");
    assert!(longest_pause as f64 <= 3.0 / share, "{longest_pause} layers at a share of {share}");
}

/// Attention and the output matrix stream only when all of the FFN does.
#[test]
fn attention_streams_last() {
    let model = common::llama_70b();
    let rings = |plan: &Plan, is_role: fn(Role) -> bool| {
        let tensors = model.tensors.iter().zip(&plan.placements);
        let tensors = tensors.filter(|(tensor, _)| is_role(tensor.role) && tensor.n_dims == 2);
        let all: Vec<bool> = tensors.map(|(_, placement)| *placement == Placement::Ring).collect();
        (all.iter().filter(|&&ring| ring).count(), all.len())
    };
    let is_ffn = |role| role == Role::DenseFfn;
    let is_attention = |role| role == Role::Attention;
    let smallest = plan_at(&model, plan_at(&model, 64 * GIB).smallest_bytes);
    assert_eq!(rings(&smallest, is_ffn), (240, 240));
    assert_eq!(rings(&smallest, is_attention), (320, 320));
    let half = plan_at(&model, 20 * GIB);
    assert_eq!(rings(&half, is_attention), (0, 320));
    assert!(rings(&half, is_ffn).0 > 100);
}

/// A large output matrix that stays in memory does not make the ring large.
#[test]
fn the_ring_is_for_what_streams() {
    let model = common::llama_70b();
    let matrix = model.tensor("blk.0.ffn_up.weight").expect("it has one").bytes;
    let output = model.tensor("output.weight").expect("it has one").bytes;
    let smallest = plan_at(&model, plan_at(&model, 64 * GIB).smallest_bytes);
    assert_eq!(smallest.ring_bytes, output + matrix);
    assert!(plan_at(&model, 24 * GIB).ring_bytes <= 4 * matrix);
}

/// Streaming is what a limit on weights means, however much memory there is beside it.
#[test]
fn a_limit_on_weights() {
    let model = common::demo(24);
    let limit = Some(model.weight_bytes() / 2);
    let request = Request { weights_memory_bytes: limit, ..request(8 * GIB) };
    let plan = plan(&model, &machine(), &request).expect("large enough");
    assert_eq!(plan.mode, Mode::ExpertStreaming);
    assert!(plan.bytes.weights() <= model.weight_bytes() / 2);
    assert!(plan.bytes.weights() > model.weight_bytes() * 49 / 100, "and uses it");
    assert_eq!(plan.n_ubatch, 256);
}

/// What must be resident is, at every budget that works, and so are the other parts of its experts.
#[test]
fn pinned_tensors_stay() {
    let model = common::qwen3_30b_a3b();
    let names = ["token_embd.weight", "output.weight", "blk.3.ffn_up_exps.weight"];
    let pinned: Vec<String> = names.map(str::to_owned).to_vec();
    let free = plan_at(&model, 64 * GIB).smallest_bytes;
    let with = |memory_bytes| Request { pinned: pinned.clone(), ..request(memory_bytes) };
    let smallest = plan(&model, &machine(), &with(64 * GIB)).expect("large enough").smallest_bytes;
    assert!(smallest > free);
    for memory_bytes in [smallest, 4 * GIB, 10 * GIB] {
        let plan = plan(&model, &machine(), &with(memory_bytes)).expect("large enough");
        assert_eq!(plan.expert_layers.len(), 47);
        for (tensor, placement) in model.tensors.iter().zip(&plan.placements) {
            if names.contains(&tensor.name.as_str()) || tensor.name.starts_with("blk.3.ffn_down_") {
                assert_eq!(*placement, Placement::Resident, "{}", tensor.name);
            }
        }
    }
}

/// Repacking needs room for one more tensor while loading.
#[test]
fn the_fast_layout_needs_room_to_load() {
    let model = common::llama_70b();
    let largest = model.tensors.iter().map(|tensor| tensor.bytes).max().expect("tensors");
    let at = |layout| {
        let request = Request { layout, ..request(64 * GIB) };
        plan(&model, &machine(), &request).expect("large enough")
    };
    let (plain, fast) = (at(Layout::Plain), at(Layout::Fast));
    let matrix = model.tensor("output.weight").expect("it has one").bytes;
    assert!(matrix <= largest);
    assert_eq!(fast.load_peak_bytes, plain.load_peak_bytes + matrix);
    assert_eq!(fast.bytes, plain.bytes);
}

/// Plans are data: they survive a file.
#[test]
fn plans_round_trip_through_json() {
    let plan = plan_at(&common::qwen3_30b_a3b(), 8 * GIB);
    let json = serde_json::to_string(&plan).expect("plain data");
    let back: Plan = serde_json::from_str(&json).expect("what was written");
    assert_eq!((back.placements, back.pools), (plan.placements, plan.pools));
    assert_eq!((back.bytes, back.why), (plan.bytes, plan.why));
}

/// Real files, not only lists of tensors.
#[test]
fn the_shipped_models() {
    let open = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name);
        Model::open(&path).expect("a model of this repository")
    };
    let demo = open("demo-moe-54m-q4_k_m.gguf");
    assert_eq!(plan_at(&demo, GIB).mode, Mode::FullResident);
    let limited = Request { weights_memory_bytes: Some(20 * MIB), ..request(GIB) };
    let streaming = plan(&demo, &machine(), &limited).expect("large enough");
    assert_eq!(streaming.mode, Mode::ExpertStreaming);
    assert_eq!(streaming.expert_layers.len(), 8);
    assert!(streaming.expert_layers.iter().all(|layer| (layer.n_experts, layer.n_used) == (32, 4)));

    let draft = open("demo-draft-3m-q8_0.gguf");
    let limited = Request { weights_memory_bytes: Some(3 * MIB), ..request(GIB) };
    let streaming = plan(&draft, &machine(), &limited).expect("large enough");
    assert_eq!(streaming.mode, Mode::DenseStreaming);
    assert!(streaming.ring_bytes > 0 && streaming.bytes.weights() <= 3 * MIB);
}

/// The tables add up to the whole.
#[test]
fn explanations_add_up() {
    for (name, model) in all() {
        for memory_bytes in [model.weight_bytes() * 2 + GIB, model.weight_bytes() / 2 + GIB / 2] {
            let plan = plan_at(&model, memory_bytes);
            let explanation = explain(&plan, &model);
            let budget: u64 = explanation.budget.iter().map(|row| row.bytes).sum();
            assert_eq!(budget, memory_bytes, "{name}");
            let weights = model.weight_bytes();
            let tiers: u64 = explanation.tiers.iter().map(|bar| bar.bytes).sum();
            assert_eq!(tiers, weights, "{name}");
            let by_role: u64 = explanation.roles.iter().map(|row| row.bytes).sum();
            assert_eq!(by_role, weights, "{name}");
            for row in &explanation.roles {
                let placed =
                    row.resident_bytes + row.expert_bytes + row.ring_bytes + row.rows_bytes;
                assert_eq!(placed, row.bytes, "{name}: {}", row.role);
            }
            let slots: u64 = explanation.pools.iter().map(|row| row.slots * row.slot_bytes).sum();
            assert_eq!(slots, plan.bytes.expert_slots, "{name}");
        }
    }
}
