//! A plan with a GPU that computes: its memory over main memory over storage.
//!
//! GPU memory is divided as main memory is where the CPU computes, with another overhead: attention
//! state and compute buffers lie there, the process does not. Then main memory is divided the same
//! way among what GPU memory does not hold: matrices that stream are held as far as they fit, and
//! slots get the rest. Each division depends on its own budget, but for which matrices stream, and for
//! the micro-batch, which needs to be no larger the more is held; so more of one memory never takes
//! anything from the other.
//!
//! The tables of the input are not part of GPU memory: llama.cpp keeps them in main memory and looks
//! them up there (`LLM_TENSOR_LAYER_INPUT` in `llama-arch.cpp`, `dev_input` in `llama-model.cpp`). A
//! tied embedding is the output matrix too, and is in both.

mod why;

use std::collections::HashMap;

use hypura_gguf::{Model, Role};

use super::{BATCH_MIN_TOKENS, Planner, Pooling, SCRATCH_SHARE, UNITS_MAX, count};
use crate::allocate::{Allocation, allocate, smallest};
use crate::inventory::{Inventory, Kind};
use crate::memory::{GPU_BASE_BYTES, GPU_STAGING_BYTES, IO_BUFFERS_BYTES, Scratch};
use crate::number::{product, total};
use crate::plan::{Breakdown, GpuPlan, Mode, Plan, PlanError};
use crate::speed::{Speed, planned_speed};

/// Micro-batches of a model that streams to a GPU may be up to this large: its weights cross the link
/// for each of them.
const STREAMING_UBATCH_MAX: u32 = 2048;

/// Transit slots hold so many bytes, where there is room: what crosses a fast link while the device
/// computes from a layer's last experts over the next layer's attention to its first ones, which takes
/// an H200 4 ms for two thousand tokens. There are no more of them than a layer has experts.
const TRANSIT_BYTES: u64 = 192 << 20;
/// They are divided into so many cells, where there are more (`transit.rs` in `hypura-llama`).
const TRANSIT_CELLS: u64 = 8;
/// The least of them: one is computed with while the next one arrives.
const TRANSIT_SLOTS_MIN: u64 = 2;
/// Of what GPU memory has beyond the least that works they take one part in this many.
const TRANSIT_SHARE: u64 = 16;

/// What matrices cross the link in, about.
const LINK_PIECE_BYTES: u64 = 4 << 20;

/// One memory's part of a plan.
struct Tier {
    /// What it may hold: all else of the model is elsewhere in every plan.
    inventory: Inventory,
    allocation: Allocation,
    /// The largest micro-batch that it has room for.
    n_ubatch: u32,
    /// Slots of each GPU that experts of any layer pass through.
    transit_slots: u64,
}

/// Main memory's tier, and the least of it that works.
struct Host {
    tier: Tier,
    smallest_bytes: u64,
}

