//! Writing a model whose tensors are made while it is written.
//!
//! The output is cut into slabs of a few MiB. Threads make them in turn, each with a random
//! generator of its own, and one thread writes them in order: memory is bounded by threads × slabs
//! and the bytes don't depend on the number of threads.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use hypura_gguf::{GgmlType, Metadata, WriteError, Writer};
use hypura_llama::quants::{self, QuantError};

use crate::blocks::{self, BlockError, Worth};
use crate::rng::Rng;
use hypura_gguf::output::{NewFile, OutputError};

/// Bytes of a slab, about.
const SLAB_BYTES: u64 = 4 << 20;
/// Finished slabs that may wait for the writer, per thread.
const SLABS_WAITING: usize = 1;
/// More threads than this would wait for any disk.
const THREADS_MAX: usize = 8;
/// Alignment of the tensors' data, GGUF's default.
const ALIGNMENT: u32 = 32;

/// Is told after each piece how many bytes of how many are written.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum StreamError {
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("{path:?} can't be written: {source}")]
    Write { path: PathBuf, source: WriteError },
    #[error("{path:?} can't be read: {source}; is it still being written?")]
    Source { path: PathBuf, source: io::Error },
    #[error("tensor {name:?}: {source}")]
    Quant { name: String, source: QuantError },
    #[error("tensor {name:?}: {source}")]
    Block { name: String, source: BlockError },
    #[error("tensor {name:?} has a shape that can't be processed")]
    Shape { name: String },
}

/// A tensor about to be written.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) ty: GgmlType,
    pub(crate) dims: Vec<u64>,
    pub(crate) rows: RowPlan,
}

/// What the rows of a tensor are.
#[derive(Debug)]
pub(crate) struct RowPlan {
    /// The rows of one matrix, top down; the same for each matrix of the tensor (each expert).
    pub(crate) segments: Vec<Segment>,
    /// Where [`Rows::Old`] come from.
    pub(crate) source: Option<Source>,
    /// Root mean square of columns behind the old ones, where the new row is longer.
    pub(crate) new_columns_rms: f32,
}

/// Some rows of one matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) n_rows: u64,
    pub(crate) rows: Rows,
}

/// Where rows come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows {
    /// From the source, from this row of its matrix on.
    Old { first: u64 },
    /// Made up.
    New(Worth),
    /// All ones, in F32.
    Ones,
}

/// A tensor in a file.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    /// First byte in the file.
    pub(crate) offset: u64,
    pub(crate) ty: GgmlType,
    pub(crate) columns: u64,
    /// Rows of one matrix.
    pub(crate) n_rows: u64,
}

/// Some rows of one tensor, counted over all its matrices.
struct Slab {
    job: usize,
    rows: Range<u64>,
    seed: u64,
}

/// Writes a model; the file appears when all of it is on the disk.
pub(crate) fn write(
    path: &Path,
    metadata: Metadata,
    jobs: &[Job],
    seed: u64,
    progress: Progress<'_>,
) -> Result<(), StreamError> {
    let n_threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    write_by(n_threads, path, metadata, jobs, seed, progress)
}

