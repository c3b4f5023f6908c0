//! Which weights to hold in a given number of bytes.
//!
//! The problem: choose the set P of pinned matrices, the slots s_c of each size class c, and the
//! ring, so that the bytes that an average token reads are fewest,
//!
//! ```text
//! minimise    sum of b_i over dense matrices i not in P
//!           + sum over classes c of layers_c * used_c * slot_bytes_c * (1 - hit_c(s_c / units_c))
//!           + row_bytes if the input embedding is not held
//! subject to  fixed + sum of b_i in P + sum of s_c * slot_bytes_c + ring + embedding <= W
//!             s_c >= used_c,  ring >= the two largest matrices not in P (if there are any)
//! ```
//!
//! Bytes saved per byte held: 1 for a dense matrix; hit'(f) * used / experts for a slot, at most 1
//! and in practice far below; 1 / vocabulary for the embedding. So: dense matrices, then slots, then
//! the embedding. Among dense matrices only the sum counts; taking each in a fixed order if it still
//! fits leaves less than one matrix unused. Among classes an equal share of each is best where
//! used / experts is the same for all (as in every model that was looked at), because the curve is
//! concave and the same for all.
//!
//! More W never saves less: if a larger capacity takes a matrix that a smaller one can't, it is ahead
//! by more than the smaller one has left for anything else.

use crate::inventory::{Dense, Inventory};
use crate::number::total;

/// The ring takes up to this share of the weights' budget, in order to hold ...
const RING_SHARE: u64 = 16;
/// ... this many bytes of read-ahead, which keep a drive busy for tens of milliseconds ...
const READ_AHEAD_BYTES: u64 = 64 << 20;
/// ... or this many halves of the two largest matrices, if that is more: one is computed with, one
/// arrives, and one is asked for, so that the drive never waits.
const READ_AHEAD_HALVES: u64 = 3;

/// What is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// Per matrix of [`Inventory::dense`].
    pub(crate) pinned: Vec<bool>,
    pub(crate) ring_bytes: u64,
    /// Per size class.
    pub(crate) slots: Vec<u64>,
    /// Whether the input embedding is held.
    pub(crate) rows_pinned: bool,
}

impl Allocation {
    pub(crate) fn resident_bytes(&self, inventory: &Inventory) -> u64 {
        let dense = inventory.dense.iter().zip(&self.pinned);
        let pinned = total(dense.filter(|(_, pinned)| **pinned).map(|(dense, _)| dense.bytes));
        let rows = if self.rows_pinned { inventory.rows_bytes } else { 0 };
        total([inventory.fixed_bytes, pinned, rows])
    }

    pub(crate) fn slot_bytes(&self, inventory: &Inventory) -> u64 {
        let classes = inventory.classes.iter().zip(&self.slots);
        total(classes.map(|(class, slots)| class.slot_bytes.saturating_mul(*slots)))
    }

    /// Bytes of the matrices that stream.
    pub(crate) fn streamed_dense_bytes(&self, inventory: &Inventory) -> u64 {
        let dense = inventory.dense.iter().zip(&self.pinned);
        total(dense.filter(|(_, pinned)| !**pinned).map(|(dense, _)| dense.bytes))
    }
}

/// The least that works: everything that can stream does.
pub(crate) fn smallest(inventory: &Inventory) -> Allocation {
    Allocation {
        pinned: vec![false; inventory.dense.len()],
        ring_bytes: two_largest(&inventory.dense),
        slots: inventory.classes.iter().map(|class| class.n_used).collect(),
        rows_pinned: false,
    }
}

/// Divides `weights_bytes`, at least those of [`smallest`]; tensors that are loaded whole take at
/// most `resident_bytes` of them, and there are at most `slots_max` slots in a class.
pub(crate) fn allocate(
    inventory: &Inventory,
    weights_bytes: u64,
    resident_bytes: u64,
    slots_max: u64,
) -> Allocation {
    let least = smallest(inventory);
    let room = weights_bytes
        .saturating_sub(inventory.fixed_bytes)
        .saturating_sub(least.slot_bytes(inventory));
    let resident_room = resident_bytes.saturating_sub(inventory.fixed_bytes);
    let dense_bytes = inventory.dense_bytes();

    let (pinned, ring_bytes) = if dense_bytes <= room.min(resident_room) {
        (vec![true; inventory.dense.len()], 0)
    } else {
        let ring = ring_bytes(inventory, room, resident_room);
        let pinned = first_fit(
            inventory.dense.iter().map(|dense| dense.bytes),
            room.saturating_sub(ring).min(resident_room),
        );
        (pinned, ring)
    };
    let mut allocation = Allocation { pinned, ring_bytes, slots: least.slots, rows_pinned: false };
    let streamed = allocation.streamed_dense_bytes(inventory);
    allocation.ring_bytes = ring_bytes.min(streamed);

    let held = allocation.resident_bytes(inventory).saturating_add(ring_bytes);
    allocation.slots = equal_shares(inventory, weights_bytes.saturating_sub(held), slots_max);
    let held = held.saturating_add(allocation.slot_bytes(inventory));
    let resident = allocation.resident_bytes(inventory);
    let left = weights_bytes.saturating_sub(held).min(resident_bytes.saturating_sub(resident));
    let all_slots = allocation.slots.iter().zip(&inventory.classes);
    let nothing_else_to_hold =
        streamed == 0 && all_slots.into_iter().all(|(&slots, class)| slots == class.n_units());
    allocation.rows_pinned = nothing_else_to_hold && inventory.rows_bytes <= left;
    allocation
}

