//! How many slots the pools have, and how slots lie in memory.

use std::collections::{BTreeMap, HashMap};

use hypura_io as io;
use hypura_plan::{self as plan, Plan};

use crate::options::LoadError;
use crate::stream::Sources;

/// What the CPU's MUL_MAT_ID keeps per expert of a pool, token and choice (`mmid_row_mapping` in
/// ggml-cpu.c).
const ROW_MAPPING_BYTES: u64 = 8;

/// How slots lie, so that direct reads land in them without a copy: a slot begins at the same
/// place of a block as the slice does in its file. In most files that is one place for all slices,
/// as tensors are multiples of a drive's block long and only the header is not. Slots of a hot file
/// begin at a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotLayout {
    /// Bytes of a block of direct reads; 1 if there are none.
    pub(crate) block: usize,
    /// By pool and part: where slices begin in a block. Absent: here and there.
    pub(crate) phases: HashMap<(u32, u8), usize>,
}

impl SlotLayout {
    pub(crate) fn of(sources: &Sources, files: &[std::sync::Arc<io::File>]) -> SlotLayout {
        let blocks = files.iter().map(|file| {
            let align = file.alignment();
            align.offset.max(align.memory)
        });
        let block = blocks.max().unwrap_or(1).max(1);
        let mut counts: BTreeMap<(u32, u8), BTreeMap<usize, usize>> = BTreeMap::new();
        for layer in &sources.layers {
            for part in &layer.parts {
                let phase = usize::try_from(part.offset % block as u64).unwrap_or(0);
                // In a hot file each slice begins at a block, and has the last one to itself.
                let in_blocks = phase == 0 && part.stride.is_multiple_of(block as u64);
                if !in_blocks && part.slice_bytes % block != 0 {
                    continue;
                }
                let phases = counts.entry((layer.pool, part.part)).or_default();
                *phases.entry(phase).or_default() += 1;
            }
        }
        let most = |phases: BTreeMap<usize, usize>| phases.into_iter().max_by_key(|&(_, n)| n);
        let phases = counts.into_iter().filter_map(|(key, n)| Some((key, most(n)?.0))).collect();
        SlotLayout { block, phases }
    }
}

/// Now that all other buffers are there and measured, gives the pools what is left of the budget:
/// fewer slots than planned when the estimate was too low, more when it was too high. Each slot
/// counts with the CPU's row mappings for it.
pub(crate) fn fit_pools(
    plan: &mut Plan,
    fixed_bytes: u64,
    layout: &SlotLayout,
    weights_memory_bytes: Option<u64>,
) -> Result<(), LoadError> {
    let budget_bytes = plan.budget_bytes;
    let n_ubatch = u64::from(plan.n_ubatch);
    let block = layout.block as u64;
    // Slots that don't begin at a block have one more.
    let rounding = |pool: &plan::Pool| if block > 1 { block * pool.parts.len() as u64 } else { 0 };
    let cost = |pool: &plan::Pool| {
        pool.slot_bytes + rounding(pool) + u64::from(pool.n_used) * n_ubatch * ROW_MAPPING_BYTES
    };
    let units = |pool: &plan::Pool| {
        pool.n_experts.saturating_mul(u32::try_from(pool.layers.len()).unwrap_or(u32::MAX))
    };
    let needed_bytes =
        plan.pools.iter().map(|p| u64::from(p.n_used) * cost(p)).sum::<u64>() + fixed_bytes;
    if needed_bytes > budget_bytes {
        return Err(LoadError::BudgetTooSmall { needed_bytes, budget_bytes });
    }
    let cap = weights_memory_bytes
        .map(|cap| cap.saturating_sub(plan.bytes.resident_weights + plan.bytes.ring))
        .unwrap_or(u64::MAX);
    let available = (budget_bytes - fixed_bytes).min(cap);
    let planned: u64 = plan.pools.iter().map(|p| u64::from(p.slots) * cost(p)).sum();
    // Every pool by the same factor, whole slots, between what a token needs and what there is.
    let factor = available as f64 / planned.max(1) as f64;
    for pool in &mut plan.pools {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped below
        let wanted = (f64::from(pool.slots) * factor) as u32;
        pool.slots = wanted.min(units(pool)).max(pool.n_used);
    }
    let taken = |plan: &Plan| plan.pools.iter().map(|p| u64::from(p.slots) * cost(p)).sum::<u64>();
    while taken(plan) > available {
        // Raising small pools to their minimum took too much from the others.
        let spare = plan.pools.iter_mut().filter(|p| p.slots > p.n_used).max_by_key(|p| p.slots);
        let Some(pool) = spare else { break };
        pool.slots -= 1;
    }
    let mut left = available.saturating_sub(taken(plan));
    for pool in &mut plan.pools {
        let more = u32::try_from(left / cost(pool).max(1)).unwrap_or(u32::MAX);
        let more = more.min(units(pool).saturating_sub(pool.slots));
        pool.slots += more;
        left -= u64::from(more) * cost(pool);
    }
    plan.bytes.expert_slots = plan.pools.iter().map(|p| u64::from(p.slots) * p.slot_bytes).sum();
    Ok(())
}
