//! Routing history: which experts a model used in earlier runs, so that a new run starts with them.
//!
//! One small file per model, written when the model is unloaded, beside itself and renamed. It is a
//! hint: a missing or damaged one costs speed at the start, nothing else.

use std::path::{Path, PathBuf};

use hypura_gguf as gguf;
use hypura_tier::{History, Lrfu};
use sha2::{Digest, Sha256};

/// A history larger than this is not one of ours: a model has at most 2^24 experts, and few have
/// more than 2^14.
const BYTES_MAX: u64 = 64 << 20;

/// Nobody has generated more tokens than this: a larger number is damage.
const TOKENS_MAX: u64 = 1 << 48;

/// Where the history of one model is kept.
#[derive(Debug, Clone)]
pub(crate) struct HistoryFile {
    path: PathBuf,
}

impl HistoryFile {
    /// In `folder`, under a name made of what the model is: its tensors and the length of its
    /// files. (Not of their bytes, which would have to be read: two models that share a history
    /// confuse nothing but the guess what is needed first.)
    pub(crate) fn of(folder: &Path, model: &gguf::Model) -> HistoryFile {
        let mut hash = Sha256::new();
        for file in &model.files {
            hash.update(file.len.to_le_bytes());
        }
        for tensor in &model.tensors {
            hash.update(tensor.name.as_bytes());
            hash.update(tensor.offset.to_le_bytes());
            hash.update(tensor.bytes.to_le_bytes());
        }
        let name: String =
            hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        HistoryFile { path: folder.join(format!("{name}.json")) }
    }

    /// The history of earlier runs, if there is one that can be read.
    pub(crate) fn read(&self) -> Option<History<Lrfu>> {
        if std::fs::metadata(&self.path).ok()?.len() > BYTES_MAX {
            return None;
        }
        let text = std::fs::read(&self.path).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(|error| tracing::debug!("{}: {error}", self.path.display()))
            .ok()
            .filter(|history: &History<Lrfu>| history.now_tokens <= TOKENS_MAX)
    }

    /// Keeps a history for the next run.
    pub(crate) fn write(&self, history: &History<Lrfu>) {
        if let Err(error) = self.try_write(history) {
            tracing::debug!("the routing history was not kept: {}: {error}", self.path.display());
        }
    }

    fn try_write(&self, history: &History<Lrfu>) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let beside = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let written = std::fs::write(&beside, serde_json::to_vec(history)?)
            .and_then(|()| std::fs::rename(&beside, &self.path));
        if written.is_err() {
            // What is left of a full disk's file is of no use to anybody.
            let _ = std::fs::remove_file(&beside);
        }
        written
    }
}
