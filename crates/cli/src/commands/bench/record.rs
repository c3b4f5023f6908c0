//! What one run gave, and which numbers of it are compared.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::child::ProcessIo;

/// Tokens while which experts still find their slots, as the engine counts them.
const FILL_TOKENS: usize = 32;

/// Who runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    Hypura,
    /// Plain llama.cpp, the file mapped.
    Mmap,
    /// Plain llama.cpp, the file read into memory; no limit.
    Resident,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Side::Hypura => "hypura",
            Side::Mmap => "mmap",
            Side::Resident => "resident",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    Finished,
    /// The kernel ended it at its limit.
    OutOfMemory,
}

/// From one router to the next, or to the end of a token.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(super) struct Segment {
    /// Time that was computed.
    pub(super) compute_us: f64,
    /// Bytes that were known to be needed only when the segment began.
    pub(super) missing_bytes: f64,
}

impl Segment {
    /// Takes the segments out of a run's numbers; none if there are none.
    pub(super) fn take(stats: &mut Value) -> Vec<Segment> {
        let taken = stats.as_object_mut().and_then(|object| object.remove("decode_segments"));
        taken.and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default()
    }
}

/// One run of one side.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    /// From 1.
    pub(super) round: u32,
    pub(super) side: Side,
    /// The budget that this run is compared at; none for a side without one.
    pub(super) memory_bytes: Option<u64>,
    /// What its control group held it to.
    pub(super) limit_bytes: Option<u64>,
    /// As it was started, without the program.
    pub(super) command: Vec<String>,
    pub(super) outcome: Outcome,
    /// From start to end of the process.
    pub(super) elapsed_s: f64,
    /// What it computed and waited for, from router to router; too long to be written.
    #[serde(skip)]
    pub(super) segments: Vec<Segment>,
    /// The numbers of `hypura run --stats-json`, less the segments.
    pub(super) stats: Value,
    pub(super) process_io: Option<ProcessIo>,
    /// The most that its control group had, page cache counted.
    pub(super) group_peak_bytes: Option<u64>,
    /// Of all processor packages, from start to end; none where it can't be measured.
    pub(super) energy_j: Option<f64>,
    /// What the drive gave just before and after, on average.
    pub(super) bandwidth_bytes_per_s: Option<f64>,
}

impl Record {
    /// A number of the engine's; `None` if this version has no such number.
    pub(super) fn stat(&self, name: &str) -> Option<f64> {
        self.stats.get(name)?.as_f64().filter(|value| value.is_finite())
    }

    /// Tokens generated after the first, whose time is the prompt's.
    fn decoded_tokens(&self) -> Option<f64> {
        self.stat("generated_tokens").map(|n| n - 1.0).filter(|n| *n > 0.0)
    }

    /// Bytes of weights that the engine read for each token after the first. llama.cpp doesn't count
    /// what a mapping reads.
    pub(super) fn read_bytes_per_token(&self) -> Option<f64> {
        if self.side != Side::Hypura {
            return None;
        }
        Some(self.stat("decode_read_bytes")? / self.decoded_tokens()?)
    }

    /// The same for the tokens after the 32nd, when the cache is full.
    pub(super) fn rest_read_bytes_per_token(&self) -> Option<f64> {
        if self.side != Side::Hypura {
            return None;
        }
        Some(self.stat("decode_rest_read_bytes")? / self.rest_tokens()?)
    }

    /// Tokens after the 32nd.
    fn rest_tokens(&self) -> Option<f64> {
        self.stat("generated_tokens").map(|n| n - FILL_TOKENS as f64).filter(|n| *n > 0.0)
    }

    /// A number of the engine's that is zero where there is nothing to tell.
    fn positive(&self, name: &str) -> Option<f64> {
        self.stat(name).filter(|value| *value > 0.0)
    }

    /// Whether a GPU computed. Then what the engine counts of experts in memory is only of those that
    /// GPU memory lacked, and it does not know how long was computed.
    pub(super) fn has_gpu(&self) -> bool {
        self.stats.get("gpu").is_some_and(Value::is_object)
    }

