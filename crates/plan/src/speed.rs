//! How fast a plan should be: bytes over bandwidth, and what limits it.

use serde::{Deserialize, Serialize};

use crate::allocate::Allocation;
use crate::inventory::{Inventory, SizeClass};
use crate::machine::{
    ASSUMED_COPY_BYTES_PER_S, ASSUMED_DECODE_BYTES_PER_S, ASSUMED_PROMPT_FLOPS,
    ASSUMED_STORAGE_BYTES_PER_S, Machine, or_assumed,
};
use crate::number::{product, total};

/// The expected speed. It rests on an assumed hit rate, so it is a range too.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens generated per second.
    pub decode_tokens_per_s: f64,
    /// The same if routing is uniform (the hit rate is the share of slots) and no read overlaps with
    /// computing.
    pub decode_tokens_per_s_low: f64,
    /// The same if only half of the assumed misses happen and every read of the ring overlaps.
    pub decode_tokens_per_s_high: f64,
    /// Tokens of a long prompt per second.
    pub prompt_tokens_per_s: f64,
    /// What a generated token waits for most.
    pub limit: Limit,
    /// Bytes that a generated token reads on average.
    pub read_bytes_per_token: u64,
    /// Share of experts found in their slots; `None` if none is in slots.
    pub assumed_hit_rate: Option<f64>,
}

/// What a generated token waits for most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Arithmetic, or the memory bandwidth under it.
    Compute,
    /// The drive's bytes per second.
    StorageBandwidth,
    /// The time until a read begins to deliver.
    StorageLatency,
    /// Copying from read buffers into slots.
    MemoryCopy,
}

/// Share of slots among units, and the share of lookups that hit: what frequency and recency
/// together reached on the routing of the demo model (about 80% at 55%), straight lines between.
/// Models with less uniform routing do better, others worse.
pub const HIT_RATE_CURVE: [(f64, f64); 5] =
    [(0.0, 0.0), (0.25, 0.5), (0.55, 0.82), (0.75, 0.93), (1.0, 1.0)];

/// Reads under way when an engine reads as much as it can.
const READ_DEPTH: u32 = 16;
/// Largest single read of a matrix that streams.
const RING_READ_BYTES: u64 = 1 << 20;

/// The hit rate of [`HIT_RATE_CURVE`] for a share of slots, 0 to 1.
pub fn assumed_hit_rate(share: f64) -> f64 {
    for pair in HIT_RATE_CURVE.windows(2) {
        if let &[(x0, y0), (x1, y1)] = pair
            && share <= x1
        {
            return y0 + (y1 - y0) * ((share - x0) / (x1 - x0)).clamp(0.0, 1.0);
        }
    }
    1.0
}

/// The assumed hit rate of one class: never more than if all its slots held what is asked for.
pub(crate) fn class_hit_rate(class: &SizeClass, slots: u64) -> f64 {
    let share = share_of_slots(class, slots);
    let most = share * class.n_experts as f64 / class.n_used.max(1) as f64;
    assumed_hit_rate(share).min(most)
}

fn share_of_slots(class: &SizeClass, slots: u64) -> f64 {
    (slots as f64 / class.n_units().max(1) as f64).min(1.0)
}

/// Bytes that a token reads, on average: from the ring, as rows, and for experts that miss.
struct Reads {
    ring: f64,
    rows: f64,
    experts: f64,
    /// Layers in which a token has to read at least one expert, on average.
    layers_waiting: f64,
    /// Of one part of an expert.
    expert_read_bytes: u64,
}

pub(crate) fn speed(
    inventory: &Inventory,
    allocation: &Allocation,
    machine: &Machine,
    n_ubatch: u64,
    is_streaming: bool,
) -> Speed {
    let reads = |hit_rate: &dyn Fn(&SizeClass, u64) -> f64| {
        reads_per_token(inventory, allocation, is_streaming, hit_rate)
    };
    let expected = reads(&class_hit_rate);
    let worst = reads(&share_of_slots);
    let best = reads(&|class, slots| 1.0 - (1.0 - class_hit_rate(class, slots)) / 2.0);

    let times = token_times(inventory, machine, &expected);
    let lookups = |class: &SizeClass| (class.layers.len() as u64 * class.n_used) as f64;
    let all_lookups: f64 = inventory.classes.iter().map(lookups).sum();
    let classes = inventory.classes.iter().zip(&allocation.slots);
    let hits: f64 =
        classes.map(|(class, &slots)| class_hit_rate(class, slots) * lookups(class)).sum();
    let per_second = |seconds: f64| if seconds > 0.0 { 1.0 / seconds } else { 0.0 };
    Speed {
        decode_tokens_per_s: per_second(times.overlapped()),
        decode_tokens_per_s_low: per_second(token_times(inventory, machine, &worst).in_turn()),
        decode_tokens_per_s_high: per_second(token_times(inventory, machine, &best).overlapped()),
        prompt_tokens_per_s: prompt_speed(inventory, allocation, machine, n_ubatch, is_streaming),
        limit: times.limit(),
        read_bytes_per_token: whole(expected.ring + expected.rows + expected.experts),
        assumed_hit_rate: (is_streaming && all_lookups > 0.0).then(|| hits / all_lookups),
    }
}

