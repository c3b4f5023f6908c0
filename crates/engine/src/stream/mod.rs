//! Streaming: who makes weights resident while llama.cpp computes.
//!
//! [`Streamer`] is the [`Residency`] of the tiered backend. It joins three things that know
//! nothing of each other: the slot table (which expert may be where), the read engine (how bytes
//! move) and the memory of the compute device (where they go).

mod reads;
mod ring;

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hypura_io as io;
use hypura_llama::tiered::{Residency, ResidencyError, Routing, StreamMemory};
use hypura_tier::{Parts, SlotTable, TableSpec, UnitId};
use serde::Serialize;

use reads::{Arrival, Read, Reads, Target};
pub(crate) use ring::MatrixSource;
use ring::{BLOCK, Ring};

use crate::trace::Recorder;

/// Where the parts of a layer's experts lie.
#[derive(Debug, Clone)]
pub(crate) struct ExpertLayer {
    pub(crate) pool: u32,
    pub(crate) parts: Vec<PartSource>,
}

/// Where one part of a layer's experts lies: slices of `slice_bytes`, one per expert.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartSource {
    pub(crate) part: u8,
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) slice_bytes: usize,
}

/// Where the rows of the input embedding lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowSource {
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) n_rows: u64,
}

/// All that is streamed, and from where.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) layers: Vec<ExpertLayer>,
    pub(crate) n_experts: u32,
    pub(crate) slots: Vec<u32>,
    pub(crate) matrices: Vec<MatrixSource>,
    pub(crate) rows: Option<RowSource>,
}

/// What streaming did since it began, or in a part of a run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[non_exhaustive]
pub struct StreamStats {
    /// Bytes of weights asked from the drive.
    pub read_bytes: u64,
    /// Time that the computation waited for reads.
    #[serde(skip)]
    pub read_wait: Duration,
    /// Time that the device computed.
    #[serde(skip)]
    pub compute: Duration,
    /// Experts looked up.
    pub unit_lookups: u64,
    /// Of these, found resident.
    pub unit_hits: u64,
    /// Experts that lost their slot to another one.
    pub evictions: u64,
    /// Whole matrices used from the ring.
    pub matrices: u64,
    /// Groups of expert matmuls that had to be done in passes.
    pub passes: u64,
    /// Micro-batches computed.
    pub graphs: u64,
}

impl StreamStats {
    /// What came after `earlier`.
    pub(crate) fn since(&self, earlier: &StreamStats) -> StreamStats {
        StreamStats {
            read_bytes: self.read_bytes - earlier.read_bytes,
            read_wait: self.read_wait - earlier.read_wait,
            compute: self.compute - earlier.compute,
            unit_lookups: self.unit_lookups - earlier.unit_lookups,
            unit_hits: self.unit_hits - earlier.unit_hits,
            evictions: self.evictions - earlier.evictions,
            matrices: self.matrices - earlier.matrices,
            passes: self.passes - earlier.passes,
            graphs: self.graphs - earlier.graphs,
        }
    }
}

/// Numbers that others read while the streamer works.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    stats: Mutex<StreamStats>,
}

impl Shared {
    pub(crate) fn stats(&self) -> StreamStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(crate) struct Streamer {
    sources: Sources,
    memory: Arc<StreamMemory>,
    table: Option<SlotTable>,
    ring: Option<Ring>,
    row_bytes: usize,
    reads: Reads,
    /// Reads of expert parts that are under way, and why some failed.
    pending: HashSet<Target>,
    failed: Vec<(Target, String)>,
    /// Whether the last micro-batch was computed to its end.
    clean: bool,
    arrived: Vec<Arrival>,
    grants: Vec<hypura_tier::Grant>,
    recorder: Option<Recorder>,
    compute: Duration,
    matrices: u64,
    groups: u64,
    graphs: u64,
    shared: Arc<Shared>,
}

impl Streamer {
    pub(crate) fn new(
        sources: Sources,
        memory: Arc<StreamMemory>,
        engine: Box<dyn io::ReadEngine>,
        files: Vec<Arc<io::File>>,
        recorder: Option<Recorder>,
    ) -> Result<Streamer, String> {
        let table = if sources.layers.is_empty() {
            None
        } else {
            let spec = TableSpec {
                n_experts: sources.n_experts,
                pool_of_layer: sources.layers.iter().map(|l| l.pool).collect(),
                slots_of_pool: sources.slots.clone(),
                parts_of_layer: sources
                    .layers
                    .iter()
                    .map(|l| l.parts.iter().fold(Parts::EMPTY, |all, p| all | bit(p.part)))
                    .collect(),
            };
            Some(SlotTable::new(spec).map_err(|error| error.to_string())?)
        };
        let ring = (!sources.matrices.is_empty())
            .then(|| memory.ring_shape(BLOCK))
            .flatten()
            .map(|(len, base)| Ring::new(sources.matrices.clone(), len, base));
        let row_bytes = memory.row_shape().map_or(0, |(bytes, _)| bytes);
        Ok(Streamer {
            sources,
            memory,
            table,
            ring,
            row_bytes,
            reads: Reads::new(engine, files),
            pending: HashSet::new(),
            failed: Vec::new(),
            clean: true,
            arrived: Vec::new(),
            grants: Vec::new(),
            recorder,
            compute: Duration::ZERO,
            matrices: 0,
            groups: 0,
            graphs: 0,
            shared: Arc::default(),
        })
    }

