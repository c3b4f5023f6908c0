//! `POST /api/create`: a model of another one, or of a file that was uploaded.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use hypura_hub::{Digest, Manifest, Message, ModelRef, Stores};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::error::{OllamaError, of_resolve, of_store};
use super::manage::check_allowed;
use super::message::{RequestMessage, messages};
use super::options::Options;
use super::request::model_name;
use super::status::{CancelOnDrop, SUCCESS, Update, respond, step};
use crate::app::Shared;
use crate::config::Limits;
use crate::error::ApiError;
use crate::http::parse;

/// Updates of one creation.
const UPDATES_MAX: usize = 8;

/// A request, as it arrives. `renderer`, `parser`, `requires` and `info` mean nothing here: what they
/// say is found out from the model.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CreateRequest {
    model: Option<String>,
    name: Option<String>,
    stream: Option<bool>,
    from: Option<String>,
    files: Option<BTreeMap<String, String>>,
    adapters: Option<Map<String, Value>>,
    draft_files: Option<Map<String, Value>>,
    template: Option<String>,
    license: Option<Value>,
    system: Option<String>,
    parameters: Option<Map<String, Value>>,
    messages: Option<Vec<RequestMessage>>,
    quantize: Option<String>,
    quantization: Option<String>,
    draft_quantize: Option<String>,
    remote_host: Option<String>,
}

/// What is to be made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Recipe {
    name: String,
    base: Base,
    system: Option<String>,
    license: Option<String>,
    parameters: Map<String, Value>,
    messages: Vec<Message>,
}

/// Of what.
#[derive(Debug, Clone, PartialEq)]
enum Base {
    /// A model.
    Model(String),
    /// A file that was uploaded.
    Blob(Digest),
}

impl CreateRequest {
    /// Checks all fields.
    ///
    /// # Errors
    /// The first that makes no sense, or asks for what can't be done.
    pub(super) fn resolve(self, limits: &Limits) -> Result<(Recipe, bool), ApiError> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let name = model_name(given(self.model).or_else(|| given(self.name)))?;
        let is_empty = |map: Option<Map<String, Value>>| map.is_none_or(|map| map.is_empty());
        let quantize = given(self.quantize).or(given(self.quantization));
        if quantize.or(given(self.draft_quantize)).is_some() {
            let message = "hypura does not quantize models; create it of one that is quantized";
            return Err(ApiError::not_implemented(message));
        }
        if !is_empty(self.adapters) || !is_empty(self.draft_files) {
            let message = "hypura has no adapters and no draft models; leave them out";
            return Err(ApiError::not_implemented(message));
        }
        if given(self.remote_host).is_some() {
            let message = "hypura runs models here alone; leave remote_host out";
            return Err(ApiError::not_implemented(message));
        }
        if given(self.template).is_some() {
            let message = "template can't be used, as it would be one of Go's; leave it out, and \
                 the model's own is used";
            return Err(ApiError::bad_field("template", message));
        }
        let base = match (given(self.from), self.files) {
            (Some(from), _) => Base::Model(from),
            (None, Some(files)) => Base::Blob(only_file(&files)?),
            (None, None) => {
                return Err(ApiError::bad("neither 'from' or 'files' was specified"));
            }
        };
        let mut parameters = self.parameters.unwrap_or_default();
        parameters.retain(|_, value| !value.is_null());
        Options::read(Some(&parameters), limits)?;
        let said = messages(self.messages.unwrap_or_default(), &name, limits)?;
        let recipe = Recipe {
            name,
            base,
            system: given(self.system),
            license: license(self.license)?,
            parameters,
            messages: said
                .into_iter()
                .map(|message| Message { role: message.role, content: message.content })
                .collect(),
        };
        Ok((recipe, self.stream.unwrap_or(true)))
    }
}

/// The only file of a model.
fn only_file(files: &BTreeMap<String, String>) -> Result<Digest, ApiError> {
    let mut digests = files.values();
    let bad = |message: &str| ApiError::bad_field("files", message);
    match (digests.next(), digests.next()) {
        (Some(digest), None) => parse_digest(digest).ok_or_else(|| bad("invalid digest format")),
        (None, _) => Err(bad("no files provided to convert")),
        (Some(_), Some(_)) => Err(ApiError::not_implemented(
            "hypura creates models of one GGUF file; convert or merge the files before",
        )),
    }
}

/// A SHA-256 as Ollama writes it: `sha256:HEX` or `sha256-HEX`.
pub(super) fn parse_digest(text: &str) -> Option<Digest> {
    let hex = text.strip_prefix("sha256").and_then(|rest| rest.strip_prefix([':', '-']))?;
    Digest::parse(hex)
}

/// A text, or several.
fn license(value: Option<Value>) -> Result<Option<String>, ApiError> {
    let bad = || ApiError::bad_field("license", "license has to be a text or a list of texts");
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text,
        Some(Value::Array(items)) => {
            let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            texts.ok_or_else(bad)?.join("\n")
        }
        Some(_) => return Err(bad()),
    };
    Ok(Some(text).filter(|text| !text.is_empty()))
}

impl Recipe {
    /// Makes the model.
    fn make(self, stores: &Stores, tell: &mut dyn FnMut(&str)) -> Result<(), ApiError> {
        let mut manifest = match &self.base {
            Base::Model(from) => {
                tell("reading model metadata");
                stores.find(from).map_err(|error| of_resolve(&error, from))?.to_manifest()
            }
            Base::Blob(digest) => {
                tell("parsing GGUF");
                let blob = stores.blob(digest).map_err(|error| of_store(&error, &self.name))?;
                let blob = blob.ok_or_else(|| {
                    let message = format!("blob \"sha256:{digest}\" not found; upload it first");
                    ApiError::bad_field("files", message)
                })?;
                Manifest::of(ModelRef::Blobs(vec![blob]))
            }
        };
        // What is not said stays as it was; messages replace all others.
        manifest.system = self.system.or(manifest.system);
        manifest.license = self.license.or(manifest.license);
        manifest.parameters.extend(self.parameters);
        if !self.messages.is_empty() {
            manifest.messages = self.messages;
        }
        tell("writing manifest");
        let created = stores.create(&self.name, &manifest);
        created.map_err(|error| of_store(&error, &self.name))?;
        tell(SUCCESS);
        Ok(())
    }
}

/// Creates a model.
pub(super) async fn create(
    State(app): State<Shared>,
    body: Bytes,
) -> Result<Response, OllamaError> {
    check_allowed(&app)?;
    let (recipe, stream) = parse::<CreateRequest>(&body)?.resolve(&app.config.limits)?;
    let (sender, updates) = mpsc::channel::<Update>(UPDATES_MAX);
    tokio::task::spawn_blocking(move || {
        // Who is gone needs no line.
        let mut tell = |status: &str| drop(sender.blocking_send(Ok(step(status))));
        if let Err(error) = recipe.make(app.models.stores(), &mut tell) {
            let _ = sender.blocking_send(Err(error));
        }
    });
    Ok(respond(updates, CancelOnDrop::default(), stream).await?)
}
