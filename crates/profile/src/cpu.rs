//! The processor, as a profile describes it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// A processor, and what of it is free for a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Such as `AMD Ryzen 9 7950X 16-Core Processor`.
    pub model: String,
    /// Logical cores that are switched on.
    pub cores_online: u32,
    /// Logical cores that this process may keep busy all the time: those in its affinity mask,
    /// and no more than its control group's quota pays for, rounded down. At least 1.
    pub cores_free: u32,
    /// Physical cores among the free ones (two threads of one core count once); at least 1. On
    /// Apple silicon: the performance cores.
    pub cores_physical: u32,
    /// Instruction sets that matter for the arithmetic of models, by the kernel's names.
    pub features: Vec<String>,
}

/// The features that ggml's kernels ask for, as `/proc/cpuinfo` names them.
pub(crate) const FEATURES: [&str; 22] = [
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "bmi2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vbmi",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sme",
];

/// Highest number of a core that is believed.
const CORE_MAX: u32 = 65_535;

/// Parses the kernel's lists of cores, such as `0-3,8,10-11`. What is no number is left out.
pub(crate) fn parse_core_list(text: &str) -> BTreeSet<u32> {
    let parse = |text: &str| text.trim().parse::<u32>().ok().filter(|&core| core <= CORE_MAX);
    let mut cores = BTreeSet::new();
    for part in text.trim().split(',') {
        match part.split_once('-') {
            None => cores.extend(parse(part)),
            Some((first, last)) => {
                if let (Some(first), Some(last)) = (parse(first), parse(last)) {
                    cores.extend(first..=last);
                }
            }
        }
    }
    cores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists() {
        let check = |text, expected: &[u32]| {
            assert_eq!(parse_core_list(text).into_iter().collect::<Vec<_>>(), expected, "{text:?}");
        };
        check("0-1\n", &[0, 1]);
        check("0", &[0]);
        check("0-3,8,10-11", &[0, 1, 2, 3, 8, 10, 11]);
        check("3,1,1-2", &[1, 2, 3]);
        check("", &[]);
        check("\n", &[]);
        check("5-2", &[]);
        check("x,1-y,-,4", &[4]);
        check("0-99999999999,7,0-4000000000", &[7]);
    }
}
