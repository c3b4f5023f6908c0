//! The name that the server was called by.
//!
//! A page of a stranger can let its own name point at 127.0.0.1 (DNS rebinding): to the browser this
//! server is then of that page's origin, and neither CORS nor the Origin header helps. But the Host
//! header still has the stranger's name. So only names that are known to be ours are answered:
//!
//! * `localhost`, and addresses of the loopback;
//! * the address that it listens at, and the address of this machine that the connection came to
//!   (an address in digits can't be rebound);
//! * the names in [`Config::hosts`].
//!
//! Ports are not compared: whoever forwards a port calls it by another one.
//!
//! HTTP/1.1 needs just one Host header, else the answer is 400 (RFC 9112, 3.2). HTTP/1.0 without
//! one is answered if it comes from this machine: health checks do that, browsers never did.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::{HeaderMap, Version};
use axum::middleware::Next;
use axum::response::Response;

use crate::config::Config;
use crate::error::{ApiError, ErrorKind};
use crate::http::{Peer, error_response};

/// Bytes of a name in DNS, at most (RFC 1035, 2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// The names that are ours.
pub(super) struct Hosts {
    listening: IpAddr,
    names: Vec<Name>,
}

impl Hosts {
    pub(super) fn new(config: &Config) -> Hosts {
        let names = config.hosts.iter().filter_map(|host| Authority::parse(host));
        Hosts {
            listening: config.address.ip().to_canonical(),
            names: names.map(|authority| authority.name).collect(),
        }
    }

    /// Refuses a request that was made to a name that is not ours.
    fn check(&self, request: &Request) -> Result<(), ApiError> {
        let peer = request.extensions().get::<Peer>();
        match sole_host(request.headers())? {
            Some(host) => self.check_name(host, peer)?,
            None if is_local_http10(request.version(), peer) => {}
            None => return Err(ApiError::bad("the Host header is missing; send one")),
        }
        // A target in absolute form counts more than Host (RFC 9112, 3.2.2): both have to be ours.
        match request.uri().authority() {
            Some(authority) => self.check_name(authority.as_str(), peer),
            None => Ok(()),
        }
    }

    fn check_name(&self, host: &str, peer: Option<&Peer>) -> Result<(), ApiError> {
        let authority = Authority::parse(host)
            .ok_or_else(|| ApiError::bad("the Host header is no name or address"))?;
        if self.is_ours(&authority.name, peer) {
            return Ok(());
        }
        let message = format!(
            "this server does not answer to the name {}; add it to the server's hosts if it should",
            authority.name.text()
        );
        Err(ApiError::new(ErrorKind::Forbidden, message))
    }

    fn is_ours(&self, name: &Name, peer: Option<&Peer>) -> bool {
        let by_itself = match name {
            Name::Text(text) => text == "localhost",
            Name::Address(ip) => {
                ip.is_loopback()
                    || *ip == self.listening
                    || peer.is_some_and(|peer| peer.local.ip().to_canonical() == *ip)
            }
        };
        by_itself || self.names.contains(name)
    }
}

/// Refuses requests to other names.
pub(super) async fn guard(
    State(hosts): State<Arc<Hosts>>,
    request: Request,
    next: Next,
) -> Response {
    match hosts.check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error_response(request.uri().path(), &error),
    }
}

/// The Host header.
fn sole_host(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut hosts = headers.get_all(HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(ApiError::bad("there are several Host headers; send one"));
    }
    let text = first.map(|host| host.to_str()).transpose();
    text.map_err(|_| ApiError::bad("the Host header is no name or address"))
}

fn is_local_http10(version: Version, peer: Option<&Peer>) -> bool {
    version == Version::HTTP_10
        && peer.is_some_and(|peer| peer.remote.ip().to_canonical().is_loopback())
}

/// `host` or `host:port`, as in a Host header: no user, no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) name: Name,
    pub(super) port: Option<u16>,
}

/// A name in lower case without its last dot, or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Text(String),
    Address(IpAddr),
}

impl Authority {
    /// `None` if it is anything else.
    pub(super) fn parse(text: &str) -> Option<Authority> {
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (literal, after) = rest.split_once(']')?;
                let port = match after {
                    "" => None,
                    _ => Some(after.strip_prefix(':')?),
                };
                (Name::Address(IpAddr::V6(literal.parse().ok()?).to_canonical()), port)
            }
            None => match text.split_once(':') {
                Some((name, port)) => (Name::parse(name)?, Some(port)),
                None => (Name::parse(text)?, None),
            },
        };
        let port = match port {
            None => None,
            // `parse` alone would take a sign.
            Some(port) if port.starts_with('+') => return None,
            Some(port) => Some(port.parse().ok()?),
        };
        Some(Authority { name, port })
    }
}

