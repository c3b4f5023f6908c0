//! The files of the page. They are part of the program: there is nothing to install, and no path
//! that a request could lead out of.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, ErrorKind};
use crate::http::error_response;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/ui/", $name)))),*]
    };
}

const FILES: &[(&str, &[u8])] = files![
    "api.js",
    "app.js",
    "chat.js",
    "dom.js",
    "format.js",
    "heatmap.js",
    "icon.svg",
    "index.html",
    "library.js",
    "markdown.js",
    "memory.js",
    "message.js",
    "model.js",
    "models.js",
    "options.js",
    "sparkline.js",
    "speak.js",
    "status.js",
    "store.js",
    "style.css",
    "theme.js",
];

/// The page loads what is its own and talks to its own server; it stands in nobody's frame.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);
/// Kept, but asked for each time: another version of the server has other files.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");

/// A file, ready to be sent.
struct Asset {
    name: &'static str,
    kind: HeaderValue,
    tag: HeaderValue,
    bytes: &'static [u8],
}

static ASSETS: LazyLock<Vec<Asset>> =
    LazyLock::new(|| FILES.iter().map(|(name, bytes)| Asset::new(name, bytes)).collect());

impl Asset {
    fn new(name: &'static str, bytes: &'static [u8]) -> Asset {
        let digest = blake3::hash(bytes).to_hex();
        let tag = HeaderValue::from_str(&format!("\"{digest}\""));
        Asset { name, kind: kind(name), tag: tag.expect("hexadecimal digits"), bytes }
    }

    fn response(&self, asked: &HeaderMap) -> Response {
        let known = asked.get(IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
        let known = known.zip(self.tag.to_str().ok()).is_some_and(|(tags, tag)| {
            tags.split(',').any(|known| known.trim().trim_start_matches("W/") == tag)
        });
        let headers = [
            (ETAG, self.tag.clone()),
            (CACHE_CONTROL, ASK_AGAIN),
            (CONTENT_SECURITY_POLICY, POLICY),
        ];
        if known {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        (headers, [(CONTENT_TYPE, self.kind.clone())], self.bytes).into_response()
    }
}

fn kind(name: &str) -> HeaderValue {
    let extension = name.rsplit('.').next().unwrap_or_default();
    HeaderValue::from_static(match extension {
        "css" => "text/css; charset=utf-8",
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "application/octet-stream",
    })
}

/// The page.
pub(super) async fn index(uri: Uri, asked: HeaderMap) -> Response {
    send("index.html", &uri, &asked)
}

/// One of its files.
pub(super) async fn file(Path(name): Path<String>, uri: Uri, asked: HeaderMap) -> Response {
    send(&name, &uri, &asked)
}

fn send(name: &str, uri: &Uri, asked: &HeaderMap) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => asset.response(asked),
        None => {
            let error = ApiError::new(ErrorKind::NotFound, "the page at /ui has no such file");
            error_response(uri.path(), &error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_sent() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/ui");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
        let mut files: Vec<String> = files.map(|name| name.into_string().unwrap()).collect();
        files.sort();
        let known: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(known, files);
        for asset in ASSETS.iter() {
            assert_ne!(asset.kind, "application/octet-stream", "{}", asset.name);
        }
    }

    #[test]
    fn what_the_browser_has_is_not_sent_again() {
        let asset = ASSETS.first().unwrap();
        let mut asked = HeaderMap::new();
        assert_eq!(asset.response(&asked).status(), StatusCode::OK);
        let tags = format!("\"other\", W/{}", asset.tag.to_str().unwrap());
        asked.insert(IF_NONE_MATCH, tags.parse().unwrap());
        assert_eq!(asset.response(&asked).status(), StatusCode::NOT_MODIFIED);
        asked.insert(IF_NONE_MATCH, HeaderValue::from_static("\"other\""));
        assert_eq!(asset.response(&asked).status(), StatusCode::OK);
    }
}
