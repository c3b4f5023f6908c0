//! From a model, a machine and a request to a plan.

mod gpu;
mod why;

use hypura_gguf::{Hparams, Model, Role};

use crate::allocate::{Allocation, allocate, smallest};
use crate::inventory::{Inventory, Kind, SizeClass};
use crate::kv::CTX_ALIGN_TOKENS;
use crate::machine::Machine;
use crate::memory::{IO_BUFFERS_BYTES, Scratch, Widths, base_bytes};
use crate::number::{pad, product, total};
use crate::plan::{
    Breakdown, ExpertLayer, ExpertTensor, Mode, Placement, Plan, PlanError, Pool, PoolPart,
};
use crate::request::{KvType, Layout, Request};
use crate::speed::{Speed, planned_speed};

/// Micro-batches that the planner chooses from are multiples of this, up to `UBATCH_MAX`: fine
/// enough that little of a batch's share of memory is left unused.
const UBATCH_STEP: u32 = 32;
/// Beyond this a larger micro-batch gains little: products are bound by arithmetic.
const UBATCH_MAX: u32 = 512;
/// A micro-batch of a model that streams needs no more tokens than it takes to compute for this many
/// times as long as the reads of all that is missing take; but at least `UBATCH_HIDING_MIN`, where
/// products become bound by arithmetic. A larger one would take memory that weights could have.
const UBATCH_HIDES: f64 = 1.5;
const UBATCH_HIDING_MIN: u32 = 64;
/// Micro-batches get one part in this many of what the budget has beyond the smallest one.
const SCRATCH_SHARE: u64 = 8;
/// If the CPU's row mappings for one pool of all layers took more than one part in this many of the
/// budget, each layer gets a pool of its own.
const ROUTING_SHARE: u64 = 64;
/// Most tokens of one call, in micro-batches.
const BATCH_MIN_TOKENS: u32 = 2048;
/// Pools, slots and experts are counted by `u32`, and so must be the units of a model.
const UNITS_MAX: u64 = 1 << 24;

/// Plans for `request` on `machine`.
///
/// The budget is `request.memory_bytes`, whatever the machine has free: the caller decides how much
/// of it to ask for. The machine decides the speed, and by its cores a little of the memory.
///
/// # Errors
/// [`PlanError`] if the request contradicts itself, or the budget is below the smallest that works,
/// which the error names.
pub fn plan(model: &Model, machine: &Machine, request: &Request) -> Result<Plan, PlanError> {
    Planner::new(model, machine, request)?.plan()
}

/// Elements of the matrices that a token is multiplied with: all but the input embedding, and of the
/// experts those that it uses.
fn active_weights(model: &Model, inventory: &Inventory) -> u64 {
    let most = |of: fn(&SizeClass) -> u64| inventory.classes.iter().map(of).max().unwrap_or(1);
    let (n_used, n_experts) = (most(|class| class.n_used), most(|class| class.n_experts).max(1));
    let tensors = model.tensors.iter().filter(|tensor| tensor.role != Role::TokenEmbedding);
    total(tensors.map(|tensor| {
        let elements = product(tensor.dims);
        match tensor.role {
            Role::Expert(_) => elements / n_experts * n_used,
            _ => elements,
        }
    }))
}

struct Planner<'a> {
    model: &'a Model,
    machine: &'a Machine,
    request: &'a Request,
    inventory: Inventory,
    widths: Widths,
    n_ctx: u32,
    n_ctx_why: String,
    base: u64,
    /// Elements of all matrices that a token is multiplied with.
    active_weights: u64,
}

/// How slots of a class are pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pooling {
    /// One pool for all layers of a size class.
    Global,
    /// A pool for each layer.
    PerLayer,
}

/// A plan's numbers before they are written down.
struct Draft {
    mode: Mode,
    allocation: Allocation,
    pooling: Pooling,
    n_ubatch: u32,
    scratch: Scratch,
}

