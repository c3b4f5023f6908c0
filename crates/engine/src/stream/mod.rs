//! Streaming: who makes weights resident while llama.cpp computes.
//!
//! [`Streamer`] is the [`Residency`] of the tiered backend. It joins three things that know
//! nothing of each other: the slot table (which expert may be where), the read engine (how bytes
//! move) and the memory of the compute device (where they go).

mod ahead;
mod assist;
mod device;
mod device_ahead;
mod device_ring;
mod passing;
mod reads;
mod residency;
mod ring;
mod segments;
mod stats;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use hypura_io as io;
use hypura_llama::tiered::{ResidencyError, StreamMemory};
use hypura_tier::{
    EarlyRouter, Parts, SlotState, SlotTable, TableSpec, TraceShape, UnitId, half_life_tokens,
};

use ahead::Ahead;
pub use ahead::AheadStats;
pub(crate) use assist::AssistCost;
use device::Device;
pub use device::DeviceStats;
use device_ahead::Link;
use device_ring::DeviceRing;
use reads::{Arrival, Read, Reads, Target};
pub(crate) use ring::MatrixSource;
use ring::{BLOCK, Ring};
pub use segments::Segment;
use segments::Segments;
pub(crate) use stats::Shared;
pub use stats::StreamStats;

use crate::history::HistoryFile;
use crate::status::ExpertMap;
use crate::trace::Recorder;

/// Where the parts of a layer's experts lie.
#[derive(Debug, Clone)]
pub(crate) struct ExpertLayer {
    pub(crate) pool: u32,
    pub(crate) parts: Vec<PartSource>,
}

/// Where one part of a layer's experts lies: slices of `slice_bytes`, one per expert, each `stride`
/// bytes after the one before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartSource {
    pub(crate) part: u8,
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) slice_bytes: usize,
    pub(crate) stride: u64,
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
    /// Chosen for a token.
    pub(crate) n_used: u32,
    pub(crate) slots: Vec<u32>,
    /// Slots of each layer on a GPU; empty if none computes.
    pub(crate) device_slots: Vec<u32>,
    /// Bytes of the ring there.
    pub(crate) device_ring_bytes: usize,
    /// Whether several GPUs compute, one after the other.
    pub(crate) has_several_devices: bool,
    pub(crate) matrices: Vec<MatrixSource>,
    /// Those of them that stay in host memory when a GPU computes.
    pub(crate) stored: Vec<u32>,
    pub(crate) rows: Option<RowSource>,
}

/// What an earlier run used counts as if so many half-lives had passed since: a unit used now outranks
/// one that was used 16 times then. The subject may be another one.
const HISTORY_AGE: f64 = 4.0;

/// How often people are shown the experts.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Streamer {
    sources: Sources,
    memory: Arc<StreamMemory>,
    table: Option<SlotTable>,
    /// The tier above: a GPU's own memory.
    device: Option<Device>,
    device_ring: Option<DeviceRing>,
    /// Whether and when the CPU computes experts in place.
    assist: Option<AssistCost>,
    link: Link,
    /// What its times count from.
    begun: Instant,
    admission_turn: u64,
    /// `None` where the CPU computes.
    device_stats: Option<DeviceStats>,
    /// Whether slots of host memory were granted since they were given back last.
    host_in_use: bool,
    /// Whether host memory has fewer slots than there are experts.
    reuses_host_slots: bool,
    host_slots: Vec<u32>,
    ring: Option<Ring>,
    row_bytes: usize,
    reads: Reads,
    /// Reads that are under way with their tags, and why some failed.
    pending: HashMap<Target, u64>,
    failed: Vec<(Target, String)>,
    /// Whether the last micro-batch was computed to its end.
    clean: bool,
    arrived: Vec<Arrival>,
    grants: Vec<hypura_tier::Grant>,
    ahead: Ahead,
    segments: Segments,
    history: Option<HistoryFile>,
    recorder: Option<Recorder>,
    compute: Duration,
    matrices: u64,
    groups: u64,
    graphs: u64,
    /// When the experts were shown last.
    shown_at: Option<Instant>,
    shared: Arc<Shared>,
}

