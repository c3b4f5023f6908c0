//! Finding the longest known way along the tokens of a prompt.
//!
//! A node is named by the tokens before it, so that along one prompt there is one node for each
//! number of tokens, whatever the blocks are that lead there: the search is over positions. From
//! the root it follows blocks whose child is named by the next tokens, longest first. Where it can
//! go no further, and the end need not be a node, a block that begins like the rest of the prompt
//! gives a part of itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::block::{HEADER_BYTES, Header};
use crate::chain::Chain;
use crate::clock::unix_ns;
use crate::index::Tier;
use crate::memory::MemBlock;
use crate::name::{BlockId, short};
use crate::shared::{Inner, Shared};
use crate::{BlockKey, BlockKind, NodeId, Scope, Store, Token};

/// Nodes that a search visits at most.
const NODES_VISITED_MAX: usize = 1 << 14;

/// Blocks after a node that are compared with the rest of the prompt at most; also headers that
/// are read for that in a search. Those used last come first.
pub const PARTIAL_CANDIDATES_MAX: usize = 64;

/// How often a search sees whether somebody else changed the folder.
const LOOK_AFTER_NS: u64 = 1_000_000_000;

/// What a search is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The end must be a node that has a checkpoint, and no block may be used in part.
    pub checkpoint: bool,
    /// Tokens at most.
    pub tokens_max: usize,
}

/// What can be restored.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// How many of the tokens.
    pub tokens: usize,
    /// The blocks that lead there, each after the one before it.
    pub blocks: Vec<FoundBlock>,
    /// The checkpoint at the end, if one was wanted.
    pub checkpoint: Option<FoundBlock>,
}

/// A block that was found. While it lives, this process doesn't evict the block.
#[derive(Clone)]
pub struct FoundBlock {
    /// Its name.
    pub key: BlockKey,
    /// Tokens before it.
    pub from: u32,
    /// How many of its tokens are wanted: all but in the last block; 0 of a checkpoint.
    pub used_tokens: u32,
    /// Bytes of its file.
    pub bytes: u64,
    /// Where it was found.
    pub tier: Tier,
    pub(crate) id: BlockId,
    pub(crate) scope: Scope,
    /// What its first tokens must be.
    pub(crate) expected: Arc<[Token]>,
    pub(crate) memory: Option<Arc<MemBlock>>,
    _pin: Arc<Pin>,
}

impl fmt::Debug for FoundBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoundBlock")
            .field("key", &self.key)
            .field("from", &self.from)
            .field("used_tokens", &self.used_tokens)
            .field("bytes", &self.bytes)
            .field("tier", &self.tier)
            .finish_non_exhaustive()
    }
}

struct Pin {
    shared: Arc<Shared>,
    id: BlockId,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.shared.lock().index.unpin(&self.id);
    }
}

/// A prompt and what is wanted of it.
struct Search<'a> {
    scope: &'a Scope,
    tokens: &'a [Token],
    /// Tokens that count.
    limit: usize,
    checkpoint: bool,
}

/// A node that can be reached.
#[derive(Clone, Copy)]
struct Reached {
    node: NodeId,
    /// The position before, and the block from there.
    via: Option<(usize, BlockId)>,
}

/// A block of which the first tokens can be used.
#[derive(Clone, Copy)]
struct Partial {
    at: usize,
    id: BlockId,
    node: NodeId,
    used_tokens: usize,
}

/// A block of which the header has to be read to say more.
struct Unread {
    at: usize,
    parent: NodeId,
    id: BlockId,
    from: u32,
}

#[derive(Default)]
struct Way {
    nodes: BTreeMap<usize, Reached>,
    partial: Option<Partial>,
    unread: Vec<Unread>,
}

impl Store {
    /// The longest way along `tokens` for which there are blocks.
    ///
    /// Reads nothing but the headers of a few blocks at the end, and those once.
    pub fn find(&self, scope: &Scope, tokens: &[Token], want: Want) -> Found {
        self.shared.look_at_folder();
        let limit = tokens.len().min(want.tokens_max);
        let search = Search { scope, tokens, limit, checkpoint: want.checkpoint };
        let mut inner = self.shared.lock();
        let mut way = search.way(&inner);
        if !way.unread.is_empty() {
            drop(inner);
            search.read_headers(&self.shared, std::mem::take(&mut way.unread));
            inner = self.shared.lock();
            way = search.way(&inner);
        }
        let picked = search.pick(&inner, &way);
        let ids: Vec<BlockId> = picked.iter().rev().map(|(_, key, ..)| BlockId::of(key)).collect();
        self.shared.note_use(&mut inner, ids.into_iter());
        let mut found = Found::default();
        for (from, key, used_tokens) in picked {
            let Some(block) = search.hold(&self.shared, &mut inner, from, key, used_tokens) else {
                break;
            };
            match key.kind {
                BlockKind::Tokens => {
                    found.tokens = from + used_tokens;
                    found.blocks.push(block);
                }
                BlockKind::Checkpoint => found.checkpoint = Some(block),
            }
        }
        found
    }
}