impl<'a> Planner<'a> {
    fn new(
        model: &'a Model,
        machine: &'a Machine,
        request: &'a Request,
    ) -> Result<Self, PlanError> {
        for (value, what) in [
            (request.ctx_tokens, "the context"),
            (request.n_seq, "the number of sequences"),
            (request.ubatch_tokens.unwrap_or(1), "the micro-batch"),
        ] {
            if value == 0 {
                return Err(PlanError::Zero { what });
            }
        }
        if request.kv_type_v != KvType::F16 && !request.flash_attention {
            return Err(PlanError::QuantizedValuesNeedFlashAttention);
        }
        let hparams = model.hparams();
        let inventory = Inventory::of(model, &hparams, &request.pinned);
        let units = total(inventory.classes.iter().map(|class| class.n_units()));
        if units > UNITS_MAX {
            return Err(PlanError::Absurd { what: "a number of experts", value: units });
        }
        let (n_ctx, n_ctx_why) = context(&hparams, request)?;
        let gpu = machine.gpu.as_ref().filter(|_| request.gpu.is_some());
        let driver_bytes = gpu.map_or(0, |gpu| gpu.host_bytes);
        Ok(Self {
            widths: Widths::of(model, &hparams, &inventory),
            base: base_bytes(&hparams).saturating_add(driver_bytes),
            active_weights: active_weights(model, &inventory),
            model,
            machine,
            request,
            inventory,
            n_ctx,
            n_ctx_why,
        })
    }

    fn plan(&self) -> Result<Plan, PlanError> {
        if let Some(gpu) = &self.request.gpu {
            return self.plan_on_gpu(gpu.memory_bytes);
        }
        let budget_bytes = self.request.memory_bytes;
        let smallest_bytes = self.smallest_bytes();
        if budget_bytes < smallest_bytes {
            let n_ctx = self.n_ctx;
            return Err(PlanError::BudgetTooSmall { smallest_bytes, budget_bytes, n_ctx });
        }
        if let Some(draft) = self.full_resident() {
            return Ok(self.write(draft, smallest_bytes));
        }
        let weights_smallest = self.smallest_weights_bytes();
        if let Some(budget_bytes) =
            self.request.weights_memory_bytes.filter(|&bytes| bytes < weights_smallest)
        {
            let smallest_bytes = weights_smallest;
            return Err(PlanError::WeightsBudgetTooSmall { smallest_bytes, budget_bytes });
        }
        // Reached with a budget that only full residence fits, and a limit on weights that it does
        // not: then streaming is what the limit asks for, and it needs more.
        let streaming_smallest = self.streaming_smallest_bytes();
        if budget_bytes < streaming_smallest {
            return Err(PlanError::BudgetTooSmall {
                smallest_bytes: streaming_smallest,
                budget_bytes,
                n_ctx: self.n_ctx,
            });
        }
        Ok(self.write(self.streaming(streaming_smallest), smallest_bytes))
    }

    /// All weights in memory, with the largest micro-batch that fits beside them.
    fn full_resident(&self) -> Option<Draft> {
        let weights = self.inventory.used_bytes;
        if self.request.weights_memory_bytes.is_some_and(|limit| weights > limit) {
            return None;
        }
        let budget = self.request.memory_bytes;
        if self.load_peak(weights) > budget {
            return None;
        }
        self.ubatches_from_largest().find_map(|n_ubatch| {
            let scratch = self.scratch(n_ubatch, self.experts_max(), false);
            let fits = self.overhead().saturating_add(weights).saturating_add(scratch.total());
            (fits <= budget).then(|| Draft {
                mode: Mode::FullResident,
                allocation: Allocation {
                    pinned: vec![true; self.inventory.dense.len()],
                    ring_bytes: 0,
                    slots: self.inventory.classes.iter().map(|class| class.n_units()).collect(),
                    rows_pinned: true,
                },
                pooling: Pooling::Global,
                n_ubatch,
                scratch,
            })
        })
    }

