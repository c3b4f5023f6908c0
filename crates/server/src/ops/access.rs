//! One line of log and the metrics for each request, when its answer has ended.
//!
//! What only the inside of a request knows (its model, its tokens) is noted with [`note`]. It finds
//! the request that is being worked on, as long as it is called where the request's handler or the
//! body of its answer is polled or dropped.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::Counted;
use crate::app::Shared;
use crate::http::{Api, Peer};

/// The target of the log's events.
const TARGET: &str = "hypura::access";
/// What a path that is nobody's is called.
const OTHER: &str = "other";
/// Bytes of a path in the log; the rest is cut off.
const PATH_BYTES_MAX: usize = 256;

/// OpenAI's clients read one of them, Anthropic's the other.
const REQUEST_IDS: [HeaderName; 2] =
    [HeaderName::from_static("x-request-id"), HeaderName::from_static("request-id")];
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// For all that is no page: it may load nothing and stand in no frame.
const NOTHING: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

tokio::task_local! {
    static NOTES: Arc<Notes>;
}

/// What is known of a request beside its first line.
#[derive(Debug)]
pub(crate) struct Notes {
    api: Api,
    noted: Mutex<Noted>,
}

/// See [`note`].
#[derive(Debug, Default, Clone)]
pub(crate) struct Noted {
    /// The model that was asked.
    pub(crate) model: Option<String>,
    /// Tokens of prompts.
    pub(crate) prompt_tokens: Option<usize>,
    /// Tokens of answers.
    pub(crate) generated_tokens: Option<usize>,
}

/// Adds to what the log will say of the request that is being worked on; of none, nothing.
pub(crate) fn note(add: impl FnOnce(&mut Noted)) {
    let _outside = NOTES.try_with(|notes| {
        add(&mut notes.noted.lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// Watches a request from its headers to the last byte of its answer.
pub(crate) async fn guard(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let id = next_id();
    let path = request.uri().path();
    let notes = Arc::new(Notes { api: Api::of(path), noted: Mutex::default() });
    let mut record = Record {
        _in_flight: app.metrics.request_begins(),
        app,
        id: id.clone(),
        method: request.method().clone(),
        path: cut(path),
        route: request.extensions().get::<MatchedPath>().cloned(),
        client: request.extensions().get::<Peer>().map(|peer| peer.remote.ip().to_string()),
        begin: Instant::now(),
        status: None,
        bytes: 0,
        broke_off: true,
        notes: Arc::clone(&notes),
    };
    let mut response = NOTES.scope(notes, next.run(request)).await;
    protect(response.headers_mut(), &id);
    record.status = Some(response.status().as_u16());
    response.map(|inner| Body::new(Watched { inner: Some(inner), record }))
}

/// A number that tells a request from the others of this process.
fn next_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("req_{:08x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn cut(path: &str) -> String {
    path.get(..path.floor_char_boundary(PATH_BYTES_MAX)).unwrap_or_default().to_owned()
}

fn protect(headers: &mut HeaderMap, id: &str) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(NOTHING);
    if let Ok(id) = HeaderValue::from_str(id) {
        for name in REQUEST_IDS {
            headers.insert(name, id.clone());
        }
    }
}

/// A request, until its end is logged: when this is dropped.
struct Record {
    app: Shared,
    _in_flight: Counted,
    id: String,
    method: Method,
    path: String,
    route: Option<MatchedPath>,
    client: Option<String>,
    begin: Instant,
    /// `None` if the client left before there was one.
    status: Option<u16>,
    bytes: u64,
    broke_off: bool,
    notes: Arc<Notes>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let noted = self.notes.noted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let took = self.begin.elapsed();
        let route = self.route.as_ref().map_or(OTHER, MatchedPath::as_str);
        // nginx's number for a client that left.
        let status = self.status.unwrap_or(499);
        self.app.metrics.request_ended(self.notes.api, route, status, took);
        tracing::info!(
            target: TARGET,
            id = self.id,
            client = self.client,
            method = %self.method,
            path = self.path,
            status,
            ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            bytes = self.bytes,
            broke_off = self.broke_off,
            model = noted.model,
            prompt_tokens = noted.prompt_tokens,
            generated_tokens = noted.generated_tokens,
        );
    }
}

/// The body of an answer, counted.
struct Watched {
    inner: Option<Body>,
    record: Record,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let notes = Arc::clone(&this.record.notes);
        let polled = NOTES.sync_scope(notes, || Pin::new(&mut *inner).poll_frame(context));
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        this.record.broke_off = match &polled {
            Poll::Ready(None) => false,
            _ => !inner.is_end_stream(),
        };
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Watched {
    /// The inner body first, and with the notes at hand: it may be an answer that is cancelled.
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        self.record.broke_off &= !inner.is_end_stream();
        NOTES.sync_scope(Arc::clone(&self.record.notes), || drop(inner));
    }
}
