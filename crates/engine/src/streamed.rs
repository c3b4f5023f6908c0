//! Which tensors of a plan are streamed, and where their bytes are.

use hypura_gguf as gguf;
use hypura_llama::tiered::{StreamKind, StreamedTensor};
use hypura_plan::{Part, Placement, Plan};

use crate::load::LoadError;
use crate::stream::{ExpertLayer, MatrixSource, PartSource, RowSource, Sources};

/// The streamed tensors of a plan, as llama.cpp has to treat them and as they are read.
pub(crate) struct Streamed {
    pub(crate) tensors: Vec<StreamedTensor>,
    pub(crate) sources: Sources,
}

impl Streamed {
    pub(crate) fn of(gguf: &gguf::Model, plan: &Plan) -> Result<Streamed, LoadError> {
        let too_large = || LoadError::Other("a tensor is larger than the address space".into());
        let mut tensors = Vec::new();
        let mut sources = Sources::default();
        for (layer, of) in plan.expert_layers.iter().enumerate() {
            let layer = u32::try_from(layer).unwrap_or(u32::MAX);
            let mut parts = Vec::new();
            for expert in &of.tensors {
                let tensor = &gguf.tensors[expert.tensor];
                let part = part_number(expert.part);
                let slice = tensor.expert_bytes().ok_or_else(too_large)?;
                parts.push(PartSource {
                    part,
                    file: tensor.file,
                    offset: tensor.offset,
                    slice_bytes: usize::try_from(slice).map_err(|_| too_large())?,
                });
                let kind = StreamKind::Experts { layer, part };
                tensors.push(StreamedTensor { name: tensor.name.clone(), kind });
            }
            // What is needed last is read last.
            parts.sort_by_key(|p| p.part == part_number(Part::Down));
            sources.layers.push(ExpertLayer { pool: of.pool, parts });
            sources.n_experts = sources.n_experts.max(of.n_experts);
        }
        for (tensor, placement) in gguf.tensors.iter().zip(&plan.placements) {
            let kind = match placement {
                Placement::Resident | Placement::ExpertPool { .. } | Placement::Unused => continue,
                Placement::Ring => {
                    let index = u32::try_from(sources.matrices.len()).unwrap_or(u32::MAX);
                    sources.matrices.push(MatrixSource {
                        file: tensor.file,
                        offset: tensor.offset,
                        bytes: usize::try_from(tensor.bytes).map_err(|_| too_large())?,
                    });
                    StreamKind::Matrix { index }
                }
                Placement::Rows if sources.rows.is_some() => {
                    return Err(LoadError::Other("internal error: two tables by rows".into()));
                }
                Placement::Rows => {
                    sources.rows = Some(RowSource {
                        file: tensor.file,
                        offset: tensor.offset,
                        n_rows: tensor.dims[1],
                    });
                    StreamKind::Rows
                }
            };
            tensors.push(StreamedTensor { name: tensor.name.clone(), kind });
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
