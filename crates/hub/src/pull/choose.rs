//! Which files of a repository a name asks for.
//!
//! As llama.cpp's `-hf` does it (`find_best_model` in `common/download.cpp`): a quantization is
//! looked for in the files' names, whatever its case; without one it is Q4_K_M, else Q8_0, else the
//! first file. Files that are no language models by themselves are passed over.

use hypura_gguf::{SplitName, split_path};
use std::path::Path;

use super::reference::{Reference, Want};
use crate::manifest::{Blob, PARTS_MAX};
use crate::pull::error::PullError;

/// What is taken if nothing is asked for, the best first.
const DEFAULTS: [&str; 2] = ["Q4_K_M", "Q8_0"];
/// Parts of names of what belongs to a model and is none: projectors, statistics, drafts.
const NO_MODELS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];
/// Files that an error lists.
const AVAILABLE_MAX: usize = 24;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Its path in the repository.
    pub(super) path: String,
    /// What it holds.
    pub(super) blob: Blob,
}

/// A file as the hub lists it: with a checksum or without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listed {
    Checked(RemoteFile),
    Unchecked(String),
}

impl Listed {
    pub(super) fn path(&self) -> &str {
        match self {
            Self::Checked(file) => &file.path,
            Self::Unchecked(path) => path,
        }
    }

    fn checked(&self) -> Result<&RemoteFile, PullError> {
        match self {
            Self::Checked(file) => Ok(file),
            Self::Unchecked(path) => Err(PullError::NoChecksum { path: path.clone() }),
        }
    }
}

/// The file that is asked for, or all files of its split set in order.
pub(super) fn choose<'a>(
    files: &'a [Listed],
    reference: &Reference,
) -> Result<Vec<&'a RemoteFile>, PullError> {
    let repository = reference.repository();
    let mut models: Vec<&Listed> = files.iter().filter(|file| is_model(file.path())).collect();
    models.sort_by_key(|file| (file.path().len(), file.path()));
    if models.is_empty() && !matches!(reference.want, Want::File(_)) {
        return Err(PullError::NoGguf { repository });
    }
    let (found, wanted) = match &reference.want {
        Want::File(path) => (files.iter().find(|file| file.path() == path), path.as_str()),
        Want::Tag(tag) => (by_tag(&models, tag), tag.as_str()),
        Want::Default => {
            let best = DEFAULTS.iter().find_map(|tag| by_tag(&models, tag));
            let first = || models.iter().copied().min_by_key(|file| file.path());
            (best.or_else(first), "GGUF file")
        }
    };
    match found {
        Some(file) => all_parts(files, file, &repository),
        None => {
            let available = models.iter().take(AVAILABLE_MAX).map(|f| f.path().to_owned());
            let available = available.collect();
            Err(PullError::NotThere { repository, wanted: wanted.to_owned(), available })
        }
    }
}

/// Whether a model begins with this file.
fn is_model(path: &str) -> bool {
    let name = file_name(path).to_ascii_lowercase();
    name.ends_with(".gguf")
        && !NO_MODELS.iter().any(|part| name.contains(part))
        && SplitName::parse(path.as_ref()).is_none_or(|split| split.no == 0)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Of the files with a quantization in their path, or with this name, the first of the shortest.
fn by_tag<'a>(models: &[&'a Listed], tag: &str) -> Option<&'a Listed> {
    let tag = tag.to_ascii_lowercase();
    let fits = |file: &&&Listed| {
        let path = file.path().to_ascii_lowercase();
        file_name(&path) == tag || has_word(&path, &tag)
    };
    models.iter().find(fits).copied()
}

/// Whether a text has a word between separators. `_` ends none: Q4_K is not in Q4_K_M.
fn has_word(text: &str, word: &str) -> bool {
    let is_begin = |c: char| matches!(c, '-' | '.' | '/' | '_');
    let is_end = |c: char| matches!(c, '-' | '.' | '/');
    text.match_indices(word).any(|(at, _)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|text| text.chars().next());
        before.is_none_or(is_begin) && after.is_none_or(is_end)
    })
}

