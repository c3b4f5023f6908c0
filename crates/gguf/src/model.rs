//! A model: one GGUF file, or a split set as if it were one.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::ggml_type::GgmlType;
use crate::hparams::Hparams;
use crate::metadata::Metadata;
use crate::read::{Header, ReadError, TensorInfo, read_header};
use crate::role::Role;
use crate::split::{KEY_SPLIT_COUNT, KEY_SPLIT_NO, KEY_SPLIT_TENSORS, SplitName, is_split_key};
use crate::write::Writer;

/// One model and where its bytes lie.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Model {
    /// Its files in the order of the split; one for most models.
    pub files: Vec<ModelFile>,
    /// The first file's metadata without `split.*`.
    pub metadata: Metadata,
    /// All tensors of all files, in the order of the files and of their headers.
    pub tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub len: u64,
    /// Where its tensor data start, in bytes.
    pub data_offset: u64,
    /// Alignment of its tensor data, in bytes.
    pub alignment: u32,
}

/// One tensor and where its bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub ty: GgmlType,
    /// Elements along each dimension, the contiguous one first; 1 beyond `n_dims`.
    pub dims: [u64; 4],
    /// Number of dimensions written in the file.
    pub n_dims: u32,
    /// Index in [`Model::files`].
    pub file: usize,
    /// Where its data start, in bytes from the start of that file.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
    /// What it is for.
    pub role: Role,
    /// The layer that it belongs to.
    pub layer: Option<u32>,
}

/// Some bytes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Index in [`Model::files`].
    pub file: usize,
    /// First byte, from the start of that file.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// Why a model can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum OpenError {
    #[error("there is no file {path:?}; check the path")]
    NotFound { path: PathBuf },
    #[error("{path:?} is a folder; name a .gguf file in it")]
    Folder { path: PathBuf },
    #[error("{path:?} can't be read: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path:?}: {source}")]
    Read { path: PathBuf, source: ReadError },
    #[error("{path:?} names no architecture (general.architecture); it is no language model")]
    NoArchitecture { path: PathBuf },
    #[error("{path:?} is part {part} of a split model; name its first file, {first:?}")]
    NotFirstSplit { path: PathBuf, part: u32, first: PathBuf },
    #[error(
        "{path:?} is part {part} of {count} of a split model, but its name does not end in {expected:?}; give the file its original name"
    )]
    SplitName { path: PathBuf, part: u32, count: u32, expected: String },
    #[error("part {part} of {count} is missing: there is no file {path:?}; download it too")]
    MissingSplit { path: PathBuf, part: u32, count: u32 },
    #[error("{path:?} should be part {part} of {count} but says otherwise; download the set again")]
    WrongSplit { path: PathBuf, part: u32, count: u32 },
    #[error(
        "the split files hold {found} tensors but should hold {expected}; download the set again"
    )]
    SplitTensorCount { expected: u64, found: u64 },
    #[error("tensor {name:?} is in two of the split files; download the set again")]
    DuplicateTensor { name: String },
}

impl Model {
    /// Opens a GGUF file, or the first of a split set and with it all others.
    ///
    /// Only headers are read.
    ///
    /// # Errors
    /// Whatever keeps the files from being one sound model; the message says which file and what to
    /// do.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (file, header) = open_file(path)?;
        let parts = match header.metadata.u32(KEY_SPLIT_COUNT) {
            Some(count) if count > 1 => open_splits(file, header, count)?,
            _ => vec![(file, header)],
        };
        let model = Self::join(parts)?;
        if model.metadata.str("general.architecture").is_none() {
            return Err(OpenError::NoArchitecture { path: path.to_owned() });
        }
        Ok(model)
    }

    /// The model that a writer would write to `path`, without writing it: to plan for it.
    #[must_use]
    pub fn from_writer(writer: &Writer, path: &Path) -> Self {
        let data_offset = writer.header_bytes();
        let file = ModelFile {
            path: path.to_owned(),
            len: data_offset + writer.data_bytes(),
            data_offset,
            alignment: writer.alignment(),
        };
        let (mut tensors, mut by_name) = (Vec::new(), HashMap::new());
        for info in writer.tensors() {
            by_name.insert(info.name.clone(), tensors.len());
            tensors.push(Tensor::new(info.clone(), 0, data_offset));
        }
        Self { files: vec![file], metadata: writer.metadata().clone(), tensors, by_name }
    }

    /// The model's architecture, as in `qwen3moe`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        self.metadata.str("general.architecture").unwrap_or_default()
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Bytes of all files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    /// The shape of the model, for planning.
    #[must_use]
    pub fn hparams(&self) -> Hparams {
        let n_vocab = self.tensor("token_embd.weight").and_then(|t| u32::try_from(t.dims[1]).ok());
        Hparams::read(&self.metadata, n_vocab)
    }

    /// A model of tensors whose names differ.
    pub(crate) fn assemble(
        files: Vec<ModelFile>,
        metadata: Metadata,
        tensors: Vec<Tensor>,
    ) -> Self {
        let names = tensors.iter().enumerate();
        let by_name = names.map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        Self { files, metadata, tensors, by_name }
    }

    pub(crate) fn join(parts: Vec<(ModelFile, Header)>) -> Result<Self, OpenError> {
        let (mut files, mut tensors) = (Vec::new(), Vec::new());
        let (mut metadata, mut by_name) = (Metadata::new(), HashMap::new());
        for (index, (file, header)) in parts.into_iter().enumerate() {
            if index == 0 {
                metadata = header
                    .metadata
                    .iter()
                    .filter(|(key, _)| !is_split_key(key))
                    .map(|(key, value)| (key, value.clone()))
                    .collect();
            }
            for info in header.tensors {
                if by_name.insert(info.name.clone(), tensors.len()).is_some() {
                    return Err(OpenError::DuplicateTensor { name: info.name });
                }
                tensors.push(Tensor::new(info, index, file.data_offset));
            }
            files.push(file);
        }
        Ok(Self { files, metadata, tensors, by_name })
    }
}

