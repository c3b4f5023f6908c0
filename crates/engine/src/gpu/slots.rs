//! What each GPU holds: which layers, and how many of their experts.

use hypura_gguf as gguf;
use hypura_llama as llama;
use hypura_plan::{self as plan, Plan};

use crate::machine::Survey;
use crate::options::LoadError;

/// Which layers each GPU gets, by what the plan holds there and what each has room for.
pub(crate) fn split(model: &gguf::Model, plan: &Plan, surveyed: &Survey) -> llama::Split {
    let (Some(gpu), Some(chosen)) = (&plan.gpu, &surveyed.gpu) else {
        return llama::Split::default();
    };
    if chosen.gpus.len() < 2 {
        return llama::Split::default();
    }
    let own = own_bytes(gpu);
    let room: Vec<u64> =
        chosen.budget_bytes.iter().map(|&budget| budget.saturating_sub(own)).collect();
    let runs = plan::split_layers(model, plan, &room);
    llama::Split::new(runs.into_iter().map(|run| run.layers).collect())
}

/// What every GPU holds beside weights and attention state, in bytes.
fn own_bytes(gpu: &plan::GpuPlan) -> u64 {
    let of_each = gpu.bytes.compute + gpu.bytes.work + gpu.bytes.ring + gpu.bytes.transit;
    plan::memory::GPU_BASE_BYTES + of_each / u64::from(gpu.devices.max(1))
}

/// A GPU's part of a plan.
struct Device {
    budget_bytes: u64,
    taken_bytes: u64,
    /// Of each pool, its layers on this GPU.
    layers: Vec<u64>,
}

impl Device {
    /// Bytes of so many slots per layer of each pool.
    fn bytes_of(&self, plan: &Plan, per_layer: &[u32]) -> u64 {
        let pools = plan.pools.iter().zip(per_layer).zip(&self.layers);
        pools.map(|((pool, &n), &layers)| u64::from(n) * layers * pool.slot_bytes).sum()
    }

    /// Slots per layer of each pool: every pool the same share of its experts, as large as fits.
    ///
    /// # Errors
    /// When a token's experts don't fit.
    fn fit(&self, plan: &Plan, slots_max: Option<u32>) -> Result<Vec<u32>, LoadError> {
        let least: Vec<u32> = plan.pools.iter().map(|pool| pool.n_used).collect();
        let needed_bytes = self.taken_bytes + self.bytes_of(plan, &least);
        let budget_bytes = self.budget_bytes;
        if needed_bytes > budget_bytes {
            return Err(LoadError::GpuBudgetTooSmall { needed_bytes, budget_bytes });
        }
        let available = budget_bytes - self.taken_bytes;
        let share = |share: f64| -> Vec<u32> {
            let pools = plan.pools.iter();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a u32
            pools
                .map(|pool| {
                    let wanted = (f64::from(pool.n_experts) * share) as u32;
                    let most = slots_max.unwrap_or(u32::MAX).clamp(pool.n_used, pool.n_experts);
                    wanted.clamp(pool.n_used, most)
                })
                .collect()
        };
        let (mut low, mut high) = (0.0, 1.0);
        let mut per_layer = least;
        for _ in 0..24 {
            let middle = if high == 1.0 && low == 0.0 { 1.0 } else { (low + high) / 2.0 };
            let slots = share(middle);
            if self.bytes_of(plan, &slots) <= available {
                per_layer = slots;
                low = middle;
                if middle == 1.0 {
                    break;
                }
            } else {
                high = if middle == 1.0 { 0.999_999 } else { middle };
            }
        }
        Ok(per_layer)
    }
}

/// Slots of each expert layer on its GPU, now that what else each holds is known: `taken_bytes`. All
/// layers of a pool on one GPU get the same number, between what a token uses and all there are.
///
/// # Errors
/// When a token's experts don't fit beside it.
pub(crate) fn fit_slots(
    plan: &mut Plan,
    budget_bytes: &[u64],
    taken_bytes: &[u64],
    split: &llama::Split,
    slots_max: Option<u32>,
) -> Result<Vec<u32>, LoadError> {
    if plan.gpu.is_none() {
        return Ok(Vec::new());
    }
    let mut fitted = Vec::new();
    let mut devices = Vec::new();
    for (i, (&budget_bytes, &taken_bytes)) in budget_bytes.iter().zip(taken_bytes).enumerate() {
        let mut layers = vec![0; plan.pools.len()];
        for layer in &plan.expert_layers {
            if split.device_of_layer(layer.block) == i
                && let Some(n) = layers.get_mut(layer.pool as usize)
            {
                *n += 1;
            }
        }
        let device = Device { budget_bytes, taken_bytes, layers };
        fitted.push(device.fit(plan, slots_max)?);
        devices.push(device);
    }
    let of_layer = |layer: &plan::ExpertLayer| {
        let slots = fitted.get(split.device_of_layer(layer.block));
        slots.and_then(|slots| slots.get(layer.pool as usize)).copied().unwrap_or(0)
    };
    let slots: Vec<u32> = plan.expert_layers.iter().map(of_layer).collect();
    let mut of_pools = vec![0; plan.pools.len()];
    for (layer, n) in plan.expert_layers.iter().zip(&slots) {
        if let Some(sum) = of_pools.get_mut(layer.pool as usize) {
            *sum += n;
        }
    }
    let bytes =
        devices.iter().zip(&fitted).map(|(device, slots)| device.bytes_of(plan, slots)).sum();
    if let Some(gpu) = &mut plan.gpu {
        gpu.slots = of_pools;
        gpu.bytes.expert_slots = bytes;
    }
    Ok(slots)
}

/// What each GPU holds beside expert slots, once it computes; `allocated_bytes` is what llama.cpp
/// took of each.
pub(crate) fn taken_bytes(plan: &Plan, allocated_bytes: &[u64]) -> Vec<u64> {
    let Some(gpu) = &plan.gpu else { return Vec::new() };
    let of_each =
        (gpu.bytes.work + gpu.bytes.ring + gpu.bytes.transit) / u64::from(gpu.devices.max(1));
    let planned = plan::memory::GPU_BASE_BYTES + of_each;
    allocated_bytes.iter().map(|bytes| bytes + planned).collect()
}
