//! `GET /api/tags` and `GET /api/ps`: which models there are, and which are loaded.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use hypura_chat::ChatTemplate;
use hypura_hub::{Details, Entry, Stores};
use serde::Serialize;

use super::error::OllamaError;
use super::fill::FillTokens;
use super::format::timestamp;
use crate::answer::blocking;
use crate::app::Shared;
use crate::error::ApiError;

#[derive(Debug, Serialize)]
pub(super) struct TagsResponse {
    models: Vec<TaggedModel>,
}

#[derive(Debug, Serialize)]
struct TaggedModel {
    name: String,
    model: String,
    modified_at: String,
    size: u64,
    digest: String,
    details: ModelDetails,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    capabilities: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
pub(super) struct PsResponse {
    models: Vec<LoadedModel>,
}

#[derive(Debug, Serialize)]
struct LoadedModel {
    name: String,
    model: String,
    size: u64,
    digest: String,
    details: ModelDetails,
    expires_at: String,
    size_vram: u64,
    context_length: usize,
}

/// What Ollama says about a model wherever it is named.
#[derive(Debug, Default, Serialize)]
pub(super) struct ModelDetails {
    parent_model: &'static str,
    format: &'static str,
    family: String,
    families: Vec<String>,
    parameter_size: String,
    quantization_level: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding_length: Option<u64>,
}

impl ModelDetails {
    /// Those of a header.
    pub(super) fn of(details: &Details) -> ModelDetails {
        ModelDetails {
            format: "gguf",
            family: details.family.clone(),
            families: vec![details.family.clone()],
            parameter_size: details.parameter_size.clone(),
            quantization_level: details.quantization.clone(),
            context_length: details.context_length,
            embedding_length: details.embedding_length,
            ..ModelDetails::default()
        }
    }
}

/// What a model can do, in Ollama's words. Tools can be told to every model that chats.
pub(super) fn capabilities(entry: &Entry, details: &Details) -> Vec<&'static str> {
    if details.is_embedding {
        return vec!["embedding"];
    }
    let mut all = vec!["completion"];
    if let Some(source) = template(entry, details) {
        all.push("tools");
        let template = ChatTemplate::new(source, "", "");
        if template.is_ok_and(|template| template.capabilities().thinking) {
            all.push("thinking");
        }
    }
    if FillTokens::of(&details.metadata).is_some() {
        all.push("insert");
    }
    all
}

/// A model's chat template in Jinja.
pub(super) fn template<'a>(entry: &'a Entry, details: &'a Details) -> Option<&'a str> {
    let own = entry.manifest.as_ref().and_then(|manifest| manifest.template.as_deref());
    own.or(details.chat_template.as_deref())
}

/// When a file was changed.
pub(super) fn file_time(time: SystemTime) -> String {
    timestamp(DateTime::<Utc>::from(time))
}

/// Work on the models' files, on a thread where that may take time.
///
/// # Errors
/// When it panics, which is a bug.
pub(super) async fn with_stores<T: Send + 'static>(
    app: &Shared,
    work: impl FnOnce(&Stores) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let app = Arc::clone(app);
    blocking(move || Ok(work(app.models.stores()))).await
}

/// All models that lie here, the latest first.
pub(super) async fn tags(State(app): State<Shared>) -> Result<Json<TagsResponse>, OllamaError> {
    let models = with_stores(&app, |stores| {
        let mut entries = stores.entries();
        entries.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| a.name.cmp(&b.name)));
        entries.into_iter().map(tagged).collect()
    });
    Ok(Json(TagsResponse { models: models.await? }))
}

fn tagged(entry: Entry) -> TaggedModel {
    let details = entry.details().inspect_err(|error| {
        tracing::debug!(model = entry.name, "the header can't be shown: {error}");
    });
    let details = details.ok();
    TaggedModel {
        model: entry.name.clone(),
        modified_at: file_time(entry.modified),
        size: entry.bytes,
        details: details.as_deref().map(ModelDetails::of).unwrap_or_default(),
        capabilities: details.map_or(Vec::new(), |details| capabilities(&entry, &details)),
        name: entry.name,
        digest: entry.digest,
    }
}

/// All models that are loaded, those that stay longest first.
pub(super) async fn ps(State(app): State<Shared>) -> Result<Json<PsResponse>, OllamaError> {
    let mut loaded = app.models.loaded();
    let forever = Utc::now() + TimeDelta::nanoseconds(i64::MAX);
    loaded.sort_by_key(|model| std::cmp::Reverse(model.expires_at.unwrap_or(forever)));
    let models = with_stores(&app, move |_| {
        loaded
            .into_iter()
            .map(|model| LoadedModel {
                name: model.entry.name.clone(),
                model: model.entry.name.clone(),
                size: model.memory_bytes.saturating_add(model.vram_bytes),
                digest: model.entry.digest.clone(),
                details: model.entry.details().map(|d| ModelDetails::of(&d)).unwrap_or_default(),
                // Ollama's answer for ever is the longest duration that Go knows: 292 years.
                expires_at: timestamp(model.expires_at.unwrap_or(forever)),
                size_vram: model.vram_bytes,
                context_length: model.context_length,
            })
            .collect()
    });
    Ok(Json(PsResponse { models: models.await? }))
}
