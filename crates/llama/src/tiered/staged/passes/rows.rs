//! The rows of a group of experts, and how they lie before the device.
//!
//! `MUL_MAT_ID` is made for `n_used` rows of each token, all of different experts. A group's rows are
//! of no token in particular, so how many lie abreast is ours to choose, and CUDA's backend is
//! particular about it (`mmid.cu`, `mmq.cu`, `ggml-cuda.cu`):
//!
//! - its kernel that sorts rows by expert goes through the tokens one by one, unless there are 2, 4,
//!   6, 8, 10, 16 or 32 rows abreast, and takes an expert for one of a token's at most;
//! - each matrix that it is given, used or not, gets as many tiles as all tokens would fill, so fewer
//!   and wider columns are less work, and a group is given the slots from its first to its last;
//! - for eight tokens or fewer it takes another kernel, which rounds differently. The whole matmul
//!   would have taken the one for many: so there are nine columns or more, or as few tokens as the
//!   whole has.

use std::ops::Range;

/// Up to this many columns ggml's CUDA backend multiplies vectors (`MMVQ_MAX_BATCH_SIZE` in
/// `mmvq.cuh`).
pub(super) const VECTORS_MAX: usize = 8;
/// Rows abreast that the sorting kernel is quick with.
const ABREAST: [usize; 3] = [2, 4, 8];
/// Rows of a group, in tokens of the micro-batch.
const ROWS_FACTOR: usize = 2;

/// The most rows of a group in a micro-batch of so many tokens, with those that are repeated to fill
/// columns.
pub(super) fn rows_max(n_tokens: usize) -> usize {
    (n_tokens * ROWS_FACTOR).max(ABREAST[ABREAST.len() - 1] * (VECTORS_MAX + 1))
}

/// The rows of a micro-batch by expert: row `i` is choice `i % n_used` of token `i / n_used`.
pub(super) struct Routed {
    rows: Vec<u32>,
    /// Where each expert's rows begin, and where the last one's end.
    starts: Vec<usize>,
}

impl Routed {
    /// From the experts of all rows, none of them negative.
    pub(super) fn new(ids: &[i32]) -> Routed {
        let n_experts = ids.iter().map(|id| id.unsigned_abs() as usize + 1).max().unwrap_or(0);
        let mut starts = vec![0; n_experts + 1];
        for id in ids {
            starts[id.unsigned_abs() as usize + 1] += 1;
        }
        for expert in 0..n_experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let mut rows = vec![0; ids.len()];
        for (row, id) in (0..).zip(ids) {
            let at = &mut next[id.unsigned_abs() as usize];
            rows[*at] = row;
            *at += 1;
        }
        Routed { rows, starts }
    }

    /// The experts that have rows.
    pub(super) fn experts(&self) -> impl Iterator<Item = u32> {
        let bounds = (0..).zip(self.starts.windows(2));
        bounds.filter(|(_, bounds)| bounds[0] < bounds[1]).map(|(expert, _)| expert)
    }

    /// The rows of an expert, in order.
    pub(super) fn rows_of(&self, expert: u32) -> &[u32] {
        let bounds = self.starts.get(expert as usize..).and_then(|starts| starts.get(..2));
        bounds.and_then(|bounds| self.rows.get(bounds[0]..bounds[1])).unwrap_or_default()
    }
}

/// The rows of a group, column by column.
#[derive(Default)]
pub(in super::super) struct Rows {
    /// Which row of the input each is.
    pub(super) source: Vec<i32>,
    /// The slot of its expert, counted from the group's first one.
    pub(super) slots: Vec<i32>,
    /// Which row of the result it becomes.
    pub(super) target: Vec<i64>,
    abreast: usize,
    span: Range<u32>,
    /// Where each expert's rows begin while they lie one after the other, and where the last one's
    /// end.
    starts: Vec<usize>,
}

