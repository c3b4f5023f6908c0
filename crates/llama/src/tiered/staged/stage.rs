//! What it takes to feed a device: other streams, events, and pinned memory.

use std::ptr::null_mut;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::super::compute::Stop;
use super::super::device::BackendContext;
use super::super::passes::PassScratch;
use super::super::{MatrixUpload, PartCopy};
use super::ahead::Ahead;
use super::arrivals::Arrivals;
use super::assist::Assist;
use super::cells::Cells;
use super::early::Early;
use super::late::Late;
use super::passes::{Rows, TableMemory};
use super::sink::Sink;
use crate::abi::{Backend, Buffer, Dev, Event, Tensor};
use crate::threads::Threadpool;

/// Bytes of small tables that are under way at the same time, to begin with.
const TABLES_BYTES: usize = 1 << 20;
/// Matrices that are copied and not yet used, at most.
const MATRICES_MAX: usize = 64;

/// See the module. One per context.
pub(in super::super) struct Stage {
    /// Number of the device.
    pub(super) device: usize,
    /// A backend of the same device whose stream is for copies. Events order it and the computing
    /// one; a device without events does everything at once.
    pub(super) copier: Backend,
    /// What goes the other way.
    pub(super) sink: Sink,
    /// Another stream, for tables, choices and the next layer's router, which must not queue behind
    /// experts.
    pub(super) beside: Backend,
    /// Recorded behind the last table.
    written: Event,
    /// Recorded behind the last copy. Null where the device computes at once.
    copied: Event,
    /// Recorded behind what copies have to wait for: what reads a layer's own slots in passes, or
    /// matrices.
    launched: Event,
    /// What passes through the device.
    pub(super) cells: Cells,
    /// Recorded behind the copies of matrices, by their serial numbers modulo the length.
    arrived: Vec<Event>,
    /// The newest matrix copied.
    newest: Option<u64>,
    /// What is read back.
    raw: Pinned,
    /// What is written.
    pub(super) tables: Pinned,
    /// Recorded behind copies that nobody waited for, by the layer that they are for.
    admitted: Vec<(u32, Event)>,
    pub(super) spare: Vec<Event>,
    inner: Dev,
    /// The CPU, where it computes beside the device.
    pub(super) assist: Option<Assist>,
    /// Reused from one layer to the next.
    pub(super) copies: Vec<PartCopy>,
    /// Likewise.
    pub(super) matrices: Vec<MatrixUpload>,
    zeros: Pinned,
    pub(super) ahead: Ahead,
    pub(super) early: Early,
    pub(super) late: Late,
    /// What is copied for the layer at hand.
    pub(super) arrivals: Arrivals,
    /// Between the products of a pass.
    pub(super) pass: PassScratch,
    /// The tables of the groups of a layer.
    pub(super) table_memory: TableMemory,
    /// Reused: the rows of a group, and its tables as they are written.
    pub(super) rows: Rows,
    /// Likewise.
    pub(super) words: Vec<i32>,
    /// The input of several passes, where theirs is written over.
    pub(super) kept: PassScratch,
}

// SAFETY: used under a mutex, by the computing thread.
unsafe impl Send for Stage {}

