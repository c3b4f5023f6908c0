//! Reading a GGUF header, version 2 or 3, from a source that nothing is believed of.
//!
//! ```text
//! magic "GGUF" | version u32 | tensor count u64 | metadata count u64
//! metadata:  key string | type u32 | value        (an array: element type u32 | count u64 | values)
//! tensors:   name string | n_dims u32 | dims u64 x n_dims | type u32 | offset u64
//! padding to the alignment, then the data that the offsets are relative to
//! ```
//!
//! All numbers are little-endian; a string is its length as u64 and its bytes. Memory stays within a
//! small multiple of the bytes that were really read: counts and lengths are checked against what is
//! left of the file before anything is reserved, and buffers grow as bytes arrive.

use std::collections::HashSet;
use std::io::{self, BufReader, Read};

use crate::ggml_type::{GgmlType, GgmlTypeError};
use crate::metadata::Metadata;
use crate::value::{Array, StringArray, Value, ValueType};
use crate::{
    DEFAULT_ALIGNMENT, KEY_ALIGNMENT, MAX_ALIGNMENT, MAX_DIMS, MAX_KEY_BYTES,
    MAX_TENSOR_NAME_BYTES, align_up,
};

/// Most bytes of a header; the largest vocabularies take about a tenth of it.
pub const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Most metadata entries of a header.
pub const MAX_METADATA_ENTRIES: u64 = 1 << 16;
/// Most tensors of a file.
pub const MAX_TENSORS: u64 = 1 << 20;
/// Most bytes of one metadata string.
pub const MAX_STRING_BYTES: u64 = 64 << 20;
/// Most bytes that a buffer grows by before the bytes for it have arrived.
const CHUNK_BYTES: usize = 64 << 10;

/// What a header says.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// All metadata, in the file's order.
    pub metadata: Metadata,
    /// All tensors, in the file's order.
    pub tensors: Vec<TensorInfo>,
    /// Alignment of each tensor's data, in bytes; a power of two.
    pub alignment: u32,
    /// Where the data starts, in bytes from the start of the file.
    pub data_offset: u64,
}

/// One tensor as the header has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, at most [`MAX_TENSOR_NAME_BYTES`].
    pub name: String,
    /// Type of its elements.
    pub ty: GgmlType,
    /// Elements along each dimension, the contiguous one first; 1 beyond `n_dims`.
    pub dims: [u64; 4],
    /// Number of dimensions written in the file.
    pub n_dims: u32,
    /// Where its data starts, in bytes from [`Header::data_offset`].
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

/// Why a header can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum ReadError {
    #[error("reading the header failed: {0}")]
    Io(#[from] io::Error),
    #[error("the file is empty; download it again")]
    Empty,
    #[error(
        "not a GGUF file (it starts with {:?}); convert the model to GGUF or choose its .gguf file",
        String::from_utf8_lossy(.magic)
    )]
    NotGguf { magic: [u8; 4] },
    #[error("a big-endian GGUF file; convert the model for little-endian machines")]
    BigEndian,
    #[error(
        "GGUF version {version} is not supported (2 and 3 are); convert the model again with a current llama.cpp"
    )]
    Version { version: u32 },
    #[error("the file ends inside {what}, after {file_len} bytes; download it again")]
    Truncated { what: &'static str, file_len: u64 },
    #[error("{what} is {value}, more than the {limit} that fit here; the file is damaged")]
    TooMany { what: &'static str, value: u64, limit: u64 },
    #[error("the header takes more than {limit} bytes; the file is damaged")]
    HeaderTooLarge { limit: u64 },
    #[error("metadata key number {index} is empty or not UTF-8; the file is damaged")]
    Key { index: u64 },
    #[error("metadata key {key:?} occurs twice; convert the model again")]
    DuplicateKey { key: String },
    #[error("metadata key {key:?} has the unknown type {id}; the file is damaged")]
    ValueType { key: String, id: u32 },
    #[error("metadata key {key:?} is an array of arrays, which llama.cpp does not support either")]
    NestedArray { key: String },
    #[error(
        "general.alignment must be an unsigned 32-bit power of two up to {MAX_ALIGNMENT}, but is {value}; convert the model again"
    )]
    Alignment { value: String },
    #[error("the name of tensor number {index} is not UTF-8; the file is damaged")]
    TensorName { index: u64 },
    #[error("the tensor name {name:?} is longer than the {limit} bytes that llama.cpp can hold")]
    TensorNameTooLong { name: String, limit: usize },
    #[error("tensor {name:?} occurs twice; convert the model again")]
    DuplicateTensor { name: String },
    #[error("tensor {name:?} has {n_dims} dimensions, more than 4; the file is damaged")]
    Dimensions { name: String, n_dims: u32 },
    #[error("tensor {name:?}: {source}")]
    TensorType { name: String, source: GgmlTypeError },
    #[error(
        "tensor {name:?} of type {ty} can't have the shape {dims:?}; rows are whole blocks of {} elements",
        .ty.block_elements()
    )]
    Shape { name: String, ty: GgmlType, dims: [u64; 4] },
    #[error(
        "tensor {name:?} starts at {offset}, which is no multiple of the alignment {alignment}; convert the model again"
    )]
    Misaligned { name: String, offset: u64, alignment: u32 },
    #[error(
        "tensor {name:?} ends at byte {end}, but the file at {file_len}; the download is incomplete"
    )]
    BeyondEnd { name: String, end: u64, file_len: u64 },
    #[error("tensors {first:?} and {second:?} overlap; the file is damaged")]
    Overlap { first: String, second: String },
}

