//! `HEAD` and `POST /api/blobs/{digest}`: files that models are created of.

use std::io::{self, Read};

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures_util::StreamExt;
use hypura_hub::Digest;
use tokio::sync::mpsc::{self, Receiver};

use super::create::parse_digest;
use super::error::{OllamaError, of_store};
use super::manage::check_allowed;
use super::models::with_stores;
use crate::app::Shared;
use crate::error::{ApiError, ErrorKind};

/// Pieces of a body that wait to be written.
const PIECES_MAX: usize = 4;

fn digest_of(text: &str) -> Result<Digest, ApiError> {
    parse_digest(text).ok_or_else(|| ApiError::bad_field("digest", "invalid digest format"))
}

async fn is_here(app: &Shared, digest: &Digest) -> Result<bool, ApiError> {
    let digest = digest.clone();
    let found = with_stores(app, move |stores| stores.blob(&digest));
    Ok(found.await?.map_err(|error| of_store(&error, ""))?.is_some())
}

/// Whether a file is here.
pub(super) async fn head_blob(
    State(app): State<Shared>,
    Path(digest): Path<String>,
) -> Result<StatusCode, OllamaError> {
    check_allowed(&app)?;
    let digest = digest_of(&digest)?;
    if is_here(&app, &digest).await? {
        return Ok(StatusCode::OK);
    }
    let message = format!("blob \"sha256:{digest}\" not found");
    Err(ApiError::new(ErrorKind::NotFound, message).into())
}

/// Takes a file in, while it comes.
pub(super) async fn put_blob(
    State(app): State<Shared>,
    Path(digest): Path<String>,
    body: Body,
) -> Result<StatusCode, OllamaError> {
    check_allowed(&app)?;
    let digest = digest_of(&digest)?;
    if is_here(&app, &digest).await? {
        return Ok(StatusCode::OK);
    }
    let bytes_max = app.config.pull.bytes_max;
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let mut source = Pieces { pieces, rest: Bytes::new() };
    let writing = with_stores(&app, move |stores| {
        stores.put_blob(&digest, &mut source, bytes_max).map_err(|error| of_store(&error, ""))
    });
    let reading = async move {
        let mut body = body.into_data_stream();
        while let Some(piece) = body.next().await {
            // Writing has ended if nobody takes it, and says why.
            if sender.send(piece.map_err(io::Error::other)).await.is_err() {
                break;
            }
        }
    };
    let (written, ()) = tokio::join!(writing, reading);
    written??;
    Ok(StatusCode::CREATED)
}

/// A body, for a thread that reads it. If the client goes away it ends early, and the checksum tells.
struct Pieces {
    pieces: Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let count = out.len().min(self.rest.len());
        let piece = self.rest.split_to(count);
        out.iter_mut().zip(&piece).for_each(|(out, &byte)| *out = byte);
        Ok(count)
    }
}
