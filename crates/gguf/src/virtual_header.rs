//! A header for a file that exists only in the answers of a read callback.

use crate::model::Model;
use crate::split::is_split_key;
use crate::write::{WriteError, Writer};

/// The header of a virtual GGUF that joins a model's files, at an alignment of the caller's choice.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VirtualHeader {
    /// The header's bytes, padded: its length is where the data start.
    pub bytes: Vec<u8>,
    /// Where each tensor of [`Model::tensors`] starts, in bytes from the start of the data.
    pub offsets: Vec<u64>,
    /// Bytes of the whole virtual file: the header and all data with their padding.
    pub file_len: u64,
}

/// Builds the header of a virtual GGUF (version 3) with all tensors of a model in order.
///
/// Offsets follow each other without gaps beyond the alignment, as llama.cpp demands. `keep` says
/// which metadata keys go in; `general.alignment` is always set and `split.*` never.
///
/// # Errors
/// If `alignment` is no power of two, or the virtual file would not fit 64 bits.
pub fn virtual_header(
    model: &Model,
    alignment: u32,
    keep: impl Fn(&str) -> bool,
) -> Result<VirtualHeader, WriteError> {
    let mut metadata: crate::Metadata = model
        .metadata
        .iter()
        .filter(|(key, _)| !is_split_key(key) && keep(key))
        .map(|(key, value)| (key, value.clone()))
        .collect();
    metadata.insert(crate::KEY_ALIGNMENT, alignment);
    let mut writer = Writer::new(metadata, alignment)?;
    for tensor in &model.tensors {
        let n_dims = usize::try_from(tensor.n_dims).unwrap_or_default();
        let dims = tensor.dims.get(..n_dims).unwrap_or_default();
        writer.add_tensor(&tensor.name, tensor.ty, dims)?;
    }
    let bytes = writer.header();
    let file_len =
        (bytes.len() as u64).checked_add(writer.data_bytes()).ok_or(WriteError::TooLarge)?;
    let offsets = writer.tensors().iter().map(|info| info.offset).collect();
    Ok(VirtualHeader { bytes, offsets, file_len })
}
