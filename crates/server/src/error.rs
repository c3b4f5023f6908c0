//! What can go wrong with a request, independent of the API that it came by.

use std::time::Duration;

use axum::http::StatusCode;

/// What kind of failure it is: decides the status, and what each API calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request makes no sense.
    BadRequest,
    /// The prompt does not fit the context.
    ContextLength,
    /// No key, or a wrong one.
    Unauthorized,
    /// Not from this origin, or not with this key.
    Forbidden,
    /// No such model or path.
    NotFound,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The client was too slow.
    Timeout,
    /// It exists already, or it is in use.
    Conflict,
    /// The body is too large.
    TooLarge,
    /// Too many requests wait.
    TooMany,
    /// A bug of ours, or a failing machine.
    Internal,
    /// Known, and not done here.
    NotImplemented,
    /// The server can't do it now: shutting down, no memory for the model.
    Unavailable,
    /// Another server failed (a download).
    BadGateway,
}

impl ErrorKind {
    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            ErrorKind::BadRequest | ErrorKind::ContextLength => StatusCode::BAD_REQUEST,
            ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::Timeout => StatusCode::REQUEST_TIMEOUT,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::TooMany => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::BadGateway => StatusCode::BAD_GATEWAY,
        }
    }
}

/// A request failed; each API writes it in its own form.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// One sentence for whoever made the request.
    pub message: String,
    /// The field of the request that is wrong, if it is one.
    pub field: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: message.into(), field: None, retry_after: None }
    }

    /// A request that makes no sense.
    pub fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorKind::BadRequest, message)
    }

    /// A field of a request that makes no sense.
    pub fn bad_field(field: &str, message: impl Into<String>) -> ApiError {
        ApiError { field: Some(field.to_owned()), ..ApiError::bad(message) }
    }

    /// Something known that is not done here.
    pub fn not_implemented(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorKind::NotImplemented, message)
    }

    /// A bug of ours.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorKind::Internal, message)
    }
}
