//! How fast a drive reads, measured on the very file that is to be read.
//!
//! Reads are direct, at offsets spread over the whole file, each place at most once in a row of
//! reads; several sizes and several reads at a time. What was just written is flushed first:
//! a drive that is still writing is slow to read, and pages that are not yet written would have to
//! be flushed by our reads. Where direct reads are refused the page cache is asked to forget the
//! file before each point, and the result says that it isn't direct. A virtual machine's host may
//! cache the file as well; nothing in the guest can see or prevent that.

mod sweep;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hypura_io::{
    AllocError, DIRECT_ALIGN_MAX, EngineConfig, EngineError, EngineKind, File, OpenError,
    ReadError, open_engine,
};
use serde::{Deserialize, Serialize};

use sweep::Sweep;

use crate::host::{Host, System};
use crate::mount::Drive;

/// Smaller files are not measured: their reads would repeat, and repeat from the drive's cache.
pub const FILE_BYTES_MIN: u64 = 8 << 20;

/// Of the time that a measurement is meant to take, how much it may take on a slow drive. Points
/// that don't fit are left out.
const OVERTIME: u32 = 3;

/// Bytes in flight at most, whatever the grid asks for. Points beyond are left out.
const IN_FLIGHT_BYTES_MAX: usize = 128 << 20;

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
    /// What is measured with this effort.
    pub fn grid(self) -> Grid {
        let kib = |sizes: &[usize]| sizes.iter().map(|kib| kib << 10).collect();
        match self {
            Effort::Quick => Grid {
                sizes: kib(&[64, 512, 4096]),
                depths: vec![1, 4, 8],
                time_per_point: Duration::from_millis(50),
                run_bytes: 0,
            },
            Effort::Full => Grid {
                sizes: kib(&[64, 256, 1024, 2048, 4096, 8192]),
                depths: vec![1, 2, 4, 8],
                time_per_point: Duration::from_millis(160),
                run_bytes: 0,
            },
        }
    }
}

/// Which points are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// Sizes of reads in bytes, smallest first; multiples of 4096, for direct reads.
    pub sizes: Vec<usize>,
    /// Reads in flight at the same time, smallest first.
    pub depths: Vec<usize>,
    /// Time for each point, and for the small reads together.
    pub time_per_point: Duration,
    /// Reads follow each other for this many bytes, and then go on elsewhere; 0: each of them is
    /// elsewhere. Drives, and what is between them and us, read ahead of reads in a row.
    pub run_bytes: u64,
}

impl Grid {
    /// The drive's whole curve: reads of 64 KiB to 16 MiB, 1 to 32 at a time. Points that would
    /// take more than 128 MiB of memory are left out.
    pub fn curve(time_per_point: Duration) -> Grid {
        Grid {
            sizes: (16..=24).map(|log2| 1 << log2).collect(),
            depths: (0..=5).map(|log2| 1 << log2).collect(),
            time_per_point,
            run_bytes: 0,
        }
    }

    /// Points that may be measured of a file of this size, in order.
    fn points(&self, file_bytes: u64) -> impl Iterator<Item = (usize, usize)> {
        let all = self.depths.iter().flat_map(|&d| self.sizes.iter().map(move |&s| (s, d)));
        all.filter(move |&(size, depth)| {
            let bytes = size.saturating_mul(depth);
            // As many different places as reads in flight, at least.
            bytes <= IN_FLIGHT_BYTES_MAX && bytes as u64 <= file_bytes
        })
    }

    /// When to stop, whatever is left to do.
    fn time_max(&self) -> Duration {
        let points = self.sizes.len() * self.depths.len() + 1;
        self.time_per_point * u32::try_from(points).unwrap_or(u32::MAX) * OVERTIME
    }

    fn depth_max(&self) -> usize {
        self.depths.iter().copied().max().unwrap_or(1).max(1)
    }

    fn read_bytes_max(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(DIRECT_ALIGN_MAX).max(DIRECT_ALIGN_MAX)
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
    Engine(#[from] EngineError),
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
    let curve = probe_curve(file, &effort.grid(), EngineKind::Auto, &mut |_, _| {})?;
    Ok(Storage {
        drive: curve.drive,
        direct: curve.direct,
        direct_refused: curve.direct_refused,
        file_bytes: curve.file_bytes,
        effort,
        best: best(&curve.points),
        points: curve.points,
        small_read: curve.small_read,
        taken_unix_s: now_unix_s,
        note: curve.note,
    })
}

/// What [`probe_curve`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Curve {
    pub drive: Drive,
    /// How the reads were done, such as `pread`.
    pub engine: &'static str,
    /// Whether reads went past the page cache.
    pub direct: bool,
    /// Why they didn't.
    pub direct_refused: Option<String>,
    /// How large the measured file was.
    pub file_bytes: u64,
    /// Bandwidths; empty if the file was smaller than [`FILE_BYTES_MIN`].
    pub points: Vec<Point>,
    /// Small reads, one at a time.
    pub small_read: Option<Latency>,
    /// What a reader of the numbers has to know.
    pub note: Option<String>,
}

/// Measures the drive that holds `file` at the points of `grid`, with an engine of that kind.
/// `progress` is told how many points are done, and of how many.
///
/// # Errors
/// See [`StorageError`]. A file too small to measure is no error: it gives no points, and a note.
pub fn probe_curve(
    file: &Path,
    grid: &Grid,
    kind: EngineKind,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Curve, StorageError> {
    let drive = Drive::of(file);
    let drive = drive.map_err(|source| StorageError::Drive { path: file.to_owned(), source })?;
    let file = Arc::new(File::open(file)?);
    let mut engine = open_engine(EngineConfig {
        kind,
        depth: grid.depth_max(),
        read_ahead_depth: 1,
        // A read must stay one read.
        chunk_bytes: grid.read_bytes_max(),
        queue_requests: grid.depth_max(),
    })?;
    let mut curve = Curve {
        drive,
        engine: engine.name(),
        direct: file.is_direct(),
        direct_refused: file.direct_refused().map(str::to_owned),
        file_bytes: file.len(),
        points: Vec::new(),
        small_read: None,
        note: None,
    };
    if file.len() < FILE_BYTES_MIN {
        let note = format!("not measured: the file has less than {FILE_BYTES_MIN} bytes");
        curve.note = Some(note);
        return Ok(curve);
    }
    curve.note = match file.as_std().sync_data() {
        Err(error) => Some(format!("may be too slow: the file can't be flushed first: {error}")),
        Ok(()) => busy_writing(&System),
    };
    let mut sweep = Sweep::new(&mut *engine, Arc::clone(&file), grid);
    (curve.small_read, curve.points) = sweep.run(progress)?;
    // A file system may refuse only when it is asked to read.
    curve.direct = file.is_direct();
    curve.direct_refused = file.direct_refused().map(str::to_owned);
    Ok(curve)
}

/// The point with the highest bandwidth.
pub fn best(points: &[Point]) -> Option<Point> {
    points.iter().copied().max_by(|a, b| a.bytes_per_s.total_cmp(&b.bytes_per_s))
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

#[cfg(test)]
mod tests {
    use hypura_io::conformance::Sample;

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
}
