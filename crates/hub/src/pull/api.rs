//! The hub's API, as far as it is needed.
//!
//! `GET /api/models/ORG/REPO/tree/REVISION?recursive=1` lists files, a page at a time; the header
//! `Link` names the next page. A file's `lfs.oid` is the SHA-256 of its content.
//! `GET /ORG/REPO/resolve/REVISION/PATH` is the file, by a redirect to where it is stored.
//! (huggingface.co/docs/hub/api)

use std::io::Read;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::HeaderMap;

use super::choose::{Listed, RemoteFile};
use super::http::{Failure, Http};
use super::reference::Reference;
use crate::blobs::Digest;
use crate::manifest::Blob;
use crate::pull::error::PullError;

/// The branch that is pulled.
const REVISION: &str = "main";
/// Most bytes of a page.
const PAGE_BYTES_MAX: u64 = 16 << 20;
/// Most pages.
const PAGES_MAX: usize = 64;
/// Bytes of a URL's path that are written as they are (RFC 3986, unreserved).
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// All GGUF files of a repository.
pub(super) fn list_files(http: &Http<'_>, reference: &Reference) -> Result<Vec<Listed>, PullError> {
    let repository = reference.repository();
    let mut url = format!(
        "{}/api/models/{}/tree/{REVISION}?recursive=1",
        http.endpoint(),
        encode(&repository)
    );
    let mut files = Vec::new();
    for _ in 0..PAGES_MAX {
        let (entries, next) = http.persist(|| page(http, &url))?;
        files.extend(entries.into_iter().filter_map(listed));
        match next {
            Some(next) => url = next,
            None => return Ok(files),
        }
    }
    let reason = format!("it has more than {PAGES_MAX} pages");
    Err(PullError::Answer { url, reason })
}

/// Where a file of a repository is.
pub(super) fn file_url(http: &Http<'_>, reference: &Reference, path: &str) -> String {
    let repository = encode(&reference.repository());
    format!("{}/{repository}/resolve/{REVISION}/{}", http.endpoint(), encode(path))
}

fn page(http: &Http<'_>, url: &str) -> Result<(Vec<TreeEntry>, Option<String>), Failure> {
    let response = http.get(url, &[])?;
    let answer = |reason: String| PullError::Answer { url: url.to_owned(), reason };
    let next = next_page(http.endpoint(), response.headers());
    let mut json = Vec::new();
    let mut body = response.into_body().into_reader().take(PAGE_BYTES_MAX + 1);
    body.read_to_end(&mut json)
        .map_err(|error| Failure::Passing(answer(error.to_string()), None))?;
    if json.len() as u64 > PAGE_BYTES_MAX {
        return Err(answer("it is too long".to_owned()).into());
    }
    let entries =
        serde_json::from_slice(&json).map_err(|error| Failure::Final(answer(error.to_string())))?;
    Ok((entries, next))
}

/// The next page, asked for at the endpoint whatever host the header names: a mirror may pass the
/// hub's own through.
fn next_page(endpoint: &str, headers: &HeaderMap) -> Option<String> {
    let links = headers.get("link")?.to_str().ok()?;
    let link = links.split(',').find(|link| link.contains(r#"rel="next""#))?;
    let url = link.split_once('<')?.1.split_once('>')?.0;
    let path = url.find("/api/models/").and_then(|at| url.get(at..))?;
    Some(format!("{endpoint}{path}"))
}

fn listed(entry: TreeEntry) -> Option<Listed> {
    if entry.kind != "file" || !entry.path.ends_with(".gguf") {
        return None;
    }
    let blob = entry.lfs.and_then(|lfs| {
        let sha256 = Digest::parse(&lfs.oid)?;
        Some(Blob { sha256, bytes: lfs.size })
    });
    Some(match blob {
        Some(blob) => Listed::Checked(RemoteFile { path: entry.path, blob }),
        None => Listed::Unchecked(entry.path),
    })
}

fn encode(path: &str) -> String {
    let parts = path.split('/').map(|part| utf8_percent_encode(part, PLAIN).to_string());
    parts.collect::<Vec<_>>().join("/")
}
