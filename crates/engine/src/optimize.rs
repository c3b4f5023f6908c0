//! Making a hot file: a model laid out for streaming, and for this CPU.
//!
//! The file's layout is decided first ([`HotWriter`]). Then threads read and rearrange it in pieces
//! of a few MiB, each its share in turn, and one writes them in order: memory is bounded by threads
//! and pieces, and the bytes don't depend on the number of threads.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use hypura_gguf::hot::{HotLayout, HotModel, HotWriteError, HotWriter, Piece, VerifyError};
use hypura_gguf::{GgmlType, Model, OpenError, Tensor};
use hypura_io as files;
use hypura_llama::Repacker;
use hypura_profile::probe_cpu;

/// Bytes that are read, rearranged and written at once, where the layout lets a slice be cut.
const CHUNK_BYTES: u64 = 4 << 20;
/// Finished chunks that may wait for the writer, per thread.
const CHUNKS_WAITING: usize = 1;
/// More threads than this would wait for any drive.
const THREADS_MAX: u32 = 8;

/// How to make a hot file.
#[derive(Debug, Clone, Default)]
pub struct OptimizeOptions {
    /// Threads that read and rearrange; `None` is as many as there are free cores.
    pub threads: Option<u32>,
    /// Whether an existing file may be replaced.
    pub replace: bool,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimizeStep {
    /// Reading, rearranging and writing.
    Write,
    /// Reading what was written.
    Verify,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Optimized {
    /// Bytes of the source's files.
    pub source_bytes: u64,
    /// Bytes of the new file.
    pub file_bytes: u64,
    /// Blocks that can be streamed: experts or matrices.
    pub blocks: u64,
    /// Tensors that can be streamed, by type and by whether they were rearranged.
    pub streamable: BTreeMap<(GgmlType, bool), TensorCount>,
    /// All others.
    pub others: TensorCount,
}

/// Some tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorCount {
    /// How many.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl TensorCount {
    fn add(&mut self, tensor: &Tensor) {
        self.tensors += 1;
        self.bytes += tensor.bytes;
    }
}

/// Why no hot file was made. Nothing is left of it then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizeError {
    /// The source is no sound model.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file can't be written, or not of this model.
    #[error(transparent)]
    Write(#[from] HotWriteError),
    /// What was written is not what is read.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A file of the source can't be opened.
    #[error(transparent)]
    Source(#[from] files::OpenError),
    /// A file of the source was changed meanwhile.
    #[error(transparent)]
    Changed(#[from] files::ChangedError),
    /// The progress callback asked for it.
    #[error("stopped before the file was complete")]
    Stopped,
}

/// Told what is being done, and how many bytes of how many; answers whether to go on.
pub type OptimizeProgress<'a> = &'a mut dyn FnMut(OptimizeStep, u64, u64) -> bool;

/// Writes the hot file of the model at `path` to `out`, rearranged for this CPU where ggml does
/// that, and reads it again to check it.
///
/// # Errors
/// See [`OptimizeError`].
pub fn optimize(
    path: &Path,
    out: &Path,
    options: &OptimizeOptions,
    progress: OptimizeProgress<'_>,
) -> Result<Optimized, OptimizeError> {
    let model = Model::open(path)?;
    let mut repacker = Repacker::new();
    let writer =
        HotWriter::new(&model, |tensor, slices| layout(repacker.as_mut(), tensor, slices))?;
    let done = summary(&model, &writer);
    let chunks = chunks(&model, writer.pieces(), repacker.as_ref());
    let sources = Sources::open(&model)?;

    let threads = options.threads.or_else(|| Some(probe_cpu().ok()?.cores_free));
    let threads = threads.unwrap_or(1).clamp(1, THREADS_MAX) as usize;
    let total = chunks.iter().map(|chunk| chunk.len as u64).sum();
    let (mut written, mut is_stopped) = (0, false);
    let file = std::thread::scope(|scope| {
        let (chunks, sources) = (chunks.as_slice(), &sources);
        let mut ready: Vec<Receiver<io::Result<Vec<u8>>>> = Vec::new();
        for worker in 0..threads {
            let (sender, receiver) = sync_channel(CHUNKS_WAITING);
            ready.push(receiver);
            let own = chunks.iter().skip(worker).step_by(threads);
            let thread = std::thread::Builder::new().name(format!("hypura-repack-{worker}"));
            let spawned = thread.spawn_scoped(scope, move || work(own, sources, &sender));
            if let Err(error) = spawned {
                // Its receiver will say that nothing comes; this is why.
                tracing::warn!("a thread to rearrange weights can't be started: {error}");
            }
        }
        let mut next = chunks.iter().zip(ready.iter().cycle()).peekable();
        let file = writer.write(out, &model, options.replace, |piece, sink| {
            while let Some((chunk, ready)) = next.next_if(|(chunk, _)| chunk.piece == piece) {
                let bytes =
                    ready.recv().map_err(|_| io::Error::other("a thread ended early"))??;
                sink.write_all(&bytes)?;
                written += chunk.len as u64;
                if !progress(OptimizeStep::Write, written, total) {
                    is_stopped = true;
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
            Ok(())
        });
        // Threads that wait for room end when nobody can take what they have.
        drop(ready);
        file
    });
    if is_stopped {
        return Err(OptimizeError::Stopped);
    }
    let file = file?;
    sources.check_unchanged()?;
    match file.verify(|read, total| progress(OptimizeStep::Verify, read, total)) {
        Ok(()) => {}
        Err(VerifyError::Stopped { .. }) => return Err(OptimizeError::Stopped),
        Err(error) => return Err(error.into()),
    }
    file.publish().map_err(HotWriteError::from)?;
    Ok(done)
}

/// A hot file was made for another kind of CPU.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} of this optimised model is laid out for another kind of CPU; run hypura optimize on \
     the original model here"
)]
pub struct OtherCpu {
    /// The first tensor that is of no use here.
    pub name: String,
}

/// Whether this CPU can multiply with the tensors of a hot file as they lie.
///
/// # Errors
/// [`OtherCpu`] if it can't with one of them.
pub fn suits_this_cpu(hot: &HotModel) -> Result<(), OtherCpu> {
    let mut repacker = Repacker::new();
    for (index, tensor) in hot.view.tensors.iter().enumerate() {
        let Some(place) = hot.place(index).filter(|place| place.layout.is_repacked()) else {
            continue;
        };
        if layout(repacker.as_mut(), tensor, place.n_slices.into()) != place.layout {
            return Err(OtherCpu { name: tensor.name.clone() });
        }
    }
    Ok(())
}

/// As this CPU wants it, if it wants it in any particular way.
fn layout(repacker: Option<&mut Repacker>, tensor: &Tensor, slices: u64) -> HotLayout {
    let (ty, [ne0, ne1, ..]) = (tensor.ty.id(), tensor.dims);
    let Some(repacker) = repacker else { return HotLayout::Plain };
    if !repacker.repacks(ty, ne0, ne1, slices, tensor.role.is_expert()) {
        return HotLayout::Plain;
    }
    match repacker.fingerprint(ty, ne0, ne1) {
        Ok(fingerprint) => HotLayout::Repacked { fingerprint },
        Err(error) => {
            tracing::warn!("{} stays as it is: {error}", tensor.name);
            HotLayout::Plain
        }
    }
}

fn summary(model: &Model, writer: &HotWriter) -> Optimized {
    let mut streamable: BTreeMap<_, TensorCount> = BTreeMap::new();
    let mut others = TensorCount::default();
    for (index, tensor) in model.tensors.iter().enumerate() {
        match writer.layout(index) {
            Some(layout) => {
                streamable.entry((tensor.ty, layout.is_repacked())).or_default().add(tensor);
            }
            None => others.add(tensor),
        }
    }
    Optimized {
        source_bytes: model.file_bytes(),
        file_bytes: writer.file_bytes(),
        blocks: writer.n_blocks(),
        streamable,
        others,
    }
}

/// What is read, rearranged and written at once.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    /// Index of the piece that it is of.
    piece: usize,
    file: usize,
    offset: u64,
    len: usize,
    /// How to rearrange it, if at all: ggml's type, elements of a row, rows.
    repack: Option<(u32, u64, u64)>,
}

/// All pieces, cut into chunks.
fn chunks(model: &Model, pieces: &[Piece], repacker: Option<&Repacker>) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let mut repack = None;
        let mut each = CHUNK_BYTES;
        let row_bytes = piece.source.len / piece.rows.max(1);
        if let (true, Some(tensor), Some(repacker)) =
            (piece.layout.is_repacked(), model.tensors.get(piece.tensor), repacker)
        {
            let (ty, ne0) = (tensor.ty.id(), tensor.dims[0]);
            each = repacker.rows_at_a_time(ty, ne0, piece.rows, CHUNK_BYTES) * row_bytes;
            repack = Some((ty, ne0));
        }
        let mut done = 0;
        while done < piece.source.len {
            let len = each.min(piece.source.len - done);
            chunks.push(Chunk {
                piece: index,
                file: piece.source.file,
                offset: piece.source.offset + done,
                // Chunks are small, or else no larger than a slice that lies in memory to be used.
                len: usize::try_from(len).unwrap_or(usize::MAX),
                repack: repack.map(|(ty, ne0)| (ty, ne0, len / row_bytes)),
            });
            done += len;
        }
    }
    chunks
}

