//! The tier above host memory: slots in a GPU's own memory.
//!
//! A second slot table says which expert has which slot there. What is missing is asked of the
//! host's table as if the CPU wanted it, and copied up as its bytes arrive.

use std::collections::VecDeque;

use hypura_llama::tiered::{PartCopy, Place, ResidencyError, Uploads};
use hypura_tier::{Claim, Grant, Parts, SlotTable, TableSpec, UnitId, Victim};
use serde::Serialize;

use super::device_ahead::Guessed;
use super::{Streamer, bit};

/// What happened between host memory and a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceStats {
    /// Experts looked up in the GPU's slots.
    pub lookups: u64,
    /// Of these, found there, whole.
    pub hits: u64,
    /// Of those that were not there, found in host memory.
    pub host_hits: u64,
    /// Bytes of weights copied to the GPU.
    pub copied_bytes: u64,
    /// Experts that the CPU computed where they lay.
    pub computed_in_place: u64,
    /// Experts that were copied for prompts before their router had chosen.
    pub expected: u64,
    /// Of these, chosen.
    pub expected_rightly: u64,
    /// Experts that passed through the GPU for a prompt and then got a slot there, warmer as they were
    /// than what was in it.
    pub kept: u64,
    /// Layers whose experts the GPU looked up and computed before the host knew the router's choice.
    pub early: u64,
    /// Of these, those whose experts were all there, and none still on its way.
    pub early_rightly: u64,
}

impl DeviceStats {
    pub(crate) fn plus(&self, other: &DeviceStats) -> DeviceStats {
        DeviceStats {
            lookups: self.lookups + other.lookups,
            hits: self.hits + other.hits,
            host_hits: self.host_hits + other.host_hits,
            copied_bytes: self.copied_bytes + other.copied_bytes,
            computed_in_place: self.computed_in_place + other.computed_in_place,
            expected: self.expected + other.expected,
            expected_rightly: self.expected_rightly + other.expected_rightly,
            kept: self.kept + other.kept,
            early: self.early + other.early,
            early_rightly: self.early_rightly + other.early_rightly,
        }
    }

    pub(super) fn since(&self, earlier: &DeviceStats) -> DeviceStats {
        DeviceStats {
            lookups: self.lookups - earlier.lookups,
            hits: self.hits - earlier.hits,
            host_hits: self.host_hits - earlier.host_hits,
            copied_bytes: self.copied_bytes - earlier.copied_bytes,
            computed_in_place: self.computed_in_place - earlier.computed_in_place,
            expected: self.expected - earlier.expected,
            expected_rightly: self.expected_rightly - earlier.expected_rightly,
            kept: self.kept - earlier.kept,
            early: self.early - earlier.early,
            early_rightly: self.early_rightly - earlier.early_rightly,
        }
    }
}

/// Looking ahead takes about so many seconds of the compute stream for a layer: three small kernels.
const LOOKING_S: f64 = 15e-6;
/// Layers over which missing bytes are averaged.
const MISSING_WINDOW: f64 = 32.0;

/// The slots of a GPU, and what is on its way there.
pub(super) struct Device {
    pub(super) table: SlotTable,
    /// Granted, and not yet asked of the host.
    pub(super) wanted: VecDeque<Wanted>,
    /// Asked of the host: one entry per part.
    coming: Vec<PartCopy>,
    /// Copies to host memory that are still to be made.
    pub(super) down: Vec<PartCopy>,
    /// Copies by a guess that are still to be made, and guesses that are to be judged.
    pub(super) guessed: Vec<PartCopy>,
    pub(super) guesses: Vec<Guessed>,
    /// Bytes that a layer lacked lately, on average.
    missing_bytes: f64,
    /// Units whose copies are under way, or about to be: they change places once those are done.
    pub(super) rising: Vec<UnitId>,
    sinking: Vec<UnitId>,
    grants: Vec<Grant>,
    victims: Vec<Victim>,
}

/// An expert that is to come.
pub(super) struct Wanted {
    pub(super) unit: UnitId,
    pub(super) to: Place,
    pub(super) parts: Parts,
}

fn unit_of(copy: PartCopy) -> UnitId {
    UnitId { layer: copy.layer, expert: copy.expert }
}

impl Device {
    /// `slots` are those of each layer; `is_exclusive` if host memory can't hold all experts: then it
    /// gives up those that the device has, and takes back what the device gives up.
    pub(super) fn new(
        host: &TableSpec,
        slots: Vec<u32>,
        is_exclusive: bool,
    ) -> Result<Device, String> {
        let n_layers = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let spec = TableSpec {
            pool_of_layer: (0..n_layers).collect(),
            slots_of_pool: slots,
            ..host.clone()
        };
        let mut table = SlotTable::new(spec).map_err(|error| error.to_string())?;
        if is_exclusive {
            table.note_victims();
        }
        Ok(Device {
            table,
            wanted: VecDeque::new(),
            coming: Vec::new(),
            down: Vec::new(),
            guessed: Vec::new(),
            guesses: Vec::new(),
            missing_bytes: 0.0,
            rising: Vec::new(),
            sinking: Vec::new(),
            victims: Vec::new(),
            grants: Vec::new(),
        })
    }

