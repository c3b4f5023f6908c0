//! `POST /api/show`: all about one model.

use std::fmt::Write;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::USER_AGENT;
use hypura_hub::{Details, Entry, Manifest};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::{OllamaError, of_resolve};
use super::models::{ModelDetails, capabilities, file_time, template, with_stores};
use super::request::model_name;
use crate::app::Shared;
use crate::error::ApiError;
use crate::http::parse;

/// Columns of a parameter's name, as Ollama prints parameters.
const NAME_COLUMNS: usize = 30;
/// GitHub's chat names a model by `general.basename`; Ollama gives it the name that it asked for.
const COPILOT_CHAT: &str = "GitHubCopilotChat/";

/// A request, as it arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ShowRequest {
    model: Option<String>,
    name: Option<String>,
    system: Option<String>,
    verbose: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(super) struct ShowResponse {
    #[serde(skip_serializing_if = "String::is_empty")]
    license: String,
    modelfile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    parameters: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    template: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    system: String,
    details: ModelDetails,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<ShownMessage>,
    model_info: Map<String, Value>,
    tensors: Vec<ShownTensor>,
    capabilities: Vec<&'static str>,
    modified_at: String,
}

#[derive(Debug, Serialize)]
struct ShownMessage {
    role: String,
    content: String,
}

#[derive(Debug, Serialize)]
struct ShownTensor {
    name: String,
    #[serde(rename = "type")]
    ty: &'static str,
    shape: Vec<u64>,
}

impl ShowRequest {
    /// The model's name.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn model(&self) -> Result<String, ApiError> {
        let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        model_name(given(&self.model).or_else(|| given(&self.name)))
    }
}

/// Shows a model. Arrays of its header, such as all tokens, are null unless `verbose` is set.
pub(super) async fn show(
    State(app): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<ShowResponse>, OllamaError> {
    let request: ShowRequest = parse(&body)?;
    let model = request.model()?;
    let asked = model.clone();
    let shown = with_stores(&app, move |stores| {
        let entry = stores.find(&model).map_err(|error| of_resolve(&error, &model))?;
        describe(&entry, &request)
    });
    let mut shown = shown.await??;
    let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
    if agent.is_some_and(|agent| agent.starts_with(COPILOT_CHAT)) {
        shown.model_info.insert("general.basename".to_owned(), asked.into());
    }
    Ok(Json(shown))
}

fn describe(entry: &Entry, request: &ShowRequest) -> Result<ShowResponse, ApiError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        ApiError::internal(format!("model {:?} can't be shown: {error}", entry.name))
    };
    let details = entry.details().map_err(|error| unreadable(&error))?;
    let metadata = match request.verbose {
        Some(true) => entry.full_metadata().map_err(|error| unreadable(&error))?,
        _ => details.metadata.clone(),
    };
    let manifest = entry.manifest.as_ref();
    let said = |text: Option<&String>| text.cloned().unwrap_or_default();
    let system = request.system.as_ref().filter(|system| !system.is_empty());
    let system = said(system.or_else(|| manifest.and_then(|manifest| manifest.system.as_ref())));
    let messages = manifest.map_or(&[][..], |manifest| &manifest.messages).iter();
    Ok(ShowResponse {
        license: said(manifest.and_then(|manifest| manifest.license.as_ref())),
        modelfile: modelfile(entry, &system),
        parameters: manifest.map_or_else(String::new, parameters),
        template: template(entry, &details).unwrap_or_default().to_owned(),
        system,
        details: ModelDetails::of(&details),
        messages: messages
            .map(|said| ShownMessage { role: said.role.clone(), content: said.content.clone() })
            .collect(),
        model_info: model_info(metadata, &details),
        tensors: tensors(&details),
        capabilities: capabilities(entry, &details),
        modified_at: file_time(entry.modified),
    })
}

/// The header without what is shown elsewhere.
fn model_info(mut metadata: Map<String, Value>, details: &Details) -> Map<String, Value> {
    metadata.remove("general.name");
    metadata.remove("tokenizer.chat_template");
    metadata.insert("general.parameter_count".to_owned(), details.parameter_count.into());
    metadata
}

fn tensors(details: &Details) -> Vec<ShownTensor> {
    let shown = details.tensors.iter().map(|tensor| ShownTensor {
        name: tensor.name.clone(),
        ty: tensor.ty.name(),
        shape: tensor.shape.clone(),
    });
    shown.collect()
}

/// A line for each value of each parameter.
fn each_parameter(manifest: &Manifest, mut line: impl FnMut(&str, &Value)) {
    for (name, value) in &manifest.parameters {
        match value {
            Value::Array(values) => values.iter().for_each(|value| line(name, value)),
            value => line(name, value),
        }
    }
}

/// Parameters in two columns.
fn parameters(manifest: &Manifest) -> String {
    let mut lines = Vec::new();
    each_parameter(manifest, |name, value| lines.push(format!("{name:<NAME_COLUMNS$} {value}")));
    lines.join("\n")
}

/// What `ollama create` would read. The template is left out: it is Jinja, and would be taken for
/// one of Go's.
fn modelfile(entry: &Entry, system: &str) -> String {
    let mut text = format!("# Modelfile written by hypura\nFROM {}\n", entry.name);
    // Writing to a string doesn't fail.
    if let Some(manifest) = &entry.manifest {
        each_parameter(manifest, |name, value| {
            let _ = writeln!(text, "PARAMETER {name} {value}");
        });
        for message in &manifest.messages {
            let _ = writeln!(text, "MESSAGE {} \"\"\"{}\"\"\"", message.role, message.content);
        }
    }
    if !system.is_empty() {
        let _ = writeln!(text, "SYSTEM \"\"\"{system}\"\"\"");
    }
    text
}
