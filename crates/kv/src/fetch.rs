//! Delivering what was found: in order, checked, with several reads in flight.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hypura_io::{
    Buffer, Completion, OpenError, QueueFull, ReadEngine, ReadError, ReadRequest, Wait,
};

use crate::block::{BlockError, HEADER_BYTES, Header, check_image_bytes};
use crate::find::{Found, FoundBlock};
use crate::index::Tier;
use crate::memory::MemBlock;
use crate::shared::Shared;
use crate::store::READ_DEPTH_MAX;
use crate::{BlockKey, BlockKind, Store, Token};

/// A recycled buffer is taken for a read of at least this part of it: one half.
const BUFFER_WASTE_MAX: usize = 2;

/// A block can't be delivered. Unless memory or an engine is what was missing, it is not found any
/// more, until it is put again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Its file is gone: somebody else removed it.
    #[error("there is no block {} any more; compute it again", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Its file holds something else. It was removed.
    #[error("the block {} was damaged and is removed: {source}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BlockError,
    },
    /// The drive or the system failed.
    #[error("can't read the block {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Delivers blocks; see [`Store::fetch`].
pub struct Fetch {
    shared: Arc<Shared>,
    skip_tokens: usize,
    blocks: VecDeque<FoundBlock>,
    /// What comes next, begun already.
    begun: VecDeque<Begun>,
    engine: Option<Box<dyn ReadEngine>>,
    arrived: HashMap<u64, Completion>,
    next_tag: u64,
    spare: Arc<Spare>,
}

struct Begun {
    block: FoundBlock,
    source: Source,
}

enum Source {
    Memory(Arc<MemBlock>, Tier),
    Reading { tag: u64, path: PathBuf, bytes: usize },
    Failed(FetchError),
}

/// A block that was delivered.
pub struct Fetched {
    /// Its name.
    pub key: BlockKey,
    /// Tokens before it.
    pub from: u32,
    /// How many of its tokens were wanted.
    pub used_tokens: u32,
    /// Where it was.
    pub tier: Tier,
    /// Taken when this is dropped.
    block: Option<Arc<MemBlock>>,
    spare: Arc<Spare>,
}

impl Fetched {
    /// Its tokens, all of them; none of a checkpoint.
    pub fn tokens(&self) -> &[Token] {
        self.block.as_ref().map(|block| block.tokens.as_slice()).unwrap_or_default()
    }

    /// The payload that was put.
    pub fn payload(&self) -> &[u8] {
        self.block.as_ref().map(|block| block.payload()).unwrap_or_default()
    }
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched")
            .field("key", &self.key)
            .field("from", &self.from)
            .field("used_tokens", &self.used_tokens)
            .field("tier", &self.tier)
            .field("payload_bytes", &self.payload().len())
            .finish()
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if let Some(buffer) = self.block.take().and_then(MemBlock::into_buffer) {
            self.spare.give(buffer);
        }
    }
}

impl Store {
    /// Delivers the blocks of `found` that reach beyond `skip_tokens`, then its checkpoint, in
    /// order. Files are read ahead; nothing is read before the first [`Fetch::next`].
    pub fn fetch(&self, found: &Found, skip_tokens: usize) -> Fetch {
        let reaches = |block: &&FoundBlock| {
            (block.from as usize).saturating_add(block.used_tokens as usize) > skip_tokens
        };
        let blocks = found.blocks.iter().filter(reaches).chain(&found.checkpoint);
        let depth = self.shared.config.read_depth.clamp(1, READ_DEPTH_MAX);
        Fetch {
            shared: Arc::clone(&self.shared),
            skip_tokens,
            blocks: blocks.cloned().collect(),
            begun: VecDeque::new(),
            engine: None,
            arrived: HashMap::new(),
            next_tag: 0,
            spare: Arc::new(Spare { buffers: Mutex::default(), buffers_max: depth }),
        }
    }
}

impl Fetch {
    /// The next block; `None` after the last one, and after an error.
    #[expect(clippy::should_implement_trait, reason = "named as its callers know it")]
    pub fn next(&mut self) -> Option<Result<Fetched, FetchError>> {
        self.begin();
        let Begun { block, source } = self.begun.pop_front()?;
        let delivered = match source {
            Source::Memory(memory, tier) => Ok((memory, tier)),
            Source::Reading { tag, path, bytes } => {
                self.receive(&block, tag, path, bytes).map(|memory| (memory, Tier::Cold))
            }
            Source::Failed(error) => Err(error),
        };
        let result = delivered.and_then(|(memory, tier)| self.deliver(&block, memory, tier));
        if result.is_err() {
            self.end();
        }
        Some(result)
    }

