//! One HTTP client for a pull: timeouts, roots, the token, statuses, retries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ureq::Agent;
use ureq::Body;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::PullConfig;
use crate::pull::error::PullError;

/// Redirects that are followed.
const REDIRECTS_MAX: u32 = 8;
/// The longest wait between two tries, in seconds.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The longest wait that a server may ask for; beyond it the user is told instead.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// How long a wait goes on before the pull is looked at to be cancelled.
const NAP: Duration = Duration::from_millis(100);

/// The client of one pull.
pub(super) struct Http<'a> {
    agent: Agent,
    /// What is asked for, for errors.
    repository: String,
    /// Without a slash at the end.
    endpoint: String,
    token: Option<&'a str>,
    retries: u32,
    backoff: Duration,
    cancel: &'a AtomicBool,
}

/// Why a try failed.
pub(super) enum Failure {
    /// Another try would fail too.
    Final(PullError),
    /// Another try may succeed, after a time that the server asked for.
    Passing(PullError, Option<Duration>),
}

impl<E: Into<PullError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

impl<'a> Http<'a> {
    pub(super) fn new(
        config: &'a PullConfig,
        repository: String,
        cancel: &'a AtomicBool,
    ) -> Result<Self, PullError> {
        let endpoint = config.endpoint.trim_end_matches('/').to_owned();
        let (is_tls, authority) = match endpoint.split_once("://") {
            Some(("https", rest)) if !rest.is_empty() => (true, rest),
            Some(("http", rest)) if !rest.is_empty() => (false, rest),
            _ => return Err(PullError::Endpoint { endpoint }),
        };
        let is_local = is_local(authority);
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(is_tls)
            .max_redirects(REDIRECTS_MAX)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(config.connect_timeout))
            .timeout_per_read(Some(config.read_timeout))
            .timeout_per_write(Some(config.read_timeout))
            .user_agent(concat!("hypura/", env!("CARGO_PKG_VERSION")));
        if is_tls {
            builder = builder.tls_config(tls()?);
        }
        if is_local {
            // A proxy can't reach this machine.
            builder = builder.proxy(None);
        }
        Ok(Self {
            repository,
            agent: builder.build().new_agent(),
            token: config.token.as_deref().filter(|_| is_tls || is_local),
            endpoint,
            retries: config.retries,
            backoff: config.backoff,
            cancel,
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Asks for a URL below the endpoint once. Statuses of success and 416 are an answer, all others
    /// a failure.
    pub(super) fn get(
        &self,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if let Some(token) = self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.call().map_err(|error| network(url, &error))?;
        let status = response.status().as_u16();
        let url = url.to_owned();
        match status {
            200 | 206 | 416 => Ok(response),
            401 | 403 => {
                let (repository, has_token) = (self.repository.clone(), self.token.is_some());
                Err(PullError::Denied { repository, status, has_token }.into())
            }
            404 | 410 => Err(PullError::NotFound { url }.into()),
            429 => Err(rate_limited(response.headers())),
            408 | 500.. => {
                let after = retry_after(response.headers());
                Err(Failure::Passing(PullError::Status { url, status }, after))
            }
            _ => Err(PullError::Status { url, status }.into()),
        }
    }

    /// Tries until it succeeds, fails for good, or was tried often enough.
    pub(super) fn persist<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, PullError> {
        let mut patience = self.patience();
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => patience.wait(failure)?,
            }
        }
    }

    pub(super) fn patience(&self) -> Patience<'_> {
        Patience { http: self, left: self.retries, backoff: self.backoff }
    }

    /// Waits, unless the pull is cancelled.
    pub(super) fn sleep(&self, mut time: Duration) -> Result<(), PullError> {
        while !time.is_zero() && !self.is_cancelled() {
            let nap = time.min(NAP);
            thread::sleep(nap);
            time -= nap;
        }
        if self.is_cancelled() { Err(PullError::Cancelled) } else { Ok(()) }
    }
}

/// How often and how long is waited.
pub(super) struct Patience<'a> {
    http: &'a Http<'a>,
    left: u32,
    backoff: Duration,
}

impl Patience<'_> {
    /// Waits after a failure.
    ///
    /// # Errors
    /// The failure, if it is final or was one too many.
    pub(super) fn wait(&mut self, failure: Failure) -> Result<(), PullError> {
        let (error, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing(error, after) => (error, after),
        };
        if self.http.is_cancelled() {
            return Err(PullError::Cancelled);
        }
        if self.left == 0 {
            return Err(error);
        }
        self.left -= 1;
        let pause = after.unwrap_or(self.backoff);
        tracing::warn!("{error} (trying again in {} s)", pause.as_secs());
        self.http.sleep(pause)?;
        self.backoff = self.backoff.saturating_mul(2).min(BACKOFF_MAX);
        Ok(())
    }
}

/// TLS by ring with the system's roots; `SSL_CERT_FILE` names others.
fn tls() -> Result<TlsConfig, PullError> {
    let roots = rustls_native_certs::load_native_certs();
    for error in &roots.errors {
        tracing::warn!("root certificates: {error}");
    }
    if roots.certs.is_empty() {
        return Err(PullError::NoRootCertificates);
    }
    let roots: Vec<_> =
        roots.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

/// Whether `HOST[:PORT][/PATH]` is this machine.
fn is_local(authority: &str) -> bool {
    let host = authority.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

/// What went wrong before there was an answer. Whatever the network may do better is passing.
fn network(url: &str, error: &ureq::Error) -> Failure {
    use ureq::Error;
    let told = PullError::Network { url: url.to_owned(), reason: error.to_string() };
    match error {
        Error::Io(_)
        | Error::Timeout(_)
        | Error::HostNotFound
        | Error::ConnectionFailed
        | Error::Protocol(_) => Failure::Passing(told, None),
        _ => Failure::Final(told),
    }
}

fn rate_limited(headers: &HeaderMap) -> Failure {
    let after = retry_after(headers);
    let error = PullError::RateLimited { seconds: after.map(|after| after.as_secs()) };
    match after {
        Some(after) if after > RETRY_AFTER_MAX => Failure::Final(error),
        after => Failure::Passing(error, after),
    }
}

/// A wait in seconds; the other form, a date, is answered by the usual wait.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stay_on_this_machine_or_under_tls() {
        let cancel = AtomicBool::new(false);
        for (endpoint, is_sent) in [
            ("http://127.0.0.1:80", true),
            ("http://localhost/x/", true),
            ("http://[::1]:80", true),
            ("http://example.com", false),
            ("http://localhost.example.com", false),
        ] {
            let token = Some("secret".to_owned());
            let config =
                PullConfig { endpoint: endpoint.to_owned(), token, ..PullConfig::default() };
            let http = Http::new(&config, String::new(), &cancel).unwrap();
            assert_eq!(http.token.is_some(), is_sent, "{endpoint}");
            assert!(!format!("{config:?}").contains("secret"));
        }
        for endpoint in ["", "huggingface.co", "ftp://a", "https://"] {
            let config = PullConfig { endpoint: endpoint.to_owned(), ..PullConfig::default() };
            assert!(Http::new(&config, String::new(), &cancel).is_err(), "{endpoint}");
        }
    }
}
