//! Conversations as files for another machine, with their attention state.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hypura_gguf as gguf;
use hypura_io::File;
use hypura_kv::{
    Block, BlockError, BlockKey, BlockKind, Chain, PortableError, PortableReader, Put, Scope,
    ScopeFields, Session, Want, decode, encode, write_portable,
};
use hypura_profile::{FingerprintError, fingerprint};

use crate::attention::{KvOptions, open_bare_store, reader};
use crate::machine;
use crate::options::LoadError;

/// How long a block may take to be written.
const WRITE_AT_MOST: Duration = Duration::from_secs(60);

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Tokens whose state is in the file.
    pub tokens: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What was read.
#[derive(Debug)]
pub struct Unpacked {
    /// The conversation.
    pub session: Session,
    /// Tokens whose state is known now.
    pub tokens: usize,
    /// Why it is not all of them.
    pub note: Option<String>,
}

/// Why a file of a session can't be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionFileError {
    /// The container is not sound, or can't be written.
    #[error(transparent)]
    Portable(#[from] PortableError),
    /// A block in it is not sound.
    #[error("the file is damaged: a block in it is unsound ({0}); get it again")]
    Block(#[from] BlockError),
    /// A block in it belongs to something else.
    #[error("the file is damaged: a block in it is of other tokens; get it again")]
    OtherTokens,
    /// The conversation was had with another model.
    #[error(
        "the file was made with another model, {model_name}; its weights differ from those of \
         this one"
    )]
    OtherModel {
        /// What it was called there.
        model_name: String,
    },
    /// The folder of attention state can't be used.
    #[error("{0}")]
    Store(String),
}

