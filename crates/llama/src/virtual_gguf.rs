//! A GGUF file that exists only in the answers of a read callback.
//!
//! llama.cpp loads a model whole, from one file. It is given a virtual file instead: a header of
//! our own, with every tensor of every split file, each on a boundary of the stdio buffer; behind
//! it the tensors' bytes, fetched from the real files as they are asked for. A streamed tensor is
//! never fetched: llama.cpp seeks to a tensor and then reads `min(len, size - position)` bytes, so
//! a seek to a streamed tensor is answered with the end of the file, and the read that follows is
//! empty (`llama_file::read_raw_unsafe` in `src/llama-mmap.cpp`).

use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hypura_gguf as gguf;
use hypura_io as io;

use crate::cookie::STDIO_BUFFER_BYTES;

/// Bytes that are fetched at once. Two such windows are in memory: one is copied out while the
/// next is being read.
const WINDOW_BYTES: usize = 4 << 20;

/// Counts what was served; shared with whoever opened the file.
#[derive(Debug, Default)]
pub struct ServeCounts {
    resident_bytes: AtomicU64,
    streamed_bytes: AtomicU64,
    skips: AtomicU64,
    /// Bytes served of each tensor, in the order of the model.
    per_tensor: Vec<AtomicU64>,
}

/// A snapshot of [`ServeCounts`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Bytes of resident tensors fetched from the files.
    pub resident_bytes: u64,
    /// Bytes of streamed tensors that were asked for nevertheless.
    pub streamed_bytes: u64,
    /// Seeks that were answered with the end of the file.
    pub skips: u64,
    /// A resident tensor of which some bytes were read, but not all: its number.
    pub partial: Option<usize>,
}

impl ServeCounts {
    /// The counts so far, for the tensors of `model`.
    pub fn get(&self, model: &gguf::Model) -> Served {
        let served = self.per_tensor.iter().map(|n| n.load(Ordering::Relaxed));
        let partial = served.zip(&model.tensors).position(|(n, tensor)| n > 0 && n < tensor.bytes);
        Served {
            skips: self.skips.load(Ordering::Relaxed),
            partial,
            resident_bytes: self.resident_bytes.load(Ordering::Relaxed),
            streamed_bytes: self.streamed_bytes.load(Ordering::Relaxed),
        }
    }
}

/// The virtual file.
pub struct VirtualGguf {
    header: Vec<u8>,
    extents: Vec<Extent>,
    len: u64,
    position: u64,
    windows: Windows,
    counts: Arc<ServeCounts>,
}

/// Where a tensor lies, virtually and really.
#[derive(Debug, Clone, Copy)]
struct Extent {
    start: u64,
    bytes: u64,
    file: usize,
    offset: u64,
    /// Its bytes lie in pieces of this many: all of them, but in hot files.
    slice_bytes: u64,
    /// Bytes from one piece to the next.
    stride: u64,
    streamed: bool,
}

impl VirtualGguf {
    /// The virtual file of `model`, read through `reader` from `files` (in the order of
    /// `model.files`). Tensors for which `streamed` holds are skipped. If `model` is the view of a
    /// hot file, that says where its tensors lie.
    ///
    /// # Errors
    /// When no header can be written for the model.
    pub fn new(
        (model, hot): (&gguf::Model, Option<&gguf::hot::HotModel>),
        files: Vec<Arc<io::File>>,
        reader: Box<dyn io::ReadEngine>,
        streamed: impl Fn(&str) -> bool,
    ) -> Result<(VirtualGguf, Arc<ServeCounts>)> {
        let alignment = u32::try_from(STDIO_BUFFER_BYTES).map_err(Error::other)?;
        let header = gguf::virtual_header(model, alignment, |_| true).map_err(Error::other)?;
        let data = header.bytes.len() as u64;
        let extents = model
            .tensors
            .iter()
            .zip(&header.offsets)
            .enumerate()
            .map(|(index, (tensor, offset))| {
                let place = hot.and_then(|hot| hot.place(index));
                Extent {
                    start: data + offset,
                    bytes: tensor.bytes,
                    file: tensor.file,
                    offset: place.map_or(tensor.offset, |place| place.offset),
                    slice_bytes: place.map_or(tensor.bytes, |place| place.slice_bytes),
                    stride: place.map_or(tensor.bytes, |place| place.stride),
                    streamed: streamed(&tensor.name),
                }
            })
            .collect();
        let counts = Arc::new(ServeCounts {
            per_tensor: model.tensors.iter().map(|_| AtomicU64::new(0)).collect(),
            ..ServeCounts::default()
        });
        let file = VirtualGguf {
            header: header.bytes,
            extents,
            len: header.file_len,
            position: 0,
            windows: Windows { files, reader, current: None, next: None, spare: Vec::new() },
            counts: Arc::clone(&counts),
        };
        Ok((file, counts))
    }

    /// The tensor whose bytes, or padding, lie at `position`.
    fn extent_at(&self, position: u64) -> Option<(usize, Extent)> {
        let after = self.extents.partition_point(|extent| extent.start <= position);
        let index = after.checked_sub(1)?;
        self.extents.get(index).map(|extent| (index, *extent))
    }
}

impl Read for VirtualGguf {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < out.len() && self.position < self.len {
            let room = out.get_mut(done..).unwrap_or_default();
            let n = if let Some(rest) = usize::try_from(self.position)
                .ok()
                .and_then(|at| self.header.get(at..))
                .filter(|rest| !rest.is_empty())
            {
                let n = rest.len().min(room.len());
                room[..n].copy_from_slice(&rest[..n]);
                n
            } else {
                self.read_data(done, out)?
            };
            done += n;
            self.position += n as u64;
        }
        Ok(done)
    }
}

