//! Matrices on their way to a GPU: from what stays in host memory, or from the ring that is read
//! into.
//!
//! ```text
//!   drive ──> host ring ──┐
//!                         ├──> ring on the device ──> product
//!   host memory (stays) ──┘
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use hypura_io as io;
use hypura_llama::tiered::{MatrixFrom, MatrixPlace, MatrixUpload, ResidencyError, StreamMemory};

use super::reads::{Read, Target};
use super::ring::{BLOCK, MatrixSource, Ring};
use super::{Sources, Streamer};

/// The ring on the device, and where its matrices come from.
pub(super) struct DeviceRing {
    ring: Ring,
    /// Of the matrices that stay: their first byte in the store.
    stored: HashMap<u32, usize>,
    /// Copies from the host's ring that may not be done, by their serial numbers.
    from_host: VecDeque<u64>,
}

impl DeviceRing {
    pub(super) fn new(sources: &Sources, memory: &Arc<StreamMemory>) -> Result<DeviceRing, String> {
        let matrices = (0..).zip(&sources.matrices).map(|(index, _)| {
            let missing = || format!("matrix {index} is not on the device");
            let bytes = memory.device_matrix_bytes(index).ok_or_else(missing)?;
            Ok(MatrixSource { file: 0, offset: 0, bytes })
        });
        let mut ring =
            Ring::new(matrices.collect::<Result<_, String>>()?, sources.device_ring_bytes, 0);
        if sources.has_several_devices {
            ring.stop_at_end();
        }
        let mut at = (BLOCK - memory.store_base(BLOCK)) % BLOCK;
        let mut stored = HashMap::new();
        for &index in &sources.stored {
            let Some(source) = sources.matrices.get(index as usize) else { continue };
            let (head, span) = placed(source);
            stored.insert(index, at + head);
            at += span;
        }
        Ok(DeviceRing { ring, stored, from_host: VecDeque::new() })
    }

    /// After an interruption, when neither stream does anything any more.
    pub(super) fn come_to_rest(&mut self) {
        self.from_host.clear();
        self.ring.computed();
        self.ring.clear_queue();
        self.ring.resume_at(0);
    }

    /// Those of `matrices` that are read into the host's ring.
    pub(super) fn read_from_drive(&self, matrices: &[u32]) -> Vec<u32> {
        let is_read = |index: &u32| !self.stored.contains_key(index);
        matrices.iter().copied().filter(is_read).collect()
    }

    /// A micro-batch uses these matrices in this order.
    pub(super) fn set_schedule(&mut self, matrices: &[u32]) {
        if self.ring.set_schedule(matrices) {
            self.ring.clear_queue();
            self.ring.resume_at(0);
        }
    }
}

impl Sources {
    /// Bytes of host memory for the matrices that stay there.
    pub(crate) fn store_bytes(&self) -> usize {
        let stored = self.stored.iter().filter_map(|&index| self.matrices.get(index as usize));
        let spans: usize = stored.map(|source| placed(source).1).sum();
        if spans == 0 { 0 } else { spans + BLOCK }
    }
}

/// Where in whole blocks a matrix begins, and how many bytes those are.
fn placed(source: &MatrixSource) -> (usize, usize) {
    let head = usize::try_from(source.offset % BLOCK as u64).unwrap_or(0);
    (head, (head + source.bytes).next_multiple_of(BLOCK))
}