fn write_by(
    n_threads: usize,
    path: &Path,
    metadata: Metadata,
    jobs: &[Job],
    seed: u64,
    progress: Progress<'_>,
) -> Result<(), StreamError> {
    let write_error = |source| StreamError::Write { path: path.to_owned(), source };
    let mut writer = Writer::new(metadata, ALIGNMENT).map_err(write_error)?;
    for job in jobs {
        writer.add_tensor(&job.name, job.ty, &job.dims).map_err(write_error)?;
    }
    let total_bytes = writer.data_bytes() + writer.header().len() as u64;
    // Before the slabs are cut: a model that no disk holds would have a great many.
    let mut new = NewFile::create(path, total_bytes, true, [])?;
    let slabs = cut(jobs, seed)?;

    thread::scope(|scope| {
        let receivers: Vec<Receiver<_>> = (0..n_threads)
            .map(|thread| {
                let (sender, receiver) = sync_channel(SLABS_WAITING);
                let own = slabs.iter().skip(thread).step_by(n_threads);
                scope.spawn(move || make_slabs(jobs, own, &sender));
                receiver
            })
            .collect();

        let mut out = BufWriter::new(new.file());
        // Slabs come in order from thread after thread.
        let mut next = slabs.iter().zip(receivers.iter().cycle()).peekable();
        let (mut written, mut failure) = (0, None);
        let result = writer.write(&mut out, |index, sink| {
            while let Some((_, receiver)) = next.next_if(|(slab, _)| slab.job == index) {
                let made = receiver.recv().map_err(|_| io::Error::other("a thread has died"))?;
                let bytes = made.map_err(|error| {
                    failure = Some(error);
                    io::Error::other("a tensor could not be made")
                })?;
                sink.write_all(&bytes)?;
                written += bytes.len() as u64;
                progress(written, total_bytes);
            }
            Ok(())
        });
        // Dropping the receivers ends threads that still make slabs.
        drop(next);
        drop(receivers);
        match failure {
            Some(error) => Err(error),
            None => result.and_then(|()| out.flush().map_err(WriteError::Io)).map_err(write_error),
        }
    })?;
    new.publish()?;
    progress(total_bytes, total_bytes);
    Ok(())
}

/// Cuts all tensors into slabs, in the order of the file.
fn cut(jobs: &[Job], seed: u64) -> Result<Vec<Slab>, StreamError> {
    let mut slabs = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        let row_bytes = job.row_bytes()?.max(1);
        let n_rows: u64 = job.dims.iter().skip(1).product();
        let step = (SLAB_BYTES / row_bytes).max(1);
        let mut start = 0;
        while start < n_rows {
            let end = n_rows.min(start + step);
            // Named by the tensor and the row, not by a running number: whatever else the model
            // holds, a tensor's random numbers stay the same.
            let name = job
                .name
                .bytes()
                .fold(seed, |hash, byte| Rng::new(hash ^ u64::from(byte)).next_u64());
            slabs.push(Slab { job: index, rows: start..end, seed: name.wrapping_add(start) });
            start = end;
        }
    }
    Ok(slabs)
}

/// The work of one thread.
fn make_slabs<'a>(
    jobs: &[Job],
    slabs: impl Iterator<Item = &'a Slab>,
    sender: &SyncSender<Result<Vec<u8>, StreamError>>,
) {
    for slab in slabs {
        let Some(job) = jobs.get(slab.job) else { return };
        let made = job.make(slab);
        let is_error = made.is_err();
        // The writer has gone if nobody receives: it failed and says so itself.
        if sender.send(made).is_err() || is_error {
            return;
        }
    }
}

impl Job {
    /// A tensor as it lies in the source.
    pub(crate) fn copy(name: &str, dims: &[u64], source: Source) -> Job {
        Job::convert(name, source.ty, dims, source)
    }

    /// A tensor of the source in another type.
    pub(crate) fn convert(name: &str, ty: GgmlType, dims: &[u64], source: Source) -> Job {
        let segments = vec![Segment { n_rows: source.n_rows, rows: Rows::Old { first: 0 } }];
        let rows = RowPlan { segments, source: Some(source), new_columns_rms: 0.0 };
        Job { name: name.to_owned(), ty, dims: dims.to_vec(), rows }
    }

    /// A tensor without a source.
    pub(crate) fn new(name: &str, ty: GgmlType, dims: &[u64], rows: Rows) -> Job {
        let n_rows = dims.iter().skip(1).product();
        let segments = vec![Segment { n_rows, rows }];
        let rows = RowPlan { segments, source: None, new_columns_rms: 0.0 };
        Job { name: name.to_owned(), ty, dims: dims.to_vec(), rows }
    }

    fn shape_error(&self) -> StreamError {
        StreamError::Shape { name: self.name.clone() }
    }

