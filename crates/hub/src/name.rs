//! Names of models: `[HOST/][NAMESPACE/]NAME[:TAG]`.
//!
//! ```text
//! HOST       1 to 253 bytes   letters, digits, '_', '-', '.'; then perhaps ':' and a port
//! NAMESPACE  1 to 96 bytes    letters, digits, '_', '-', '.'
//! NAME       1 to 96 bytes    letters, digits, '_', '-', '.'
//! TAG        1 to 128 bytes   letters, digits, '_', '-', '.'
//! ```
//!
//! All are ASCII, and each begins with a letter, a digit or `_`: so no part can be `.` or `..`, be
//! hidden, or have a separator of any system in it. A missing tag is `latest`. Case is kept.
//!
//! This is the grammar of Ollama (`types/model/name.go`), which allows 80 bytes to all parts but the
//! host, and no dot in a namespace; repositories on Hugging Face have up to 96
//! (`validate_repo_id` of `huggingface_hub`), and tags may be the names of their files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Most bytes of a host without its port, as in DNS.
const HOST_BYTES_MAX: usize = 253;
/// Most bytes of a namespace or a name.
const PART_BYTES_MAX: usize = 96;
/// Most bytes of a tag.
const TAG_BYTES_MAX: usize = 128;
/// The tag of a name without one.
pub(crate) const LATEST: &str = "latest";
/// The folders of names without host or namespace. They begin with a byte that no part begins with,
/// so no name leads to them but by leaving the part out.
const NO_HOST: &str = "-";
const NO_NAMESPACE: &str = "-";

/// The name of a model in Hypura's own folder. See the grammar in the module's source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName {
    host: Option<String>,
    namespace: Option<String>,
    name: String,
    tag: String,
}

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum NameError {
    #[error("{shown:?} has more parts than HOST/NAMESPACE/NAME:TAG; leave some out")]
    Parts { shown: String },
    #[error(
        "{shown:?} is no {part} of a model's name; use 1 to {bytes_max} letters, digits, '_', '-' and '.', the first a letter, a digit or '_'"
    )]
    Part { part: &'static str, shown: String, bytes_max: usize },
}

/// Characters of a bad name that an error shows.
const SHOWN_CHARS_MAX: usize = 80;

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

impl ModelName {
    /// Takes a name apart and checks each part.
    ///
    /// # Errors
    /// [`NameError`] names the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let slash = text.rfind('/').map_or(0, |at| at + 1);
        let (path, last) = text.split_at(slash);
        let (name, tag) = last.split_once(':').unwrap_or((last, LATEST));
        let mut above = path.strip_suffix('/').map_or(Vec::new(), |p| p.split('/').collect());
        let namespace = above.pop();
        let host = above.pop();
        if !above.is_empty() {
            return Err(NameError::Parts { shown: shown(text) });
        }
        if let Some(host) = host {
            check_host(host)?;
        }
        if let Some(namespace) = namespace {
            check("namespace", namespace, PART_BYTES_MAX)?;
        }
        check("name", name, PART_BYTES_MAX)?;
        check("tag", tag, TAG_BYTES_MAX)?;
        Ok(Self {
            host: host.map(str::to_owned),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// The tag; `latest` where none was written.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Whether two names differ at most by the case of letters: on some file systems they are one.
    #[must_use]
    pub fn is_same_but_for_case(&self, other: &Self) -> bool {
        self.to_string().eq_ignore_ascii_case(&other.to_string())
    }

    /// `HOST/NAMESPACE/NAME/TAG`, for below a folder of manifests: four parts, none of which leads up.
    pub(crate) fn path(&self) -> PathBuf {
        [
            self.host.as_deref().unwrap_or(NO_HOST),
            self.namespace.as_deref().unwrap_or(NO_NAMESPACE),
            &self.name,
            &self.tag,
        ]
        .iter()
        .collect()
    }

    /// The name of a path that [`path`](Self::path) gave; `None` for all others.
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        let parts: Vec<_> = path.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
        let [host, namespace, name, tag] = parts.try_into().ok()?;
        let given = |part, none| if part == none { String::new() } else { format!("{part}/") };
        let text =
            format!("{}{}{name}:{tag}", given(host, NO_HOST), given(namespace, NO_NAMESPACE));
        Self::parse(&text).ok().filter(|found| found.path() == path)
    }
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl fmt::Display for ModelName {
    /// With its tag, and without parts that were not given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.host, &self.namespace].into_iter().flatten() {
            write!(f, "{part}/")?;
        }
        write!(f, "{}:{}", self.name, self.tag)
    }
}

