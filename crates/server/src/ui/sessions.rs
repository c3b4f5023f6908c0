//! Conversations that `hypura run --session` keeps, for the page.

use std::path::Path;

use chrono::{DateTime, Utc};
use hypura_engine::kv::SessionStore;
use serde::Serialize;

/// Sessions shown at most, the newest first.
const SHOWN_MAX: usize = 50;

/// A conversation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Session {
    name: String,
    model: String,
    tokens: usize,
    modified: DateTime<Utc>,
}

/// The sessions in a folder; none where there is none. Blocks.
pub(super) fn list(folder: &Path) -> Vec<Session> {
    if !folder.is_dir() {
        return Vec::new();
    }
    let listed = SessionStore::open(folder.to_owned()).and_then(|store| store.list());
    let mut sessions: Vec<Session> = listed
        .inspect_err(|error| tracing::debug!("sessions can't be listed: {error}"))
        .unwrap_or_default()
        .into_iter()
        .filter_map(|summary| {
            let outline = summary.outline.ok()?;
            Some(Session {
                name: summary.name.to_string(),
                model: outline.model_name,
                tokens: outline.n_tokens,
                modified: DateTime::from_timestamp(i64::try_from(outline.updated_unix_s).ok()?, 0)?,
            })
        })
        .collect();
    sessions.sort_by_key(|session| std::cmp::Reverse(session.modified));
    sessions.truncate(SHOWN_MAX);
    sessions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_has_no_sessions() {
        assert_eq!(list(Path::new("/no/such/folder")), []);
    }
}