    fn columns(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    fn row_bytes(&self) -> Result<u64, StreamError> {
        self.ty.row_bytes(self.columns()).ok_or_else(|| self.shape_error())
    }

    /// The bytes of a slab.
    fn make(&self, slab: &Slab) -> Result<Vec<u8>, StreamError> {
        let mut rng = Rng::new(slab.seed);
        let row_bytes = self.row_bytes()?;
        let matrix_rows: u64 = self.rows.segments.iter().map(|segment| segment.n_rows).sum();
        let n_rows = slab.rows.end.saturating_sub(slab.rows.start);
        let mut out = Vec::with_capacity(to_usize(n_rows * row_bytes));
        let mut row = slab.rows.start;
        while row < slab.rows.end {
            let matrix = row.checked_div(matrix_rows).ok_or_else(|| self.shape_error())?;
            let in_matrix = row - matrix * matrix_rows;
            let (segment, in_segment) = self.segment_at(in_matrix)?;
            let n = (segment.n_rows - in_segment).min(slab.rows.end - row);
            match segment.rows {
                Rows::Old { first } => {
                    self.old_rows(matrix, first + in_segment, n, &mut rng, &mut out)?;
                }
                Rows::New(worth) => self.new_blocks(n * row_bytes, worth, &mut rng, &mut out)?,
                Rows::Ones => {
                    (0..n * self.columns()).for_each(|_| out.extend(1f32.to_le_bytes()));
                }
            }
            row += n;
        }
        Ok(out)
    }

    /// The segment of a row of a matrix, and the row's number in it.
    fn segment_at(&self, mut row: u64) -> Result<(Segment, u64), StreamError> {
        for &segment in &self.rows.segments {
            if row < segment.n_rows {
                return Ok((segment, row));
            }
            row -= segment.n_rows;
        }
        Err(self.shape_error())
    }

    fn new_blocks(
        &self,
        n_bytes: u64,
        worth: Worth,
        rng: &mut Rng,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamError> {
        let start = out.len();
        out.resize(start + to_usize(n_bytes), 0);
        let fresh = out.get_mut(start..).unwrap_or_default();
        blocks::fill(self.ty, worth, rng, fresh)
            .map_err(|source| StreamError::Block { name: self.name.clone(), source })
    }

    /// Appends `n` rows of the source, from row `first` of a matrix on, in the new type and at the
    /// new length.
    fn old_rows(
        &self,
        matrix: u64,
        first: u64,
        n: u64,
        rng: &mut Rng,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamError> {
        let source = self.rows.source.as_ref().ok_or_else(|| self.shape_error())?;
        let old = source.read(matrix * source.n_rows + first, n).map_err(|error| match error {
            Some(error) => StreamError::Source { path: source.path.clone(), source: error },
            None => self.shape_error(),
        })?;
        let old = if source.ty == self.ty { old } else { self.converted(source, &old)? };
        if source.columns == self.columns() {
            out.extend(old);
            return Ok(());
        }
        let worth = Worth::Rms(self.rows.new_columns_rms);
        let old_bytes = self
            .ty
            .row_bytes(source.columns)
            .filter(|&b| b > 0)
            .ok_or_else(|| self.shape_error())?;
        let new_bytes =
            self.row_bytes()?.checked_sub(old_bytes).ok_or_else(|| self.shape_error())?;
        for row in old.chunks_exact(to_usize(old_bytes)) {
            out.extend(row);
            self.new_blocks(new_bytes, worth, rng, out)?;
        }
        Ok(())
    }

    /// Rows of the source in the new type, by way of F32.
    fn converted(&self, source: &Source, old: &[u8]) -> Result<Vec<u8>, StreamError> {
        let quant_error = |source| StreamError::Quant { name: self.name.clone(), source };
        let elements = old.len() as u64 / source.ty.block_bytes() * source.ty.block_elements();
        let mut values = vec![0f32; to_usize(elements)];
        quants::dequantize_row(source.ty.id(), old, &mut values).map_err(quant_error)?;
        quants::quantize_rows(self.ty.id(), &values, to_usize(source.columns)).map_err(quant_error)
    }
}

impl Source {
    /// Reads `n` rows from `row` on, counted over all matrices; `None` if there are no such rows.
    fn read(&self, row: u64, n: u64) -> Result<Vec<u8>, Option<io::Error>> {
        let row_bytes = self.ty.row_bytes(self.columns).ok_or(None)?;
        let (start, len) = row.checked_mul(row_bytes).zip(n.checked_mul(row_bytes)).ok_or(None)?;
        let mut bytes = vec![0; to_usize(len)];
        self.file.read_exact_at(&mut bytes, self.offset + start)?;
        Ok(bytes)
    }
}

/// Lengths of buffers: a few MiB, or a single row.
fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 64 rows of 32 numbers in F32, each the number of its row.
    fn numbers(folder: &Path) -> Source {
        let path = folder.join("numbers");
        let bytes: Vec<u8> =
            (0..64u8).flat_map(|row| [row; 32]).flat_map(|n| f32::from(n).to_le_bytes()).collect();
        std::fs::write(&path, bytes).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        // Four matrices of 16 rows.
        Source { file, path, offset: 0, ty: GgmlType::F32, columns: 32, n_rows: 16 }
    }

    fn file_of(n_threads: usize, folder: &Path, jobs: &[Job]) -> Vec<u8> {
        let path = folder.join("out.gguf");
        write_by(n_threads, &path, Metadata::new(), jobs, 1, &mut |_, _| {}).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        // 17 slabs and a part, and small tensors between.
        let random = Rows::New(Worth::Rms(1.0));
        let jobs = [
            Job::new("a", GgmlType::Q8_0, &[4096, 16_500], random),
            Job::new("norm", GgmlType::F32, &[7], Rows::Ones),
            Job::new("b", GgmlType::Q4_0, &[64, 3, 5], random),
            Job::copy("c", &[32, 16, 4], numbers(folder.path())),
        ];
        let one = file_of(1, folder.path(), &jobs);
        assert!(one == file_of(3, folder.path(), &jobs));
        let slabs: Vec<&[u8]> = one.chunks(to_usize(SLAB_BYTES)).collect();
        assert!(slabs.windows(2).all(|pair| pair[0] != pair[1]), "each slab is another");
    }

    #[test]
    fn segments_repeat_for_each_matrix() {
        let folder = tempfile::tempdir().unwrap();
        let source = numbers(folder.path());
        let old = |first, n_rows| Segment { n_rows, rows: Rows::Old { first } };
        let rows = RowPlan {
            segments: vec![old(8, 8), Segment { n_rows: 1, rows: Rows::Ones }, old(0, 2)],
            source: Some(source),
            new_columns_rms: 0.0,
        };
        let dims = vec![32, 11, 4];
        let job = Job { name: "x".into(), ty: GgmlType::F32, dims, rows };
        let slab = |rows| Slab { job: 0, rows, seed: 0 };
        let firsts = |rows: Range<u64>| -> Vec<f32> {
            let bytes = job.make(&slab(rows)).unwrap();
            let number = |row: &[u8]| f32::from_le_bytes([row[0], row[1], row[2], row[3]]);
            bytes.chunks(128).map(number).collect()
        };
        let first = [8., 9., 10., 11., 12., 13., 14., 15., 1., 0., 1.];
        assert_eq!(firsts(0..11), first);
        assert_eq!(firsts(7..13), [15., 1., 0., 1., 24., 25.]);
        assert_eq!(firsts(42..44), [48., 49.]);
        // Any cut gives the same rows.
        let whole = firsts(0..44);
        let pieces: Vec<f32> = (0..44).flat_map(|row| firsts(row..row + 1)).collect();
        assert_eq!(whole, pieces);
    }

    #[test]
    fn a_source_that_ends_early_is_an_error_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = numbers(folder.path());
        source.offset = 4;
        let random = Rows::New(Worth::Rms(1.0));
        let jobs = [
            Job::new("a", GgmlType::Q8_0, &[4096, 8000], random),
            Job::copy("c", &[32, 16, 4], source),
            Job::new("b", GgmlType::Q8_0, &[4096, 8000], random),
        ];
        let out = folder.path().join("out.gguf");
        for n_threads in [1, 2, 5] {
            let result = write_by(n_threads, &out, Metadata::new(), &jobs, 1, &mut |_, _| {});
            let error = result.unwrap_err();
            assert!(matches!(&error, StreamError::Source { .. }), "{error}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the source");
        }
    }
}
