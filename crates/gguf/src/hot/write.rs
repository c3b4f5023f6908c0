//! Writing a hot file.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use super::read::{HotModel, is_hot, slices_of};
use super::select::groups;
use super::table::{
    CHECKSUM_BYTES, Checksum, Entry, Group, HEADER_CHECKSUM, PLAIN_CHECKSUM, SOURCE_ALIGNMENT,
    SOURCE_BYTES, SOURCE_NAME, Table, VERSION,
};
use super::verify::VerifyError;
use super::{HOT_ALIGNMENT, HOT_BLOCKS, HOT_VERSION, HotLayout};
use crate::ggml_type::GgmlType;
use crate::model::{ByteRange, Model, Tensor};
use crate::output::{NewFile, OutputError};
use crate::write::{WriteError, Writer};
use crate::{KEY_ALIGNMENT, align_up};

/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;
const ZEROS: [u8; HOT_ALIGNMENT as usize] = [0; HOT_ALIGNMENT as usize];

/// Why a hot file can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum HotWriteError {
    #[error("this model is optimised already; name the original model")]
    AlreadyHot,
    #[error("this model has no weights that could be streamed; there is nothing to optimise")]
    NothingHot,
    #[error("tensor {name:?} is too large for this format")]
    TooLarge { name: String },
    #[error(transparent)]
    Header(#[from] WriteError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("tensor {name:?} takes {expected} bytes here, but {written} were written")]
    Length { name: String, expected: u64, written: u64 },
    #[error("tensor {name:?}: {source}")]
    Data { name: String, source: io::Error },
}

/// Some bytes of the source that are written in one go: a slice of a hot tensor, or a whole tensor
/// that is not hot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Index in the source's tensors.
    pub tensor: usize,
    /// Where it lies in the source.
    pub source: ByteRange,
    /// Rows of it; all of the tensor's for what is not hot.
    pub rows: u64,
    /// How it is to lie in the new file.
    pub layout: HotLayout,
    /// Zeros behind it, in bytes.
    padding: u64,
    /// Whether a checksum ends with it.
    ends_section: bool,
}

/// A hot file about to be written: everything but the data is known.
#[derive(Debug, Clone)]
pub struct HotWriter {
    writer: Writer,
    table: Table,
    pieces: Vec<Piece>,
    /// Tensors that are not hot.
    n_plain: usize,
}

impl HotWriter {
    /// The hot file of a model. `layout` says how the slices of a hot tensor are to lie, given the
    /// tensor and the number of its slices; it is asked once for each.
    ///
    /// # Errors
    /// If the model is hot already or has no tensors that could be, and as [`Writer`].
    pub fn new(
        model: &Model,
        mut layout: impl FnMut(&Tensor, u64) -> HotLayout,
    ) -> Result<Self, HotWriteError> {
        if is_hot(model) || model.tensor(HOT_BLOCKS).is_some() {
            return Err(HotWriteError::AlreadyHot);
        }
        let groups = groups(model);
        if groups.is_empty() {
            return Err(HotWriteError::NothingHot);
        }
        let mut is_hot = vec![false; model.tensors.len()];
        for &index in groups.iter().flatten() {
            if let Some(hot) = is_hot.get_mut(index) {
                *hot = true;
            }
        }
        let plain: Vec<(usize, &Tensor)> = (model.tensors.iter().enumerate())
            .zip(&is_hot)
            .filter(|&(_, &hot)| !hot)
            .map(|(tensor, _)| tensor)
            .collect();
        let mut pieces = Vec::new();
        for &(index, tensor) in &plain {
            let padding = padded(tensor.bytes, tensor)? - tensor.bytes;
            let rows = tensor.dims.iter().skip(1).product();
            pieces.push(Piece {
                tensor: index,
                source: tensor.range(),
                rows,
                layout: HotLayout::Plain,
                padding,
                ends_section: true,
            });
        }
        let mut table = Table::default();
        let mut blocks_bytes = 0;
        for group in groups {
            blocks_bytes =
                add_group(&mut table, &mut pieces, model, &group, blocks_bytes, &mut layout)?;
        }
        table.entries.sort_by_key(|entry| entry.index);

        let mut metadata = model.metadata.clone();
        let source_alignment = metadata.u32(KEY_ALIGNMENT);
        metadata.insert(VERSION, HOT_VERSION);
        metadata.insert(SOURCE_NAME, source_name(model));
        metadata.insert(SOURCE_BYTES, model.file_bytes());
        if let Some(alignment) = source_alignment {
            metadata.insert(SOURCE_ALIGNMENT, alignment);
        }
        table.put(&mut metadata);
        metadata.insert(PLAIN_CHECKSUM, vec![0_u8; CHECKSUM_BYTES * plain.len()]);
        metadata.insert(HEADER_CHECKSUM, vec![0_u8; CHECKSUM_BYTES]);
        let mut writer = Writer::new(metadata, HOT_ALIGNMENT)?;
        for (_, tensor) in &plain {
            let n_dims = usize::try_from(tensor.n_dims).unwrap_or_default();
            let dims = tensor.dims.get(..n_dims).unwrap_or_default();
            writer.add_tensor(&tensor.name, tensor.ty, dims)?;
        }
        writer.add_tensor(HOT_BLOCKS, GgmlType::I8, &[blocks_bytes])?;
        Ok(Self { writer, table, pieces, n_plain: plain.len() })
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.writer.header_bytes() + self.writer.data_bytes()
    }