/// The fingerprint of the model at `path`, in hexadecimal. `progress` is told bytes done and to do.
///
/// # Errors
/// When it is no sound model, or can't be read.
pub fn fingerprint_of(
    path: &Path,
    options: &KvOptions,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<String, LoadError> {
    let model = gguf::Model::open(path)?;
    fingerprint_of_model(&model, options, progress)
}

/// As [`fingerprint_of`].
pub(crate) fn fingerprint_of_model(
    model: &gguf::Model,
    options: &KvOptions,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<String, LoadError> {
    let open = |file: &gguf::ModelFile| File::open(&file.path).map(Arc::new);
    let files = model.files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut reader = (reader())().map_err(LoadError::Other)?;
    match fingerprint(&files, options.fingerprint_dir.as_deref(), &mut *reader, progress) {
        Ok(fingerprint) => Ok(fingerprint.to_string()),
        Err(FingerprintError::Interrupted) => Err(hypura_llama::LoadError::Cancelled.into()),
        Err(FingerprintError::Changed(error)) => Err(error.into()),
        Err(error) => Err(LoadError::Fingerprint(error)),
    }
}

/// Writes a session and what is known of its attention state.
///
/// # Errors
/// When `out` can't be written, or the folder of attention state can't be used.
pub fn pack_session(
    session: &Session,
    options: &KvOptions,
    out: &mut impl Write,
) -> Result<Packed, SessionFileError> {
    let store = open_bare_store(options).map_err(SessionFileError::Store)?;
    let scope = Scope::new(&session.scope);
    // Models that need a checkpoint have one where the last turn ended.
    let find = |checkpoint| {
        let want = Want { checkpoint, tokens_max: session.tokens.len() };
        store.find(&scope, &session.tokens, want)
    };
    let found = Some(find(true)).filter(|found| found.tokens > 0).unwrap_or_else(|| find(false));
    let mut fetch = store.fetch(&found, 0);
    let mut tokens = 0;
    let blocks = std::iter::from_fn(|| {
        let fetched = match fetch.next()? {
            Ok(fetched) => fetched,
            // What is damaged is computed anew over there.
            Err(error) => {
                tracing::warn!("{error}");
                return None;
            }
        };
        // A block that goes on elsewhere would tell what was said there.
        if (fetched.used_tokens as usize) < fetched.tokens().len() {
            return None;
        }
        tokens += fetched.tokens().len();
        let block = Block {
            key: fetched.key,
            scope,
            from: fetched.from,
            tokens: fetched.tokens().to_vec(),
            payload: fetched.payload().to_vec(),
        };
        Some(io::Result::Ok(encode(&block)))
    });
    let summary = write_portable(out, session, blocks)?;
    Ok(Packed { tokens, bytes: summary.bytes })
}

/// Reads a session and its attention state. The state is used by this conversation alone: nobody
/// can tell whether what a file says of some tokens is what the model would compute.
///
/// # Errors
/// When the file is damaged, or was made with another model than that of `fingerprint`.
pub fn unpack_session(
    input: impl Read,
    fingerprint: &str,
    options: &KvOptions,
) -> Result<Unpacked, SessionFileError> {
    let mut file = PortableReader::open(input)?;
    let mut session = file.session().clone();
    if session.model_fingerprint != fingerprint {
        return Err(SessionFileError::OtherModel { model_name: session.model_name });
    }
    let old_scope = Scope::new(&session.scope);
    session.scope.tenant = format!("file {}", digest(&session, fingerprint));
    let scope = Scope::new(&session.scope);
    let mut note = note_of(&session.scope);
    let store = open_bare_store(options).map_err(SessionFileError::Store)?;
    let (mut known, mut is_stored) = (0, note.is_none());
    // To the end in any case: the checksum is there.
    while let Some(image) = file.next_block()? {
        let block = decode(&image)?;
        let block = renamed(block, &session, &old_scope, &scope)?;
        let end = block.from as usize + block.tokens.len();
        if is_stored {
            let put = store.put(block, Vec::new());
            is_stored = matches!(put, Put::Queued | Put::Known) && store.flush(WRITE_AT_MOST);
            if is_stored {
                known = end;
            } else {
                note = Some(
                    "the folder of attention state took no more; the rest is computed \
                             anew"
                        .to_owned(),
                );
            }
        }
    }
    Ok(Unpacked { session, tokens: known, note })
}

/// A block of the file under the names that it has here.
fn renamed(
    block: Block,
    session: &Session,
    old_scope: &Scope,
    scope: &Scope,
) -> Result<Block, SessionFileError> {
    let (from, to) = (block.from as usize, block.from as usize + block.tokens.len());
    if block.scope != *old_scope || session.tokens.get(from..to) != Some(&block.tokens) {
        return Err(SessionFileError::OtherTokens);
    }
    let node = |n: usize| {
        let mut chain = Chain::new(scope);
        chain.push(session.tokens.get(..n).unwrap_or_default());
        chain.node()
    };
    let key = match block.key.kind {
        BlockKind::Tokens => BlockKey::tokens(node(from), node(to), block.key.n_tokens),
        BlockKind::Checkpoint => BlockKey::checkpoint(node(from)),
    };
    Ok(Block { key, scope: *scope, ..block })
}

/// Why its state is of no use here, if so.
fn note_of(scope: &ScopeFields) -> Option<String> {
    let ours = machine::library();
    (scope.library != ours).then(|| {
        format!(
            "Its attention state was computed by {} and this is {ours}: it is computed anew.",
            scope.library
        )
    })
}

/// Tells files apart by what is in them.
fn digest(session: &Session, fingerprint: &str) -> String {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    hash.update(fingerprint.as_bytes());
    hash.update(session.created_unix_s.to_le_bytes());
    hash.update(session.scope.tenant.as_bytes());
    for token in &session.tokens {
        hash.update(token.to_le_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A time as people read it, in the local zone.
pub fn local_time(unix_s: u64) -> String {
    let time = i64::try_from(unix_s).ok().and_then(|s| chrono::DateTime::from_timestamp(s, 0));
    time.map_or_else(
        || "at an unknown time".to_owned(),
        |time| time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M").to_string(),
    )
}
