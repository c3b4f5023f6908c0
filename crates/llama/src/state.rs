//! Attention state out of a context and back into it, some tokens at a time.
//!
//! llama.cpp writes and reads the state of a whole sequence. One more, empty sequence makes pieces
//! of it: the cells of some positions are given to it as well, and its state is written. Read back
//! into that sequence and then given to the one it belongs to, a piece adds to what is there (read
//! into it directly, it would replace it). Pieces that are read in order, from an empty context,
//! come to lie in the cells in which they were: also in the ring of a sliding window, where each
//! piece brings its rows. That matters for the bits: the order of cells is the order of summation.
//!
//! Recurrent layers have no cells per token but one state, which is valid at one position: a
//! *checkpoint*. It stands behind the cells in what llama.cpp writes:
//!
//! ```text
//! magic, sequence   8 bytes
//! attention         per cache (one; two with a sliding window): streams u32, cells u32, and if
//!                   there are cells: position etc. of each, then per layer rows of K, then of V
//! recurrent state   cells u32 (0 or 1), layers, per layer its type, row size and, for 1 cell, row
//! ```
//!
//! (`llama_kv_cache::state_write`, `llama_memory_recurrent::state_write`,
//! `llama_memory_hybrid::state_write` in the pinned llama.cpp.) A piece is written without the
//! recurrent state, and read with that of an empty sequence behind it.

mod format;

use llama_cpp_sys_2 as sys;

use crate::context::Context;

/// Sequences that a context needs for this beside those that tokens are in: the last one, which is
/// empty but while a piece is made or read.
pub const SCRATCH_SEQUENCES: u32 = 1;

/// Magic number and sequence in front of a state.
const HEAD_BYTES: usize = 8;
/// A cache without cells: its number of streams and of cells.
const EMPTY_CACHE_BYTES: usize = 8;

/// Why state can't be taken out or put back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// llama.cpp keeps this model's state in a way that can't be divided.
    #[error("the attention state of this model is kept in a way that can't be divided by tokens")]
    Unknown,
    /// The context was made for one sequence.
    #[error("internal error: the context has no sequence to spare for attention state")]
    OneSequence,
    /// llama.cpp refused what it was given: it is of another model or other settings.
    #[error("llama.cpp refused the attention state: {reason}")]
    Refused {
        /// What llama.cpp logged last.
        reason: String,
    },
    /// What was to be taken out is not all there.
    #[error("some of the attention state is not there any more")]
    Incomplete,
}

/// How a context's state can be divided.
#[derive(Debug, Clone)]
pub struct StateShape {
    /// Bytes at the end of a state that belong to no token; 0 if there are none.
    fixed_bytes: usize,
    /// The same of an empty sequence.
    empty_fixed: Vec<u8>,
    /// Caches of attention cells: none, one, or two with a sliding window.
    caches: usize,
}

impl StateShape {
    /// Whether tokens alone don't make the state: a checkpoint is needed at its end.
    pub fn needs_checkpoint(&self) -> bool {
        self.fixed_bytes > 0
    }

    /// Bytes of a checkpoint; 0 if none is needed.
    pub fn checkpoint_bytes(&self) -> usize {
        if self.fixed_bytes == 0 {
            0
        } else {
            HEAD_BYTES + self.caches * EMPTY_CACHE_BYTES + self.fixed_bytes
        }
    }
}

