//! Real connections over the loopback, with small limits. What is asserted is how things end, not
//! when.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use futures_util::stream::{self, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::config::{Config, Limits, TlsConfig};
use crate::{guard, ops, testing};

const SHORT: Duration = Duration::from_millis(50);
/// So long that a test in which it matters fails.
const LONG: Duration = Duration::from_secs(600);

/// A server that runs.
struct Running {
    address: SocketAddr,
    app: Shared,
    shutdown: oneshot::Sender<()>,
    cut: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

fn config(limits: Limits) -> Config {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    Config { address, limits, shutdown: LONG, ..Config::default() }
}

async fn start(config: Config) -> Running {
    start_with(config, |server| server).await
}

async fn start_with(config: Config, change: impl FnOnce(Server) -> Server) -> Running {
    let app = testing::app(config);
    let routes = Router::new()
        .merge(ops::routes())
        .route("/echo", post(async |body: Bytes| body))
        .route("/never", get(pending::<()>))
        .route("/endless", get(async || Body::from_stream(endless(Duration::ZERO))))
        .route("/slow", get(async || Body::from_stream(endless(SHORT).take(4))));
    let router = guard::wrap(routes, &app).with_state(Arc::clone(&app));
    let server = change(Server::bind_router(Arc::clone(&app), router).await.unwrap());
    let address = server.local_addr();
    let (shutdown, shutdown_came) = oneshot::channel();
    let (cut, cut_came) = oneshot::channel();
    let when = async |came: oneshot::Receiver<()>| {
        if came.await.is_err() {
            pending::<()>().await;
        }
    };
    let task = tokio::spawn(async move { server.run(when(shutdown_came), when(cut_came)).await });
    Running { address, app, shutdown, cut, task }
}

/// 16 KiB again and again.
fn endless(pause: Duration) -> impl stream::Stream<Item = Result<Bytes, std::io::Error>> {
    stream::unfold((), move |()| async move {
        tokio::time::sleep(pause).await;
        Some((Ok(Bytes::from_static(&[b'x'; 16 << 10])), ()))
    })
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends these bytes, and reads until the server closes the connection.
    async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        // The server may have answered and closed before all was sent.
        let _sent = stream.write_all(bytes.as_ref()).await;
        rest(&mut stream).await
    }

    async fn get(&self, path: &str) -> String {
        self.exchange(format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        ))
        .await
    }

    async fn is_well(&self) -> bool {
        self.get("/health").await.starts_with("HTTP/1.1 200")
    }
}

