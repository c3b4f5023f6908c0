//! What the tiered backend asks of the streamer, in the order in which a graph is computed.

use std::time::Duration;

use hypura_io as io;
use hypura_llama::tiered::{
    MatrixPlace, MatrixUpload, PartCopy, Passed, Residency, ResidencyError, Routing, Uploads,
};
use hypura_tier::{Parts, UnitId};

use super::reads::{Read, Target};
use super::ring::Ring;
use super::{Streamer, bit};

impl Residency for Streamer {
    fn begin(&mut self, matrices: &[u32]) -> Result<(), ResidencyError> {
        self.graphs += 1;
        self.reads.check_files()?;
        if !std::mem::replace(&mut self.clean, false) {
            self.come_to_rest();
        }
        self.release_all();
        if matrices.is_empty() {
            return Ok(());
        }
        let on_host;
        let matrices = match &mut self.device_ring {
            Some(device) => {
                device.set_schedule(matrices);
                on_host = device.read_from_drive(matrices);
                self.give_back_host_ring(u64::MAX);
                on_host.as_slice()
            }
            None => matrices,
        };
        let changed = self.ring.as_mut().is_some_and(|ring| {
            ring.computed();
            ring.set_schedule(matrices)
        });
        if changed {
            self.restart_ring(0);
        }
        self.read_ahead()
    }