    /// Part of the weights in memory. The share for micro-batches and the rest both grow with the
    /// budget, so that more memory never streams more.
    fn streaming(&self, smallest_bytes: u64) -> Draft {
        let budget = self.request.memory_bytes;
        let least = self.smallest_scratch().total();
        let most = self.largest_scratch().max(least);
        let beyond = budget.saturating_sub(smallest_bytes);
        let share = match self.request.measured_other_bytes {
            Some(_) => most,
            None => least.saturating_add(beyond / SCRATCH_SHARE).min(most),
        };
        let other = self
            .request
            .measured_other_bytes
            .unwrap_or_else(|| self.overhead().saturating_add(share));
        let weights = budget.saturating_sub(other);
        let weights = self.request.weights_memory_bytes.map_or(weights, |cap| cap.min(weights));
        let resident_max =
            budget.saturating_sub(self.overhead()).saturating_sub(self.load_transient());
        let mut allocation = allocate(&self.inventory, weights, resident_max, UNITS_MAX);
        if !self.smallest_ubatch_fits(&allocation, share) {
            let slots_max = self.slots_that_fit(share);
            allocation = allocate(&self.inventory, weights, resident_max, slots_max);
        }

        let most_tokens = self.streaming_ubatch_max();
        let ubatches = self.ubatches_from_largest().filter(move |&n| n <= most_tokens);
        let candidates = ubatches.flat_map(|n_ubatch| {
            let poolings = self.poolings(&allocation, n_ubatch);
            poolings.into_iter().flatten().map(move |pooling| (n_ubatch, pooling))
        });
        let mut sized = candidates.map(|(n_ubatch, pooling)| {
            (n_ubatch, pooling, self.scratch_of(&allocation, pooling, n_ubatch))
        });
        let found = sized.find(|(_, _, scratch)| scratch.total() <= share);
        // There always is one: the slots were limited so that the smallest micro-batch fits.
        debug_assert!(found.is_some(), "no micro-batch fits into {share} bytes");
        let (n_ubatch, pooling, scratch) = found.unwrap_or_else(|| {
            let n_ubatch = self.ubatch_min();
            let scratch = self.scratch_of(&allocation, Pooling::Global, n_ubatch);
            (n_ubatch, Pooling::Global, scratch)
        });
        let has_experts = !self.inventory.classes.is_empty();
        let mode = if has_experts { Mode::ExpertStreaming } else { Mode::DenseStreaming };
        Draft { mode, allocation, pooling, n_ubatch, scratch }
    }

    /// The smallest budget that works, by whichever mode.
    fn smallest_bytes(&self) -> u64 {
        let weights = self.inventory.used_bytes;
        let scratch = self.scratch(self.ubatch_min(), self.experts_max(), false).total();
        let resident = total([self.overhead(), weights, scratch]).max(self.load_peak(weights));
        let may_be_resident =
            self.request.weights_memory_bytes.is_none_or(|limit| weights <= limit);
        let streaming = self.streaming_smallest_bytes();
        if may_be_resident { resident.min(streaming) } else { streaming }
    }

    fn streaming_smallest_bytes(&self) -> u64 {
        let running = total([
            self.overhead(),
            self.smallest_weights_bytes(),
            self.smallest_scratch().total(),
        ]);
        running.max(self.load_peak(self.inventory.fixed_bytes))
    }

    fn smallest_weights_bytes(&self) -> u64 {
        let least = smallest(&self.inventory);
        total([
            least.resident_bytes(&self.inventory),
            least.slot_bytes(&self.inventory),
            least.ring_bytes,
        ])
    }

    fn smallest_scratch(&self) -> Scratch {
        let least = smallest(&self.inventory);
        self.scratch_of(&least, Pooling::Global, self.ubatch_min())
    }

    /// What the largest micro-batch needs: with one pool of all layers, if its row mappings don't
    /// take too much, else with a pool for each layer.
    fn largest_scratch(&self) -> u64 {
        let n_ubatch = self.streaming_ubatch_max();
        let units = self.inventory.classes.iter().map(|class| class.n_units()).max().unwrap_or(0);
        let pool =
            if self.routing_takes_too_much(n_ubatch, units) { self.experts_max() } else { units };
        self.scratch(n_ubatch, pool, true).total()
    }

    fn routing_takes_too_much(&self, n_ubatch: u32, slots: u64) -> bool {
        self.widths.routing_bytes(n_ubatch.into(), slots)
            > self.request.memory_bytes / ROUTING_SHARE
    }

    /// Whether the smallest micro-batch fits into `share`, with one pool or with many. It is judged
    /// from above, so that a larger share with more slots never fails where a smaller one did not.
    fn smallest_ubatch_fits(&self, allocation: &Allocation, share: u64) -> bool {
        let fits = |pool| self.scratch(self.ubatch_min(), pool, true).total() <= share;
        fits(allocation.slots.iter().copied().max().unwrap_or(0))
            || (self.each_layer_has_enough(allocation) && fits(self.experts_max()))
    }

