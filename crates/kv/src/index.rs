//! Which blocks there are, and where: in memory, in the folder, or both.
//!
//! The index does no I/O and knows no clock. Whoever removes a file tells it first, so that what
//! is found next is still there.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::memory::MemBlock;
use crate::name::{BlockId, ShortNode};
use crate::{BlockKind, NodeId, Token};

/// Tokens remembered at most of blocks that are only in the folder; beyond that all are forgotten.
const MEMO_TOKENS_MAX: usize = 4 << 20;

/// When a block was used last: a time in nanoseconds since 1970, and what came after what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Used {
    pub(crate) unix_ns: u64,
    sequence: u64,
}

/// Blocks used within this time of each other go in the order of their depth.
const SAME_TIME_NS: u64 = 60 * 1_000_000_000;

/// Which file goes first: of those used longest ago the deepest, since without a block those after
/// it are of no use. A folder's names and times say it all, so that a restart changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ColdOrder {
    minute: u64,
    depth: Reverse<u32>,
    used: Used,
}

/// A block's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ColdFile {
    pub(crate) bytes: u64,
    pub(crate) modified_unix_ns: u64,
    /// False once the drive failed to read it: it takes room, but is not found.
    pub(crate) is_readable: bool,
}

/// What is known of a block.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) from: u32,
    pub(crate) used: Used,
    pub(crate) cold: Option<ColdFile>,
    memory: Option<Arc<MemBlock>>,
    is_pending: bool,
    /// Of a block in the folder whose header was read.
    memo: Option<(NodeId, Arc<[Token]>)>,
}

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// In memory, waiting to be written.
    Pending,
    /// In memory.
    Hot,
    /// In the folder.
    Cold,
}

impl Entry {
    /// The fastest place that it can be had from.
    pub(crate) fn tier(&self) -> Option<Tier> {
        match &self.memory {
            Some(_) if self.is_pending => Some(Tier::Pending),
            Some(_) => Some(Tier::Hot),
            None => self.is_in_folder().then_some(Tier::Cold),
        }
    }

    fn cold_order(&self) -> ColdOrder {
        let (minute, depth) = (self.used.unix_ns / SAME_TIME_NS, Reverse(self.from));
        ColdOrder { minute, depth, used: self.used }
    }

    pub(crate) fn memory(&self) -> Option<&Arc<MemBlock>> {
        self.memory.as_ref()
    }

    pub(crate) fn is_in_folder(&self) -> bool {
        self.cold.is_some_and(|file| file.is_readable)
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.is_pending
    }

    /// Its node and tokens, if they are known without a look at the file.
    pub(crate) fn tokens(&self) -> Option<(NodeId, &[Token])> {
        let in_memory = self.memory.as_ref().map(|block| (block.key.node, block.tokens.as_slice()));
        in_memory.or_else(|| self.memo.as_ref().map(|(node, tokens)| (*node, &**tokens)))
    }

    /// Bytes that reading it moves.
    pub(crate) fn bytes(&self) -> u64 {
        let in_memory = self.memory.as_ref().map(|block| block.image_bytes());
        in_memory.or(self.cold.map(|file| file.bytes)).unwrap_or_default()
    }
}

/// All blocks.
#[derive(Debug, Default)]
pub(crate) struct Index {
    entries: HashMap<BlockId, Entry>,
    children: HashMap<ShortNode, Vec<BlockId>>,
    cold_order: BTreeSet<(ColdOrder, BlockId)>,
    hot_order: BTreeSet<(Used, BlockId)>,
    pins: HashMap<BlockId, u32>,
    sequence: u64,
    memo_tokens: usize,
    hot_bytes_max: u64,
    cold_bytes: u64,
    hot_bytes: u64,
    pending_bytes: u64,
}

impl Index {
    pub(crate) fn new(hot_bytes_max: u64) -> Index {
        Index { hot_bytes_max, ..Index::default() }
    }