    /// A layer lacked so many bytes that were guessed in time.
    pub(super) fn note_guessed(&mut self, bytes: f64) {
        self.missing_bytes += bytes / MISSING_WINDOW;
    }

    /// After an interruption: what was granted and not copied is not there.
    pub(super) fn come_to_rest(&mut self) {
        let wanted = self.wanted.drain(..).map(|wanted| (wanted.unit, wanted.to));
        let coming = self.coming.drain(..).map(|copy| (unit_of(copy), copy.to));
        let is_own = |(_, to): &(UnitId, Place)| matches!(to, Place::Device(_));
        for (unit, _) in wanted.chain(coming).filter(is_own) {
            self.table.abandon(unit);
        }
        self.down.clear();
        self.guessed.clear();
        self.guesses.clear();
        self.rising.clear();
        // What they held is not copied back any more.
        self.table.take_victims(&mut self.victims);
        self.victims.clear();
        self.table.release_all();
    }
}

impl Streamer {
    /// Whether looking ahead can save more than it takes: where host memory has everything, so that
    /// nothing that is copied from is overwritten, and layers lack something worth the while.
    pub(super) fn is_worth_looking(&self) -> bool {
        let lacks = |device: &Device| device.missing_bytes > LOOKING_S * self.link.bytes_per_s;
        self.reuses_host_slots || self.device.as_ref().is_none_or(lacks)
    }

    /// Nothing is copied any more: what went up leaves host memory, and what went down is there.
    pub(super) fn settle_places(&mut self) {
        let (Some(device), Some(table)) = (&mut self.device, &mut self.table) else { return };
        for unit in device.sinking.drain(..) {
            table.filled(unit, Parts::ALL);
        }
        for unit in device.rising.drain(..) {
            let all = device.table.spec().parts_of_layer.get(unit.layer as usize).copied();
            let is_there = |(_, ready): (_, Parts)| all.is_some_and(|all| ready.contains(all));
            let is_idle = table.lookup(unit).is_some_and(is_there);
            if device.table.lookup(unit).is_some_and(is_there) && is_idle {
                table.abandon(unit);
            }
        }
    }

    /// After an interruption: what was on its way down is lost.
    pub(super) fn forget_places(&mut self) {
        let (Some(device), Some(table)) = (&mut self.device, &mut self.table) else { return };
        for unit in device.sinking.drain(..) {
            table.abandon(unit);
        }
    }

    /// What lost its slot on the device is copied back, if host memory has it not and has colder
    /// ones.
    pub(super) fn take_back(&mut self) {
        let (Some(device), Some(table)) = (&mut self.device, &mut self.table) else { return };
        let mut victims = std::mem::take(&mut device.victims);
        victims.clear();
        device.table.take_victims(&mut victims);
        for &Victim { unit, slot, ready } in &victims {
            let Some(source) = self.sources.layers.get(unit.layer as usize) else { continue };
            let all = source.parts.iter().fold(Parts::EMPTY, |all, p| all | bit(p.part));
            if ready != all || table.lookup(unit).is_some() {
                continue;
            }
            let grant = table.speculate(unit, Parts::ALL, Claim::Warmer);
            let Some(host_slot) = grant.map(|grant| grant.slot.0) else { continue };
            device.sinking.push(unit);
            let UnitId { layer, expert } = unit;
            let (from, to) = (Place::Device(slot.0), Place::Host(host_slot));
            for part in source.parts.iter().map(|source| source.part) {
                device.down.push(PartCopy { layer, expert, part, from, to });
            }
        }
        device.victims = victims;
    }

    pub(super) fn want_on_device(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: u8,
        slots: &mut Vec<u32>,
    ) -> Result<(), ResidencyError> {
        let Some(device) = &mut self.device else {
            return Err(ResidencyError::Internal("there are no slots on the device".into()));
        };
        device.grants.clear();
        let parts = Parts::from_bits(parts);
        device
            .table
            .acquire(layer, experts, parts, &mut device.grants)
            .map_err(|error| ResidencyError::Internal(error.to_string()))?;
        let source = self.sources.layers.get(layer as usize);
        let slice = |part: u8| {
            let found = source.and_then(|s| s.parts.iter().find(|p| p.part == part));
            found.map_or(0.0, |p| p.slice_bytes as f64)
        };
        let missing: f64 = device
            .grants
            .iter()
            .map(|grant| (0..8).filter(|&p| grant.fill.contains(bit(p))).map(slice).sum::<f64>())
            .sum();
        device.missing_bytes += (missing - device.missing_bytes) / MISSING_WINDOW;
        let stats = self.device_stats.get_or_insert_default();
        for grant in &device.grants {
            slots.push(grant.slot.0);
            stats.lookups += 1;
            stats.hits += u64::from(grant.fill.is_empty());
            if !grant.fill.is_empty() {
                device.wanted.push_back(Wanted {
                    unit: UnitId { layer, expert: grant.expert },
                    to: Place::Device(grant.slot.0),
                    parts: grant.fill,
                });
            }
        }
        self.ask_host()?;
        self.take_back();
        Ok(())
    }

