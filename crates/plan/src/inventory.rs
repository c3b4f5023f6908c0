//! What a model is made of, seen by a planner: what must be resident, what may stream and how.

use std::collections::BTreeMap;

use hypura_gguf::{ExpertPart, GgmlType, Hparams, Model, Role, Tensor};

use crate::number::total;
use crate::plan::Part;

/// The parts of recurrent layers that are plain matrix products, and large.
const RECURRENT_MATRICES: [&str; 11] = [
    "ssm_in",
    "ssm_out",
    "time_mix_receptance",
    "time_mix_key",
    "time_mix_value",
    "time_mix_gate",
    "time_mix_output",
    "shortconv.in_proj",
    "shortconv.out_proj",
    "ssm_x",
    "ssm_dt",
];

/// Attention's tables that are looked up instead of multiplied with.
const ATTENTION_TABLES: [&str; 2] = ["attn_rel_b", "attn_rot_embd"];

/// How a tensor may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Resident in every plan.
    Fixed,
    /// A matrix that each token reads whole: resident, or streamed through the ring.
    Dense,
    /// Part of the experts of the layer at this index of [`Inventory::layers`].
    Expert(usize),
    /// A table of which a token reads one row.
    Rows,
    /// Never loaded: llama.cpp computes it only for multi-token prediction, which is off.
    Unused,
}

/// One layer's experts.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The model's layer number.
    pub(crate) block: u32,
    /// Index of its size class.
    pub(crate) class: usize,
    /// Its tensors: part, index in the model, type, row length, rows, bytes of one expert.
    pub(crate) parts: Vec<LayerPart>,
    pub(crate) n_experts: u64,
    pub(crate) n_used: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct LayerPart {
    pub(crate) part: Part,
    pub(crate) tensor: usize,
    pub(crate) bytes: u64,
    shape: (GgmlType, u64, u64),
}

/// Layers whose experts have the same parts of the same shapes and types: one slot fits them all.
#[derive(Clone, Debug)]
pub(crate) struct SizeClass {
    pub(crate) layers: Vec<usize>,
    pub(crate) slot_bytes: u64,
    pub(crate) n_experts: u64,
    /// Experts that a token uses in one of its layers.
    pub(crate) n_used: u64,
}

impl SizeClass {
    pub(crate) fn n_units(&self) -> u64 {
        self.n_experts.saturating_mul(self.layers.len() as u64)
    }
}

/// A matrix that may stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dense {
    /// Index in the model.
    pub(crate) tensor: usize,
    pub(crate) bytes: u64,
}

/// A model as a planner sees it.
#[derive(Clone, Debug)]
pub(crate) struct Inventory {
    /// Per tensor of the model.
    pub(crate) kinds: Vec<Kind>,
    pub(crate) fixed_bytes: u64,
    /// Bytes of all tensors that are of use.
    pub(crate) used_bytes: u64,
    /// The matrices that may stream, those first that should stay.
    pub(crate) dense: Vec<Dense>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) classes: Vec<SizeClass>,
    pub(crate) rows_bytes: u64,
    /// Bytes of the rows that one token reads.
    pub(crate) row_bytes: u64,
    pub(crate) largest_tensor_bytes: u64,
    pub(crate) expert_width: u64,
}

