//! Attention state beside the context: what is computed once is written to blocks, and read back
//! wherever a prompt begins with the same tokens.
//!
//! [`Attention`] stands between a sequence of llama.cpp's context and the store of blocks
//! (`hypura-kv`). It decides when a block is cut off, and whether reading one is faster than
//! computing it; where blocks live is the store's business.
//!
//! ```text
//! tokens   0        B        2B       3B     now
//!          |--full--|--full--|--full--|-tail-|      blocks; the tail is written at the end of a
//!                                     ^      ^      turn, and replaced by the block that it grows to
//!                                  `solid`   checkpoint, for models that need one
//! ```

mod open;
mod options;
mod rates;
mod restore;

use std::time::{Duration, Instant};

use hypura_kv::{
    Block, BlockKey, BlockKind, Chain, FoundBlock, Put, Scope, ScopeFields, State, Store,
};
use hypura_llama::{Context, StateError, StateShape, Token};

pub(crate) use open::{fingerprint, open, open_bare_store, reader};
use options::BLOCKS_UNDER_WAY;
pub(crate) use options::Sizes;
pub use options::{HotLimit, KvOptions, kv_type_name};
pub(crate) use rates::Rates;
pub use restore::KvUse;
pub(crate) use restore::Restored;

/// While an answer is generated, what was added to a block that is not full is written so often:
/// a process that is killed loses no more.
const TAIL_EVERY: Duration = Duration::from_secs(5);
/// The same for models that need a checkpoint with it, which may be large.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
/// A turn waits for the drive for at most one part in this many of its time.
const WAIT_SHARE: u32 = 100;
/// For a block that a sliding window would forget, or that a checkpoint needs, it waits so long.
const FORGETFUL_WAIT_MAX: Duration = Duration::from_secs(1);
/// A long prompt leaves a checkpoint behind each time it has grown by one part in this many, and by
/// `CHECKPOINT_TOKENS_MIN`: few, and denser where conversations fork.
const CHECKPOINT_SHARE: usize = 4;
const CHECKPOINT_TOKENS_MIN: usize = 1024;

/// The tiers of all sequences of a context.
pub(crate) struct Attention {
    store: Store,
    fields: ScopeFields,
    shape: StateShape,
    sizes: Sizes,
    options: KvOptions,
    /// Layers with a sliding window forget: what was dropped can't be written later.
    is_windowed: bool,
    rates: Rates,
    /// Whether something went wrong that will again: nothing is written or read any more.
    failed: bool,
}

/// What of one sequence is in the tiers.
pub(crate) struct Track {
    seq: i32,
    scope: Scope,
    progress: Progress,
    /// When the turn began, and how long it has waited for the drive.
    turn: Instant,
    waited: Duration,
    export_time: Duration,
}

/// How far a sequence is written.
struct Progress {
    /// The tokens of all full blocks.
    chain: Chain,
    /// The block that is not full, as it was written last: its name, and where it ends.
    tail: Option<(BlockKey, usize)>,
    /// Tokens at the last checkpoint.
    checkpoint_at: usize,
    written_at: Instant,
    /// Blocks before this one are known to be in the store.
    checked: usize,
}

impl Progress {
    fn new(scope: &Scope) -> Progress {
        Progress {
            chain: Chain::new(scope),
            tail: None,
            checkpoint_at: 0,
            written_at: Instant::now(),
            checked: 0,
        }
    }

    /// Tokens in full blocks.
    fn solid(&self) -> usize {
        self.chain.len()
    }
}

impl Track {
    /// Everything was forgotten.
    pub(crate) fn cleared(&mut self) {
        self.progress = Progress::new(&self.scope);
    }

    /// A turn begins.
    pub(crate) fn turn_begins(&mut self) {
        self.turn = Instant::now();
        self.waited = Duration::ZERO;
        self.export_time = Duration::ZERO;
    }

    /// Time that the present turn gave to taking state out of the context, waiting included.
    pub(crate) fn export_time(&self) -> Duration {
        self.export_time
    }
}

