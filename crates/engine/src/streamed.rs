//! Which tensors of a plan are streamed, and where their bytes are.

use hypura_llama::tiered::{StreamKind, StreamedTensor};
use hypura_plan::{Part, Placement, Plan};

use crate::hot::Opened;
use crate::options::LoadError;
use crate::stream::{ExpertLayer, MatrixSource, PartSource, RowSource, Sources};

/// The streamed tensors of a plan, as llama.cpp has to treat them and as they are read.
pub(crate) struct Streamed {
    pub(crate) tensors: Vec<StreamedTensor>,
    pub(crate) sources: Sources,
}

impl Streamed {
    pub(crate) fn of(opened: &Opened, plan: &Plan) -> Result<Streamed, LoadError> {
        let too_large = || LoadError::Other("a tensor is larger than the address space".into());
        let bytes = |bytes: u64| usize::try_from(bytes).map_err(|_| too_large());
        let place = |index| {
            let missing = || LoadError::Other(format!("internal error: no tensor {index}"));
            opened.place(index).ok_or_else(missing)
        };
        let gguf = opened.model();
        let mut tensors = Vec::new();
        let mut sources = Sources::default();
        for (layer, of) in plan.expert_layers.iter().enumerate() {
            let layer = u32::try_from(layer).unwrap_or(u32::MAX);
            let mut parts = Vec::new();
            for expert in &of.tensors {
                let tensor = &gguf.tensors[expert.tensor];
                let part = part_number(expert.part);
                let place = place(expert.tensor)?;
                parts.push(PartSource {
                    part,
                    file: place.file,
                    offset: place.offset,
                    slice_bytes: bytes(place.slice_bytes)?,
                    stride: place.stride,
                });
                tensors.push(StreamedTensor {
                    name: tensor.name.clone(),
                    kind: StreamKind::Experts { layer, part },
                    is_repacked: place.is_repacked,
                });
            }
            // What is needed last is read last.
            parts.sort_by_key(|p| p.part == part_number(Part::Down));
            sources.layers.push(ExpertLayer { pool: of.pool, parts });
            sources.n_experts = sources.n_experts.max(of.n_experts);
            sources.n_used = sources.n_used.max(of.n_used);
        }
        for (index, (tensor, placement)) in gguf.tensors.iter().zip(&plan.placements).enumerate() {
            let place = place(index)?;
            let kind = match placement {
                Placement::Resident | Placement::ExpertPool { .. } | Placement::Unused => continue,
                Placement::Ring => {
                    let tensor = index;
                    let index = u32::try_from(sources.matrices.len()).unwrap_or(u32::MAX);
                    if plan.host_matrices.binary_search(&tensor).is_ok() {
                        sources.stored.push(index);
                    }
                    sources.matrices.push(MatrixSource {
                        file: place.file,
                        offset: place.offset,
                        bytes: bytes(place.slice_bytes)?,
                    });
                    StreamKind::Matrix { index }
                }
                Placement::Rows if sources.rows.is_some() => {
                    return Err(LoadError::Other("internal error: two tables by rows".into()));
                }
                Placement::Rows => {
                    sources.rows = Some(RowSource {
                        file: place.file,
                        offset: place.offset,
                        n_rows: tensor.dims[1],
                    });
                    StreamKind::Rows
                }
            };
            let is_repacked = place.is_repacked;
            tensors.push(StreamedTensor { name: tensor.name.clone(), kind, is_repacked });
        }
        Ok(Streamed { tensors, sources })
    }
}

/// The number of a part, as in [`hypura_tier::Parts`].
fn part_number(part: Part) -> u8 {
    match part {
        Part::Gate => 0,
        Part::Up => 1,
        Part::Down => 2,
        Part::GateUp => 3,
    }
}
