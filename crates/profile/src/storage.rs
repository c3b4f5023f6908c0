//! How fast a drive reads, measured on the very file that is to be read.
//!
//! Reads are direct, at offsets spread over the whole file, each place at most once in a row of
//! reads; several sizes and several reads at a time. What was just written is flushed first:
//! a drive that is still writing is slow to read, and pages that are not yet written would have to
//! be flushed by our reads. Where direct reads are refused the page cache is asked to forget the
//! file before each point, and the result says that it isn't direct. A virtual machine's host may
//! cache the file as well; nothing in the guest can see or prevent that.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypura_io::{
    AllocError, Buffer, Completion, File, OpenError, PoolConfig, PoolError, PreadPool, QueueFull,
    ReadEngine, ReadError, ReadRequest, Wait,
};
use serde::{Deserialize, Serialize};

use crate::host::{Host, System};
use crate::mount::Drive;

/// Smaller files are not measured: their reads would repeat, and repeat from the drive's cache.
pub const FILE_BYTES_MIN: u64 = 8 << 20;

/// Size of a small read, in bytes.
const SMALL_READ_BYTES: usize = 4096;

/// Small reads are measured this many times at most.
const SMALL_READS_MAX: usize = 1000;

/// Of the time that a measurement is meant to take, how much it may take on a slow drive. Points
/// that don't fit are left out.
const OVERTIME: u32 = 3;

/// How a drive reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    pub drive: Drive,
    /// Whether reads went past the page cache.
    pub direct: bool,
    /// Why they didn't.
    pub direct_refused: Option<String>,
    /// How large the measured file was.
    pub file_bytes: u64,
    pub effort: Effort,
    /// Bandwidths; empty if the file was smaller than [`FILE_BYTES_MIN`].
    pub points: Vec<Point>,
    /// The point with the highest bandwidth.
    pub best: Option<Point>,
    /// Small reads, one at a time.
    pub small_read: Option<Latency>,
    /// When it was measured, in seconds since 1970.
    pub taken_unix_s: u64,
    /// What a reader of the numbers has to know.
    pub note: Option<String>,
}

/// The bandwidth of reads of one size at one depth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Size of each read.
    pub read_bytes: u64,
    /// Reads in flight at the same time.
    pub depth: u32,
    pub bytes_per_s: f64,
}

/// How long reads of one size take, one at a time, from asking for it to having it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub read_bytes: u64,
    /// Reads measured.
    pub reads: u32,
    /// Half of them took no longer than this, in seconds.
    pub p50_s: f64,
    /// 99 in 100 took no longer than this, in seconds.
    pub p99_s: f64,
}

/// How much time a measurement may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effort {
    /// About half a second, and 32 MiB of memory: enough to plan with.
    Quick,
    /// About four seconds, and 64 MiB of memory: for people to look at.
    Full,
}

impl Effort {
    fn sizes(self) -> &'static [usize] {
        match self {
            Effort::Quick => &[64 << 10, 512 << 10, 4 << 20],
            Effort::Full => &[64 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20],
        }
    }

    fn depths(self) -> &'static [usize] {
        match self {
            Effort::Quick => &[1, 4, 8],
            Effort::Full => &[1, 2, 4, 8],
        }
    }

    /// Time for each point, and for the small reads together.
    fn time_per_point(self) -> Duration {
        match self {
            Effort::Quick => Duration::from_millis(50),
            Effort::Full => Duration::from_millis(160),
        }
    }

    /// When to stop, whatever is left to do.
    fn time_max(self) -> Duration {
        let points = self.sizes().len() * self.depths().len() + 1;
        self.time_per_point() * u32::try_from(points).unwrap_or(u32::MAX) * OVERTIME
    }

    fn depth_max(self) -> usize {
        self.depths().iter().copied().max().unwrap_or(1)
    }

    fn read_bytes_max(self) -> usize {
        self.sizes().iter().copied().max().unwrap_or(SMALL_READ_BYTES)
    }
}

