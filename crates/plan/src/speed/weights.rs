//! Which weights a token is multiplied with, where they lie, and how long that takes.

use hypura_gguf::{GgmlType, Hparams, Model, Role, Tensor};
use serde::{Deserialize, Serialize};

use crate::inventory::{Inventory, Kind};
use crate::machine::Machine;
use crate::number::product;
use crate::plan::{Placement, Plan};
use crate::request::Layout;

/// Which kind of matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Product {
    /// With one matrix.
    Matrix,
    /// With the experts that a router chose.
    Experts,
}

/// Weights of one kind that every token is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightUse {
    /// Their type.
    pub ty: GgmlType,
    /// How they lie in memory.
    pub layout: Layout,
    /// With which product.
    pub product: Product,
    /// Elements of a row (the inputs).
    pub n_in: u64,
    /// Rows of the largest tensor of this kind (the outputs).
    pub n_out: u64,
    /// Bytes that one token is multiplied with.
    pub bytes: f64,
    /// Elements of them.
    pub elements: f64,
}

/// What every token is multiplied with when `model` runs by `plan`, the largest kind first. Weights
/// that stay in memory lie in `layout`, those that stream as in the file.
pub fn weight_uses(model: &Model, plan: &Plan, layout: Layout) -> Vec<WeightUse> {
    let hparams = model.hparams();
    let inventory = Inventory::of(model, &hparams, &[]);
    let uses = Uses::of(model, &hparams, &inventory, plan, layout);
    let mut merged = uses.dense;
    for new in uses.layers.into_iter().flat_map(|layer| layer.weights) {
        merge(&mut merged, new);
    }
    merged.sort_by(|a, b| b.bytes.total_cmp(&a.bytes));
    merged
}

/// Adds to what is alike.
fn merge(merged: &mut Vec<WeightUse>, new: WeightUse) {
    let key = |of: &WeightUse| (of.ty, of.layout, of.product, of.n_in);
    match merged.iter_mut().find(|old| key(old) == key(&new)) {
        Some(old) => {
            old.bytes += new.bytes;
            old.elements += new.elements;
            old.n_out = old.n_out.max(new.n_out);
        }
        None => merged.push(new),
    }
}

/// What a token is multiplied with, in the order of the model.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// Everything but routed experts, each kind once.
    pub(super) dense: Vec<WeightUse>,
    /// The layers that have experts.
    pub(super) layers: Vec<LayerUses>,
}

/// The experts of a layer that one token uses.
#[derive(Debug, Default)]
pub(super) struct LayerUses {
    pub(super) weights: Vec<WeightUse>,
    /// Index of its pool in the plan; `None` if all its experts are in memory.
    pub(super) pool: Option<usize>,
}

impl Uses {
    pub(super) fn of(
        model: &Model,
        hparams: &Hparams,
        inventory: &Inventory,
        plan: &Plan,
        layout: Layout,
    ) -> Uses {
        let has_output = model.tensors.iter().any(|tensor| tensor.role == Role::Output);
        let mut uses = Uses::default();
        uses.layers.resize_with(inventory.layers.len(), LayerUses::default);
        let placed = model.tensors.iter().zip(&inventory.kinds).zip(&plan.placements);
        for ((tensor, &kind), placement) in placed {
            let layout = match placement {
                Placement::Resident => layout,
                Placement::ExpertPool { .. } | Placement::Ring => Layout::Plain,
                Placement::Rows | Placement::Unused => continue,
            };
            let of = |product, share: f64| WeightUse {
                ty: tensor.ty,
                layout,
                product,
                n_in: tensor.dims[0],
                n_out: tensor.dims[1],
                bytes: tensor.bytes as f64 * share,
                elements: product_of_dims(tensor) * share,
            };
            match kind {
                Kind::Expert(layer) => {
                    let (Some(uses), Some(layer)) =
                        (uses.layers.get_mut(layer), inventory.layers.get(layer))
                    else {
                        continue;
                    };
                    let share = layer.n_used as f64 / layer.n_experts.max(1) as f64;
                    if let Placement::ExpertPool { pool } = placement {
                        uses.pool = usize::try_from(*pool).ok();
                    }
                    uses.weights.push(of(Product::Experts, share));
                }
                // Experts that must not stream.
                Kind::Fixed if matches!(tensor.role, Role::Expert(_)) => {
                    let share = share_used(tensor, hparams);
                    merge(&mut uses.dense, of(Product::Experts, share));
                }
                Kind::Fixed | Kind::Dense if is_multiplied(tensor, has_output) => {
                    merge(&mut uses.dense, of(Product::Matrix, 1.0));
                }
                Kind::Fixed | Kind::Dense | Kind::Rows | Kind::Unused => {}
            }
        }
        uses
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &WeightUse> {
        self.dense.iter().chain(self.layers.iter().flat_map(|layer| &layer.weights))
    }
}

/// Whether every token is multiplied with all of a tensor. Vectors and tables are not of any weight.
fn is_multiplied(tensor: &Tensor, has_output: bool) -> bool {
    match tensor.role {
        // Tied: the output matrix too.
        Role::TokenEmbedding => !has_output && tensor.n_dims == 2,
        Role::PerLayerEmbedding | Role::PositionEmbedding | Role::Norm | Role::Rope => false,
        _ => tensor.n_dims >= 2,
    }
}

/// Share of the experts of a tensor that a token uses.
fn share_used(tensor: &Tensor, hparams: &Hparams) -> f64 {
    let n_experts = tensor.n_experts().unwrap_or(1).max(1);
    u64::from(hparams.n_expert_used_max()).clamp(1, n_experts) as f64 / n_experts as f64
}

fn product_of_dims(tensor: &Tensor) -> f64 {
    product(tensor.dims) as f64
}

/// Seconds of computing, by how well they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seconds {
    pub(super) measured: f64,
    pub(super) assumed: f64,
}

impl Seconds {
    pub(super) fn total(self) -> f64 {
        self.measured + self.assumed
    }

    pub(super) fn plus(self, other: Seconds) -> Seconds {
        Seconds { measured: self.measured + other.measured, assumed: self.assumed + other.assumed }
    }

    /// Of one token's products.
    pub(super) fn decoding<'a>(
        uses: impl IntoIterator<Item = &'a WeightUse>,
        machine: &Machine,
    ) -> Seconds {
        Seconds::sum(uses, machine, |of, rates| of.bytes / rates.decode_bytes_per_s)
    }

    /// Of the products of `tokens` tokens at once.
    pub(super) fn prompt<'a>(
        uses: impl IntoIterator<Item = &'a WeightUse>,
        machine: &Machine,
        tokens: f64,
    ) -> Seconds {
        Seconds::sum(uses, machine, |of, rates| {
            2.0 * of.elements * tokens / rates.prompt_flops_per_s
        })
    }

    fn sum<'a>(
        uses: impl IntoIterator<Item = &'a WeightUse>,
        machine: &Machine,
        seconds: impl Fn(&WeightUse, &crate::machine::Rates) -> f64,
    ) -> Seconds {
        let mut sum = Seconds::default();
        for of in uses {
            let rates = machine.rates(of.ty, of.layout, of.product, of.n_in);
            let part = if rates.is_measured { &mut sum.measured } else { &mut sum.assumed };
            *part += seconds(of, &rates);
        }
        sum
    }
}
