//! The slot table: which unit holds which slot, and who gives way.
//!
//! ```text
//!            acquire / speculate             filled: the last part
//!   Free ------------------------> Filling -----------------------> Ready
//!    ^                              |    acquire: InUse (also while parts are still filling);
//!    |  abandon                     |    release: back to Filling or Ready
//!    +------------------------------+    Ready only: may be taken for another unit
//! ```

mod clock;
mod error;
mod history;
mod pool;
mod routing;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::stats::{LayerStats, TierStats, UnitHeat};
use crate::{Lrfu, Parts, SlotId, UnitId, half_life_tokens};
use clock::Clock;
pub use error::{NotEnoughSlots, ResizeError, SpecError};
use pool::{Pool, Slot};

/// The shape of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSpec {
    /// Experts of each layer.
    pub n_experts: u32,
    /// Experts that are chosen for a token, per layer.
    pub n_used: u32,
    /// Per layer that has experts: the pool that its units live in.
    pub pool_of_layer: Vec<u32>,
    /// Per pool: its slots.
    pub slots_of_pool: Vec<u32>,
    /// Per layer that has experts: the parts that its units are made of.
    pub parts_of_layer: Vec<Parts>,
}

impl TableSpec {
    /// Units in all layers together.
    pub fn n_units(&self) -> usize {
        self.pool_of_layer.len() * self.n_experts as usize
    }
}

/// A slot granted to an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Index of the expert in its layer.
    pub expert: u32,
    /// The slot that holds it, in the pool of its layer.
    pub slot: SlotId,
    /// Parts that the caller must read now, and then report by [`SlotTable::filled`] or
    /// [`SlotTable::abandon`].
    pub fill: Parts,
    /// Parts that an earlier grant is reading: the caller must wait for them before it computes.
    pub pending: Parts,
}

/// A unit that lost its slot to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// The unit.
    pub unit: UnitId,
    /// The slot that it had, in the pool of its layer.
    pub slot: SlotId,
    /// Its parts that were valid.
    pub ready: Parts,
}

/// Whose slot read-ahead may take when none is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// That of a unit which is colder by the policy: for units that are wanted because of their
    /// past.
    Warmer,
    /// That of the unit which would give way next anyhow: for units that are expected in the next
    /// layers, whatever their past.
    Expected,
}

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotState {
    /// It holds no unit.
    Free,
    /// Bytes are on their way into it; no computation uses it yet.
    Filling,
    /// Its unit is valid and idle: it may be taken for another one.
    Ready,
    /// A computation was granted it (its bytes may still be on their way).
    InUse,
}

/// Which unit holds which slot, over all pools and layers.
///
/// Calls name layers by their index among the layers that have experts. A layer or expert that the
/// table was not made for is a bug of the caller: methods that change the table panic then.
#[derive(Debug)]
pub struct SlotTable<P: Policy = Lrfu> {
    spec: TableSpec,
    policy: P,
    pools: Vec<Pool>,
    /// Per unit: its slot in the pool of its layer, or `NO_SLOT`.
    slot_of_unit: Vec<u32>,
    /// Units in use, in the order in which they were granted.
    in_use: Vec<u32>,
    /// Units that are expected soon, and give way to nobody until then.
    held: Vec<u32>,
    scanning: bool,
    own_layer_discount: f64,
    /// Per unit, once it was told; see [`SlotTable::set_outlook`].
    outlook: Vec<f64>,
    clock: Clock,
    layers: Vec<LayerStats>,
    routed: Vec<u64>,
    /// Since they were asked for last, if somebody wants to know.
    victims: Option<Vec<Victim>>,
}

const NO_SLOT: u32 = u32::MAX;

/// The default of [`SlotTable::set_own_layer_discount`] with the default policy: half as often used. On
/// recorded routing of the demo model that brought 0.1 to 2 points more hits, most with few slots.
pub(crate) const OWN_LAYER_DISCOUNT: f64 = 1.0;