impl Stage {
    /// With threads of the CPU that compute beside it, if they shall. `None` if the device gives no
    /// second stream, or no memory.
    pub(in super::super) fn new(
        inner: Dev,
        device: usize,
        helpers: Option<&Arc<Threadpool>>,
    ) -> Option<Stage> {
        // SAFETY: a device of ggml's; everything is freed in `Drop`.
        unsafe {
            let stream = || sys::ggml_backend_dev_init(inner, std::ptr::null());
            let (copier, beside) = (stream(), stream());
            if copier.is_null() || beside.is_null() {
                for stream in [copier, beside].into_iter().filter(|stream| !stream.is_null()) {
                    sys::ggml_backend_free(stream);
                }
                return None;
            }
            let sink = Sink::new(inner);
            let Some(sink) = sink else {
                sys::ggml_backend_free(copier);
                sys::ggml_backend_free(beside);
                return None;
            };
            let event = || sys::ggml_backend_event_new(inner);
            Some(Stage {
                device,
                copier,
                sink,
                beside,
                written: event(),
                copied: event(),
                launched: event(),
                cells: Cells::new(),
                arrived: (0..MATRICES_MAX).map(|_| event()).collect(),
                newest: None,
                raw: Pinned::new(inner),
                tables: Pinned::new(inner),
                admitted: Vec::new(),
                spare: Vec::new(),
                inner,
                assist: helpers.and_then(|threads| Assist::new(threads, inner)),
                copies: Vec::new(),
                matrices: Vec::new(),
                zeros: Pinned::new(inner),
                ahead: Ahead::new(inner),
                early: Early::new(inner),
                late: Late::default(),
                arrivals: Arrivals::default(),
                pass: PassScratch::default(),
                table_memory: TableMemory::default(),
                rows: Rows::default(),
                words: Vec::new(),
                kept: PassScratch::default(),
            })
        }
    }

    /// The streams of its copies: to the device, and to host memory.
    pub(in super::super) fn copiers(&self) -> [Backend; 2] {
        [self.copier, self.sink.stream()]
    }

    /// Waits here for all copies.
    ///
    /// # Safety
    /// The stage's streams are alive.
    pub(super) unsafe fn wait_for_copies(&self) {
        for copier in self.copiers() {
            // SAFETY: the caller's promise.
            unsafe { sys::ggml_backend_synchronize(copier) };
        }
    }