    fn routed(&mut self, layer: u32, routing: Routing<'_>) {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(layer, routing);
        }
        let mut is_chosen = vec![false; self.sources.n_experts as usize];
        for id in routing.ids {
            if let Some(is_chosen) = is_chosen.get_mut(id.unsigned_abs() as usize) {
                *is_chosen = true;
            }
        }
        let all = (0..).zip(is_chosen);
        let chosen: Vec<u32> = all.filter_map(|(expert, is)| is.then_some(expert)).collect();
        self.segments.next(self.missing_bytes(layer, &chosen));
        self.judge_guesses(layer, routing, &chosen);
    }

    fn note_routing(&mut self, layer: u32, routing: Routing<'_>) {
        let Some(table) = &mut self.table else { return };
        let experts: Vec<u32> = routing.ids.iter().map(|id| id.unsigned_abs()).collect();
        table.note_routings(layer, &experts, routing.n_used);
        if let Some(device) = &mut self.device {
            device.table.note_routings(layer, &experts, routing.n_used);
        }
    }

    fn capacity(&self, layer: u32) -> usize {
        let pool = self.sources.layers.get(layer as usize).map(|l| l.pool as usize);
        pool.and_then(|p| self.sources.slots.get(p)).map_or(0, |&slots| slots as usize)
    }

    fn is_resident(&self, layer: u32, expert: u32, parts: u8) -> bool {
        let wanted = Parts::from_bits(parts);
        self.table
            .as_ref()
            .and_then(|table| table.lookup(UnitId { layer, expert }))
            .is_some_and(|(_, ready)| ready.contains(wanted))
    }

    fn experts(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: u8,
        slots: &mut Vec<u32>,
    ) -> Result<(), ResidencyError> {
        if parts.count_ones() == 1 {
            self.groups += 1;
        }
        self.experts_in_host(layer, experts, Parts::from_bits(parts), slots)
    }

    fn device_capacity(&self, layer: u32) -> usize {
        self.sources.device_slots.get(layer as usize).map_or(0, |&slots| slots as usize)
    }

    fn device_slots(&self, layer: u32, experts: &[u32], parts: u8, slots: &mut Vec<u32>) -> bool {
        let Some(device) = &self.device else { return false };
        let parts = Parts::from_bits(parts);
        let before = slots.len();
        for &expert in experts {
            match device.table.lookup(UnitId { layer, expert }) {
                Some((slot, ready)) if ready.contains(parts) => slots.push(slot.0),
                _ => {
                    slots.truncate(before);
                    return false;
                }
            }
        }
        true
    }

    fn device_experts(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: u8,
        slots: &mut Vec<u32>,
    ) -> Result<(), ResidencyError> {
        self.want_on_device(layer, experts, parts, slots)
    }

    fn guessed(&mut self, copies: &mut Vec<PartCopy>) {
        self.take_guessed(copies);
    }

    fn host_share(&mut self, layer: u32, experts: &[u32], host: &mut Vec<u32>) {
        self.share_with_host(layer, experts, host);
    }

    fn admit(
        &mut self,
        layer: u32,
        experts: &[u32],
        host_slots: &[u32],
        copies: &mut Vec<PartCopy>,
    ) {
        self.admit_to_device(layer, experts, host_slots, copies);
    }

    fn is_at_rest(&self) -> bool {
        self.clean
    }

    fn device_matrix(
        &mut self,
        index: u32,
        copies: &mut Vec<MatrixUpload>,
    ) -> Result<Option<MatrixPlace>, ResidencyError> {
        self.place_on_device(index, copies)
    }

    fn matrices_copied(&mut self, serial: u64) {
        self.give_back_host_ring(serial);
    }

    fn computed_early(&mut self, is_right: bool) {
        let stats = self.device_stats.get_or_insert_default();
        stats.early += 1;
        stats.early_rightly += u64::from(is_right);
    }

    fn uploads(&mut self, copies: &mut Vec<PartCopy>) -> Result<Uploads, ResidencyError> {
        self.next_uploads(copies)
    }

    fn uploaded(&mut self) {
        self.host_in_use = false;
        if let Some(table) = &mut self.table {
            table.release_all();
        }
        self.settle_places();
    }

    fn reuses_host_slots(&self) -> bool {
        self.reuses_host_slots
    }

    fn expected(&self, layer: u32, n_choices: usize, n: usize, experts: &mut Vec<u32>) {
        self.expected_to_pass(layer, n_choices, n, experts);
    }

    fn pass(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: u8,
        first_slot: u32,
    ) -> Result<(), ResidencyError> {
        self.pass_through_device(layer, experts, Parts::from_bits(parts), first_slot)
    }

    fn passed(&mut self, counts: Passed) {
        self.count_passed(counts);
    }

    fn keep_passed(
        &mut self,
        layer: u32,
        experts: &[u32],
        first_slot: u32,
        copies: &mut Vec<PartCopy>,
    ) {
        self.keep_what_passed(layer, experts, first_slot, copies);
    }

    fn is_pending(&mut self, layer: u32, parts: u8) -> bool {
        self.reads.poll(&mut self.arrived);
        self.book();
        !self.failed.is_empty() || self.is_awaited(layer, parts)
    }

    fn wait(&mut self, layer: u32, parts: u8) -> Result<(), ResidencyError> {
        while self.is_pending(layer, parts) {
            self.wait_for_one(layer, parts)?;
        }
        Ok(())
    }

    fn wait_for_one(&mut self, layer: u32, parts: u8) -> Result<(), ResidencyError> {
        // What arrived while reads were submitted may not be booked yet.
        self.book();
        self.check_failed()?;
        if !self.is_awaited(layer, parts) {
            return Ok(());
        }
        self.reads.wait(&mut self.arrived)?;
        self.book();
        self.check_failed()?;
        // A file that was changed under us must not decide what is said next.
        self.reads.check_files()
    }

    fn look_ahead(&self, n_tokens: usize) -> u32 {
        let is_worth = self.table.is_some() && self.is_worth_looking();
        if is_worth { self.ahead.layers(n_tokens) } else { 0 }
    }

    fn predicted(&mut self, layer: u32, scores: &[f32], n_used: usize) {
        if let Err(error) = self.guess(layer, scores, n_used) {
            // The read is done again, and fails again, when its bytes are needed.
            tracing::debug!("reading ahead: {error}");
        }
    }

    fn matrix(&mut self, index: u32) -> Result<usize, ResidencyError> {
        self.matrices += 1;
        let mut restarted = false;
        loop {
            self.read_ahead()?;
            let Some(ring) = &self.ring else {
                return Err(ResidencyError::Internal("there is no ring".into()));
            };
            let Some(entry) = ring.front().filter(|entry| entry.index == index) else {
                // The graph is another one than was read ahead for: go on where it is.
                if restarted {
                    return Err(ResidencyError::Internal(format!("matrix {index} has no room")));
                }
                restarted = true;
                self.restart_here(index)?;
                continue;
            };
            if let Some(reason) = self.ring.as_ref().and_then(|ring| ring.failure(entry.serial)) {
                // The drive gets a second chance: the first read may have been long ago.
                if restarted {
                    return Err(ResidencyError::Read(reason));
                }
                restarted = true;
                self.restart_here(index)?;
                continue;
            }
            if entry.ready {
                break;
            }
            self.wait_for(|t| *t == Target::Matrix { serial: entry.serial })?;
        }
        let offset = self.ring.as_mut().and_then(Ring::use_front);
        offset.ok_or_else(|| ResidencyError::Internal(format!("matrix {index} is lost")))
    }

    fn rows(&mut self, rows: &[i32]) -> Result<(), ResidencyError> {
        let Some(source) = self.sources.rows else {
            return Err(ResidencyError::Internal("no table is streamed by rows".into()));
        };
        for (i, &row) in rows.iter().enumerate() {
            let row = u64::from(row.unsigned_abs());
            let buffer = self.memory.lend_row(i).filter(|_| row < source.n_rows);
            let Some(buffer) = buffer else {
                return Err(ResidencyError::Internal(format!("there is no row {row}")));
            };
            let read = Read {
                file: source.file,
                offset: source.offset + row * self.row_bytes as u64,
                len: self.row_bytes,
                buffer,
                buffer_offset: 0,
                slack: io::Slack::NONE,
                priority: io::Priority::Demand,
            };
            self.submit(read, Target::Row { i })?;
        }
        self.wait_for(|target| matches!(target, Target::Row { .. }))
    }

    fn computed(&mut self) {
        self.release_all();
        self.settle_places();
        if let (Some(ring), None) = (&mut self.ring, &self.device_ring) {
            ring.computed();
        }
        if let Err(error) = self.read_ahead().and_then(|()| self.warm()) {
            // The read is done again, and fails again, when its bytes are needed.
            tracing::debug!("reading ahead: {error}");
        }
        // Beside a GPU every microsecond between its layers counts.
        if self.device_stats.is_none() {
            self.publish();
        }
    }

    fn end(&mut self) -> Result<(), ResidencyError> {
        self.clean = true;
        self.segments.next(0);
        self.publish_segments();
        if self.device_stats.is_some() {
            self.publish();
        }
        // A file that was changed under us must not have decided what was computed.
        self.reads.check_files()
    }

    fn compute_time(&mut self, elapsed: Duration) {
        self.compute += elapsed;
        self.waited_for_device();
        self.segments.computed(elapsed);
    }
}

