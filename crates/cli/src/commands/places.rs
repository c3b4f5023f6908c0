//! Where weights are: in GPU memory, in memory, on the drive.

use hypura_engine::gguf::{Model, Role};
use hypura_engine::plan::{Explanation, Placement, Plan, Tier};

/// A place, and what of the weights is in it.
pub(crate) struct Place {
    /// The memory of a GPU.
    pub(crate) is_gpu: bool,
    pub(crate) tier: Tier,
    pub(crate) bytes: u64,
    /// Of all weights, 0 to 1.
    pub(crate) share: f64,
}

impl Place {
    pub(crate) fn name(&self) -> &'static str {
        match (self.tier, self.is_gpu) {
            (Tier::Resident, true) => "GPU memory, always",
            (Tier::Cache, true) => "GPU memory, as needed",
            (Tier::Resident, false) => "memory, always",
            (Tier::Cache, false) => "memory, as needed",
            (Tier::Storage, _) => "drive only",
        }
    }
}

/// All places, the fastest first. What two of them hold is the faster one's.
pub(crate) fn places(explained: &Explanation, plan: &Plan) -> Vec<Place> {
    let (mut on_gpu, mut others) = (Vec::new(), Vec::new());
    for bar in &explained.tiers {
        let mut rest = bar.bytes;
        if let Some(gpu) = &plan.gpu
            && bar.tier != Tier::Storage
        {
            let bytes = match bar.tier {
                Tier::Resident => gpu.bytes.resident_weights,
                _ => gpu.bytes.expert_slots.saturating_add(gpu.bytes.ring),
            };
            let bytes = bytes.min(bar.bytes);
            rest -= bytes;
            let share = bar.share * share(bytes, bar.bytes);
            on_gpu.push(Place { is_gpu: true, tier: bar.tier, bytes, share });
        }
        let share = bar.share * share(rest, bar.bytes);
        others.push(Place { is_gpu: false, tier: bar.tier, bytes: rest, share });
    }
    on_gpu.append(&mut others);
    on_gpu
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Where one tensor is, in words.
pub(crate) fn place_of(model: &Model, plan: &Plan, index: usize) -> String {
    let placement = plan.placements.get(index).copied().unwrap_or(Placement::Unused);
    let role = model.tensors.get(index).map_or(Role::Other, |tensor| tensor.role);
    match placement {
        Placement::Resident => resident(model, plan, role).to_owned(),
        Placement::ExpertPool { pool } => format!("slots of pool {pool}"),
        Placement::Ring if plan.host_matrices.binary_search(&index).is_ok() => {
            "streamed from memory".to_owned()
        }
        Placement::Ring => "streamed".to_owned(),
        Placement::Rows => "rows read".to_owned(),
        Placement::Unused => "unused".to_owned(),
    }
}

/// llama.cpp looks tokens up in main memory. A table that is the output matrix too is in both.
fn resident(model: &Model, plan: &Plan, role: Role) -> &'static str {
    let is_looked_up = role.is_input();
    let is_tied = role == Role::TokenEmbedding && model.tensor("output.weight").is_none();
    match &plan.gpu {
        None => "memory",
        Some(_) if is_tied => "both memories",
        Some(_) if is_looked_up => "memory",
        Some(_) => "GPU memory",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use hypura_engine::plan::{GpuRequest, Machine, Request, explain, plan};

    use super::*;

    /// The demo model of the repository, and the plan of it within this much of each memory.
    pub(crate) fn planned(memory_bytes: u64, gpu_bytes: Option<u64>) -> (Model, Plan) {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let model = Model::open(&models.join("demo-moe-54m-q4_k_m.gguf")).unwrap();
        let gpu = gpu_bytes.map(|memory_bytes| GpuRequest { memory_bytes, devices: 1 });
        let request = Request { memory_bytes, gpu, ..Request::default() };
        let plan = plan(&model, &Machine::default(), &request).unwrap();
        (model, plan)
    }

    /// As [`planned`], with a GPU that has room for some of the experts.
    pub(crate) fn streamed() -> (Model, Plan) {
        let (_, all) = planned(1 << 30, Some(1 << 40));
        let gpu_bytes = all.gpu.unwrap().smallest_bytes + (8 << 20);
        let (model, plan) = planned(1 << 30, Some(gpu_bytes));
        assert!(plan.gpu.as_ref().unwrap().bytes.expert_slots > 0, "{plan:?}");
        (model, plan)
    }

    #[test]
    fn three_tiers_with_a_gpu_and_two_without() {
        let (model, plan) = planned(1 << 30, None);
        let names = |places: &[Place]| places.iter().map(Place::name).collect::<Vec<_>>();
        let two = places(&explain(&plan, &model), &plan);
        assert_eq!(names(&two), ["memory, always", "memory, as needed", "drive only"]);
        assert_eq!(place_of(&model, &plan, 0), "memory");

        let (model, plan) = streamed();
        let three = places(&explain(&plan, &model), &plan);
        assert_eq!(names(&three)[..2], ["GPU memory, always", "GPU memory, as needed"]);
        assert_eq!(names(&three)[2..], names(&two));
        let total: u64 = three.iter().map(|place| place.bytes).sum();
        assert_eq!(total, model.weight_bytes());
        let shares: f64 = three.iter().map(|place| place.share).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{shares}");
        let gpu = &plan.gpu.as_ref().unwrap().bytes;
        assert_eq!((three[0].bytes, three[1].bytes), (gpu.resident_weights, gpu.expert_slots));
        let place = |name: &str| {
            let index = model.tensors.iter().position(|tensor| tensor.name == name);
            place_of(&model, &plan, index.unwrap())
        };
        assert_eq!(place("blk.0.attn_norm.weight"), "GPU memory");
        assert_eq!(place("blk.0.ffn_up_exps.weight"), "slots of pool 0");
        let tied = model.tensor("output.weight").is_none();
        assert_eq!(place("token_embd.weight"), if tied { "both memories" } else { "memory" });
    }
}
