//! Reads of one size at one depth, in a row; and rows of them over a grid of sizes and depths.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hypura_io::{AllocError, Buffer, Completion, File, QueueFull, ReadEngine, ReadRequest, Wait};

use super::{Grid, IN_FLIGHT_BYTES_MAX, Latency, Point, StorageError};

/// Size of a small read, in bytes.
const SMALL_READ_BYTES: usize = 4096;

/// Small reads are measured this many times at most.
const SMALL_READS_MAX: usize = 1000;

/// A measurement under way.
pub(super) struct Sweep<'a> {
    engine: &'a mut dyn ReadEngine,
    file: Arc<File>,
    grid: &'a Grid,
    /// One for each read that may be in flight.
    free: Vec<Buffer>,
    places: Places,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(
        engine: &'a mut dyn ReadEngine,
        file: Arc<File>,
        grid: &'a Grid,
    ) -> Sweep<'a> {
        let run_bytes = grid.run_bytes;
        let places = Places { file_bytes: file.len(), run_bytes, drawn: 0, at: 0, run_end: 0 };
        Sweep { engine, file, grid, free: Vec::new(), places }
    }

    pub(super) fn run(
        &mut self,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Option<Latency>, Vec<Point>), StorageError> {
        let start = Instant::now();
        let latency = latency(&self.reads(SMALL_READ_BYTES, 1, SMALL_READS_MAX)?.latencies);
        let mut points = Vec::new();
        let wanted: Vec<_> = self.grid.points(self.file.len()).collect();
        for (i, &(size, depth)) in wanted.iter().enumerate() {
            progress(i as u64, wanted.len() as u64);
            if start.elapsed() > self.grid.time_max() {
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
        Ok((latency, points))
    }

    /// Has `depth` buffers for the largest reads that happen at this depth.
    fn make_buffers(&mut self, size: usize, depth: usize) -> Result<(), AllocError> {
        let largest = self.grid.read_bytes_max().min(IN_FLIGHT_BYTES_MAX / depth.max(1)).max(size);
        let held: usize = self.free.iter().map(Buffer::len).sum();
        let missing = depth.saturating_sub(self.free.len());
        if self.free.iter().any(|buffer| buffer.len() < size)
            || held + missing * largest > IN_FLIGHT_BYTES_MAX
        {
            self.free.clear();
        }
        let align = self.file.alignment().memory.max(SMALL_READ_BYTES);
        while self.free.len() < depth {
            let mut buffer = Buffer::aligned(largest, align)?;
            // Pages that are touched for the first time would slow the first reads down.
            buffer.as_mut_slice().fill(1);
            self.free.push(buffer);
        }
        Ok(())
    }

    /// Keeps `depth` reads of `size` bytes in flight for the time of a point, twice `depth` reads
    /// at least and `reads_max` at most, and waits for the last of them.
    fn reads(
        &mut self,
        size: usize,
        depth: usize,
        reads_max: usize,
    ) -> Result<Reads, StorageError> {
        self.make_buffers(size, depth)?;
        forget(&self.file);
        let mut reads = Reads { bytes: 0, elapsed: Duration::ZERO, latencies: Vec::new() };
        let (mut submitted, mut done) = (0, Vec::new());
        let mut failed = None;
        let start = Instant::now();
        loop {
            let wants_more = failed.is_none()
                && submitted < reads_max
                && (submitted < 2 * depth || start.elapsed() < self.grid.time_per_point);
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

/// Where in the file to read: spread over all of it, alone or in runs.
struct Places {
    file_bytes: u64,
    run_bytes: u64,
    drawn: u64,
    /// The place after the last one, and the end of its run.
    at: u64,
    run_end: u64,
}

impl Places {
    /// An offset for `size` bytes: the next one of a run, or the first one of a new run.
    fn next(&mut self, size: usize) -> u64 {
        let size = size as u64;
        if self.at + size > self.run_end {
            let run = self.run_bytes.max(size).min(self.file_bytes);
            self.at = self.elsewhere(run);
            self.run_end = self.at + run;
        }
        let offset = self.at;
        self.at += size;
        offset
    }

    /// An offset for `size` bytes, a multiple of `size`.
    ///
    /// The n-th place is the fractional part of n times the golden ratio, which spreads any number
    /// of places evenly (Knuth, The Art of Computer Programming, 6.4): neighbours in time are far
    /// apart in the file, and a place comes again only when most others have been read.
    fn elsewhere(&mut self, size: u64) -> u64 {
        /// The golden ratio's fraction, of 2 to the 64.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        self.drawn += 1;
        let slots = self.file_bytes / size.max(1);
        let fraction = u128::from(self.drawn.wrapping_mul(GOLDEN));
        let slot = (fraction * u128::from(slots)) >> 64;
        u64::try_from(slot).unwrap_or(0) * size // less than `slots`, so it fits
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
    use hypura_io::{Access, Fault, FaultEngine, FaultPlan, PoolConfig, PreadPool, ReadStats};

    use super::*;
    use crate::storage::Effort;

    #[test]
    fn a_failed_read_is_an_error_after_all_reads_came_back() {
        let sample = Sample::new(9 << 20);
        let pool = PreadPool::new(PoolConfig::default()).expect("a pool");
        let plan = FaultPlan { at: BTreeMap::from([(30, Fault::Fail)]), ..FaultPlan::default() };
        let mut engine = FaultEngine::new(pool, plan);
        let file = Arc::new(sample.open(Access::Buffered));
        let grid = Effort::Quick.grid();
        let mut sweep = Sweep::new(&mut engine, file, &grid);
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

        /// All reads are demands already.
        fn promote(&mut self, _tag: u64) {}

        /// Nothing is slow enough to be worth it.
        fn cancel(&mut self, _tag: u64) {}

        fn stats(&self) -> ReadStats {
            ReadStats::default()
        }

        fn name(&self) -> &'static str {
            "instantly"
        }
    }

    #[test]
    fn keeps_the_depth_and_never_reads_in_order() {
        let sample = Sample::new(9 << 20);
        let file = Arc::new(sample.open(Access::Buffered));
        for depth in [1, 4, 8] {
            let mut engine = Instantly::default();
            let grid = Effort::Quick.grid();
            let mut sweep = Sweep::new(&mut engine, Arc::clone(&file), &grid);
            let reads = sweep.reads(65536, depth, 100).expect("no error");
            assert_eq!(reads.bytes, 65536 * reads.latencies.len() as u64);
            assert!((2 * depth..=100).contains(&reads.latencies.len()));
            assert_eq!(engine.deepest, depth);
            assert!(engine.offsets.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 65536));
        }
    }

    #[test]
    fn places_are_spread_over_the_whole_file() {
        let mut places =
            Places { file_bytes: 100 * 4096 + 77, run_bytes: 0, drawn: 0, at: 0, run_end: 0 };
        let drawn: Vec<u64> = (0..60).map(|_| places.next(4096)).collect();
        assert!(drawn.iter().all(|&at| at.is_multiple_of(4096) && at <= 99 * 4096));
        let distinct: BTreeSet<_> = drawn.iter().collect();
        assert!(distinct.len() >= 58, "{} of 60 differ", distinct.len());
        let quarter = |n: u64| drawn.iter().filter(|&&at| at / (25 * 4096) == n).count();
        assert!((0..4).all(|n| (13..=17).contains(&quarter(n))));
        let mut tiny = Places { file_bytes: 10, run_bytes: 0, drawn: 0, at: 0, run_end: 0 };
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
