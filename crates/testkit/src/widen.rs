//! A trained model at K times its size that says the same words and routes the same way.
//!
//! Each expert (or the FFN of a dense model) gets K times its width:
//!
//! ```text
//!            gate              up               down (one row)
//!   old rows | old           | old            | old columns | random
//!   new rows | worth zero    | random         |
//! ```
//!
//! A new neuron gives act(0) · up = 0 with every gated activation in use (SiLU, GELU, ReLU), so the
//! output is that of the old model. The new gate rows are zero scales over random quants: a storage
//! device or file system that detects zeros has nothing to gain from them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypura_gguf::{Array, GgmlType, Metadata, Model, OpenError, Role, Tensor, Value};

use crate::blocks::{self, Worth, inverse_root};
use crate::stream::{self, Job, Progress, RowPlan, Rows, Segment, Source, StreamError};
use hypura_gguf::output::OutputError;

/// The most that a model can be widened: beyond that no machine has the disk.
pub const TIMES_MAX: u32 = 4096;

/// How to widen a model.
#[derive(Debug, Clone)]
pub struct Options {
    /// K, at least 1: how many times the old width the new one is.
    pub times: u32,
    /// Type of the widened matrices; `None` leaves that to `requantize`.
    pub ffn_type: Option<GgmlType>,
    /// Type of all matrices whose rows are whole blocks of it, norms and routers excepted; `None`
    /// keeps that of each.
    pub requantize: Option<GgmlType>,
    /// Seed of the new weights.
    pub seed: u64,
}

/// Why a model can't be widened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum WidenError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("{path:?} can't be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("a model can be widened 1 to {TIMES_MAX} times, not {times} times")]
    Times { times: u32 },
    #[error("the model has no feed-forward matrices that could be widened")]
    NoFfn,
    #[error(
        "layer {layer} has no gate, up and down matrices; only gated feed-forward networks can be widened without changing what they say"
    )]
    NotGated { layer: u32 },
    #[error("tensor {name:?} has one value per neuron; such models can't be widened")]
    Auxiliary { name: String },
    #[error(
        "tensor {name:?} would be {ty}, which can't be made up; choose a type among {}",
        blocks::supported().map(GgmlType::name).collect::<Vec<_>>().join(", ")
    )]
    Type { name: String, ty: GgmlType },
    #[error(
        "tensor {name:?} has rows of {columns} values, which are no whole blocks of {ty} ({} values); choose another type",
        .ty.block_elements()
    )]
    Blocks { name: String, columns: u64, ty: GgmlType },
    #[error(
        "the metadata key {key:?} is missing or can't be multiplied; the width can't be written down"
    )]
    Key { key: String },
    #[error("experts and dense layers share the width in {key:?}; such models can't be widened")]
    SharedWidth { key: String },
}

/// Widens a model (a file or the first of a split set) into one file.
///
/// With `times` 1 it is only requantized: the model to compare a widened one with.
///
/// # Errors
/// If the model can't be read, has no gated feed-forward network, or the output can't be written;
/// nothing is left over then.
pub fn widen(
    model: &Path,
    out: &Path,
    options: &Options,
    progress: Progress<'_>,
) -> Result<(), WidenError> {
    if options.times == 0 || options.times > TIMES_MAX {
        return Err(WidenError::Times { times: options.times });
    }
    let model = Model::open(model)?;
    let files = open_files(&model, out)?;
    let widening = Widening::of(&model, options)?;
    let metadata = widening.metadata(&model, options)?;
    let jobs = model
        .tensors
        .iter()
        .map(|tensor| {
            let source = source_of(tensor, &files).ok_or(WidenError::NoFfn)?;
            widening.job(tensor, source, options)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(stream::write(out, metadata, &jobs, options.seed, progress)?)
}

/// Which matrix of a feed-forward network a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Gate,
    Up,
    GateUp,
    Down,
}

/// The three kinds of feed-forward networks, which have their widths in different keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dense,
    Expert,
    Shared,
}

