//! Writing GGUF version 3, tensor data streamed.

use std::collections::HashSet;
use std::io::{self, Write};
use std::ops::Range;

use crate::ggml_type::GgmlType;
use crate::metadata::Metadata;
use crate::read::TensorInfo;
use crate::value::{Array, Value};
use crate::{
    DEFAULT_ALIGNMENT, KEY_ALIGNMENT, MAX_ALIGNMENT, MAX_KEY_BYTES, MAX_TENSOR_NAME_BYTES, align_up,
};

/// The version of the format that is written.
const VERSION: u32 = 3;
/// Padding is written in pieces of this many bytes.
const ZEROS: [u8; 4096] = [0; 4096];

/// Why a model can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum WriteError {
    #[error("writing the model failed: {0}")]
    Io(#[from] io::Error),
    #[error("the alignment {alignment} is no power of two up to {MAX_ALIGNMENT}; 32 is usual")]
    Alignment { alignment: u32 },
    #[error("metadata keys have 1 to {MAX_KEY_BYTES} bytes, but one has {bytes}")]
    Key { bytes: usize },
    #[error("the tensor name {name:?} is longer than {MAX_TENSOR_NAME_BYTES} bytes; shorten it")]
    TensorName { name: String },
    #[error("tensor {name:?} was already added; name each tensor once")]
    DuplicateTensor { name: String },
    #[error(
        "tensor {name:?} of type {ty} can't have the shape {dims:?}; use up to 4 dimensions, with rows of whole blocks of {} elements",
        .ty.block_elements()
    )]
    Shape { name: String, ty: GgmlType, dims: Vec<u64> },
    #[error("tensor {name:?} takes {expected} bytes, but {written} were written")]
    WrongLength { name: String, expected: u64, written: u64 },
    #[error("the model is too large to be addressed by 64 bits")]
    TooLarge,
    #[error("the split must place each of the {tensors} tensors in one of at most 65535 files")]
    SplitPlan { tensors: usize },
}

/// A model about to be written: its header is known, its data come while writing.
#[derive(Debug, Clone)]
pub struct Writer {
    pub(crate) metadata: Metadata,
    alignment: u32,
    tensors: Vec<TensorInfo>,
    names: HashSet<String>,
    /// Bytes of the data section so far, padding included.
    data_bytes: u64,
}