impl Search<'_> {
    fn way(&self, inner: &Inner) -> Way {
        let mut way = Way { nodes: self.reach(inner), ..Way::default() };
        if !self.checkpoint {
            self.look_further(inner, &mut way);
        }
        way
    }

    /// The nodes that whole blocks lead to.
    fn reach(&self, inner: &Inner) -> BTreeMap<usize, Reached> {
        let root = Chain::new(self.scope);
        let mut nodes = BTreeMap::from([(0, Reached { node: root.node(), via: None })]);
        let mut stack = vec![root];
        while let Some(chain) = stack.pop() {
            let (at, parent) = (chain.len(), short(&chain.node()));
            for (child, id) in self.exact(inner, chain, &parent, self.limit) {
                if nodes.len() >= NODES_VISITED_MAX {
                    return nodes;
                }
                nodes.entry(child.len()).or_insert_with(|| {
                    let reached = Reached { node: child.node(), via: Some((at, id)) };
                    stack.push(child); // the longest last, so that it is the next
                    reached
                });
            }
        }
        nodes
    }

    /// The blocks after a node that the next tokens name, shortest first, as far as `limit`.
    fn exact(
        &self,
        inner: &Inner,
        mut chain: Chain,
        parent: &[u8; 16],
        limit: usize,
    ) -> Vec<(Chain, BlockId)> {
        let children = inner.index.children(parent);
        let lengths: BTreeSet<u32> = children.iter().map(|id| id.n_tokens).collect();
        let start = chain.len();
        let mut found = Vec::new();
        for n_tokens in lengths {
            let end = start.saturating_add(n_tokens as usize);
            let Some(tokens) = self.tokens.get(chain.len()..end).filter(|_| end <= limit) else {
                break;
            };
            chain.push(tokens);
            let node = short(&chain.node());
            let id = BlockId { parent: *parent, node, kind: BlockKind::Tokens, n_tokens };
            if is_available(inner, &id) {
                found.push((chain.clone(), id));
            }
        }
        found
    }

    /// Looks for a block that reaches beyond the last node with a part of itself; what could, had
    /// its header been read, goes to `unread`.
    fn look_further(&self, inner: &Inner, way: &mut Way) {
        let mut best = way.nodes.keys().next_back().copied().unwrap_or_default();
        for (&at, reached) in way.nodes.iter().rev() {
            let parent = short(&reached.node);
            let reach = |id: &BlockId| self.limit.min(at.saturating_add(id.n_tokens as usize));
            if let Some((node, id)) = self.beyond_limit(inner, at, &parent) {
                if self.limit > best {
                    let used_tokens = self.limit - at;
                    way.partial = Some(Partial { at, id, node, used_tokens });
                }
                way.unread.clear();
                return;
            }
            let children = inner.index.children(&parent).iter();
            let mut candidates: Vec<BlockId> = children
                .copied()
                .filter(|id| reach(id) > best && is_available(inner, id))
                .collect();
            let used = |id: &BlockId| Reverse(inner.index.get(id).map(|entry| entry.used));
            candidates.sort_by_cached_key(used);
            candidates.truncate(PARTIAL_CANDIDATES_MAX);
            for id in candidates.into_iter().filter(|id| reach(id) > at) {
                let Some(entry) = inner.index.get(&id) else { continue };
                let Some((node, tokens)) = entry.tokens() else {
                    if way.unread.len() < PARTIAL_CANDIDATES_MAX {
                        let from = entry.from;
                        way.unread.push(Unread { at, parent: reached.node, id, from });
                    }
                    continue;
                };
                let rest = self.tokens.get(at..self.limit).unwrap_or_default();
                let used_tokens = common_prefix(tokens, rest);
                if used_tokens > 0 && at + used_tokens > best {
                    best = at + used_tokens;
                    way.partial = Some(Partial { at, id, node, used_tokens });
                }
            }
        }
        // What can't reach further than what is known needs no look.
        way.unread.retain(|unread| unread.at + unread.id.n_tokens as usize > best);
        if best >= self.limit {
            way.unread.clear();
        }
    }

    /// A block that the next tokens name, but that ends beyond the limit.
    fn beyond_limit(
        &self,
        inner: &Inner,
        at: usize,
        parent: &[u8; 16],
    ) -> Option<(NodeId, BlockId)> {
        let reaches = |id: &BlockId| at.saturating_add(id.n_tokens as usize) > self.limit;
        let is_possible = at < self.limit && self.limit < self.tokens.len();
        if !is_possible || !inner.index.children(parent).iter().any(reaches) {
            return None;
        }
        let chain = self.chain(at);
        let exact = self.exact(inner, chain, parent, self.tokens.len());
        let beyond = exact.into_iter().find(|(chain, _)| chain.len() > self.limit);
        beyond.map(|(chain, id)| (chain.node(), id))
    }

    fn chain(&self, at: usize) -> Chain {
        let mut chain = Chain::new(self.scope);
        chain.push(self.tokens.get(..at).unwrap_or_default());
        chain
    }

    /// Reads headers and remembers the tokens in them. What is damaged is removed.
    fn read_headers(&self, shared: &Shared, unread: Vec<Unread>) {
        let mut chain = self.chain(0);
        for Unread { at, parent, id, from } in unread {
            if chain.len() != at {
                chain = self.chain(at);
            }
            let path = shared.path(id, from);
            let page = match shared.disk.read_start(&path, HEADER_BYTES) {
                Ok(page) => page,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    shared.lock().forget_file(&id);
                    continue;
                }
                Err(error) => {
                    tracing::debug!(path = %path.display(), "can't read a block: {error}");
                    continue;
                }
            };
            let sound = Header::decode(&page).ok().filter(|header| {
                let mut child = chain.clone();
                child.push(&header.tokens);
                let place = (header.scope, header.key.parent, header.from);
                place == (*self.scope, parent, from)
                    && BlockId::of(&header.key) == id
                    && child.node() == header.key.node
            });
            match sound {
                Some(Header { key, tokens, .. }) => {
                    shared.lock().index.set_memo(&id, key.node, tokens.into());
                }
                None => shared.remove_damaged(id, from),
            }
        }
    }

    /// The blocks to deliver: position, name and used tokens.
    fn pick(&self, inner: &Inner, way: &Way) -> Vec<(usize, BlockKey, usize)> {
        let has_checkpoint =
            |node: &NodeId| is_available(inner, &BlockId::of(&BlockKey::checkpoint(*node)));
        let mut picked = Vec::new();
        let mut at = 0;
        if self.checkpoint {
            let mut ends = way.nodes.iter().rev();
            if let Some((&end, reached)) =
                ends.find(|(end, reached)| **end > 0 && has_checkpoint(&reached.node))
            {
                at = end;
                picked.push((end, BlockKey::checkpoint(reached.node), 0));
            }
        } else if let Some(Partial { at: from, id, node, used_tokens }) = way.partial {
            at = from;
            if let Some(reached) = way.nodes.get(&from) {
                picked.push((from, BlockKey::tokens(reached.node, node, id.n_tokens), used_tokens));
            }
        } else if let Some((&end, _)) = way.nodes.iter().next_back() {
            at = end;
        }
        while let Some(Reached { node, via: Some((before, id)) }) = way.nodes.get(&at) {
            let Some(parent) = way.nodes.get(before) else { break };
            let key = BlockKey::tokens(parent.node, *node, id.n_tokens);
            picked.push((*before, key, id.n_tokens as usize));
            at = *before;
        }
        picked.reverse();
        picked
    }

    fn hold(
        &self,
        shared: &Arc<Shared>,
        inner: &mut Inner,
        from: usize,
        key: BlockKey,
        used_tokens: usize,
    ) -> Option<FoundBlock> {
        let id = BlockId::of(&key);
        let entry = inner.index.get(&id)?;
        let block = (entry.tier()?, entry.bytes(), entry.memory().cloned());
        let from_u32 = u32::try_from(from).ok()?;
        let used_u32 = u32::try_from(used_tokens).ok()?;
        let expected = self.tokens.get(from..from + used_tokens)?.into();
        let (tier, bytes, memory) = block;
        inner.index.pin(id);
        Some(FoundBlock {
            key,
            from: from_u32,
            used_tokens: used_u32,
            bytes,
            tier,
            id,
            scope: *self.scope,
            expected,
            memory,
            _pin: Arc::new(Pin { shared: Arc::clone(shared), id }),
        })
    }
}

impl Shared {
    /// Has the writer list the folder if somebody else changed it; what is new is found the next
    /// time.
    fn look_at_folder(&self) {
        if self.config.cold.is_none() {
            return;
        }
        let now_ns = unix_ns(&*self.clock);
        {
            let mut inner = self.lock();
            if now_ns.abs_diff(inner.looked_unix_ns) < LOOK_AFTER_NS {
                return;
            }
            inner.looked_unix_ns = now_ns;
        }
        if let Ok(modified_unix_ns) = self.disk.dir_modified_unix_ns(self.dir()) {
            let mut inner = self.lock();
            if inner.scanned_unix_ns != modified_unix_ns && !inner.is_busy {
                inner.wants_scan = true;
                self.work.notify_one();
            }
        }
    }
}

fn is_available(inner: &Inner, id: &BlockId) -> bool {
    inner.index.get(id).is_some_and(|entry| entry.tier().is_some())
}

fn common_prefix(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
