//! An answer has to begin in time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use crate::error::{ApiError, ErrorKind};
use crate::http::error_response;

/// Ends a request whose answer has not begun after `limit`: with 503 if nothing was sent yet, else
/// by closing the connection.
pub(super) async fn guard(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let deadline = Instant::now() + limit;
    let path = request.uri().path().to_owned();
    match timeout_at(deadline, next.run(request)).await {
        Ok(response) if response.body().is_end_stream() => response,
        Ok(response) => response.map(|inner| Body::new(Begins::by(deadline, inner))),
        Err(_) => {
            let message = format!("the answer did not begin within {} s", limit.as_secs());
            error_response(&path, &ApiError::new(ErrorKind::Unavailable, message))
        }
    }
}

/// A body whose first piece has to come in time.
struct Begins {
    inner: Body,
    /// `None` once it has begun.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Begins {
    fn by(deadline: Instant, inner: Body) -> Begins {
        Begins { inner, deadline: Some(Box::pin(sleep_until(deadline))) }
    }
}

impl HttpBody for Begins {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            self.deadline = None;
            return Poll::Ready(frame);
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(context));
        self.deadline = None;
        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
        Poll::Ready(Some(Err(axum::Error::new(late))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
