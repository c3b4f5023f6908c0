//! Finding a model by name: Hypura's own folder, Ollama's store, the Hugging Face cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why a name leads to no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// It looks like a path, and there is nothing.
    #[error("there is no file {0:?}; check the path")]
    NoFile(PathBuf),
    /// It is a folder.
    #[error("{0:?} is a folder; name a .gguf file in it")]
    Folder(PathBuf),
    /// No store knows it.
    #[error(
        "there is no file {name:?} and no model of that name; {}",
        if known.is_empty() {
            "no local store has any model".to_owned()
        } else {
            format!("the local stores have: {}", known.join(", "))
        }
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Some names that are known.
        known: Vec<String>,
    },
}

/// Names shown at most when one is not found.
const SUGGESTIONS_MAX: usize = 12;
/// Folders of the Hugging Face cache are looked into this deep.
const DEPTH_MAX: usize = 4;
/// Entries looked at, at most, in one store.
const ENTRIES_MAX: usize = 20_000;

/// Where models are looked for.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    /// Folders with GGUF files.
    pub folders: Vec<PathBuf>,
    /// Ollama's store: the folder with `manifests` and `blobs`.
    pub ollama: Option<PathBuf>,
    /// The Hugging Face cache: the folder with `models--ORG--NAME`.
    pub hugging_face: Option<PathBuf>,
}

impl Stores {
    /// The file of a model that is named by its path or in a store.
    ///
    /// # Errors
    /// When there is none; the message lists what there is.
    pub fn resolve(&self, name: &str) -> Result<PathBuf, ResolveError> {
        let path = Path::new(name);
        if path.is_dir() {
            return Err(ResolveError::Folder(path.to_owned()));
        }
        if path.exists() {
            return Ok(path.to_owned());
        }
        let looks_like_path = name.starts_with(['.', '/', '~']) || name.ends_with(".gguf");
        let all = self.list();
        let found = all.get(name).or_else(|| all.get(&format!("{name}:latest")));
        match found {
            Some(path) => Ok(path.clone()),
            None if looks_like_path => Err(ResolveError::NoFile(path.to_owned())),
            None => {
                let known = all.into_keys().take(SUGGESTIONS_MAX).collect();
                Err(ResolveError::Unknown { name: name.to_owned(), known })
            }
        }
    }

    /// All models of all stores, by name. Parts of split sets after the first are left out.
    pub fn list(&self) -> BTreeMap<String, PathBuf> {
        let mut all = BTreeMap::new();
        if let Some(root) = &self.hugging_face {
            list_hugging_face(root, &mut all);
        }
        if let Some(root) = &self.ollama {
            list_ollama(root, &mut all);
        }
        for folder in &self.folders {
            for path in entries(folder) {
                if let Some(name) = gguf_name(&path) {
                    all.insert(name, path);
                }
            }
        }
        all
    }
}

/// The name of a GGUF file that a model begins with: its stem, without the split's numbers.
fn gguf_name(path: &Path) -> Option<String> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let part = stem.rsplit_once("-of-").and_then(|(head, of)| {
        let (head, number) = head.rsplit_once('-')?;
        let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
        (digits(number) && digits(of)).then_some((head, number))
    });
    match part {
        Some((head, "00001")) => Some(head.to_owned()),
        Some(_) => None,
        None => Some(stem.to_owned()),
    }
}