fn check_host(host: &str) -> Result<(), NameError> {
    let name = match host.split_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok_and(|n| n.to_string() == port) => name,
        Some(_) => {
            return Err(NameError::Part {
                part: "host",
                shown: shown(host),
                bytes_max: HOST_BYTES_MAX,
            });
        }
        None => host,
    };
    check("host", name, HOST_BYTES_MAX)
}

fn check(part: &'static str, text: &str, bytes_max: usize) -> Result<(), NameError> {
    let is_first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_good = text.bytes().next().is_some_and(is_first)
        && text.len() <= bytes_max
        && text.bytes().all(|byte| is_first(byte) || matches!(byte, b'-' | b'.'));
    if is_good { Ok(()) } else { Err(NameError::Part { part, shown: shown(text), bytes_max }) }
}

/// A name as it is looked up: with a tag.
pub(crate) fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:{LATEST}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_up_to_four_parts() {
        for (text, full, path) in [
            ("demo", "demo:latest", "-/-/demo/latest"),
            ("demo:7b", "demo:7b", "-/-/demo/7b"),
            ("Me/Demo", "Me/Demo:latest", "-/Me/Demo/latest"),
            (
                "hf.co/org/Repo-GGUF:Q4_K_M",
                "hf.co/org/Repo-GGUF:Q4_K_M",
                "hf.co/org/Repo-GGUF/Q4_K_M",
            ),
            ("localhost:8080/a/b:c", "localhost:8080/a/b:c", "localhost:8080/a/b/c"),
            ("_a.b-c", "_a.b-c:latest", "-/-/_a.b-c/latest"),
        ] {
            let name = ModelName::parse(text).unwrap();
            assert_eq!(name.to_string(), full);
            assert_eq!(name.path(), Path::new(path));
            assert_eq!(ModelName::of_path(Path::new(path)), Some(name));
        }
    }

    #[test]
    fn tricks_are_no_names() {
        let long = "a".repeat(97);
        for text in [
            "",
            ".",
            "..",
            "../x",
            "a/../b",
            "a/./b",
            "/a",
            "/etc/passwd",
            "a/",
            "a//b",
            "a/b/c/d",
            "a\0b",
            "a\nb",
            "a b",
            "ä",
            "a\u{202e}b",
            "a\\b",
            "..\\a",
            "C:\\a",
            "C:/a",
            "C:/a/b",
            "a:",
            ":a",
            "a:b:c",
            "a:..",
            "a:/b",
            "-a",
            ".a",
            "a/-/b",
            "-/-/a",
            "~",
            "a@b",
            "a%2fb",
            "h:99999/a/b",
            "h:/a/b",
            "h:08/a/b",
            &long,
        ] {
            assert!(ModelName::parse(text).is_err(), "{text:?}");
        }
        for path in ["a", "../-/a/b", "-/-/a/b/c", "-/-/../b", "/-/-/a/b", "-/-/-/b"] {
            assert_eq!(ModelName::of_path(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn case_is_kept_and_can_be_compared() {
        let [a, b] = ["Demo:Q8", "demo:q8"].map(|text| ModelName::parse(text).unwrap());
        assert!(a != b && a.is_same_but_for_case(&b));
    }

    #[test]
    fn a_missing_tag_is_latest() {
        assert_eq!(with_tag("a"), "a:latest");
        assert_eq!(with_tag("a:b"), "a:b");
        assert_eq!(with_tag("host:80/a/b"), "host:80/a/b:latest");
    }
}