/// All that still comes; nothing more after a reset.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
        all.extend_from_slice(&buffer[..bytes]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_connection_takes_several_requests() {
    let server = start(config(Limits::default())).await;
    let one = "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\none";
    let two = "POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\
               connection: close\r\n\r\n3\r\ntwo\r\n0\r\n\r\n";
    let answers = server.exchange(format!("{one}{two}")).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    let (first, second) = (answers.find("\r\n\r\none"), answers.find("\r\n\r\ntwo"));
    assert!(first.is_some() && first < second, "{answers}");
}

#[tokio::test]
async fn slow_and_idle_headers_lose_their_connection() {
    let server = start(config(Limits { headers_timeout: SHORT, ..Limits::default() })).await;
    for sent in ["", "GET / HTT", "GET /health HTTP/1.1\r\nhost: localhost\r\nx: "] {
        let answer = server.exchange(sent).await;
        assert!(!answer.contains("200"), "{sent:?}: {answer}");
    }
    // A connection may be used again, but not be idle for ever.
    let answer = server.exchange("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_slow_body_is_answered_and_its_connection_closed() {
    let server = start(config(Limits { body_timeout: SHORT, ..Limits::default() })).await;
    let head = "POST /echo HTTP/1.1\r\nhost: localhost\r\n";
    for sent in ["content-length: 9\r\n\r\nx", "transfer-encoding: chunked\r\n\r\n5\r\nx"] {
        let answer = server.exchange(format!("{head}{sent}")).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
}

#[tokio::test]
async fn oversized_requests_are_refused() {
    let limits = Limits { body_bytes_max: 100, headers_max: 10, ..Limits::default() };
    let server = start(config(limits.clone())).await;
    let head = "POST /echo HTTP/1.1\r\nhost: localhost\r\n";
    let many: String = (0..20).map(|at| format!("x-{at}: y\r\n")).collect();
    let large = "y".repeat(4 * limits.headers_bytes_max);
    let cases = [
        (format!("{head}content-length: 101\r\n\r\n"), "413"),
        (format!("{head}content-length: 99999999999999999999999\r\n\r\n"), "400"),
        (format!("{head}transfer-encoding: chunked\r\n\r\n65\r\n{large}"), "413"),
        (format!("{head}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nx"), "400"),
        (format!("{head}transfer-encoding: chunked\r\n\r\nxyz\r\n"), "400"),
        (format!("{head}{many}\r\n"), "431"),
        (format!("{head}x: {large}\r\n\r\n"), "431"),
        (format!("GET /{large} HTTP/1.1\r\nhost: localhost\r\n\r\n"), "414"),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(), "400"),
        (format!("{head}host: localhost\r\nconnection: close\r\n\r\n"), "400"),
        ("GET /\0 HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(), "400"),
        ("\x16\x03\x01 hello\r\n\r\n".to_owned(), "400"),
    ];
    for (request, status) in &cases {
        let answer = server.exchange(request).await;
        let begin = &request[..request.len().min(90)];
        // Too long a line and too long headers are the same to hyper.
        let line = answer.strip_prefix("HTTP/1.1 ").unwrap_or(&answer);
        let same = line.starts_with(status) || (*status == "414" && line.starts_with("431"));
        assert!(same, "{begin:?}: {line}");
    }
    assert!(server.is_well().await);
}

#[tokio::test]
async fn length_and_chunks_together_smuggle_nothing() {
    let server = start(config(Limits::default())).await;
    let smuggled = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let request = format!(
        "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\
         transfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
        smuggled.len() + 5
    );
    let mut stream = server.connect().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answers = rest(&mut stream).await;
    // RFC 9112, 6.3: chunked counts, or the request is refused. The rest is then a request of its
    // own or nothing; it is never part of the body.
    assert!(!answers.contains("\r\n\r\nGET"), "{answers}");
}

#[tokio::test]
async fn who_does_not_read_is_cut_off() {
    let server = start(config(Limits { write_timeout: SHORT, ..Limits::default() })).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    until(|| server.app.metrics.in_flight() == 1).await;
    // Nothing is read here, so the server's side ends it.
    until(|| server.app.metrics.in_flight() == 0).await;
    until(|| server.app.metrics.connections() == 0).await;
    assert!(server.is_well().await);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let server = start(config(Limits::default())).await;
    for path in ["/endless", "/never"] {
        let mut stream = server.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        until(|| server.app.metrics.in_flight() == 1).await;
        drop(stream);
        until(|| server.app.metrics.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_at_once() {
    let server = start(config(Limits { connections_max: 2, ..Limits::default() })).await;
    let held = [server.connect().await, server.connect().await];
    until(|| server.app.metrics.connections() == 2).await;
    for _ in 0..5 {
        let answer = server.get("/health").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
    drop(held);
    until(|| server.app.metrics.connections() == 0).await;
    assert!(server.is_well().await);
}

#[tokio::test]
async fn stopping_lets_answers_end_and_takes_no_new_ones() {
    let drained = Arc::new(AtomicBool::default());
    let hook = Arc::clone(&drained);
    let server = start_with(config(Limits::default()), |server| {
        server.on_drain(move || async move { hook.store(true, Ordering::Relaxed) })
    })
    .await;
    let mut idle = server.connect().await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    until(|| server.app.metrics.in_flight() == 1).await;
    server.shutdown.send(()).unwrap();
    // The idle one is closed while the other goes on.
    assert_eq!(rest(&mut idle).await, "");
    let answer = rest(&mut busy).await;
    assert!(answer.ends_with("\r\n0\r\n\r\n"), "the answer did not end");
    server.task.await.unwrap().unwrap();
    assert!(drained.load(Ordering::Relaxed));
    assert!(server.app.metrics.is_draining());
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn stopping_cuts_what_does_not_end() {
    let limits = Limits::default();
    let server = start(Config { shutdown: SHORT, ..config(limits.clone()) }).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /never HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    until(|| server.app.metrics.in_flight() == 1).await;
    server.shutdown.send(()).unwrap();
    server.task.await.unwrap().unwrap();
    assert_eq!(rest(&mut stream).await, "");

    // However long it might take, a second signal ends it.
    let server = start(config(limits)).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /never HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    until(|| server.app.metrics.in_flight() == 1).await;
    server.shutdown.send(()).unwrap();
    server.cut.send(()).unwrap();
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn health_says_when_it_stops() {
    let server = start(config(Limits::default())).await;
    assert!(server.is_well().await);
    server.app.metrics.begin_draining();
    assert!(server.get("/health").await.starts_with("HTTP/1.1 503"));
    let head = "HEAD /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = server.exchange(head).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let first = start(config(Limits::default())).await;
    let again = Config { address: first.address, ..Config::default() };
    let app = testing::app(again);
    let Err(error) = Server::bind_router(app, Router::new()).await else {
        panic!("two servers at one address")
    };
    assert!(matches!(error, ServeError::AddressInUse { .. }), "{error}");
    assert!(error.to_string().contains(&first.address.port().to_string()), "{error}");
}

mod tls {
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::TlsConnector;

    use super::*;

    /// A certificate for localhost and its key, as files, and who trusts it.
    fn files(folder: &std::path::Path) -> (TlsConfig, TlsConnector) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let files = TlsConfig { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (files, TlsConnector::from(Arc::new(client)))
    }

    #[tokio::test]
    async fn requests_may_be_encrypted() {
        let folder = tempfile::tempdir().unwrap();
        let (files, connector) = files(folder.path());
        let limits = Limits { headers_timeout: SHORT * 20, ..Limits::default() };
        let server = start(Config { tls: Some(files), ..config(limits) }).await;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, server.connect().await).await.unwrap();
        let request = "GET /health HTTP/1.1\r\nhost: localhost\r\norigin: https://localhost\r\n\
                       connection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // Plain text is no handshake, and silence ends as well.
        assert!(!server.get("/health").await.contains("200"));
        assert_eq!(server.exchange("").await, "");
    }

    #[tokio::test]
    async fn files_that_are_of_no_use_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (good, _) = files(folder.path());
        let other = folder.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let (others, _) = files(&other);
        let with = |certificate: &std::path::Path, key: &std::path::Path| TlsConfig {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let cases = [
            (with(&good.key, &good.key), "no certificate"),
            (with(&good.certificate, &good.certificate), "no private key"),
            (with(&folder.path().join("none"), &good.key), "No such file"),
            (with(&good.certificate, &others.key), "cert.pem"),
        ];
        for (files, expected) in cases {
            let app = testing::app(Config { tls: Some(files), ..config(Limits::default()) });
            let Err(error) = Server::bind_router(app, Router::new()).await else {
                panic!("{expected}: it was accepted")
            };
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
