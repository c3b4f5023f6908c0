//! How fast this machine multiplies, as it was measured by whoever can compute.
//!
//! Nothing here computes: measurements are handed in, and kept with the profile.

use serde::{Deserialize, Serialize};

/// Measurements kept in a profile at most; the oldest goes first.
const COMPUTE_MAX: usize = 256;

/// The speed of matrix products with weights of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compute {
    /// What computed: the library with its version.
    pub library: String,
    /// Threads that computed.
    pub threads: u32,
    /// Which product, and how the weights lay.
    pub kind: ComputeKind,
    /// Bytes of weights per second, with one row of input.
    pub decode_bytes_per_s: f64,
    /// Operations per second with many rows of input: two per weight and row.
    pub prompt_flops_per_s: f64,
    /// When it was measured, in seconds since 1970.
    pub taken_unix_s: u64,
}

/// What tells one measurement of products from another on the same machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeKind {
    /// Name of the weights' type, such as `Q4_K`.
    pub ty: String,
    /// `plain` as in a file, or `fast` as rearranged for this processor.
    pub layout: String,
    /// `matrix`, or `experts` that a router chose.
    pub product: String,
    /// Elements of a row of weights (the inputs).
    pub n_in: u64,
}

/// The time of one step of a graph that computes next to nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComputeStep {
    /// As in [`Compute`].
    pub library: String,
    /// As in [`Compute`].
    pub threads: u32,
    /// Seconds of a step.
    pub seconds: f64,
    /// When it was measured, in seconds since 1970.
    pub taken_unix_s: u64,
}

/// Puts a measurement in the place of the one of the same kind.
pub(crate) fn remember(all: &mut Vec<Compute>, new: Compute) {
    let is_same = |old: &Compute| {
        (&old.library, old.threads, &old.kind) == (&new.library, new.threads, &new.kind)
    };
    all.retain(|old| !is_same(old));
    all.push(new);
    forget_oldest(all, |measured| measured.taken_unix_s);
}

/// The same for steps.
pub(crate) fn remember_step(all: &mut Vec<ComputeStep>, new: ComputeStep) {
    all.retain(|old| (&old.library, old.threads) != (&new.library, new.threads));
    all.push(new);
    forget_oldest(all, |measured| measured.taken_unix_s);
}

fn forget_oldest<T>(all: &mut Vec<T>, taken_unix_s: impl Fn(&T) -> u64) {
    while all.len() > COMPUTE_MAX {
        let oldest = all.iter().enumerate().min_by_key(|(_, measured)| taken_unix_s(measured));
        let Some(oldest) = oldest.map(|(index, _)| index) else { return };
        all.remove(oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(ty: &str, threads: u32, taken_unix_s: u64) -> Compute {
        let text = |text: &str| text.to_owned();
        let kind = ComputeKind {
            ty: text(ty),
            layout: text("plain"),
            product: text("matrix"),
            n_in: 4096,
        };
        Compute {
            library: text("ggml 1"),
            threads,
            kind,
            decode_bytes_per_s: 1.0,
            prompt_flops_per_s: 2.0,
            taken_unix_s,
        }
    }

    #[test]
    fn a_kind_is_kept_once_and_all_are_bounded() {
        let mut all = Vec::new();
        for (ty, threads, taken) in [("Q4_K", 2, 1), ("Q4_K", 4, 2), ("Q8_0", 2, 3), ("Q4_K", 2, 4)]
        {
            remember(&mut all, measured(ty, threads, taken));
        }
        let taken: Vec<u64> = all.iter().map(|measured| measured.taken_unix_s).collect();
        assert_eq!(taken, [2, 3, 4]);
        for threads in 0..300 {
            remember(&mut all, measured("F16", threads, 100 + u64::from(threads)));
        }
        assert_eq!(all.len(), COMPUTE_MAX);
        assert!(all.iter().all(|measured| measured.taken_unix_s >= 144), "the oldest are gone");

        let step = |threads, taken_unix_s| ComputeStep {
            library: "ggml 1".to_owned(),
            threads,
            seconds: 1e-6,
            taken_unix_s,
        };
        let mut steps = Vec::new();
        for (threads, taken) in [(2, 1), (4, 2), (2, 3)] {
            remember_step(&mut steps, step(threads, taken));
        }
        assert_eq!(steps, [step(4, 2), step(2, 3)]);
    }
}