impl Context {
    /// How the state of this context can be divided.
    ///
    /// # Errors
    /// [`StateError::Unknown`] when it can't, [`StateError::OneSequence`] when the context was made
    /// for one sequence.
    pub fn state_shape(&mut self) -> Result<StateShape, StateError> {
        if self.params().n_seq_max <= SCRATCH_SEQUENCES {
            return Err(StateError::OneSequence);
        }
        if !self.has_memory() {
            return Err(StateError::Unknown);
        }
        let info = self.model().info();
        if !info.is_recurrent && !info.is_hybrid {
            return Ok(StateShape { fixed_bytes: 0, empty_fixed: Vec::new(), caches: 0 });
        }
        let caches = match (info.is_recurrent, info.n_swa > 0) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 2,
        };
        let mut empty = Vec::new();
        self.write_scratch(&mut empty)?;
        let head = HEAD_BYTES + caches * EMPTY_CACHE_BYTES;
        let empty_fixed = empty.get(head..).ok_or(StateError::Unknown)?.to_vec();
        // One cell more than none: the row of each layer.
        let cell = format::recurrent_cell_bytes(&empty_fixed).ok_or(StateError::Unknown)?;
        Ok(StateShape { fixed_bytes: empty_fixed.len() + cell, empty_fixed, caches })
    }

    /// Appends the state of positions `from..to` of a sequence to `out`, without what belongs to no
    /// token.
    ///
    /// # Errors
    /// [`StateError::Incomplete`] when not all of these positions are there any more (a window has
    /// moved on), [`StateError::Unknown`] when the state can't be divided.
    pub fn export_tokens(
        &mut self,
        shape: &StateShape,
        seq: i32,
        from: usize,
        to: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), StateError> {
        let begin = out.len();
        self.copy(seq, self.scratch(), from, to);
        let written = self.write_scratch(out);
        self.forget(self.scratch(), -1, -1);
        written?;
        let state = out.get(begin..).unwrap_or_default();
        let keep = state.len().checked_sub(shape.fixed_bytes).ok_or(StateError::Unknown)?;
        let body = state.get(HEAD_BYTES..keep).ok_or(StateError::Unknown)?;
        let cells = format::cells_of_caches(body, to - from);
        out.truncate(begin + keep);
        let all = cells.ok_or(StateError::Unknown)?;
        let is_known = match shape.needs_checkpoint() {
            true => all.len() == shape.caches,
            false => !all.is_empty(),
        };
        if !is_known {
            return Err(StateError::Unknown);
        }
        let is_complete = all.iter().all(|&cells| cells == to - from);
        if is_complete { Ok(()) } else { Err(StateError::Incomplete) }
    }

    /// Adds exported positions behind those that are there in a sequence, `used` of them from `from` on.
    ///
    /// # Errors
    /// [`StateError::Refused`] when llama.cpp does; what was there before stays, except the
    /// checkpoint.
    pub fn import_tokens(
        &mut self,
        shape: &StateShape,
        seq: i32,
        bytes: &mut ImportBytes<'_>,
        from: usize,
        used: usize,
    ) -> Result<(), StateError> {
        if shape.needs_checkpoint() {
            self.read_scratch(bytes.with_tail(&shape.empty_fixed))?;
        } else {
            self.read_scratch(bytes.plain())?;
        }
        let first = self.first_position(self.scratch());
        self.copy(self.scratch(), seq, from, from + used);
        self.forget(self.scratch(), -1, -1);
        // A pure recurrent model has no cells, and so no position.
        let is_there = shape.caches == 0 && shape.needs_checkpoint()
            || usize::try_from(first).is_ok_and(|first| first == from);
        let reason = || "it is of other positions".to_owned();
        if is_there { Ok(()) } else { Err(StateError::Refused { reason: reason() }) }
    }

    /// Appends what belongs to no token of a sequence, as it is now, to `out`.
    ///
    /// # Errors
    /// [`StateError::Incomplete`] when there is no such state.
    pub fn export_checkpoint(
        &mut self,
        shape: &StateShape,
        seq: i32,
        out: &mut Vec<u8>,
    ) -> Result<(), StateError> {
        let begin = out.len();
        // No cell of attention is at these positions.
        let nowhere = i32::MAX as usize - 1;
        self.copy(seq, self.scratch(), nowhere, nowhere + 1);
        let written = self.write_scratch(out);
        self.forget(self.scratch(), -1, -1);
        written?;
        if out.len() - begin == shape.checkpoint_bytes() {
            Ok(())
        } else {
            out.truncate(begin);
            Err(StateError::Incomplete)
        }
    }

    /// Puts a checkpoint of a sequence back; the tokens that it belongs to have to be there.
    ///
    /// # Errors
    /// [`StateError::Refused`] when llama.cpp does.
    pub fn import_checkpoint(
        &mut self,
        shape: &StateShape,
        seq: i32,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        if bytes.len() != shape.checkpoint_bytes() {
            let reason = "it has another length".to_owned();
            return Err(StateError::Refused { reason });
        }
        self.read_scratch(bytes)?;
        self.copy(self.scratch(), seq, 0, i32::MAX as usize);
        self.forget(self.scratch(), -1, -1);
        Ok(())
    }

    /// The sequence that pieces are made with.
    fn scratch(&self) -> i32 {
        i32::try_from(self.params().n_seq_max - SCRATCH_SEQUENCES).unwrap_or(i32::MAX)
    }

    fn copy(&mut self, source: i32, target: i32, from: usize, to: usize) {
        let position = |i: usize| i32::try_from(i).unwrap_or(i32::MAX);
        // SAFETY: the context is alive and has both sequences.
        unsafe {
            let memory = sys::llama_get_memory(self.as_ptr());
            sys::llama_memory_seq_cp(memory, source, target, position(from), position(to));
        }
    }

    fn write_scratch(&mut self, out: &mut Vec<u8>) -> Result<(), StateError> {
        crate::take_log_error();
        // SAFETY: the context is alive; llama.cpp writes at most the length that is passed, to
        // memory that was reserved for it.
        unsafe {
            let len = sys::llama_state_seq_get_size(self.as_ptr(), self.scratch());
            let begin = out.len();
            out.reserve_exact(len);
            let target = out.as_mut_ptr().add(begin);
            let written = sys::llama_state_seq_get_data(self.as_ptr(), target, len, self.scratch());
            if written != len || written == 0 {
                return Err(StateError::Unknown);
            }
            out.set_len(begin + written);
        }
        Ok(())
    }

    fn read_scratch(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        crate::take_log_error();
        // SAFETY: the context is alive; llama.cpp reads at most the length that is passed.
        let read = unsafe {
            sys::llama_state_seq_set_data(
                self.as_ptr(),
                bytes.as_ptr(),
                bytes.len(),
                self.scratch(),
            )
        };
        if read == bytes.len() {
            return Ok(());
        }
        self.forget(self.scratch(), -1, -1);
        let reason = crate::take_log_error().unwrap_or_else(|| "it gave no reason".into());
        Err(StateError::Refused { reason })
    }
}

/// A piece that is to be read, with a place to put what has to stand behind it.
#[derive(Debug)]
pub struct ImportBytes<'a> {
    bytes: &'a [u8],
    /// A copy with a tail, made when it is needed.
    copy: Vec<u8>,
}

impl<'a> ImportBytes<'a> {
    /// Of an exported piece.
    pub fn new(bytes: &'a [u8]) -> ImportBytes<'a> {
        ImportBytes { bytes, copy: Vec::new() }
    }

    fn plain(&self) -> &[u8] {
        self.bytes
    }

    fn with_tail(&mut self, tail: &[u8]) -> &[u8] {
        self.copy.clear();
        self.copy.extend_from_slice(self.bytes);
        self.copy.extend_from_slice(tail);
        &self.copy
    }
}
