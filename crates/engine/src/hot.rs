//! Opening a model, which may be an ordinary file or a hot one.

use std::path::Path;

use hypura_gguf::hot::{HotModel, is_hot};
use hypura_gguf::{self as gguf, ByteRange};
use hypura_llama::Layout;

use crate::optimize::suits_this_cpu;
use crate::options::LoadError;

/// A model that was opened.
#[derive(Debug, Clone)]
pub(crate) enum Opened {
    /// An ordinary one.
    Plain(gguf::Model),
    /// One that was laid out for streaming.
    Hot(Box<HotModel>),
}

/// Where the slices of a tensor lie: one per expert, or all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index in the model's files.
    pub(crate) file: usize,
    /// Where the first slice begins.
    pub(crate) offset: u64,
    /// Bytes of a slice.
    pub(crate) slice_bytes: u64,
    /// Bytes from one slice to the next.
    pub(crate) stride: u64,
    /// Whether slices are rearranged for this CPU.
    pub(crate) is_repacked: bool,
}

impl Opened {
    /// Opens the model at `path`.
    pub(crate) fn open(path: &Path) -> Result<Opened, LoadError> {
        let model = gguf::Model::open(path)?;
        if is_hot(&model) {
            return Ok(Opened::Hot(Box::new(HotModel::of(&model)?)));
        }
        Ok(Opened::Plain(model))
    }

    /// The model as it is planned with: of a hot file, what it was before.
    pub(crate) fn model(&self) -> &gguf::Model {
        match self {
            Opened::Plain(model) => model,
            Opened::Hot(hot) => &hot.view,
        }
    }

    pub(crate) fn into_model(self) -> gguf::Model {
        match self {
            Opened::Plain(model) => model,
            Opened::Hot(hot) => hot.view,
        }
    }

    /// What there is to know of a hot file.
    pub(crate) fn hot(&self) -> Option<&HotModel> {
        match self {
            Opened::Plain(_) => None,
            Opened::Hot(hot) => Some(hot),
        }
    }

    /// Whether it can be computed with here, in this layout.
    pub(crate) fn check(&self, layout: Layout) -> Result<(), LoadError> {
        let Some(hot) = self.hot() else { return Ok(()) };
        let tensors = 0..hot.view.tensors.len();
        let has_repacked =
            tensors.filter_map(|i| hot.place(i)).any(|place| place.layout.is_repacked());
        if has_repacked && layout == Layout::Plain {
            return Err(LoadError::HotLayout);
        }
        Ok(suits_this_cpu(hot)?)
    }

    /// Where the slices of a tensor lie; `None` if there is no such tensor.
    pub(crate) fn place(&self, index: usize) -> Option<Place> {
        if let Some(place) = self.hot().and_then(|hot| hot.place(index)) {
            return Some(Place {
                file: 0,
                offset: place.offset,
                slice_bytes: place.slice_bytes,
                stride: place.stride,
                is_repacked: place.layout.is_repacked(),
            });
        }
        let tensor = self.model().tensors.get(index)?;
        let ByteRange { file, offset, len } = tensor.range();
        let slice_bytes = tensor.expert_bytes().unwrap_or(len);
        Some(Place { file, offset, slice_bytes, stride: slice_bytes, is_repacked: false })
    }
}
