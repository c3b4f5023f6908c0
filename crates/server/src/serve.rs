//! Listening, and stopping.
//!
//! ```text
//! accept ── one too many? 503 ── TLS ── Paced ── hyper ── router
//! ```
//!
//! A connection takes a permit, and gives it back when it is closed. To stop is to drop the
//! listener, to tell each connection to end with the answer under way, and to collect all permits.

mod connection;
mod error;
mod files;
mod paced;
mod refuse;
mod tls;

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::app::{self, Shared};

use connection::Connections;
pub use error::ServeError;

/// How long nothing is accepted after that failed for want of files or memory, at first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// And at most, if it goes on failing.
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Shared,
    router: Router,
    tls: Option<TlsAcceptor>,
    connections_max: usize,
    on_drain: Option<OnDrain>,
}

type OnDrain = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// What connections are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Go on.
    Serving,
    /// End with the answer under way.
    Draining,
    /// End.
    Cut,
}

impl Server {
    /// Listens at [`crate::Config::address`]; port 0 is a free one.
    ///
    /// # Errors
    /// When the address can't be had, or certificate and key are of no use.
    pub async fn bind(app: Shared) -> Result<Server, ServeError> {
        let router = app::router(&app);
        Server::bind_router(app, router).await
    }

    /// As [`Server::bind`], with other routes.
    async fn bind_router(app: Shared, router: Router) -> Result<Server, ServeError> {
        let tls = app.config.tls.as_ref().map(tls::acceptor).transpose()?;
        let asked = app.config.address;
        let listener =
            TcpListener::bind(asked).await.map_err(|error| ServeError::listen(asked, error))?;
        let address = listener.local_addr().map_err(|error| ServeError::listen(asked, error))?;
        let connections_max = files::room_for(app.config.limits.connections_max);
        Ok(Server { listener, address, app, router, tls, connections_max, on_drain: None })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Has something done when the last request has ended, before [`Server::run`] returns.
    #[must_use]
    pub fn on_drain<F>(mut self, hook: impl FnOnce() -> F + Send + 'static) -> Server
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.on_drain = Some(Box::new(move || Box::pin(hook())));
        self
    }

    /// Answers requests until `shutdown`. Those under way then may go on for
    /// [`crate::Config::shutdown`], or until `cut`.
    ///
    /// # Errors
    /// None so far: what fails while it runs is logged, and it goes on.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()>,
        cut: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let Server { listener, app, router, tls, connections_max, on_drain, .. } = self;
        let (phase, phases) = watch::channel(Phase::Serving);
        let places = Arc::new(Semaphore::new(connections_max));
        let connections = Connections::new(Arc::clone(&app), router, tls, phases);

        tokio::select! {
            () = shutdown => {}
            () = accept(&listener, &connections, &places, &app) => {}
        }
        drop(listener);
        app.metrics.begin_draining();
        phase.send_replace(Phase::Draining);
        drain(&places, connections_max, app.config.shutdown, cut).await;
        phase.send_replace(Phase::Cut);
        // Each of them ends at once now; this waits for what they drop.
        drop(places.acquire_many(permits(connections_max)).await);
        if let Some(hook) = on_drain {
            hook().await;
        }
        Ok(())
    }

    /// [`Server::run`] until the process gets SIGINT or SIGTERM; a second one cuts what is under
    /// way.
    ///
    /// # Errors
    /// When signals can't be watched; else as [`Server::run`].
    pub async fn run_until_signalled(self) -> Result<(), ServeError> {
        let (first, first_came) = watch::channel(0_u32);
        let signals = Signals::new().map_err(ServeError::Signals)?;
        let after = |count: u32| {
            let mut came = first_came.clone();
            async move {
                if came.wait_for(|&so_far| so_far >= count).await.is_err() {
                    pending::<()>().await;
                }
            }
        };
        let (shutdown, cut) = (after(1), after(2));
        tokio::select! {
            ended = self.run(shutdown, cut) => ended,
            () = signals.count(first) => Ok(()),
        }
    }
}

/// Waits until all connections are closed, but not for longer than it may.
async fn drain(
    places: &Semaphore,
    connections_max: usize,
    at_most: Duration,
    cut: impl Future<Output = ()>,
) {
    let open = connections_max - places.available_permits();
    tracing::info!(connections = open, "stopping; what is under way may take {at_most:?}");
    tokio::select! {
        all = timeout(at_most, places.acquire_many(permits(connections_max))) => {
            if all.is_err() {
                tracing::warn!("stopping: some requests took too long and are cut off");
            }
        }
        () = cut => tracing::warn!("stopping at once: requests under way are cut off"),
    }
}

fn permits(connections_max: usize) -> u32 {
    u32::try_from(connections_max).unwrap_or(u32::MAX)
}

async fn accept(
    listener: &TcpListener,
    connections: &Connections,
    places: &Arc<Semaphore>,
    app: &Shared,
) {
    let refusals = Arc::new(Semaphore::new(refuse::REFUSALS_MAX));
    let mut pause = ACCEPT_PAUSE;
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                pause = ACCEPT_PAUSE;
                begin(stream, remote, connections, places, &refusals, app);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!("connections can't be accepted: {error}; trying again");
                sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
            }
        }
    }
}

/// The client had left before it was accepted. Other errors (no more files, no memory) stay for a
/// while.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn begin(
    stream: TcpStream,
    remote: SocketAddr,
    connections: &Connections,
    places: &Arc<Semaphore>,
    refusals: &Arc<Semaphore>,
    app: &Shared,
) {
    match Arc::clone(places).try_acquire_owned() {
        Ok(place) => {
            let serving = connections.serve(stream, remote);
            tokio::spawn(async move {
                serving.await;
                drop(place);
            });
        }
        Err(_) => {
            app.metrics.connection_refused();
            let Ok(place) = Arc::clone(refusals).try_acquire_owned() else { return };
            // Before TLS there is no way to say anything.
            if app.config.tls.is_none() {
                tokio::spawn(async move {
                    refuse::refuse(stream).await;
                    drop(place);
                });
            }
        }
    }
}

/// The signals that stop the server.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Counts them, for ever.
    async fn count(mut self, count: watch::Sender<u32>) {
        loop {
            tokio::select! {
                Some(()) = self.interrupt.recv() => {}
                Some(()) = self.terminate.recv() => {}
                else => pending().await,
            }
            count.send_modify(|count| *count = count.saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests;