/// The kind and part of a feed-forward matrix, by the names that llama.cpp gives.
fn ffn_part(name: &str) -> Option<(Kind, Part)> {
    let (_, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some(match rest.strip_suffix(".weight")? {
        "ffn_gate" => (Kind::Dense, Part::Gate),
        "ffn_up" => (Kind::Dense, Part::Up),
        "ffn_down" => (Kind::Dense, Part::Down),
        "ffn_gate_exps" => (Kind::Expert, Part::Gate),
        "ffn_up_exps" => (Kind::Expert, Part::Up),
        "ffn_gate_up_exps" => (Kind::Expert, Part::GateUp),
        "ffn_down_exps" => (Kind::Expert, Part::Down),
        "ffn_gate_shexp" => (Kind::Shared, Part::Gate),
        "ffn_up_shexp" => (Kind::Shared, Part::Up),
        "ffn_down_shexp" => (Kind::Shared, Part::Down),
        _ => return None,
    })
}

/// What of a model is widened.
struct Widening {
    kinds: Vec<Kind>,
    /// The metadata keys that hold the widths.
    keys: Vec<String>,
}

impl Widening {
    /// Experts where there are any, the dense networks otherwise.
    fn of(model: &Model, options: &Options) -> Result<Widening, WidenError> {
        let has = |kind| {
            model.tensors.iter().any(|t| ffn_part(&t.name).is_some_and(|(own, _)| own == kind))
        };
        let key = |name: &str| format!("{}.{name}", model.architecture());
        let is_there = |key: &String| model.metadata.get(key).is_some();
        let dense = key("feed_forward_length");
        let expert = key("expert_feed_forward_length");

        let mut widening = Widening { kinds: Vec::new(), keys: Vec::new() };
        if has(Kind::Expert) {
            widening.kinds.push(Kind::Expert);
            if is_there(&expert) {
                widening.keys.push(expert);
            } else if has(Kind::Dense) {
                return Err(WidenError::SharedWidth { key: dense });
            } else {
                widening.keys.push(dense);
            }
            // Where shared experts have no width of their own, it is a multiple of the experts'.
            let is_multiple = is_there(&key("expert_shared_count"))
                && !is_there(&key("expert_shared_feed_forward_length"));
            if has(Kind::Shared) && is_multiple {
                widening.kinds.push(Kind::Shared);
            }
        } else if has(Kind::Dense) {
            widening.kinds.push(Kind::Dense);
            widening.keys.push(dense);
        } else {
            return Err(WidenError::NoFfn);
        }
        if options.times > 1 {
            widening.check(model)?;
        }
        Ok(widening)
    }

    /// Refuses what would say other words when widened.
    fn check(&self, model: &Model) -> Result<(), WidenError> {
        for tensor in &model.tensors {
            if matches!(tensor.role, Role::ExpertAuxiliary | Role::DenseFfnAuxiliary) {
                return Err(WidenError::Auxiliary { name: tensor.name.clone() });
            }
            let Some((kind, part)) = self.part_of(tensor) else { continue };
            let layer = tensor.layer.unwrap_or(0);
            let sibling = |wanted| {
                model.tensors.iter().any(|other| {
                    other.layer == tensor.layer && self.part_of(other) == Some((kind, wanted))
                })
            };
            let is_gated = sibling(Part::GateUp) || (sibling(Part::Gate) && sibling(Part::Up));
            if !is_gated || !sibling(Part::Down) || part == Part::GateUp && sibling(Part::Up) {
                return Err(WidenError::NotGated { layer });
            }
        }
        Ok(())
    }

    fn part_of(&self, tensor: &Tensor) -> Option<(Kind, Part)> {
        ffn_part(&tensor.name).filter(|(kind, _)| self.kinds.contains(kind))
    }

    /// The metadata of the widened model.
    fn metadata(&self, model: &Model, options: &Options) -> Result<Metadata, WidenError> {
        let mut metadata = model.metadata.clone();
        for key in &self.keys {
            let old = metadata.get(key).and_then(|width| multiplied(width, options.times));
            let width = old.ok_or_else(|| WidenError::Key { key: key.clone() })?;
            metadata.insert(key.as_str(), width);
        }
        if let Some(file_type) = options.ffn_type.or(options.requantize).and_then(file_type) {
            metadata.insert("general.file_type", file_type);
        }
        if options.times > 1 {
            let name = metadata.str("general.name").unwrap_or("model");
            metadata.insert("general.name", format!("{name} widened x{}", options.times));
        }
        Ok(metadata)
    }

    /// How to write one tensor.
    fn job(&self, tensor: &Tensor, source: Source, options: &Options) -> Result<Job, WidenError> {
        let Some((_, part)) = self.part_of(tensor) else {
            let ty = options.requantize.filter(|&ty| may_requantize(tensor, ty));
            return Ok(match ty {
                Some(ty) => Job::convert(&tensor.name, ty, shape(tensor), source),
                None => Job::copy(&tensor.name, shape(tensor), source),
            });
        };
        let requantized = options.requantize.filter(|&ty| may_requantize(tensor, ty));
        let ty = options.ffn_type.or(requantized).unwrap_or(tensor.ty);
        if options.times > 1 && !blocks::is_supported(ty) {
            return Err(WidenError::Type { name: tensor.name.clone(), ty });
        }
        let columns = source.columns;
        if ty.row_bytes(columns).is_none() {
            return Err(WidenError::Blocks { name: tensor.name.clone(), columns, ty });
        }
        Ok(widened(tensor, part, ty, source, options.times.into()))
    }
}

/// The job that writes a feed-forward matrix at `times` its width.
fn widened(tensor: &Tensor, part: Part, ty: GgmlType, source: Source, times: u64) -> Job {
    let [columns, n_rows, ..] = tensor.dims;
    let old = |first, n_rows| Segment { n_rows, rows: Rows::Old { first } };
    let new = |n_rows, worth| Segment { n_rows, rows: Rows::New(worth) };
    let added = times - 1;
    // Unit variance in, unit variance out.
    let random = Worth::Rms(inverse_root(columns));
    let half = n_rows / 2;
    let segments = match part {
        Part::Gate => vec![old(0, n_rows), new(n_rows * added, Worth::Zero)],
        Part::Up => vec![old(0, n_rows), new(n_rows * added, random)],
        Part::GateUp => vec![
            old(0, half),
            new(half * added, Worth::Zero),
            old(half, half),
            new(half * added, random),
        ],
        Part::Down => vec![old(0, n_rows)],
    };
    let mut dims = shape(tensor).to_vec();
    // Rows are dims[1] and columns dims[0].
    let grown = dims.get_mut(usize::from(part != Part::Down));
    if let Some(dim) = grown {
        *dim *= times;
    }
    let new_columns_rms = inverse_root(columns * times);
    let rows = RowPlan { segments, source: Some(source), new_columns_rms };
    Job { name: tensor.name.clone(), ty, dims, rows }
}

/// Whether a tensor may take another type although nobody asked for this tensor.
fn may_requantize(tensor: &Tensor, ty: GgmlType) -> bool {
    let is_matrix = tensor.n_dims >= 2 && tensor.name.ends_with(".weight");
    let is_large = matches!(
        tensor.role,
        Role::TokenEmbedding
            | Role::Output
            | Role::Attention
            | Role::Expert(_)
            | Role::SharedExpert
            | Role::DenseFfn
    );
    is_matrix && is_large && ty.row_bytes(tensor.dims[0]).is_some()
}

fn shape(tensor: &Tensor) -> &[u64] {
    let n_dims = usize::try_from(tensor.n_dims).unwrap_or(0);
    tensor.dims.get(..n_dims).unwrap_or(&tensor.dims)
}

/// A width, or one for each layer, times `times`.
fn multiplied(width: &Value, times: u32) -> Option<Value> {
    let one = |value: &Value| value.as_u32()?.checked_mul(times);
    Some(match width {
        Value::Array(widths) => {
            let all = (0..widths.len()).map(|i| one(&widths.get(i)?));
            Value::Array(Array::U32(all.collect::<Option<_>>()?))
        }
        width => Value::U32(one(width)?),
    })
}

/// `general.file_type` of a model that is mostly of one type (`enum llama_ftype` in `llama.h`).
fn file_type(ty: GgmlType) -> Option<u32> {
    Some(match ty {
        GgmlType::F32 => 0,
        GgmlType::F16 => 1,
        GgmlType::Q4_0 => 2,
        GgmlType::Q8_0 => 7,
        GgmlType::Q5_0 => 8,
        GgmlType::Q4_K => 14,
        GgmlType::Q5_K => 16,
        GgmlType::Q6_K => 18,
        _ => return None,
    })
}

/// Opens the files of a model, none of which may be the output.
fn open_files(model: &Model, out: &Path) -> Result<Vec<(Arc<File>, PathBuf)>, WidenError> {
    let out_path = fs::canonicalize(out).ok();
    let open = |path: &PathBuf| {
        if out_path.is_some() && fs::canonicalize(path).ok() == out_path {
            return Err(StreamError::from(OutputError::Source { path: out.to_owned() }).into());
        }
        let file =
            File::open(path).map_err(|source| WidenError::Read { path: path.clone(), source })?;
        Ok((Arc::new(file), path.clone()))
    };
    model.files.iter().map(|file| open(&file.path)).collect()
}

fn source_of(tensor: &Tensor, files: &[(Arc<File>, PathBuf)]) -> Option<Source> {
    let (file, path) = files.get(tensor.file)?;
    let [columns, ne1, ne2, ne3] = tensor.dims;
    // One matrix is one expert; whatever is copied whole is one matrix too.
    let n_rows = if ffn_part(&tensor.name).is_some() { ne1 } else { ne1 * ne2 * ne3 };
    Some(Source {
        file: Arc::clone(file),
        path: path.clone(),
        offset: tensor.offset,
        ty: tensor.ty,
        columns,
        n_rows,
    })
}
