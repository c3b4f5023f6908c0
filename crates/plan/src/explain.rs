//! A plan as tables and bars: plain data, for whoever draws them.

use std::collections::BTreeMap;

use hypura_gguf::{Model, Role};
use serde::{Deserialize, Serialize};

use crate::plan::{GpuPlan, Placement, Plan};

/// A plan for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// What the budget goes to.
    pub budget: Vec<BudgetRow>,
    /// What the budget of GPU memory goes to; empty where the CPU computes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_budget: Vec<BudgetRow>,
    /// What the model is made of, and where it lives.
    pub roles: Vec<RoleRow>,
    /// The pools of slots.
    pub pools: Vec<PoolRow>,
    /// One bar per tier.
    pub tiers: Vec<TierBar>,
    /// Each choice in one sentence.
    pub why: Vec<String>,
}

/// One use of the budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetRow {
    /// What for.
    pub what: String,
    /// Bytes.
    pub bytes: u64,
    /// Share of the budget, 0 to 1.
    pub share: f64,
}

/// The tensors of one role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleRow {
    /// The role.
    pub role: String,
    /// Tensors.
    pub tensors: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes of those in memory, whole; with a GPU in its memory, or tables of the input.
    pub resident_bytes: u64,
    /// Bytes of those whose experts live in slots.
    pub expert_bytes: u64,
    /// Bytes of those that stream through the ring.
    pub ring_bytes: u64,
    /// Bytes of those of which rows are read.
    pub rows_bytes: u64,
}

/// One pool, or several alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    /// Pools of this kind.
    pub pools: u64,
    /// Layers that they serve.
    pub layers: u64,
    /// Bytes of a slot.
    pub slot_bytes: u64,
    /// Slots of all of them.
    pub slots: u64,
    /// Experts of all their layers.
    pub units: u64,
    /// Slots in GPU memory of all of them; 0 where the CPU computes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpu_slots: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(slots: &u64) -> bool {
    *slots == 0
}

/// A tier of the hierarchy; memory is that of a GPU too, if one computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Weights that stay in memory.
    Resident,
    /// Weights that come and go: slots and the ring.
    Cache,
    /// Weights that are on storage only, on average.
    Storage,
}

/// How much of the weights a tier holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TierBar {
    /// The tier.
    pub tier: Tier,
    /// Bytes of weights in it.
    pub bytes: u64,
    /// Share of all weights, 0 to 1.
    pub share: f64,
}