    /// How the slices of a tensor of the source will lie; `None` if it is not hot.
    #[must_use]
    pub fn layout(&self, tensor: usize) -> Option<HotLayout> {
        let index = u32::try_from(tensor).ok()?;
        let found = self.table.entries.binary_search_by_key(&index, |entry| entry.index).ok()?;
        self.table.entries.get(found).map(|entry| entry.layout)
    }

    /// Number of blocks in all groups.
    #[must_use]
    pub fn n_blocks(&self) -> u64 {
        self.table.groups.iter().map(|group| u64::from(group.blocks)).sum()
    }

    /// What is to be written, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Writes the file under a temporary name; [`HotFile::publish`] gives it its own.
    ///
    /// `data` is called once for each of [`pieces`](Self::pieces), in order, with its index and a
    /// sink that takes its bytes in the layout of the piece; an error of it ends everything and
    /// leaves nothing behind. `model` is the one that the writer was made for. An existing file will
    /// be replaced only if `replace` is set, and a file of the source never.
    ///
    /// # Errors
    /// If there is no room or no right to write, if `data` fails or gives another number of bytes.
    pub fn write(
        mut self,
        path: &Path,
        model: &Model,
        replace: bool,
        mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<HotFile, HotWriteError> {
        let sources = model.files.iter().map(|file| file.path.as_path());
        let mut new = NewFile::create(path, self.file_bytes(), replace, sources)?;
        let header = self.writer.header();
        let mut checksums = Vec::new();
        let written = write_data(new.file(), &header, &self.pieces, &mut checksums, &mut data);
        written.map_err(|failure| -> HotWriteError {
            let name = |tensor: usize| {
                model.tensors.get(tensor).map(|t| t.name.clone()).unwrap_or_default()
            };
            match failure {
                Failure::Output(source) => new.error(source).into(),
                Failure::Data(tensor, source) => HotWriteError::Data { name: name(tensor), source },
                Failure::Length(tensor, expected, written) => {
                    HotWriteError::Length { name: name(tensor), expected, written }
                }
            }
        })?;

        self.complete(&checksums);
        let completed = self.writer.header();
        debug_assert_eq!(completed.len(), header.len());
        let file = new.file();
        let rewrite = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&completed));
        rewrite.map_err(|source| new.error(source))?;
        Ok(HotFile { new })
    }

    /// Puts the checksums into the header. They take as many bytes as what was there before.
    fn complete(&mut self, checksums: &[Checksum]) {
        let (plain, hot) = checksums.split_at_checked(self.n_plain).unwrap_or((checksums, &[]));
        for (group, checksum) in self.table.groups.iter_mut().zip(hot) {
            group.checksum = *checksum;
        }
        let metadata = &mut self.writer.metadata;
        self.table.put(metadata);
        metadata.insert(PLAIN_CHECKSUM, plain.as_flattened().to_vec());
        let header = *blake3::hash(&self.writer.header()).as_bytes();
        self.writer.metadata.insert(HEADER_CHECKSUM, header.to_vec());
    }
}

/// A hot file that is written, but not yet there under its own name; dropped, it is removed.
#[derive(Debug)]
#[must_use = "the file is removed unless it is published"]
pub struct HotFile {
    new: NewFile,
}

