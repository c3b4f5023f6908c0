//! Layers for several GPUs.

use hypura_gguf::{Model, Role};

use crate::plan::{Placement, Plan};

/// What one of several GPUs gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Layers; the output counts as one more.
    pub layers: u32,
    /// Bytes that the plan holds of them in GPU memory: weights, slots and attention state.
    pub bytes: u64,
}

/// Which layers each GPU gets, in their order: so that the fullest one is as little full as whole
/// layers allow. `room_bytes` is what each has room for.
pub fn split_layers(model: &Model, plan: &Plan, room_bytes: &[u64]) -> Vec<Run> {
    let bytes = held_bytes(model, plan);
    // Of each GPU's room this share is used; with enough of it everything goes to the first one.
    let (mut low, mut high) = (0.0, 1.0);
    while !fits(&bytes, room_bytes, high) && high < 1e6 {
        high *= 2.0;
    }
    for _ in 0..48 {
        let middle = f64::midpoint(low, high);
        if fits(&bytes, room_bytes, middle) { high = middle } else { low = middle }
    }
    fill(&bytes, room_bytes, high)
}

fn fits(bytes: &[u64], room_bytes: &[u64], share: f64) -> bool {
    let runs = fill(bytes, room_bytes, share);
    let last = runs.last().map_or(0, |run| run.bytes);
    last as f64 <= room_bytes.last().map_or(0.0, |&room| room as f64 * share)
}

/// Fills one GPU after the other up to a share of its room; the last one takes what is left.
fn fill(bytes: &[u64], room_bytes: &[u64], share: f64) -> Vec<Run> {
    let mut runs = vec![Run::default(); room_bytes.len().max(1)];
    let mut device = 0;
    for &bytes in bytes {
        while device + 1 < runs.len()
            && (runs[device].bytes + bytes) as f64 > room_bytes[device] as f64 * share
        {
            device += 1;
        }
        runs[device].layers += 1;
        runs[device].bytes += bytes;
    }
    runs
}

/// Bytes that each layer holds in GPU memory, and the output.
fn held_bytes(model: &Model, plan: &Plan) -> Vec<u64> {
    let n_layers = model.hparams().n_layer as usize;
    let mut bytes = vec![0u64; n_layers + 1];
    let is_tied = model.tensor("output.weight").is_none();
    for (tensor, placement) in model.tensors.iter().zip(&plan.placements) {
        let is_looked_up = match tensor.role {
            Role::TokenEmbedding => !is_tied,
            Role::PerLayerEmbedding | Role::PositionEmbedding => true,
            _ => false,
        };
        if *placement == Placement::Resident && !is_looked_up {
            bytes[tensor.layer.map_or(n_layers, |layer| (layer as usize).min(n_layers))] +=
                tensor.bytes;
        }
    }
    let Some(gpu) = &plan.gpu else { return bytes };
    for layer in &plan.expert_layers {
        let pool = layer.pool as usize;
        let (Some(slots), Some(pool)) = (gpu.slots.get(pool), plan.pools.get(pool)) else {
            continue;
        };
        let of_all = u64::from(*slots).saturating_mul(pool.slot_bytes);
        if let Some(bytes) = bytes.get_mut(layer.block as usize) {
            *bytes += of_all / pool.layers.len().max(1) as u64;
        }
    }
    for bytes in &mut bytes[..n_layers] {
        *bytes += gpu.bytes.kv / n_layers.max(1) as u64;
    }
    bytes
}