impl SlotTable<Lrfu> {
    /// An empty table with the default policy, where a layer takes slots from itself first.
    ///
    /// # Errors
    /// [`SpecError`] if `spec` contradicts itself.
    pub fn new(spec: TableSpec) -> Result<Self, SpecError> {
        let half_life = half_life_tokens(spec.n_experts, spec.n_used);
        let mut table = Self::with_policy(spec.clone(), Lrfu::new(spec.n_units(), half_life))?;
        table.set_own_layer_discount(OWN_LAYER_DISCOUNT);
        Ok(table)
    }
}

impl<P: Policy> SlotTable<P> {
    /// An empty table that chooses victims by `policy`, which must remember as many units as the
    /// table has.
    ///
    /// # Errors
    /// [`SpecError`] if `spec` contradicts itself or does not fit `policy`.
    pub fn with_policy(spec: TableSpec, policy: P) -> Result<Self, SpecError> {
        let (layers, pools) = (spec.pool_of_layer.len(), spec.slots_of_pool.len());
        if spec.parts_of_layer.len() != layers {
            return Err(SpecError::LayerCounts { pools: layers, parts: spec.parts_of_layer.len() });
        }
        for (layer, &pool) in spec.pool_of_layer.iter().enumerate() {
            if pool as usize >= pools {
                return Err(SpecError::NoSuchPool { layer, pool, pools });
            }
        }
        let n_units = spec.n_units();
        if u32::try_from(n_units).is_err() {
            return Err(SpecError::TooManyUnits { layers, experts: spec.n_experts });
        }
        if policy.n_units() != n_units {
            return Err(SpecError::PolicySize { policy: policy.n_units(), table: n_units });
        }
        Ok(Self {
            policy,
            pools: spec
                .slots_of_pool
                .iter()
                .map(|&slots| Pool::new(slots, spec.n_experts))
                .collect(),
            slot_of_unit: vec![NO_SLOT; n_units],
            in_use: Vec::new(),
            held: Vec::new(),
            scanning: false,
            own_layer_discount: 0.0,
            outlook: Vec::new(),
            clock: Clock::default(),
            layers: vec![LayerStats::default(); layers],
            routed: vec![0; n_units],
            victims: None,
            spec,
        })
    }

    /// The shape of the table, with the pools' present sizes.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// Makes each of `experts` hold a slot for reading `parts` (those that the layer has), and
    /// appends one [`Grant`] per expert to `out`, in their order. Slots granted are in use until
    /// [`release_layer`](Self::release_layer) or [`release_all`](Self::release_all). An expert of
    /// the list that is there already never gives way to another one of it. `experts` should be
    /// distinct: a repeated one gets the same slot and counts as another lookup.
    ///
    /// # Errors
    /// [`NotEnoughSlots`] if the pool can't hold all of them now; nothing is changed then, and `out`
    /// is as before.
    pub fn acquire(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: Parts,
        out: &mut Vec<Grant>,
    ) -> Result<(), NotEnoughSlots> {
        let parts = parts & self.spec.parts_of_layer[layer as usize];
        self.pin_hits(layer, experts)?;
        for &expert in experts {
            let unit = self.unit_index(UnitId { layer, expert });
            let is_miss = self.slot_of_unit[unit] == NO_SLOT;
            if is_miss {
                let pinned = self.place(layer, unit, Claim::Expected);
                debug_assert!(pinned, "pin_hits made sure that there is a slot");
                self.in_use.push(index_u32(unit));
            }
            let slot_index = self.slot_of_unit[unit];
            let slot = &mut self.pools[self.spec.pool_of_layer[layer as usize] as usize].slots
                [slot_index as usize];
            slot.in_use = true;
            let fill = parts - slot.ready - slot.filling;
            let pending = parts & slot.filling;
            slot.filling |= fill;
            let stats = &mut self.layers[layer as usize];
            stats.lookups += 1;
            stats.speculated_hits += u64::from(std::mem::take(&mut slot.speculated));
            if is_miss {
                stats.misses += 1;
            } else if fill.is_empty() {
                stats.hits += 1;
                stats.hits_pending += u64::from(!pending.is_empty());
            } else {
                stats.partial_hits += 1;
            }
            out.push(Grant { expert, slot: SlotId(slot_index), fill, pending });
        }
        Ok(())
    }