    /// The slots of one pool of all layers with which the smallest micro-batch fits into `share`.
    fn slots_that_fit(&self, share: u64) -> u64 {
        let fits = |pool| self.scratch(self.ubatch_min(), pool, true).total() <= share;
        let classes = &self.inventory.classes;
        let mut low = classes.iter().map(|class| class.n_used).max().unwrap_or(0);
        let mut high = UNITS_MAX.max(low);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        low
    }

    /// Whether each layer would have the slots that a token needs if it had a pool of its own.
    fn each_layer_has_enough(&self, allocation: &Allocation) -> bool {
        let mut classes = self.inventory.classes.iter().zip(&allocation.slots);
        classes.all(|(class, &slots)| slots / (class.layers.len() as u64).max(1) >= class.n_used)
    }

    /// The ways to pool slots, the better one first: one pool for all layers of a class, unless its
    /// row mappings take too much.
    fn poolings(&self, allocation: &Allocation, n_ubatch: u32) -> [Option<Pooling>; 2] {
        let slots = allocation.slots.iter().copied().max().unwrap_or(0);
        let per_layer = self.each_layer_has_enough(allocation).then_some(Pooling::PerLayer);
        if self.routing_takes_too_much(n_ubatch, slots) {
            [per_layer, Some(Pooling::Global)]
        } else {
            [Some(Pooling::Global), per_layer]
        }
    }

    fn scratch_of(&self, allocation: &Allocation, pooling: Pooling, n_ubatch: u32) -> Scratch {
        let classes = self.inventory.classes.iter().zip(&allocation.slots);
        let largest = |(class, &slots): (&crate::inventory::SizeClass, &u64)| match pooling {
            Pooling::Global => slots,
            Pooling::PerLayer => slots.div_ceil((class.layers.len() as u64).max(1)),
        };
        let largest_pool = classes.clone().map(largest).max().unwrap_or(0);
        // Experts are computed as they arrive, so any layer's matmuls may be done in parts.
        let passes = !self.inventory.classes.is_empty();
        self.scratch(n_ubatch, largest_pool, passes)
    }

    fn scratch(&self, n_ubatch: u32, largest_pool: u64, passes: bool) -> Scratch {
        let (n_ctx, n_ubatch) = (self.n_ctx.into(), n_ubatch.into());
        let cores = self.machine.cores;
        self.widths.scratch(self.request, cores, n_ctx, n_ubatch, largest_pool, passes)
    }

    fn experts_max(&self) -> u64 {
        self.inventory.classes.iter().map(|class| class.n_experts).max().unwrap_or(0)
    }

    fn overhead(&self) -> u64 {
        total([self.base, IO_BUFFERS_BYTES, self.request.kv_tier_bytes])
    }

    /// Bytes at the peak of loading `resident` bytes of weights.
    fn load_peak(&self, resident: u64) -> u64 {
        total([self.overhead(), resident, self.load_transient()])
    }

    /// Repacking needs a tensor as it lies in the file beside its place.
    fn load_transient(&self) -> u64 {
        match self.request.layout {
            Layout::Plain => 0,
            Layout::Fast => self.inventory.largest_tensor_bytes,
        }
    }

    fn ubatches_from_largest(&self) -> impl Iterator<Item = u32> {
        self.ubatches_down_from(self.ubatch_max())
    }

    fn ubatches_down_from(&self, max: u32) -> impl Iterator<Item = u32> {
        let min = self.ubatch_min();
        (0..=(max - min) / UBATCH_STEP).map(move |step| max - step * UBATCH_STEP)
    }

