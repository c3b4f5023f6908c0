//! The page that calls.
//!
//! Browsers say with Origin whose page makes a request. The page at `/ui` is of our own origin; any
//! other has to be in [`crate::Config::origins`]. Entries are `*`, or an origin as browsers write
//! it (`https://chat.example`), whose port may be `*` (`http://localhost:*`). What is not listed is
//! refused and not only left without CORS headers: a browser sends simple requests whether it may
//! read the answer or not.
//!
//! The origin `null` is never answered, not even with `*`: it belongs to everybody who can make a
//! sandboxed frame. Credentials (cookies) are not allowed to anyone; keys are sent in headers.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::host::Authority;
use crate::error::{ApiError, ErrorKind};
use crate::http::{Peer, error_response};

/// Bytes of the list of headers that a preflight may ask for.
const REQUEST_HEADERS_BYTES_MAX: usize = 2048;
/// Headers in that list. The SDKs of OpenAI and Anthropic send about a dozen of their own.
const REQUEST_HEADERS_MAX: usize = 64;
/// Seconds for which a browser need not ask again.
const MAX_AGE_S: HeaderValue = HeaderValue::from_static("600");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE");
const EXPOSED: HeaderValue = HeaderValue::from_static("retry-after, request-id, x-request-id");
const TRUE: HeaderValue = HeaderValue::from_static("true");
/// <https://wicg.github.io/private-network-access/>
const REQUEST_PRIVATE: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// The pages that may call.
pub(super) struct Origins {
    any: bool,
    allowed: Vec<Pattern>,
}

/// Who calls.
#[derive(Debug, PartialEq, Eq)]
enum Caller {
    /// No page, or ours.
    Own,
    /// A page that was let in.
    Allowed(HeaderValue),
}

impl Origins {
    pub(super) fn new(origins: &[String]) -> Origins {
        Origins {
            any: origins.iter().any(|origin| origin == "*"),
            allowed: origins.iter().filter_map(|origin| Pattern::parse(origin)).collect(),
        }
    }

    fn check(&self, request: &Request) -> Result<Caller, ApiError> {
        let mut values = request.headers().get_all(ORIGIN).iter();
        let Some(value) = values.next() else { return Ok(Caller::Own) };
        let origin = value.to_str().ok().filter(|_| values.next().is_none());
        let origin = origin.and_then(Origin::parse).ok_or_else(|| {
            ApiError::new(ErrorKind::Forbidden, "requests of pages without an origin are refused")
        })?;
        let tls = request.extensions().get::<Peer>().is_some_and(|peer| peer.tls);
        if origin.is_own(request.headers(), tls) {
            return Ok(Caller::Own);
        }
        if self.any || self.allowed.iter().any(|pattern| pattern.allows(&origin)) {
            return Ok(Caller::Allowed(value.clone()));
        }
        let message = "pages of this origin may not call this server; add it to the server's \
                       origins if it should";
        Err(ApiError::new(ErrorKind::Forbidden, message))
    }
}

/// Refuses requests of other pages, and answers what browsers ask before they make one.
pub(super) async fn guard(
    State(origins): State<Arc<Origins>>,
    request: Request,
    next: Next,
) -> Response {
    match origins.check(&request) {
        Err(error) => error_response(request.uri().path(), &error),
        Ok(Caller::Own) => next.run(request).await,
        Ok(Caller::Allowed(origin)) => {
            let mut response = if is_preflight(&request) {
                preflight(request.headers())
            } else {
                next.run(request).await
            };
            let headers = response.headers_mut();
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
            headers.append(VARY, HeaderValue::from_static("origin"));
            response
        }
    }
}

/// <https://fetch.spec.whatwg.org/#cors-preflight-request>
fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE_S);
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS).and_then(allowed_headers) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
    if asked.get(REQUEST_PRIVATE) == Some(&TRUE) {
        headers.insert(ALLOW_PRIVATE, TRUE);
    }
    response
}

/// The same list, if it is one. Which headers a page sends matters little once it may call.
fn allowed_headers(asked: &HeaderValue) -> Option<HeaderValue> {
    let text = asked.to_str().ok().filter(|text| text.len() <= REQUEST_HEADERS_BYTES_MAX)?;
    let names = text.split(',').map(|name| HeaderName::from_bytes(name.trim().as_bytes()));
    let names: Vec<HeaderName> =
        names.take(REQUEST_HEADERS_MAX + 1).collect::<Result<_, _>>().ok()?;
    if names.len() > REQUEST_HEADERS_MAX {
        return None;
    }
    let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
    HeaderValue::from_str(&names.join(", ")).ok()
}

