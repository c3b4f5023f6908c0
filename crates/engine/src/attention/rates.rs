//! What restoring and computing are expected to take.

use std::time::Duration;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.5;
/// Fewer tokens say more about overheads than about a rate.
const TOKENS_MIN: usize = 16;
/// Fewer bytes likewise.
const BYTES_MIN: u64 = 1 << 20;
/// What it takes to begin reading (threads are started), to begin copying, and to open a file: as
/// measured on two cores with a virtual drive (docs/performance.md). It decides about short prefixes
/// of small models, a millisecond either way.
const BEGIN_READING_S: f64 = 1.3e-3;
const BEGIN_COPYING_S: f64 = 1e-4;
const OPEN_S: f64 = 1e-4;
/// Bytes per second from memory into the context; assumed.
const MEMORY_BYTES_PER_S: f64 = 4e9;

/// Rates of this process, measured where there was something to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Tokens of a prompt per second.
    prompt_tokens_per_s: f64,
    /// Bytes of cold blocks per second.
    cold_bytes_per_s: f64,
}

impl Rates {
    /// What the planner expects.
    pub(crate) fn new(prompt_tokens_per_s: f64, cold_bytes_per_s: f64) -> Rates {
        Rates { prompt_tokens_per_s, cold_bytes_per_s }
    }

    /// A prompt's tokens took so long.
    pub(crate) fn computed(&mut self, tokens: usize, time: Duration) {
        if tokens >= TOKENS_MIN {
            blend(&mut self.prompt_tokens_per_s, tokens as f64, time);
        }
    }

    /// Cold blocks took so long.
    pub(crate) fn read(&mut self, bytes: u64, time: Duration) {
        if bytes >= BYTES_MIN {
            blend(&mut self.cold_bytes_per_s, bytes as f64, time);
        }
    }

    /// Seconds for computing a prompt's tokens.
    pub(crate) fn compute_s(&self, tokens: usize) -> f64 {
        tokens as f64 / self.prompt_tokens_per_s.max(1e-3)
    }

    /// Seconds for reading blocks back.
    pub(crate) fn restore_s(&self, cold_files: usize, cold_bytes: u64, hot_bytes: u64) -> f64 {
        let begin_s = if cold_files > 0 { BEGIN_READING_S } else { BEGIN_COPYING_S };
        begin_s
            + OPEN_S * cold_files as f64
            + cold_bytes as f64 / self.cold_bytes_per_s.max(1.0)
            + hot_bytes as f64 / MEMORY_BYTES_PER_S
    }
}

fn blend(rate: &mut f64, amount: f64, time: Duration) {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 {
        *rate = (1.0 - NEWEST) * *rate + NEWEST * amount / seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_wins_from_some_length_on() {
        // A small model: 20,000 tokens per second, 1 KiB per token, a drive of 1 GB/s.
        let small = Rates::new(20_000.0, 1e9);
        let faster = |tokens: usize| {
            small.restore_s(tokens.div_ceil(256), tokens as u64 * 1024, 0) < small.compute_s(tokens)
        };
        assert!(!faster(1) && !faster(20) && faster(40) && faster(10_000));
        // One that computes faster than the drive reads never does.
        let never = Rates::new(2e6, 1e9);
        let cold = |tokens: usize| never.restore_s(1, tokens as u64 * 1024, 0);
        assert!([1, 100, 100_000].into_iter().all(|n| cold(n) > never.compute_s(n)));
        // A large one nearly always does.
        let large = Rates::new(11.0, 1e9);
        assert!(large.restore_s(1, 131_072, 0) < large.compute_s(1));
    }

    #[test]
    fn rates_follow_what_is_measured_and_ignore_trifles() {
        let mut rates = Rates::new(100.0, 1e9);
        rates.computed(3, Duration::from_secs(100));
        assert!((rates.compute_s(100) - 1.0).abs() < 1e-9);
        for _ in 0..20 {
            rates.computed(1000, Duration::from_secs(1));
            rates.read(100 << 20, Duration::from_secs(1));
        }
        assert!((rates.compute_s(1000) - 1.0).abs() < 1e-3);
        let seconds = rates.restore_s(0, 100 << 20, 0);
        assert!((seconds - 1.0).abs() < 1e-2, "{seconds}");
    }
}
