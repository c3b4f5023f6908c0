//! Opening a hot file: where its tensors are, with everything checked that a header can say.

use std::collections::HashSet;

use super::table::{
    self, CHECKSUM_BYTES, Checksum, Entry, Group, HEADER_CHECKSUM, PLAIN_CHECKSUM, PREFIX,
    SOURCE_ALIGNMENT, SOURCE_BYTES, SOURCE_NAME, Table, VERSION,
};
use super::{HOT_ALIGNMENT, HOT_BLOCKS, HOT_VERSION, HotLayout};
use crate::ggml_type::GgmlType;
use crate::metadata::Metadata;
use crate::model::{ByteRange, Model, ModelFile, Tensor};
use crate::role::Role;
use crate::write::Writer;
use crate::{KEY_ALIGNMENT, MAX_TENSOR_NAME_BYTES};

/// A hot file as a model, and where its hot tensors lie.
#[derive(Debug, Clone)]
pub struct HotModel {
    /// The model as it was before: all tensors in the source's order with their types and shapes,
    /// the source's metadata. It can be planned with.
    ///
    /// Tensors that are not hot can be read as those of any model. Hot ones have no range of their
    /// own: their `offset` is the end of the file, so that whoever reads them without asking
    /// [`HotModel::place`] gets nothing instead of wrong bytes.
    pub view: Model,
    /// File name of the source.
    pub source_name: String,
    /// Bytes of the source's files.
    pub source_bytes: u64,
    places: Vec<Option<HotTensor>>,
    groups: Vec<HotGroup>,
    plain_checksums: Vec<(usize, Checksum)>,
}

/// Where the slices of a hot tensor lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HotTensor {
    /// Index in [`HotModel::groups`].
    pub group: usize,
    /// Where its first slice begins in the file; a multiple of [`HOT_ALIGNMENT`].
    pub offset: u64,
    /// Bytes from one slice to the next; a multiple of [`HOT_ALIGNMENT`].
    pub stride: u64,
    /// Bytes of a slice. The file goes on at least up to the next multiple of [`HOT_ALIGNMENT`].
    pub slice_bytes: u64,
    /// Number of slices: one per expert, or 1 for a matrix.
    pub n_slices: u32,
    /// How slices lie in themselves.
    pub layout: HotLayout,
}

/// Tensors whose slices share blocks: the experts of a layer, or a single matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HotGroup {
    /// Indices in the view's tensors, in the order in which they lie in a block.
    pub tensors: Vec<usize>,
    /// Where the first block begins in the file; a multiple of [`HOT_ALIGNMENT`].
    pub offset: u64,
    /// Bytes of a block, padding included; a multiple of [`HOT_ALIGNMENT`].
    pub stride: u64,
    /// Number of blocks.
    pub blocks: u32,
    pub(super) checksum: Checksum,
}

/// Why a file is no sound hot file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum HotError {
    #[error("this is an ordinary model file; make an optimised one of it with hypura optimize")]
    NotHot,
    #[error(
        "this optimised model has version {version} of the format, but {HOT_VERSION} is needed; run hypura optimize again on the original model"
    )]
    Version { version: u32 },
    #[error("the optimised model is damaged ({key}); run hypura optimize again on the original")]
    Damaged { key: &'static str },
    #[error(
        "the optimised model is damaged (place of {name:?}); run hypura optimize again on the original"
    )]
    Place { name: String },
    #[error("the optimised model's header is damaged; run hypura optimize again on the original")]
    Checksum,
}

/// Whether an opened model is a hot file, of whatever version.
#[must_use]
pub fn is_hot(model: &Model) -> bool {
    model.metadata.get(VERSION).is_some()
}

impl HotTensor {
    /// Where a slice lies; `None` if there is no such slice.
    #[must_use]
    pub fn slice(&self, index: u32) -> Option<ByteRange> {
        (index < self.n_slices).then(|| ByteRange {
            file: 0,
            offset: self.offset + u64::from(index) * self.stride,
            len: self.slice_bytes,
        })
    }
}

impl HotGroup {
    /// Where a block lies: all parts of one expert, padding included.
    #[must_use]
    pub fn block(&self, index: u32) -> Option<ByteRange> {
        (index < self.blocks).then(|| ByteRange {
            file: 0,
            offset: self.offset + u64::from(index) * self.stride,
            len: self.stride,
        })
    }
}

impl HotModel {
    /// Reads the table of a hot file that was opened as a model.
    ///
    /// # Errors
    /// [`HotError::NotHot`] for any other model, and whatever keeps the table from being sound.
    pub fn of(model: &Model) -> Result<Self, HotError> {
        let hot = check_places(model)?;
        check_header(model)?;
        Ok(hot)
    }

    /// Where a tensor of the view lies if it is hot.
    #[must_use]
    pub fn place(&self, tensor: usize) -> Option<&HotTensor> {
        self.places.get(tensor)?.as_ref()
    }