/// The source's files.
struct Sources(Vec<files::File>);

impl Sources {
    fn open(model: &Model) -> Result<Sources, files::OpenError> {
        let open = |path| files::File::open_with(path, files::Access::Buffered);
        let opened = model.files.iter().map(|file| open(&file.path));
        Ok(Sources(opened.collect::<Result<_, _>>()?))
    }

    fn check_unchanged(&self) -> Result<(), files::ChangedError> {
        self.0.iter().try_for_each(files::File::check_unchanged)
    }

    fn read(&self, chunk: &Chunk) -> io::Result<Vec<u8>> {
        let file = self.0.get(chunk.file).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; chunk.len];
        file.as_std().read_exact_at(&mut bytes, chunk.offset)?;
        Ok(bytes)
    }
}

/// Reads and rearranges chunks until all are done, one fails, or nobody wants them any more.
fn work<'a>(
    chunks: impl Iterator<Item = &'a Chunk>,
    sources: &Sources,
    ready: &SyncSender<io::Result<Vec<u8>>>,
) {
    let mut repacker = None;
    for chunk in chunks {
        let bytes = sources.read(chunk).and_then(|bytes| match chunk.repack {
            None => Ok(bytes),
            Some(shape) => rearranged(&mut repacker, shape, &bytes),
        });
        let failed = bytes.is_err();
        if ready.send(bytes).is_err() || failed {
            return;
        }
    }
}

fn rearranged(
    repacker: &mut Option<Repacker>,
    (ty, ne0, ne1): (u32, u64, u64),
    bytes: &[u8],
) -> io::Result<Vec<u8>> {
    if repacker.is_none() {
        *repacker = Repacker::new();
    }
    let repacker = repacker.as_mut();
    let repacker = repacker.ok_or_else(|| io::Error::other("ggml rearranges nothing any more"))?;
    let mut out = vec![0; bytes.len()];
    repacker.repack(ty, ne0, ne1, bytes, &mut out).map_err(io::Error::other)?;
    Ok(out)
}
