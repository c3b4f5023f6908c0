//! How fast one thread copies memory: what a cache hit in RAM costs, at least.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hypura_io::{AllocError, Buffer};

use crate::MemoryCopy;

/// Copied at a time, in bytes: larger than the caches of most machines' single cores.
const COPY_BYTES: usize = 32 << 20;

/// The fastest round counts, since the others were disturbed. The first touches the memory.
const ROUNDS: usize = 6;

/// Measures how fast one thread copies memory. Takes some 20 ms, and 64 MiB while it runs.
///
/// # Errors
/// [`AllocError`] if there is no memory for it.
pub fn probe_memory_copy(now_unix_s: u64) -> Result<MemoryCopy, AllocError> {
    let mut from = Buffer::aligned(COPY_BYTES, 4096)?;
    let mut to = Buffer::aligned(COPY_BYTES, 4096)?;
    from.as_mut_slice().fill(1);
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        to.as_mut_slice().copy_from_slice(black_box(from.as_slice()));
        black_box(to.as_slice());
        fastest = fastest.min(start.elapsed());
    }
    // No clock is so coarse that this is zero; if one were, the number would still be finite.
    let seconds = fastest.as_secs_f64().max(1e-9);
    Ok(MemoryCopy { bytes_per_s: COPY_BYTES as f64 / seconds, taken_unix_s: now_unix_s })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_at_some_speed() {
        let copy = probe_memory_copy(7).expect("memory");
        assert!(copy.bytes_per_s.is_finite() && copy.bytes_per_s > 0.0);
        assert_eq!(copy.taken_unix_s, 7);
    }
}
