//! Putting copies of experts into the copy stream.

use llama_cpp_sys_2 as sys;

use super::super::compute::Stop;
use super::super::passes::Descriptions;
use super::super::{PartCopy, Place, Residency, StreamMemory, Uploads};
use super::stage::Stage;
use crate::abi::Tensor;

/// Puts the copies that were asked for into the copy stream; if wanted, with an event behind each
/// expert's.
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
    let result = loop {
        copies.clear();
        let more = match residency.uploads(&mut copies) {
            Ok(more) => more,
            Err(error) => break Err(error.into()),
        };
        for copy in &copies {
            // SAFETY: the caller's promise.
            unsafe {
                begin(stage, memory, copy)?;
                if notes_arrivals && matches!(copy.to, Place::Device(_)) {
                    stage.note_arrival(copy.expert);
                }
            }
        }
        match more {
            Uploads::Done => break Ok(()),
            Uploads::More => {}
            Uploads::Full => {
                // SAFETY: a live backend.
                unsafe { sys::ggml_backend_synchronize(stage.copier) };
                residency.uploaded();
            }
        }
    };
    stage.copies = copies;
    result
}

/// Puts one copy into the copy stream.
///
/// # Safety
/// As [`begin_uploads`].
pub(super) unsafe fn begin(
    stage: &Stage,
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
    let (copier, bytes) = (stage.copier, of.bytes);
    // SAFETY: slots have the bytes of one slice.
    unsafe {
        match (copy.from, copy.to) {
            (Place::Host(from), to @ (Place::Device(slot) | Place::Transit(slot))) => {
                let is_own = matches!(to, Place::Device(_));
                let (tensor, at) = if is_own { device(slot)? } else { transit(slot)? };
                sys::ggml_backend_tensor_set_async(copier, tensor, host(from)?.cast(), at, bytes);
            }
            (Place::Device(from), Place::Host(to)) => {
                let ((tensor, at), to) = (device(from)?, host(to)?.cast_mut().cast());
                sys::ggml_backend_tensor_get_async(copier, tensor, to, at, bytes);
            }
            (Place::Transit(from), Place::Device(to)) => {
                let ctx = Descriptions::new()?;
                let span = |(owner, at): (*mut Tensor, usize)| {
                    let n = i64::try_from(bytes).unwrap_or(i64::MAX);
                    let span = sys::ggml_new_tensor_1d(ctx.as_ptr(), sys::GGML_TYPE_I8, n);
                    (*span).buffer = (*owner).buffer;
                    (*span).data = (*owner).data.cast::<u8>().add(at).cast();
                    span
                };
                let (from, to) = (span(transit(from)?), span(device(to)?));
                sys::ggml_backend_tensor_copy_async(copier, copier, from, to);
            }
            _ => return Err(lost()),
        }
    }
    Ok(())
}
