//! One connection, from its first byte to its last.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::Phase;
use super::paced::Paced;
use crate::app::Shared;
use crate::config::Limits;
use crate::http::Peer;

/// The least that hyper reads headers into.
const HEADERS_BYTES_MIN: usize = 8 << 10;

/// What all connections have in common.
pub(super) struct Connections {
    app: Shared,
    router: Router,
    tls: Option<TlsAcceptor>,
    http: http1::Builder,
    phases: watch::Receiver<Phase>,
}

impl Connections {
    pub(super) fn new(
        app: Shared,
        router: Router,
        tls: Option<TlsAcceptor>,
        phases: watch::Receiver<Phase>,
    ) -> Connections {
        let http = http(&app.config.limits);
        Connections { app, router, tls, http, phases }
    }

    /// Serves a connection until one of both ends closes it.
    pub(super) fn serve(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> impl Future<Output = ()> + use<> {
        let counted = self.app.metrics.connection_begins();
        let limits = self.app.config.limits.clone();
        let tls = self.tls.clone();
        let (http, router, phases) = (self.http.clone(), self.router.clone(), self.phases.clone());
        async move {
            let _counted = counted;
            // Answers are written as they come; waiting for more to send would only be late.
            let ready = stream.set_nodelay(true).and_then(|()| stream.local_addr());
            let Ok(local) = ready else { return };
            let peer = Peer { remote, local, tls: tls.is_some() };
            let stream = Paced::new(stream, limits.write_timeout);
            match tls {
                None => talk(stream, peer, &http, router, phases).await,
                Some(tls) => {
                    let Some(stream) = greet(&tls, stream, limits.headers_timeout, &phases).await
                    else {
                        return;
                    };
                    talk(stream, peer, &http, router, phases).await;
                }
            }
        }
    }
}

fn http(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The timeout counts from the moment that headers are waited for: it closes idle connections as
    // well as slow ones. Sizes are compared between reads: headers may be larger by one read.
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.headers_timeout)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.headers_bytes_max.max(HEADERS_BYTES_MIN));
    http
}

/// The handshake of TLS.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &TlsAcceptor,
    stream: S,
    at_most: Duration,
    phases: &watch::Receiver<Phase>,
) -> Option<tokio_rustls::server::TlsStream<S>> {
    let mut phases = phases.clone();
    tokio::select! {
        greeted = timeout(at_most, tls.accept(stream)) => {
            greeted.ok()?.inspect_err(|error| tracing::debug!("no TLS: {error}")).ok()
        }
        _stopping = phases.wait_for(|phase| *phase != Phase::Serving) => None,
    }
}

/// Requests and answers.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: Peer,
    http: &http1::Builder,
    router: Router,
    mut phases: watch::Receiver<Phase>,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request.map(Body::new))
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                // Clients that leave, are slow, or speak no HTTP: theirs to know.
                if let Err(error) = ended {
                    tracing::debug!("a connection ended: {error}");
                }
                return;
            }
            changed = phases.changed() => match *phases.borrow_and_update() {
                _ if changed.is_err() => return,
                Phase::Serving => {}
                Phase::Draining => connection.as_mut().graceful_shutdown(),
                Phase::Cut => return,
            },
        }
    }
}