    /// Begins as much as may be in flight.
    fn begin(&mut self) {
        let depth = self.spare.buffers_max;
        while self.begun.len() < depth
            && let Some(block) = self.blocks.pop_front()
        {
            let source = match self.in_memory(&block) {
                Some((memory, tier)) => Source::Memory(memory, tier),
                None => match self.submit(&block) {
                    Ok(Some(source)) => source,
                    Ok(None) => {
                        self.blocks.push_front(block); // the engine has its hands full
                        return;
                    }
                    Err(error) => Source::Failed(error),
                },
            };
            self.begun.push_back(Begun { block, source });
        }
    }

    /// A block that was in memory when it was found, or is by now.
    fn in_memory(&self, block: &FoundBlock) -> Option<(Arc<MemBlock>, Tier)> {
        if let Some(memory) = &block.memory {
            return Some((Arc::clone(memory), block.tier));
        }
        let inner = self.shared.lock();
        let entry = inner.index.get(&block.id)?;
        Some((Arc::clone(entry.memory()?), entry.tier()?))
    }

    fn submit(&mut self, block: &FoundBlock) -> Result<Option<Source>, FetchError> {
        let path = self.shared.path(block.id, block.from);
        let file = match self.shared.disk.open(&path) {
            Ok(file) => file,
            Err(OpenError::NotFound { .. }) => {
                self.shared.lock().forget_file(&block.id);
                return Err(FetchError::Missing { path });
            }
            Err(source) => {
                self.shared.lock().index.set_unreadable(&block.id);
                return Err(io_error(path, source));
            }
        };
        let bytes = check_image_bytes(file.len())
            .and_then(|()| usize::try_from(file.len()).map_err(|_| too_large(file.len())))
            .map_err(|source| self.damaged(block, path.clone(), source))?;
        let buffer = match self.spare.take(bytes) {
            Some(buffer) => buffer,
            None => Buffer::aligned(bytes, HEADER_BYTES)
                .map_err(|source| io_error(path.clone(), source))?,
        };
        let engine = match &mut self.engine {
            Some(engine) => engine,
            none => none.insert(
                self.shared.take_engine().map_err(|reason| io_error(path.clone(), reason))?,
            ),
        };
        let tag = self.next_tag;
        let request =
            ReadRequest { len: bytes, ..ReadRequest::new(Arc::new(file), 0, buffer, tag) };
        if let Err(QueueFull(request)) = engine.submit(request) {
            self.spare.give(request.buffer);
            if engine.in_flight() > 0 {
                return Ok(None);
            }
            return Err(io_error(path, "the read engine takes no requests"));
        }
        self.next_tag += 1;
        Ok(Some(Source::Reading { tag, path, bytes }))
    }

    /// Waits for a read and looks at what came.
    fn receive(
        &mut self,
        block: &FoundBlock,
        tag: u64,
        path: PathBuf,
        bytes: usize,
    ) -> Result<Arc<MemBlock>, FetchError> {
        let begun = Instant::now();
        let completion = self.wait_for(tag);
        let waited = begun.elapsed();
        let Some(Completion { buffer, result, .. }) = completion else {
            return Err(io_error(path, "the read engine lost a request"));
        };
        self.count_read(bytes as u64, waited);
        match result {
            Ok(()) => {}
            Err(ReadError::UnexpectedEof { got, .. }) => {
                let (wanted_bytes, found_bytes) = (bytes as u64, got as u64);
                let source = BlockError::Length { wanted_bytes, found_bytes };
                return Err(self.damaged(block, path, source));
            }
            Err(source) => {
                if matches!(source, ReadError::Io { .. }) {
                    // It may take the drive long to fail once more.
                    self.shared.lock().index.set_unreadable(&block.id);
                }
                return Err(io_error(path, source));
            }
        }
        match check_image(block, buffer.as_slice().get(..bytes).unwrap_or_default()) {
            Ok(header) => Ok(Arc::new(MemBlock::read(header, buffer))),
            Err(source) => Err(self.damaged(block, path, source)),
        }
    }

