//! Which tensors of a model become hot, and which of them share blocks.

use std::collections::BTreeMap;

use crate::model::{Model, Tensor};
use crate::role::{ExpertPart, Role};

/// Attention's tables that are looked up instead of multiplied with.
const TABLES: [&str; 2] = [".attn_rel_b.weight", ".attn_rot_embd.weight"];

/// The parts of recurrent layers that are plain matrix products, and large.
const RECURRENT_MATRICES: [&str; 11] = [
    ".ssm_in.weight",
    ".ssm_out.weight",
    ".time_mix_receptance.weight",
    ".time_mix_key.weight",
    ".time_mix_value.weight",
    ".time_mix_gate.weight",
    ".time_mix_output.weight",
    ".shortconv.in_proj.weight",
    ".shortconv.out_proj.weight",
    ".ssm_x.weight",
    ".ssm_dt.weight",
];

/// The hot tensors of a model, by index: one entry per group, parts in the order of use.
///
/// The experts, and the matrices of attention, of recurrent layers and of feed-forward networks, and
/// the output matrix: all that may stream where memory is short. All are weights that llama.cpp uses
/// in matrix products alone.
pub(super) fn groups(model: &Model) -> Vec<Vec<usize>> {
    let mut groups = expert_groups(model);
    groups.extend(matrix_groups(model));
    groups
}

/// A set of experts: its layer, and what its tensors' names have before `blk.` and behind the last
/// `_`.
type Set<'a> = (u32, &'a str, &'a str);

/// The experts of each layer that have a common number. Two sets of experts in one layer (`exps` and
/// `chexps`) are two groups.
fn expert_groups(model: &Model) -> Vec<Vec<usize>> {
    let trunk = model.hparams().n_layer_trunk();
    let mut sets: BTreeMap<Set<'_>, Vec<(bool, usize)>> = BTreeMap::new();
    for (index, tensor) in model.tensors.iter().enumerate() {
        if let (Role::Expert(part), Some(layer)) = (tensor.role, tensor.layer)
            && layer < trunk
        {
            let stem = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
            let set = stem.rsplit('_').next().unwrap_or_default();
            let stack = tensor.name.split("blk.").next().unwrap_or_default();
            let is_last = part == ExpertPart::Down;
            sets.entry((layer, stack, set)).or_default().push((is_last, index));
        }
    }
    let mut groups = Vec::new();
    for mut parts in sets.into_values() {
        parts.sort_unstable();
        let group: Vec<usize> = parts.into_iter().map(|(_, index)| index).collect();
        let mut counts = group.iter().map(|&i| model.tensors.get(i).and_then(Tensor::n_experts));
        let first = counts.next().flatten();
        if first.is_some_and(|n| u32::try_from(n).is_ok()) && counts.all(|n| n == first) {
            groups.push(group);
        }
    }
    groups
}

/// The matrices that are used whole, in about the order of use.
fn matrix_groups(model: &Model) -> Vec<Vec<usize>> {
    let trunk = model.hparams().n_layer_trunk();
    let mut order: Vec<(u32, u8, usize)> = Vec::new();
    for (index, tensor) in model.tensors.iter().enumerate() {
        let rank = match tensor.role {
            Role::Attention => 0,
            Role::Recurrent if ends_with(&tensor.name, &RECURRENT_MATRICES) => 0,
            Role::DenseFfn | Role::SharedExpert => 1,
            Role::Output => 2,
            _ => continue,
        };
        let is_matrix = tensor.n_dims == 2
            && tensor.bytes > 0
            && tensor.name.ends_with(".weight")
            && !ends_with(&tensor.name, &TABLES);
        if is_matrix && tensor.layer.is_none_or(|layer| layer < trunk) {
            order.push((tensor.layer.unwrap_or(u32::MAX), rank, index));
        }
    }
    order.sort_unstable();
    order.into_iter().map(|(_, _, index)| vec![index]).collect()
}

fn ends_with(name: &str, endings: &[&str]) -> bool {
    endings.iter().any(|ending| name.ends_with(ending))
}