    /// A number of what happened between memory and the GPU: for prompt and answer (`tier`), or for
    /// the tokens after the first (`decode_tier`).
    fn gpu_stat(&self, of: &str, name: &str) -> Option<f64> {
        self.stats.get("gpu")?.get(of)?.get(name)?.as_f64()
    }

    /// The share of all experts that this number of the GPU's is.
    fn gpu_share(&self, name: &str) -> Option<f64> {
        let number = |name| self.gpu_stat("tier", name);
        let all = number("lookups")? + number("computed_in_place").unwrap_or(0.0);
        Some(number(name)? / Some(all).filter(|all| *all > 0.0)?)
    }

    fn hit_rate(&self) -> Option<f64> {
        if self.has_gpu() {
            return self.gpu_share("host_hits");
        }
        Some(self.stat("unit_hits")? / self.positive("unit_lookups")?)
    }

    /// The same for the tokens after the 32nd; not counted with a GPU.
    fn rest_hit_rate(&self) -> Option<f64> {
        if self.has_gpu() {
            return None;
        }
        Some(self.stat("decode_rest_hits")? / self.positive("decode_rest_lookups")?)
    }

    /// Bytes of weights that were copied to the GPU for each token after the first.
    fn copied_bytes_per_token(&self) -> Option<f64> {
        if self.side != Side::Hypura {
            return None;
        }
        Some(self.gpu_stat("decode_tier", "copied_bytes")? / self.decoded_tokens()?)
    }

    /// The time that these take at the most that the link was measured at.
    pub(super) fn copy_s_per_token(&self) -> Option<f64> {
        let link = self.stats.get("gpu")?.get("link_bytes_per_s")?.as_f64();
        Some(self.copied_bytes_per_token()? / link.filter(|link| *link > 0.0)?)
    }

    /// The segments of the tokens after the first, or after the 32nd, and how many tokens those are.
    /// `None` if the engine doesn't tell, or not of whole tokens.
    pub(super) fn segments(&self, of_rest: bool) -> Option<(&[Segment], f64)> {
        let number = |name| usize::try_from(self.stats.get(name)?.as_u64()?).ok();
        let decoded = number("generated_tokens")?.checked_sub(1).filter(|n| *n > 0)?;
        if self.segments.is_empty() || self.has_gpu() {
            return None;
        }
        if !of_rest {
            return Some((&self.segments, decoded as f64));
        }
        // Each token has as many: one for each router, and what follows the last.
        if !self.segments.len().is_multiple_of(decoded) {
            return None;
        }
        let rest = (decoded + 1).checked_sub(FILL_TOKENS).filter(|n| *n > 0)?;
        let begin = self.segments.len() / decoded * (decoded - rest);
        Some((self.segments.get(begin..)?, rest as f64))
    }

    /// Two runs compute alike, to the bit, only if these are equal: a prompt's micro-batch, threads.
    pub(super) fn split(&self) -> Option<(u64, u64)> {
        let number = |name| self.stats.get(name)?.as_u64();
        Some((number("n_ubatch")?, number("threads")?))
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.stats.get("text_sha256")?.as_str()
    }
}

/// How a number is written for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// As it is.
    Plain,
    Bytes,
    /// 0 to 1.
    Share,
    Seconds,
}

/// A number that is compared.
pub(super) struct Metric {
    /// Its name in JSON.
    pub(super) key: &'static str,
    pub(super) label: &'static str,
    pub(super) unit: Unit,
    pub(super) of: fn(&Record) -> Option<f64>,
}

/// Decoding, the number that matters most.
pub(super) const DECODE: Metric = Metric {
    key: "decode_tokens_per_s",
    label: "decode, tokens/s",
    unit: Unit::Plain,
    of: |run| run.stat("decode_tokens_per_s"),
};

/// The first tokens, while the cache fills.
pub(super) const FIRST: Metric = Metric {
    key: "decode_first_tokens_per_s",
    label: "  tokens 1 to 32",
    unit: Unit::Plain,
    of: |run| run.positive("decode_first_tokens_per_s"),
};

