//! The body: its size, its time, and all bodies together.
//!
//! Handlers get bodies whole. Bytes are counted as they come and not as they are announced, so that
//! nobody takes room that he does not fill; they count until the handler has dropped them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::Limits;
use crate::error::{ApiError, ErrorKind};
use crate::http::error_response;

/// Routes whose handlers take the body as it comes, because it is the file of a model. They check
/// its size themselves; [`Limits::body_timeout`] is for each piece of it.
const STREAMED: &[&str] = &["/api/blobs/{digest}"];

/// When to try again if there is no room for a body: most are read in less.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What bodies may be.
pub(super) struct Bodies {
    bytes_max: usize,
    timeout: Duration,
    /// One permit per byte.
    room: Arc<Semaphore>,
}

impl Bodies {
    pub(super) fn new(limits: &Limits) -> Bodies {
        Bodies {
            bytes_max: limits.body_bytes_max,
            timeout: limits.body_timeout,
            room: Arc::new(Semaphore::new(limits.bodies_bytes_max.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// The whole body.
    pub(super) async fn read(&self, body: Body) -> Result<Bytes, ApiError> {
        if body.size_hint().lower() > self.bytes_max as u64 {
            return Err(self.too_large());
        }
        timeout(self.timeout, self.collect(body)).await.unwrap_or_else(|_| {
            let message = format!("the body was not sent within {} s", self.timeout.as_secs());
            Err(ApiError::new(ErrorKind::Timeout, message))
        })
    }

    async fn collect(&self, mut body: Body) -> Result<Bytes, ApiError> {
        let mut counted = Counted { bytes: Vec::new(), room: None };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::bad("the body broke off or is malformed"))?;
            let Ok(data) = frame.into_data() else { continue };
            if data.len() > self.bytes_max - counted.bytes.len() {
                return Err(self.too_large());
            }
            counted.add(&data, self.take(data.len())?);
        }
        Ok(Bytes::from_owner(counted))
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let permits = u32::try_from(bytes).ok();
        let room =
            permits.and_then(|permits| Arc::clone(&self.room).try_acquire_many_owned(permits).ok());
        room.ok_or_else(|| ApiError {
            retry_after: Some(RETRY_AFTER),
            ..ApiError::new(
                ErrorKind::Unavailable,
                "too many large requests are being read; try again",
            )
        })
    }

    fn too_large(&self) -> ApiError {
        let message = format!("the body has more than {} bytes; send less", self.bytes_max);
        ApiError::new(ErrorKind::TooLarge, message)
    }
}

/// Bytes of a body, and the room that they take.
struct Counted {
    bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

impl Counted {
    fn add(&mut self, bytes: &[u8], more: OwnedSemaphorePermit) {
        self.bytes.extend_from_slice(bytes);
        match &mut self.room {
            Some(all) => all.merge(more),
            none => *none = Some(more),
        }
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads the body, or refuses it.
pub(super) async fn guard(
    State(bodies): State<Arc<Bodies>>,
    request: Request,
    next: Next,
) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let route = request.extensions().get::<MatchedPath>();
    let streamed = route.is_some_and(|route| STREAMED.contains(&route.as_str()));
    let (parts, body) = request.into_parts();
    if streamed {
        let body = each_in_time(body, bodies.timeout);
        return next.run(Request::from_parts(parts, body)).await;
    }
    match bodies.read(body).await {
        Ok(bytes) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Err(error) => {
            let mut response = error_response(parts.uri.path(), &error);
            // What is left of the body is not worth reading.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

/// The same body, which breaks off where a piece is late.
fn each_in_time(body: Body, limit: Duration) -> Body {
    let pieces = stream::unfold(Some(body.into_data_stream()), move |body| async move {
        let mut body = body?;
        match timeout(limit, body.next()).await {
            Ok(piece) => piece.map(|piece| (piece, Some(body))),
            Err(_) => {
                let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                Some((Err(axum::Error::new(late)), None))
            }
        }
    });
    Body::from_stream(pieces)
}