/// Reads the header of a GGUF file of `file_len` bytes from its start.
///
/// The source is buffered, so a reader that is borrowed is left somewhere behind the header.
///
/// # Errors
/// Every fault of a header, down to tensors whose data overlap or end beyond `file_len`.
pub fn read_header<R: Read>(source: R, file_len: u64) -> Result<Header, ReadError> {
    if file_len == 0 {
        return Err(ReadError::Empty);
    }
    let mut source = Source {
        inner: BufReader::with_capacity(CHUNK_BYTES, source),
        position: 0,
        end: file_len.min(MAX_HEADER_BYTES),
        file_len,
    };

    let version = read_version(&mut source)?;
    let n_tensors = source.u64("the tensor count")?;
    let n_entries = source.u64("the metadata count")?;
    // An entry takes a key length, a byte of key, a type and a byte of value; an info at least this.
    source.check_count("the metadata count", n_entries, MAX_METADATA_ENTRIES, 8 + 1 + 4 + 1)?;
    source.check_count("the tensor count", n_tensors, MAX_TENSORS, 8 + 4 + 4 + 8)?;

    let mut metadata = Metadata::new();
    for index in 0..n_entries {
        let (key, value) = read_entry(&mut source, index)?;
        if metadata.get(&key).is_some() {
            return Err(ReadError::DuplicateKey { key });
        }
        metadata.insert(key, value);
    }
    let alignment = alignment_of(&metadata)?;

    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for index in 0..n_tensors {
        let info = read_tensor_info(&mut source, index)?;
        if !names.insert(info.name.clone()) {
            return Err(ReadError::DuplicateTensor { name: info.name });
        }
        tensors.push(info);
    }

    let data_offset = if tensors.is_empty() {
        source.position
    } else {
        align_up(source.position, alignment)
            .filter(|&offset| offset <= file_len)
            .ok_or(ReadError::Truncated { what: "the padding after the header", file_len })?
    };
    check_layout(&tensors, alignment, data_offset, file_len)?;
    Ok(Header { version, metadata, tensors, alignment, data_offset })
}

fn read_version<R: Read>(source: &mut Source<R>) -> Result<u32, ReadError> {
    let magic = source.array::<4>("the magic number")?;
    if &magic != b"GGUF" {
        return Err(ReadError::NotGguf { magic });
    }
    match source.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => Err(ReadError::BigEndian),
        version => Err(ReadError::Version { version }),
    }
}

fn read_entry<R: Read>(source: &mut Source<R>, index: u64) -> Result<(String, Value), ReadError> {
    let key = source.string("a metadata key", MAX_KEY_BYTES)?;
    let key = String::from_utf8(key)
        .ok()
        .filter(|key| !key.is_empty())
        .ok_or(ReadError::Key { index })?;
    let ty = read_value_type(source, &key)?;
    let value = read_value(source, &key, ty)?;
    Ok((key, value))
}