    /// All groups in the order of the file.
    #[must_use]
    pub fn groups(&self) -> &[HotGroup] {
        &self.groups
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> Option<&ModelFile> {
        self.view.files.first()
    }

    /// The tensors that are not hot, with their checksums.
    pub(super) fn plain_checksums(&self) -> &[(usize, Checksum)] {
        &self.plain_checksums
    }
}

/// Everything but the checksum of the header.
pub(crate) fn check_places(model: &Model) -> Result<HotModel, HotError> {
    let version = model.metadata.get(VERSION).ok_or(HotError::NotHot)?;
    match version.as_u32() {
        Some(HOT_VERSION) => {}
        version => return Err(HotError::Version { version: version.unwrap_or(0) }),
    }
    let [file] = model.files.as_slice() else {
        return Err(HotError::Damaged { key: "split.count" });
    };
    if file.alignment != HOT_ALIGNMENT {
        return Err(HotError::Damaged { key: KEY_ALIGNMENT });
    }
    let Some((blocks, plain)) = model.tensors.split_last() else {
        return Err(HotError::Damaged { key: HOT_BLOCKS });
    };
    if blocks.name != HOT_BLOCKS || blocks.ty != GgmlType::I8 || blocks.n_dims != 1 {
        return Err(HotError::Damaged { key: HOT_BLOCKS });
    }
    let table = Table::get(&model.metadata)?;
    let groups = check_groups(&table.groups, blocks)?;
    let metadata = &model.metadata;
    let damaged = |key| HotError::Damaged { key };
    let checksums = table::checksums(metadata, PLAIN_CHECKSUM, plain.len())?;
    let mut hot = HotModel {
        view: Model::assemble(model.files.clone(), source_metadata(metadata), Vec::new()),
        source_name: metadata.str(SOURCE_NAME).ok_or(damaged(SOURCE_NAME))?.to_owned(),
        source_bytes: metadata.u64(SOURCE_BYTES).ok_or(damaged(SOURCE_BYTES))?,
        places: Vec::new(),
        groups,
        plain_checksums: Vec::new(),
    };
    let tensors = hot.merge(&table.entries, plain, checksums, file.len)?;
    hot.check_blocks(&tensors)?;
    hot.view = Model::assemble(model.files.clone(), hot.view.metadata, tensors);
    Ok(hot)
}

/// The groups with offsets in the file, if they lie one behind the other within the blocks.
fn check_groups(groups: &[Group], area: &Tensor) -> Result<Vec<HotGroup>, HotError> {
    const KEY: &str = "hypura.hot.group.offset";
    let alignment = u64::from(HOT_ALIGNMENT);
    let mut end = 0_u64;
    let mut checked = Vec::with_capacity(groups.len());
    for group in groups {
        let bytes = group.stride.checked_mul(group.blocks.into());
        let after = bytes.and_then(|bytes| group.offset.checked_add(bytes));
        let is_aligned = group.offset % alignment == 0 && group.stride % alignment == 0;
        let is_some = group.blocks > 0 && group.stride > 0;
        match after {
            Some(after) if is_aligned && is_some && group.offset >= end && after <= area.bytes => {
                end = after;
            }
            _ => return Err(HotError::Damaged { key: KEY }),
        }
        checked.push(HotGroup {
            tensors: Vec::new(),
            offset: area.offset + group.offset, // within the file, as is the area
            stride: group.stride,
            blocks: group.blocks,
            checksum: group.checksum,
        });
    }
    Ok(checked)
}

impl HotModel {
    /// All tensors in the source's order; notes the places of the hot ones.
    fn merge(
        &mut self,
        entries: &[Entry],
        plain: &[Tensor],
        checksums: &[Checksum],
        file_len: u64,
    ) -> Result<Vec<Tensor>, HotError> {
        const KEY: &str = "hypura.hot.tensor.index";
        let n = entries.len() + plain.len();
        let mut names: HashSet<&str> = plain.iter().map(|tensor| tensor.name.as_str()).collect();
        let (mut entries, mut plain) = (entries.iter().peekable(), plain.iter().zip(checksums));
        let mut tensors = Vec::with_capacity(n);
        for index in 0..n {
            if let Some(entry) = entries.next_if(|entry| entry.index as usize == index) {
                let place = || HotError::Place { name: entry.name.clone() };
                if !names.insert(&entry.name) {
                    return Err(place());
                }
                let tensor = hot_tensor(entry, file_len).ok_or_else(place)?;
                let group = entry.group as usize;
                let checked = self.groups.get_mut(group).ok_or_else(place)?;
                let blocks = slices_of(&tensor).filter(|&n| n == u64::from(checked.blocks));
                let slice_bytes = tensor.bytes / blocks.ok_or_else(place)?;
                let end = entry.offset.checked_add(slice_bytes).ok_or_else(place)?;
                if entry.offset % u64::from(HOT_ALIGNMENT) != 0 || end > checked.stride {
                    return Err(place());
                }
                checked.tensors.push(index);
                self.places.push(Some(HotTensor {
                    group,
                    offset: checked.offset + entry.offset,
                    stride: checked.stride,
                    slice_bytes,
                    n_slices: checked.blocks,
                    layout: entry.layout,
                }));
                tensors.push(tensor);
            } else if let Some((tensor, checksum)) = plain.next() {
                self.plain_checksums.push((index, *checksum));
                self.places.push(None);
                tensors.push(tensor.clone());
            }
        }
        // An index that is too large or out of order was never reached.
        if entries.next().is_some() || tensors.len() != n {
            return Err(HotError::Damaged { key: KEY });
        }
        Ok(tensors)
    }

