//! Who may ask, and how much.
//!
//! ```text
//! access       log, metrics, request id, headers of security      (ops/access.rs)
//! first_byte   an answer has to begin in time
//! panics       a bug in a handler is a 500
//! host         the name that it was called by           against DNS rebinding
//! origin       the page that calls it                   against other people's pages
//! auth         the key
//! limits       the body: size, time, all bodies together
//! ```
//!
//! From the outside in. Each of them knows the route that was matched, because they are laid around
//! the routes and not around the router.

mod auth;
mod first_byte;
mod host;
mod limits;
mod origin;
mod panics;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;

use crate::app::Shared;
use crate::error::{ApiError, ErrorKind};
use crate::http::error_response;
use crate::ops::access;

#[cfg(test)]
pub(crate) use auth::OPEN;

/// Puts all guards in front of `routes`.
pub(crate) fn wrap(routes: Router<Shared>, app: &Shared) -> Router<Shared> {
    let config = &app.config;
    let hosts = Arc::new(host::Hosts::new(config));
    let origins = Arc::new(origin::Origins::new(&config.origins));
    let keys = Arc::new(auth::Keys::new(&config.api_keys));
    let bodies = Arc::new(limits::Bodies::new(&config.limits));
    routes
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        // The last one is the outermost.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(bodies, limits::guard))
        .layer(from_fn_with_state(keys, auth::guard))
        .layer(from_fn_with_state(origins, origin::guard))
        .layer(from_fn_with_state(hosts, host::guard))
        .layer(from_fn(panics::guard))
        .layer(from_fn_with_state(config.limits.first_byte_timeout, first_byte::guard))
        .layer(from_fn_with_state(Arc::clone(app), access::guard))
}

async fn not_found(uri: Uri) -> Response {
    let message = "there is nothing at this path; /openapi.json lists what there is";
    error_response(uri.path(), &ApiError::new(ErrorKind::NotFound, message))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("this path does not take {method}; /openapi.json says what it takes");
    error_response(uri.path(), &ApiError::new(ErrorKind::MethodNotAllowed, message))
}

#[cfg(test)]
mod tests;