    /// For read-ahead: a slot for `unit`, and the parts of `parts` to read into it. It takes a free
    /// slot or an idle one, as `claim` says; never one in use, held or being filled. `None` if
    /// there is no such slot, or nothing is left to read. The slot is not in use: after it is
    /// filled it may be taken for another unit before anyone asks for this one.
    pub fn speculate(&mut self, unit: UnitId, parts: Parts, claim: Claim) -> Option<Grant> {
        let index = self.unit_index(unit);
        let parts = parts & self.spec.parts_of_layer[unit.layer as usize];
        if parts.is_empty() {
            return None;
        }
        let pool_index = self.spec.pool_of_layer[unit.layer as usize] as usize;
        let is_new = self.slot_of_unit[index] == NO_SLOT;
        if is_new {
            let pool = &self.pools[pool_index];
            let key = self.policy.key(index);
            let may_take = match claim {
                Claim::Warmer => pool.coldest_key().is_some_and(|coldest| coldest < key),
                Claim::Expected => true,
            };
            if (pool.free.is_empty() && !may_take) || !self.place(unit.layer, index, claim) {
                return None;
            }
        }
        let slot_index = self.slot_of_unit[index];
        let pool = &mut self.pools[pool_index];
        let slot = &mut pool.slots[slot_index as usize];
        let fill = parts - slot.ready - slot.filling;
        let pending = parts & slot.filling;
        if fill.is_empty() {
            return None;
        }
        slot.filling |= fill;
        slot.speculated |= is_new;
        pool.leave_index(slot_index);
        self.layers[unit.layer as usize].speculated += u64::from(is_new);
        Some(Grant { expert: unit.expert, slot: SlotId(slot_index), fill, pending })
    }

    /// `parts` of `unit` have arrived and are valid. Returns those that became ready by it: only
    /// parts that were granted for filling can.
    pub fn filled(&mut self, unit: UnitId, parts: Parts) -> Parts {
        let index = self.unit_index(unit);
        let slot_index = self.slot_of_unit[index];
        if slot_index == NO_SLOT {
            return Parts::EMPTY;
        }
        let key = self.policy.key(index);
        let pool = &mut self.pools[self.spec.pool_of_layer[unit.layer as usize] as usize];
        let slot = &mut pool.slots[slot_index as usize];
        let arrived = parts & slot.filling;
        slot.filling = slot.filling - arrived;
        slot.ready |= arrived;
        pool.settle(slot_index, key);
        arrived
    }

    /// A read failed: `unit` loses its slot, also when it is in use, and nothing of it is valid.
    /// The caller sees to it that no other read into that slot is still under way.
    pub fn abandon(&mut self, unit: UnitId) {
        let index = self.unit_index(unit);
        if self.slot_of_unit[index] == NO_SLOT {
            return;
        }
        self.layers[unit.layer as usize].abandoned += 1;
        self.in_use.retain(|&other| other as usize != index);
        self.vacate(unit.layer, index);
    }

    /// The computation that used slots of `layer` is over. Slots that are still being filled stay
    /// so, until [`filled`](Self::filled) or [`abandon`](Self::abandon).
    pub fn release_layer(&mut self, layer: u32) {
        let n_experts = self.spec.n_experts;
        self.release_where(|unit| unit / n_experts == layer);
    }

    /// The computation that used slots is over, in all layers. Slots that are still being filled
    /// stay so, until [`filled`](Self::filled) or [`abandon`](Self::abandon).
    pub fn release_all(&mut self) {
        self.release_where(|_| true);
    }

    /// Slots in the pool of `layer` that can be had now: free, or ready, idle and not held.
    pub fn available(&self, layer: u32) -> usize {
        self.pools[self.spec.pool_of_layer[layer as usize] as usize].n_available() as usize
    }