impl Inventory {
    /// `pinned` names tensors that must be resident whatever their role.
    pub(crate) fn of(model: &Model, hparams: &Hparams, pinned: &[String]) -> Self {
        let has_output = model.tensors.iter().any(|t| t.name == "output.weight");
        let mut kinds: Vec<Kind> =
            model.tensors.iter().map(|tensor| kind(tensor, hparams, has_output)).collect();
        let layers = expert_layers(model, hparams, pinned, &mut kinds);
        for (tensor, kind) in model.tensors.iter().zip(&mut kinds) {
            if pinned.contains(&tensor.name) {
                *kind = Kind::Fixed;
            }
        }
        let (layers, classes) = size_classes(layers);

        let of_kind = |wanted: Kind| {
            let tensors = model.tensors.iter().zip(&kinds);
            tensors.filter(move |&(_, &kind)| kind == wanted).map(|(tensor, _)| tensor)
        };
        let bytes_of_kind = |wanted| total(of_kind(wanted).map(|tensor| tensor.bytes));
        let resident_candidates = of_kind(Kind::Fixed).chain(of_kind(Kind::Dense));
        Self {
            fixed_bytes: bytes_of_kind(Kind::Fixed),
            used_bytes: model.weight_bytes().saturating_sub(bytes_of_kind(Kind::Unused)),
            dense: dense_by_worth(model, &kinds),
            rows_bytes: bytes_of_kind(Kind::Rows),
            row_bytes: total(of_kind(Kind::Rows).map(|t| t.bytes / t.dims[1].max(1))),
            largest_tensor_bytes: resident_candidates.map(|t| t.bytes).max().unwrap_or(0),
            expert_width: expert_width(model, &layers),
            kinds,
            layers,
            classes,
        }
    }

    /// Bytes of the matrices that may stream.
    pub(crate) fn dense_bytes(&self) -> u64 {
        total(self.dense.iter().map(|dense| dense.bytes))
    }

    /// Bytes of a slot that experts of any layer fit, part by part.
    pub(crate) fn widest_expert_bytes(&self) -> u64 {
        let mut widest: BTreeMap<Part, u64> = BTreeMap::new();
        for part in self.layers.iter().flat_map(|layer| &layer.parts) {
            let bytes = widest.entry(part.part).or_default();
            *bytes = part.bytes.max(*bytes);
        }
        total(widest.into_values())
    }

    /// Bytes of all experts.
    pub(crate) fn expert_bytes(&self) -> u64 {
        total(self.classes.iter().map(|class| class.n_units().saturating_mul(class.slot_bytes)))
    }
}

fn kind(tensor: &Tensor, hparams: &Hparams, has_output: bool) -> Kind {
    if tensor.layer.is_some_and(|layer| layer >= hparams.n_layer_trunk()) {
        return Kind::Unused;
    }
    let is_matrix = matches!(tensor.n_dims, 2 | 3) && tensor.name.ends_with(".weight");
    let names = |stems: &[&str]| stems.iter().any(|stem| stem_of(&tensor.name) == *stem);
    match tensor.role {
        // A tied embedding is the output matrix too, which every token reads whole.
        Role::TokenEmbedding if has_output && is_matrix => Kind::Rows,
        Role::Output | Role::DenseFfn | Role::SharedExpert if is_matrix => Kind::Dense,
        Role::Attention if is_matrix && !names(&ATTENTION_TABLES) => Kind::Dense,
        Role::Recurrent if is_matrix && names(&RECURRENT_MATRICES) => Kind::Dense,
        _ => Kind::Fixed,
    }
}

/// `blk.3.attn_q.weight` as `attn_q`.
fn stem_of(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    match name.split_once("blk.").and_then(|(_, rest)| rest.split_once('.')) {
        Some((_, stem)) => stem,
        None => name,
    }
}

