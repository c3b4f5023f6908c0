//! The numbers of streaming.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::{AheadStats, DeviceStats, Segment};
use crate::status::ExpertMap;

/// What streaming did since it began, or in a part of a run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[non_exhaustive]
pub struct StreamStats {
    /// Bytes of weights asked from the drive.
    pub read_bytes: u64,
    /// Time that the computation waited for reads.
    #[serde(skip)]
    pub read_wait: Duration,
    /// Time during which something was being read, in the background too.
    #[serde(skip)]
    pub drive_busy: Duration,
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
    /// What was read before its router had run.
    pub ahead: AheadStats,
    /// What happened between host memory and the GPU, if one computes.
    pub device: Option<DeviceStats>,
}

impl StreamStats {
    /// What came after `earlier`.
    pub(crate) fn since(&self, earlier: &StreamStats) -> StreamStats {
        StreamStats {
            read_bytes: self.read_bytes - earlier.read_bytes,
            read_wait: self.read_wait - earlier.read_wait,
            drive_busy: self.drive_busy - earlier.drive_busy,
            compute: self.compute - earlier.compute,
            unit_lookups: self.unit_lookups - earlier.unit_lookups,
            unit_hits: self.unit_hits - earlier.unit_hits,
            evictions: self.evictions - earlier.evictions,
            matrices: self.matrices - earlier.matrices,
            passes: self.passes - earlier.passes,
            graphs: self.graphs - earlier.graphs,
            ahead: self.ahead.since(&earlier.ahead),
            device: self.device.map(|now| now.since(&earlier.device.unwrap_or_default())),
        }
    }
}

/// Numbers that others read while the streamer works.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(super) stats: Mutex<StreamStats>,
    pub(super) segments: Mutex<Option<Vec<Segment>>>,
    pub(super) experts: Mutex<Option<Arc<ExpertMap>>>,
}

impl Shared {
    pub(crate) fn stats(&self) -> StreamStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which experts are used, and which are in memory; `None` if none are streamed.
    pub(crate) fn experts(&self) -> Option<Arc<ExpertMap>> {
        self.experts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on keeps what each layer computes and misses.
    pub(crate) fn keep_segments(&self) {
        *self.segments.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// The segments since this was called last; `None` if they are not kept.
    pub(crate) fn take_segments(&self) -> Option<Vec<Segment>> {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.as_mut().map(std::mem::take)
    }
}