impl Name {
    fn parse(text: &str) -> Option<Name> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            // An address of version 6 stands in brackets.
            return ip.is_ipv4().then_some(Name::Address(ip));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        let sound = (1..=NAME_BYTES_MAX).contains(&text.len())
            && !text.starts_with('.')
            && !text.ends_with('.')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        sound.then(|| Name::Text(text.to_ascii_lowercase()))
    }

    fn text(&self) -> String {
        match self {
            Name::Text(text) => text.clone(),
            Name::Address(ip) => ip.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;

    use super::*;

    fn hosts() -> Hosts {
        let hosts = vec!["chat.example".to_owned(), "10.1.2.3:80".to_owned()];
        Hosts::new(&Config { hosts, ..Config::default() })
    }

    fn peer(remote: &str, local: &str) -> Peer {
        let address = |ip: &str| (ip.parse::<IpAddr>().unwrap(), 1000).into();
        Peer { remote: address(remote), local: address(local), tls: false }
    }

    fn status_of(request: Request) -> StatusCode {
        hosts().check(&request).map_or_else(|error| error.kind.status(), |()| StatusCode::OK)
    }

    fn status(host: &str) -> u16 {
        let mut request = Request::builder().header(HOST, host).body(Body::empty()).unwrap();
        request.extensions_mut().insert(peer("192.168.0.9", "192.168.0.7"));
        status_of(request).as_u16()
    }

    #[test]
    fn only_our_names_are_answered() {
        let cases = [
            ("localhost", 200),
            ("LocalHost:11434", 200),
            ("localhost.", 200),
            ("127.0.0.1:1", 200),
            ("127.9.9.9", 200),
            ("[::1]:11434", 200),
            ("[::ffff:127.0.0.1]", 200),
            ("192.168.0.7:11434", 200),
            ("chat.example", 200),
            ("CHAT.example.:443", 200),
            ("10.1.2.3", 200),
            ("192.168.0.8", 403),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("evil.localhost", 403),
            ("127.0.0.1.evil.example", 403),
            ("127.1", 403),
            ("2130706433", 403),
            ("0x7f.0.0.1", 403),
            ("0.0.0.0", 403),
            ("[2001:db8::1]", 403),
            ("", 400),
            (".", 400),
            ("localhost..", 400),
            ("localhost:", 400),
            ("localhost:+80", 400),
            ("localhost:99999", 400),
            ("localhost:80:80", 400),
            ("localhost@evil.example", 400),
            ("evil.example@localhost", 400),
            ("localhost/", 400),
            ("localhost#evil", 400),
            ("localhost, evil.example", 400),
            ("::1", 400),
            ("[::1", 400),
            ("[::1]x", 400),
            ("[::1%25eth0]", 400),
            ("[127.0.0.1]", 400),
        ];
        for (host, expected) in cases {
            assert_eq!(status(host), expected, "{host:?}");
        }
    }

    #[test]
    fn a_request_has_one_host() {
        let twice = Request::builder().header(HOST, "localhost").header(HOST, "localhost");
        assert_eq!(status_of(twice.body(Body::empty()).unwrap()), 400);
        let none = || Request::builder().body(Body::empty()).unwrap();
        assert_eq!(status_of(none()), 400);
        let mut old = none();
        *old.version_mut() = Version::HTTP_10;
        old.extensions_mut().insert(peer("192.168.0.9", "192.168.0.7"));
        assert_eq!(status_of(old), 400);
        let mut old = none();
        *old.version_mut() = Version::HTTP_10;
        old.extensions_mut().insert(peer("127.0.0.1", "127.0.0.1"));
        assert_eq!(status_of(old), 200);
    }

    #[test]
    fn a_target_in_absolute_form_is_checked_as_well() {
        let to = |uri| Request::builder().uri(uri).header(HOST, "localhost").body(Body::empty());
        assert_eq!(status_of(to("http://localhost/api/tags").unwrap()), 200);
        assert_eq!(status_of(to("http://evil.example/api/tags").unwrap()), 403);
        assert_eq!(status_of(to("http://localhost@evil.example/").unwrap()), 400);
    }
}