/// The layers that have experts, in the model's order; their tensors become [`Kind::Expert`]. Two
/// sets of experts in one layer (`exps` and `chexps`) are two layers here.
fn expert_layers(
    model: &Model,
    hparams: &Hparams,
    pinned: &[String],
    kinds: &mut [Kind],
) -> Vec<Layer> {
    let mut by_set: BTreeMap<(u32, String), Vec<ExpertTensorRef<'_>>> = BTreeMap::new();
    for (index, tensor) in model.tensors.iter().enumerate() {
        if let (Role::Expert(part), Some(block), Some(_)) =
            (tensor.role, tensor.layer, tensor.n_experts())
            && block < hparams.n_layer_trunk()
        {
            let prefix = tensor.name.split("blk.").next().unwrap_or_default();
            let set = stem_of(&tensor.name).rsplit('_').next().unwrap_or_default();
            let set = (block, format!("{prefix}{set}"));
            by_set.entry(set).or_default().push((index, tensor, part));
        }
    }
    let used_max = hparams.n_expert_used_max();
    let mut layers = Vec::new();
    for ((block, _), tensors) in by_set {
        let n_experts = tensors.first().and_then(|(_, tensor, _)| tensor.n_experts()).unwrap_or(0);
        let unlike = |tensor: &Tensor| tensor.n_experts() != Some(n_experts);
        if tensors.iter().any(|(_, tensor, _)| unlike(tensor) || pinned.contains(&tensor.name)) {
            // No common set of experts, or one that may not stream: they stay resident.
            continue;
        }
        let used = hparams.n_expert_used.get(block as usize).copied().filter(|&used| used > 0);
        let mut parts: Vec<LayerPart> = tensors
            .iter()
            .map(|&(index, tensor, part)| LayerPart {
                part: part.into(),
                tensor: index,
                bytes: tensor.expert_bytes().unwrap_or(0),
                shape: (tensor.ty, tensor.dims[0], tensor.dims[1]),
            })
            .collect();
        parts.sort_by_key(|part| part.part);
        for part in &parts {
            if let Some(kind) = kinds.get_mut(part.tensor) {
                *kind = Kind::Expert(layers.len());
            }
        }
        layers.push(Layer {
            block,
            class: 0,
            parts,
            n_experts,
            n_used: u64::from(used.unwrap_or(used_max).max(1)).min(n_experts),
        });
    }
    layers
}

/// A tensor of experts: index in the model, itself, its part.
type ExpertTensorRef<'a> = (usize, &'a Tensor, ExpertPart);
/// What layers of one size class have in common: shapes and types of the parts, number of experts.
type ShapeKey = (Vec<(Part, (GgmlType, u64, u64))>, u64);

fn size_classes(mut layers: Vec<Layer>) -> (Vec<Layer>, Vec<SizeClass>) {
    let mut keys: Vec<ShapeKey> = Vec::new();
    let mut classes: Vec<SizeClass> = Vec::new();
    for (index, layer) in layers.iter_mut().enumerate() {
        let shapes = layer.parts.iter().map(|part| (part.part, part.shape)).collect();
        let key = (shapes, layer.n_experts);
        layer.class = keys.iter().position(|other| *other == key).unwrap_or_else(|| {
            keys.push(key);
            classes.push(SizeClass {
                layers: Vec::new(),
                slot_bytes: total(layer.parts.iter().map(|part| part.bytes)),
                n_experts: layer.n_experts,
                n_used: 0,
            });
            classes.len() - 1
        });
        if let Some(class) = classes.get_mut(layer.class) {
            class.layers.push(index);
            class.n_used = class.n_used.max(layer.n_used);
        }
    }
    (layers, classes)
}

/// The matrices that may stream in the order of their worth in memory. Each saves its own bytes per
/// token, so only the order of reading matters: what is streamed should be spread evenly between
/// what is not, so that the drive is busy while resident layers compute. First the output matrix and
/// attention, then feed-forward networks, each by the bits of the layer number reversed: the first
/// n of them are about evenly spaced for every n, and so are the others.
fn dense_by_worth(model: &Model, kinds: &[Kind]) -> Vec<Dense> {
    let mut order: Vec<(u8, u32, usize)> = model
        .tensors
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|&(_, (_, &kind))| kind == Kind::Dense)
        .map(|(index, (tensor, _))| {
            let rank = match tensor.role {
                Role::Output => 0,
                Role::DenseFfn | Role::SharedExpert => 2,
                _ => 1,
            };
            (rank, tensor.layer.unwrap_or(0).reverse_bits(), index)
        })
        .collect();
    order.sort_unstable();
    let dense = |(_, _, tensor): (u8, u32, usize)| {
        model.tensors.get(tensor).map(|info| Dense { tensor, bytes: info.bytes })
    };
    order.into_iter().filter_map(dense).collect()
}

fn expert_width(model: &Model, layers: &[Layer]) -> u64 {
    let parts = layers.iter().flat_map(|layer| &layer.parts);
    let width = |part: &LayerPart| {
        let tensor = model.tensors.get(part.tensor)?;
        Some(match part.part {
            Part::Down => tensor.dims[0],
            _ => tensor.dims[1],
        })
    };
    parts.filter_map(width).max().unwrap_or(0)
}