/// The tokens after them.
pub(super) const REST: Metric = Metric {
    key: "decode_rest_tokens_per_s",
    label: "  tokens 33 and on",
    unit: Unit::Plain,
    of: |run| run.positive("decode_rest_tokens_per_s"),
};

pub(super) const PROMPT: Metric = Metric {
    key: "prompt_tokens_per_s",
    label: "prompt, tokens/s",
    unit: Unit::Plain,
    of: |run| run.stat("prompt_tokens_per_s"),
};

/// All of them, in the order in which they are printed.
pub(super) const METRICS: [Metric; 17] = [
    DECODE,
    FIRST,
    REST,
    PROMPT,
    Metric {
        key: "ttft_s",
        label: "time to first token",
        unit: Unit::Seconds,
        of: |run| Some(run.stat("ttft_ms")? / 1e3),
    },
    Metric {
        key: "load_s",
        label: "time to load",
        unit: Unit::Seconds,
        of: |run| Some(run.stat("load_ms")? / 1e3),
    },
    Metric {
        key: "gpu_hit_rate",
        label: "experts found in GPU memory",
        unit: Unit::Share,
        of: |run| run.gpu_share("hits"),
    },
    Metric {
        key: "hit_rate",
        label: "experts found in memory",
        unit: Unit::Share,
        of: Record::hit_rate,
    },
    Metric {
        key: "decode_rest_hit_rate",
        label: "  tokens 33 and on",
        unit: Unit::Share,
        of: Record::rest_hit_rate,
    },
    Metric {
        key: "computed_in_place_rate",
        label: "experts left to the CPU",
        unit: Unit::Share,
        of: |run| run.gpu_share("computed_in_place").filter(|share| *share > 0.0),
    },
    Metric {
        key: "read_bytes_per_token",
        label: "read per token",
        unit: Unit::Bytes,
        of: Record::read_bytes_per_token,
    },
    Metric {
        key: "decode_rest_read_bytes_per_token",
        label: "  tokens 33 and on",
        unit: Unit::Bytes,
        of: Record::rest_read_bytes_per_token,
    },
    Metric {
        key: "copied_bytes_per_token",
        label: "copied to the GPU per token",
        unit: Unit::Bytes,
        of: Record::copied_bytes_per_token,
    },
    Metric {
        key: "process_read_bytes",
        label: "read by the process",
        unit: Unit::Bytes,
        of: |run| run.process_io.map(|io| io.read_bytes as f64),
    },
    Metric {
        key: "process_written_bytes",
        label: "written by the process",
        unit: Unit::Bytes,
        of: |run| run.process_io.map(|io| io.written_bytes as f64),
    },
    Metric {
        key: "peak_rss_bytes",
        label: "peak memory",
        unit: Unit::Bytes,
        of: |run| run.stat("peak_rss_bytes"),
    },
    Metric { key: "energy_j", label: "energy, J", unit: Unit::Plain, of: |run| run.energy_j },
];

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in super::super) fn record(
        round: u32,
        side: Side,
        memory: u64,
        mut stats: Value,
    ) -> Record {
        Record {
            round,
            side,
            memory_bytes: (side != Side::Resident).then_some(memory),
            limit_bytes: None,
            command: Vec::new(),
            outcome: Outcome::Finished,
            elapsed_s: 1.0,
            segments: Segment::take(&mut stats),
            stats,
            process_io: None,
            group_peak_bytes: None,
            energy_j: None,
            bandwidth_bytes_per_s: Some(1e9),
        }
    }

    #[test]
    fn numbers_that_an_engine_does_not_give_are_missing_not_zero() {
        let run = record(1, Side::Hypura, 1, json!({"generated_tokens": 11, "unit_lookups": 0}));
        assert!(METRICS.iter().all(|metric| (metric.of)(&run).is_none()));
        let run = record(
            1,
            Side::Hypura,
            1,
            json!({
                "generated_tokens": 11, "decode_read_bytes": 500,
                "unit_lookups": 8, "unit_hits": 6, "ttft_ms": 1500.0,
            }),
        );
        assert_eq!(run.read_bytes_per_token(), Some(50.0));
        let value = |key| METRICS.iter().find(|m| m.key == key).and_then(|m| (m.of)(&run));
        assert_eq!((value("hit_rate"), value("ttft_s")), (Some(0.75), Some(1.5)));
        let run = record(
            1,
            Side::Hypura,
            1,
            json!({
                "generated_tokens": 42, "decode_rest_tokens_per_s": 0.0,
                "decode_rest_read_bytes": 500, "n_ubatch": 64, "threads": 2,
            }),
        );
        assert_eq!(run.rest_read_bytes_per_token(), Some(50.0));
        assert_eq!(((REST.of)(&run), run.split()), (None, Some((64, 2))));
        // A mapping's reads are not in the engine's count.
        let run = record(1, Side::Mmap, 1, run.stats);
        assert_eq!(run.read_bytes_per_token(), None);
    }

    #[test]
    fn with_a_gpu_experts_are_counted_by_tier() {
        let gpu = |in_place: u64| {
            let tier = json!({
                "lookups": 80, "hits": 50, "host_hits": 20, "computed_in_place": in_place,
                "copied_bytes": 9000,
            });
            json!({"name": "a GPU", "tier": tier, "decode_tier": tier})
        };
        let stats = |gpu: Value| {
            let segments = [json!({"compute_us": 1, "missing_bytes": 7})];
            json!({
                "generated_tokens": 11, "decode_read_bytes": 500, "unit_lookups": 30,
                "unit_hits": 20, "decode_rest_lookups": 3, "decode_rest_hits": 2, "gpu": gpu,
                "decode_segments": segments,
            })
        };
        let of = |side, gpu, key| {
            let run = record(1, side, 1, stats(gpu));
            assert!(run.segments(false).is_none(), "how long it computed is not known");
            METRICS.iter().find(|metric| metric.key == key).and_then(|metric| (metric.of)(&run))
        };
        let ours = |in_place, key| of(Side::Hypura, gpu(in_place), key);
        assert_eq!((ours(0, "gpu_hit_rate"), ours(0, "hit_rate")), (Some(0.625), Some(0.25)));
        assert_eq!((ours(20, "gpu_hit_rate"), ours(20, "hit_rate")), (Some(0.5), Some(0.2)));
        let in_place = "computed_in_place_rate";
        assert_eq!((ours(0, in_place), ours(20, in_place)), (None, Some(0.2)));
        assert_eq!(ours(0, "decode_rest_hit_rate"), None);
        assert_eq!(ours(0, "copied_bytes_per_token"), Some(900.0));
        assert_eq!(ours(0, "read_bytes_per_token"), Some(50.0));
        // All weights on the GPU: nothing is looked up.
        let whole = json!({"name": "a GPU", "tier": null, "decode_tier": null});
        for key in ["gpu_hit_rate", "hit_rate", "copied_bytes_per_token"] {
            assert_eq!(of(Side::Mmap, whole.clone(), key), None, "{key}");
        }
    }

    #[test]
    fn segments_of_the_last_tokens() {
        let of = |tokens: usize, segments: usize| {
            let segment = |i| json!({"compute_us": i, "missing_bytes": 7});
            let segments: Vec<_> = (0..segments).map(segment).collect();
            let stats = json!({"generated_tokens": tokens, "decode_segments": segments});
            record(1, Side::Hypura, 1, stats)
        };
        let run = of(34, 99);
        assert!(run.stats.get("decode_segments").is_none());
        let (all, tokens) = run.segments(false).unwrap();
        assert_eq!((all.len(), tokens), (99, 33.0));
        // Three for each token: the last two have six.
        let (rest, tokens) = run.segments(true).unwrap();
        assert_eq!((rest.len(), tokens, rest[0].compute_us), (6, 2.0, 93.0));
        assert!(of(34, 98).segments(true).is_none(), "not of whole tokens");
        assert!(of(32, 93).segments(true).is_none() && of(34, 0).segments(false).is_none());
    }
}