    /// Pinned memory of so many bytes; what it held before must have been used.
    pub(super) fn raw(&mut self, bytes: usize) -> Result<*mut u8, Stop> {
        self.raw.clear();
        self.raw.take(bytes).ok_or(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED))
    }

    /// What is launched from now on waits for the copies that were begun.
    ///
    /// # Safety
    /// The context's backend is alive.
    pub(super) unsafe fn compute_after_copies(&mut self, context: &BackendContext) {
        // SAFETY: the caller's promise; without events everything is done at once.
        unsafe {
            record(self.copied, self.copier);
            wait(context.inner, self.copied);
        }
    }

    /// Copies were begun that the next computation of this layer has to wait for.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn end_admission(&mut self, layer: u32) {
        let event = self.event();
        if !event.is_null() {
            // SAFETY: the caller's promise.
            unsafe { sys::ggml_backend_event_record(event, self.copier) };
            self.admitted.push((layer, event));
        }
    }

    /// An event that nothing is recorded for; null where the device has none.
    pub(super) fn event(&mut self) -> Event {
        // SAFETY: a device of ggml's; the event is freed in `Drop`.
        self.spare.pop().unwrap_or_else(|| unsafe { sys::ggml_backend_event_new(self.inner) })
    }

    /// What is launched from now on waits for copies that were admitted to this layer.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn compute_after_admission(&mut self, context: &BackendContext, layer: u32) {
        while let Some(at) = self.admitted.iter().position(|&(of, _)| of == layer) {
            let (_, event) = self.admitted.swap_remove(at);
            // SAFETY: the caller's promise.
            unsafe { sys::ggml_backend_event_wait(context.inner, event) };
            self.spare.push(event);
        }
    }

    /// Marks what was launched so far.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn mark_launched(&mut self, context: &BackendContext) {
        // SAFETY: the caller's promise.
        unsafe { record(self.launched, context.inner) };
    }

    /// Copies that begin from now on wait for what was marked.
    ///
    /// # Safety
    /// As above; something was, or nothing is to be waited for.
    pub(super) unsafe fn copy_after_marked(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { wait(self.copier, self.launched) };
    }

    /// So many zero bytes.
    pub(super) fn zeros(&mut self, bytes: usize) -> Result<*const u8, Stop> {
        let was = self.zeros.bytes;
        if bytes > was {
            // SAFETY: a live backend; nothing copies from the old ones afterwards.
            unsafe { sys::ggml_backend_synchronize(self.copier) };
        }
        self.zeros.clear();
        let at = self.zeros.take(bytes).ok_or(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED))?;
        if self.zeros.bytes != was {
            // SAFETY: the whole buffer.
            unsafe { std::ptr::write_bytes(at, 0, self.zeros.bytes) };
        }
        Ok(at)
    }

    /// Marks that a matrix has been copied.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn end_matrix(&mut self, serial: u64) {
        let event = self.arrived[Self::turn(serial)];
        self.newest = Some(serial);
        // SAFETY: the caller's promise.
        unsafe { record(event, self.copier) };
    }

    /// What is launched from now on waits for a matrix.
    ///
    /// # Safety
    /// As above; it was marked.
    pub(super) unsafe fn compute_after_matrix(&mut self, context: &BackendContext, serial: u64) {
        // Where later ones have taken its event, waiting for one of them does as well.
        // SAFETY: the caller's promise.
        unsafe { wait(context.inner, self.arrived[Self::turn(serial)]) };
    }

    /// Waits here until all matrices but the newest are copied; the last one that is.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn matrices_copied(&mut self) -> Option<u64> {
        let serial = self.newest?.checked_sub(1)?;
        let event = self.arrived[Self::turn(serial)];
        if !event.is_null() {
            // SAFETY: the caller's promise.
            unsafe { sys::ggml_backend_event_synchronize(event) };
        }
        Some(serial)
    }

    fn turn(serial: u64) -> usize {
        usize::try_from(serial % MATRICES_MAX as u64).unwrap_or(0)
    }

    /// Waits until all streams have done what they were given.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn synchronize(&self, context: &BackendContext) {
        // SAFETY: the caller's promise.
        unsafe {
            sys::ggml_backend_synchronize(self.beside);
            self.wait_for_copies();
            sys::ggml_backend_synchronize(context.inner);
        }
    }

    /// Writes a table of the device in the order of the compute stream.
    ///
    /// # Safety
    /// The tensor is the device's, and has the type and length of `values`.
    pub(super) unsafe fn set<T: Copy>(
        &mut self,
        context: &BackendContext,
        tensor: *mut Tensor,
        values: &[T],
    ) -> Result<(), Stop> {
        // SAFETY: the caller's promise.
        unsafe { self.set_in(context.inner, context, tensor, values) }
    }

    /// Writes a table of the device in the order of the copy stream: before the copies that begin
    /// from now on.
    ///
    /// # Safety
    /// As [`Stage::set`]; the compute stream waits for the copies before the context is next waited
    /// for.
    pub(super) unsafe fn set_ahead<T: Copy>(
        &mut self,
        context: &BackendContext,
        tensor: *mut Tensor,
        values: &[T],
    ) -> Result<(), Stop> {
        // SAFETY: the caller's promise.
        unsafe { self.set_in(self.copier, context, tensor, values) }
    }

    /// Writes a table of a group that is launched next. Copies that were begun before it are not
    /// waited for: they may be of what a later group needs.
    ///
    /// # Safety
    /// As [`Stage::set`]; what read the tensor's memory before has been waited for.
    pub(super) unsafe fn set_beside<T: Copy>(
        &mut self,
        context: &BackendContext,
        tensor: *mut Tensor,
        values: &[T],
    ) -> Result<(), Stop> {
        // SAFETY: the caller's promise.
        unsafe {
            self.set_in(self.beside, context, tensor, values)?;
            record(self.written, self.beside);
            wait(context.inner, self.written);
        }
        Ok(())
    }

    unsafe fn set_in<T: Copy>(
        &mut self,
        stream: Backend,
        context: &BackendContext,
        tensor: *mut Tensor,
        values: &[T],
    ) -> Result<(), Stop> {
        let bytes = std::mem::size_of_val(values);
        let at = match self.tables.take(bytes) {
            Some(at) => at,
            None => {
                // SAFETY: live backends; afterwards nothing that was written is under way.
                unsafe { self.synchronize(context) };
                self.tables.clear();
                self.tables.take(bytes).ok_or(Stop::Status(sys::GGML_STATUS_ALLOC_FAILED))?
            }
        };
        // SAFETY: the caller's promise; `at` has room.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), at, bytes);
            sys::ggml_backend_tensor_set_async(stream, tensor, at.cast(), 0, bytes);
        }
        Ok(())
    }
}

