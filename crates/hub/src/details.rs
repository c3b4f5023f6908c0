//! What a model's header says, for people and for APIs.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hypura_gguf::hot::{HotModel, is_hot};
use hypura_gguf::{Array, GgmlType, Metadata, Model, OpenError, Value};
use serde_json::{Map, Value as Json};

use crate::quantization::{human_count, quantization};

/// Elements of an array in [`Details::metadata`]; longer arrays are `null`, as in Ollama's answers
/// that are not verbose.
const ARRAY_SHOWN_MAX: usize = 8;
/// Models whose details are kept.
const CACHED_MAX: usize = 64;

/// What a model's header says.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Details {
    /// `general.architecture`, as in `qwen3moe`.
    pub architecture: String,
    /// What Ollama calls the family: the architecture.
    pub family: String,
    /// Number of weights.
    pub parameter_count: u64,
    /// The same as Ollama prints it, as in `8.0B`.
    pub parameter_size: String,
    /// How it is quantized, as in `Q4_K_M`.
    pub quantization: String,
    /// Tokens that it was trained to look back, if the header says.
    pub context_length: Option<u64>,
    /// Width of its embeddings, if the header says.
    pub embedding_length: Option<u64>,
    /// Its own chat template, in Jinja.
    pub chat_template: Option<String>,
    /// Whether it makes embeddings and no text: it pools, or attends to what comes later too.
    pub is_embedding: bool,
    /// All metadata. Arrays of more than a few elements are `null`; see
    /// [`Entry::full_metadata`](crate::Entry::full_metadata).
    pub metadata: Map<String, Json>,
    /// All tensors in the order of the files.
    pub tensors: Vec<TensorDetails>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorDetails {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub ty: GgmlType,
    /// Elements along each dimension, the contiguous one first.
    pub shape: Vec<u64>,
}

/// When a file is taken for the same as before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    path: PathBuf,
    modified: SystemTime,
    bytes: u64,
}

/// Those that were asked for last, the latest at the end.
static CACHE: Mutex<VecDeque<(Key, Arc<Details>)>> = Mutex::new(VecDeque::new());

/// The details of the model that begins with this file, from memory if it is unchanged.
pub(crate) fn details(
    path: &Path,
    modified: SystemTime,
    bytes: u64,
) -> Result<Arc<Details>, OpenError> {
    let key = Key { path: path.to_owned(), modified, bytes };
    let cache = || CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    {
        let mut cache = cache();
        let at = cache.iter().position(|(cached, _)| *cached == key);
        if let Some(found) = at.and_then(|at| cache.remove(at)) {
            let details = Arc::clone(&found.1);
            cache.push_back(found);
            return Ok(details);
        }
    }
    let details = Arc::new(Details::of(&open(path)?));
    let mut cache = cache();
    cache.push_back((key, Arc::clone(&details)));
    if cache.len() > CACHED_MAX {
        cache.pop_front();
    }
    Ok(details)
}

/// All metadata with whole arrays.
pub(crate) fn full_metadata(path: &Path) -> Result<Map<String, Json>, OpenError> {
    Ok(metadata_json(&open(path)?.metadata, usize::MAX))
}

/// The model as it was before it was laid out for streaming, if it was.
fn open(path: &Path) -> Result<Model, OpenError> {
    let model = Model::open(path)?;
    if is_hot(&model) {
        // A file whose table is damaged is shown as it is; whoever loads it gets the error.
        return Ok(HotModel::of(&model).map_or(model, |hot| hot.view));
    }
    Ok(model)
}

impl Details {
    fn of(model: &Model) -> Self {
        let architecture = model.architecture().to_owned();
        let metadata = &model.metadata;
        let of_arch = |key: &str| format!("{architecture}.{key}");
        let elements = |dims: [u64; 4]| dims.iter().fold(1_u64, |n, &dim| n.saturating_mul(dim));
        let counted =
            || model.tensors.iter().fold(0_u64, |n, t| n.saturating_add(elements(t.dims)));
        let parameter_count = metadata.u64("general.parameter_count").unwrap_or_else(counted);
        // `LLAMA_POOLING_TYPE_NONE` is 0.
        let pools = metadata.u32(&of_arch("pooling_type")).is_some_and(|pooling| pooling != 0);
        let is_causal = metadata.bool(&of_arch("attention.causal")).unwrap_or(true);
        let tensors = model.tensors.iter().map(|tensor| TensorDetails {
            name: tensor.name.clone(),
            ty: tensor.ty,
            shape: tensor.dims.iter().copied().take(tensor.n_dims as usize).collect(),
        });
        Self {
            parameter_count,
            parameter_size: human_count(parameter_count),
            quantization: quantization(model),
            context_length: metadata.u64(&of_arch("context_length")),
            embedding_length: metadata.u64(&of_arch("embedding_length")),
            chat_template: metadata.str("tokenizer.chat_template").map(str::to_owned),
            is_embedding: pools || !is_causal,
            metadata: metadata_json(metadata, ARRAY_SHOWN_MAX),
            tensors: tensors.collect(),
            family: architecture.clone(),
            architecture,
        }
    }
}

fn metadata_json(metadata: &Metadata, array_max: usize) -> Map<String, Json> {
    metadata.iter().map(|(key, value)| (key.to_owned(), json(value, array_max))).collect()
}

/// A value as JSON; numbers that JSON doesn't have (infinities) are `null`.
fn json(value: &Value, array_max: usize) -> Json {
    match value {
        Value::U8(v) => (*v).into(),
        Value::I8(v) => (*v).into(),
        Value::U16(v) => (*v).into(),
        Value::I16(v) => (*v).into(),
        Value::U32(v) => (*v).into(),
        Value::I32(v) => (*v).into(),
        Value::F32(v) => (*v).into(),
        Value::Bool(v) => (*v).into(),
        Value::String(v) => String::from_utf8_lossy(v).into(),
        Value::U64(v) => (*v).into(),
        Value::I64(v) => (*v).into(),
        Value::F64(v) => (*v).into(),
        Value::Array(array) if array.len() > array_max => Json::Null,
        Value::Array(array) => json_array(array),
    }
}

fn json_array(array: &Array) -> Json {
    let elements = (0..array.len()).filter_map(|index| array.get(index));
    elements.map(|value| json(&value, usize::MAX)).collect()
}