    /// The largest micro-batch worth its memory: the smallest one that hides its reads behind
    /// computing, as a power of two, so that a slightly different measurement gives the
    /// same plan.
    fn streaming_ubatch_max(&self) -> u32 {
        let most = self.ubatch_max();
        if self.request.ubatch_tokens.is_some() {
            return most;
        }
        let experts = self.experts_max();
        let least = self.scratch(UBATCH_HIDING_MIN.min(most), experts, experts > 0).total();
        let weights = self.request.memory_bytes.saturating_sub(self.overhead() + least);
        let weights = self.request.weights_memory_bytes.map_or(weights, |cap| cap.min(weights));
        let missing = self.inventory.used_bytes.saturating_sub(weights);
        let read_s = missing as f64 / self.machine.stream_bytes_per_s();
        self.ubatch_hiding(read_s, self.machine.prompt_flops_per_s(), UBATCH_HIDING_MIN, most)
    }

    /// The smallest power of two times `least` that takes longer to compute than `moving_s`, by
    /// `UBATCH_HIDES`; not more than `most`.
    fn ubatch_hiding(&self, moving_s: f64, flops_per_s: f64, least: u32, most: u32) -> u32 {
        let token_s = 2.0 * self.active_weights as f64 / flops_per_s;
        let mut tokens = least;
        while tokens < most && f64::from(tokens) * token_s < UBATCH_HIDES * moving_s {
            tokens *= 2;
        }
        tokens.min(most)
    }

    fn ubatch_min(&self) -> u32 {
        self.request.ubatch_tokens.unwrap_or(UBATCH_STEP)
    }

    fn ubatch_max(&self) -> u32 {
        self.request.ubatch_tokens.unwrap_or(UBATCH_MAX.min(self.n_ctx))
    }

    fn write(&self, draft: Draft, smallest_bytes: u64) -> Plan {
        let inventory = &self.inventory;
        let is_resident = draft.mode == Mode::FullResident;
        let (pools, pools_of_class) = if is_resident {
            (Vec::new(), Vec::new())
        } else {
            self.pools(&draft.allocation.slots, draft.pooling)
        };
        let resident_weights = if is_resident {
            self.inventory.used_bytes
        } else {
            draft.allocation.resident_bytes(inventory)
        };
        let mut bytes = Breakdown {
            resident_weights,
            expert_slots: pools
                .iter()
                .fold(0, |sum, pool: &Pool| sum + pool.slot_bytes * u64::from(pool.slots)),
            ring: draft.allocation.ring_bytes,
            transit: 0,
            kv: draft.scratch.kv,
            kv_tiers: self.request.kv_tier_bytes,
            compute: draft.scratch.compute,
            work: draft.scratch.work,
            io_buffers: IO_BUFFERS_BYTES,
            base: self.base,
        };
        if let Some(other) = self.request.measured_other_bytes {
            let rest = total([bytes.kv, bytes.kv_tiers, bytes.work, bytes.io_buffers, bytes.base]);
            bytes.compute = other.saturating_sub(rest);
        }
        let pool_of_layer = |index: usize| self.pool_of_layer(&pools_of_class, index);
        let mut plan = Plan {
            mode: draft.mode,
            placements: self.placements(draft.mode, &draft.allocation, &pool_of_layer),
            expert_layers: if is_resident { Vec::new() } else { self.layers(&pool_of_layer) },
            pools,
            ring_bytes: draft.allocation.ring_bytes,
            n_ctx: self.n_ctx,
            n_batch: self.n_ctx.min(BATCH_MIN_TOKENS).max(draft.n_ubatch),
            n_ubatch: draft.n_ubatch,
            load_peak_bytes: self.load_peak(resident_weights),
            bytes,
            speed: Speed::default(),
            why: Vec::new(),
            smallest_bytes,
            budget_bytes: self.request.memory_bytes,
            gpu: None,
            host_matrices: Vec::new(),
        };
        let (machine, layout) = (self.machine, self.request.layout);
        plan.speed = planned_speed(self.model, inventory, &plan, machine, layout);
        plan.why = self.reasons(&plan, &draft);
        plan
    }

    fn pool_of_layer(&self, pools_of_class: &[Vec<u32>], index: usize) -> Option<u32> {
        let layer = self.inventory.layers.get(index)?;
        let pools = pools_of_class.get(layer.class)?;
        let class = self.inventory.classes.get(layer.class)?;
        let place = class.layers.iter().position(|&l| l == index)?;
        pools.get(place).or(pools.first()).copied()
    }