impl Streamer {
    /// Reads what stays in host memory; `progress` is told the share and answers whether to go on.
    pub(crate) fn fill_store(
        &mut self,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(), ResidencyError> {
        let Some(ring) = &self.device_ring else { return Ok(()) };
        let stored: Vec<(u32, usize)> = {
            let mut stored: Vec<_> = ring.stored.iter().map(|(&i, &at)| (i, at)).collect();
            stored.sort_by_key(|&(_, at)| at);
            stored
        };
        let n = stored.len().max(1);
        for (done, (index, at)) in stored.into_iter().enumerate() {
            let Some(&source) = self.sources.matrices.get(index as usize) else { continue };
            let (head, span) = placed(&source);
            let Some(buffer) = self.memory.lend_store(at - head, span) else {
                return Err(ResidencyError::Internal(format!("matrix {index} has no room")));
            };
            let read = Read {
                file: source.file,
                offset: source.offset,
                len: source.bytes,
                buffer,
                buffer_offset: head,
                slack: io::Slack { head, tail: span - head - source.bytes },
                priority: io::Priority::Demand,
            };
            self.submit(read, Target::Stored { index })?;
            self.book();
            self.check_failed()?;
            #[allow(clippy::cast_precision_loss)] // a share
            if !progress(done as f32 / n as f32) {
                return Err(ResidencyError::Aborted);
            }
        }
        self.wait_for(|target| matches!(target, Target::Stored { .. }))
    }

    /// See [`hypura_llama::tiered::Residency::device_matrix`].
    pub(super) fn place_on_device(
        &mut self,
        index: u32,
        copies: &mut Vec<MatrixUpload>,
    ) -> Result<Option<MatrixPlace>, ResidencyError> {
        let none = || ResidencyError::Internal("there is no ring on the device".into());
        self.device_ring.as_mut().ok_or_else(none)?.ring.computed();
        let mut restarted = false;
        loop {
            self.copy_ahead(copies)?;
            let device = self.device_ring.as_mut().ok_or_else(none)?;
            match device.ring.front() {
                Some(front) if front.index == index => {
                    let lost = || ResidencyError::Internal(format!("matrix {index} is lost"));
                    let offset = device.ring.use_front().ok_or_else(lost)?;
                    self.matrices += 1;
                    return Ok(Some(MatrixPlace { offset, serial: front.serial }));
                }
                Some(_) if restarted => {
                    return Err(ResidencyError::Internal(format!("matrix {index} has no room")));
                }
                Some(_) => {
                    // The graph is another one than was copied ahead for: go on where it is.
                    restarted = true;
                    let schedule = device.ring.schedule();
                    let position = schedule.iter().position(|&i| i == index);
                    let unknown =
                        || ResidencyError::Internal(format!("matrix {index} was not announced"));
                    let position = position.ok_or_else(unknown)?;
                    device.ring.clear_queue();
                    device.ring.resume_at(position);
                }
                // Its bytes are still to be read.
                None if device.stored.contains_key(&index) => {
                    return Err(ResidencyError::Internal(format!("matrix {index} has no room")));
                }
                None => {
                    let is_full = self.ring.as_ref().is_some_and(|ring| ring.front().is_none());
                    if is_full && !device.from_host.is_empty() {
                        return Ok(None);
                    }
                    self.wait_in_host(index)?;
                }
            }
        }
    }

    /// Copies what the ring has room for, as long as the bytes are there.
    fn copy_ahead(&mut self, copies: &mut Vec<MatrixUpload>) -> Result<(), ResidencyError> {
        self.reads.poll(&mut self.arrived);
        self.book();
        self.read_ahead()?;
        loop {
            let Some(device) = &mut self.device_ring else { return Ok(()) };
            let Some(entry) = device.ring.place_next() else { return Ok(()) };
            let (from, bytes) = match device.stored.get(&entry.index) {
                Some(&at) => (MatrixFrom::Store(at), entry.span),
                None => {
                    let ready = self.ring.as_ref().and_then(Ring::front);
                    let ready = ready.filter(|front| front.index == entry.index && front.ready);
                    let offset = ready.and_then(|_| self.ring.as_mut()?.use_front());
                    let Some(offset) = offset else {
                        device.ring.undo_place();
                        return Ok(());
                    };
                    device.from_host.push_back(entry.serial);
                    (MatrixFrom::Ring(offset), entry.span)
                }
            };
            device.ring.arrived(entry.serial);
            self.device_stats.get_or_insert_default().copied_bytes += bytes as u64;
            let place = MatrixPlace { offset: entry.start + entry.head, serial: entry.serial };
            copies.push(MatrixUpload { index: entry.index, from, place });
        }
    }

    /// Waits until a matrix is in the host's ring, next in turn.
    fn wait_in_host(&mut self, index: u32) -> Result<(), ResidencyError> {
        let mut restarted = false;
        loop {
            self.read_ahead()?;
            let front = self.ring.as_ref().and_then(Ring::front);
            let Some(entry) = front.filter(|entry| entry.index == index) else {
                if std::mem::replace(&mut restarted, true) {
                    return Err(ResidencyError::Internal(format!("matrix {index} has no room")));
                }
                self.restart_here(index)?;
                continue;
            };
            if let Some(reason) = self.ring.as_ref().and_then(|ring| ring.failure(entry.serial)) {
                // The drive gets a second chance: the first read may have been long ago.
                if std::mem::replace(&mut restarted, true) {
                    return Err(ResidencyError::Read(reason));
                }
                self.restart_here(index)?;
                continue;
            }
            if entry.ready {
                return Ok(());
            }
            self.wait_for(|t| *t == Target::Matrix { serial: entry.serial })?;
        }
    }

    /// See [`hypura_llama::tiered::Residency::matrices_copied`].
    pub(super) fn give_back_host_ring(&mut self, serial: u64) {
        let (Some(device), Some(ring)) = (&mut self.device_ring, &mut self.ring) else { return };
        while device.from_host.front().is_some_and(|&first| first <= serial) {
            device.from_host.pop_front();
            ring.computed_first();
        }
    }
}
