//! Memory, as a profile describes it.

use serde::{Deserialize, Serialize};

/// The memory of a machine, and the limit on a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What a process could take now without others having to be swapped out, in bytes; limits
    /// are not counted.
    pub available_bytes: u64,
    /// The tightest limit on this process: of its control group and those above it, the one that
    /// leaves least room. `None` if there is none below the machine's memory.
    pub limit_bytes: Option<u64>,
    /// What already counts against that limit, in bytes; 0 without a limit.
    pub used_in_limit_bytes: u64,
    /// What of that the kernel takes back when it must (page cache), in bytes.
    pub reclaimable_in_limit_bytes: u64,
}

impl Memory {
    /// What this process can take in addition to what it has, in bytes: what is available now,
    /// within the limit, with the page cache inside the limit counted as available.
    pub fn free_for_us(&self) -> u64 {
        let pinned = self.used_in_limit_bytes.saturating_sub(self.reclaimable_in_limit_bytes);
        match self.limit_bytes {
            None => self.available_bytes,
            Some(limit) => self.available_bytes.min(limit.saturating_sub(pinned)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_respects_the_limit() {
        let check = |available, limit, used, reclaimable, expected| {
            let memory = Memory {
                total_bytes: 1000,
                available_bytes: available,
                limit_bytes: limit,
                used_in_limit_bytes: used,
                reclaimable_in_limit_bytes: reclaimable,
            };
            assert_eq!(memory.free_for_us(), expected, "{memory:?}");
        };
        check(700, None, 0, 0, 700);
        check(700, Some(400), 100, 0, 300);
        check(700, Some(400), 100, 60, 360);
        check(200, Some(400), 100, 60, 200);
        check(700, Some(400), 500, 20, 0);
        check(700, Some(400), 100, 300, 400);
    }
}