    /// Whether the pool of `layer` has a slot that holds nothing.
    pub fn has_free_slot(&self, layer: u32) -> bool {
        !self.pools[self.spec.pool_of_layer[layer as usize] as usize].free.is_empty()
    }

    /// Layers are used one after the other, each of them nearly whole, over and over (a long
    /// prompt): what a later layer of this pass holds gives way last, because it is needed next.
    /// Among the layers that have had their turn the policy decides, so that what stays at the end
    /// is what is used most.
    pub fn set_scanning(&mut self, scanning: bool) {
        self.scanning = scanning;
    }

    /// From now on remembers who lost a slot to another unit, for
    /// [`take_victims`](Self::take_victims).
    pub fn note_victims(&mut self) {
        self.victims.get_or_insert_default();
    }

    /// Appends those who lost their slots since this was called last, in order.
    pub fn take_victims(&mut self, out: &mut Vec<Victim>) {
        if let Some(victims) = &mut self.victims {
            out.append(victims);
        }
    }

    /// When a layer needs a slot, what else it holds counts as colder by this much (in the unit of
    /// the policy's keys; for [`Lrfu`] 1 is half as often used): it is needed a whole token later
    /// than what the next layers hold.
    pub fn set_own_layer_discount(&mut self, discount: f64) {
        self.own_layer_discount = discount;
    }

    /// How much likelier than usual each expert of `layer` is for the next token, in the unit of the
    /// policy's keys (for [`Lrfu`]: as a power of two): of the coldest eight, and the coldest eight of
    /// the layer that needs a slot, the one goes that is coldest with this added. So a change of what is
    /// expected reorders nothing. Does not count for [`Claim::Warmer`]. Nothing changes if it is empty.
    pub fn set_outlook(&mut self, layer: u32, outlook: &[f64]) {
        if outlook.is_empty() {
            return;
        }
        self.outlook.resize(self.slot_of_unit.len(), 0.0);
        let of_layer = self.outlook.chunks_mut(self.spec.n_experts as usize).nth(layer as usize);
        of_layer.into_iter().flatten().zip(outlook).for_each(|(old, new)| *old = *new);
    }

    /// `unit` is expected to be asked for soon: if it is ready and idle, it gives way to nobody
    /// until [`let_go`](Self::let_go), unless slots run out.
    pub fn hold(&mut self, unit: UnitId) {
        let index = self.unit_index(unit);
        let slot_index = self.slot_of_unit[index];
        if slot_index == NO_SLOT {
            return;
        }
        let pool = &mut self.pools[self.spec.pool_of_layer[unit.layer as usize] as usize];
        let slot = &mut pool.slots[slot_index as usize];
        if !slot.held && slot.state() == SlotState::Ready {
            slot.held = true;
            pool.leave_index(slot_index);
            self.held.push(index_u32(index));
        }
    }

    /// Ends [`hold`](Self::hold) for all units of `layer`.
    pub fn let_go(&mut self, layer: u32) {
        let n_experts = self.spec.n_experts;
        self.let_go_where(|unit| unit / n_experts == layer);
    }

    /// The slot of `unit` and the parts of it that are ready; `None` if it holds none.
    pub fn lookup(&self, unit: UnitId) -> Option<(SlotId, Parts)> {
        let (slot_index, slot) = self.slot_of(unit)?;
        Some((SlotId(slot_index), slot.ready))
    }

    /// How much `unit` is worth keeping, by the policy: what has less gives way first.
    pub fn key(&self, unit: UnitId) -> f64 {
        self.policy.key(self.unit_index(unit))
    }

    /// What a slot of a pool is doing; `None` if there is no such slot.
    pub fn state(&self, pool: u32, slot: SlotId) -> Option<SlotState> {
        Some(self.pools.get(pool as usize)?.slots.get(slot.0 as usize)?.state())
    }