/// Marks what `stream` has been given so far. Where a device has no events, everything is done at
/// once.
pub(super) unsafe fn record(event: Event, stream: Backend) {
    if !event.is_null() {
        // SAFETY: an event and a stream of one device.
        unsafe { sys::ggml_backend_event_record(event, stream) };
    }
}

/// What `stream` is given from now on waits for what the event marks.
pub(super) unsafe fn wait(stream: Backend, event: Event) {
    if !event.is_null() {
        // SAFETY: as above.
        unsafe { sys::ggml_backend_event_wait(stream, event) };
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once.
        unsafe {
            sys::ggml_backend_synchronize(self.beside);
            sys::ggml_backend_synchronize(self.copier);
            let single = [self.copied, self.launched, self.written];
            self.forget_arrivals();
            let admitted = self.admitted.drain(..).map(|(_, event)| event);
            for event in single
                .into_iter()
                .chain(self.arrived.drain(..))
                .chain(admitted)
                .chain(self.spare.drain(..))
            {
                if !event.is_null() {
                    sys::ggml_backend_event_free(event);
                }
            }
            sys::ggml_backend_free(self.beside);
            sys::ggml_backend_free(self.copier);
        }
    }
}

/// Memory that the device copies from and to fastest, handed out from its beginning.
pub(super) struct Pinned {
    device: Dev,
    buffer: Buffer,
    bytes: usize,
    taken: usize,
}

impl Pinned {
    pub(super) fn new(device: Dev) -> Pinned {
        Pinned { device, buffer: null_mut(), bytes: 0, taken: 0 }
    }

    /// The buffer that the last piece was handed out from.
    pub(super) fn buffer(&self) -> Buffer {
        self.buffer
    }

    /// What was handed out has been used.
    pub(super) fn clear(&mut self) {
        self.taken = 0;
    }

    /// `None` when what is handed out leaves no room: clear it first, and it grows.
    pub(super) fn take(&mut self, bytes: usize) -> Option<*mut u8> {
        let end = self.taken.checked_add(bytes)?;
        if end > self.bytes {
            if self.taken > 0 {
                return None;
            }
            self.grow(bytes)?;
        }
        // SAFETY: inside the buffer.
        unsafe {
            let base = sys::ggml_backend_buffer_get_base(self.buffer).cast::<u8>();
            let at = base.add(self.taken);
            self.taken = end.next_multiple_of(64);
            Some(at)
        }
    }

    fn grow(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: nothing of the old buffer is under way; the new one is freed in `Drop`.
        unsafe {
            let pinned = sys::ggml_backend_dev_host_buffer_type(self.device);
            let buft = if pinned.is_null() { sys::ggml_backend_cpu_buffer_type() } else { pinned };
            let bytes = bytes.max(TABLES_BYTES).next_power_of_two();
            let buffer = sys::ggml_backend_buft_alloc_buffer(buft, bytes);
            if buffer.is_null() {
                return None;
            }
            self.free();
            (self.buffer, self.bytes) = (buffer, bytes);
            Some(())
        }
    }

    fn free(&mut self) {
        if !self.buffer.is_null() {
            // SAFETY: made in `grow`, freed once.
            unsafe { sys::ggml_backend_buffer_free(self.buffer) };
            self.buffer = null_mut();
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.free();
    }
}