    /// The parts of each block one behind the other.
    fn check_blocks(&mut self, tensors: &[Tensor]) -> Result<(), HotError> {
        for group in &mut self.groups {
            let place = |index: usize| self.places.get(index).copied().flatten();
            let mut parts: Vec<(u64, u64, usize)> = group
                .tensors
                .iter()
                .filter_map(|&index| place(index).map(|p| (p.offset, p.slice_bytes, index)))
                .collect();
            parts.sort_unstable();
            let pairs = parts.iter().zip(parts.iter().skip(1));
            for (&(offset, bytes, _), &(next, _, index)) in pairs {
                if offset + bytes > next {
                    let name = tensors.get(index).map(|t| t.name.clone()).unwrap_or_default();
                    return Err(HotError::Place { name });
                }
            }
            group.tensors = parts.into_iter().map(|(_, _, index)| index).collect();
            if group.tensors.is_empty() {
                return Err(HotError::Damaged { key: "hypura.hot.tensor.group" });
            }
        }
        Ok(())
    }
}

/// How many slices a tensor has in a hot file: one per expert, or one in all.
pub(super) fn slices_of(tensor: &Tensor) -> Option<u64> {
    let slices = if tensor.role.is_expert() { tensor.n_experts()? } else { 1 };
    (tensor.bytes > 0).then_some(slices)
}

/// The tensor of a view; `None` if it can't exist.
fn hot_tensor(entry: &Entry, file_len: u64) -> Option<Tensor> {
    let n_dims = usize::try_from(entry.n_dims).ok()?;
    let beyond = entry.dims.get(n_dims..)?;
    if entry.name.len() > MAX_TENSOR_NAME_BYTES || beyond.iter().any(|&dim| dim != 1) {
        return None;
    }
    let (role, layer) = Role::of(&entry.name);
    Some(Tensor {
        name: entry.name.clone(),
        ty: entry.ty,
        dims: entry.dims,
        n_dims: entry.n_dims,
        file: 0,
        offset: file_len,
        bytes: entry.ty.tensor_bytes(entry.dims)?,
        role,
        layer,
    })
}

/// The source's metadata: without ours, and with its own alignment.
fn source_metadata(metadata: &Metadata) -> Metadata {
    let mut source: Metadata = metadata
        .iter()
        .filter(|(key, _)| !key.starts_with(PREFIX))
        .map(|(key, value)| (key, value.clone()))
        .collect();
    match metadata.get(SOURCE_ALIGNMENT) {
        Some(alignment) => drop(source.insert(KEY_ALIGNMENT, alignment.clone())),
        None => drop(source.remove(KEY_ALIGNMENT)),
    }
    source
}

/// Whether the header has the checksum that it says. It is written anew for that: the same bytes,
/// since we wrote it.
fn check_header(model: &Model) -> Result<(), HotError> {
    let [said] = table::checksums(&model.metadata, HEADER_CHECKSUM, 1)? else {
        return Err(HotError::Damaged { key: HEADER_CHECKSUM });
    };
    let file = model.files.first().ok_or(HotError::Checksum)?;
    let mut metadata = model.metadata.clone();
    metadata.insert(HEADER_CHECKSUM, vec![0_u8; CHECKSUM_BYTES]);
    let mut writer = Writer::new(metadata, file.alignment).map_err(|_| HotError::Checksum)?;
    for tensor in &model.tensors {
        let n_dims = usize::try_from(tensor.n_dims).unwrap_or_default();
        let dims = tensor.dims.get(..n_dims).unwrap_or_default();
        let added = writer.add_tensor(&tensor.name, tensor.ty, dims);
        added.map_err(|_| HotError::Checksum)?;
    }
    let header = writer.header();
    let offsets = writer.tensors().iter().map(|info| info.offset);
    let is_ours = header.len() as u64 == file.data_offset
        && offsets.zip(&model.tensors).all(|(at, t)| file.data_offset + at == t.offset);
    if is_ours && blake3::hash(&header) == *said { Ok(()) } else { Err(HotError::Checksum) }
}
