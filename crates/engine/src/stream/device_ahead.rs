//! Copying experts to a device before their router has chosen.
//!
//! While a layer is computed, the link has nothing to do but guesses. A copy that was begun can't be
//! taken back, and what the router then chooses waits behind it. So experts are copied part by part,
//! the likeliest first, and a part is begun only while that pays: one of which the share `x` would
//! still be under way when the router has chosen saves `1 - x` of its time if it is right, and costs
//! `x` if it is wrong. So its probability must be above `x`.

use hypura_llama::tiered::{PartCopy, Place};
use hypura_tier::{Claim, Guess, Parts, UnitId};

use super::{PartSource, Streamer, bit};

/// An expert is copied ahead if it will be chosen at least this probably: it takes the slot of
/// another one.
const LIKELY: f64 = 0.2;
/// How fast the estimate of a layer's time follows: so much of it per layer.
const STEP: f64 = 0.03;

/// The link to a device: when it is free, and until when it had better be. Times are seconds since
/// some moment. Several devices compute in turn, and count as one with one link.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Link {
    /// 0 if it is not known.
    pub(super) bytes_per_s: f64,
    /// Whether the copies are done at once.
    pub(super) is_emulated: bool,
    /// When everything that was given to it will have been copied.
    free_at: f64,
    /// When the router of the layer at hand had chosen.
    chosen_at: f64,
    /// When what it chose will have been copied.
    brought_at: f64,
    /// From the later one of these to the next router's choice: the median, 0 at first.
    layer_s: f64,
    /// Whether the next choice is that of the layer behind the one at hand.
    is_timed: bool,
}

impl Link {
    /// Copies of so many bytes begin, behind all others.
    fn give(&mut self, now: f64, bytes: f64) {
        self.free_at = self.free_at.max(now) + bytes / self.bytes_per_s;
    }

    /// A layer's computation waits for everything that was given to the link.
    fn bring(&mut self) {
        self.brought_at = self.brought_at.max(self.free_at);
    }

    /// A router has chosen.
    fn chosen(&mut self, now: f64) {
        if std::mem::take(&mut self.is_timed) {
            let layer_s = (now - self.chosen_at.max(self.brought_at)).max(0.0);
            self.layer_s = match self.layer_s {
                0.0 => layer_s,
                median if layer_s > median => median * (1.0 + STEP),
                median if layer_s < median => median / (1.0 + STEP),
                median => median,
            };
        }
        (self.chosen_at, self.brought_at) = (now, now);
    }

    /// When the next router will have chosen.
    fn next_choice(&self) -> f64 {
        self.chosen_at.max(self.brought_at) + self.layer_s
    }

    /// Of a copy of so many bytes, the share that would be under way after the next choice.
    fn late_share(&self, now: f64, bytes: f64) -> f64 {
        let takes = bytes / self.bytes_per_s;
        let end = self.free_at.max(now) + takes;
        ((end - self.next_choice()) / takes).clamp(0.0, 1.0)
    }
}

/// A guess that is to be judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guessed {
    unit: UnitId,
    bytes: f64,
    /// When its copies will have ended.
    arrives_at: f64,
}

