//! Seconds of a token and of a prompt's micro-batch where a GPU computes.
//!
//! What the GPU computes with is in its memory, or is copied there from main memory, where it is or
//! is read to from storage. A layer's missing experts are known when its router has run; then they
//! are read and copied, piece by piece and so at the same time, and computed. Matrices that stream
//! are known before, so that all three go on at once:
//!
//! ```text
//! token = max(compute + sum over layers of max(copy, read of missing experts), all copies, all reads)
//! ```
//!
//! An expert that GPU memory does not have comes from storage only if main memory does not have it
//! either. Main memory that has room for all experts has them all; else the two are taken to be one
//! cache of both their slots.

use hypura_gguf::Model;

use super::hits::{Lookups, Misses, Routing, counted, mean};
use super::time::{
    ASSUMED_MISSES_SPREAD, CHOOSING_S_PER_ENTRY, CHUNK_BYTES, ExpertReads, READ_DEPTH,
    REPLAYED_MISSES_SPREAD, Range, bandwidth, fastest, slowest, storage_spread, whole,
};
use super::weights::{LayerUses, Seconds, Uses, WeightUse};
use super::{Limit, Speed, drive_assumption, rates};
use crate::inventory::Inventory;
use crate::machine::{GpuRates, Machine};
use crate::plan::{GpuPlan, Mode, Placement, Plan, Pool};
use crate::request::Layout;

/// By how much copies may be faster or slower than measured, ...
const COPY_SPREAD: f64 = 1.2;
/// ... or than assumed: from PCIe 3 to a bus of twice the speed.
const ASSUMED_COPY_SPREAD: f64 = 4.0;

/// Of a prompt's copying and computing, so much of the shorter is seen beside the longer: with 25 to
/// 97% of the experts in GPU memory, 512 tokens took 0.97 to 1.04 times as long as that says, 1,900
/// tokens 0.77 to 1.20 times (docs/performance.md).
const SHOWN_SHARE: f64 = 0.25;

/// All that a token's time is made of.
pub(super) struct GpuTimes<'a> {
    machine: &'a Machine,
    rates: GpuRates,
    streams: bool,
    n_ubatch: u32,
    n_layers: f64,
    uses: Uses,
    experts: Vec<ExpertLayer>,
    /// Matrices that are copied, and those of them that are read: bytes and seconds.
    ring_copied: (f64, f64),
    ring_read: (f64, f64),
    /// What is neither products nor copies.
    host_s: f64,
    misses_spread: f64,
}

/// A layer with experts in slots.
struct ExpertLayer {
    /// With the slots of GPU memory.
    device: Lookups,
    /// With the slots of both memories.
    both: Lookups,
    /// Experts that GPU memory misses, on average.
    device_missing: f64,
    /// Those that both miss.
    both_missing: Misses,
    slot_copy_s: f64,
    reads: ExpertReads,
}

impl<'a> GpuTimes<'a> {
    pub(super) fn new(
        model: &Model,
        inventory: &Inventory,
        plan: &Plan,
        gpu: &GpuPlan,
        machine: &'a Machine,
        routing: Routing<'_>,
    ) -> GpuTimes<'a> {
        let hparams = model.hparams();
        let rates = machine.gpu.clone().unwrap_or_default();
        let uses = Uses::of(model, &hparams, inventory, plan, Layout::Plain);
        let (host, device) = (Lookups::of_pools(plan), Lookups::of_pools_with(plan, &gpu.slots));
        let layer = |uses: &LayerUses| {
            let index = uses.pool?;
            let (pool, host, device) =
                (plan.pools.get(index)?, *host.get(index)?, *device.get(index)?);
            let counts = match routing {
                Routing::Assumed => None,
                Routing::Replayed(pools) => pools.get(index).and_then(|counts| counted(counts)),
            };
            Some(ExpertLayer::new(pool, host, device, counts, machine, &rates))
        };
        let experts = uses.layers.iter().filter_map(layer).collect();

