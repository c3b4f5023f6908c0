//! The suite that every [`ReadEngine`] has to pass, and the sample files it reads.
//!
//! It panics where an engine breaks a promise, so it is to be called from a test. Compiled for
//! tests of this crate, and with the feature `conformance`.
#![allow(clippy::indexing_slicing)] // a panic is how it reports

mod orders;

use std::any::Any;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use crate::{
    Access, Buffer, Completion, File, Priority, QueueFull, ReadEngine, ReadError, ReadRequest,
    Slack, Wait,
};

/// Runs the whole suite over the engines that `make` makes. They must not inject errors.
///
/// # Panics
/// If an engine breaks a promise of [`ReadEngine`].
pub fn run(make: impl Fn() -> Box<dyn ReadEngine>) {
    let sample = Sample::new(SAMPLE_BYTES);
    for access in [Access::Direct, Access::Buffered] {
        let file = Arc::new(sample.open(access));
        delivers_exactly_the_bytes(&mut *make(), &sample, &file);
        reports_the_end_of_the_file(&mut *make(), &sample, &file);
        gives_bad_requests_back(&mut *make(), &file);
        keeps_many_in_flight(&mut *make(), &sample, &file);
        is_bounded(&mut *make(), &file);
        waits_as_told(&mut *make(), &file);
        drops_safely_with_reads_in_flight(make(), &file);
        notices_truncation(&mut *make(), access);
        orders::run(&make, &sample, &file);
    }
}

/// Large enough for several pieces of any sensible size; no multiple of a block.
const SAMPLE_BYTES: usize = 5 * (1 << 20) + 1234;

/// What buffers hold before a read, to see which bytes it touches.
const UNTOUCHED: u8 = 0xa5;

/// A temporary file whose bytes are known.
#[derive(Debug)]
pub struct Sample {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Sample {
    /// A file of `len` bytes that look random, flushed to the drive.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn new(len: usize) -> Sample {
        let bytes = pseudo_random(len);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut file = std::fs::File::create(folder.path().join("sample")).expect("a new file");
        file.write_all(&bytes).expect("room for the sample");
        file.sync_all().expect("a drive that takes it");
        Sample { folder, bytes }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("sample")
    }

    /// Opens it.
    ///
    /// # Panics
    /// If that fails.
    pub fn open(&self, access: Access) -> File {
        File::open_with(self.path(), access).expect("the sample opens")
    }

    /// `len` of its bytes from `offset` on.
    ///
    /// # Panics
    /// If it has fewer.
    pub fn bytes(&self, offset: u64, len: usize) -> &[u8] {
        let start = usize::try_from(offset).expect("a small offset");
        &self.bytes[start..start + len]
    }
}