impl Streamer {
    pub(crate) fn new(
        sources: Sources,
        memory: Arc<StreamMemory>,
        engine: Box<dyn io::ReadEngine>,
        files: Vec<Arc<io::File>>,
        recorder: Option<Recorder>,
        speculate: bool,
    ) -> Result<Streamer, String> {
        let units = sources.layers.len() * sources.n_experts as usize;
        let n_slots: usize = sources.slots.iter().map(|&slots| slots as usize).sum();
        let reuses_host_slots = n_slots < units || sources.stored.len() < sources.matrices.len();
        let mut device = None;
        let table = if sources.layers.is_empty() {
            None
        } else {
            let spec = TableSpec {
                n_experts: sources.n_experts,
                n_used: sources.n_used,
                pool_of_layer: sources.layers.iter().map(|l| l.pool).collect(),
                slots_of_pool: sources.slots.clone(),
                parts_of_layer: sources
                    .layers
                    .iter()
                    .map(|l| l.parts.iter().fold(Parts::EMPTY, |all, p| all | bit(p.part)))
                    .collect(),
            };
            if !sources.device_slots.is_empty() {
                device = Some(Device::new(&spec, sources.device_slots.clone(), reuses_host_slots)?);
            }
            Some(SlotTable::new(spec).map_err(|error| error.to_string())?)
        };
        let mut ring = (!sources.matrices.is_empty())
            .then(|| memory.ring_shape(BLOCK))
            .flatten()
            .map(|(len, base)| Ring::new(sources.matrices.clone(), len, base));
        if let Some(ring) = &mut ring
            && sources.has_several_devices
        {
            ring.stop_at_end();
        }
        let is_staged = device.is_some() || sources.device_ring_bytes > 0;
        let device_ring = (sources.device_ring_bytes > 0)
            .then(|| DeviceRing::new(&sources, &memory))
            .transpose()?;
        let row_bytes = memory.row_shape().map_or(0, |(bytes, _)| bytes);
        let early = EarlyRouter::new(TraceShape {
            n_layers: u32::try_from(sources.layers.len()).unwrap_or(u32::MAX),
            n_experts: sources.n_experts,
            top_k: sources.n_used.max(1),
        });
        Ok(Streamer {
            sources,
            memory,
            table,
            device,
            device_ring,
            assist: None,
            link: Link::default(),
            begun: Instant::now(),
            admission_turn: 0,
            device_stats: is_staged.then(DeviceStats::default),
            host_in_use: false,
            reuses_host_slots,
            host_slots: Vec::new(),
            ring,
            row_bytes,
            reads: Reads::new(engine, files),
            pending: HashMap::new(),
            failed: Vec::new(),
            clean: true,
            arrived: Vec::new(),
            grants: Vec::new(),
            ahead: Ahead::new(speculate, early),
            segments: Segments::default(),
            history: None,
            recorder,
            compute: Duration::ZERO,
            matrices: 0,
            groups: 0,
            graphs: 0,
            shown_at: None,
            shared: Arc::default(),
        })
    }

    /// Where its numbers can be read.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Starts with the experts that were used most in earlier runs, and keeps what this one uses.
    /// Without it nothing is read but what is needed or guessed: that is what benchmarks count.
    pub(crate) fn set_history(&mut self, file: HistoryFile) {
        if let (Some(table), Some(mut history)) = (&mut self.table, file.read()) {
            let half_life = half_life_tokens(self.sources.n_experts, self.sources.n_used);
            #[allow(clippy::cast_possible_truncation)] // a half-life has an upper bound
            let age = (HISTORY_AGE * half_life) as u64;
            history.now_tokens = history.now_tokens.saturating_add(age);
            if let Some(device) = &mut self.device
                && let Err(error) = device.table.import_history(history.clone())
            {
                tracing::debug!("{error}");
            }
            if let Err(error) = table.import_history(history) {
                tracing::debug!("{error}");
            }
        }
        self.history = Some(file);
        self.plan_warming();
        self.publish();
    }

    /// What is known of the link to the device. An emulated one does everything at once.
    pub(crate) fn set_link(&mut self, bytes_per_s: f64, is_emulated: bool) {
        self.link.bytes_per_s = bytes_per_s;
        self.link.is_emulated = is_emulated;
    }

