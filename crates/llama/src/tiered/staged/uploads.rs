//! Putting copies of experts into the copy stream, and that of what sinks.

use llama_cpp_sys_2 as sys;

use super::super::compute::Stop;
use super::super::passes::Descriptions;
use super::super::{PartCopy, Place, Residency, StreamMemory, Uploads};
use super::stage::Stage;
use crate::abi::{Backend, Tensor};

/// Puts the copies that were asked for into the streams; if wanted, what arrives on the device is noted.
///
/// # Safety
/// The slots that are copied to are read by nothing that is still to be computed.
pub(super) unsafe fn begin_uploads(
    stage: &mut Stage,
    memory: &StreamMemory,
    residency: &mut dyn Residency,
    notes_arrivals: bool,
) -> Result<(), Stop> {
    let mut copies = std::mem::take(&mut stage.copies);
    stage.sink.begin();
    let result = loop {
        copies.clear();
        let more = match residency.uploads(&mut copies) {
            Ok(more) => more,
            Err(error) => break Err(error.into()),
        };
        for copy in &copies {
            // SAFETY: the caller's promise.
            unsafe {
                match (copy.from, copy.to) {
                    (Place::Device(_), Place::Host(_)) => stage.sink(memory, copy)?,
                    _ => begin(stage, stage.copier, memory, copy)?,
                }
                if notes_arrivals && matches!(copy.to, Place::Device(_)) {
                    stage.note_arrival(copy.expert, copy.part);
                }
            }
        }
        match more {
            Uploads::Done => break Ok(()),
            Uploads::More => {}
            Uploads::Full => {
                // SAFETY: live backends.
                unsafe { stage.wait_for_copies() };
                residency.uploaded();
            }
        }
    };
    stage.copies = copies;
    result
}

/// Puts one copy into a stream: the copy stream, or that of what sinks.
///
/// # Safety
/// As [`begin_uploads`].
pub(super) unsafe fn begin(
    stage: &Stage,
    stream: Backend,
    memory: &StreamMemory,
    copy: &PartCopy,
) -> Result<(), Stop> {
    let PartCopy { layer, part, .. } = *copy;
    let lost = || Stop::Internal(format!("a copy to no slot: {copy:?}"));
    let front = memory.front(stage.device).ok_or_else(lost)?;
    let of = front.part(layer, part).ok_or_else(lost)?;
    let host = |slot| memory.host_slot(layer, part, slot).ok_or_else(lost);
    let device = |slot: u32| {
        // SAFETY: a live tensor.
        let n_slots = unsafe { (&(*of.tensor).ne)[2] };
        let is_there = i64::from(slot) < n_slots;
        is_there.then(|| (of.tensor, slot as usize * of.bytes)).ok_or_else(lost)
    };
    let transit = |slot: u32| {
        let place = front.transit().and_then(|transit| transit.place(part, slot, of.bytes));
        place.map(|(lane, at)| (lane.tensor, at)).ok_or_else(lost)
    };
    let bytes = of.bytes;
    // SAFETY: slots have the bytes of one slice.
    unsafe {
        match (copy.from, copy.to) {
            (Place::Host(from), to @ (Place::Device(slot) | Place::Transit(slot))) => {
                let is_own = matches!(to, Place::Device(_));
                let (tensor, at) = if is_own { device(slot)? } else { transit(slot)? };
                sys::ggml_backend_tensor_set_async(stream, tensor, host(from)?.cast(), at, bytes);
            }
            (from @ (Place::Device(slot) | Place::Transit(slot)), Place::Host(to)) => {
                let is_own = matches!(from, Place::Device(_));
                let (tensor, at) = if is_own { device(slot)? } else { transit(slot)? };
                let to = host(to)?.cast_mut().cast();
                sys::ggml_backend_tensor_get_async(stream, tensor, to, at, bytes);
            }
            (from @ Place::Transit(in_cell), Place::Device(own))
            | (from @ Place::Device(own), Place::Transit(in_cell)) => {
                let ctx = Descriptions::new()?;
                let span = |(owner, at): (*mut Tensor, usize)| {
                    let n = i64::try_from(bytes).unwrap_or(i64::MAX);
                    let span = sys::ggml_new_tensor_1d(ctx.as_ptr(), sys::GGML_TYPE_I8, n);
                    (*span).buffer = (*owner).buffer;
                    (*span).data = (*owner).data.cast::<u8>().add(at).cast();
                    span
                };
                let (cell, slot) = (span(transit(in_cell)?), span(device(own)?));
                let rises = matches!(from, Place::Transit(_));
                let (from, to) = if rises { (cell, slot) } else { (slot, cell) };
                sys::ggml_backend_tensor_copy_async(stream, stream, from, to);
            }
            _ => return Err(lost()),
        }
    }
    Ok(())
}