fn read_value_type<R: Read>(source: &mut Source<R>, key: &str) -> Result<ValueType, ReadError> {
    let id = source.u32("a metadata type")?;
    ValueType::from_id(id).ok_or_else(|| ReadError::ValueType { key: key.to_owned(), id })
}

fn read_value<R: Read>(
    source: &mut Source<R>,
    key: &str,
    ty: ValueType,
) -> Result<Value, ReadError> {
    const WHAT: &str = "a metadata value";
    Ok(match ty {
        ValueType::U8 => Value::U8(u8::from_le_bytes(source.array(WHAT)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(source.array(WHAT)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(source.array(WHAT)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(source.array(WHAT)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(source.array(WHAT)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(source.array(WHAT)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(source.array(WHAT)?)),
        ValueType::Bool => Value::Bool(source.array::<1>(WHAT)? != [0]),
        ValueType::String => Value::String(source.string("a metadata string", MAX_STRING_BYTES)?),
        ValueType::U64 => Value::U64(u64::from_le_bytes(source.array(WHAT)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(source.array(WHAT)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(source.array(WHAT)?)),
        ValueType::Array => {
            let element = read_value_type(source, key)?;
            let count = source.u64("an array length")?;
            Value::Array(read_array(source, key, element, count)?)
        }
    })
}

fn read_array<R: Read>(
    source: &mut Source<R>,
    key: &str,
    element: ValueType,
    count: u64,
) -> Result<Array, ReadError> {
    Ok(match element {
        ValueType::U8 => Array::U8(source.numbers(count, u8::from_le_bytes)?),
        ValueType::I8 => Array::I8(source.numbers(count, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(source.numbers(count, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(source.numbers(count, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(source.numbers(count, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(source.numbers(count, i32::from_le_bytes)?),
        ValueType::F32 => Array::F32(source.numbers(count, f32::from_le_bytes)?),
        ValueType::Bool => Array::Bool(source.numbers(count, |byte: [u8; 1]| byte != [0])?),
        ValueType::String => Array::String(source.strings(count)?),
        ValueType::U64 => Array::U64(source.numbers(count, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(source.numbers(count, i64::from_le_bytes)?),
        ValueType::F64 => Array::F64(source.numbers(count, f64::from_le_bytes)?),
        ValueType::Array => {
            return Err(ReadError::NestedArray { key: key.to_owned() });
        }
    })
}

/// The alignment that the metadata ask for. llama.cpp takes no other type than `u32`.
fn alignment_of(metadata: &Metadata) -> Result<u32, ReadError> {
    match metadata.get(KEY_ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(alignment))
            if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT =>
        {
            Ok(alignment)
        }
        Some(Value::Array(_) | Value::String(_)) => {
            Err(ReadError::Alignment { value: "no number".to_owned() })
        }
        Some(value) => Err(ReadError::Alignment { value: value.to_string() }),
    }
}

fn read_tensor_info<R: Read>(source: &mut Source<R>, index: u64) -> Result<TensorInfo, ReadError> {
    const WHAT: &str = "a tensor info";
    let name = source.string("a tensor name", MAX_KEY_BYTES)?;
    let name = String::from_utf8(name).map_err(|_| ReadError::TensorName { index })?;
    if name.len() > MAX_TENSOR_NAME_BYTES {
        return Err(ReadError::TensorNameTooLong { name, limit: MAX_TENSOR_NAME_BYTES });
    }
    let n_dims = source.u32(WHAT)?;
    let mut dims = [1; MAX_DIMS];
    let written = usize::try_from(n_dims).ok().and_then(|n| dims.get_mut(..n));
    let Some(written) = written else {
        return Err(ReadError::Dimensions { name, n_dims });
    };
    for dim in written {
        *dim = source.u64(WHAT)?;
    }
    let ty = match GgmlType::from_id(source.u32(WHAT)?) {
        Ok(ty) => ty,
        Err(source) => return Err(ReadError::TensorType { name, source }),
    };
    let Some(bytes) = ty.tensor_bytes(dims) else {
        return Err(ReadError::Shape { name, ty, dims });
    };
    let offset = source.u64(WHAT)?;
    Ok(TensorInfo { name, ty, dims, n_dims, offset, bytes })
}

/// Checks that all data lie aligned and apart within the file.
fn check_layout(
    tensors: &[TensorInfo],
    alignment: u32,
    data_offset: u64,
    file_len: u64,
) -> Result<(), ReadError> {
    for TensorInfo { name, offset, bytes, .. } in tensors {
        if offset % u64::from(alignment) != 0 {
            let (name, offset) = (name.clone(), *offset);
            return Err(ReadError::Misaligned { name, offset, alignment });
        }
        let end = data_offset.checked_add(*offset).and_then(|at| at.checked_add(*bytes));
        if end.is_none_or(|end| end > file_len) {
            let end = end.unwrap_or(u64::MAX);
            return Err(ReadError::BeyondEnd { name: name.clone(), end, file_len });
        }
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().filter(|info| info.bytes > 0).collect();
    by_offset.sort_by_key(|info| info.offset);
    for (first, second) in by_offset.iter().zip(by_offset.iter().skip(1)) {
        if first.offset + first.bytes > second.offset {
            let (first, second) = (first.name.clone(), second.name.clone());
            return Err(ReadError::Overlap { first, second });
        }
    }
    Ok(())
}

/// A reader that knows how many bytes are left.
struct Source<R> {
    inner: BufReader<R>,
    position: u64,
    /// Where reading must stop: the end of the file, or the limit of a header.
    end: u64,
    file_len: u64,
}

impl<R: Read> Source<R> {
    fn fill(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), ReadError> {
        let wanted = buffer.len() as u64;
        if wanted > self.left() {
            return Err(self.end_error(what));
        }
        match self.inner.read_exact(buffer) {
            Ok(()) => self.position += wanted,
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ReadError::Truncated { what, file_len: self.file_len });
            }
            Err(err) => return Err(err.into()),
        }
        Ok(())
    }

    const fn left(&self) -> u64 {
        self.end - self.position
    }

    const fn end_error(&self, what: &'static str) -> ReadError {
        if self.end < self.file_len {
            ReadError::HeaderTooLarge { limit: self.end }
        } else {
            ReadError::Truncated { what, file_len: self.file_len }
        }
    }

    /// Refuses a count that is absurd, or that the rest of the file can't hold.
    fn check_count(
        &self,
        what: &'static str,
        count: u64,
        limit: u64,
        min_bytes_each: u64,
    ) -> Result<(), ReadError> {
        if count > limit {
            return Err(ReadError::TooMany { what, value: count, limit });
        }
        if count.checked_mul(min_bytes_each).is_none_or(|bytes| bytes > self.left()) {
            return Err(self.end_error(what));
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ReadError> {
        let mut buffer = [0; N];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, ReadError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, ReadError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &'static str, limit: u64) -> Result<Vec<u8>, ReadError> {
        let mut string = Vec::new();
        self.append_string(&mut string, what, limit)?;
        Ok(string)
    }

    /// Reads a string to the end of `buffer`, which grows no faster than the bytes arrive.
    fn append_string(
        &mut self,
        buffer: &mut Vec<u8>,
        what: &'static str,
        limit: u64,
    ) -> Result<(), ReadError> {
        let len = self.u64(what)?;
        self.check_count(what, len, limit, 1)?;
        let mut left =
            usize::try_from(len).map_err(|_| ReadError::TooMany { what, value: len, limit })?;
        while left > 0 {
            let (start, chunk) = (buffer.len(), left.min(CHUNK_BYTES));
            buffer.resize(start + chunk, 0);
            self.fill(buffer.get_mut(start..).unwrap_or_default(), what)?;
            left -= chunk;
        }
        Ok(())
    }

    fn strings(&mut self, count: u64) -> Result<StringArray, ReadError> {
        const WHAT: &str = "an array of strings";
        self.check_count(WHAT, count, MAX_HEADER_BYTES, 8)?;
        let mut strings = StringArray::new();
        for _ in 0..count {
            self.append_string(strings.buffer(), WHAT, MAX_STRING_BYTES)?;
            strings.end_string();
        }
        Ok(strings)
    }

    fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        decode: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, ReadError> {
        const WHAT: &str = "an array of numbers";
        self.check_count(WHAT, count, MAX_HEADER_BYTES, N as u64)?;
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.push(decode(self.array(WHAT)?));
        }
        Ok(numbers)
    }
}
