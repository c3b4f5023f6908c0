//! Ollama's store: `manifests/HOST/NAMESPACE/NAME/TAG` names layers, `blobs/sha256-HEX` hold them.
//!
//! Models of the default host and namespace go by `NAME:TAG`. Layers are told apart by their media
//! types (`server/images.go`): the model, a system prompt, parameters, messages and licences are
//! read. A template is not: it is in Go's template language, and the GGUF file has its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Found, last_part, paths_in};
use crate::blobs::Digest;
use crate::disk::read_small;
use crate::entry::{Entry, StoreKind, file_ref, unreadable};
use crate::error::ResolveError;
use crate::manifest::{Manifest, Message};

/// Most bytes of a manifest.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of a layer that is read: all but the model.
const LAYER_BYTES_MAX: u64 = 1 << 20;
/// What all media types begin with.
const MEDIA_TYPE: &str = "application/vnd.ollama.image.";

#[derive(Deserialize)]
struct OllamaManifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
}

/// A message with whatever else Ollama keeps of it.
#[derive(Deserialize)]
struct OllamaMessage {
    role: String,
    #[serde(default)]
    content: String,
}

/// Adds the names of all manifests.
pub(super) fn list(root: &Path, all: &mut BTreeMap<String, Found>) {
    for host in paths_in(&root.join("manifests")) {
        for namespace in paths_in(&host) {
            for model in paths_in(&namespace) {
                for path in paths_in(&model) {
                    let short = format!("{}:{}", last_part(&model), last_part(&path));
                    let name = match (last_part(&host), last_part(&namespace)) {
                        ("registry.ollama.ai", "library") => short,
                        ("registry.ollama.ai", namespace) => format!("{namespace}/{short}"),
                        (host, namespace) => format!("{host}/{namespace}/{short}"),
                    };
                    all.insert(name, Found { store: StoreKind::Ollama, path });
                }
            }
        }
    }
}

/// The model of a manifest.
pub(super) fn open(root: &Path, name: &str, path: &Path) -> Result<Entry, ResolveError> {
    let unusable =
        |reason: &str| ResolveError::Unusable { name: name.to_owned(), reason: reason.to_owned() };
    let json = read_small(path, MANIFEST_BYTES_MAX).map_err(|e| unreadable(name, path, &e))?;
    let json = json.ok_or_else(|| unusable("its manifest is too long; pull it again"))?;
    let manifest: OllamaManifest = serde_json::from_slice(&json)
        .map_err(|_| unusable("its manifest in Ollama's store is damaged; pull it again"))?;
    let layers = Layers { root, layers: &manifest.layers };
    if layers.of_kind("adapter").next().is_some() {
        return Err(unusable("it has an adapter, which can't be applied; merge it into the model"));
    }
    let weights = layers.all("model").next();
    let weights =
        weights.ok_or_else(|| unusable("its manifest names no GGUF file; choose another"))?;
    let mut ours = Manifest::of(file_ref(&weights));
    ours.system = layers.text("system");
    ours.parameters = layers.json::<Map<String, Value>>("params").unwrap_or_default();
    let messages: Vec<OllamaMessage> = layers.json("messages").unwrap_or_default();
    ours.messages =
        messages.into_iter().map(|m| Message { role: m.role, content: m.content }).collect();
    ours.license = layers.text("license");
    let modified = path.metadata().and_then(|meta| meta.modified()).ok();
    let digest = Digest::of(&json);
    Entry::assemble(name, vec![weights], digest, Some(ours), modified, StoreKind::Ollama)
}

struct Layers<'a> {
    root: &'a Path,
    layers: &'a [Layer],
}

impl Layers<'_> {
    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(move |l| l.media_type.strip_prefix(MEDIA_TYPE) == Some(kind))
    }

    /// The blobs of all layers of a kind. What is no digest is passed over: it would be a path.
    fn all(&self, kind: &str) -> impl Iterator<Item = PathBuf> {
        let digests = self.of_kind(kind).filter_map(|layer| Digest::parse(&layer.digest));
        digests.map(|digest| self.root.join("blobs").join(format!("sha256-{digest}")))
    }

    /// All texts of a kind, in order; `None` if there is none.
    fn text(&self, kind: &str) -> Option<String> {
        let texts: Vec<_> = self.all(kind).filter_map(|path| read_layer(&path)).collect();
        let texts: Vec<_> = texts.iter().map(|text| String::from_utf8_lossy(text)).collect();
        Some(texts.join("\n")).filter(|text| !text.is_empty())
    }

    fn json<T: DeserializeOwned>(&self, kind: &str) -> Option<T> {
        serde_json::from_slice(&read_layer(&self.all(kind).next()?)?).ok()
    }
}

/// A layer that can't be read is as if it weren't there, with a warning.
fn read_layer(path: &Path) -> Option<Vec<u8>> {
    match read_small(path, LAYER_BYTES_MAX) {
        Ok(Some(bytes)) => Some(bytes),
        Ok(None) => {
            tracing::warn!("{path:?} is left out: it is longer than {LAYER_BYTES_MAX} bytes");
            None
        }
        Err(error) => {
            tracing::warn!("{path:?} is left out: {error}");
            None
        }
    }
}