/// The paths in a folder, sorted; none when it can't be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(read) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = read.take(ENTRIES_MAX).flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// `models--ORG--NAME/snapshots/REVISION/.../FILE.gguf`, named `ORG/NAME/FILE`.
fn list_hugging_face(root: &Path, all: &mut BTreeMap<String, PathBuf>) {
    for repository in entries(root) {
        let name = repository.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(name) = name.strip_prefix("models--") else { continue };
        let name = name.replace("--", "/");
        let mut folders = vec![(repository.join("snapshots"), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for path in entries(&folder) {
                if path.is_dir() && depth < DEPTH_MAX {
                    folders.push((path, depth + 1));
                } else if let Some(file) = gguf_name(&path) {
                    all.insert(format!("{name}/{file}"), path);
                }
            }
        }
    }
}

/// `manifests/HOST/NAMESPACE/NAME/TAG` names a layer, `blobs/sha256-HEX` holds it. Models of the
/// default host and namespace go by `NAME:TAG`.
fn list_ollama(root: &Path, all: &mut BTreeMap<String, PathBuf>) {
    const MANIFEST_BYTES_MAX: u64 = 1 << 20;
    for host in entries(&root.join("manifests")) {
        for namespace in entries(&host) {
            for model in entries(&namespace) {
                for tag in entries(&model) {
                    let text = |p: &Path| {
                        p.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned()
                    };
                    let small = tag.metadata().is_ok_and(|m| m.len() <= MANIFEST_BYTES_MAX);
                    let manifest = if small { std::fs::read(&tag).ok() } else { None };
                    let Some(blob) = manifest.and_then(|m| ollama_blob(&m)) else { continue };
                    let short = format!("{}:{}", text(&model), text(&tag));
                    let name = match (text(&host).as_str(), text(&namespace).as_str()) {
                        ("registry.ollama.ai", "library") => short,
                        ("registry.ollama.ai", namespace) => format!("{namespace}/{short}"),
                        (host, namespace) => format!("{host}/{namespace}/{short}"),
                    };
                    all.insert(name, root.join("blobs").join(blob));
                }
            }
        }
    }
}

/// The blob of the weights in an Ollama manifest.
fn ollama_blob(manifest: &[u8]) -> Option<String> {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).ok()?;
    let layer = manifest.get("layers")?.as_array()?.iter().find(|layer| {
        layer.get("mediaType").and_then(|t| t.as_str())
            == Some("application/vnd.ollama.image.model")
    })?;
    let digest = layer.get("digest")?.as_str()?.replace(':', "-");
    let is_plain = digest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_plain.then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path, content: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    #[test]
    fn names_of_all_stores_resolve() {
        let root = tempfile::tempdir().unwrap();
        let at = |p: &str| root.path().join(p);
        touch(&at("own/tiny.gguf"), "");
        touch(&at("own/big-00001-of-00002.gguf"), "");
        touch(&at("own/big-00002-of-00002.gguf"), "");
        touch(&at("hf/models--org--repo/snapshots/abc/sub/q4.gguf"), "");
        touch(
            &at("ollama/manifests/registry.ollama.ai/library/llama/latest"),
            r#"{"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:ab"}]}"#,
        );
        touch(&at("ollama/blobs/sha256-ab"), "");
        touch(&at("ollama/manifests/registry.ollama.ai/library/bad/latest"), "not json");
        let stores = Stores {
            folders: vec![at("own")],
            ollama: Some(at("ollama")),
            hugging_face: Some(at("hf")),
        };
        for (name, path) in [
            ("tiny", "own/tiny.gguf"),
            ("big", "own/big-00001-of-00002.gguf"),
            ("org/repo/q4", "hf/models--org--repo/snapshots/abc/sub/q4.gguf"),
            ("llama", "ollama/blobs/sha256-ab"),
            ("llama:latest", "ollama/blobs/sha256-ab"),
        ] {
            assert_eq!(stores.resolve(name).unwrap(), at(path), "{name}");
        }
        assert_eq!(stores.list().len(), 4);
        let error = stores.resolve("none").unwrap_err().to_string();
        assert!(error.contains("tiny") && error.contains("llama:latest"), "{error}");
        assert!(matches!(stores.resolve("./x.gguf"), Err(ResolveError::NoFile(_))));
        let folder = stores.resolve(root.path().to_str().unwrap());
        assert!(matches!(folder, Err(ResolveError::Folder(_))));
    }
}
