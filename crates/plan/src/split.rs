//! Layers for several GPUs.

use hypura_gguf::{Model, Role};

use crate::number::total;
use crate::plan::{Placement, Plan};

/// How many layers each GPU gets, in their order; the output counts as one more layer. Each holds a
/// share of what the plan holds in GPU memory that is as large as its share of `room_bytes`, as far
/// as whole layers allow: a layer goes where its middle lies.
pub fn split_layers(model: &Model, plan: &Plan, room_bytes: &[u64]) -> Vec<u32> {
    let bytes = held_bytes(model, plan);
    let (held, room) = (total(bytes.iter().copied()) as f64, total(room_bytes.iter().copied()));
    let mut ends = room_bytes.iter().scan(0, |sum, &room| {
        *sum += room;
        Some(*sum as f64)
    });
    let mut layers = vec![0; room_bytes.len().max(1)];
    let (mut device, mut end, mut before) = (0, ends.next().unwrap_or(0.0), 0.0);
    for bytes in bytes {
        let middle = (before + bytes as f64 / 2.0) / held.max(1.0) * room as f64;
        while middle > end
            && let Some(next) = ends.next()
        {
            (device, end) = (device + 1, next);
        }
        layers[device] += 1;
        before += bytes as f64;
    }
    layers
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