impl Streamer {
    fn now_s(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Copies of so many bytes begin that the layer at hand waits for.
    pub(super) fn give_to_link(&mut self, bytes: u64) {
        if bytes == 0 || self.link.bytes_per_s <= 0.0 {
            return;
        }
        let now = self.now_s();
        self.link.give(now, bytes as f64);
        self.link.bring();
    }

    /// The device has computed everything that it was given.
    pub(super) fn waited_for_device(&mut self) {
        if self.device.is_some() {
            let now = self.now_s();
            self.link.chosen(now);
        }
    }

    /// Begins to copy what is missing on the device of those experts of `layer` that will probably
    /// be chosen, the likeliest first, as far as it lies in host memory.
    pub(super) fn guess_on_device(&mut self, layer: u32, guesses: &[Guess]) {
        let now = self.now_s();
        let (Some(device), Some(table)) = (&mut self.device, &mut self.table) else { return };
        let Some(source) = self.sources.layers.get(layer as usize) else { return };
        self.link.is_timed = true;
        // Where the CPU computes too, what lies where decides how it is rounded, and must not depend on
        // how long things take: then a part counts as the later the more of its expert come before it,
        // and there are as many as should fit.
        let is_timeless = self.assist.is_some() || self.link.is_emulated;
        let all = source.parts.iter().fold(Parts::EMPTY, |all, p| all | bit(p.part));
        let likely = guesses.iter().take_while(|guess| guess.probability >= LIKELY);
        for Guess { expert, .. } in likely.clone() {
            device.table.hold(UnitId { layer, expert: *expert });
        }
        // What is copied from must not be overwritten meanwhile.
        if self.reuses_host_slots || self.link.bytes_per_s <= 0.0 {
            return;
        }
        let slice_bytes = |part: &PartSource| part.slice_bytes as u64;
        let mut n_left = self.assist.map_or(usize::MAX, |cost| {
            let bytes = source.parts.iter().map(slice_bytes).sum();
            let n_used = device.table.spec().n_used as usize;
            cost.guessed_slices(
                n_used,
                bytes,
                source.parts.iter().map(slice_bytes).max().unwrap_or(0),
            )
        });
        for &Guess { expert, probability } in likely {
            let unit = UnitId { layer, expert };
            let known = device.table.lookup(unit);
            let missing = all - known.map_or(Parts::EMPTY, |(_, ready)| ready);
            let in_host = table.lookup(unit).filter(|(_, ready)| ready.contains(all));
            let Some((host_slot, _)) = in_host.filter(|_| !missing.is_empty()) else { continue };
            let mut link = self.link;
            let (mut parts, mut bytes) = (Parts::EMPTY, 0);
            for (i, part) in source.parts.iter().enumerate() {
                if !missing.contains(bit(part.part)) {
                    continue;
                }
                let late = match is_timeless {
                    true => i as f64 / source.parts.len() as f64,
                    false => link.late_share(now, part.slice_bytes as f64),
                };
                if probability <= late || n_left == 0 {
                    break;
                }
                n_left -= 1;
                link.give(now, part.slice_bytes as f64);
                parts |= bit(part.part);
                bytes += part.slice_bytes as u64;
            }
            if parts.is_empty() {
                continue;
            }
            let grant = device.table.speculate(unit, parts, Claim::Expected);
            let Some(grant) = grant else { break };
            self.link = link;
            let arrives_at = link.free_at;
            device.guesses.push(Guessed { unit, bytes: bytes as f64, arrives_at });
            self.ahead.stats.begun += 1;
            let (from, to) = (Place::Host(host_slot.0), Place::Device(grant.slot.0));
            let begun = source.parts.iter().map(|source| source.part);
            for part in begun.filter(|&part| grant.fill.contains(bit(part))) {
                device.guessed.push(PartCopy { layer, expert, part, from, to });
            }
            device.table.filled(unit, grant.fill);
            self.device_stats.get_or_insert_default().copied_bytes += bytes;
            device.table.hold(unit);
        }
    }

    /// The router of `layer` has chosen.
    pub(super) fn judge_on_device(&mut self, layer: u32, chosen: &[u32]) {
        let Some(device) = &mut self.device else { return };
        device.table.let_go(layer);
        for guess in std::mem::take(&mut device.guesses) {
            if guess.unit.layer == layer {
                let is_right = chosen.binary_search(&guess.unit.expert).is_ok();
                self.ahead.judge(is_right);
                if is_right {
                    // It would be missing now.
                    device.note_guessed(guess.bytes);
                    self.link.brought_at = self.link.brought_at.max(guess.arrives_at);
                }
                self.ahead.stats.begun_right += u64::from(is_right);
                self.ahead.stats.in_time += u64::from(is_right);
            }
        }
    }

    pub(super) fn take_guessed(&mut self, copies: &mut Vec<PartCopy>) {
        if let Some(device) = &mut self.device {
            copies.append(&mut device.guessed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of 10 bytes per second, and layers that take 2 s beside their copies.
    fn link() -> Link {
        let mut link = Link { bytes_per_s: 10.0, is_timed: true, ..Link::default() };
        link.chosen(2.0);
        link
    }

    #[test]
    fn what_comes_in_time_is_never_late() {
        let mut link = link();
        assert_eq!(link.next_choice(), 4.0);
        assert_eq!(link.late_share(2.0, 20.0), 0.0);
        link.give(2.0, 20.0);
        assert_eq!(link.late_share(2.0, 20.0), 1.0, "behind the first");
        assert_eq!(link.late_share(5.0, 20.0), 1.0, "the router has chosen by then");
    }

    #[test]
    fn the_share_that_comes_late_is_told() {
        let link = link();
        assert_eq!(link.late_share(3.0, 20.0), 0.5);
        assert_eq!(link.late_share(2.0, 40.0), 0.5);
        assert_eq!(link.late_share(2.0, 25.0), 0.2);
    }

    /// A layer begins when what it lacks is there, and so the next choice moves with that.
    #[test]
    fn copies_that_are_waited_for_put_off_the_next_choice() {
        let mut link = link();
        link.give(2.0, 30.0);
        assert_eq!(link.next_choice(), 4.0, "nobody waits for it");
        link.bring();
        assert_eq!(link.next_choice(), 7.0);
        assert_eq!(link.late_share(2.0, 20.0), 0.0);
        // It was right: the time of a layer stays.
        link.is_timed = true;
        link.chosen(7.0);
        assert_eq!(link.next_choice(), 9.0);
    }

    #[test]
    fn a_layers_time_is_a_median() {
        let mut link = link();
        let mut now = 2.0;
        for i in 0..400 {
            link.is_timed = true;
            // One in four waits for something else.
            now += if i % 4 == 0 { 100.0 } else { 1.0 };
            link.chosen(now);
        }
        let layer_s = link.next_choice() - now;
        assert!((0.9..1.1).contains(&layer_s), "{layer_s}");
        link.chosen(now + 50.0);
        assert_eq!(link.next_choice(), now + 50.0 + layer_s, "not timed, not counted");
    }
}
