//! The table of hot tensors, between metadata and structures.

use super::HotLayout;
use super::read::HotError;
use crate::ggml_type::GgmlType;
use crate::metadata::Metadata;
use crate::value::{Array, StringArray};

pub(super) const PREFIX: &str = "hypura.hot.";
pub(super) const VERSION: &str = "hypura.hot.version";
pub(super) const SOURCE_NAME: &str = "hypura.hot.source.name";
pub(super) const SOURCE_BYTES: &str = "hypura.hot.source.bytes";
pub(super) const SOURCE_ALIGNMENT: &str = "hypura.hot.source.alignment";
pub(super) const PLAIN_CHECKSUM: &str = "hypura.hot.plain.checksum";
pub(super) const HEADER_CHECKSUM: &str = "hypura.hot.header.checksum";
const NAME: &str = "hypura.hot.tensor.name";
const INDEX: &str = "hypura.hot.tensor.index";
const TYPE: &str = "hypura.hot.tensor.type";
const N_DIMS: &str = "hypura.hot.tensor.n_dims";
const DIMS: &str = "hypura.hot.tensor.dims";
const GROUP: &str = "hypura.hot.tensor.group";
const OFFSET: &str = "hypura.hot.tensor.offset";
const LAYOUT: &str = "hypura.hot.tensor.layout";
const GROUP_OFFSET: &str = "hypura.hot.group.offset";
const GROUP_STRIDE: &str = "hypura.hot.group.stride";
const GROUP_BLOCKS: &str = "hypura.hot.group.blocks";
const GROUP_CHECKSUM: &str = "hypura.hot.group.checksum";

/// Bytes of a checksum.
pub(super) const CHECKSUM_BYTES: usize = 32;
/// A checksum.
pub(super) type Checksum = [u8; CHECKSUM_BYTES];

/// One hot tensor, as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Its place among all tensors of the source.
    pub(super) index: u32,
    pub(super) ty: GgmlType,
    pub(super) n_dims: u32,
    pub(super) dims: [u64; 4],
    pub(super) group: u32,
    /// Where its slices begin in a block.
    pub(super) offset: u64,
    pub(super) layout: HotLayout,
}

/// One group, as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// From the start of all blocks.
    pub(super) offset: u64,
    pub(super) stride: u64,
    pub(super) blocks: u32,
    pub(super) checksum: Checksum,
}

/// All of it. Nothing is checked beyond the form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
    pub(super) groups: Vec<Group>,
}

impl Table {
    pub(super) fn put(&self, metadata: &mut Metadata) {
        let entries = || self.entries.iter();
        let groups = || self.groups.iter();
        metadata.insert(NAME, entries().map(|e| &e.name).collect::<StringArray>());
        metadata.insert(INDEX, entries().map(|e| e.index).collect::<Vec<_>>());
        metadata.insert(TYPE, entries().map(|e| e.ty.id()).collect::<Vec<_>>());
        metadata.insert(N_DIMS, entries().map(|e| e.n_dims).collect::<Vec<_>>());
        metadata.insert(DIMS, entries().flat_map(|e| e.dims).collect::<Vec<_>>());
        metadata.insert(GROUP, entries().map(|e| e.group).collect::<Vec<_>>());
        metadata.insert(OFFSET, entries().map(|e| e.offset).collect::<Vec<_>>());
        metadata.insert(LAYOUT, entries().map(|e| layout_text(e.layout)).collect::<StringArray>());
        metadata.insert(GROUP_OFFSET, groups().map(|g| g.offset).collect::<Vec<_>>());
        metadata.insert(GROUP_STRIDE, groups().map(|g| g.stride).collect::<Vec<_>>());
        metadata.insert(GROUP_BLOCKS, groups().map(|g| g.blocks).collect::<Vec<_>>());
        metadata.insert(GROUP_CHECKSUM, groups().flat_map(|g| g.checksum).collect::<Vec<_>>());
    }

