//! Any bytes as requests of Anthropic's API.

use axum::body::Bytes;

use super::request::{Request, Want};
use crate::config::Limits;

/// Reads `data` as each kind of request.
pub(crate) fn fuzz(data: &[u8]) {
    let (body, limits) = (Bytes::copy_from_slice(data), Limits::default());
    for want in [Want::Answer, Want::Count] {
        if let Ok(Request { ask, .. }) = Request::parse(&body, &limits, "", want) {
            assert!(ask.stop.is_none_or(|stops| stops.len() <= limits.stops_max));
        }
    }
}
