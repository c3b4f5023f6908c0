//! The key.
//!
//! Ollama's and OpenAI's clients send `Authorization: Bearer KEY`, Anthropic's send `x-api-key`
//! (or, with a token, Bearer as well). What is compared are digests, in constant time and with all
//! keys, so neither the time nor the length of a key tells anything.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::{ApiError, ErrorKind};
use crate::http::{Caller, error_response};

/// Routes that need no key: whether the server is there, and the page's files.
pub(crate) const OPEN: &[&str] = &["/", "/health", "/ui", "/ui/", "/ui/{*file}"];

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// What keys are hashed with (BLAKE3's derivation of keys), so that the digests are of no use
/// elsewhere.
const KEY_CONTEXT: &str = "hypura server 2026-11-26 api key";
const TENANT_CONTEXT: &str = "hypura server 2026-11-26 tenant of an api key";
/// Hexadecimal digits of a tenant's name.
const TENANT_DIGITS: usize = 32;

/// The keys of which one has to be sent.
pub(super) struct Keys {
    keys: Vec<Key>,
}

struct Key {
    digest: blake3::Hash,
    tenant: String,
}

impl Keys {
    pub(super) fn new(keys: &[String]) -> Keys {
        let keys =
            keys.iter().map(|key| Key { digest: digest(key.as_bytes()), tenant: tenant(key) });
        Keys { keys: keys.collect() }
    }

    /// Whose request it is; `None` if a key is missing or wrong.
    fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        if self.keys.is_empty() {
            return Some(Caller::default());
        }
        let tenant = sent(headers).find_map(|key| self.tenant_of(key))?;
        Some(Caller { tenant: tenant.to_owned() })
    }

    fn tenant_of(&self, sent: &[u8]) -> Option<&str> {
        let sent = digest(sent);
        // `Hash` compares in constant time. No early end: which key it is shall not show either.
        self.keys.iter().fold(None, |found, key| {
            if key.digest == sent { Some(key.tenant.as_str()) } else { found }
        })
    }
}

/// Refuses requests without a key, and says whose request it is.
pub(super) async fn guard(
    State(keys): State<Arc<Keys>>,
    mut request: Request,
    next: Next,
) -> Response {
    // The route that was matched, not the path: what the router takes for another path is another.
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let open = route.is_some_and(|route| OPEN.contains(&route));
    match keys.caller(request.headers()) {
        Some(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        None if open => {
            request.extensions_mut().insert(Caller::default());
            next.run(request).await
        }
        None => {
            let message = "this server needs an API key; send it as `Authorization: Bearer KEY` \
                           or as `x-api-key`";
            let error = ApiError::new(ErrorKind::Unauthorized, message);
            error_response(request.uri().path(), &error)
        }
    }
}

/// The keys that a request sends, of which one is enough.
fn sent(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    let key = headers.get(API_KEY).map(|value| value.as_bytes().trim_ascii());
    bearer.into_iter().chain(key)
}

/// RFC 6750, 2.1; the scheme's name is in any case (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest.trim_ascii())
}

fn digest(key: &[u8]) -> blake3::Hash {
    blake3::Hash::from_bytes(blake3::derive_key(KEY_CONTEXT, key))
}

fn tenant(key: &str) -> String {
    let hash = blake3::Hash::from_bytes(blake3::derive_key(TENANT_CONTEXT, key.as_bytes()));
    hash.to_hex().chars().take(TENANT_DIGITS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(keys: &[&str], headers: &[(&'static str, &str)]) -> Option<Caller> {
        let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        Keys::new(&keys).caller(&headers.collect())
    }

    #[test]
    fn one_right_key_is_enough() {
        let keys = &["first", "second"][..];
        let cases: &[(&[(&str, &str)], bool)] = &[
            (&[], false),
            (&[("authorization", "Bearer first")], true),
            (&[("authorization", "bearer  second ")], true),
            (&[("x-api-key", "second")], true),
            (&[("x-api-key", "second"), ("authorization", "Bearer other")], true),
            (&[("authorization", "Bearer firs")], false),
            (&[("authorization", "Bearer firstt")], false),
            (&[("authorization", "Bearer ")], false),
            (&[("authorization", "Bearer")], false),
            (&[("authorization", "Basic first")], false),
            (&[("authorization", "first")], false),
            (&[("x-api-key", "")], false),
            (&[("x-api-key", "FIRST")], false),
        ];
        for (headers, expected) in cases {
            let headers: Vec<(&'static str, &str)> = headers.to_vec();
            assert_eq!(caller(keys, &headers).is_some(), *expected, "{headers:?}");
        }
    }

    #[test]
    fn tenants_are_named_by_their_key_alone() {
        let of = |keys: &[&str], key: &str| caller(keys, &[("x-api-key", key)]).unwrap().tenant;
        assert_eq!(of(&["a", "b"], "a"), of(&["a"], "a"));
        assert_ne!(of(&["a", "b"], "a"), of(&["a", "b"], "b"));
        assert_eq!(of(&["a"], "a").len(), TENANT_DIGITS);
        assert_eq!(caller(&[], &[("x-api-key", "a")]), Some(Caller::default()));
    }
}
