//! What the CPU computes of the experts that a GPU lacks, and what is copied up behind it.

use hypura_llama::tiered::{PartCopy, Place};
use hypura_tier::UnitId;

use super::Streamer;

/// What the CPU's part in a token's experts is decided by: seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AssistCost {
    /// For a byte of weights copied to the GPU.
    pub(crate) copy_s_per_byte: f64,
    /// For a byte of weights that the CPU multiplies with.
    pub(crate) compute_s_per_byte: f64,
    /// For asking the CPU at all.
    pub(crate) fixed_s: f64,
    /// For a byte of weights that the device multiplies with, once all copies have arrived.
    pub(crate) device_s_per_byte: f64,
    /// For the kernels of a layer's experts, however small.
    pub(crate) kernels_s: f64,
}

impl AssistCost {
    /// Of `n` experts that a token's `n_used` lack, of `bytes` each, those that the CPU computes while
    /// the others are copied, so that both sides end soonest. The device computes behind the copies,
    /// and the CPU meanwhile.
    pub(crate) fn host_share(&self, n: usize, n_used: usize, bytes: u64) -> usize {
        let copy = |n: usize| n as f64 * bytes as f64 * self.copy_s_per_byte;
        let compute = |n: usize| match n {
            0 => 0.0,
            n => self.fixed_s + n as f64 * bytes as f64 * self.compute_s_per_byte,
        };
        let device_s = self.device_s(n_used, bytes);
        let time = |host: usize| (copy(n - host) + device_s).max(compute(host));
        (0..=n).min_by(|&a, &b| time(a).total_cmp(&time(b))).unwrap_or(0)
    }

    /// What the device computes a token's experts in.
    fn device_s(&self, n_used: usize, bytes: u64) -> f64 {
        self.kernels_s + n_used as f64 * bytes as f64 * self.device_s_per_byte
    }

    /// Slices of `slice_bytes` that can be guessed for a layer, while the device computes the experts
    /// of the one before it and what comes before the choice, the last one perhaps in part: more would
    /// be in the way of what that lacks.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
    pub(crate) fn guessed_slices(&self, n_used: usize, bytes: u64, slice_bytes: u64) -> usize {
        let time = self.device_s(n_used, bytes) + BETWEEN_S;
        (time / (slice_bytes.max(1) as f64 * self.copy_s_per_byte)).ceil() as usize
    }
}

/// Seconds from the end of a layer's experts to the first copy for the next layer: attention and the
/// router, and until the host knows; seen with an H200 and a model of 256 dimensions.
const BETWEEN_S: f64 = 60e-6;
/// One expert in this many that the CPU computed in a layer may be copied behind everything else:
/// more would keep the link busy with what nobody waits for.
const ADMISSION_TURNS: u64 = 8;

impl Streamer {
    /// Those of the missing experts that the CPU computes in place: the coldest, which are the least
    /// worth a slot. Decided by rates that don't change while a model runs, so that a run can be
    /// repeated.
    pub(super) fn share_with_host(&mut self, layer: u32, experts: &[u32], host: &mut Vec<u32>) {
        let (Some(cost), Some(device)) = (self.assist, &self.device) else { return };
        let is_missing = |&&expert: &&u32| device.table.lookup(UnitId { layer, expert }).is_none();
        let mut missing: Vec<u32> = experts.iter().filter(is_missing).copied().collect();
        let source = self.sources.layers.get(layer as usize);
        let bytes = source.map_or(0, |s| s.parts.iter().map(|p| p.slice_bytes as u64).sum());
        let n = cost.host_share(missing.len(), experts.len(), bytes);
        let key = |&expert: &u32| device.table.key(UnitId { layer, expert });
        missing.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.cmp(b)));
        host.extend(missing.into_iter().take(n));
        host.sort_unstable();
        self.device_stats.get_or_insert_default().computed_in_place += host.len() as u64;
    }

    /// Copies for later: of what the CPU computed, the warmest, if it is warmer than what it would
    /// take the slot of.
    pub(super) fn admit_to_device(
        &mut self,
        layer: u32,
        experts: &[u32],
        host_slots: &[u32],
        copies: &mut Vec<PartCopy>,
    ) {
        self.admission_turn = (self.admission_turn + 1) % ADMISSION_TURNS;
        let (Some(device), 0) = (&mut self.device, self.admission_turn) else { return };
        let key = |&(expert, _): &(u32, u32)| device.table.key(UnitId { layer, expert });
        let candidates = experts.iter().copied().zip(host_slots.iter().copied());
        let warmest = candidates.max_by(|a, b| key(a).total_cmp(&key(b)));
        let Some((expert, host_slot)) = warmest else { return };
        let bytes = self.promote(UnitId { layer, expert }, Place::Host(host_slot), copies);
        self.device_stats.get_or_insert_default().copied_bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_end_soonest() {
        let cost = |copy: f64, compute: f64| AssistCost {
            copy_s_per_byte: copy / 1e9,
            compute_s_per_byte: compute / 1e9,
            fixed_s: 0.1,
            device_s_per_byte: 0.0,
            kernels_s: 0.0,
        };
        let share = |copy, compute, n| cost(copy, compute).host_share(n, 4, 1_000_000_000);
        // Computing is hopeless, or all that makes sense.
        assert_eq!([1, 2, 4].map(|n| share(1.0, 10.0, n)), [0, 0, 0]);
        assert_eq!([1, 2, 4].map(|n| share(10.0, 1.0, n)), [1, 2, 4]);
        // Both are as fast: half each, and what can't be halved is copied, which has no fixed cost.
        assert_eq!([0, 1, 2, 3, 4].map(|n| share(1.0, 1.0, n)), [0, 0, 1, 1, 2]);
        // For tiny experts asking costs more than it brings.
        assert_eq!(cost(1.0, 0.5).host_share(4, 4, 10_000), 0);
        // What is copied has still to be computed, while the CPU is at its share.
        let slow = AssistCost { device_s_per_byte: 0.05 / 1e9, ..cost(1.0, 1.0) };
        assert_eq!([1, 2, 3].map(|n| slow.host_share(n, 4, 1_000_000_000)), [1, 1, 2]);
    }

    #[test]
    fn guesses_fit_into_what_is_computed_meanwhile() {
        let cost = AssistCost {
            copy_s_per_byte: 1.0 / 53e9,
            compute_s_per_byte: 1.0 / 67e9,
            fixed_s: 30e-6,
            device_s_per_byte: 1.0 / 1.5e12,
            kernels_s: 20e-6,
        };
        // 36 and 20 µs of computing and 60 of other things are 1.4 slices of 84 µs.
        assert_eq!(cost.guessed_slices(4, 13_369_344, 4_456_448), 2);
        assert_eq!(cost.guessed_slices(16, 13_369_344, 4_456_448), 3);
        // Small ones are many, and one is always tried.
        assert_eq!(cost.guessed_slices(4, 119_000, 40_000), 107);
        assert_eq!(cost.guessed_slices(4, 1 << 30, 1 << 40), 1);
    }
}