    /// Asks the host for as many of the wanted experts as it has slots for; how many those were.
    pub(super) fn ask_host(&mut self) -> Result<usize, ResidencyError> {
        let mut asked = 0;
        loop {
            let (Some(device), Some(table)) = (&mut self.device, &self.table) else { return Ok(0) };
            let Some(wanted) = device.wanted.front() else { return Ok(asked) };
            let UnitId { layer, expert } = wanted.unit;
            let (unit, to, parts) = (wanted.unit, wanted.to, wanted.parts);
            let known = table.lookup(unit);
            // What is there needs no other slot. Guesses may hold some: they are taken back only if
            // nothing else is under way.
            if known.is_none() && table.available(layer) == 0 && !device.coming.is_empty() {
                return Ok(asked);
            }
            if known.is_none() && table.available(layer) == 0 && asked == 0 && self.host_in_use {
                return Ok(0);
            }
            let Some(device) = &mut self.device else { return Ok(0) };
            device.wanted.pop_front();
            self.device_stats.get_or_insert_default().host_hits +=
                u64::from(known.is_some_and(|(_, ready)| ready.contains(parts)));
            let mut host_slots = std::mem::take(&mut self.host_slots);
            host_slots.clear();
            self.experts_in_host(layer, &[expert], parts, &mut host_slots)?;
            let host_slot = host_slots.first().copied().unwrap_or(0);
            self.host_slots = host_slots;
            self.host_in_use = true;
            asked += 1;
            let source = self.sources.layers.get(layer as usize);
            let Some(device) = &mut self.device else { return Ok(0) };
            for part in source.into_iter().flat_map(|source| &source.parts) {
                if parts.contains(bit(part.part)) {
                    let (part, from) = (part.part, Place::Host(host_slot));
                    device.coming.push(PartCopy { layer, expert, part, from, to });
                }
            }
        }
    }

    /// See [`hypura_llama::tiered::Residency::uploads`].
    pub(super) fn next_uploads(
        &mut self,
        copies: &mut Vec<PartCopy>,
    ) -> Result<Uploads, ResidencyError> {
        loop {
            self.reads.poll(&mut self.arrived);
            self.book();
            self.check_failed()?;
            let before = copies.len();
            // Before anything is copied to the slots that they come from.
            if let Some(device) = &mut self.device {
                copies.append(&mut device.down);
            }
            self.take_arrived(copies);
            let Some(device) = &self.device else { return Ok(Uploads::Done) };
            if device.wanted.is_empty() && device.coming.is_empty() {
                return Ok(Uploads::Done);
            }
            if copies.len() > before {
                return Ok(Uploads::More);
            }
            if device.coming.is_empty() && self.ask_host()? == 0 {
                return Ok(Uploads::Full);
            }
            let Some(device) = &self.device else { return Ok(Uploads::Done) };
            let Some(&first) = device.coming.first() else { continue };
            let (unit, part) = (unit_of(first), bit(first.part));
            let is_there = |table: &SlotTable| {
                table.lookup(unit).is_some_and(|(_, ready)| ready.contains(part))
            };
            if self.table.as_ref().is_some_and(is_there) {
                continue;
            }
            self.reads.wait(&mut self.arrived)?;
            self.book();
            self.check_failed()?;
            self.reads.check_files()?;
        }
    }

    /// Moves what is in host memory by now from `coming` to `copies`.
    fn take_arrived(&mut self, copies: &mut Vec<PartCopy>) {
        let (Some(device), Some(table)) = (&mut self.device, &self.table) else { return };
        let mut bytes = 0;
        let mut i = 0;
        while let Some(&copy) = device.coming.get(i) {
            let unit = unit_of(copy);
            let ready = table.lookup(unit).map_or(Parts::EMPTY, |(_, ready)| ready);
            if !ready.contains(bit(copy.part)) {
                i += 1;
                continue;
            }
            device.coming.remove(i);
            let source = self.sources.layers.get(copy.layer as usize);
            let part = source.and_then(|s| s.parts.iter().find(|p| p.part == copy.part));
            bytes += part.map_or(0, |part| part.slice_bytes as u64);
            copies.push(copy);
            if matches!(copy.to, Place::Transit(_)) {
                continue;
            }
            // It is there for everything that is launched after the copy.
            device.table.filled(unit, bit(copy.part));
            if self.reuses_host_slots && device.rising.last() != Some(&unit) {
                device.rising.push(unit);
            }
        }
        self.device_stats.get_or_insert_default().copied_bytes += bytes;
        self.give_to_link(bytes);
    }
}