/// Takes each size in order if it still fits.
pub(crate) fn first_fit(sizes: impl Iterator<Item = u64>, capacity: u64) -> Vec<bool> {
    let mut left = capacity;
    sizes
        .map(|size| {
            let fits = size <= left;
            left -= if fits { size } else { 0 };
            fits
        })
        .collect()
}

/// The same share of every class's units, as large as fits; at least what a token uses.
fn equal_shares(inventory: &Inventory, capacity: u64, slots_max: u64) -> Vec<u64> {
    // The share in steps of 2^-32.
    const WHOLE: u64 = 1 << 32;
    let slots_at = |share: u64| -> Vec<u64> {
        let slots = |class: &crate::inventory::SizeClass| {
            let part = (u128::from(class.n_units()) * u128::from(share)) >> 32;
            let part = u64::try_from(part).unwrap_or(u64::MAX);
            part.min(slots_max).max(class.n_used)
        };
        inventory.classes.iter().map(slots).collect()
    };
    let bytes_at = |share: u64| {
        let classes = inventory.classes.iter().zip(slots_at(share));
        total(classes.map(|(class, slots)| class.slot_bytes.saturating_mul(slots)))
    };
    // The largest share that fits: `low` does (or nothing does), `high` does not.
    let (mut low, mut high) = (0, WHOLE + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if bytes_at(middle) <= capacity { low = middle } else { high = middle }
    }
    slots_at(low)
}

/// The ring, where not all matrices fit into `room`. It must hold the two largest that stream; the
/// output matrix, which is first in order and often by far the largest, counts only if it streams.
fn ring_bytes(inventory: &Inventory, room: u64, resident_room: u64) -> u64 {
    let size = |two_largest: u64| {
        let wanted = READ_AHEAD_BYTES.max((two_largest / 2).saturating_mul(READ_AHEAD_HALVES));
        (room / RING_SHARE).clamp(two_largest, wanted)
    };
    let Some((first, others)) = inventory.dense.split_first() else { return 0 };
    let without_first = size(two_largest(others));
    if first.bytes <= room.saturating_sub(without_first).min(resident_room) {
        without_first
    } else {
        size(two_largest(&inventory.dense))
    }
}

/// Bytes of the two largest of `dense`: one is computed with while the next one arrives.
fn two_largest(dense: &[Dense]) -> u64 {
    let mut largest = [0, 0];
    for dense in dense {
        let [first, second] = largest;
        largest = [first.max(dense.bytes), second.max(first.min(dense.bytes))];
    }
    total(largest)
}

#[cfg(test)]
mod tests {
    use microlp::{ComparisonOp, LinearExpr, OptimizationDirection, Problem};

    use super::*;
    use crate::inventory::SizeClass;
    use crate::speed::HIT_RATE_CURVE;

    struct Random(u64);

    impl Random {
        fn between(&mut self, low: u64, high: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            low + self.0 % (high - low)
        }
    }

    fn inventory(random: &mut Random, n_dense: usize, n_classes: usize) -> Inventory {
        let dense = (0..n_dense)
            .map(|tensor| Dense { tensor, bytes: random.between(1000, 9000) })
            .collect();
        // As in real models, classes differ in their sizes and layers, not in their routing.
        let n_experts = random.between(8, 100);
        let n_used = random.between(1, n_experts / 4);
        let mut first = 0;
        let classes = (0..n_classes)
            .map(|_| {
                let n_layers = usize::try_from(random.between(1, 20)).expect("below 20");
                let layers = (first..first + n_layers).collect();
                first += n_layers;
                let slot_bytes = random.between(100, 900);
                SizeClass { layers, slot_bytes, n_experts, n_used }
            })
            .collect();
        Inventory {
            kinds: Vec::new(),
            fixed_bytes: random.between(0, 5000),
            used_bytes: 0,
            dense,
            layers: Vec::new(),
            classes,
            rows_bytes: random.between(1, 20_000),
            row_bytes: 1,
            largest_tensor_bytes: 0,
            expert_width: 0,
        }
    }