/// A drive can't be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("can't find the drive of {}: {source}", path.display())]
    Drive { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Alloc(#[from] AllocError),
    #[error("measuring the drive failed: {0}")]
    Read(#[from] ReadError),
}

/// Measures the drive that holds `file`, by reading the file.
///
/// # Errors
/// See [`StorageError`]. A file too small to measure is no error: it gives no points, and a note.
pub fn probe_storage(
    file: &Path,
    effort: Effort,
    now_unix_s: u64,
) -> Result<Storage, StorageError> {
    let drive = Drive::of(file);
    let drive = drive.map_err(|source| StorageError::Drive { path: file.to_owned(), source })?;
    let file = Arc::new(File::open(file)?);
    let mut storage = Storage {
        drive,
        direct: file.is_direct(),
        direct_refused: file.direct_refused().map(str::to_owned),
        file_bytes: file.len(),
        effort,
        points: Vec::new(),
        best: None,
        small_read: None,
        taken_unix_s: now_unix_s,
        note: None,
    };
    if file.len() < FILE_BYTES_MIN {
        let note = format!("not measured: the file has less than {FILE_BYTES_MIN} bytes");
        storage.note = Some(note);
        return Ok(storage);
    }
    storage.note = match file.as_std().sync_data() {
        Err(error) => Some(format!("may be too slow: the file can't be flushed first: {error}")),
        Ok(()) => busy_writing(&System),
    };
    let mut pool = PreadPool::new(PoolConfig {
        threads: effort.depth_max(),
        read_ahead_threads: 1,
        // A read must stay one read.
        chunk_bytes: effort.read_bytes_max(),
        queue_requests: effort.depth_max(),
    })?;
    let mut sweep = Sweep::new(&mut pool, Arc::clone(&file), effort)?;
    (storage.small_read, storage.points) = sweep.run()?;
    storage.best =
        storage.points.iter().copied().max_by(|a, b| a.bytes_per_s.total_cmp(&b.bytes_per_s));
    // A file system may refuse only when it is asked to read.
    storage.direct = file.is_direct();
    storage.direct_refused = file.direct_refused().map(str::to_owned);
    Ok(storage)
}

/// A note if the system is writing so much, of whatever files, that reads may suffer.
fn busy_writing(host: &dyn Host) -> Option<String> {
    /// Less is written in the time of a point.
    const HARMLESS_KIB: u64 = 64 << 10;
    let text = host.read(Path::new("/proc/meminfo"))?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let waiting = kib("Dirty:")?.saturating_add(kib("Writeback:")?);
    (waiting > HARMLESS_KIB).then(|| {
        format!("may be too slow: {} MiB of other files wait to be written", waiting >> 10)
    })
}

/// A measurement under way.
struct Sweep<'a> {
    engine: &'a mut dyn ReadEngine,
    file: Arc<File>,
    effort: Effort,
    /// As many as there may be reads in flight, each for the largest read.
    free: Vec<Buffer>,
    places: Places,
}

impl<'a> Sweep<'a> {
    fn new(
        engine: &'a mut dyn ReadEngine,
        file: Arc<File>,
        effort: Effort,
    ) -> Result<Sweep<'a>, AllocError> {
        let align = file.alignment().memory.max(SMALL_READ_BYTES);
        let buffer = |_| Buffer::aligned(effort.read_bytes_max(), align);
        let free = (0..effort.depth_max()).map(buffer).collect::<Result<_, _>>()?;
        let places = Places { file_bytes: file.len(), drawn: 0 };
        Ok(Sweep { engine, file, effort, free, places })
    }

    fn run(&mut self) -> Result<(Option<Latency>, Vec<Point>), StorageError> {
        let start = Instant::now();
        let latency = latency(&self.reads(SMALL_READ_BYTES, 1, SMALL_READS_MAX)?.latencies);
        let mut points = Vec::new();
        for &depth in self.effort.depths() {
            for &size in self.effort.sizes() {
                // As many different places as reads in flight, at least.
                let fits = (size * depth) as u64 <= self.file.len();
                if !fits || start.elapsed() > self.effort.time_max() {
                    continue;
                }
                let reads = self.reads(size, depth, usize::MAX)?;
                let seconds = reads.elapsed.as_secs_f64().max(1e-9);
                points.push(Point {
                    read_bytes: size as u64,
                    depth: u32::try_from(depth).unwrap_or(u32::MAX),
                    bytes_per_s: reads.bytes as f64 / seconds,
                });
            }
        }
        Ok((latency, points))
    }

    /// Keeps `depth` reads of `size` bytes in flight for the time of a point, twice `depth` reads
    /// at least and `reads_max` at most, and waits for the last of them.
    fn reads(
        &mut self,
        size: usize,
        depth: usize,
        reads_max: usize,
    ) -> Result<Reads, StorageError> {
        forget(&self.file);
        let mut reads = Reads { bytes: 0, elapsed: Duration::ZERO, latencies: Vec::new() };
        let (mut submitted, mut done) = (0, Vec::new());
        let mut failed = None;
        let start = Instant::now();
        loop {
            let wants_more = failed.is_none()
                && submitted < reads_max
                && (submitted < 2 * depth || start.elapsed() < self.effort.time_per_point());
            while wants_more && self.engine.in_flight() < depth {
                if !self.submit(size) {
                    break;
                }
                submitted += 1;
            }
            if self.engine.in_flight() == 0 {
                break;
            }
            self.engine.complete(&mut done, Wait::Forever);
            for completion in done.drain(..) {
                let Completion { buffer, result, latency, len, .. } = completion;
                self.free.push(buffer);
                match result {
                    Ok(()) => {
                        reads.bytes += len as u64;
                        reads.latencies.push(latency);
                    }
                    // The others still have to come back.
                    Err(error) => failed = Some(error),
                }
            }
        }
        reads.elapsed = start.elapsed();
        match failed {
            None => Ok(reads),
            Some(error) => Err(error.into()),
        }
    }

    /// Whether there was a buffer, and room in the queue.
    fn submit(&mut self, size: usize) -> bool {
        let Some(buffer) = self.free.pop() else { return false };
        let offset = self.places.next(size);
        let request = ReadRequest {
            len: size,
            ..ReadRequest::new(Arc::clone(&self.file), offset, buffer, 0)
        };
        match self.engine.submit(request) {
            Ok(()) => true,
            Err(QueueFull(request)) => {
                self.free.push(request.buffer);
                false
            }
        }
    }
}