    /// The unit that holds a slot of a pool.
    pub fn unit_in(&self, pool: u32, slot: SlotId) -> Option<UnitId> {
        let slot = self.pools.get(pool as usize)?.slots.get(slot.0 as usize)?;
        slot.unit.map(|unit| self.unit_id(unit))
    }

    /// Gives a pool another number of slots. When it shrinks, the units in the slots at its end
    /// lose them. Returns how many units did.
    ///
    /// # Errors
    /// [`ResizeError::Busy`] if a slot that would go is in use or being filled; nothing is changed.
    pub fn resize_pool(&mut self, pool: u32, slots: u32) -> Result<u32, ResizeError> {
        let Some(target) = self.pools.get_mut(pool as usize) else {
            return Err(ResizeError::NoSuchPool { pool });
        };
        let leaving = target.resize(slots).map_err(|slot| ResizeError::Busy { pool, slot })?;
        self.spec.slots_of_pool[pool as usize] = slots;
        for &unit in &leaving {
            self.slot_of_unit[unit as usize] = NO_SLOT;
            self.layers[(unit / self.spec.n_experts) as usize].evictions += 1;
        }
        Ok(index_u32(leaving.len()))
    }

    /// What was counted since the table was made or [`reset_stats`](Self::reset_stats).
    pub fn stats(&self) -> TierStats {
        TierStats::of_layers(&self.layers)
    }

    /// Sets the counters to zero (not the policy's memory, and not the heat map).
    pub fn reset_stats(&mut self) {
        self.layers.fill(LayerStats::default());
    }

    /// The heat map's row of `layer`: each expert in order. Empty if there is no such layer.
    pub fn heat(&self, layer: u32) -> impl Iterator<Item = UnitHeat> {
        let known = (layer as usize) < self.spec.pool_of_layer.len();
        (0..if known { self.spec.n_experts } else { 0 }).map(move |expert| {
            let unit = UnitId { layer, expert };
            let index = self.unit_index(unit);
            let key = self.policy.key(index);
            UnitHeat {
                expert,
                routed: self.routed[index],
                key: key.is_finite().then_some(key),
                state: self.slot_of(unit).map_or(SlotState::Free, |(_, slot)| slot.state()),
            }
        })
    }

    /// Marks the resident ones of `experts` as in use, so that none of them gives way, after making
    /// sure that the others will find slots.
    fn pin_hits(&mut self, layer: u32, experts: &[u32]) -> Result<(), NotEnoughSlots> {
        let pool_index = self.spec.pool_of_layer[layer as usize] as usize;
        let marked = self.in_use.len();
        let mut misses = 0_u32;
        for &expert in experts {
            let unit = self.unit_index(UnitId { layer, expert });
            let slot_index = self.slot_of_unit[unit];
            if slot_index == NO_SLOT {
                misses += 1;
                continue;
            }
            let pool = &mut self.pools[pool_index];
            if !pool.slots[slot_index as usize].in_use {
                pool.slots[slot_index as usize].in_use = true;
                pool.leave_index(slot_index);
                self.in_use.push(index_u32(unit));
            }
        }
        if misses > self.pools[pool_index].n_available() {
            self.let_go_where(|_| true);
        }
        let available = self.pools[pool_index].n_available();
        if misses <= available {
            return Ok(());
        }
        let wanted = index_u32(experts.len());
        for unit in self.in_use.split_off(marked) {
            self.release_unit(unit);
        }
        Err(NotEnoughSlots { wanted, available: wanted - misses + available })
    }

    fn let_go_where(&mut self, is_over: impl Fn(u32) -> bool) {
        let (over, kept): (Vec<u32>, Vec<u32>) =
            std::mem::take(&mut self.held).into_iter().partition(|&unit| is_over(unit));
        self.held = kept;
        for unit in over {
            let slot_index = self.slot_of_unit[unit as usize];
            if slot_index == NO_SLOT {
                continue;
            }
            let layer = unit / self.spec.n_experts;
            let pool = &mut self.pools[self.spec.pool_of_layer[layer as usize] as usize];
            pool.slots[slot_index as usize].held = false;
            pool.settle(slot_index, self.policy.key(unit as usize));
        }
    }

