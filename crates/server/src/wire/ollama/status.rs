//! Status lines of what takes long: pulling and creating models.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use hypura_hub::Progress;
use serde::Serialize;
use tokio::sync::mpsc::Receiver;

use super::answer::{json_line, ndjson};
use super::error::error_line;
use crate::error::ApiError;

/// The last line of what went well; clients wait for it.
pub(super) const SUCCESS: &str = "success";

/// What is being done, or why it can't be.
pub(super) type Update = Result<Progress, ApiError>;

#[derive(Debug, Serialize)]
struct StatusLine<'a> {
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<u64>,
}

impl StatusLine<'_> {
    fn of(progress: &Progress) -> StatusLine<'_> {
        StatusLine {
            status: &progress.status,
            digest: progress.digest.as_deref(),
            total: progress.total.filter(|&bytes| bytes > 0),
            completed: progress.completed.filter(|&bytes| bytes > 0),
        }
    }
}

/// Sets a flag when it is dropped: nobody waits any more.
#[derive(Debug, Default)]
pub(super) struct CancelOnDrop(pub(super) Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers with all updates: in lines if `stream`, else with the last one alone.
///
/// # Errors
/// The first update's if it is an error, and without `stream` any.
pub(super) async fn respond(
    mut updates: Receiver<Update>,
    cancel: CancelOnDrop,
    stream: bool,
) -> Result<Response, ApiError> {
    if !stream {
        let mut last = None;
        while let Some(update) = updates.recv().await {
            last = Some(update?);
        }
        let last = last.filter(|last| last.status == SUCCESS).ok_or_else(broke_off)?;
        return Ok(Json(StatusLine::of(&last)).into_response());
    }
    let first = updates.recv().await.ok_or_else(broke_off)??;
    let state = Lines { updates, first: Some(first), is_over: false, _cancel: cancel };
    let lines = stream::unfold(state, |mut state| async {
        let line = state.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), state))
    });
    Ok(ndjson(Body::from_stream(lines)))
}

struct Lines {
    updates: Receiver<Update>,
    first: Option<Progress>,
    is_over: bool,
    _cancel: CancelOnDrop,
}

impl Lines {
    async fn next(&mut self) -> Option<Vec<u8>> {
        if self.is_over {
            return None;
        }
        let update = match self.first.take() {
            Some(first) => Ok(first),
            None => self.updates.recv().await.unwrap_or_else(|| Err(broke_off())),
        };
        match update {
            Ok(progress) => {
                self.is_over = progress.status == SUCCESS;
                Some(json_line(&StatusLine::of(&progress)))
            }
            Err(error) => {
                self.is_over = true;
                Some(error_line(&error))
            }
        }
    }
}

fn broke_off() -> ApiError {
    ApiError::internal("this broke off; try again")
}

/// A line that says what is done now.
pub(super) fn step(status: &str) -> Progress {
    Progress { status: status.to_owned(), ..Progress::default() }
}