    /// Bytes per token that `allocation` saves against holding nothing that can stream.
    fn saved(inventory: &Inventory, allocation: &Allocation) -> f64 {
        let dense = inventory.dense_bytes() - allocation.streamed_dense_bytes(inventory);
        let classes = inventory.classes.iter().zip(&allocation.slots);
        let experts: f64 = classes
            .map(|(class, &slots)| lookup_bytes(class) * crate::speed::class_hit_rate(class, slots))
            .sum();
        dense as f64 + experts + if allocation.rows_pinned { 1.0 } else { 0.0 }
    }

    fn lookup_bytes(class: &SizeClass) -> f64 {
        (class.layers.len() as u64 * class.n_used * class.slot_bytes) as f64
    }

    /// The most that any plan could save in as many bytes: the problem of the module's head with
    /// fractions of matrices and slots allowed, and the ring given.
    fn relaxed_optimum(inventory: &Inventory, capacity: u64) -> f64 {
        let mut problem = Problem::new(OptimizationDirection::Maximize);
        let mut held = LinearExpr::empty();
        for dense in &inventory.dense {
            let bytes = dense.bytes as f64;
            held.add(problem.add_var(bytes, (0.0, 1.0)), bytes);
        }
        held.add(problem.add_var(1.0, (0.0, 1.0)), inventory.rows_bytes as f64);
        for class in &inventory.classes {
            let units = class.n_units() as f64;
            let mut share = LinearExpr::empty();
            // The curve is concave, so its pieces are filled in order by themselves.
            for piece in HIT_RATE_CURVE.windows(2) {
                let (width, rise) = (piece[1].0 - piece[0].0, piece[1].1 - piece[0].1);
                let gain = lookup_bytes(class) * rise / width;
                let var = problem.add_var(gain, (0.0, width));
                held.add(var, units * class.slot_bytes as f64);
                share.add(var, 1.0);
            }
            let least = class.n_used as f64 / units;
            problem.add_constraint(share, ComparisonOp::Ge, least);
        }
        problem.add_constraint(held, ComparisonOp::Le, capacity as f64);
        problem.solve().expect("holding the least is a solution").objective()
    }

    #[test]
    fn greedy_is_within_one_tensor_of_the_relaxed_optimum() {
        let mut random = Random(42);
        let (mut with_ring, mut without_ring, mut full) = (0, 0, 0);
        for round in 0..300 {
            let inventory = inventory(&mut random, round % 40, round % 4);
            let least = smallest(&inventory);
            let base = least.resident_bytes(&inventory) + least.slot_bytes(&inventory);
            let all = inventory.fixed_bytes + inventory.dense_bytes() + inventory.expert_bytes();
            let most = all + inventory.rows_bytes + 2000;
            let weights = random.between(base + least.ring_bytes, most + least.ring_bytes);
            let allocation = allocate(&inventory, weights, u64::MAX, u64::MAX);

            let held = allocation.resident_bytes(&inventory)
                + allocation.slot_bytes(&inventory)
                + allocation.ring_bytes;
            assert!(held <= weights, "round {round}");
            let mut classes = inventory.classes.iter().zip(&allocation.slots);
            assert!(classes.all(|(class, &slots)| slots >= class.n_used), "round {round}");
            let ring = if allocation.streamed_dense_bytes(&inventory) > 0 {
                with_ring += 1;
                allocation.ring_bytes
            } else {
                without_ring += 1;
                0
            };
            full += u32::from(allocation.rows_pinned);
            let capacity = weights - inventory.fixed_bytes - ring;
            let best = relaxed_optimum(&inventory, capacity);
            let found = saved(&inventory, &allocation);
            let tensor = inventory.dense.iter().map(|dense| dense.bytes).max().unwrap_or(0);
            // A slot of each class may be lost to rounding, and saves at most its own bytes.
            let slots = total(inventory.classes.iter().map(|class| class.slot_bytes));
            assert!(
                found >= best - (tensor + slots) as f64 - 1.0,
                "round {round}: {found} of {best}"
            );
            assert!(found <= best + 1.0, "round {round}: {found} is more than {best} can be");
        }
        assert!(
            with_ring > 50 && without_ring > 50 && full > 5,
            "{with_ring} {without_ring} {full}"
        );
    }

    #[test]
    fn first_fit_fills_up() {
        let fits = |sizes: &[u64], capacity| first_fit(sizes.iter().copied(), capacity);
        assert_eq!(fits(&[5, 4, 3, 1], 9), [true, true, false, false]);
        assert_eq!(fits(&[5, 4, 3, 1], 8), [true, false, true, false]);
        assert_eq!(fits(&[5, 4, 3, 1], 0), [false; 4]);
        // A larger capacity never holds less, in any order.
        let sizes = [7, 2, 9, 4, 4, 1, 8];
        let held = |capacity| -> u64 {
            sizes
                .iter()
                .zip(fits(&sizes, capacity))
                .filter(|(_, fits)| *fits)
                .map(|(size, _)| size)
                .sum()
        };
        assert!((0..40).map(held).is_sorted());
    }
}