    /// Gives `unit` a slot: a free one, or that of the coldest idle unit. `false` if there is none.
    fn place(&mut self, layer: u32, unit: usize, claim: Claim) -> bool {
        let n_experts = self.spec.n_experts;
        let n_layers = index_u32(self.spec.pool_of_layer.len());
        // Layers from this one's turn until that one's; what has just had its turn is farthest.
        let is_far = |unit: u32| {
            let turns = (unit / n_experts + n_layers - layer - 1) % n_layers + 1;
            2 * turns > n_layers
        };
        let pool = &mut self.pools[self.spec.pool_of_layer[layer as usize] as usize];
        let taken = if self.scanning {
            pool.take_where(layer, is_far)
        } else {
            let outlook = if claim == Claim::Warmer { &[] } else { self.outlook.as_slice() };
            pool.take(layer, self.own_layer_discount, outlook)
        };
        let Some((slot_index, victim)) = taken else { return false };
        if let Some(victim) = victim {
            let ready = pool.slots[slot_index as usize].ready;
            if let Some(victims) = &mut self.victims {
                let unit = UnitId { layer: victim / n_experts, expert: victim % n_experts };
                victims.push(Victim { unit, slot: SlotId(slot_index), ready });
            }
            self.slot_of_unit[victim as usize] = NO_SLOT;
            self.layers[(victim / self.spec.n_experts) as usize].evictions += 1;
        }
        pool.slots[slot_index as usize] = Slot::held_by(index_u32(unit));
        self.slot_of_unit[unit] = slot_index;
        true
    }

    fn vacate(&mut self, layer: u32, unit: usize) {
        let pool = &mut self.pools[self.spec.pool_of_layer[layer as usize] as usize];
        pool.vacate(self.slot_of_unit[unit]);
        self.slot_of_unit[unit] = NO_SLOT;
    }

    fn release_where(&mut self, is_over: impl Fn(u32) -> bool) {
        let (over, kept): (Vec<u32>, Vec<u32>) =
            std::mem::take(&mut self.in_use).into_iter().partition(|&unit| is_over(unit));
        self.in_use = kept;
        for unit in over {
            self.release_unit(unit);
        }
    }

    fn release_unit(&mut self, unit: u32) {
        let (layer, index) = (unit / self.spec.n_experts, unit as usize);
        let pool = &mut self.pools[self.spec.pool_of_layer[layer as usize] as usize];
        let slot_index = self.slot_of_unit[index];
        let slot = &mut pool.slots[slot_index as usize];
        slot.in_use = false;
        if slot.ready.is_empty() && slot.filling.is_empty() {
            // It was asked for no part at all.
            self.vacate(layer, index);
        } else {
            pool.settle(slot_index, self.policy.key(index));
        }
    }

    fn slot_of(&self, unit: UnitId) -> Option<(u32, &Slot)> {
        let layer = unit.layer as usize;
        let pool = self.pools.get(*self.spec.pool_of_layer.get(layer)? as usize)?;
        if unit.expert >= self.spec.n_experts {
            return None;
        }
        let slot_index = *self.slot_of_unit.get(self.unit_index(unit))?;
        Some((slot_index, pool.slots.get(slot_index as usize)?))
    }

    fn unit_index(&self, unit: UnitId) -> usize {
        let (layers, experts) = (self.spec.pool_of_layer.len(), self.spec.n_experts);
        assert!(
            (unit.layer as usize) < layers && unit.expert < experts,
            "no {unit:?} in a table of {layers} layers of {experts} experts"
        );
        unit.layer as usize * experts as usize + unit.expert as usize
    }

    fn unit_id(&self, unit: u32) -> UnitId {
        UnitId { layer: unit / self.spec.n_experts, expert: unit % self.spec.n_experts }
    }
}

/// Numbers of units and slots are checked to fit `u32` when a table is made.
fn index_u32(index: usize) -> u32 {
    u32::try_from(index).expect("units and slots are numbered by u32")
}