    /// The pools, and per size class their indices: one, or one per layer.
    fn pools(&self, slots: &[u64], pooling: Pooling) -> (Vec<Pool>, Vec<Vec<u32>>) {
        let mut pools = Vec::new();
        let mut pools_of_class = Vec::new();
        for (class, &slots) in self.inventory.classes.iter().zip(slots) {
            let groups: Vec<&[usize]> = match pooling {
                Pooling::Global => vec![&class.layers],
                Pooling::PerLayer => class.layers.chunks(1).collect(),
            };
            let first = class.layers.first().and_then(|&layer| self.inventory.layers.get(layer));
            let parts = first.map_or(&[][..], |layer| &layer.parts);
            let n_groups = groups.len() as u64;
            let mut indices = Vec::new();
            for (index, layers) in (0_u64..).zip(groups) {
                indices.push(count(pools.len() as u64));
                pools.push(Pool {
                    layers: layers.iter().map(|&layer| count(layer as u64)).collect(),
                    parts: parts
                        .iter()
                        .map(|part| PoolPart { part: part.part, bytes: part.bytes })
                        .collect(),
                    slot_bytes: class.slot_bytes,
                    // What does not divide goes to the first layers.
                    slots: count(slots / n_groups + u64::from(index < slots % n_groups)),
                    n_experts: count(class.n_experts),
                    n_used: count(class.n_used),
                });
            }
            pools_of_class.push(indices);
        }
        (pools, pools_of_class)
    }

    fn placements(
        &self,
        mode: Mode,
        allocation: &Allocation,
        pool_of_layer: &impl Fn(usize) -> Option<u32>,
    ) -> Vec<Placement> {
        if mode == Mode::FullResident {
            let kinds = self.inventory.kinds.iter();
            let place = |kind: &Kind| match kind {
                Kind::Unused => Placement::Unused,
                _ => Placement::Resident,
            };
            return kinds.map(place).collect();
        }
        let mut placements: Vec<Placement> = self
            .inventory
            .kinds
            .iter()
            .map(|kind| match *kind {
                Kind::Fixed | Kind::Dense => Placement::Resident,
                Kind::Unused => Placement::Unused,
                Kind::Rows if allocation.rows_pinned => Placement::Resident,
                Kind::Rows => Placement::Rows,
                Kind::Expert(layer) => pool_of_layer(layer)
                    .map_or(Placement::Resident, |pool| Placement::ExpertPool { pool }),
            })
            .collect();
        let dense = self.inventory.dense.iter().zip(&allocation.pinned);
        for (dense, _) in dense.filter(|(_, pinned)| !**pinned) {
            if let Some(placement) = placements.get_mut(dense.tensor) {
                *placement = Placement::Ring;
            }
        }
        placements
    }

    fn layers(&self, pool_of_layer: &impl Fn(usize) -> Option<u32>) -> Vec<ExpertLayer> {
        let layers = self.inventory.layers.iter().enumerate();
        let layer = |(index, layer): (usize, &crate::inventory::Layer)| ExpertLayer {
            block: layer.block,
            pool: pool_of_layer(index).unwrap_or(0),
            n_experts: count(layer.n_experts),
            n_used: count(layer.n_used),
            tensors: layer
                .parts
                .iter()
                .map(|part| ExpertTensor { part: part.part, tensor: part.tensor })
                .collect(),
        };
        layers.map(layer).collect()
    }
}

/// The context, a multiple of 256 tokens as llama.cpp makes it, and why it is so long.
fn context(hparams: &Hparams, request: &Request) -> Result<(u32, String), PlanError> {
    let trained = hparams.n_ctx_train.filter(|&tokens| tokens > 0 && request.cap_ctx_to_trained);
    let tokens = trained.map_or(request.ctx_tokens, |trained| trained.min(request.ctx_tokens));
    let padded = pad(tokens.into(), CTX_ALIGN_TOKENS);
    let n_ctx = u32::try_from(padded)
        .map_err(|_| PlanError::Absurd { what: "a context", value: padded })?;
    let why = if tokens < request.ctx_tokens {
        format!("the context is {n_ctx} tokens, because the model was trained for no more")
    } else {
        format!("the context is {n_ctx} tokens, as asked for")
    };
    Ok((n_ctx, why))
}

/// A number of slots, layers or experts: at most `UNITS_MAX`.
fn count(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