impl HotFile {
    /// Opens what was written as any reader would and compares it with its checksums, reading from
    /// the drive where the system lets us ask for that.
    ///
    /// # Errors
    /// As [`HotModel::verify`].
    pub fn verify(&self, progress: impl FnMut(u64, u64) -> bool) -> Result<(), VerifyError> {
        let path = self.new.partial();
        // What is not on the drive yet can't be read from it.
        let synced = self.new.sync();
        synced.map_err(|source| VerifyError::Io { path: path.to_owned(), source })?;
        HotModel::of(&Model::open(path)?)?.verify(progress)
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// If that fails, or somebody put a file there meanwhile that may not be replaced.
    pub fn publish(self) -> Result<(), OutputError> {
        self.new.publish()
    }
}

/// Adds a group at `offset` of the blocks; returns where it ends.
fn add_group(
    table: &mut Table,
    pieces: &mut Vec<Piece>,
    model: &Model,
    group: &[usize],
    offset: u64,
    layout: &mut impl FnMut(&Tensor, u64) -> HotLayout,
) -> Result<u64, HotWriteError> {
    let mut stride = 0_u64;
    let mut block: Vec<(usize, &Tensor, u64, u64, HotLayout)> = Vec::new();
    let mut blocks = 1;
    for &index in group {
        let Some(tensor) = model.tensors.get(index) else { continue };
        let too_large = || HotWriteError::TooLarge { name: tensor.name.clone() };
        let slices = slices_of(tensor).ok_or_else(too_large)?;
        blocks = u32::try_from(slices).map_err(|_| too_large())?;
        let slice_bytes = tensor.bytes / slices;
        let layout = layout(tensor, slices);
        table.entries.push(Entry {
            name: tensor.name.clone(),
            index: u32::try_from(index).map_err(|_| too_large())?,
            ty: tensor.ty,
            n_dims: tensor.n_dims,
            dims: tensor.dims,
            group: u32::try_from(table.groups.len()).map_err(|_| too_large())?,
            offset: stride,
            layout,
        });
        let padded = padded(slice_bytes, tensor)?;
        block.push((index, tensor, slice_bytes, padded - slice_bytes, layout));
        stride = stride.checked_add(padded).ok_or_else(too_large)?;
    }
    for slice in 0..blocks {
        for (part, &(index, tensor, len, padding, layout)) in block.iter().enumerate() {
            let rows = tensor.dims.iter().skip(1).product::<u64>() / u64::from(blocks);
            let start = tensor.offset + u64::from(slice) * len; // within the source
            pieces.push(Piece {
                tensor: index,
                source: ByteRange { file: tensor.file, offset: start, len },
                rows,
                layout,
                padding,
                ends_section: slice + 1 == blocks && part + 1 == block.len(),
            });
        }
    }
    table.groups.push(Group { offset, stride, blocks, checksum: [0; CHECKSUM_BYTES] });
    let end = stride.checked_mul(blocks.into()).and_then(|bytes| bytes.checked_add(offset));
    Ok(end.ok_or(WriteError::TooLarge)?)
}

fn padded(bytes: u64, tensor: &Tensor) -> Result<u64, HotWriteError> {
    let padded = align_up(bytes, HOT_ALIGNMENT);
    padded.ok_or_else(|| HotWriteError::TooLarge { name: tensor.name.clone() })
}

fn source_name(model: &Model) -> String {
    let name = model.files.first().and_then(|file| file.path.file_name());
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Why writing ended; the number is a tensor's.
enum Failure {
    Output(io::Error),
    Data(usize, io::Error),
    Length(usize, u64, u64),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Writes header and pieces; adds a checksum for each section, padding included.
fn write_data(
    out: &mut impl Write,
    header: &[u8],
    pieces: &[Piece],
    checksums: &mut Vec<Checksum>,
    data: &mut impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    out.write_all(header)?;
    let mut sink = Sink { out, hasher: blake3::Hasher::new(), written: 0, limit: 0, error: None };
    for (index, piece) in pieces.iter().enumerate() {
        (sink.written, sink.limit) = (0, piece.source.len);
        let result = data(index, &mut sink);
        if let Some(error) = sink.error.take() {
            return Err(Failure::Output(error));
        }
        // A refused excess is the sink's own error: say what it means.
        if sink.written <= sink.limit {
            result.map_err(|error| Failure::Data(piece.tensor, error))?;
        }
        if sink.written != sink.limit {
            return Err(Failure::Length(piece.tensor, sink.limit, sink.written));
        }
        let zeros = usize::try_from(piece.padding).ok().and_then(|n| ZEROS.get(..n));
        let zeros = zeros.unwrap_or_default(); // there are fewer than the alignment
        sink.out.write_all(zeros)?;
        sink.hasher.update(zeros);
        if piece.ends_section {
            checksums.push(*sink.hasher.finalize().as_bytes());
            sink.hasher.reset();
        }
    }
    sink.out.flush()?;
    Ok(())
}

/// Passes the bytes of one piece on. What is beyond the piece is counted and refused; an error of
/// the output is kept, so that it isn't taken for one of the data.
struct Sink<W> {
    out: W,
    hasher: blake3::Hasher,
    written: u64,
    limit: u64,
    error: Option<io::Error>,
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.written.saturating_add(bytes.len() as u64);
        if end > self.limit {
            self.written = end;
            return Err(io::Error::other("more bytes than the piece has"));
        }
        if let Err(error) = self.out.write_all(bytes) {
            let kind = error.kind();
            self.error = Some(error);
            return Err(kind.into());
        }
        self.hasher.update(bytes);
        self.written = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
