//! The hashes of a file's chunks, in order, from reads that overlap with hashing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hypura_io::{
    Buffer, Completion, DIRECT_ALIGN_MAX, File, Priority, QueueFull, ReadEngine, ReadRequest,
    Slack, Wait,
};

use super::FingerprintError;

/// Bytes of a chunk, by the definition of fingerprints.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// Chunks in memory at most: enough to keep a drive busy while one of them is hashed.
const BUFFERS_MAX: usize = 7;

/// Bytes of buffers at most, beside what the reader has for itself: less than 8 MiB.
pub const BUFFER_BYTES_MAX: usize = BUFFERS_MAX * (CHUNK_BYTES + DIRECT_ALIGN_MAX);

/// How far reads may be ahead of the first chunk that isn't there yet; of those between, only
/// hashes are kept.
const CHUNKS_AHEAD_MAX: u64 = 1024;

/// How long the caller is told nothing at most, while the drive is slow.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Hands the hash of each chunk of `file` to `each`, in order. `advance` is told how many bytes
/// more were read, and returns whether to go on.
pub(super) fn read(
    file: &Arc<File>,
    reader: &mut dyn ReadEngine,
    advance: &mut dyn FnMut(u64) -> bool,
    each: &mut dyn FnMut(blake3::Hash),
) -> Result<(), FingerprintError> {
    if reader.in_flight() > 0 {
        return Err(FingerprintError::ReaderBusy);
    }
    let mut chunks = Chunks::new(file)?;
    let result = chunks.read(reader, advance, each);
    if result.is_err() {
        chunks.abandon(reader);
    }
    result
}

struct Chunks<'a> {
    file: &'a Arc<File>,
    n_chunks: u64,
    free: Vec<Buffer>,
    /// Chunks asked for.
    asked: u64,
    /// Chunks handed on.
    handed: u64,
    /// Read, but not hashed yet.
    came: VecDeque<Completion>,
    /// Hashed, but not their turn yet.
    early: BTreeMap<u64, blake3::Hash>,
}

impl Chunks<'_> {
    fn new(file: &Arc<File>) -> Result<Chunks<'_>, FingerprintError> {
        let n_chunks = file.len().div_ceil(CHUNK_BYTES as u64);
        let free = (0..n_chunks.min(BUFFERS_MAX as u64))
            .map(|_| Buffer::aligned(CHUNK_BYTES, DIRECT_ALIGN_MAX))
            .collect::<Result<_, _>>()?;
        let (came, early) = (VecDeque::new(), BTreeMap::new());
        Ok(Chunks { file, n_chunks, free, asked: 0, handed: 0, came, early })
    }

    fn read(
        &mut self,
        reader: &mut dyn ReadEngine,
        advance: &mut dyn FnMut(u64) -> bool,
        each: &mut dyn FnMut(blake3::Hash),
    ) -> Result<(), FingerprintError> {
        let mut out = Vec::new();
        let mut go_on = advance(0);
        while self.handed < self.n_chunks {
            if !go_on {
                return Err(FingerprintError::Interrupted);
            }
            self.ask(reader)?;
            // One at a time, so that its buffer is being filled again while the next is hashed.
            let nothing_to_do = self.came.is_empty();
            reader.complete(
                &mut out,
                if nothing_to_do { Wait::For(PROGRESS_INTERVAL) } else { Wait::None },
            );
            self.came.extend(out.drain(..));
            let Some(completion) = self.came.pop_front() else {
                go_on = advance(0);
                continue;
            };
            let len = completion.len as u64;
            self.hash(completion)?;
            while let Some(hash) = self.early.remove(&self.handed) {
                each(hash);
                self.handed += 1;
            }
            go_on = advance(len);
        }
        if go_on { Ok(()) } else { Err(FingerprintError::Interrupted) }
    }

    /// Asks for the next chunks, as many as there are buffers for.
    fn ask(&mut self, reader: &mut dyn ReadEngine) -> Result<(), FingerprintError> {
        while self.asked < self.n_chunks && self.asked - self.handed < CHUNKS_AHEAD_MAX {
            let Some(buffer) = self.free.pop() else { return Ok(()) };
            let offset = self.asked * CHUNK_BYTES as u64;
            let left = usize::try_from(self.file.len() - offset).unwrap_or(usize::MAX);
            let len = left.min(CHUNK_BYTES);
            let request = ReadRequest {
                file: Arc::clone(self.file),
                offset,
                len,
                buffer_offset: 0,
                slack: Slack { head: 0, tail: buffer.len() - len },
                buffer,
                priority: Priority::Demand,
                tag: self.asked,
            };
            if let Err(QueueFull(request)) = reader.submit(request) {
                self.free.push(request.buffer);
                // Full of what? Waiting would not help.
                let is_stuck = reader.in_flight() == 0 && self.came.is_empty();
                return if is_stuck { Err(FingerprintError::ReaderBusy) } else { Ok(()) };
            }
            self.asked += 1;
        }
        Ok(())
    }

    fn hash(&mut self, completion: Completion) -> Result<(), FingerprintError> {
        let Completion { tag, buffer, result, len, .. } = completion;
        result?;
        let content = buffer.as_slice().get(..len).unwrap_or_default();
        self.early.insert(tag, blake3::hash(content));
        self.free.push(buffer);
        Ok(())
    }

    /// Leaves nothing in flight.
    fn abandon(&mut self, reader: &mut dyn ReadEngine) {
        (self.handed..self.asked).for_each(|tag| reader.cancel(tag));
        let mut out = Vec::new();
        while reader.in_flight() > 0 {
            reader.complete(&mut out, Wait::Forever);
            out.clear();
        }
    }
}