    fn wait_for(&mut self, tag: u64) -> Option<Completion> {
        let mut out = Vec::new();
        loop {
            if let Some(completion) = self.arrived.remove(&tag) {
                return Some(completion);
            }
            let engine = self.engine.as_mut().filter(|engine| engine.in_flight() > 0)?;
            engine.complete(&mut out, Wait::Forever);
            self.arrived.extend(out.drain(..).map(|completion| (completion.tag, completion)));
        }
    }

    fn deliver(
        &mut self,
        block: &FoundBlock,
        memory: Arc<MemBlock>,
        tier: Tier,
    ) -> Result<Fetched, FetchError> {
        let FoundBlock { key, from, used_tokens, .. } = *block;
        let skipped = self.skip_tokens.saturating_sub(from as usize) as u64;
        let tokens = u64::from(used_tokens).saturating_sub(skipped);
        let mut inner = self.shared.lock();
        let stats = &mut inner.stats;
        match tier {
            Tier::Pending => stats.tokens_hit_pending += tokens,
            Tier::Hot => stats.tokens_hit_hot += tokens,
            Tier::Cold => stats.tokens_hit_cold += tokens,
        }
        // What is read once is likely to be read again: the next turn begins with it.
        let is_known = inner.index.get(&block.id).is_some_and(|entry| entry.memory().is_none());
        if tier == Tier::Cold && is_known && inner.index.may_keep(memory.memory_bytes()) {
            inner.index.insert_hot(block.id, Arc::clone(&memory));
        }
        drop(inner);
        let (block, spare) = (Some(memory), Arc::clone(&self.spare));
        Ok(Fetched { key, from, used_tokens, tier, block, spare })
    }

    fn count_read(&self, bytes: u64, waited: Duration) {
        let mut inner = self.shared.lock();
        inner.stats.bytes_read += bytes;
        inner.stats.read_time += waited;
    }

    fn damaged(&self, block: &FoundBlock, path: PathBuf, source: BlockError) -> FetchError {
        self.shared.remove_damaged(block.id, block.from);
        FetchError::Damaged { path, source }
    }

    /// Reads nothing more, and gives the engine back once nothing is in flight.
    fn end(&mut self) {
        self.blocks.clear();
        let Some(mut engine) = self.engine.take() else {
            self.begun.clear();
            return;
        };
        for begun in self.begun.drain(..) {
            if let Source::Reading { tag, .. } = begun.source {
                engine.cancel(tag);
            }
        }
        let mut out = Vec::new();
        while engine.in_flight() > 0 {
            engine.complete(&mut out, Wait::Forever);
            out.clear();
        }
        self.shared.keep_engine(engine);
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.end();
    }
}

/// The header of an image that is sound and of the block that was found.
fn check_image(block: &FoundBlock, image: &[u8]) -> Result<Header, BlockError> {
    let header = Header::decode(image)?;
    let begins_as_expected = match block.key.kind {
        BlockKind::Tokens => header.tokens.starts_with(&block.expected),
        BlockKind::Checkpoint => true,
    };
    for (what, is_same) in [
        ("scope", header.scope == block.scope),
        ("name", header.key == block.key),
        ("position", header.from == block.from),
        ("tokens", begins_as_expected),
    ] {
        if !is_same {
            return Err(BlockError::OtherBlock { what });
        }
    }
    header.payload(image)?;
    Ok(header)
}

fn io_error(path: PathBuf, source: impl Into<Box<dyn Error + Send + Sync>>) -> FetchError {
    FetchError::Io { path, source: source.into() }
}

fn too_large(found_bytes: u64) -> BlockError {
    BlockError::Length { wanted_bytes: usize::MAX as u64, found_bytes }
}

/// Buffers of blocks that were delivered and dropped.
struct Spare {
    buffers: Mutex<Vec<Buffer>>,
    buffers_max: usize,
}

impl Spare {
    /// A buffer of at least so many bytes, and not of many more.
    fn take(&self, bytes: usize) -> Option<Buffer> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = bytes..=bytes.saturating_mul(BUFFER_WASTE_MAX);
        let at = buffers.iter().position(|buffer| fits.contains(&buffer.len()))?;
        Some(buffers.swap_remove(at))
    }

    fn give(&self, buffer: Buffer) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() >= self.buffers_max {
            buffers.remove(0); // the oldest: sizes change slowly
        }
        buffers.push(buffer);
    }
}