impl Planner<'_> {
    /// `gpu_bytes` is the budget of GPU memory.
    pub(super) fn plan_on_gpu(&self, gpu_bytes: u64) -> Result<Plan, PlanError> {
        let inventory = self.device_inventory();
        let gpu_smallest = self.device_smallest_bytes(&inventory);
        if gpu_bytes < gpu_smallest {
            return Err(PlanError::GpuBudgetTooSmall {
                smallest_bytes: gpu_smallest.div_ceil(self.n_gpus()),
                budget_bytes: gpu_bytes / self.n_gpus(),
                n_ctx: self.n_ctx,
            });
        }
        let (device, mode) = match self.device_resident(&inventory, gpu_bytes) {
            Some(device) => (device, Mode::FullResident),
            None if inventory.classes.is_empty() => {
                (self.device_streaming(&inventory, gpu_bytes), Mode::DenseStreaming)
            }
            None => (self.device_streaming(&inventory, gpu_bytes), Mode::ExpertStreaming),
        };
        let host = self.host(&device, mode)?;
        Ok(self.write_with_gpu(mode, &device, &host, gpu_bytes, gpu_smallest))
    }

    /// All that may lie in GPU memory.
    fn device_inventory(&self) -> Inventory {
        let mut inventory = self.inventory.clone();
        let of_input = || {
            let tensors = self.model.tensors.iter().zip(&self.inventory.kinds);
            tensors.filter(|(tensor, kind)| {
                **kind == Kind::Fixed
                    && tensor.role.is_input()
                    && !(tensor.role == Role::TokenEmbedding && is_tied(self.model))
            })
        };
        let fixed = total(of_input().map(|(tensor, _)| tensor.bytes));
        inventory.fixed_bytes = inventory.fixed_bytes.saturating_sub(fixed);
        let elsewhere = fixed.saturating_add(inventory.rows_bytes);
        inventory.used_bytes = inventory.used_bytes.saturating_sub(elsewhere);
        (inventory.rows_bytes, inventory.row_bytes) = (0, 0);
        inventory
    }

    /// All that main memory has to hold or may hold, beside what `device` does.
    fn host_inventory(&self, device: &Tier, mode: Mode) -> Inventory {
        let mut inventory = device.inventory.clone();
        let tensors = self.model.tensors.iter().zip(&self.inventory.kinds);
        let of_input = tensors
            .filter(|(tensor, kind)| **kind != Kind::Unused && tensor.role.is_input())
            .map(|(tensor, _)| tensor.bytes);
        inventory.fixed_bytes = total(of_input);
        let dense = device.inventory.dense.iter().zip(&device.allocation.pinned);
        inventory.dense = dense.filter(|(_, pinned)| !**pinned).map(|(dense, _)| *dense).collect();
        if mode == Mode::FullResident {
            inventory.classes.clear();
        }
        inventory
    }

    fn device_scratch(&self, n_ubatch: u32, streams: bool) -> Scratch {
        // Experts are computed as they arrive, so any layer's matmuls may be done in parts.
        let passes = streams && !self.inventory.classes.is_empty();
        let one = self.widths.gpu_scratch(self.request, self.n_ctx.into(), n_ubatch.into(), passes);
        // Attention state is where its layer is; every GPU has buffers of its own.
        let n = self.n_gpus();
        let (compute, work) = (one.compute.saturating_mul(n), one.work.saturating_mul(n));
        Scratch { kv: one.kv, compute, work }
    }

    fn n_gpus(&self) -> u64 {
        self.request.gpu.as_ref().map_or(1, |gpu| u64::from(gpu.devices.max(1)))
    }

    /// What GPUs hold before anything of the model is there. Several can't be filled evenly: the run
    /// of layers of each may be too short or too long by one.
    fn device_base_bytes(&self) -> u64 {
        let n = self.n_gpus();
        let uneven = if n > 1 { self.largest_layer_bytes() } else { 0 };
        total([product([GPU_BASE_BYTES, n]), product([uneven, n - 1])])
    }

    /// Of the layers and the output, the one with the most bytes.
    fn largest_layer_bytes(&self) -> u64 {
        let mut of_layer: HashMap<Option<u32>, u64> = HashMap::new();
        let is_output = |role| role == Role::TokenEmbedding && is_tied(self.model);
        let tensors = self.model.tensors.iter();
        for tensor in tensors.filter(|tensor| !tensor.role.is_input() || is_output(tensor.role)) {
            *of_layer.entry(tensor.layer).or_default() += tensor.bytes;
        }
        of_layer.into_values().max().unwrap_or(0)
    }

    /// The least of GPU memory that works, by whichever mode.
    fn device_smallest_bytes(&self, inventory: &Inventory) -> u64 {
        let resident = total([
            self.device_base_bytes(),
            inventory.used_bytes,
            self.device_scratch(self.ubatch_min(), false).total(),
        ]);
        resident.min(self.device_streaming_smallest_bytes(inventory))
    }

    fn device_streaming_smallest_bytes(&self, inventory: &Inventory) -> u64 {
        let scratch = self.device_scratch(self.ubatch_min(), true).total();
        let rings = product([smallest(inventory).ring_bytes, self.n_gpus() - 1]);
        let transit = self.transit_bytes(inventory, TRANSIT_SLOTS_MIN);
        total([self.device_base_bytes(), smallest_bytes(inventory), rings, transit, scratch])
    }

    /// What so many transit slots take on all GPUs.
    fn transit_bytes(&self, inventory: &Inventory, n_slots: u64) -> u64 {
        product([inventory.widest_expert_bytes(), n_slots, self.n_gpus()])
    }

    /// How many transit slots are of use.
    fn transit_slots_most(inventory: &Inventory) -> u64 {
        let n_experts = inventory.classes.iter().map(|class| class.n_experts).max().unwrap_or(0);
        let wanted = TRANSIT_BYTES.div_ceil(inventory.widest_expert_bytes().max(1));
        wanted.clamp(n_experts.min(4), n_experts).max(TRANSIT_SLOTS_MIN)
    }

    /// Everything in GPU memory, if it fits and may be there.
    fn device_resident(&self, inventory: &Inventory, budget: u64) -> Option<Tier> {
        let slots_max = self.request.gpu_slots_max.map_or(u64::MAX, u64::from);
        if inventory.classes.iter().any(|class| class.n_experts > slots_max) {
            return None;
        }
        let room = budget.checked_sub(total([self.device_base_bytes(), inventory.used_bytes]))?;
        let n_ubatch = self
            .ubatches_from_largest()
            .find(|&n_ubatch| self.device_scratch(n_ubatch, false).total() <= room)?;
        let allocation = Allocation {
            pinned: vec![true; inventory.dense.len()],
            ring_bytes: 0,
            slots: inventory.classes.iter().map(|class| class.n_units()).collect(),
            rows_pinned: true,
        };
        Some(Tier { inventory: inventory.clone(), allocation, n_ubatch, transit_slots: 0 })
    }

    /// Part of it. A larger micro-batch copies what streams for more tokens at once, so it may be as
    /// large as it takes to hide the copies, within a share that grows with the budget.
    fn device_streaming(&self, inventory: &Inventory, budget: u64) -> Tier {
        let ubatch_max = self.device_ubatch_max(inventory, budget);
        let least = self.device_scratch(self.ubatch_min(), true).total();
        let most = self.device_scratch(ubatch_max, true).total();
        let beyond = budget.saturating_sub(self.device_streaming_smallest_bytes(inventory));
        let share = least.saturating_add(beyond / SCRATCH_SHARE).min(most.max(least));
        let weights = budget.saturating_sub(self.device_base_bytes()).saturating_sub(share);
        let (transit, transit_slots) = self.device_transit(inventory, beyond);
        let weights = weights.saturating_sub(transit);
        let mut allocation = allocate(inventory, weights, u64::MAX, UNITS_MAX);
        if self.n_gpus() > 1 && allocation.ring_bytes > 0 {
            let rings = product([allocation.ring_bytes, self.n_gpus() - 1]);
            allocation = allocate(inventory, weights.saturating_sub(rings), u64::MAX, UNITS_MAX);
        }
        allocation.rows_pinned = true;
        let fits = |&n_ubatch: &u32| self.device_scratch(n_ubatch, true).total() <= share;
        let n_ubatch = self.ubatches_down_from(ubatch_max).find(fits).unwrap_or(self.ubatch_min());
        Tier { inventory: inventory.clone(), allocation, n_ubatch, transit_slots }
    }

    /// What transit slots get of `beyond` bytes more than the least that works, in bytes, and how many
    /// that is on each GPU. The bytes grow evenly, so that more memory never takes a layer's slot.
    fn device_transit(&self, inventory: &Inventory, beyond: u64) -> (u64, u64) {
        if inventory.classes.is_empty() {
            return (0, 0);
        }
        let bytes = |n_slots| self.transit_bytes(inventory, n_slots);
        let most = bytes(Self::transit_slots_most(inventory));
        let taken = bytes(TRANSIT_SLOTS_MIN).saturating_add(beyond / TRANSIT_SHARE).min(most);
        let n_slots = taken / bytes(1).max(1);
        // Cells are alike.
        (taken, if n_slots < TRANSIT_CELLS { n_slots } else { n_slots - n_slots % TRANSIT_CELLS })
    }

    /// The largest micro-batch that is worth its memory where weights cross the link.
    fn device_ubatch_max(&self, inventory: &Inventory, budget: u64) -> u32 {
        if self.request.ubatch_tokens.is_some() {
            return self.ubatch_max();
        }
        let rates = self.machine.gpu.clone().unwrap_or_default();
        let missing = inventory.used_bytes.saturating_sub(budget);
        let copy_s = missing as f64 / rates.copy_bytes_per_s(LINK_PIECE_BYTES);
        let unheld = missing.saturating_sub(self.request.memory_bytes);
        let moving_s = copy_s.max(unheld as f64 / self.machine.stream_bytes_per_s());
        let most = self.streaming_ubatch_most();
        self.ubatch_hiding(moving_s, rates.prompt_ops_per_s(), self.ubatch_max(), most)
    }

    /// The largest micro-batch that a model that streams to a GPU can get.
    fn streaming_ubatch_most(&self) -> u32 {
        self.request.ubatch_tokens.unwrap_or(STREAMING_UBATCH_MAX.min(self.n_ctx))
    }

    /// What buffers of main memory a micro-batch needs.
    fn host_scratch(&self, n_ubatch: u32) -> u64 {
        let n_ctx = self.n_ctx.into();
        let compute = self.widths.host_compute_bytes(self.request, n_ctx, n_ubatch.into());
        compute.saturating_add(GPU_STAGING_BYTES)
    }

    fn host(&self, device: &Tier, mode: Mode) -> Result<Host, PlanError> {
        let (budget, overhead) = (self.request.memory_bytes, self.overhead());
        let inventory = self.host_inventory(device, mode);
        let weights_least = smallest_bytes(&inventory);
        let least = self.host_scratch(self.ubatch_min());
        let smallest_bytes = total([overhead, weights_least, least]);
        let too_small = |smallest_bytes| PlanError::BudgetTooSmall {
            smallest_bytes,
            budget_bytes: budget,
            n_ctx: self.n_ctx,
        };
        if budget < smallest_bytes {
            return Err(too_small(smallest_bytes));
        }
        if let Some(budget_bytes) =
            self.request.weights_memory_bytes.filter(|&bytes| bytes < weights_least)
        {
            let smallest_bytes = weights_least;
            return Err(PlanError::WeightsBudgetTooSmall { smallest_bytes, budget_bytes });
        }
        let measured = self.request.measured_other_bytes.filter(|_| mode != Mode::FullResident);
        let share = match (mode, measured) {
            (_, Some(_)) => self.host_scratch(device.n_ubatch),
            (Mode::FullResident, None) => {
                budget.saturating_sub(overhead).saturating_sub(weights_least)
            }
            _ => self.host_share(least),
        };
        let other = measured.unwrap_or_else(|| overhead.saturating_add(share));
        let weights = budget.saturating_sub(other);
        if weights < weights_least {
            return Err(too_small(other.saturating_add(weights_least)));
        }
        let weights = self.request.weights_memory_bytes.map_or(weights, |cap| cap.min(weights));
        let allocation = allocate(&inventory, weights, u64::MAX, UNITS_MAX);
        let fits = |&n_ubatch: &u32| self.host_scratch(n_ubatch) <= share;
        let mut ubatches = self.ubatches_down_from(device.n_ubatch);
        let n_ubatch = ubatches.find(fits).unwrap_or(self.ubatch_min());
        let tier = Tier { inventory, allocation, n_ubatch, transit_slots: 0 };
        Ok(Host { tier, smallest_bytes })
    }

    /// The part of main memory that micro-batches get. It is reckoned from the least that works with
    /// the smallest GPU, so that it depends on this budget alone.
    fn host_share(&self, least: u64) -> u64 {
        let inventory = self.device_inventory();
        let allocation = smallest(&inventory);
        let n_ubatch = self.ubatch_min();
        let device = Tier { inventory, allocation, n_ubatch, transit_slots: 0 };
        let inventory = self.host_inventory(&device, Mode::ExpertStreaming);
        let most_needed = total([self.overhead(), smallest_bytes(&inventory), least]);
        let beyond = self.request.memory_bytes.saturating_sub(most_needed);
        let most = self.host_scratch(self.streaming_ubatch_most()).max(least);
        least.saturating_add(beyond / SCRATCH_SHARE).min(most)
    }

    fn write_with_gpu(
        &self,
        mode: Mode,
        device: &Tier,
        host: &Host,
        gpu_bytes: u64,
        gpu_smallest: u64,
    ) -> Plan {
        let n_ubatch = device.n_ubatch.min(host.tier.n_ubatch);
        let is_resident = mode == Mode::FullResident;
        let (pools, pools_of_class) = if is_resident {
            (Vec::new(), Vec::new())
        } else {
            self.pools(&host.tier.allocation.slots, Pooling::Global)
        };
        let pool_of_layer = |index: usize| self.pool_of_layer(&pools_of_class, index);
        let bytes = self.host_bytes(mode, &host.tier, n_ubatch);
        let load_peak = [self.overhead(), GPU_STAGING_BYTES, bytes.resident_weights];
        let mut plan = Plan {
            mode,
            placements: self.placements(mode, &device.allocation, &pool_of_layer),
            expert_layers: if is_resident { Vec::new() } else { self.layers(&pool_of_layer) },
            pools,
            ring_bytes: host.tier.allocation.ring_bytes,
            n_ctx: self.n_ctx,
            n_batch: self.n_ctx.min(BATCH_MIN_TOKENS).max(n_ubatch),
            n_ubatch,
            bytes,
            load_peak_bytes: total(load_peak),
            speed: Speed::default(),
            why: Vec::new(),
            smallest_bytes: host.smallest_bytes,
            budget_bytes: self.request.memory_bytes,
            gpu: Some(GpuPlan {
                devices: count(self.n_gpus()),
                budget_bytes: gpu_bytes,
                bytes: self.device_bytes(mode, device, n_ubatch),
                slots: match mode {
                    Mode::FullResident => Vec::new(),
                    _ => device.allocation.slots.iter().map(|&slots| count(slots)).collect(),
                },
                ring_bytes: device.allocation.ring_bytes,
                transit_slots: count(device.transit_slots),
                smallest_bytes: gpu_smallest,
            }),
            host_matrices: host_matrices(&host.tier),
        };
        let (machine, layout) = (self.machine, self.request.layout);
        plan.speed = planned_speed(self.model, &self.inventory, &plan, machine, layout);
        plan.why = self.gpu_reasons(&plan, device, &host.tier);
        plan
    }

    fn host_bytes(&self, mode: Mode, tier: &Tier, n_ubatch: u32) -> Breakdown {
        let mut bytes = Breakdown {
            resident_weights: tier.allocation.resident_bytes(&tier.inventory),
            expert_slots: tier.allocation.slot_bytes(&tier.inventory),
            ring: tier.allocation.ring_bytes,
            transit: 0,
            kv: 0,
            kv_tiers: self.request.kv_tier_bytes,
            compute: self.host_scratch(n_ubatch).saturating_sub(GPU_STAGING_BYTES),
            work: GPU_STAGING_BYTES,
            io_buffers: IO_BUFFERS_BYTES,
            base: self.base,
        };
        let measured = self.request.measured_other_bytes.filter(|_| mode != Mode::FullResident);
        if let Some(other) = measured {
            let rest = total([bytes.kv_tiers, bytes.work, bytes.io_buffers, bytes.base]);
            bytes.compute = other.saturating_sub(rest);
        }
        bytes
    }

    fn device_bytes(&self, mode: Mode, tier: &Tier, n_ubatch: u32) -> Breakdown {
        let is_resident = mode == Mode::FullResident;
        let scratch = self.device_scratch(n_ubatch, !is_resident);
        let (allocation, inventory) = (&tier.allocation, &tier.inventory);
        let (resident_weights, expert_slots) = if is_resident {
            (inventory.used_bytes, 0)
        } else {
            (allocation.resident_bytes(inventory), allocation.slot_bytes(inventory))
        };
        Breakdown {
            resident_weights,
            expert_slots,
            ring: product([allocation.ring_bytes, self.n_gpus()]),
            transit: self.transit_bytes(inventory, tier.transit_slots),
            kv: scratch.kv,
            kv_tiers: 0,
            compute: scratch.compute,
            work: scratch.work,
            io_buffers: 0,
            base: self.device_base_bytes(),
        }
    }
}

/// Of the matrices that stream those that main memory holds, in the model's order.
fn host_matrices(tier: &Tier) -> Vec<usize> {
    let dense = tier.inventory.dense.iter().zip(&tier.allocation.pinned);
    let mut tensors: Vec<usize> =
        dense.filter(|(_, pinned)| **pinned).map(|(dense, _)| dense.tensor).collect();
    tensors.sort_unstable();
    tensors
}

/// The least that weights take of a memory with this inventory.
fn smallest_bytes(inventory: &Inventory) -> u64 {
    let least = smallest(inventory);
    total([least.resident_bytes(inventory), least.slot_bytes(inventory), least.ring_bytes])
}

/// Whether the input embedding is the output matrix too.
fn is_tied(model: &Model) -> bool {
    model.tensor("output.weight").is_none()
}