    pub(crate) fn get(&self, id: &BlockId) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// The blocks of tokens that go on from a node.
    pub(crate) fn children(&self, parent: &ShortNode) -> &[BlockId] {
        self.children.get(parent).map(Vec::as_slice).unwrap_or_default()
    }

    pub(crate) fn cold_bytes(&self) -> u64 {
        self.cold_bytes
    }

    pub(crate) fn cold_files(&self) -> u64 {
        self.cold_order.len() as u64
    }

    pub(crate) fn hot_bytes(&self) -> u64 {
        self.hot_bytes
    }

    pub(crate) fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Everything that has a file.
    pub(crate) fn cold_ids(&self) -> impl Iterator<Item = BlockId> {
        self.cold_order.iter().map(|&(_, id)| id)
    }

    /// Notes that a block was used; it is then the last to go.
    pub(crate) fn touch(&mut self, id: &BlockId, unix_ns: u64) {
        self.sequence += 1;
        let used = Used { unix_ns, sequence: self.sequence };
        self.set_used(id, used);
    }

    fn set_used(&mut self, id: &BlockId, used: Used) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let is_cold = self.cold_order.remove(&(entry.cold_order(), *id));
        let is_hot = self.hot_order.remove(&(entry.used, *id));
        entry.used = used;
        if is_cold {
            self.cold_order.insert((entry.cold_order(), *id));
        }
        if is_hot {
            self.hot_order.insert((used, *id));
        }
    }

    /// Notes a block's file, new or known.
    pub(crate) fn set_cold(&mut self, id: BlockId, from: u32, file: ColdFile) {
        self.ensure(id, from);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let before = entry.cold.replace(file);
        self.cold_bytes = self.cold_bytes + file.bytes - before.map_or(0, |file| file.bytes);
        self.cold_order.insert((entry.cold_order(), id));
        let used = entry.used;
        // Somebody else may have used it since.
        if used.unix_ns < file.modified_unix_ns {
            self.set_used(&id, Used { unix_ns: file.modified_unix_ns, sequence: used.sequence });
        }
    }

    /// Forgets a block's file; whether there was one.
    pub(crate) fn remove_cold(&mut self, id: &BlockId) -> Option<ColdFile> {
        let entry = self.entries.get_mut(id)?;
        let file = entry.cold.take()?;
        self.cold_bytes -= file.bytes;
        self.cold_order.remove(&(entry.cold_order(), *id));
        self.forget_memo(id);
        self.drop_if_empty(id);
        Some(file)
    }

    /// Notes that a file can't be read.
    pub(crate) fn set_unreadable(&mut self, id: &BlockId) {
        if let Some(file) = self.entries.get_mut(id).and_then(|entry| entry.cold.as_mut()) {
            file.is_readable = false;
        }
    }

    /// Notes the time that a file was given.
    pub(crate) fn set_modified(&mut self, id: &BlockId, unix_ns: u64) {
        if let Some(file) = self.entries.get_mut(id).and_then(|entry| entry.cold.as_mut()) {
            file.modified_unix_ns = unix_ns;
        }
    }

    /// The file that goes first, of those that nobody holds.
    pub(crate) fn victim(&self) -> Option<BlockId> {
        self.cold_order.iter().map(|&(_, id)| id).find(|id| !self.is_pinned(id))
    }

    /// Keeps a block in memory until it is written.
    pub(crate) fn insert_pending(&mut self, id: BlockId, block: Arc<MemBlock>) {
        self.remove_memory(&id);
        self.ensure(id, block.from);
        self.pending_bytes += block.memory_bytes();
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.memory = Some(block);
            entry.is_pending = true;
        }
    }

    /// Keeps a block in memory as long as there is room, which older ones make; whether it does.
    pub(crate) fn insert_hot(&mut self, id: BlockId, block: Arc<MemBlock>) -> bool {
        self.remove_memory(&id);
        let bytes = block.memory_bytes();
        if bytes > self.hot_bytes_max {
            return false;
        }
        self.trim_hot(self.hot_bytes_max - bytes);
        if self.hot_bytes + bytes > self.hot_bytes_max {
            return false; // the others are held
        }
        self.ensure(id, block.from);
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.memory = Some(block);
        self.hot_bytes += bytes;
        self.hot_order.insert((entry.used, id));
        true
    }

    /// A pending block is pending no longer: it is kept as long as there is room.
    pub(crate) fn settle(&mut self, id: &BlockId) {
        let Some(entry) = self.entries.get(id).filter(|entry| entry.is_pending) else { return };
        let used = entry.used;
        if let Some(block) = entry.memory.clone()
            && self.insert_hot(*id, block)
        {
            self.set_used(id, used);
        }
    }

    /// Takes a block out of memory.
    pub(crate) fn remove_memory(&mut self, id: &BlockId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let Some(block) = entry.memory.take() else { return };
        if std::mem::take(&mut entry.is_pending) {
            self.pending_bytes -= block.memory_bytes();
        } else {
            self.hot_bytes -= block.memory_bytes();
            self.hot_order.remove(&(entry.used, *id));
        }
        self.drop_if_empty(id);
    }

    /// Bounds what is kept in memory from now on.
    pub(crate) fn set_hot_bytes_max(&mut self, bytes: u64) {
        self.hot_bytes_max = bytes;
        self.trim_hot(bytes);
    }

    /// Whether a block of this size can be kept in memory at all.
    pub(crate) fn may_keep(&self, bytes: u64) -> bool {
        bytes <= self.hot_bytes_max
    }

    fn trim_hot(&mut self, bytes_max: u64) {
        while self.hot_bytes > bytes_max {
            let oldest = self.hot_order.iter().map(|&(_, id)| id).find(|id| !self.is_pinned(id));
            let Some(id) = oldest else { return };
            self.remove_memory(&id);
        }
    }

    /// Remembers the tokens of a block whose header was read.
    pub(crate) fn set_memo(&mut self, id: &BlockId, node: NodeId, tokens: Arc<[Token]>) {
        if self.memo_tokens + tokens.len() > MEMO_TOKENS_MAX {
            self.entries.values_mut().for_each(|entry| entry.memo = None);
            self.memo_tokens = 0;
        }
        self.forget_memo(id);
        if let Some(entry) = self.entries.get_mut(id) {
            self.memo_tokens += tokens.len();
            entry.memo = Some((node, tokens));
        }
    }

    fn forget_memo(&mut self, id: &BlockId) {
        let memo = self.entries.get_mut(id).and_then(|entry| entry.memo.take());
        self.memo_tokens -= memo.map_or(0, |(_, tokens)| tokens.len());
    }

    /// Keeps a block from being evicted, once more.
    pub(crate) fn pin(&mut self, id: BlockId) {
        *self.pins.entry(id).or_default() += 1;
    }

    /// Undoes one [`Index::pin`].
    pub(crate) fn unpin(&mut self, id: &BlockId) {
        let Some(pins) = self.pins.get_mut(id) else { return };
        *pins -= 1;
        if *pins == 0 {
            self.pins.remove(id);
            self.trim_hot(self.hot_bytes_max);
        }
    }

    pub(crate) fn is_pinned(&self, id: &BlockId) -> bool {
        self.pins.contains_key(id)
    }

    fn ensure(&mut self, id: BlockId, from: u32) {
        if self.entries.contains_key(&id) {
            return;
        }
        self.entries.insert(id, Entry { from, ..Entry::default() });
        if id.kind == BlockKind::Tokens {
            self.children.entry(id.parent).or_default().push(id);
        }
    }

    fn drop_if_empty(&mut self, id: &BlockId) {
        let Some(entry) = self.entries.get(id) else { return };
        if entry.cold.is_some() || entry.memory.is_some() {
            return;
        }
        self.forget_memo(id);
        self.entries.remove(id);
        if let Some(siblings) = self.children.get_mut(&id.parent) {
            siblings.retain(|sibling| sibling != id);
            if siblings.is_empty() {
                self.children.remove(&id.parent);
            }
        }
    }
}