        let matrices = || {
            let placed = model.tensors.iter().zip(&plan.placements).enumerate();
            placed.filter(|(_, (_, place))| **place == Placement::Ring)
        };
        let copied = matrices().fold((0.0, 0.0), |(bytes, seconds), (_, (tensor, _))| {
            let size = tensor.bytes as f64;
            (bytes + size, seconds + size / rates.copy_bytes_per_s(tensor.bytes))
        });
        let read: f64 = matrices()
            .filter(|(index, _)| plan.host_matrices.binary_search(index).is_err())
            .map(|(_, (tensor, _))| tensor.bytes as f64)
            .sum();
        GpuTimes {
            machine,
            streams: plan.mode != Mode::FullResident,
            n_ubatch: plan.n_ubatch,
            n_layers: f64::from(hparams.n_layer_trunk().max(1)),
            experts,
            ring_copied: copied,
            ring_read: (read, read / bandwidth(machine, CHUNK_BYTES, READ_DEPTH)),
            host_s: CHOOSING_S_PER_ENTRY * f64::from(hparams.n_vocab.unwrap_or(0)),
            misses_spread: match routing {
                Routing::Assumed => ASSUMED_MISSES_SPREAD,
                Routing::Replayed(_) => REPLAYED_MISSES_SPREAD,
            },
            rates,
            uses,
        }
    }

    pub(super) fn speed(&self) -> Speed {
        Speed {
            limit: self.limit(),
            read_bytes_per_token: whole(self.ring_read.0 + self.bytes(ExpertLayer::n_read)),
            assumed_hit_rate: self.hit_rate(|layer| layer.device_missing),
            compute_s: self.compute().total(),
            read_s: self.drive_s(),
            copied_bytes_per_token: whole(
                self.ring_copied.0 + self.bytes(|layer| layer.device_missing),
            ),
            copy_s: self.link_s(),
            ..rates(self.n_ubatch, self.token(), self.micro_batch())
        }
    }

    fn token(&self) -> Range {
        let compute = self.compute();
        let waiting: f64 =
            self.experts.iter().map(|layer| layer.copy_s().max(layer.read_s())).sum();
        let (link, drive) = (self.link_s(), self.drive_s());
        let spread = self.misses_spread;
        let worst_copies: f64 = self.sum(|layer| {
            let worst = layer.device.n_used as f64 * (1.0 - layer.device.share());
            layer.slot_copy_s * worst_of(layer.device_missing, worst, spread)
        });
        let worst_reads: f64 = self.sum(|layer| {
            let worst = layer.both.n_used as f64 * (1.0 - layer.both.share());
            layer.reads.seconds_mean(worst_of(layer.n_read(), worst, spread))
        });
        let best_copies = self.sum(ExpertLayer::copy_s) / spread;
        let best_reads = self.sum(ExpertLayer::read_s) / spread;
        let (copies, reads) = (self.copy_spread(), storage_spread(self.machine));
        Range {
            point: (compute.total() + waiting).max(link).max(drive),
            slow: slowest(compute)
                + (self.ring_copied.1 + worst_copies) * copies
                + (self.ring_read.1 + worst_reads) * reads,
            fast: fastest(compute)
                .max((self.ring_copied.1 + best_copies) / copies)
                .max((self.ring_read.1 + best_reads) / reads),
        }
    }

    /// What streams is copied once for the whole micro-batch, and of each layer the experts that its
    /// tokens choose, each for itself. What main memory has is copied ahead, so that the shorter of
    /// copying and computing nearly goes on behind the longer; what comes from the drive is waited for
    /// layer by layer.
    fn micro_batch(&self) -> Range {
        let n_ubatch = f64::from(self.n_ubatch);
        let operations = |of: &WeightUse| 2.0 * of.elements * n_ubatch;
        let products_s =
            self.uses.all().map(operations).sum::<f64>() / self.rates.prompt_ops_per_s();
        let compute = self.seconds(products_s + self.other_s());
        let touched = |of: &Lookups| {
            let unused_by_one = 1.0 - of.n_used as f64 / of.n_experts.max(1) as f64;
            of.n_experts as f64 * (1.0 - unused_by_one.powf(n_ubatch))
        };
        let copy = |layer: &ExpertLayer| {
            layer.slot_copy_s * touched(&layer.device) * (1.0 - layer.device.share())
        };
        let read = |layer: &ExpertLayer| {
            layer.reads.seconds_of_many(touched(&layer.both) * (1.0 - layer.both.share()))
        };
        let waiting = self.sum(|layer| copy(layer).max(read(layer)));
        let link = self.ring_copied.1 + self.sum(copy);
        let drive = self.ring_read.1 + self.sum(read);
        let (copies, reads) = (self.copy_spread(), storage_spread(self.machine));
        let computing = compute.total();
        let together = match self.sum(read) {
            0.0 => computing.max(link) + SHOWN_SHARE * computing.min(self.sum(copy)),
            _ => computing + waiting,
        };
        Range {
            point: together.max(link).max(drive),
            slow: slowest(compute) + link * copies + drive * reads,
            fast: fastest(compute).max(link / copies).max(drive / reads),
        }
    }

    /// Of a token: bytes over the bandwidth of GPU memory.
    fn compute(&self) -> Seconds {
        let bytes: f64 = self.uses.all().map(|of| of.bytes).sum();
        self.seconds(bytes / self.rates.decode_bytes_per_s() + self.other_s())
    }

    fn other_s(&self) -> f64 {
        let walk = self.n_layers * self.rates.walk_s_per_layer();
        if self.streams { self.host_s + walk } else { self.host_s }
    }

    fn seconds(&self, seconds: f64) -> Seconds {
        if self.rates.is_compute_measured() {
            Seconds { measured: seconds, assumed: 0.0 }
        } else {
            Seconds { measured: 0.0, assumed: seconds }
        }
    }

    fn sum(&self, of: impl Fn(&ExpertLayer) -> f64) -> f64 {
        self.experts.iter().map(of).sum()
    }

    fn bytes(&self, missing: impl Fn(&ExpertLayer) -> f64) -> f64 {
        self.sum(|layer| missing(layer) * layer.reads.slot_bytes as f64)
    }

    fn link_s(&self) -> f64 {
        self.ring_copied.1 + self.sum(ExpertLayer::copy_s)
    }

    fn drive_s(&self) -> f64 {
        self.ring_read.1 + self.sum(ExpertLayer::read_s)
    }

    fn copy_spread(&self) -> f64 {
        if self.rates.host_to_device.is_empty() { ASSUMED_COPY_SPREAD } else { COPY_SPREAD }
    }

    /// `None` if no experts are in slots.
    fn hit_rate(&self, missing: impl Fn(&ExpertLayer) -> f64) -> Option<f64> {
        let lookups = self.sum(|layer| layer.device.n_used as f64);
        (lookups > 0.0).then(|| 1.0 - self.sum(missing) / lookups)
    }

    fn limit(&self) -> Limit {
        let compute = self.compute().total();
        let (link, drive) = (self.link_s(), self.drive_s());
        if link.max(drive) <= compute {
            return Limit::Compute;
        }
        if drive <= link {
            return Limit::HostToDevice;
        }
        let bytes = self.ring_read.0 + self.bytes(ExpertLayer::n_read);
        if drive > 2.0 * bytes / bandwidth(self.machine, CHUNK_BYTES, READ_DEPTH) {
            Limit::StorageLatency
        } else {
            Limit::StorageBandwidth
        }
    }

    /// Each in one sentence that begins with "assumes".
    pub(super) fn assumptions(&self, speed: &Speed, routing: Routing<'_>) -> Vec<String> {
        let mut assumed = Vec::new();
        if let (Some(device), Some(both)) =
            (speed.assumed_hit_rate, self.hit_rate(ExpertLayer::n_read))
        {
            let (device, both) = (100.0 * device, 100.0 * both);
            assumed.push(match routing {
                Routing::Assumed => format!(
                    "assumes that {device:.0}% of experts are found in GPU memory and {both:.0}% in \
                     either memory, as no routing was recorded"
                ),
                Routing::Replayed(_) => format!(
                    "assumes that {device:.0}% of experts are found in GPU memory, and routing like \
                     the recorded one, by which {both:.0}% are found in memory"
                ),
            });
        }
        if speed.read_bytes_per_token > 0 {
            assumed.extend(drive_assumption(self.machine));
        }
        if speed.copied_bytes_per_token > 0 && self.rates.host_to_device.is_empty() {
            assumed.push(format!(
                "assumes copies to the GPU of {:.0} GB/s, as they were not measured",
                self.rates.copy_bytes_per_s(CHUNK_BYTES) / 1e9
            ));
        }
        if !self.rates.is_compute_measured() {
            assumed.push(format!(
                "assumes a GPU that decodes by {:.1} TB/s and computes prompts by {:.0} TFLOP/s, as \
                 it was not measured",
                self.rates.decode_bytes_per_s() / 1e12,
                self.rates.prompt_ops_per_s() / 1e12
            ));
        }
        assumed.push(format!(
            "assumes a short context, and prompts in whole micro-batches of {} tokens",
            self.n_ubatch
        ));
        assumed
    }
}

