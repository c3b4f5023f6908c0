//! The policy's memory, taken out of one table and put into another.

use super::{Clock, NO_SLOT, SlotTable, index_u32};
use crate::UnitId;
use crate::policy::{History, HistoryError, Policy};

impl<P: Policy> SlotTable<P> {
    /// Up to `n` units of `pool`'s layers that hold no slot, hottest first: what to read ahead when
    /// a run starts with the history of an earlier one. Units never used are left out, or the last
    /// ones if they are `wanted_unused`.
    pub fn hottest_absent(&self, pool: u32, n: usize, wanted_unused: bool) -> Vec<UnitId> {
        let mut absent: Vec<(f64, UnitId)> = (0..self.slot_of_unit.len())
            .filter(|&unit| self.slot_of_unit[unit] == NO_SLOT)
            .map(|unit| (self.policy.key(unit), self.unit_id(index_u32(unit))))
            .filter(|(key, unit)| {
                (wanted_unused || key.is_finite())
                    && self.spec.pool_of_layer[unit.layer as usize] == pool
            })
            .collect();
        absent.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        absent.truncate(n);
        absent.into_iter().map(|(_, unit)| unit).collect()
    }

    /// The policy's memory, to be kept for a later run.
    pub fn export_history(&self) -> History<P>
    where
        P: Clone,
    {
        History {
            n_layers: index_u32(self.spec.pool_of_layer.len()),
            n_experts: self.spec.n_experts,
            now_tokens: self.clock.latest,
            policy: self.policy.clone(),
        }
    }

    /// Goes on from the memory of an earlier run, in place of this table's own.
    ///
    /// # Errors
    /// [`HistoryError`] if it is of another shape or damaged; the table is as before.
    pub fn import_history(&mut self, history: History<P>) -> Result<(), HistoryError> {
        let layers = index_u32(self.spec.pool_of_layer.len());
        if (history.n_layers, history.n_experts) != (layers, self.spec.n_experts) {
            return Err(HistoryError::Shape {
                found_layers: history.n_layers,
                found_experts: history.n_experts,
                layers,
                experts: self.spec.n_experts,
            });
        }
        let n_units = self.slot_of_unit.len();
        if history.policy.n_units() != n_units {
            return Err(HistoryError::Damaged { unit: history.policy.n_units() });
        }
        let is_damaged = |&unit: &usize| {
            let key = history.policy.key(unit);
            key.is_nan() || key == f64::INFINITY
        };
        if let Some(unit) = (0..n_units).find(is_damaged) {
            return Err(HistoryError::Damaged { unit });
        }
        self.policy.adopt(history.policy);
        self.clock = Clock::starting_at(history.now_tokens);
        for unit in 0..n_units {
            let slot_index = self.slot_of_unit[unit];
            if slot_index != NO_SLOT {
                let layer = unit / self.spec.n_experts as usize;
                let pool = &mut self.pools[self.spec.pool_of_layer[layer] as usize];
                pool.rekey(slot_index, self.policy.key(unit));
            }
        }
        Ok(())
    }
}
