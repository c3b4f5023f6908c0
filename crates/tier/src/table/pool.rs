//! One pool of slots, with its free slots and the order in which idle ones give way.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Parts, SlotId, SlotState};

/// One slot. It is in its pool's index exactly if it is ready, idle and not held, and among the
/// free ones exactly if it holds no unit.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) unit: Option<u32>,
    pub(super) ready: Parts,
    pub(super) filling: Parts,
    pub(super) in_use: bool,
    /// Expected soon: not in the index, though ready and idle.
    pub(super) held: bool,
    /// Brought in by read-ahead and not asked for yet.
    pub(super) speculated: bool,
    /// Its key in the index, while it is there.
    pub(super) indexed: Option<OrderedKey>,
}

impl Slot {
    pub(super) fn held_by(unit: u32) -> Self {
        Self { unit: Some(unit), ..Self::default() }
    }

    pub(super) fn state(&self) -> SlotState {
        if self.unit.is_none() {
            SlotState::Free
        } else if self.in_use {
            SlotState::InUse
        } else if !self.filling.is_empty() {
            SlotState::Filling
        } else {
            SlotState::Ready
        }
    }
}

/// A policy's key as an integer of the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OrderedKey(u64);

impl OrderedKey {
    const SIGN: u64 = 1 << 63;

    /// The total order of IEEE 754 as that of unsigned integers: negative numbers have all bits
    /// flipped, others only the sign.
    fn new(key: f64) -> Self {
        let bits = key.to_bits();
        Self(if bits & Self::SIGN == 0 { bits | Self::SIGN } else { !bits })
    }

    pub(super) fn get(self) -> f64 {
        let bits = if self.0 & Self::SIGN == 0 { !self.0 } else { self.0 & !Self::SIGN };
        f64::from_bits(bits)
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) slots: Vec<Slot>,
    /// Free slots; the last one is given first.
    pub(super) free: Vec<u32>,
    /// Ready and idle slots as (key, unit, slot): the first one gives way first.
    pub(super) idle: BTreeSet<IdleSlot>,
    /// The same, by layer.
    idle_of_layer: BTreeMap<u32, BTreeSet<IdleSlot>>,
    n_experts: u32,
}

type IdleSlot = (OrderedKey, u32, u32);

/// Among so many of the coldest units it counts what is expected of them.
const OUTLOOK_AMONG: usize = 8;

impl Pool {
    pub(super) fn new(n_slots: u32, n_experts: u32) -> Self {
        Self {
            slots: vec![Slot::default(); n_slots as usize],
            free: (0..n_slots).rev().collect(),
            idle: BTreeSet::new(),
            idle_of_layer: BTreeMap::new(),
            n_experts: n_experts.max(1),
        }
    }

    /// Slots that can be had: free, or ready and idle.
    pub(super) fn n_available(&self) -> u32 {
        super::index_u32(self.free.len() + self.idle.len())
    }

    /// The key of the unit that would give way next.
    pub(super) fn coldest_key(&self) -> Option<f64> {
        self.idle.first().map(|&(key, _, _)| key.get())
    }

    /// Takes a free slot for a unit of `layer`, or else the coldest idle one with the unit that
    /// loses it. Idle units of the same layer count as colder by `discount`; among the coldest,
    /// `outlook` is added, by unit, if it is not empty.
    pub(super) fn take(
        &mut self,
        layer: u32,
        discount: f64,
        outlook: &[f64],
    ) -> Option<(u32, Option<u32>)> {
        if let Some(slot) = self.free.pop() {
            return Some((slot, None));
        }
        let n = if outlook.is_empty() { 1 } else { OUTLOOK_AMONG };
        let own = self.idle_of_layer.get(&layer).into_iter().flatten().take(n);
        let coldest = self.idle.iter().take(n).chain(own);
        let temperature = |&(key, unit, _): &IdleSlot| {
            let expected = outlook.get(unit as usize).copied().unwrap_or(0.0);
            let is_own = unit / self.n_experts == layer;
            key.get() + expected - if is_own { discount } else { 0.0 }
        };
        let by_temperature = |a: &&IdleSlot, b: &&IdleSlot| {
            temperature(a).total_cmp(&temperature(b)).then(a.1.cmp(&b.1))
        };
        let victim = *coldest.min_by(by_temperature)?;
        Some(self.evict(victim))
    }

    /// As [`Pool::take`], but passes over units for which `may_go` is false as long as there are
    /// others.
    pub(super) fn take_where(
        &mut self,
        layer: u32,
        may_go: impl Fn(u32) -> bool,
    ) -> Option<(u32, Option<u32>)> {
        if self.free.is_empty()
            && let Some(&entry) = self.idle.iter().find(|(_, unit, _)| may_go(*unit))
        {
            return Some(self.evict(entry));
        }
        self.take(layer, 0.0, &[])
    }

    fn evict(&mut self, entry: IdleSlot) -> (u32, Option<u32>) {
        let (_, unit, slot) = entry;
        self.leave_index(slot);
        (slot, Some(unit))
    }

    /// Puts a slot into the index if it has become ready and idle.
    pub(super) fn settle(&mut self, slot_index: u32, key: f64) {
        let slot = &mut self.slots[slot_index as usize];
        if slot.held {
            return;
        }
        if let (SlotState::Ready, Some(unit), None) = (slot.state(), slot.unit, slot.indexed) {
            let key = OrderedKey::new(key);
            slot.indexed = Some(key);
            self.idle.insert((key, unit, slot_index));
            let of_layer = self.idle_of_layer.entry(unit / self.n_experts).or_default();
            of_layer.insert((key, unit, slot_index));
        }
    }

    /// Takes a slot out of the index, if it is there.
    pub(super) fn leave_index(&mut self, slot_index: u32) {
        let slot = &mut self.slots[slot_index as usize];
        if let (Some(key), Some(unit)) = (slot.indexed.take(), slot.unit) {
            self.idle.remove(&(key, unit, slot_index));
            if let Some(of_layer) = self.idle_of_layer.get_mut(&(unit / self.n_experts)) {
                of_layer.remove(&(key, unit, slot_index));
            }
        }
    }

    /// Its unit's key has changed.
    pub(super) fn rekey(&mut self, slot_index: u32, key: f64) {
        if self.slots[slot_index as usize].indexed.is_some() {
            self.leave_index(slot_index);
            self.settle(slot_index, key);
        }
    }

    /// Makes a slot free, whatever it was doing.
    pub(super) fn vacate(&mut self, slot_index: u32) {
        self.leave_index(slot_index);
        self.slots[slot_index as usize] = Slot::default();
        self.free.push(slot_index);
    }

    /// Grows or shrinks to `n_slots`; returns the units that lost their slot, or the first slot
    /// that can't go now.
    pub(super) fn resize(&mut self, n_slots: u32) -> Result<Vec<u32>, SlotId> {
        let old = super::index_u32(self.slots.len());
        let is_busy = |&slot: &u32| {
            matches!(self.slots[slot as usize].state(), SlotState::InUse | SlotState::Filling)
        };
        if let Some(busy) = (n_slots..old).find(is_busy) {
            return Err(SlotId(busy));
        }
        let mut leaving = Vec::new();
        for slot in n_slots..old {
            self.leave_index(slot);
            leaving.extend(self.slots[slot as usize].unit);
        }
        self.slots.resize(n_slots as usize, Slot::default());
        self.free.retain(|&slot| slot < n_slots);
        self.free.extend((old..n_slots).rev());
        Ok(leaving)
    }
}