/// What a row of reads gave.
struct Reads {
    bytes: u64,
    elapsed: Duration,
    latencies: Vec<Duration>,
}

fn latency(latencies: &[Duration]) -> Option<Latency> {
    let mut sorted: Vec<f64> = latencies.iter().map(Duration::as_secs_f64).collect();
    sorted.sort_by(f64::total_cmp);
    // Nearest rank.
    let percentile = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied()
    };
    Some(Latency {
        read_bytes: SMALL_READ_BYTES as u64,
        reads: u32::try_from(sorted.len()).ok()?,
        p50_s: percentile(50)?,
        p99_s: percentile(99)?,
    })
}

/// Where in the file to read: spread over all of it, never one after the other.
struct Places {
    file_bytes: u64,
    drawn: u64,
}

impl Places {
    /// An offset for `size` bytes, a multiple of `size`.
    ///
    /// The n-th place is the fractional part of n times the golden ratio, which spreads any number
    /// of places evenly (Knuth, The Art of Computer Programming, 6.4): neighbours in time are far
    /// apart in the file, and a place comes again only when most others have been read.
    fn next(&mut self, size: usize) -> u64 {
        /// The golden ratio's fraction, of 2 to the 64.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        self.drawn += 1;
        let slots = self.file_bytes / (size as u64).max(1);
        let fraction = u128::from(self.drawn.wrapping_mul(GOLDEN));
        let slot = (fraction * u128::from(slots)) >> 64;
        u64::try_from(slot).unwrap_or(0) * size as u64 // less than `slots`, so it fits
    }
}