impl Writer {
    /// A model without tensors. `general.alignment` is set in the metadata if `alignment` is not the
    /// default of 32 bytes.
    ///
    /// # Errors
    /// If `alignment` is no power of two up to [`MAX_ALIGNMENT`], or a key is empty or too long.
    pub fn new(mut metadata: Metadata, alignment: u32) -> Result<Self, WriteError> {
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            return Err(WriteError::Alignment { alignment });
        }
        let is_wrong = |bytes: &usize| *bytes == 0 || *bytes as u64 > MAX_KEY_BYTES;
        if let Some(bytes) = metadata.iter().map(|(key, _)| key.len()).find(is_wrong) {
            return Err(WriteError::Key { bytes });
        }
        if alignment != DEFAULT_ALIGNMENT || metadata.get(KEY_ALIGNMENT).is_some() {
            metadata.insert(KEY_ALIGNMENT, alignment);
        }
        let (tensors, names) = (Vec::new(), HashSet::new());
        Ok(Self { metadata, alignment, tensors, names, data_bytes: 0 })
    }

    /// Adds a tensor behind those before; returns its index.
    ///
    /// # Errors
    /// If the name is too long or taken, or the shape doesn't suit the type.
    pub fn add_tensor(
        &mut self,
        name: &str,
        ty: GgmlType,
        dims: &[u64],
    ) -> Result<usize, WriteError> {
        if name.len() > MAX_TENSOR_NAME_BYTES {
            return Err(WriteError::TensorName { name: name.to_owned() });
        }
        let shape_error = || WriteError::Shape { name: name.to_owned(), ty, dims: dims.to_vec() };
        let mut padded = [1; 4];
        padded.get_mut(..dims.len()).ok_or_else(shape_error)?.copy_from_slice(dims);
        let bytes = ty.tensor_bytes(padded).ok_or_else(shape_error)?;
        let end = self.data_bytes.checked_add(bytes).and_then(|end| align_up(end, self.alignment));
        let end = end.ok_or(WriteError::TooLarge)?;
        if !self.names.insert(name.to_owned()) {
            return Err(WriteError::DuplicateTensor { name: name.to_owned() });
        }
        self.tensors.push(TensorInfo {
            name: name.to_owned(),
            ty,
            dims: padded,
            n_dims: u32::try_from(dims.len()).map_err(|_| shape_error())?,
            offset: self.data_bytes,
            bytes,
        });
        self.data_bytes = end;
        Ok(self.tensors.len() - 1)
    }

    /// The tensors so far, with their places in the data section.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The metadata, `general.alignment` included where it is not the default.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Alignment of the data, in bytes.
    #[must_use]
    pub const fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Bytes of the header with its padding: where the data start in the file.
    #[must_use]
    pub fn header_bytes(&self) -> u64 {
        self.header().len() as u64
    }

    /// Bytes of the data section, padding included.
    #[must_use]
    pub const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// The header with its padding: the data start right behind it.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            put_string(&mut out, key.as_bytes());
            out.extend_from_slice(&value.value_type().id().to_le_bytes());
            put_value(&mut out, value);
        }
        for info in &self.tensors {
            put_string(&mut out, info.name.as_bytes());
            out.extend_from_slice(&info.n_dims.to_le_bytes());
            for (dim, _) in info.dims.iter().zip(0..info.n_dims) {
                out.extend_from_slice(&dim.to_le_bytes());
            }
            out.extend_from_slice(&info.ty.id().to_le_bytes());
            out.extend_from_slice(&info.offset.to_le_bytes());
        }
        let padding = padding(out.len() as u64, self.alignment);
        out.extend((0..padding).map(|_| 0));
        out
    }

    /// Writes the model. `data` is called once for each tensor, in order, with its index and a sink
    /// that takes its bytes.
    ///
    /// # Errors
    /// If `data` or the output fails, or a tensor got another number of bytes than its shape says.
    pub fn write<W: Write>(
        &self,
        out: &mut W,
        mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        out.write_all(&self.header())?;
        for (index, info) in self.tensors.iter().enumerate() {
            let mut sink = Counted { out, written: 0, limit: info.bytes };
            let result = data(index, &mut sink);
            let written = sink.written;
            // A refused excess is the sink's own error: say what it means.
            if written <= info.bytes {
                result?;
            }
            if written != info.bytes {
                let (name, expected) = (info.name.clone(), info.bytes);
                return Err(WriteError::WrongLength { name, expected, written });
            }
            let mut left = padding(info.bytes, self.alignment);
            while left > 0 {
                let piece = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                out.write_all(ZEROS.get(..piece).unwrap_or_default())?;
                left -= piece as u64;
            }
        }
        Ok(())
    }

    /// A writer for some of the tensors, with the metadata or without.
    pub(crate) fn part(
        &self,
        tensors: Range<usize>,
        with_metadata: bool,
    ) -> Result<Self, WriteError> {
        let metadata = if with_metadata { self.metadata.clone() } else { Metadata::new() };
        let mut part = Self::new(metadata, self.alignment)?;
        for info in self.tensors.get(tensors).unwrap_or_default() {
            let n_dims = usize::try_from(info.n_dims).unwrap_or_default();
            part.add_tensor(&info.name, info.ty, info.dims.get(..n_dims).unwrap_or_default())?;
        }
        Ok(part)
    }
}

/// Passes bytes on and counts them; what is beyond the limit is counted and refused.
struct Counted<'a, W> {
    out: &'a mut W,
    written: u64,
    limit: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written.saturating_add(bytes.len() as u64) > self.limit {
            self.written = self.written.saturating_add(bytes.len() as u64);
            return Err(io::Error::other("more bytes than the tensor's shape says"));
        }
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Bytes from `offset` to the next multiple of `alignment`, a power of two.
fn padding(offset: u64, alignment: u32) -> u64 {
    offset.wrapping_neg() & (u64::from(alignment) - 1)
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    out.extend_from_slice(&(string.len() as u64).to_le_bytes());
    out.extend_from_slice(string);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Array(array) => {
            out.extend_from_slice(&array.element_type().id().to_le_bytes());
            out.extend_from_slice(&(array.len() as u64).to_le_bytes());
            put_elements(out, array);
        }
    }
}

fn put_elements(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&x| u8::from(x))),
        Array::String(v) => v.iter().for_each(|string| put_string(out, string)),
        Array::U64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
    }
}
