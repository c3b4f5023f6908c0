//! A prompt's experts that the device has no slots for, and those of them that get one afterwards.

use hypura_llama::tiered::{PartCopy, Passed, Place, ResidencyError};
use hypura_tier::{Claim, Parts, UnitId};

use super::device::Wanted;
use super::{Streamer, bit};

/// A micro-batch needs most experts of a layer if it makes so many times as many choices: with four
/// times, an expert that is chosen as often as the average is left out by one in 55 (`exp(-4)`).
const CHOICES_PER_EXPERT: usize = 4;
/// Of those that are missing, the coldest are not expected: a half with so many choices, fewer with
/// more. On the demo model nine in ten of those that are expected are chosen by prompts of 32 tokens,
/// and all of them from 128 on.
const UNEXPECTED_HALVES: usize = CHOICES_PER_EXPERT / 2;

impl Streamer {
    /// See [`hypura_llama::tiered::Residency::expected`].
    pub(super) fn expected_to_pass(
        &self,
        layer: u32,
        n_choices: usize,
        n: usize,
        experts: &mut Vec<u32>,
    ) {
        let (Some(device), Some(table)) = (&self.device, &self.table) else { return };
        let n_experts = self.sources.n_experts;
        let n_all = n_experts as usize;
        // What is copied from must not be overwritten meanwhile, and reads would be waited for.
        if self.reuses_host_slots || n_choices < CHOICES_PER_EXPERT * n_all {
            return;
        }
        let all = device.table.spec().parts_of_layer.get(layer as usize).copied();
        let unit = |expert: u32| UnitId { layer, expert };
        let is_there =
            |ready: Option<Parts>| ready.zip(all).is_some_and(|(r, all)| r.contains(all));
        let lies_here = |&expert: &u32| {
            device.table.lookup(unit(expert)).is_none()
                && is_there(table.lookup(unit(expert)).map(|(_, ready)| ready))
        };
        let mut missing: Vec<u32> = (0..n_experts).filter(lies_here).collect();
        let key = |&expert: &u32| device.table.key(unit(expert));
        missing.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.cmp(b)));
        let unexpected = missing.len() * UNEXPECTED_HALVES * n_all;
        let unexpected = (unexpected + n_choices / 2) / n_choices;
        missing.truncate(n.min(missing.len().saturating_sub(unexpected)));
        experts.append(&mut missing);
    }

    /// See [`hypura_llama::tiered::Residency::pass`].
    pub(super) fn pass_through_device(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: Parts,
        first_slot: u32,
    ) -> Result<(), ResidencyError> {
        let Some(device) = &mut self.device else {
            return Err(ResidencyError::Internal("there are no slots on the device".into()));
        };
        let all = device.table.spec().parts_of_layer.get(layer as usize).copied();
        let parts = parts & all.unwrap_or(Parts::EMPTY);
        for (slot, &expert) in (first_slot..).zip(experts) {
            let (unit, to) = (UnitId { layer, expert }, Place::Transit(slot));
            device.wanted.push_back(Wanted { unit, to, parts });
        }
        self.ask_host().map(|_| ())
    }

    /// See [`hypura_llama::tiered::Residency::passed`].
    pub(super) fn count_passed(&mut self, counts: Passed) {
        let stats = self.device_stats.get_or_insert_default();
        stats.lookups += (counts.found + counts.missing) as u64;
        stats.hits += counts.found as u64;
        stats.expected += counts.expected as u64;
        stats.expected_rightly += counts.expected_rightly as u64;
        self.groups += counts.groups as u64;
    }

    /// See [`hypura_llama::tiered::Residency::keep_passed`].
    pub(super) fn keep_what_passed(
        &mut self,
        layer: u32,
        experts: &[u32],
        first_slot: u32,
        copies: &mut Vec<PartCopy>,
    ) {
        for (slot, &expert) in (first_slot..).zip(experts) {
            let bytes = self.promote(UnitId { layer, expert }, Place::Transit(slot), copies);
            self.device_stats.get_or_insert_default().kept += u64::from(bytes > 0);
        }
    }

    /// Copies to a slot on the device for an expert that lies at `from`, if it is warmer than what it
    /// takes the slot of; its bytes.
    pub(super) fn promote(&mut self, unit: UnitId, from: Place, copies: &mut Vec<PartCopy>) -> u64 {
        let Some(device) = &mut self.device else { return 0 };
        let Some(grant) = device.table.speculate(unit, Parts::ALL, Claim::Warmer) else { return 0 };
        self.take_back();
        let Some(device) = &mut self.device else { return 0 };
        copies.append(&mut device.down);
        if self.reuses_host_slots {
            device.rising.push(unit);
        }
        let (UnitId { layer, expert }, to) = (unit, Place::Device(grant.slot.0));
        let source = self.sources.layers.get(layer as usize);
        let mut bytes = 0;
        for source in source.into_iter().flat_map(|source| &source.parts) {
            let part = source.part;
            if grant.fill.contains(bit(part)) {
                copies.push(PartCopy { layer, expert, part, from, to });
                device.table.filled(unit, bit(part));
                bytes += source.slice_bytes as u64;
            }
        }
        bytes
    }
}