    /// Where its numbers can be read.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Waits for reads end when this flag is set.
    pub(crate) fn set_abort_flag(&mut self, flag: Arc<AtomicBool>) {
        self.reads.abort = Some(flag);
    }

    /// Books what has arrived.
    fn book(&mut self) {
        for Arrival { target, result } in self.arrived.drain(..) {
            self.pending.remove(&target);
            match (target, result) {
                (Target::Matrix { serial }, Err(error)) => {
                    // Read ahead: it matters when it is needed, if it ever is.
                    if let Some(ring) = &mut self.ring {
                        ring.failed(serial, error);
                    }
                }
                (target, Err(error)) => self.failed.push((target, error)),
                (Target::Part { layer, expert, part }, Ok(())) => {
                    if let Some(table) = &mut self.table {
                        table.filled(UnitId { layer, expert }, bit(part));
                    }
                }
                (Target::Matrix { serial }, Ok(())) => {
                    if let Some(ring) = &mut self.ring {
                        ring.arrived(serial);
                    }
                }
                (Target::Row { .. }, Ok(())) => {}
            }
        }
    }

    /// After a failed read: waits for the others, gives up what was being filled, and says why.
    fn check_failed(&mut self) -> Result<(), ResidencyError> {
        if self.failed.is_empty() {
            return Ok(());
        }
        self.reads.drain(&mut self.arrived);
        self.book();
        Err(ResidencyError::Read(self.abandon_failed().unwrap_or_default()))
    }

    /// Gives up the slots of failed reads, when nothing is under way; the first reason.
    fn abandon_failed(&mut self) -> Option<String> {
        let mut reason = None;
        for (target, error) in std::mem::take(&mut self.failed) {
            if let (Target::Part { layer, expert, .. }, Some(table)) = (target, &mut self.table) {
                table.abandon(UnitId { layer, expert });
            }
            reason.get_or_insert(error);
        }
        reason
    }

    /// After an interruption or an error: what is still under way comes to rest, and what went
    /// wrong with it is of no interest any more.
    fn come_to_rest(&mut self) {
        self.reads.drain(&mut self.arrived);
        self.book();
        if let Some(reason) = self.abandon_failed() {
            tracing::debug!("a read of an interrupted run failed: {reason}");
        }
        if let Some(ring) = &mut self.ring {
            ring.computed();
            ring.clear_queue();
            ring.resume_at(0);
        }
    }

    /// Waits until none of the reads for which `wanted` holds is under way.
    fn wait_for(&mut self, wanted: impl Fn(&Target) -> bool) -> Result<(), ResidencyError> {
        let mut waited = false;
        loop {
            self.reads.poll(&mut self.arrived);
            self.book();
            self.check_failed()?;
            if !self.pending.iter().any(&wanted) {
                break;
            }
            waited = true;
            self.reads.wait(&mut self.arrived)?;
        }
        // A file that was changed under us must not decide what is said next.
        if waited { self.reads.check_files() } else { Ok(()) }
    }

    fn submit(&mut self, read: Read, target: Target) -> Result<(), ResidencyError> {
        self.pending.insert(target);
        self.reads.submit(read, target, &mut self.arrived)
    }

    /// Begins to read matrices ahead, as many as the ring has room for.
    fn read_ahead(&mut self) -> Result<(), ResidencyError> {
        loop {
            let Some(ring) = &mut self.ring else { return Ok(()) };
            let Some(entry) = ring.place_next() else { return Ok(()) };
            let Some(source) = ring.source(entry.index) else { return Ok(()) };
            let Some(buffer) = self.memory.lend_ring(entry.start, entry.span) else {
                ring.undo_place();
                return Ok(());
            };
            let read = Read {
                file: source.file,
                offset: source.offset,
                len: source.bytes,
                buffer,
                buffer_offset: entry.head,
                slack: io::Slack { head: entry.head, tail: entry.span - entry.head - source.bytes },
                priority: io::Priority::ReadAhead,
            };
            self.submit(read, Target::Matrix { serial: entry.serial })?;
        }
    }

