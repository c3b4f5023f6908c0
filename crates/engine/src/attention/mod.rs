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

/// The tiers, and what of the present sequence is in them.
pub(crate) struct Attention {
    store: Store,
    scope: Scope,
    fields: ScopeFields,
    shape: StateShape,
    sizes: Sizes,
    options: KvOptions,
    /// Layers with a sliding window forget: what was dropped can't be written later.
    is_windowed: bool,
    rates: Rates,
    progress: Progress,
    /// When the turn began, and how long it has waited for the drive.
    turn: Instant,
    waited: Duration,
    export_time: Duration,
    /// Whether something went wrong that will again: nothing is written or read any more.
    failed: bool,
}

/// How far the present sequence is written.
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

impl Attention {
    pub(crate) fn new(
        context: &mut Context,
        store: Store,
        fields: ScopeFields,
        sizes: Sizes,
        options: KvOptions,
        rates: Rates,
    ) -> Result<Attention, StateError> {
        let shape = context.state_shape()?;
        let scope = Scope::new(&fields);
        Ok(Attention {
            progress: Progress::new(&scope),
            is_windowed: context.model().info().n_swa > 0,
            store,
            scope,
            fields,
            shape,
            sizes,
            options,
            rates,
            turn: Instant::now(),
            waited: Duration::ZERO,
            export_time: Duration::ZERO,
            failed: false,
        })
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

    /// Whether an idle conversation of so many tokens may stay in the context.
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
    pub(crate) fn cut(&mut self, tokens: &[Token], keep: usize) {
        let solid = keep / self.sizes.block_tokens * self.sizes.block_tokens;
        let progress = &mut self.progress;
        if solid < progress.solid() {
            progress.chain = Chain::new(&self.scope);
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
    fn restored(&mut self, tokens: &[Token], last: Option<&FoundBlock>) {
        self.progress = Progress::new(&self.scope);
        let size = self.sizes.block_tokens;
        let solid = tokens.len() / size * size;
        self.progress.chain.push(&tokens[..solid]);
        self.progress.checkpoint_at = tokens.len();
        let is_tail = |block: &&FoundBlock| {
            block.from as usize == solid
                && block.from as usize + block.key.n_tokens as usize == tokens.len()
        };
        self.progress.tail = last.filter(is_tail).map(|block| (block.key, tokens.len()));
    }

    /// From now on it is somebody else's state, of which nothing is in the context.
    pub(crate) fn set_tenant(&mut self, tenant: &str) {
        tenant.clone_into(&mut self.fields.tenant);
        self.scope = Scope::new(&self.fields);
        self.cleared();
    }

    /// Everything was forgotten.
    pub(crate) fn cleared(&mut self) {
        self.progress = Progress::new(&self.scope);
    }

    /// Tokens of a prompt were computed.
    pub(crate) fn prompt_grew(&mut self, context: &mut Context, tokens: &[Token]) {
        let begin = Instant::now();
        self.prompt_grew_by(context, tokens);
        self.export_time += begin.elapsed();
    }

    fn prompt_grew_by(&mut self, context: &mut Context, tokens: &[Token]) {
        self.write_full(context, tokens);
        let grown = tokens.len().saturating_sub(self.progress.checkpoint_at);
        let enough = CHECKPOINT_TOKENS_MIN.max(tokens.len() / CHECKPOINT_SHARE);
        if self.shape.needs_checkpoint() && grown >= enough {
            self.write_end(context, tokens);
        }
    }

    /// A token of an answer was computed.
    pub(crate) fn answer_grew(&mut self, context: &mut Context, tokens: &[Token]) {
        let begin = Instant::now();
        self.write_full(context, tokens);
        let every = if self.shape.needs_checkpoint() { CHECKPOINT_EVERY } else { TAIL_EVERY };
        if self.progress.written_at.elapsed() >= every {
            self.write_end(context, tokens);
        }
        self.export_time += begin.elapsed();
    }

    /// Time that the present turn gave to taking state out of the context, waiting included.
    pub(crate) fn export_time(&self) -> Duration {
        self.export_time
    }

    /// A turn ends, or a prompt does where state can't be cut: all of it is written.
    pub(crate) fn turn_ended(&mut self, context: &mut Context, tokens: &[Token]) {
        self.write_full(context, tokens);
        self.write_end(context, tokens);
    }

    /// Whether a state before the answer is worth keeping: it can't be cut back to it.
    pub(crate) fn wants_prompt_end(&self) -> bool {
        self.shape.needs_checkpoint()
    }

    /// Offers again what the store has not: dropped, when the drive could not follow, or evicted.
    /// Does a little at a time; true if there may be more to do.
    pub(crate) fn refill(&mut self, context: &mut Context, tokens: &[Token]) -> bool {
        if self.failed || self.is_windowed {
            return false;
        }
        if !self.store.flush(Duration::ZERO) {
            return true;
        }
        let behind = self.progress.solid();
        self.write_full(context, tokens);
        self.write_end(context, tokens);
        if self.progress.solid() > behind {
            return true;
        }
        let size = self.sizes.block_tokens;
        let mut chain = Chain::new(&self.scope);
        let mut offered = 0;
        let mut from = 0;
        while from + size <= self.progress.solid() && offered < BLOCKS_UNDER_WAY {
            let parent = chain.node();
            chain.push(&tokens[from..from + size]);
            if from >= self.progress.checked {
                let key = block_key(parent, &chain, size);
                if self.store.state(&key) == State::Miss {
                    if !self.write(context, tokens, from, key, Vec::new()) {
                        return false;
                    }
                    offered += 1;
                }
                self.progress.checked = from + size;
            }
            from += size;
        }
        offered > 0
    }

    /// Whether all of the sequence could be read back.
    pub(crate) fn has_all(&self, tokens: &[Token]) -> bool {
        let want =
            hypura_kv::Want { checkpoint: self.shape.needs_checkpoint(), tokens_max: tokens.len() };
        !self.failed && self.store.find(&self.scope, tokens, want).tokens == tokens.len()
    }

    /// Writes the blocks that are full, as many as there is room for: the others stay in the context
    /// until there is.
    fn write_full(&mut self, context: &mut Context, tokens: &[Token]) {
        let size = self.sizes.block_tokens;
        while !self.failed && self.progress.solid() + size <= tokens.len() {
            if !self.has_room(self.sizes.block_bytes) {
                break;
            }
            let from = self.progress.solid();
            let mut chain = self.progress.chain.clone();
            let parent = chain.node();
            chain.push(&tokens[from..from + size]);
            let key = block_key(parent, &chain, size);
            let replaced = self.replaced_tail();
            if self.store.state(&key) == State::Miss {
                self.write(context, tokens, from, key, replaced);
            }
            self.progress.chain = chain;
            self.progress.tail = None;
        }
    }

    /// Whether so many bytes may be written now. Waits a little where that keeps a long prompt's blocks
    /// from piling up, and longer where they could not be written later.
    fn has_room(&mut self, bytes: u64) -> bool {
        let must = self.is_windowed || self.shape.needs_checkpoint();
        let at_most = if must {
            FORGETFUL_WAIT_MAX
        } else {
            (self.turn.elapsed() / WAIT_SHARE).saturating_sub(self.waited)
        };
        let begin = Instant::now();
        let has_room = self.store.wait_for_room(bytes, at_most);
        self.waited += begin.elapsed();
        has_room || must
    }

    /// A turn begins.
    pub(crate) fn turn_begins(&mut self) {
        self.turn = Instant::now();
        self.waited = Duration::ZERO;
        self.export_time = Duration::ZERO;
    }

    /// Writes what is not in full blocks, and a checkpoint where one is needed.
    fn write_end(&mut self, context: &mut Context, tokens: &[Token]) {
        self.progress.written_at = Instant::now();
        let from = self.progress.solid();
        // Full blocks come first, and none is dropped for what can wait.
        let has_full = tokens.len() - from >= self.sizes.block_tokens;
        if has_full || !self.has_room(self.sizes.block_bytes) {
            return;
        }
        let mut chain = self.progress.chain.clone();
        if from < tokens.len() && !self.failed {
            let parent = chain.node();
            chain.push(&tokens[from..]);
            let key = block_key(parent, &chain, tokens.len() - from);
            let replaced = self.replaced_tail();
            if self.store.state(&key) == State::Miss {
                self.write(context, tokens, from, key, replaced);
            }
            self.progress.tail = Some((key, tokens.len()));
        }
        if self.shape.needs_checkpoint() && !tokens.is_empty() && !self.failed {
            self.write_checkpoint(context, &chain);
        }
    }

    fn write_checkpoint(&mut self, context: &mut Context, chain: &Chain) {
        self.progress.checkpoint_at = chain.len();
        let node = chain.node();
        let key = BlockKey { parent: node, node, kind: BlockKind::Checkpoint, n_tokens: 0 };
        if self.store.state(&key) != State::Miss {
            return;
        }
        if !self.has_room(self.sizes.checkpoint_bytes) {
            return;
        }
        let mut payload = Vec::new();
        match context.export_checkpoint(&self.shape, &mut payload) {
            Ok(()) => {
                let from = u32::try_from(chain.len()).unwrap_or(u32::MAX);
                let scope = self.scope;
                self.put(Block { key, scope, from, tokens: Vec::new(), payload }, Vec::new());
            }
            Err(error) => self.fail(&error),
        }
    }

    /// The tail that the next block replaces. A checkpoint needs its tail: they stay together.
    fn replaced_tail(&self) -> Vec<BlockKey> {
        if self.shape.needs_checkpoint() {
            return Vec::new();
        }
        self.progress.tail.iter().map(|(key, _)| *key).collect()
    }

    /// Hands a block of tokens from `from` on to the store; false if that is of no use.
    fn write(
        &mut self,
        context: &mut Context,
        tokens: &[Token],
        from: usize,
        key: BlockKey,
        replaced: Vec<BlockKey>,
    ) -> bool {
        let to = from + key.n_tokens as usize;
        let mut payload = Vec::new();
        match context.export_tokens(&self.shape, from, to, &mut payload) {
            Ok(()) => {
                let tokens = tokens[from..to].to_vec();
                let from = u32::try_from(from).unwrap_or(u32::MAX);
                self.put(Block { key, scope: self.scope, from, tokens, payload }, replaced)
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