impl VirtualGguf {
    fn read_data(&mut self, done: usize, out: &mut [u8]) -> Result<usize> {
        let Some((index, extent)) = self.extent_at(self.position) else {
            return Err(Error::new(ErrorKind::InvalidInput, "a read before the first tensor"));
        };
        let room = out.get_mut(done..).unwrap_or_default();
        let inside = self.position - extent.start;
        if inside >= extent.bytes {
            // Padding up to the next tensor.
            let end = self
                .extents
                .get(self.extents.partition_point(|e| e.start <= self.position))
                .map_or(self.len, |next| next.start);
            let n = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(room.len());
            room[..n].fill(0);
            return Ok(n);
        }
        let rest = usize::try_from(extent.bytes - inside).unwrap_or(usize::MAX);
        let n = rest.min(room.len());
        if extent.streamed {
            self.counts.streamed_bytes.fetch_add(n as u64, Ordering::Relaxed);
        } else {
            self.counts.resident_bytes.fetch_add(n as u64, Ordering::Relaxed);
        }
        let n = self.windows.read(&extent, inside, &mut room[..n])?;
        if let Some(served) = self.counts.per_tensor.get(index) {
            served.fetch_add(n as u64, Ordering::Relaxed);
        }
        Ok(n)
    }
}

impl Seek for VirtualGguf {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
            SeekFrom::End(delta) => self.len.checked_add_signed(delta),
        };
        let target = target.ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
        let skip = matches!(to, SeekFrom::Start(_))
            && self.extent_at(target).is_some_and(|(_, e)| e.streamed && e.start == target);
        self.counts.skips.fetch_add(u64::from(skip), Ordering::Relaxed);
        self.position = if skip { self.len } else { target };
        Ok(self.position)
    }
}

/// Two windows over one tensor, read one ahead of the other.
struct Windows {
    files: Vec<Arc<io::File>>,
    reader: Box<dyn io::ReadEngine>,
    current: Option<Window>,
    next: Option<Pending>,
    spare: Vec<io::Buffer>,
}

/// Bytes `from..from + len` of a tensor, in memory.
struct Window {
    tensor: u64,
    from: u64,
    len: usize,
    buffer: io::Buffer,
}

/// A window that is being read.
#[derive(Clone, Copy)]
struct Pending {
    tensor: u64,
    from: u64,
    len: usize,
}

impl Windows {
    /// Copies bytes of `extent` from `inside` on; at most to the end of the window.
    fn read(&mut self, extent: &Extent, inside: u64, out: &mut [u8]) -> Result<usize> {
        let holds = |w: &Window| {
            w.tensor == extent.start && (w.from..w.from + w.len as u64).contains(&inside)
        };
        if !self.current.as_ref().is_some_and(holds) {
            self.advance(extent, inside)?;
        }
        let Some(window) = &self.current else {
            return Err(Error::other("no window"));
        };
        let at = usize::try_from(inside - window.from).unwrap_or(usize::MAX);
        let have = window.buffer.as_slice().get(at..window.len).unwrap_or_default();
        let n = have.len().min(out.len());
        out[..n].copy_from_slice(&have[..n]);
        Ok(n)
    }

    fn advance(&mut self, extent: &Extent, inside: u64) -> Result<()> {
        if let Some(old) = self.current.take() {
            self.spare.push(old.buffer);
        }
        let wanted = |p: &Pending| {
            p.tensor == extent.start && (p.from..p.from + p.len as u64).contains(&inside)
        };
        if self.next.is_some_and(|p| !wanted(&p)) {
            let stale = self.wait()?;
            self.spare.push(stale.buffer);
        }
        if self.next.is_none() {
            self.submit(extent, inside)?;
        }
        let window = self.wait()?;
        let after = window.from + window.len as u64;
        self.current = Some(window);
        if after < extent.bytes {
            self.submit(extent, after)?;
        }
        Ok(())
    }

    fn submit(&mut self, extent: &Extent, from: u64) -> Result<()> {
        let slice_bytes = extent.slice_bytes.max(1);
        let (slice, inside) = (from / slice_bytes, from % slice_bytes);
        let offset = extent.offset + slice * extent.stride + inside;
        let rest = usize::try_from(slice_bytes - inside).unwrap_or(usize::MAX);
        let len = rest.min(WINDOW_BYTES);
        let buffer = match self.spare.pop() {
            Some(buffer) => buffer,
            None => io::Buffer::aligned(WINDOW_BYTES, 4096).map_err(Error::other)?,
        };
        let file = self.files.get(extent.file).ok_or_else(|| Error::other("no such file"))?;
        let request =
            io::ReadRequest { len, ..io::ReadRequest::new(Arc::clone(file), offset, buffer, 0) };
        self.reader.submit(request).map_err(|_| Error::other("the read queue is full"))?;
        self.next = Some(Pending { tensor: extent.start, from, len });
        Ok(())
    }

    fn wait(&mut self) -> Result<Window> {
        let Some(pending) = self.next.take() else {
            return Err(Error::other("no read is under way"));
        };
        let mut done = Vec::with_capacity(1);
        while done.is_empty() {
            self.reader.complete(&mut done, io::Wait::Forever);
        }
        let Some(completion) = done.pop() else {
            return Err(Error::other("no read has ended"));
        };
        completion.result.map_err(Error::other)?;
        let Pending { tensor, from, len } = pending;
        Ok(Window { tensor, from, len, buffer: completion.buffer })
    }
}