fn reads_per_token(
    inventory: &Inventory,
    allocation: &Allocation,
    is_streaming: bool,
    hit_rate: &dyn Fn(&SizeClass, u64) -> f64,
) -> Reads {
    let mut reads =
        Reads { ring: 0.0, rows: 0.0, experts: 0.0, layers_waiting: 0.0, expert_read_bytes: 1 };
    if !is_streaming {
        return reads;
    }
    reads.ring = allocation.streamed_dense_bytes(inventory) as f64;
    reads.rows = if allocation.rows_pinned { 0.0 } else { inventory.row_bytes as f64 };
    for (class, &slots) in inventory.classes.iter().zip(&allocation.slots) {
        let (layers, used) = (class.layers.len() as f64, class.n_used as f64);
        let miss_rate = (1.0 - hit_rate(class, slots)).clamp(0.0, 1.0);
        reads.experts += layers * used * miss_rate * class.slot_bytes as f64;
        reads.layers_waiting += layers * (1.0 - (1.0 - miss_rate).powf(used));
    }
    let parts = inventory.layers.iter().flat_map(|layer| &layer.parts);
    reads.expert_read_bytes = parts.map(|part| part.bytes).max().unwrap_or(1);
    reads
}

/// Seconds of one token.
struct TokenTimes {
    compute: f64,
    ring: f64,
    experts: f64,
    latency: f64,
    copy: f64,
}

impl TokenTimes {
    /// The ring is read while layers compute. An expert is known only when its router has run, so
    /// its reading is waited for.
    fn overlapped(&self) -> f64 {
        self.compute.max(self.ring) + self.experts + self.latency + self.copy
    }

    fn in_turn(&self) -> f64 {
        self.compute + self.ring + self.experts + self.latency + self.copy
    }

    fn limit(&self) -> Limit {
        let ring = if self.ring > self.compute { self.ring } else { 0.0 };
        let compute = if ring > 0.0 { 0.0 } else { self.compute };
        let candidates = [
            (self.experts + ring, Limit::StorageBandwidth),
            (self.latency, Limit::StorageLatency),
            (self.copy, Limit::MemoryCopy),
        ];
        let largest = candidates.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        largest.filter(|(seconds, _)| *seconds > compute).map_or(Limit::Compute, |(_, limit)| limit)
    }
}

fn token_times(inventory: &Inventory, machine: &Machine, reads: &Reads) -> TokenTimes {
    let weights = or_assumed(machine.decode_weight_bytes_per_s, ASSUMED_DECODE_BYTES_PER_S);
    let copies = or_assumed(machine.copy_bytes_per_s, ASSUMED_COPY_BYTES_PER_S);
    let waits = reads.layers_waiting + if reads.rows > 0.0 { 1.0 } else { 0.0 };
    TokenTimes {
        compute: active_bytes(inventory) as f64 / weights,
        ring: reads.ring / bandwidth(machine, RING_READ_BYTES),
        experts: reads.experts / bandwidth(machine, reads.expert_read_bytes),
        latency: waits * machine.read_latency_s.max(0.0),
        copy: reads.experts / copies,
    }
}

/// Bytes of weights that one token is multiplied with.
pub(crate) fn active_bytes(inventory: &Inventory) -> u64 {
    let experts = inventory
        .classes
        .iter()
        .map(|class| product([class.layers.len() as u64, class.n_used, class.slot_bytes]));
    total([inventory.fixed_bytes, inventory.dense_bytes()]).saturating_add(total(experts))
}

/// Tokens per second of a long prompt: each micro-batch reads what streams once, and of each layer
/// the experts that its tokens choose (independently, it is assumed) and that hold no slot.
fn prompt_speed(
    inventory: &Inventory,
    allocation: &Allocation,
    machine: &Machine,
    n_ubatch: u64,
    is_streaming: bool,
) -> f64 {
    let tokens = n_ubatch as f64;
    let flops = 2.0 * inventory.active_elements as f64 * tokens;
    let compute = flops / or_assumed(machine.prompt_flops_per_s, ASSUMED_PROMPT_FLOPS);
    let (mut ring, mut experts) = (0.0, 0.0);
    if is_streaming {
        let streamed = allocation.streamed_dense_bytes(inventory) as f64;
        ring = streamed / bandwidth(machine, RING_READ_BYTES);
        for (class, &slots) in inventory.classes.iter().zip(&allocation.slots) {
            let unused_by_one = 1.0 - class.n_used as f64 / class.n_experts.max(1) as f64;
            let touched = class.n_units() as f64 * (1.0 - unused_by_one.powf(tokens));
            let missing = touched * (1.0 - share_of_slots(class, slots));
            let read_bytes = class.slot_bytes / 2;
            experts += missing * class.slot_bytes as f64 / bandwidth(machine, read_bytes);
        }
    }
    let seconds = compute.max(ring) + experts;
    if seconds > 0.0 { tokens / seconds } else { 0.0 }
}

fn bandwidth(machine: &Machine, read_bytes: u64) -> f64 {
    let measured = machine.storage_bytes_per_s(read_bytes, READ_DEPTH).unwrap_or(0.0);
    or_assumed(measured, ASSUMED_STORAGE_BYTES_PER_S)
}

/// Bytes as a whole number; those of a token are far below the limits of either type.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole(bytes: f64) -> u64 {
    bytes.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve() {
        for (share, rate) in HIT_RATE_CURVE {
            assert!((assumed_hit_rate(share) - rate).abs() < 1e-12);
        }
        assert!((assumed_hit_rate(0.4) - 0.66).abs() < 1e-12);
        assert!((assumed_hit_rate(2.0) - 1.0).abs() < 1e-12);
        // Concave, as the division among classes supposes.
        let slopes: Vec<f64> =
            HIT_RATE_CURVE.windows(2).map(|p| (p[1].1 - p[0].1) / (p[1].0 - p[0].0)).collect();
        assert!(slopes.is_sorted_by(|a, b| a >= b), "{slopes:?}");
    }
}