    pub(super) fn get(metadata: &Metadata) -> Result<Self, HotError> {
        let names = match metadata.array(NAME) {
            Some(Array::String(names)) => names,
            _ => return Err(HotError::Damaged { key: NAME }),
        };
        let n = names.len();
        let (index, ty) = (u32s(metadata, INDEX, n)?, u32s(metadata, TYPE, n)?);
        let (n_dims, group) = (u32s(metadata, N_DIMS, n)?, u32s(metadata, GROUP, n)?);
        let (dims, offset) =
            (u64s(metadata, DIMS, n.saturating_mul(4))?, u64s(metadata, OFFSET, n)?);
        let layouts = match metadata.array(LAYOUT) {
            Some(Array::String(layouts)) if layouts.len() == n => layouts,
            _ => return Err(HotError::Damaged { key: LAYOUT }),
        };
        let mut entries = Vec::with_capacity(n);
        let numbers = index.iter().zip(ty).zip(n_dims).zip(group).zip(offset);
        let rest = dims.as_chunks::<4>().0.iter().zip(names.iter().zip(layouts.iter()));
        for (((((index, ty), n_dims), group), offset), (dims, (name, layout))) in numbers.zip(rest)
        {
            entries.push(Entry {
                name: String::from_utf8(name.to_vec())
                    .map_err(|_| HotError::Damaged { key: NAME })?,
                index: *index,
                ty: GgmlType::from_id(*ty).map_err(|_| HotError::Damaged { key: TYPE })?,
                n_dims: *n_dims,
                dims: *dims,
                group: *group,
                offset: *offset,
                layout: layout_of(layout).ok_or(HotError::Damaged { key: LAYOUT })?,
            });
        }

        let blocks = match metadata.array(GROUP_BLOCKS) {
            Some(Array::U32(blocks)) => blocks,
            _ => return Err(HotError::Damaged { key: GROUP_BLOCKS }),
        };
        let n = blocks.len();
        let (offset, stride) = (u64s(metadata, GROUP_OFFSET, n)?, u64s(metadata, GROUP_STRIDE, n)?);
        let checksums = checksums(metadata, GROUP_CHECKSUM, n)?;
        let groups = blocks.iter().zip(offset).zip(stride).zip(checksums);
        let groups = groups.map(|(((&blocks, &offset), &stride), &checksum)| Group {
            offset,
            stride,
            blocks,
            checksum,
        });
        Ok(Self { entries, groups: groups.collect() })
    }
}

/// An array of `n` numbers.
fn u32s<'a>(metadata: &'a Metadata, key: &'static str, n: usize) -> Result<&'a [u32], HotError> {
    match metadata.array(key) {
        Some(Array::U32(values)) if values.len() == n => Ok(values),
        _ => Err(HotError::Damaged { key }),
    }
}

/// An array of `n` numbers.
fn u64s<'a>(metadata: &'a Metadata, key: &'static str, n: usize) -> Result<&'a [u64], HotError> {
    match metadata.array(key) {
        Some(Array::U64(values)) if values.len() == n => Ok(values),
        _ => Err(HotError::Damaged { key }),
    }
}

/// `n` checksums, one after the other.
pub(super) fn checksums<'a>(
    metadata: &'a Metadata,
    key: &'static str,
    n: usize,
) -> Result<&'a [Checksum], HotError> {
    let chunks = match metadata.array(key) {
        Some(Array::U8(bytes)) => bytes.as_chunks::<CHECKSUM_BYTES>(),
        _ => return Err(HotError::Damaged { key }),
    };
    match chunks {
        (checksums, []) if checksums.len() == n => Ok(checksums),
        _ => Err(HotError::Damaged { key }),
    }
}

fn layout_text(layout: HotLayout) -> String {
    match layout {
        HotLayout::Plain => String::new(),
        HotLayout::Repacked { fingerprint } => blake3::Hash::from(fingerprint).to_hex().to_string(),
    }
}

fn layout_of(text: &[u8]) -> Option<HotLayout> {
    if text.is_empty() {
        return Some(HotLayout::Plain);
    }
    let fingerprint = *blake3::Hash::from_hex(text).ok()?.as_bytes();
    Some(HotLayout::Repacked { fingerprint })
}
