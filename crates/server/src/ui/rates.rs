//! How fast things go: differences between two looks at the same model.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hypura_engine::EngineStatus;
use serde::Serialize;

/// Looks that are closer together don't make a rate; whoever asks then gets the last one.
const PERIOD_MIN: Duration = Duration::from_millis(900);

/// The last look at each loaded model.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    looks: Mutex<HashMap<String, Look>>,
}

/// What a model does in a second of time, idle time included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Rate {
    decode_tokens_per_s: f64,
    prompt_tokens_per_s: f64,
    read_bytes_per_s: f64,
    /// Share of experts found in memory, that of a GPU included; none if none was looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_rate: Option<f64>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    sums: Sums,
    rate: Option<Rate>,
}

/// Numbers that only grow while a model stays loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sums {
    generated_tokens: u64,
    computed_tokens: u64,
    read_bytes: u64,
    lookups: u64,
    hits: u64,
}

impl Rates {
    /// The rates of a model since it was last looked at; `None` at the first look.
    pub(super) fn of(&self, model: &str, status: &EngineStatus, now: Instant) -> Option<Rate> {
        let sums = Sums::of(status);
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = looks.get_mut(model) else {
            looks.insert(model.to_owned(), Look { at: now, sums, rate: None });
            return None;
        };
        let period = now.saturating_duration_since(last.at);
        if period >= PERIOD_MIN {
            // Of a model that was loaded anew in between, the sums began anew.
            let rate = sums.since(&last.sums).map(|grown| grown.per(period));
            *last = Look { at: now, sums, rate };
        }
        last.rate
    }

    /// Forgets the models that are not loaded.
    pub(super) fn keep(&self, loaded: impl Fn(&str) -> bool) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.retain(|model, _| loaded(model));
    }
}

impl Sums {
    fn of(status: &EngineStatus) -> Sums {
        let (totals, stream) = (&status.totals, &status.stream);
        // With a GPU, memory is asked only for what GPU memory lacks.
        let (lookups, hits) = match &stream.device {
            None => (stream.unit_lookups, stream.unit_hits),
            Some(device) => (device.lookups, device.hits + device.host_hits),
        };
        Sums {
            generated_tokens: totals.generated_tokens,
            computed_tokens: totals.prompt_tokens.saturating_sub(totals.reused_tokens),
            read_bytes: stream.read_bytes,
            lookups,
            hits,
        }
    }

    fn since(&self, earlier: &Sums) -> Option<Sums> {
        Some(Sums {
            generated_tokens: self.generated_tokens.checked_sub(earlier.generated_tokens)?,
            computed_tokens: self.computed_tokens.checked_sub(earlier.computed_tokens)?,
            read_bytes: self.read_bytes.checked_sub(earlier.read_bytes)?,
            lookups: self.lookups.checked_sub(earlier.lookups)?,
            hits: self.hits.checked_sub(earlier.hits)?,
        })
    }

    #[allow(clippy::cast_precision_loss)] // for a drawing
    fn per(&self, period: Duration) -> Rate {
        let per_s = |sum: u64| sum as f64 / period.as_secs_f64();
        Rate {
            decode_tokens_per_s: per_s(self.generated_tokens),
            prompt_tokens_per_s: per_s(self.computed_tokens),
            read_bytes_per_s: per_s(self.read_bytes),
            hit_rate: (self.lookups > 0).then(|| self.hits as f64 / self.lookups as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(generated_tokens: u64, hits: u64) -> EngineStatus {
        let mut status = EngineStatus::default();
        status.totals.generated_tokens = generated_tokens;
        status.stream.unit_lookups = 2 * hits;
        status.stream.unit_hits = hits;
        status
    }

    #[test]
    fn a_rate_needs_two_looks_with_time_between() {
        let rates = Rates::default();
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(rates.of("m", &status(10, 0), at(0)), None);
        assert_eq!(rates.of("m", &status(14, 0), at(500)), None);
        let rate = rates.of("m", &status(30, 3), at(2000)).unwrap();
        assert_eq!(rate.decode_tokens_per_s, 10.0);
        assert_eq!(rate.hit_rate, Some(0.5));
        // Too soon: the same again.
        assert_eq!(rates.of("m", &status(99, 3), at(2100)), Some(rate));
        // Loaded anew: not known until the next look.
        assert_eq!(rates.of("m", &status(1, 0), at(4000)), None);
        assert_eq!(rates.of("m", &status(3, 0), at(5000)).unwrap().decode_tokens_per_s, 2.0);
        rates.keep(|_| false);
        assert_eq!(rates.of("m", &status(3, 0), at(9000)), None);
    }

    #[test]
    fn with_a_gpu_what_either_memory_has_is_found() {
        let rates = Rates::default();
        let begin = Instant::now();
        let status = |lookups, gpu_hits, host_hits| {
            let mut device = hypura_engine::DeviceStats::default();
            (device.lookups, device.hits, device.host_hits) = (lookups, gpu_hits, host_hits);
            let mut status = status(0, 7);
            status.stream.device = Some(device);
            status
        };
        assert_eq!(rates.of("m", &status(0, 0, 0), begin), None);
        let later = begin + Duration::from_secs(2);
        assert_eq!(rates.of("m", &status(8, 4, 3), later).unwrap().hit_rate, Some(0.875));
    }
}