/// Bytes of a xorshift generator (Marsaglia, 2003): the same ones every time.
fn pseudo_random(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A request for `len` bytes at `offset`, into the middle of a larger buffer with guards around.
struct Case {
    offset: u64,
    len: usize,
    /// Of the buffer's first byte.
    align: usize,
    /// Of the destination in the buffer.
    place: usize,
    slack: Slack,
    priority: Priority,
}

impl Case {
    fn request(&self, file: &Arc<File>, tag: u64) -> ReadRequest {
        let whole = self.place + self.len + self.slack.tail + 100;
        let mut buffer = Buffer::aligned(whole, self.align).expect("memory");
        buffer.as_mut_slice().fill(UNTOUCHED);
        ReadRequest {
            file: Arc::clone(file),
            offset: self.offset,
            len: self.len,
            buffer,
            buffer_offset: self.place,
            slack: self.slack,
            priority: self.priority,
            tag,
        }
    }

    /// That nothing outside of destination and slack was written.
    fn check_guards(&self, completion: &Completion) {
        let bytes = completion.buffer.as_slice();
        let before = &bytes[..self.place - self.slack.head];
        let after = &bytes[self.place + self.len + self.slack.tail..];
        assert!(before.iter().all(|&b| b == UNTOUCHED), "written before the slack: {self:?}");
        assert!(after.iter().all(|&b| b == UNTOUCHED), "written behind the slack: {self:?}");
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { offset, len, align, place, slack, priority } = self;
        write!(f, "{len} bytes at {offset} to {place} of {align}, {slack:?}, {priority:?}")
    }
}

/// Submits, taking completions when the queue is full.
fn submit(engine: &mut dyn ReadEngine, mut request: ReadRequest, out: &mut Vec<Completion>) {
    while let Err(QueueFull(back)) = engine.submit(request) {
        let before = out.len();
        engine.complete(out, Wait::Forever);
        assert!(out.len() > before, "the queue is full, yet nothing comes of waiting for it");
        request = back;
    }
}

/// Takes completions until nothing is in flight.
fn drain(engine: &mut dyn ReadEngine, out: &mut Vec<Completion>) {
    while engine.in_flight() > 0 {
        let (before, in_flight) = (out.len(), engine.in_flight());
        engine.complete(out, Wait::Forever);
        assert!(out.len() > before, "waiting for ever delivers at least one");
        assert_eq!(engine.in_flight(), in_flight - (out.len() - before));
    }
}

fn one(engine: &mut dyn ReadEngine, request: ReadRequest) -> Completion {
    let mut out = Vec::new();
    submit(engine, request, &mut out);
    drain(engine, &mut out);
    assert_eq!(out.len(), 1, "one request, one completion");
    out.remove(0)
}

fn delivers_exactly_the_bytes(engine: &mut dyn ReadEngine, sample: &Sample, file: &Arc<File>) {
    let end = SAMPLE_BYTES as u64;
    let ranges = [
        (0, 0),
        (0, 1),
        (0, 4096),
        (1, 1),
        (511, 2),
        (4095, 2),
        (4096, 8192),
        (4096, 8191),
        (4097, 12_288),
        (12_345, 1 << 20),
        (65_536, 2 << 20),
        (0, SAMPLE_BYTES),
        (1, SAMPLE_BYTES - 1),
        (end - 1, 1),
        (end - 1234, 1234),
        (end - 100_000, 100_000),
        (end, 0),
    ];
    let places: [(usize, usize, Slack); 7] = [
        (1, 1, Slack::NONE),
        (4096, 4096, Slack::NONE),
        (4096, 4097, Slack::NONE),
        (4096, 8192 + 57, Slack { head: 4096, tail: 4096 }),
        (4096, 8192, Slack { head: 4096, tail: 0 }),
        (4096, 8192, Slack { head: 0, tail: 4096 }),
        (4096, 8192, Slack { head: 100, tail: 100 }),
    ];
    let mut tag = 0;
    let (mut asked, mut count) = (0, 0);
    for (offset, len) in ranges {
        let congruent = usize::try_from(offset % 4096).unwrap_or(0);
        for (align, place, slack) in places {
            // As given, and moved so that memory and file agree about where blocks begin.
            for place in [place, place.next_multiple_of(4096) + 4096 + congruent] {
                let priority = if tag % 2 == 0 { Priority::Demand } else { Priority::ReadAhead };
                let case = Case { offset, len, align, place, slack, priority };
                let done = one(engine, case.request(file, tag));
                assert!(done.result.is_ok(), "{case:?}: {:?}", done.result);
                assert_eq!((done.tag, done.offset, done.len), (tag, offset, len));
                assert_eq!((done.buffer_offset, done.priority), (place, priority));
                let same = done.bytes() == Some(sample.bytes(offset, len));
                assert!(same, "wrong bytes: {case:?}");
                case.check_guards(&done);
                tag += 1;
                count += 1;
                asked += len as u64;
            }
        }
    }
    let stats = engine.stats();
    assert_eq!((stats.requests, stats.failed, stats.asked_bytes), (count, 0, asked));
    assert!(stats.read_bytes >= asked, "counts what it read: {stats:?}");
    assert!(stats.bounced_bytes <= stats.read_bytes, "counts what it bounced: {stats:?}");
    if !file.is_direct() {
        assert_eq!(stats.bounced_bytes, 0, "buffered reads need no detour");
    }
    assert!(!stats.busy.is_zero(), "knows that it read: {stats:?}");
    assert_eq!(engine.stats().busy, stats.busy, "and that it does not any more");
}

fn reports_the_end_of_the_file(engine: &mut dyn ReadEngine, sample: &Sample, file: &Arc<File>) {
    let end = SAMPLE_BYTES as u64;
    let cases = [
        (end, 1, 0),
        (end - 1, 2, 1),
        (end - 1000, 5000, 1000),
        (0, SAMPLE_BYTES + 1, SAMPLE_BYTES),
        (end - 3_000_000, 9_000_000, 3_000_000),
        (end + 1, 10, 0),
        (end + (1 << 30), 3 << 20, 0),
    ];
    for (tag, (at, len, expected)) in (0..).zip(cases) {
        let slack = Slack { head: 100, tail: 4096 };
        let priority = Priority::Demand;
        let case = Case { offset: at, len, align: 4096, place: 4096, slack, priority };
        let done = one(engine, case.request(file, tag));
        match &done.result {
            Err(ReadError::UnexpectedEof { path, offset, wanted, got }) => {
                assert_eq!(path, &sample.path());
                assert_eq!((*offset, *wanted, *got), (at, len, expected));
            }
            other => panic!("{case:?}: {other:?}"),
        }
        assert_eq!(done.bytes(), None, "no bytes of a failed read");
        assert_eq!(done.tag, tag);
        case.check_guards(&done);
    }
    assert_eq!(engine.stats().failed, cases.len() as u64);
}

fn gives_bad_requests_back(engine: &mut dyn ReadEngine, file: &Arc<File>) {
    // Each spoils a request for 100 bytes to place 50 of a buffer of 200.
    let spoil: [fn(&mut ReadRequest); 7] = [
        |request| request.len = 151,
        |request| request.len = usize::MAX,
        |request| request.buffer_offset = 101,
        |request| request.buffer_offset = usize::MAX,
        |request| request.slack = Slack { head: 51, tail: 0 },
        |request| request.slack = Slack { head: 0, tail: 51 },
        |request| request.offset = u64::MAX - 10,
    ];
    for (tag, spoil) in (0..).zip(spoil) {
        let mut buffer = Buffer::aligned(200, 1).expect("memory");
        buffer.as_mut_slice().fill(UNTOUCHED);
        let mut request = ReadRequest {
            len: 100,
            buffer_offset: 50,
            ..ReadRequest::new(Arc::clone(file), 0, buffer, tag)
        };
        spoil(&mut request);
        let done = one(engine, request);
        assert!(matches!(done.result, Err(ReadError::BadRequest { .. })), "{:?}", done.result);
        assert_eq!((done.tag, done.buffer.len()), (tag, 200), "the buffer comes back");
        assert!(done.buffer.as_slice().iter().all(|&byte| byte == UNTOUCHED));
    }
}

fn keeps_many_in_flight(engine: &mut dyn ReadEngine, sample: &Sample, file: &Arc<File>) {
    const REQUESTS: u16 = 300;
    let mut random = pseudo_random(16 * usize::from(REQUESTS)).into_iter().map(usize::from);
    let mut draw = || random.by_ref().take(3).fold(0, |sum, byte| sum * 256 + byte);
    let mut out = Vec::new();
    for tag in 0..u64::from(REQUESTS) {
        let len = match tag % 50 {
            0 => 1 + draw() % (3 << 20),
            _ => 1 + draw() % 20_000,
        };
        let case = Case {
            offset: (draw() % (SAMPLE_BYTES - len)) as u64,
            len,
            align: if tag % 2 == 0 { 4096 } else { 1 },
            place: draw() % 5000,
            slack: Slack::NONE,
            priority: if draw() % 3 == 0 { Priority::Demand } else { Priority::ReadAhead },
        };
        submit(engine, case.request(file, tag), &mut out);
        if tag % 20 == 19 {
            engine.complete(&mut out, Wait::None);
        }
    }
    drain(engine, &mut out);
    for done in &out {
        assert!(done.result.is_ok(), "{:?}", done.result);
        assert!(done.bytes() == Some(sample.bytes(done.offset, done.len)), "wrong bytes");
    }
    let tags: BTreeSet<u64> = out.iter().map(|done| done.tag).collect();
    assert_eq!(out.len(), usize::from(REQUESTS), "each comes back once");
    assert!(tags.into_iter().eq(0..u64::from(REQUESTS)), "none is lost");
}

fn is_bounded(engine: &mut dyn ReadEngine, file: &Arc<File>) {
    const SURELY_TOO_MANY: u64 = 100_000;
    let mut out = Vec::new();
    for tag in 0..SURELY_TOO_MANY {
        let buffer = Buffer::aligned(1, 1).expect("memory");
        let request = ReadRequest::new(Arc::clone(file), tag, buffer, tag);
        if let Err(QueueFull(back)) = engine.submit(request) {
            assert_eq!((back.tag, back.offset, back.len), (tag, tag, 1), "unchanged");
            assert_eq!(engine.in_flight() as u64, tag, "the refused one doesn't count");
            drain(engine, &mut out);
            assert_eq!(out.len() as u64, tag);
            engine.submit(back).expect("there is room again");
            drain(engine, &mut out);
            return;
        }
    }
    panic!("takes {SURELY_TOO_MANY} requests without a completion taken");
}

fn waits_as_told(engine: &mut dyn ReadEngine, file: &Arc<File>) {
    let mut out = Vec::new();
    for wait in [Wait::None, Wait::For(Duration::from_secs(3600)), Wait::Forever] {
        engine.complete(&mut out, wait); // returns, since there is nothing to wait for
        assert!(out.is_empty());
    }
    let buffer = Buffer::aligned(1 << 20, 4096).expect("memory");
    engine.submit(ReadRequest::new(Arc::clone(file), 0, buffer, 0)).expect("room");
    assert_eq!(engine.in_flight(), 1);
    engine.complete(&mut out, Wait::None);
    engine.complete(&mut out, Wait::For(Duration::ZERO));
    assert_eq!(out.len() + engine.in_flight(), 1, "in flight until it is handed out");
    engine.complete(&mut out, Wait::For(Duration::from_secs(3600)));
    assert_eq!((out.len(), engine.in_flight()), (1, 0));
}

fn drops_safely_with_reads_in_flight(mut engine: Box<dyn ReadEngine>, file: &Arc<File>) {
    const LEN: usize = 300_000;
    let memory: Vec<_> = (0..8).map(|_| Arc::new(ForeignMemory::new(LEN))).collect();
    for (tag, memory) in (0..).zip(&memory) {
        let mut request = ReadRequest::new(Arc::clone(file), tag * 1000, memory.buffer(), tag);
        request.priority = if tag % 2 == 0 { Priority::Demand } else { Priority::ReadAhead };
        engine.submit(request).expect("room for eight");
    }
    drop(engine);
    for memory in memory {
        let owner = Arc::into_inner(memory).expect("no read holds the memory any more");
        drop(owner.0);
    }
}

fn notices_truncation(engine: &mut dyn ReadEngine, access: Access) {
    let sample = Sample::new(100_000);
    let file = Arc::new(sample.open(access));
    truncate(&sample.path(), 50_000);
    let buffer = Buffer::aligned(100_000, 4096).expect("memory");
    let done = one(engine, ReadRequest::new(file, 0, buffer, 1));
    let truncated = matches!(done.result, Err(ReadError::UnexpectedEof { got: 50_000, .. }));
    assert!(truncated, "{:?}", done.result);
}

fn truncate(path: &Path, len: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("writable");
    file.set_len(len).expect("truncated");
}

/// Memory of another owner, as a compute library would have it.
struct ForeignMemory(Buffer);

impl ForeignMemory {
    fn new(len: usize) -> ForeignMemory {
        ForeignMemory(Buffer::aligned(len, 4096).expect("memory"))
    }

    fn buffer(self: &Arc<Self>) -> Buffer {
        let ptr = NonNull::new(self.0.as_ptr().cast_mut()).expect("not null");
        let owner: Arc<dyn Any + Send + Sync> = Arc::<Self>::clone(self);
        // SAFETY: the memory came from the allocator as mutable memory and lives as long as
        // `self`; nobody looks at it before the returned buffer, the only one, is gone.
        unsafe { Buffer::foreign(ptr, self.0.len(), owner) }
    }
}
