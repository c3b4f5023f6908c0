//! How fast a GPU is, as it was measured by whoever can compute.

use serde::{Deserialize, Serialize};

/// GPUs kept in a profile at most; the oldest goes first.
const GPUS_MAX: usize = 16;

/// The speed of a GPU and of the link to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuSpeed {
    /// What computed: the library with its version.
    pub library: String,
    /// As the compute library calls it, such as `CUDA0`, and as people do.
    pub name: String,
    /// See [`GpuSpeed::name`].
    pub description: String,
    /// Copies from pinned memory: bytes of one copy, and bytes per second of many in a row.
    pub host_to_device: Vec<(u64, f64)>,
    /// Copies back, in bytes per second.
    pub device_to_host_bytes_per_s: f64,
    /// Bytes of weights per second that one token's products get through.
    pub decode_bytes_per_s: f64,
    /// Operations per second of a prompt's products: two per weight and token.
    pub prompt_flops_per_s: f64,
    /// When it was measured, in seconds since 1970.
    pub taken_unix_s: u64,
}

/// Puts a measurement in the place of the one of the same GPU.
pub(crate) fn remember(all: &mut Vec<GpuSpeed>, new: GpuSpeed) {
    all.retain(|old| (&old.name, &old.description) != (&new.name, &new.description));
    all.push(new);
    while all.len() > GPUS_MAX {
        all.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_measurement_of_each() {
        let speed = |name: &str, taken_unix_s| GpuSpeed {
            library: "llama.cpp 1".into(),
            name: name.into(),
            description: "a GPU".into(),
            host_to_device: vec![(1 << 20, 1e10)],
            device_to_host_bytes_per_s: 1e10,
            decode_bytes_per_s: 1e12,
            prompt_flops_per_s: 1e14,
            taken_unix_s,
        };
        let mut all = Vec::new();
        for (name, at) in [("CUDA0", 1), ("CUDA1", 2), ("CUDA0", 3)] {
            remember(&mut all, speed(name, at));
        }
        assert_eq!(all, [speed("CUDA1", 2), speed("CUDA0", 3)]);
        (0..40).for_each(|i| remember(&mut all, speed(&format!("CUDA{i}"), 4)));
        assert_eq!(all.len(), GPUS_MAX);
    }
}