impl Rows {
    /// The rows of all experts of a group, one expert after the other. Row `i` reads input
    /// `i / divisor`.
    pub(super) fn gather(&mut self, routed: &Routed, divisor: usize, group: &[u32], slots: &[u32]) {
        self.source.clear();
        self.slots.clear();
        self.target.clear();
        self.starts.clear();
        self.abreast = 1;
        let first = slots.iter().copied().min().unwrap_or(0);
        self.span = first..slots.iter().map(|&slot| slot + 1).max().unwrap_or(first);
        for (&expert, &slot) in group.iter().zip(slots) {
            self.starts.push(self.slots.len());
            for &row in routed.rows_of(expert) {
                self.source.push(i32::try_from(row as usize / divisor).unwrap_or(0));
                self.slots.push(i32::try_from(slot - first).unwrap_or(0));
                self.target.push(i64::from(row));
            }
        }
        self.starts.push(self.slots.len());
    }

    /// Appends all of them as 32-bit words: where each row goes (two words), where it comes from, and
    /// the slot of its expert.
    pub(super) fn write_tables(&self, words: &mut Vec<i32>) {
        for target in &self.target {
            let bytes = target.to_ne_bytes();
            let (low, high) = bytes.split_at(4);
            let word = |bytes: &[u8]| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            words.extend([word(low), word(high)]);
        }
        words.extend_from_slice(&self.source);
        words.extend_from_slice(&self.slots);
    }

    /// The slots from the group's first to its last.
    pub(super) fn span(&self) -> Range<u32> {
        self.span.clone()
    }

    /// How many lie abreast.
    pub(super) fn abreast(&self) -> usize {
        self.abreast
    }

    /// Lays the gathered rows side by side, for a micro-batch of so many tokens. Where columns would
    /// not be full, rows are repeated, if they may be: not on the CPU, whose kernels look at how many
    /// rows an expert has.
    pub(super) fn arrange(&mut self, n_tokens: usize, may_repeat: bool) {
        let n_rows = self.slots.len();
        if n_tokens <= VECTORS_MAX || n_rows == 0 {
            return;
        }
        let columns_min = if may_repeat { VECTORS_MAX + 1 } else { 1 };
        let room = if may_repeat { rows_max(n_tokens) } else { n_rows };
        let counts = self.starts.windows(2).map(|bounds| bounds[1] - bounds[0]);
        let (n_experts, most) = (self.starts.len() - 1, counts.max().unwrap_or(0));
        // Rows of one expert are consecutive, and so never abreast with as many columns as it has
        // rows.
        let columns = |abreast: usize| n_rows.div_ceil(abreast).max(most).max(columns_min);
        let fits = |abreast: &usize| n_experts >= *abreast && abreast * columns(*abreast) <= room;
        // As few columns as the expert with the most rows allows.
        let abreast = ABREAST.into_iter().filter(fits).min_by_key(|&abreast| columns(abreast));
        let abreast = abreast.unwrap_or(1);
        let columns = columns(abreast);
        // The row of each place, column by column.
        let mut order = vec![0; abreast * columns];
        for place in 0..abreast * columns {
            let (at, column) = (place / columns, place % columns);
            let row =
                if place < n_rows { place } else { self.another(&order, (at, column), abreast) };
            order[column * abreast + at] = row;
        }
        let turn = |values: &mut Vec<i32>| {
            *values = order.iter().map(|&row| values[row]).collect();
        };
        turn(&mut self.source);
        turn(&mut self.slots);
        self.target = order.iter().map(|&row| self.target[row]).collect();
        self.abreast = abreast;
    }