    /// Forgets what was read ahead and goes on with this matrix.
    fn restart_here(&mut self, index: u32) -> Result<(), ResidencyError> {
        let schedule = self.ring.as_ref().map(Ring::schedule).unwrap_or_default();
        let Some(position) = schedule.iter().position(|&i| i == index) else {
            return Err(ResidencyError::Internal(format!("matrix {index} was not announced")));
        };
        self.restart_ring(position);
        Ok(())
    }

    /// Forgets what was read ahead and goes on at `position` of the schedule.
    fn restart_ring(&mut self, position: usize) {
        self.reads.drain(&mut self.arrived);
        self.book();
        if let Some(ring) = &mut self.ring {
            ring.clear_queue();
            ring.resume_at(position);
        }
    }

    fn publish(&self) {
        let tier = self.table.as_ref().map(|table| table.stats().total).unwrap_or_default();
        let stats = StreamStats {
            read_bytes: self.reads.bytes,
            read_wait: self.reads.waited,
            compute: self.compute,
            unit_lookups: tier.lookups,
            unit_hits: tier.hits,
            evictions: tier.evictions,
            matrices: self.matrices,
            passes: self.groups,
            graphs: self.graphs,
        };
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}

impl Residency for Streamer {
    fn begin(&mut self, matrices: &[u32]) -> Result<(), ResidencyError> {
        self.graphs += 1;
        self.reads.check_files()?;
        if !std::mem::replace(&mut self.clean, false) {
            self.come_to_rest();
        }
        if let Some(table) = &mut self.table {
            table.release_all();
        }
        if matrices.is_empty() {
            return Ok(());
        }
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
        let Some(table) = &mut self.table else { return };
        let mut experts = Vec::with_capacity(routing.n_used);
        for token in routing.ids.chunks(routing.n_used.max(1)) {
            experts.clear();
            experts.extend(token.iter().map(|id| id.unsigned_abs()));
            table.note_routing(layer, &experts);
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
        let Some(table) = &mut self.table else {
            return Err(ResidencyError::Internal("there is no slot table".into()));
        };
        self.grants.clear();
        if parts.count_ones() == 1 {
            self.groups += 1;
        }
        let parts = Parts::from_bits(parts);
        if table.acquire(layer, experts, parts, &mut self.grants).is_err() {
            // Slots that reads of an interrupted run still fill.
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
            let lost = source.parts.iter().any(|p| {
                let target = Target::Part { layer, expert: grant.expert, part: p.part };
                grant.pending.contains(bit(p.part)) && !self.pending.contains(&target)
            });
            if lost {
                return Err(ResidencyError::Internal("a read has been lost".into()));
            }
        }
        // All slices of the first parts (gate and up) go out before the last one (down), which is
        // needed last: see PartSource's order.
        for part in &source.parts {
            for grant in &grants {
                if !grant.fill.contains(bit(part.part)) {
                    continue;
                }
                let slot = grant.slot.0;
                let Some(buffer) = self.memory.lend_slot(source.pool, part.part, slot) else {
                    return Err(ResidencyError::Internal(format!("slot {slot} is not free")));
                };
                let read = Read {
                    file: part.file,
                    offset: part.offset + u64::from(grant.expert) * part.slice_bytes as u64,
                    len: part.slice_bytes,
                    buffer,
                    buffer_offset: 0,
                    slack: io::Slack::NONE,
                    priority: io::Priority::Demand,
                };
                let target = Target::Part { layer, expert: grant.expert, part: part.part };
                self.submit(read, target)?;
            }
        }
        self.grants = grants;
        self.book();
        self.check_failed()
    }

    fn is_pending(&mut self, layer: u32, parts: u8) -> bool {
        self.reads.poll(&mut self.arrived);
        self.book();
        !self.failed.is_empty() || self.pending.iter().any(|t| is_part(t, layer, parts))
    }

    fn wait(&mut self, layer: u32, parts: u8) -> Result<(), ResidencyError> {
        self.wait_for(|target| is_part(target, layer, parts))
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
        if let Some(table) = &mut self.table {
            table.release_all();
        }
        if let Some(ring) = &mut self.ring {
            ring.computed();
        }
        if let Err(error) = self.read_ahead() {
            // The read is done again, and fails again, when its bytes are needed.
            tracing::debug!("reading ahead: {error}");
        }
        self.publish();
    }

    fn end(&mut self) -> Result<(), ResidencyError> {
        self.clean = true;
        // A file that was changed under us must not have decided what was computed.
        self.reads.check_files()
    }

    fn compute_time(&mut self, elapsed: Duration) {
        self.compute += elapsed;
    }
}

/// The set of one part, by its number.
fn bit(part: u8) -> Parts {
    Parts::from_bits(1 << part)
}

fn is_part(target: &Target, of: u32, parts: u8) -> bool {
    matches!(target, Target::Part { layer, part, .. } if *layer == of && parts & (1 << part) != 0)
}