    /// The CPU computes experts in place where that is sooner than copying them.
    pub(crate) fn set_assist(&mut self, cost: Option<AssistCost>) {
        self.assist = cost;
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
                (Target::Part { layer, expert, .. }, Err(_))
                    if self.ahead.is_guess(UnitId { layer, expert }) =>
                {
                    self.ahead.incomplete(UnitId { layer, expert });
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
                (Target::Row { .. } | Target::Stored { .. }, Ok(())) => {}
            }
        }
        self.drop_guesses();
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
        self.forget_guesses();
        self.forget_places();
        if let Some(device) = &mut self.device {
            device.come_to_rest();
        }
        if let Some(ring) = &mut self.device_ring {
            ring.come_to_rest();
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
            if !self.pending.keys().any(&wanted) {
                break;
            }
            waited = true;
            self.reads.wait(&mut self.arrived)?;
        }
        // A file that was changed under us must not decide what is said next.
        if waited { self.reads.check_files() } else { Ok(()) }
    }

    fn submit(&mut self, read: Read, target: Target) -> Result<(), ResidencyError> {
        let tag = self.reads.submit(read, target, &mut self.arrived)?;
        self.pending.insert(target, tag);
        Ok(())
    }

    /// Begins to read one part of an expert into its slot.
    fn read_part(
        &mut self,
        unit: UnitId,
        (pool, part): (u32, PartSource),
        slot: u32,
        priority: io::Priority,
    ) -> Result<(), ResidencyError> {
        let UnitId { layer, expert } = unit;
        let Some(lent) = self.memory.lend_slot(pool, part.part, slot) else {
            return Err(ResidencyError::Internal(format!("slot {slot} is not free")));
        };
        let read = Read {
            file: part.file,
            offset: part.offset + u64::from(expert) * part.stride,
            len: part.slice_bytes,
            buffer: lent.buffer,
            buffer_offset: lent.head,
            slack: io::Slack { head: lent.head, tail: lent.tail },
            priority,
        };
        self.submit(read, Target::Part { layer, expert, part: part.part })
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

    fn publish(&mut self) {
        self.publish_experts();
        let tier = self.table.as_ref().map(|table| table.stats().total).unwrap_or_default();
        let (read_bytes, drive_busy) = self.reads.totals();
        let stats = StreamStats {
            read_bytes,
            read_wait: self.reads.waited,
            drive_busy,
            compute: self.compute,
            unit_lookups: tier.lookups,
            // What is still being read is no hit yet.
            unit_hits: tier.hits - tier.hits_pending,
            evictions: tier.evictions,
            matrices: self.matrices,
            passes: self.groups,
            graphs: self.graphs,
            ahead: self.ahead.stats,
            device: self.device_stats,
        };
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// Shows which experts are used and where they are, for people: once a second.
    fn publish_experts(&mut self) {
        let Some(table) = &self.table else { return };
        if self.shown_at.is_some_and(|at| at.elapsed() < SHOW_EVERY) {
            return;
        }
        self.shown_at = Some(Instant::now());
        let n_layers = u32::try_from(self.sources.layers.len()).unwrap_or(u32::MAX);
        let device = self.device.as_ref().map(|device| &device.table);
        let rows = (0..n_layers).map(|layer| {
            table
                .heat(layer)
                .map(|h| {
                    let unit = UnitId { layer, expert: h.expert };
                    let is_here = matches!(h.state, SlotState::Ready | SlotState::InUse);
                    (h.routed, is_here || device.is_some_and(|d| d.lookup(unit).is_some()))
                })
                .unzip()
        });
        let (uses, resident) = rows.unzip();
        let map = Arc::new(ExpertMap { uses, resident });
        *self.shared.experts.lock().unwrap_or_else(PoisonError::into_inner) = Some(map);
    }

    /// Hands over what the layers of a micro-batch computed and missed.
    fn publish_segments(&mut self) {
        let segments = self.segments.take();
        let mut shared = self.shared.segments.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = shared.as_mut() {
            kept.extend(segments);
        }
    }

    /// Bytes of the experts that were chosen in `layer` and are not in memory.
    fn missing_bytes(&self, layer: u32, chosen: &[u32]) -> u64 {
        let Some(source) = self.sources.layers.get(layer as usize) else { return 0 };
        let Some(table) = &self.table else { return 0 };
        let missing = chosen.iter().map(|&expert| {
            let ready = table.lookup(UnitId { layer, expert }).map_or(Parts::EMPTY, |(_, r)| r);
            let parts = source.parts.iter().filter(|p| !ready.contains(bit(p.part)));
            parts.map(|p| p.slice_bytes as u64).sum::<u64>()
        });
        missing.sum()
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        if let (Some(file), Some(table)) = (&self.history, &self.table)
            && self.graphs > 0
        {
            file.write(&table.export_history());
        }
    }
}

/// The set of one part, by its number.
fn bit(part: u8) -> Parts {
    Parts::from_bits(1 << part)
}