impl Streamer {
    /// Slots may be given away again, in all tiers.
    fn release_all(&mut self) {
        self.host_in_use = false;
        let device = self.device.as_mut().map(|device| &mut device.table);
        for table in self.table.as_mut().into_iter().chain(device) {
            table.release_all();
        }
    }

    /// Begins to make `parts` of each of `experts` resident in host memory and appends their slots.
    pub(super) fn experts_in_host(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: Parts,
        slots: &mut Vec<u32>,
    ) -> Result<(), ResidencyError> {
        if self.table.is_none() {
            return Err(ResidencyError::Internal("there is no slot table".into()));
        }
        self.grants.clear();
        self.settle_cancelled(layer, experts)?;
        let Some(table) = &mut self.table else { return Ok(()) };
        if table.acquire(layer, experts, parts, &mut self.grants).is_err() {
            // Slots that are still filled for an interrupted run, for a guess, or from the history.
            self.stop_warming();
            self.reads.drain(&mut self.arrived);
            self.book();
            self.check_failed()?;
            let Some(table) = &mut self.table else { return Ok(()) };
            table
                .acquire(layer, experts, parts, &mut self.grants)
                .map_err(|error| ResidencyError::Internal(error.to_string()))?;
        }
        slots.extend(self.grants.iter().map(|grant| grant.slot.0));
        let Some(source) = self.sources.layers.get(layer as usize).cloned() else {
            return Err(ResidencyError::Internal(format!("there is no expert layer {layer}")));
        };
        let grants = std::mem::take(&mut self.grants);
        for grant in &grants {
            let unit = UnitId { layer, expert: grant.expert };
            for p in source.parts.iter().filter(|p| grant.pending.contains(bit(p.part))) {
                let target = Target::Part { layer, expert: grant.expert, part: p.part };
                match self.pending.get(&target) {
                    Some(&tag) => self.reads.promote(tag),
                    None => return Err(ResidencyError::Internal("a read has been lost".into())),
                }
            }
            self.ahead.asked_for(unit);
        }
        // All slices of the first parts (gate and up) go out before the last one (down), which is
        // needed last: see PartSource's order.
        for part in &source.parts {
            for grant in grants.iter().filter(|grant| grant.fill.contains(bit(part.part))) {
                let unit = UnitId { layer, expert: grant.expert };
                let place = (source.pool, *part);
                self.read_part(unit, place, grant.slot.0, io::Priority::Demand)?;
            }
        }
        self.grants = grants;
        self.book();
        self.check_failed()
    }
}