    /// A row of an expert that has none in the column yet, of which the first `at` places are taken.
    fn another(&self, order: &[usize], (at, column): (usize, usize), abreast: usize) -> usize {
        let taken = &order[column * abreast..column * abreast + at];
        let firsts = self.starts[..self.starts.len() - 1].iter().copied();
        let is_free =
            |row: &usize| taken.iter().all(|&other| self.slots[other] != self.slots[*row]);
        firsts.into_iter().find(is_free).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Rows of experts that each have so many, interleaved.
    fn routed(counts: &[usize]) -> Routed {
        let mut left = counts.to_vec();
        let mut ids = Vec::new();
        while left.iter().any(|&n| n > 0) {
            for (expert, n) in (0..).zip(&mut left) {
                if *n > 0 {
                    *n -= 1;
                    ids.push(expert);
                }
            }
        }
        Routed::new(&ids)
    }

    fn arranged(counts: &[usize], n_tokens: usize) -> Rows {
        let group: Vec<u32> = (0..).take(counts.len()).collect();
        let slots: Vec<u32> = group.iter().map(|expert| 7 + expert).collect();
        let mut rows = Rows::default();
        rows.gather(&routed(counts), 1, &group, &slots);
        rows.arrange(n_tokens, true);
        rows
    }

    #[test]
    fn rows_are_found_by_expert() {
        let routed = Routed::new(&[3, 1, 3, 0, 3]);
        assert_eq!(routed.experts().collect::<Vec<_>>(), [0, 1, 3]);
        assert_eq!(routed.rows_of(3), [0, 2, 4]);
        assert!(routed.rows_of(2).is_empty() && routed.rows_of(9).is_empty());
    }

    #[test]
    fn every_row_is_there_and_no_column_has_an_expert_twice() {
        let cases: [&[usize]; 7] = [
            &[40, 40, 40, 40],
            &[90, 3, 5, 60, 31, 8, 77, 41, 12],
            &[100, 1, 1, 1],
            &[64],
            &[30, 31],
            &[3, 1],
            &[1, 0, 70, 70, 2, 69, 0, 1],
        ];
        for counts in cases {
            let group: Vec<usize> = counts.iter().copied().filter(|&n| n > 0).collect();
            let n_rows: usize = group.iter().sum();
            let rows = arranged(&group, 512);
            let targets: BTreeSet<i64> = rows.target.iter().copied().collect();
            assert_eq!(targets.len(), n_rows, "{counts:?}");
            assert!(rows.target.len() <= rows_max(512), "{counts:?}: {}", rows.target.len());
            assert!(rows.target.len() / rows.abreast() > VECTORS_MAX, "{counts:?}");
            assert_eq!(rows.target.len() % rows.abreast(), 0, "{counts:?}");
            for column in rows.slots.chunks(rows.abreast()) {
                let distinct: BTreeSet<i32> = column.iter().copied().collect();
                assert_eq!(distinct.len(), column.len(), "{counts:?}: {column:?}");
            }
            // Repeated rows are rows of the same expert as the first time.
            let routed = routed(&group);
            for (slot, target) in rows.slots.iter().zip(&rows.target) {
                let expert = u32::try_from(*slot).unwrap();
                let row = u32::try_from(*target).unwrap();
                assert!(routed.rows_of(expert).contains(&row), "{counts:?}");
            }
        }
    }

    #[test]
    fn rows_of_an_expert_stay_in_their_order() {
        let rows = arranged(&[40, 40, 40, 40], 512);
        assert_eq!((rows.abreast(), rows.span()), (4, 7..11));
        let of_first: Vec<i64> = rows
            .slots
            .iter()
            .zip(&rows.target)
            .filter(|(slot, _)| **slot == 0)
            .map(|(_, target)| *target)
            .collect();
        assert!(of_first.is_sorted(), "{of_first:?}");
    }

    #[test]
    fn no_row_is_repeated_where_none_may_be() {
        for (counts, abreast) in [([20, 10, 6, 4], 2), ([3, 2, 2, 2], 1), ([2, 2, 2, 2], 4)] {
            let mut rows = arranged(&counts, 4);
            rows.arrange(512, false);
            assert_eq!((rows.abreast(), rows.slots.len()), (abreast, counts.iter().sum()));
        }
    }

    #[test]
    fn few_tokens_stay_single_and_as_they_are() {
        let rows = arranged(&[2, 3, 1], 4);
        assert_eq!((rows.abreast(), rows.slots.len()), (1, 6));
    }
}