/// Scheme, name, port; the port is `None` if it is the scheme's own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    authority: Authority,
}

impl Origin {
    /// `None` for `null`, and for what is no origin.
    fn parse(text: &str) -> Option<Origin> {
        let (scheme, rest) = text.split_once("://")?;
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if scheme.is_empty() || !scheme.bytes().all(sound) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let mut authority = Authority::parse(rest)?;
        if authority.port == default_port(&scheme) {
            authority.port = None;
        }
        Some(Origin { scheme, authority })
    }

    /// Whether the request was made to the same name and port as the page was. The scheme has to be
    /// ours only if we encrypt: otherwise somebody in front may.
    fn is_own(&self, headers: &HeaderMap, tls: bool) -> bool {
        let scheme = if tls { self.scheme == "https" } else { self.scheme.starts_with("http") };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let Some(mut host) = host.and_then(Authority::parse) else { return false };
        if host.port == default_port(&self.scheme) {
            host.port = None;
        }
        scheme && host == self.authority
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// An entry of the list.
struct Pattern {
    origin: Origin,
    any_port: bool,
}

impl Pattern {
    fn parse(text: &str) -> Option<Pattern> {
        let stem = text.strip_suffix(":*");
        let origin = Origin::parse(stem.unwrap_or(text))?;
        Some(Pattern { origin, any_port: stem.is_some() })
    }

    fn allows(&self, origin: &Origin) -> bool {
        self.origin.scheme == origin.scheme
            && self.origin.authority.name == origin.authority.name
            && (self.any_port || self.origin.authority.port == origin.authority.port)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn allowed(origins: &[&str], host: &str, origin: &str) -> bool {
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        let request = Request::builder().header(HOST, host).header(ORIGIN, origin);
        Origins::new(&origins).check(&request.body(Body::empty()).unwrap()).is_ok()
    }

    #[test]
    fn only_our_page_and_listed_ones_may_call() {
        let local = "localhost:11434";
        let listed = &["https://chat.example", "http://localhost:*", "app://obsidian.md"][..];
        let cases: &[(&[&str], &str, &str, bool)] = &[
            (&[], local, "http://localhost:11434", true),
            (&[], local, "HTTP://LOCALHOST:11434", true),
            (&[], "chat.example", "https://chat.example", true),
            (&[], "chat.example:443", "https://chat.example", true),
            (&[], local, "http://localhost", false),
            (&[], local, "http://localhost:3000", false),
            (&[], local, "http://127.0.0.1:11434", false),
            (&[], local, "ftp://localhost:11434", false),
            (&[], local, "null", false),
            (&[], local, "", false),
            (&[], local, "http://localhost:11434/", false),
            (&[], local, "http://evil.example@localhost:11434", false),
            (&["*"], local, "https://anything.example", true),
            (&["*"], local, "null", false),
            (&["null"], local, "null", false),
            (listed, local, "https://chat.example", true),
            (listed, local, "https://chat.example:443", true),
            (listed, local, "http://chat.example", false),
            (listed, local, "https://chat.example:8443", false),
            (listed, local, "https://chat.example.evil.example", false),
            (listed, local, "https://evil-chat.example", false),
            (listed, local, "http://localhost:3000", true),
            (listed, local, "https://localhost:3000", false),
            (listed, local, "app://obsidian.md", true),
        ];
        for (listed, host, origin, expected) in cases {
            assert_eq!(allowed(listed, host, origin), *expected, "{listed:?} {host} {origin}");
        }
    }

    #[test]
    fn headers_are_echoed_within_bounds() {
        let echo = |text: &str| allowed_headers(&HeaderValue::from_str(text).unwrap());
        assert_eq!(echo("Authorization,x-api-key").unwrap(), "authorization, x-api-key");
        assert_eq!(echo("a b"), None);
        assert_eq!(echo(&vec!["x"; REQUEST_HEADERS_MAX + 1].join(",")), None);
        assert_eq!(echo(&"x".repeat(REQUEST_HEADERS_BYTES_MAX + 1)), None);
    }
}