/// Asks the page cache to forget a file that isn't read past it.
#[cfg(target_os = "linux")]
fn forget(file: &File) {
    if file.is_direct() {
        return;
    }
    if let Err(error) = rustix::fs::fadvise(file.as_std(), 0, None, rustix::fs::Advice::DontNeed) {
        tracing::warn!(path = %file.path().display(), "the page cache can't be emptied: {error}");
    }
}

/// There is no way to ask for it here; the result says that it isn't direct.
#[cfg(not(target_os = "linux"))]
fn forget(_file: &File) {}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    use hypura_io::conformance::Sample;
    use hypura_io::{Access, Fault, FaultEngine, FaultPlan, ReadStats};

    use super::*;
    use crate::host::tests::Fixture;

    #[test]
    fn measures_a_file() {
        let sample = Sample::new(9 << 20);
        let storage = probe_storage(&sample.path(), Effort::Quick, 42).expect("a measurement");
        // 9 MiB have room for all sizes at depth 1, but not for 4 MiB at depths 4 and 8.
        let points: Vec<_> = storage.points.iter().map(|p| (p.read_bytes, p.depth)).collect();
        let expected = [
            (64 << 10, 1),
            (512 << 10, 1),
            (4 << 20, 1),
            (64 << 10, 4),
            (512 << 10, 4),
            (64 << 10, 8),
            (512 << 10, 8),
        ];
        assert!(expected.starts_with(&points), "{points:?}"); // fewer only if the drive is slow
        assert!(storage.points.iter().all(|p| p.bytes_per_s > 0.0 && p.bytes_per_s.is_finite()));
        let best = storage.best.expect("a best point");
        assert!(storage.points.iter().all(|p| p.bytes_per_s <= best.bytes_per_s));
        let small = storage.small_read.expect("small reads");
        assert!(small.p50_s > 0.0 && small.p50_s <= small.p99_s && small.reads >= 2);
        assert_eq!(storage.direct, storage.direct_refused.is_none());
        assert_eq!((storage.file_bytes, storage.taken_unix_s), (9 << 20, 42));
        assert_eq!(storage.drive, Drive::of(&sample.path()).expect("a drive"));
    }

    #[test]
    fn a_small_file_is_not_measured_and_says_so() {
        let sample = Sample::new((8 << 20) - 1);
        let storage = probe_storage(&sample.path(), Effort::Quick, 42).expect("no error");
        assert!(storage.points.is_empty() && storage.best.is_none());
        assert!(storage.note.expect("a note").contains("less than 8388608 bytes"));
    }

    #[test]
    fn writes_of_others_are_noted() {
        let check = |dirty: &str, expected: Option<&str>| {
            let text = format!("MemTotal: 9 kB\nDirty:   {dirty}\nWriteback:   1024 kB\n");
            let note = busy_writing(&Fixture::new(&[("/proc/meminfo", &text)]));
            assert_eq!(note.as_deref(), expected);
        };
        check("10 kB", None);
        check("64512 kB", None);
        check("70000 kB", Some("may be too slow: 69 MiB of other files wait to be written"));
        check("?", None);
        assert_eq!(busy_writing(&Fixture::new(&[])), None);
    }

    #[test]
    fn no_file_is_an_error() {
        let missing = probe_storage(Path::new("/nowhere/at/all"), Effort::Quick, 0);
        assert!(matches!(missing, Err(StorageError::Drive { .. })));
        let folder = tempfile::tempdir().expect("a folder");
        let not_a_file = probe_storage(folder.path(), Effort::Quick, 0);
        assert!(matches!(not_a_file, Err(StorageError::Open(OpenError::IsDirectory { .. }))));
    }

    #[test]
    fn a_failed_read_is_an_error_after_all_reads_came_back() {
        let sample = Sample::new(9 << 20);
        let pool = PreadPool::new(PoolConfig::default()).expect("a pool");
        let plan = FaultPlan { at: BTreeMap::from([(30, Fault::Fail)]), ..FaultPlan::default() };
        let mut engine = FaultEngine::new(pool, plan);
        let file = Arc::new(sample.open(Access::Buffered));
        let mut sweep = Sweep::new(&mut engine, file, Effort::Quick).expect("memory");
        // At least twice the depth is read, whatever the clock says.
        assert!(matches!(sweep.reads(4096, 1, 10), Ok(Reads { bytes: 4096.., .. })));
        let mut results = (0..4).map(|_| sweep.reads(65536, 8, 16));
        assert!(results.any(|result| matches!(result, Err(StorageError::Read(_)))));
        assert_eq!(sweep.free.len(), 8, "all buffers are back");
        assert_eq!(engine.in_flight(), 0);
    }

    /// Serves at once, and remembers how many reads were in flight at most.
    #[derive(Default)]
    struct Instantly {
        queued: VecDeque<ReadRequest>,
        deepest: usize,
        offsets: Vec<u64>,
    }

    impl ReadEngine for Instantly {
        fn submit(&mut self, request: ReadRequest) -> Result<(), QueueFull> {
            self.offsets.push(request.offset);
            self.queued.push_back(request);
            self.deepest = self.deepest.max(self.queued.len());
            Ok(())
        }

        fn complete(&mut self, out: &mut Vec<Completion>, _wait: Wait) {
            let Some(request) = self.queued.pop_front() else { return };
            out.push(Completion {
                tag: request.tag,
                buffer: request.buffer,
                result: Ok(()),
                offset: request.offset,
                len: request.len,
                buffer_offset: request.buffer_offset,
                priority: request.priority,
                latency: Duration::from_micros(100),
            });
        }

        fn in_flight(&self) -> usize {
            self.queued.len()
        }

        fn stats(&self) -> ReadStats {
            ReadStats::default()
        }
    }

    #[test]
    fn keeps_the_depth_and_never_reads_in_order() {
        let sample = Sample::new(9 << 20);
        let file = Arc::new(sample.open(Access::Buffered));
        for depth in [1, 4, 8] {
            let mut engine = Instantly::default();
            let mut sweep =
                Sweep::new(&mut engine, Arc::clone(&file), Effort::Quick).expect("memory");
            let reads = sweep.reads(65536, depth, 100).expect("no error");
            assert_eq!(reads.bytes, 65536 * reads.latencies.len() as u64);
            assert!((2 * depth..=100).contains(&reads.latencies.len()));
            assert_eq!(engine.deepest, depth);
            assert!(engine.offsets.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 65536));
        }
    }

    #[test]
    fn places_are_spread_over_the_whole_file() {
        let mut places = Places { file_bytes: 100 * 4096 + 77, drawn: 0 };
        let drawn: Vec<u64> = (0..60).map(|_| places.next(4096)).collect();
        assert!(drawn.iter().all(|&at| at.is_multiple_of(4096) && at <= 99 * 4096));
        let distinct: BTreeSet<_> = drawn.iter().collect();
        assert!(distinct.len() >= 58, "{} of 60 differ", distinct.len());
        let quarter = |n: u64| drawn.iter().filter(|&&at| at / (25 * 4096) == n).count();
        assert!((0..4).all(|n| (13..=17).contains(&quarter(n))));
        let mut tiny = Places { file_bytes: 10, drawn: 0 };
        assert_eq!((tiny.next(4096), tiny.next(0)), (0, 0));
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let of = |micros: &[u64]| {
            let latencies: Vec<_> = micros.iter().map(|&us| Duration::from_micros(us)).collect();
            latency(&latencies)
        };
        assert_eq!(of(&[]), None);
        let one = of(&[5]).expect("a latency");
        assert_eq!((one.reads, one.p50_s, one.p99_s), (1, 5e-6, 5e-6));
        let many: Vec<u64> = (1..=200).rev().collect();
        let many = of(&many).expect("a latency");
        assert_eq!((many.p50_s, many.p99_s), (100e-6, 198e-6));
    }
}
