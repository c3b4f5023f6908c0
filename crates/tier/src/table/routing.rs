//! What the router chose, told to the policy.

use super::{NO_SLOT, SlotTable, UnitId};
use crate::policy::Policy;

impl<P: Policy> SlotTable<P> {
    /// The router chose `experts` in `layer` for one token. To be called once per token and layer,
    /// whether or not slots are asked for; it tells the policy what is used, and when.
    pub fn note_routing(&mut self, layer: u32, experts: &[u32]) {
        self.note_routings(layer, experts, experts.len());
    }

    /// As [`note_routing`](Self::note_routing) for one token after the other, `n_used` experts each.
    /// A prompt has thousands, and nothing is asked between them: slots are put into their new order
    /// once.
    pub fn note_routings(&mut self, layer: u32, experts: &[u32], n_used: usize) {
        for token in experts.chunks(n_used.max(1)) {
            let now = self.clock.advance(layer, self.spec.pool_of_layer.len());
            for &expert in token {
                let unit = self.unit_index(UnitId { layer, expert });
                self.policy.touch(unit, now);
                self.routed[unit] = self.routed[unit].saturating_add(1);
            }
        }
        if experts.len() <= self.spec.n_experts as usize {
            experts.iter().for_each(|&expert| self.rekey(layer, expert));
        } else {
            (0..self.spec.n_experts).for_each(|expert| self.rekey(layer, expert));
        }
    }

    /// Puts the slot of an expert where its key belongs, if it has one.
    fn rekey(&mut self, layer: u32, expert: u32) {
        let unit = self.unit_index(UnitId { layer, expert });
        let slot = self.slot_of_unit[unit];
        if slot != NO_SLOT {
            let pool = self.spec.pool_of_layer[layer as usize] as usize;
            self.pools[pool].rekey(slot, self.policy.key(unit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Random, check_invariants, spec, unit, use_experts};
    use super::*;
    use crate::Lrfu;

    /// A prompt's tokens at once leave the same behind as one by one: keys, and who gives way.
    #[test]
    fn routings_at_once_are_as_one_by_one() {
        for n_tokens in [1, 2, 50] {
            let spec = || spec(16, &[0, 0], &[9]);
            let mut single = SlotTable::new(spec()).expect("a spec that fits");
            let mut at_once = SlotTable::new(spec()).expect("a spec that fits");
            for table in [&mut single, &mut at_once] {
                for layer in 0..2 {
                    use_experts(table, layer, &[1, 2, 3, 15]);
                }
            }
            let mut random = Random(7);
            for layer in 0..2 {
                let experts: Vec<u32> = (0..n_tokens * 3).map(|_| random.below(16)).collect();
                for token in experts.chunks(3) {
                    single.note_routing(layer, token);
                }
                at_once.note_routings(layer, &experts, 3);
            }
            let keys = |table: &SlotTable<Lrfu>| -> Vec<f64> {
                let units = (0..2).flat_map(|layer| (0..16).map(move |expert| unit(layer, expert)));
                units.map(|unit| table.key(unit)).collect()
            };
            assert_eq!(keys(&single), keys(&at_once), "{n_tokens}");
            for layer in 0..2 {
                let grants = use_experts(&mut single, layer, &[4, 5, 6, 7]);
                assert_eq!(grants, use_experts(&mut at_once, layer, &[4, 5, 6, 7]), "{n_tokens}");
            }
            check_invariants(&at_once);
        }
    }
}