impl ExpertLayer {
    fn new(
        pool: &Pool,
        host: Lookups,
        device: Lookups,
        counts: Option<Misses>,
        machine: &Machine,
        rates: &GpuRates,
    ) -> ExpertLayer {
        let slots = host.slots.saturating_add(device.slots).min(host.n_units());
        let both = Lookups { slots, ..host };
        let both_missing = counts.unwrap_or_else(|| both.misses(both.assumed()));
        let assumed = device.n_used as f64 * (1.0 - device.assumed());
        let part_s = |bytes: u64| bytes as f64 / rates.copy_bytes_per_s(bytes);
        ExpertLayer {
            device,
            both,
            device_missing: assumed.max(mean(&both_missing)),
            both_missing,
            slot_copy_s: pool.parts.iter().map(|part| part_s(part.bytes)).sum(),
            reads: ExpertReads::new(pool, device.n_used, machine),
        }
    }

    fn copy_s(&self) -> f64 {
        self.device_missing * self.slot_copy_s
    }

    fn n_read(&self) -> f64 {
        mean(&self.both_missing)
    }

    fn read_s(&self) -> f64 {
        (0..).zip(&self.both_missing).map(|(k, chance)| chance * self.reads.seconds(k)).sum()
    }
}

/// A mean of misses if all turns out badly: `spread` times as many, but no more than if routing were
/// uniform.
fn worst_of(mean: f64, uniform: f64, spread: f64) -> f64 {
    (mean * spread).min(uniform).max(mean)
}