impl Tensor {
    fn new(info: TensorInfo, file: usize, data_offset: u64) -> Self {
        let (role, layer) = Role::of(&info.name);
        Self {
            name: info.name,
            ty: info.ty,
            dims: info.dims,
            n_dims: info.n_dims,
            file,
            offset: data_offset + info.offset, // reader and writer have checked the sum
            bytes: info.bytes,
            role,
            layer,
        }
    }

    /// Number of experts stacked in this tensor; `None` if it is no expert weight.
    #[must_use]
    pub fn n_experts(&self) -> Option<u64> {
        let [_, _, n_experts, ne3] = self.dims;
        (self.role.is_expert() && ne3 == 1 && n_experts > 0).then_some(n_experts)
    }

    /// Bytes of one expert's slice of this tensor.
    #[must_use]
    pub fn expert_bytes(&self) -> Option<u64> {
        Some(self.bytes / self.n_experts()?)
    }

    /// Where one expert's slice lies; `None` if there is no such expert here.
    #[must_use]
    pub fn expert_range(&self, expert: u32) -> Option<ByteRange> {
        let len = self.expert_bytes()?;
        (u64::from(expert) < self.n_experts()?).then(|| ByteRange {
            file: self.file,
            offset: self.offset + u64::from(expert) * len,
            len,
        })
    }

    /// Where all of it lies.
    #[must_use]
    pub const fn range(&self) -> ByteRange {
        ByteRange { file: self.file, offset: self.offset, len: self.bytes }
    }
}

fn open_file(path: &Path) -> Result<(ModelFile, Header), OpenError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound { path: path.to_owned() },
        io::ErrorKind::IsADirectory => OpenError::Folder { path: path.to_owned() },
        _ => OpenError::Io { path: path.to_owned(), source },
    };
    // Looked at before it is opened: opening a pipe would wait for a writer.
    let attributes = std::fs::metadata(path).map_err(io_error)?;
    if attributes.is_dir() {
        return Err(OpenError::Folder { path: path.to_owned() });
    }
    if !attributes.is_file() {
        let source = io::Error::new(io::ErrorKind::Unsupported, "it is no regular file");
        return Err(OpenError::Io { path: path.to_owned(), source });
    }
    let file = File::open(path).map_err(io_error)?;
    let len = file.metadata().map_err(io_error)?.len();
    let header = read_header(file, len)
        .map_err(|source| OpenError::Read { path: path.to_owned(), source })?;
    let (data_offset, alignment) = (header.data_offset, header.alignment);
    Ok((ModelFile { path: path.to_owned(), len, data_offset, alignment }, header))
}

/// Opens the other files of a split set whose first file is given.
fn open_splits(
    first_file: ModelFile,
    first_header: Header,
    count: u32,
) -> Result<Vec<(ModelFile, Header)>, OpenError> {
    let path = first_file.path.clone();
    let no = first_header.metadata.u32(KEY_SPLIT_NO).unwrap_or(0);
    let part = no.saturating_add(1);
    let name = SplitName::parse(&path)
        .filter(|name| name.no == no && name.count == count)
        .ok_or_else(|| OpenError::SplitName {
            path: path.clone(),
            part,
            count,
            expected: SplitName::suffix(no, count),
        })?;
    if no != 0 {
        return Err(OpenError::NotFirstSplit { path, part, first: name.path_of(0) });
    }
    let expected = first_header.metadata.u64(KEY_SPLIT_TENSORS);

    let mut parts = vec![(first_file, first_header)];
    for no in 1..count {
        let (path, part) = (name.path_of(no), no.saturating_add(1));
        let (file, header) = open_file(&path).map_err(|err| match err {
            OpenError::NotFound { path } => OpenError::MissingSplit { path, part, count },
            other => other,
        })?;
        if header.metadata.u32(KEY_SPLIT_NO) != Some(no)
            || header.metadata.u32(KEY_SPLIT_COUNT).is_some_and(|own| own != count)
        {
            return Err(OpenError::WrongSplit { path, part, count });
        }
        parts.push((file, header));
    }
    let found = parts.iter().map(|(_, header)| header.tensors.len() as u64).sum();
    match expected {
        Some(expected) if expected != found => Err(OpenError::SplitTensorCount { expected, found }),
        _ => Ok(parts),
    }
}
