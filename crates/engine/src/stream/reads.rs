//! Reads under way, and what each of them is for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hypura_io as io;
use hypura_llama::tiered::ResidencyError;

/// What a read brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Target {
    /// One part of an expert.
    Part { layer: u32, expert: u32, part: u8 },
    /// A streamed matrix: the serial number of its entry in the ring.
    Matrix { serial: u64 },
    /// A matrix that stays in host memory, by its index.
    Stored { index: u32 },
    /// A row of the input embedding: the place that it goes to.
    Row { i: usize },
}

/// A read that has ended.
pub(super) struct Arrival {
    pub(super) target: Target,
    pub(super) result: Result<(), String>,
}

/// How long a wait goes on before it looks at the abort flag again.
const ABORT_POLL: Duration = Duration::from_millis(50);

/// A read engine, with targets in place of tags.
pub(super) struct Reads {
    engine: Box<dyn io::ReadEngine>,
    files: Vec<Arc<io::File>>,
    targets: HashMap<u64, Target>,
    next_tag: u64,
    completions: Vec<io::Completion>,
    pub(super) abort: Option<Arc<AtomicBool>>,
    /// Bytes of weights that were asked for.
    bytes: u64,
    /// Time spent waiting for reads with nothing to compute.
    pub(super) waited: Duration,
}

/// One read.
pub(super) struct Read {
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) buffer: io::Buffer,
    pub(super) buffer_offset: usize,
    pub(super) slack: io::Slack,
    pub(super) priority: io::Priority,
}

impl Reads {
    pub(super) fn new(engine: Box<dyn io::ReadEngine>, files: Vec<Arc<io::File>>) -> Reads {
        Reads {
            engine,
            files,
            targets: HashMap::new(),
            next_tag: 0,
            completions: Vec::new(),
            abort: None,
            bytes: 0,
            waited: Duration::ZERO,
        }
    }

    /// Submits a read and returns its tag; when the queue is full, waits for one to end and puts it
    /// into `arrived`.
    pub(super) fn submit(
        &mut self,
        read: Read,
        target: Target,
        arrived: &mut Vec<Arrival>,
    ) -> Result<u64, ResidencyError> {
        let Some(file) = self.files.get(read.file) else {
            return Err(ResidencyError::Internal(format!("there is no file {}", read.file)));
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        self.bytes += read.len as u64;
        let mut request = io::ReadRequest {
            len: read.len,
            buffer_offset: read.buffer_offset,
            slack: read.slack,
            priority: read.priority,
            ..io::ReadRequest::new(Arc::clone(file), read.offset, read.buffer, tag)
        };
        self.targets.insert(tag, target);
        while let Err(io::QueueFull(back)) = self.engine.submit(request) {
            request = back;
            self.take(io::Wait::Forever, arrived);
        }
        Ok(tag)
    }

    /// Somebody waits now for what was to be read ahead.
    pub(super) fn promote(&mut self, tag: u64) {
        self.engine.promote(tag);
    }

    /// Nobody wants these bytes any more: they need not be read, if they are not yet.
    pub(super) fn cancel(&mut self, tag: u64) {
        self.engine.cancel(tag);
    }

    /// Bytes that were asked for, less those that did not have to be read after all; and time during which
    /// something was being read.
    pub(super) fn totals(&self) -> (u64, Duration) {
        let stats = self.engine.stats();
        (self.bytes.saturating_sub(stats.cancelled_bytes), stats.busy)
    }

    /// Takes what has ended, without waiting.
    pub(super) fn poll(&mut self, arrived: &mut Vec<Arrival>) {
        if !self.targets.is_empty() {
            self.take(io::Wait::None, arrived);
        }
    }

    /// Waits until at least one read has ended.
    pub(super) fn wait(&mut self, arrived: &mut Vec<Arrival>) -> Result<(), ResidencyError> {
        if self.targets.is_empty() {
            return Err(ResidencyError::Internal("waiting for a read that nobody began".into()));
        }
        let begin = Instant::now();
        let before = arrived.len();
        while arrived.len() == before {
            if self.abort.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Err(ResidencyError::Aborted);
            }
            self.take(io::Wait::For(ABORT_POLL), arrived);
        }
        self.waited += begin.elapsed();
        Ok(())
    }

    /// Waits until nothing is under way any more.
    pub(super) fn drain(&mut self, arrived: &mut Vec<Arrival>) {
        while !self.targets.is_empty() {
            self.take(io::Wait::Forever, arrived);
        }
    }

    /// Whether the files are still those that were opened.
    pub(super) fn check_files(&self) -> Result<(), ResidencyError> {
        for file in &self.files {
            file.check_unchanged().map_err(|error| ResidencyError::Read(error.to_string()))?;
        }
        Ok(())
    }

    fn take(&mut self, wait: io::Wait, arrived: &mut Vec<Arrival>) {
        self.engine.complete(&mut self.completions, wait);
        for completion in self.completions.drain(..) {
            if let Some(target) = self.targets.remove(&completion.tag) {
                let result = completion.result.map_err(|error| error.to_string());
                arrived.push(Arrival { target, result });
            }
        }
    }
}