fn all_parts<'a>(
    files: &'a [Listed],
    first: &'a Listed,
    repository: &str,
) -> Result<Vec<&'a RemoteFile>, PullError> {
    let Some(split) = SplitName::parse(first.path().as_ref()) else {
        return Ok(vec![first.checked()?]);
    };
    let missing = |path: &Path| PullError::MissingPart {
        repository: repository.to_owned(),
        missing: path.display().to_string(),
    };
    if split.count as usize > PARTS_MAX {
        return Err(missing(&split.prefix));
    }
    let part = |no| {
        let path = split_path(&split.prefix, no, split.count);
        let found = files.iter().find(|file| Path::new(file.path()) == path);
        found.ok_or_else(|| missing(&path))?.checked()
    };
    (0..split.count).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::Digest;

    fn listed(paths: &[&str]) -> Vec<Listed> {
        let file = |path: &&str| {
            let blob = Blob { sha256: Digest::of(path.as_bytes()), bytes: 1 };
            Listed::Checked(RemoteFile { path: (*path).to_owned(), blob })
        };
        paths.iter().map(file).collect()
    }

    fn chosen(files: &[Listed], name: &str) -> Result<String, PullError> {
        let files = choose(files, &Reference::parse(name).unwrap())?;
        Ok(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn quantizations_are_found_in_names_and_folders() {
        let files = listed(&[
            "README.md",
            "m-IQ1_S.gguf",
            "m-Q4_K_S.gguf",
            "m-Q4_K_M.gguf",
            "m-UD-Q4_K_M.gguf",
            "m.Q8_0.gguf",
            "mmproj-m-F16.gguf",
            "BF16/m-BF16-00001-of-00002.gguf",
            "BF16/m-BF16-00002-of-00002.gguf",
        ]);
        for (name, path) in [
            ("a/b", "m-Q4_K_M.gguf"),
            ("a/b:latest", "m-Q4_K_M.gguf"),
            ("a/b:q4_k_s", "m-Q4_K_S.gguf"),
            ("a/b:UD-Q4_K_M", "m-UD-Q4_K_M.gguf"),
            ("a/b:Q8_0", "m.Q8_0.gguf"),
            ("a/b:m.q8_0.gguf", "m.Q8_0.gguf"),
            ("a/b:bf16", "BF16/m-BF16-00001-of-00002.gguf BF16/m-BF16-00002-of-00002.gguf"),
            ("a/b/mmproj-m-F16.gguf", "mmproj-m-F16.gguf"),
            ("a/b/m-IQ1_S.gguf", "m-IQ1_S.gguf"),
        ] {
            assert_eq!(chosen(&files, name).unwrap(), path, "{name}");
        }
        for name in ["a/b:Q4_K", "a/b:F16", "a/b:Q2_K", "a/b/x.gguf"] {
            let error = chosen(&files, name).unwrap_err();
            assert!(matches!(error, PullError::NotThere { .. }), "{name}: {error}");
            assert!(error.to_string().contains("m-IQ1_S.gguf"), "{error}");
        }
    }

    #[test]
    fn without_the_usual_quantizations_it_is_the_first() {
        assert_eq!(chosen(&listed(&["b-Q5.gguf", "a-F16-x.gguf"]), "a/b").unwrap(), "a-F16-x.gguf");
        assert_eq!(chosen(&listed(&["a-F16.gguf", "b-Q8_0.gguf"]), "a/b").unwrap(), "b-Q8_0.gguf");
        let error = chosen(&listed(&["model.safetensors"]), "a/b").unwrap_err();
        assert!(matches!(error, PullError::NoGguf { .. }), "{error}");
    }

    #[test]
    fn a_set_is_whole_and_has_checksums_or_is_refused() {
        let half = listed(&["m-00001-of-00002.gguf"]);
        let error = chosen(&half, "a/b").unwrap_err();
        assert!(matches!(error, PullError::MissingPart { .. }), "{error}");
        let error = chosen(&[Listed::Unchecked("m.gguf".into())], "a/b").unwrap_err();
        assert!(matches!(error, PullError::NoChecksum { .. }), "{error}");
    }
}
