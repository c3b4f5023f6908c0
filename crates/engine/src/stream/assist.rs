//! What the CPU computes of the experts that a GPU lacks, and what is copied up behind it.

use hypura_llama::tiered::{HostShare, Upload};
use hypura_tier::{Claim, Parts, UnitId};

use super::{Streamer, bit};

/// What the CPU's part in the experts of a token is decided by, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AssistCost {
    /// For a byte of weights copied to the GPU.
    pub copy_s_per_byte: f64,
    /// For a byte of weights that the CPU multiplies with.
    pub compute_s_per_byte: f64,
    /// For asking the CPU at all.
    pub fixed_s: f64,
}

/// How many of a layer's missing experts the CPU computes whole, and of how many it computes what is
/// gated while down is copied. The others are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    whole: usize,
    gated: usize,
}

impl AssistCost {
    /// Of `n` experts, each of so many bytes up to the gate and in its down projection, those with
    /// which both sides end soonest. Experts are only divided if they `may_divide`.
    fn share(&self, n: usize, (inner, down): (u64, u64), may_divide: bool) -> Counts {
        let (inner, down) = (inner as f64, down as f64);
        let time = |of: &Counts| {
            let (whole, gated) = (of.whole as f64, of.gated as f64);
            let copied = (n as f64 - whole - gated) * (inner + down) + gated * down;
            let computed = whole * (inner + down) + gated * inner;
            let asking = if of.whole + of.gated > 0 { self.fixed_s } else { 0.0 };
            (copied * self.copy_s_per_byte).max(asking + computed * self.compute_s_per_byte)
        };
        // As little as possible for the CPU where it makes no difference.
        let of = |cpu: usize| (0..=cpu).map(move |whole| Counts { whole, gated: cpu - whole });
        (0..=n)
            .flat_map(of)
            .filter(|of| may_divide || of.gated == 0)
            .min_by(|a, b| time(a).total_cmp(&time(b)))
            .unwrap_or(Counts { whole: 0, gated: 0 })
    }
}

/// One expert in this many that the CPU computed in a layer may be copied behind everything else:
/// more would keep the link busy with what nobody waits for. Of those whose down projection was
/// copied, each: while the CPU computed the rest, the link was idle.
const ADMISSION_TURNS: u64 = 2;

impl Streamer {
    /// Those of the missing experts that the CPU computes in place: the coldest, which are the least
    /// worth a slot. Decided by rates that don't change while a model runs, so that a run can be
    /// repeated.
    pub(super) fn share_with_host(&mut self, layer: u32, experts: &[u32], share: &mut HostShare) {
        let (Some(cost), Some(device)) = (self.assist, &self.device) else { return };
        let Some(source) = self.sources.layers.get(layer as usize) else { return };
        let is_missing = |&&expert: &&u32| device.table.lookup(UnitId { layer, expert }).is_none();
        let mut missing: Vec<u32> = experts.iter().filter(is_missing).copied().collect();
        let down = source.parts.iter().filter(|p| bit(p.part) == Parts::DOWN);
        let down = down.map(|p| p.slice_bytes as u64).sum();
        let all: u64 = source.parts.iter().map(|p| p.slice_bytes as u64).sum();
        // Where host memory gives up what rises, an expert has to be in one place whole.
        let may_divide = !self.reuses_host_slots;
        let counts = cost.share(missing.len(), (all - down, down), may_divide);
        let key = |&expert: &u32| device.table.key(UnitId { layer, expert });
        missing.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.cmp(b)));
        let mut missing = missing.into_iter();
        share.whole.extend(missing.by_ref().take(counts.whole));
        share.gated.extend(missing.take(counts.gated));
        share.whole.sort_unstable();
        share.gated.sort_unstable();
        let stats = self.device_stats.get_or_insert_default();
        stats.computed_in_place += counts.whole as u64;
        stats.computed_in_part += counts.gated as u64;
    }

    /// Copies for later. What is left of an expert whose down projection is there: the warmest one's.
    /// Else, of what the CPU computed, the warmest, if it is warmer than what it would take the slot
    /// of.
    pub(super) fn admit_to_device(
        &mut self,
        layer: u32,
        share: &HostShare,
        host_slots: &[u32],
        copies: &mut Vec<Upload>,
    ) {
        let slot_of = |expert| {
            let at = share.experts().position(|of| of == expert);
            at.and_then(|at| host_slots.get(at).copied())
        };
        let Some(device) = &mut self.device else { return };
        let warmest = |experts: &[u32]| {
            let key = |expert: u32| device.table.key(UnitId { layer, expert });
            experts.iter().copied().max_by(|&a, &b| key(a).total_cmp(&key(b)))
        };
        let (expert, claim) = match (warmest(&share.gated), warmest(&share.whole)) {
            (Some(expert), _) => (expert, Claim::Expected),
            (None, Some(expert)) => {
                self.admission_turn = (self.admission_turn + 1) % ADMISSION_TURNS;
                if self.admission_turn != 0 {
                    return;
                }
                (expert, Claim::Warmer)
            }
            (None, None) => return,
        };
        let (unit, Some(host_slot)) = (UnitId { layer, expert }, slot_of(expert)) else { return };
        let Some(grant) = device.table.speculate(unit, Parts::ALL, claim) else { return };
        self.take_back(Parts::ALL);
        let Some(device) = &mut self.device else { return };
        copies.append(&mut device.down);
        if self.reuses_host_slots {
            device.rising.push(unit);
        }
        let source = self.sources.layers.get(layer as usize);
        for part in source.into_iter().flat_map(|source| &source.parts) {
            if grant.fill.contains(bit(part.part)) {
                let (part_index, slot) = (part.part, grant.slot.0);
                copies.push(Upload {
                    is_down: false,
                    layer,
                    expert,
                    part: part_index,
                    host_slot,
                    slot,
                });
                device.table.filled(unit, bit(part_index));
                self.device_stats.get_or_insert_default().copied_bytes += part.slice_bytes as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(copy: f64, compute: f64, n: usize, may_divide: bool) -> (usize, usize) {
        let cost = AssistCost {
            copy_s_per_byte: copy / 1e9,
            compute_s_per_byte: compute / 1e9,
            fixed_s: 0.1,
        };
        let bytes = (600_000_000, 300_000_000);
        let counts = cost.share(n, bytes, may_divide);
        (counts.whole, counts.gated)
    }

    #[test]
    fn both_sides_end_soonest() {
        for may_divide in [false, true] {
            // Computing is hopeless, or all that makes sense.
            assert_eq!([1, 2, 4].map(|n| share(1.0, 10.0, n, may_divide)), [(0, 0); 3]);
            assert_eq!([1, 2].map(|n| share(10.0, 1.0, n, may_divide)), [(1, 0), (2, 0)]);
        }
        // Both are as fast: half each, and what can't be halved is copied, which has no fixed cost.
        let whole = [0, 1, 2, 3, 4].map(|n| share(1.0, 1.0, n, false).0);
        assert_eq!(whole, [0, 0, 1, 1, 2]);
        // A single one is divided: 0.3 s of copying beside 0.1 + 0.6 s of computing.
        assert_eq!([1, 2, 3].map(|n| share(1.0, 1.0, n, true)), [(0, 1), (1, 0), (0, 2)]);
    }

    #[test]
    fn tiny_experts_are_not_worth_asking() {
        let cost = AssistCost { copy_s_per_byte: 1e-9, compute_s_per_byte: 5e-10, fixed_s: 0.1 };
        assert_eq!(cost.share(4, (7_000, 3_000), true), Counts { whole: 0, gated: 0 });
    }
}
