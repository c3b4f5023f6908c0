//! What a name that is pulled asks for.

use crate::name::ModelName;
use crate::pull::error::PullError;

/// Folders of a file in a repository, at most.
const DEPTH_MAX: usize = 8;

/// A repository on the hub, and what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) org: String,
    pub(super) repo: String,
    pub(super) want: Want,
    /// What the model is called here.
    pub(super) name: ModelName,
}

/// What of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Want {
    /// What most people want.
    Default,
    /// A quantization, or a file by its name without folders, as Ollama has it after the colon.
    Tag(String),
    /// A file by its path.
    File(String),
}

impl Reference {
    /// Takes a name apart. Nothing of it becomes a path here but through [`ModelName`].
    pub(super) fn parse(text: &str) -> Result<Self, PullError> {
        let rest = strip_host(text);
        let parts: Vec<&str> = rest.split('/').collect();
        let bad = || PullError::Reference { name: text.chars().take(200).collect() };
        match parts.as_slice() {
            // With a good name, not with anything.
            [_] if rest == text && ModelName::parse(text).is_ok() => {
                Err(PullError::OllamaRegistry { name: text.to_owned() })
            }
            ["registry.ollama.ai" | "ollama.com", ..] => {
                Err(PullError::OllamaRegistry { name: text.chars().take(200).collect() })
            }
            [org, repo] => {
                let (repo, tag) = match repo.split_once(':') {
                    Some((repo, tag)) => (repo, Some(tag)),
                    None => (*repo, None),
                };
                let want = match tag {
                    None | Some("latest") => Want::Default,
                    Some(tag) => Want::Tag(tag.to_owned()),
                };
                Self::new(org, repo, tag.unwrap_or("latest"), want)
            }
            [org, repo, folders @ .., file] if folders.len() < DEPTH_MAX => {
                let is_plain = |part: &&str| {
                    !matches!(*part, "" | "." | "..") && !part.contains(char::is_control)
                };
                let stem = file.strip_suffix(".gguf").ok_or_else(bad)?;
                if !folders.iter().all(is_plain) {
                    return Err(bad());
                }
                let path = [folders, &[*file]].concat().join("/");
                Self::new(org, repo, without_split(stem), Want::File(path))
            }
            _ => Err(bad()),
        }
    }

    fn new(org: &str, repo: &str, tag: &str, want: Want) -> Result<Self, PullError> {
        let name = ModelName::parse(&format!("hf.co/{org}/{repo}:{tag}"))?;
        Ok(Self { org: org.to_owned(), repo: repo.to_owned(), want, name })
    }

    /// `ORG/REPO`.
    pub(super) fn repository(&self) -> String {
        format!("{}/{}", self.org, self.repo)
    }
}

fn strip_host(text: &str) -> &str {
    let rest = text.strip_prefix("https://").unwrap_or(text);
    ["hf.co/", "huggingface.co/"].iter().find_map(|host| rest.strip_prefix(host)).unwrap_or(text)
}

/// A stem without `-00001-of-00003`.
fn without_split(stem: &str) -> &str {
    let path = format!("{stem}.gguf");
    let prefix = hypura_gguf::SplitName::parse(path.as_ref()).map(|split| split.prefix);
    let len = prefix.map_or(stem.len(), |prefix| prefix.as_os_str().len());
    stem.get(..len).unwrap_or(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories_and_files() {
        let tag = |tag: &str| Want::Tag(tag.to_owned());
        let file = |path: &str| Want::File(path.to_owned());
        for (text, name, want) in [
            ("hf.co/a/B", "hf.co/a/B:latest", Want::Default),
            ("huggingface.co/a/B:latest", "hf.co/a/B:latest", Want::Default),
            ("https://huggingface.co/a/B", "hf.co/a/B:latest", Want::Default),
            ("a/B:q8_0", "hf.co/a/B:q8_0", tag("q8_0")),
            ("hf.co/a/B:B-Q8.gguf", "hf.co/a/B:B-Q8.gguf", tag("B-Q8.gguf")),
            ("a/B/B-Q8.gguf", "hf.co/a/B:B-Q8", file("B-Q8.gguf")),
            ("a/B/x/y-00001-of-00002.gguf", "hf.co/a/B:y", file("x/y-00001-of-00002.gguf")),
        ] {
            let found = Reference::parse(text).unwrap();
            assert_eq!((found.name.to_string().as_str(), found.want), (name, want), "{text}");
            assert_eq!(found.org, "a");
        }
    }

    #[test]
    fn what_is_no_repository_says_why() {
        for text in ["llama3", "llama3:8b", "registry.ollama.ai/library/llama3"] {
            let error = Reference::parse(text).unwrap_err();
            assert!(matches!(error, PullError::OllamaRegistry { .. }), "{text}: {error}");
        }
        for text in [
            "",
            "/",
            "hf.co/a",
            "a/b/c",
            "../b",
            "a/..",
            "a/b/../c.gguf",
            "a/b//c.gguf",
            "a/b:",
            "a/b/.gguf",
            "a/b/\0.gguf",
            "a/b/x\n/c.gguf",
            "a/b/1/2/3/4/5/6/7/8/9.gguf",
            "ä/b",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
