//! What `hypura run` says after an answer.

use hypura_engine::{DeviceStats, Generated, GpuRunStats, RunStats, StreamStats};

use crate::size::show;

/// One line about an answer: how fast, from where, and what limited it.
pub(super) fn sentence(stats: &RunStats, answer: &Generated) -> String {
    let mut parts = vec![match stats.generated_tokens {
        n @ (0 | 1) => format!("{n} tokens"),
        n => format!("{n} tokens at {:.2}/s", stats.decode_tokens_per_s),
    }];
    parts.push(format!(
        "prompt {} at {:.1}/s{}",
        stats.prompt_tokens - stats.kv_tokens_reused,
        stats.prompt_tokens_per_s,
        match (stats.kv_tokens_reused, stats.kv_cold_tokens + stats.kv_hot_tokens) {
            (0, _) => String::new(),
            (known, 0) => format!(" ({known} known)"),
            (known, _) => format!(
                " ({known} known, {} read back in {:.2} s)",
                show(stats.kv_read_bytes + answer.kv.copied_bytes),
                stats.kv_restore_ms / 1e3
            ),
        }
    ));
    let tokens = stats.generated_tokens.saturating_sub(1).max(1) as u64;
    match &stats.gpu {
        None => {
            parts.push(format!("{}, {} layout", stats.mode, stats.layout));
            parts.extend(streamed(&answer.decode_stream, tokens));
        }
        Some(gpu) => {
            parts.push(format!("{} on {}", stats.mode, gpu.name));
            parts.extend(gpu.decode_tier.iter().flat_map(|tier| copied(tier, tokens)));
            parts.extend(read(&answer.decode_stream, tokens));
        }
    }
    parts.push(format!(
        "peak memory {} of {}",
        show(stats.peak_rss_bytes),
        show(stats.budget_bytes)
    ));
    parts.extend(stats.gpu.as_ref().map(planned));
    format!("[{}]", parts.join("; "))
}

/// What came from memory and from the drive, where the CPU computes.
fn streamed(decode: &StreamStats, tokens: u64) -> Vec<String> {
    let mut parts = Vec::new();
    if decode.unit_lookups > 0 {
        let rate = decode.unit_hits as f64 / decode.unit_lookups as f64;
        parts.push(format!("{:.1}% of experts found in memory", rate * 100.0));
    }
    if decode.read_bytes > 0 {
        parts.push(format!("{} read per token", show(decode.read_bytes / tokens)));
        let limit = if decode.read_wait > decode.compute { "the drive" } else { "computing" };
        parts.push(format!(
            "limited by {limit} (waited {:.1} s, computed {:.1} s)",
            decode.read_wait.as_secs_f64(),
            decode.compute.as_secs_f64()
        ));
    }
    parts
}

/// Where experts were found, the fastest place first, and what was copied to the GPU.
fn copied(tier: &DeviceStats, tokens: u64) -> Vec<String> {
    let mut parts = Vec::new();
    let all = tier.lookups + tier.computed_in_place;
    if all > 0 {
        let share = |n: u64| format!("{:.1}%", n as f64 / all as f64 * 100.0);
        let on_drive = tier.lookups.saturating_sub(tier.hits + tier.host_hits);
        let mut text = format!(
            "experts found: {} in GPU memory, {} in memory, {} on the drive",
            share(tier.hits),
            share(tier.host_hits),
            share(on_drive)
        );
        if tier.computed_in_place > 0 {
            text = format!("{text}, {} left to the CPU", share(tier.computed_in_place));
        }
        parts.push(text);
    }
    if tier.copied_bytes > 0 {
        parts.push(format!("{} copied to the GPU per token", show(tier.copied_bytes / tokens)));
    }
    parts
}

/// What came from the drive, where a GPU computes: how long it did is not known.
fn read(decode: &StreamStats, tokens: u64) -> Vec<String> {
    if decode.read_bytes == 0 {
        return Vec::new();
    }
    vec![format!(
        "{} read per token, waited {:.1} s for it",
        show(decode.read_bytes / tokens),
        decode.read_wait.as_secs_f64()
    )]
}

fn planned(gpu: &GpuRunStats) -> String {
    // Slots got what the buffers, which are estimated, did not need.
    let bytes = gpu.planned_bytes.min(gpu.budget_bytes);
    format!("GPU memory {} of {}, as planned", show(bytes), show(gpu.budget_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_told_by_where_they_were_found() {
        let mut tier = DeviceStats::default();
        assert_eq!(copied(&tier, 4), [""; 0], "nothing happened");
        tier.copied_bytes = 4096;
        assert_eq!(copied(&tier, 4), ["1.00 KiB copied to the GPU per token"], "matrices alone");
        (tier.lookups, tier.hits, tier.host_hits) = (200, 120, 60);
        let found = "experts found: 60.0% in GPU memory, 30.0% in memory, 10.0% on the drive";
        assert_eq!(copied(&tier, 4)[0], found);
        tier.computed_in_place = 200;
        let found = "experts found: 30.0% in GPU memory, 15.0% in memory, 5.0% on the drive, \
                     50.0% left to the CPU";
        assert_eq!(copied(&tier, 4)[0], found);
    }
}