/// What `plan`, made for `model`, is made of.
pub fn explain(plan: &Plan, model: &Model) -> Explanation {
    Explanation {
        budget: budget_rows(plan),
        gpu_budget: plan.gpu.as_ref().map(gpu_budget_rows).unwrap_or_default(),
        roles: role_rows(plan, model),
        pools: pool_rows(plan),
        tiers: tier_bars(plan, model),
        why: plan.why.clone(),
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn budget_rows(plan: &Plan) -> Vec<BudgetRow> {
    let bytes = &plan.bytes;
    let rows = [
        ("resident weights", bytes.resident_weights),
        ("expert slots", bytes.expert_slots),
        ("ring", bytes.ring),
        ("attention state", bytes.kv),
        ("blocks of attention state", bytes.kv_tiers),
        ("compute buffers", bytes.compute),
        ("work buffers", bytes.work),
        ("read buffers", bytes.io_buffers),
        ("process and vocabulary", bytes.base),
        ("unused", plan.budget_bytes.saturating_sub(bytes.total())),
    ];
    shares(&rows, plan.budget_bytes)
}

fn gpu_budget_rows(gpu: &GpuPlan) -> Vec<BudgetRow> {
    let bytes = &gpu.bytes;
    let rows = [
        ("resident weights", bytes.resident_weights),
        ("expert slots", bytes.expert_slots),
        ("transit slots", bytes.transit),
        ("ring", bytes.ring),
        ("attention state", bytes.kv),
        ("compute buffers", bytes.compute),
        ("work buffers", bytes.work),
        ("driver", bytes.base),
        ("unused", gpu.budget_bytes.saturating_sub(bytes.total())),
    ];
    shares(&rows, gpu.budget_bytes)
}

fn shares(rows: &[(&str, u64)], budget_bytes: u64) -> Vec<BudgetRow> {
    let used = rows.iter().filter(|(_, bytes)| *bytes > 0);
    used.map(|&(what, bytes)| BudgetRow {
        what: what.to_owned(),
        bytes,
        share: share(bytes, budget_bytes),
    })
    .collect()
}

fn role_rows(plan: &Plan, model: &Model) -> Vec<RoleRow> {
    let mut rows: BTreeMap<&str, RoleRow> = BTreeMap::new();
    for (tensor, placement) in model.tensors.iter().zip(&plan.placements) {
        let name = role_name(tensor.role);
        let row = rows.entry(name).or_insert_with(|| RoleRow {
            role: name.to_owned(),
            tensors: 0,
            bytes: 0,
            resident_bytes: 0,
            expert_bytes: 0,
            ring_bytes: 0,
            rows_bytes: 0,
        });
        row.tensors += 1;
        row.bytes += tensor.bytes;
        *match placement {
            Placement::Unused => continue,
            Placement::Resident => &mut row.resident_bytes,
            Placement::ExpertPool { .. } => &mut row.expert_bytes,
            Placement::Ring => &mut row.ring_bytes,
            Placement::Rows => &mut row.rows_bytes,
        } += tensor.bytes;
    }
    let mut rows: Vec<RoleRow> = rows.into_values().collect();
    rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.role.cmp(&b.role)));
    rows
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::TokenEmbedding => "token embedding",
        Role::PerLayerEmbedding => "per-layer embedding",
        Role::PositionEmbedding => "position embedding",
        Role::Output => "output",
        Role::Head => "head",
        Role::Norm => "norm",
        Role::Attention => "attention",
        Role::Router => "router",
        Role::Expert(_) => "experts",
        Role::ExpertAuxiliary => "expert biases and scales",
        Role::SharedExpert => "shared experts",
        Role::DenseFfn => "dense FFN",
        Role::DenseFfnAuxiliary => "FFN biases and scales",
        Role::Recurrent => "recurrent",
        Role::NextToken => "multi-token prediction",
        Role::Rope => "rotary factors",
        _ => "other",
    }
}

/// Pools that differ only in which layer they serve become one row.
fn pool_rows(plan: &Plan) -> Vec<PoolRow> {
    let mut rows: Vec<(&[crate::plan::PoolPart], u32, PoolRow)> = Vec::new();
    let on_gpu = plan.gpu.as_ref().map_or(&[][..], |gpu| &gpu.slots);
    let on_gpu = on_gpu.iter().map(|&slots| u64::from(slots)).chain(std::iter::repeat(0));
    for (pool, gpu_slots) in plan.pools.iter().zip(on_gpu) {
        let layers = pool.layers.len() as u64;
        let units = layers * u64::from(pool.n_experts);
        let same = rows.iter_mut().find(|(parts, n_experts, _)| {
            *parts == pool.parts.as_slice() && *n_experts == pool.n_experts
        });
        match same {
            Some((_, _, row)) => {
                row.pools += 1;
                row.layers += layers;
                row.slots += u64::from(pool.slots);
                row.units += units;
                row.gpu_slots += gpu_slots;
            }
            None => {
                let (slot_bytes, slots) = (pool.slot_bytes, pool.slots.into());
                let row = PoolRow { pools: 1, layers, slot_bytes, slots, units, gpu_slots };
                rows.push((&pool.parts, pool.n_experts, row));
            }
        }
    }
    rows.into_iter().map(|(_, _, row)| row).collect()
}

fn tier_bars(plan: &Plan, model: &Model) -> Vec<TierBar> {
    let weights = model.weight_bytes();
    let (mut resident, mut cache) =
        (plan.bytes.resident_weights, plan.bytes.expert_slots + plan.bytes.ring);
    if let Some(gpu) = &plan.gpu {
        // What is in both memories counts once: a tied embedding, and experts if all have slots.
        resident = resident.saturating_add(gpu.bytes.resident_weights).min(weights);
        let slots = cache.saturating_add(gpu.bytes.expert_slots).saturating_add(gpu.bytes.ring);
        cache = slots.min(weights - resident);
    }
    let storage = weights.saturating_sub(resident).saturating_sub(cache);
    [(Tier::Resident, resident), (Tier::Cache, cache), (Tier::Storage, storage)]
        .into_iter()
        .map(|(tier, bytes)| TierBar { tier, bytes, share: share(bytes, weights) })
        .collect()
}