impl Attention {
    pub(crate) fn new(
        context: &mut Context,
        store: Store,
        fields: ScopeFields,
        sizes: Sizes,
        options: KvOptions,
        rates: Rates,
    ) -> Result<Attention, StateError> {
        Ok(Attention {
            shape: context.state_shape()?,
            is_windowed: context.model().info().n_swa > 0,
            store,
            fields,
            sizes,
            options,
            rates,
            failed: false,
        })
    }

    /// Of a sequence in which nothing is.
    pub(crate) fn track(&self, seq: i32, tenant: &str) -> Track {
        let scope = self.scope(tenant);
        Track {
            seq,
            progress: Progress::new(&scope),
            scope,
            turn: Instant::now(),
            waited: Duration::ZERO,
            export_time: Duration::ZERO,
        }
    }

    fn scope(&self, tenant: &str) -> Scope {
        Scope::new(&ScopeFields { tenant: tenant.to_owned(), ..self.fields.clone() })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn fields(&self) -> &ScopeFields {
        &self.fields
    }

    pub(crate) fn options(&self) -> &KvOptions {
        &self.options
    }

    /// Whether idle conversations of so many tokens may stay in the context.
    pub(crate) fn fits(&self, hot: HotLimit, n_tokens: usize) -> bool {
        let n_tokens = n_tokens as u64;
        match hot {
            HotLimit::Tokens(limit) => n_tokens <= limit,
            HotLimit::Bytes(limit) => n_tokens * self.sizes.token_bytes <= limit,
        }
    }

    pub(crate) fn rates(&mut self) -> &mut Rates {
        &mut self.rates
    }

    /// The sequence was cut back to its first `keep` tokens.
    pub(crate) fn cut(&self, track: &mut Track, tokens: &[Token], keep: usize) {
        let solid = keep / self.sizes.block_tokens * self.sizes.block_tokens;
        let progress = &mut track.progress;
        if solid < progress.solid() {
            progress.chain = Chain::new(&track.scope);
            progress.chain.push(tokens.get(..solid).unwrap_or_default());
            progress.checked = progress.checked.min(solid);
            progress.tail = None;
        }
        // What the tail holds beyond is another branch now, and stays.
        if progress.tail.is_some_and(|(_, end)| end > keep) {
            progress.tail = None;
        }
        progress.checkpoint_at = progress.checkpoint_at.min(keep);
    }

    /// The sequence holds `tokens` now, restored from blocks of which this was the last.
    fn restored(&self, track: &mut Track, tokens: &[Token], last: Option<&FoundBlock>) {
        track.progress = Progress::new(&track.scope);
        let size = self.sizes.block_tokens;
        let solid = tokens.len() / size * size;
        track.progress.chain.push(&tokens[..solid]);
        track.progress.checkpoint_at = tokens.len();
        let is_tail = |block: &&FoundBlock| {
            block.from as usize == solid
                && block.from as usize + block.key.n_tokens as usize == tokens.len()
        };
        track.progress.tail = last.filter(is_tail).map(|block| (block.key, tokens.len()));
    }

    /// Tokens of a prompt were computed.
    pub(crate) fn prompt_grew(
        &mut self,
        track: &mut Track,
        context: &mut Context,
        tokens: &[Token],
    ) {
        let begin = Instant::now();
        self.prompt_grew_by(track, context, tokens);
        track.export_time += begin.elapsed();
    }

    fn prompt_grew_by(&mut self, track: &mut Track, context: &mut Context, tokens: &[Token]) {
        self.write_full(track, context, tokens);
        let grown = tokens.len().saturating_sub(track.progress.checkpoint_at);
        let enough = CHECKPOINT_TOKENS_MIN.max(tokens.len() / CHECKPOINT_SHARE);
        if self.shape.needs_checkpoint() && grown >= enough {
            self.write_end(track, context, tokens);
        }
    }

    /// A token of an answer was computed.
    pub(crate) fn answer_grew(
        &mut self,
        track: &mut Track,
        context: &mut Context,
        tokens: &[Token],
    ) {
        let begin = Instant::now();
        self.write_full(track, context, tokens);
        let every = if self.shape.needs_checkpoint() { CHECKPOINT_EVERY } else { TAIL_EVERY };
        if track.progress.written_at.elapsed() >= every {
            self.write_end(track, context, tokens);
        }
        track.export_time += begin.elapsed();
    }

    /// A turn ends, or a prompt does where state can't be cut: all of it is written.
    pub(crate) fn turn_ended(
        &mut self,
        track: &mut Track,
        context: &mut Context,
        tokens: &[Token],
    ) {
        self.write_full(track, context, tokens);
        self.write_end(track, context, tokens);
    }

    /// Whether a state before the answer is worth keeping: it can't be cut back to it.
    pub(crate) fn wants_prompt_end(&self) -> bool {
        self.shape.needs_checkpoint()
    }

    /// Offers again what the store has not: dropped, when the drive could not follow, or evicted.
    /// Does a little at a time; true if there may be more to do.
    pub(crate) fn refill(
        &mut self,
        track: &mut Track,
        context: &mut Context,
        tokens: &[Token],
    ) -> bool {
        if self.failed || self.is_windowed {
            return false;
        }
        if !self.store.flush(Duration::ZERO) {
            return true;
        }
        let behind = track.progress.solid();
        self.write_full(track, context, tokens);
        self.write_end(track, context, tokens);
        if track.progress.solid() > behind {
            return true;
        }
        let size = self.sizes.block_tokens;
        let mut chain = Chain::new(&track.scope);
        let mut offered = 0;
        let mut from = 0;
        while from + size <= track.progress.solid() && offered < BLOCKS_UNDER_WAY {
            let parent = chain.node();
            chain.push(&tokens[from..from + size]);
            if from >= track.progress.checked {
                let key = block_key(parent, &chain, size);
                if self.store.state(&key) == State::Miss {
                    if !self.write(track, context, tokens, from, key, Vec::new()) {
                        return false;
                    }
                    offered += 1;
                }
                track.progress.checked = from + size;
            }
            from += size;
        }
        offered > 0
    }

    /// Whether all of the sequence could be read back.
    pub(crate) fn has_all(&self, track: &Track, tokens: &[Token]) -> bool {
        let want =
            hypura_kv::Want { checkpoint: self.shape.needs_checkpoint(), tokens_max: tokens.len() };
        !self.failed && self.store.find(&track.scope, tokens, want).tokens == tokens.len()
    }

    /// Writes the blocks that are full, as many as there is room for: the others stay in the context
    /// until there is.
    fn write_full(&mut self, track: &mut Track, context: &mut Context, tokens: &[Token]) {
        let size = self.sizes.block_tokens;
        while !self.failed && track.progress.solid() + size <= tokens.len() {
            if !self.has_room(track, self.sizes.block_bytes) {
                break;
            }
            let from = track.progress.solid();
            let mut chain = track.progress.chain.clone();
            let parent = chain.node();
            chain.push(&tokens[from..from + size]);
            let key = block_key(parent, &chain, size);
            let replaced = self.replaced_tail(track);
            if self.store.state(&key) == State::Miss {
                self.write(track, context, tokens, from, key, replaced);
            }
            track.progress.chain = chain;
            track.progress.tail = None;
        }
    }

    /// Whether so many bytes may be written now. Waits a little where that keeps a long prompt's blocks
    /// from piling up, and longer where they could not be written later.
    fn has_room(&self, track: &mut Track, bytes: u64) -> bool {
        let must = self.is_windowed || self.shape.needs_checkpoint();
        let at_most = if must {
            FORGETFUL_WAIT_MAX
        } else {
            (track.turn.elapsed() / WAIT_SHARE).saturating_sub(track.waited)
        };
        let begin = Instant::now();
        let has_room = self.store.wait_for_room(bytes, at_most);
        track.waited += begin.elapsed();
        has_room || must
    }

    /// Writes what is not in full blocks, and a checkpoint where one is needed.
    fn write_end(&mut self, track: &mut Track, context: &mut Context, tokens: &[Token]) {
        track.progress.written_at = Instant::now();
        let from = track.progress.solid();
        // Full blocks come first, and none is dropped for what can wait.
        let has_full = tokens.len() - from >= self.sizes.block_tokens;
        if has_full || !self.has_room(track, self.sizes.block_bytes) {
            return;
        }
        let mut chain = track.progress.chain.clone();
        if from < tokens.len() && !self.failed {
            let parent = chain.node();
            chain.push(&tokens[from..]);
            let key = block_key(parent, &chain, tokens.len() - from);
            let replaced = self.replaced_tail(track);
            if self.store.state(&key) == State::Miss {
                self.write(track, context, tokens, from, key, replaced);
            }
            track.progress.tail = Some((key, tokens.len()));
        }
        if self.shape.needs_checkpoint() && !tokens.is_empty() && !self.failed {
            self.write_checkpoint(track, context, &chain);
        }
    }

    fn write_checkpoint(&mut self, track: &mut Track, context: &mut Context, chain: &Chain) {
        track.progress.checkpoint_at = chain.len();
        let node = chain.node();
        let key = BlockKey { parent: node, node, kind: BlockKind::Checkpoint, n_tokens: 0 };
        if self.store.state(&key) != State::Miss {
            return;
        }
        if !self.has_room(track, self.sizes.checkpoint_bytes) {
            return;
        }
        let mut payload = Vec::new();
        match context.export_checkpoint(&self.shape, track.seq, &mut payload) {
            Ok(()) => {
                let from = u32::try_from(chain.len()).unwrap_or(u32::MAX);
                let scope = track.scope;
                self.put(Block { key, scope, from, tokens: Vec::new(), payload }, Vec::new());
            }
            Err(error) => self.fail(&error),
        }
    }

    /// The tail that the next block replaces. A checkpoint needs its tail: they stay together.
    fn replaced_tail(&self, track: &Track) -> Vec<BlockKey> {
        if self.shape.needs_checkpoint() {
            return Vec::new();
        }
        track.progress.tail.iter().map(|(key, _)| *key).collect()
    }

    /// Hands a block of tokens from `from` on to the store; false if that is of no use.
    fn write(
        &mut self,
        track: &Track,
        context: &mut Context,
        tokens: &[Token],
        from: usize,
        key: BlockKey,
        replaced: Vec<BlockKey>,
    ) -> bool {
        let to = from + key.n_tokens as usize;
        let mut payload = Vec::new();
        match context.export_tokens(&self.shape, track.seq, from, to, &mut payload) {
            Ok(()) => {
                let tokens = tokens[from..to].to_vec();
                let from = u32::try_from(from).unwrap_or(u32::MAX);
                self.put(Block { key, scope: track.scope, from, tokens, payload }, replaced)
            }
            Err(StateError::Incomplete) => false,
            Err(error) => {
                self.fail(&error);
                false
            }
        }
    }

    fn put(&mut self, block: Block, replaced: Vec<BlockKey>) -> bool {
        matches!(self.store.put(block, replaced), Put::Queued | Put::Known)
    }

    /// State that can't be divided, or that llama.cpp refuses, is left alone from now on.
    fn fail(&mut self, error: &StateError) {
        if !self.failed {
            self.failed = true;
            tracing::warn!("attention state is not kept: {error}");
        }
    }
}

fn block_key(parent: hypura_kv::NodeId, chain: &Chain, n_tokens: usize) -> BlockKey {
    BlockKey {
        parent,
        node: chain.node(),
        kind: BlockKind::Tokens,
        n_tokens: u32::try_from(n_tokens).unwrap_or(u32::MAX),
    }
}
