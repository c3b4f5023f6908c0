//! The numbers of a run.

use hypura_kv::StoreStats;
use hypura_plan::{Mode, Plan};
use serde::Serialize;

use crate::engine::Settled;
use crate::generate::{FILL_TOKENS, Finish, Generated};
use crate::load::Loaded;
use crate::stream::{AheadStats, DeviceStats, Segment};

/// What `--stats-json` writes.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RunStats {
    /// `full-resident`, `expert-streaming` or `dense-streaming`.
    pub mode: &'static str,
    /// The layout of resident weights: `plain` or `fast`.
    pub layout: &'static str,
    /// Bytes of all tensors.
    pub model_bytes: u64,
    /// The memory budget.
    pub budget_bytes: u64,
    /// The most memory that was resident.
    pub peak_rss_bytes: u64,
    /// Compute threads.
    pub threads: u32,
    /// Tokens of context.
    pub n_ctx: u32,
    /// Tokens of a micro-batch.
    pub n_ubatch: u32,
    /// Time to load, in milliseconds.
    pub load_ms: f64,
    /// Bytes of weights read while loading (0: llama.cpp's own loader read them).
    pub load_read_bytes: u64,
    /// Of these, bytes of streamed tensors.
    pub load_streamed_read_bytes: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens computed per second.
    pub prompt_tokens_per_s: f64,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Tokens after the first, per second.
    pub decode_tokens_per_s: f64,
    /// The same for the second to the 32nd token, while experts find their slots; 0 in a shorter
    /// answer.
    pub decode_first_tokens_per_s: f64,
    /// The same for the tokens after the 32nd; 0 if there are none.
    pub decode_rest_tokens_per_s: f64,
    /// Bytes of weights read for the tokens after the 32nd.
    pub decode_rest_read_bytes: u64,
    /// Experts looked up, and found resident, for the tokens after the 32nd.
    pub decode_rest_lookups: u64,
    /// See [`RunStats::decode_rest_lookups`].
    pub decode_rest_hits: u64,
    /// Time to the first token, in milliseconds.
    pub ttft_ms: f64,
    /// Bytes of weights read for prompt and answer.
    pub weights_read_bytes: u64,
    /// Of these, for the tokens after the first.
    pub decode_read_bytes: u64,
    /// Experts looked up.
    pub unit_lookups: u64,
    /// Of these, found resident.
    pub unit_hits: u64,
    /// Experts that gave way.
    pub evictions: u64,
    /// Groups of experts done one after another, for want of slots.
    pub passes: u64,
    /// What was read before its router had run.
    pub ahead: AheadStats,
    /// What lies on the GPU and what was copied there, if one computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRunStats>,
    /// What each layer computed and missed for the tokens after the first, in order, if that was
    /// asked for: what the dependency bound is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_segments: Option<Vec<Segment>>,
    /// Time that the computation waited for reads, in milliseconds.
    pub read_wait_ms: f64,
    /// Time during which something was being read, in milliseconds; what was read in the background since
    /// the answer before included.
    pub drive_busy_ms: f64,
    /// Time that it computed, in milliseconds.
    pub compute_ms: f64,
    /// Tokens of attention state that did not have to be computed.
    pub kv_tokens_reused: usize,
    /// Tokens of the prompt whose attention state the tiers know.
    pub kv_known_tokens: usize,
    /// Tokens that were restored from files.
    pub kv_cold_tokens: usize,
    /// Tokens that were restored from memory.
    pub kv_hot_tokens: usize,
    /// Time for restoring, in milliseconds; a part of `ttft_ms`.
    pub kv_restore_ms: f64,
    /// Time for computing the prompt's other tokens, in milliseconds; a part of `ttft_ms`.
    pub prompt_ms: f64,
    /// Bytes per second of restoring, files and memory together; 0 if nothing was restored.
    pub kv_restore_bytes_per_s: f64,
    /// Whether computing was expected to be faster than restoring.
    pub kv_declined: bool,
    /// What restoring was expected to take, in milliseconds; 0 if there was nothing to restore.
    pub kv_expected_restore_ms: f64,
    /// What computing the same tokens was expected to take, in milliseconds.
    pub kv_expected_compute_ms: f64,
    /// Blocks of attention state that were missing or damaged when they were read.
    pub kv_lost_blocks: usize,
    /// Time that prompt and answer waited while their state was taken out of the context, in
    /// milliseconds.
    pub kv_export_ms: f64,
    /// Bytes of attention state read from the cold tier.
    pub kv_read_bytes: u64,
    /// Bytes of attention state written to the cold tier since the model was loaded.
    pub kv_written_bytes: u64,
    /// Blocks that were not written, because the drive could not follow or a limit was reached.
    pub kv_unwritten_blocks: u64,
    /// Bytes of all files of the cold tier.
    pub kv_cold_bytes: u64,
    /// Bytes written to the cold tier today, by all processes.
    pub kv_wear_today_bytes: u64,
    /// Bytes ever written to the cold tier.
    pub kv_wear_total_bytes: u64,
    /// What the planner expected.
    pub predicted_tokens_per_s: f64,
    /// Why the answer ended.
    pub finish: &'static str,
    /// SHA-256 of the text.
    pub text_sha256: String,
}

/// The part of a GPU in a run.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct GpuRunStats {
    /// Name of the product.
    pub name: String,
    /// The budget of its memory, in bytes.
    pub budget_bytes: u64,
    /// What was planned to lie there, in bytes.
    pub planned_bytes: u64,
    /// Experts that it holds at once, in all layers.
    pub slots: u64,
    /// For prompt and answer: experts looked up there, hits, and what was copied; `null` when all
    /// weights are there.
    pub tier: Option<DeviceStats>,
    /// The same for the tokens after the first.
    pub decode_tier: Option<DeviceStats>,
    /// The most that copies to it were measured at, in bytes per second; `null` if they were not.
    pub link_bytes_per_s: Option<f64>,
}

/// What is known of a loaded model before it is handed to its thread.
#[derive(Debug, Clone)]
pub struct LoadSummary {
    plan: Plan,
    layout: &'static str,
    model_bytes: u64,
    threads: u32,
    load_ms: f64,
    load_read_bytes: u64,
    load_streamed_read_bytes: u64,
    gpu: Option<String>,
    link_bytes_per_s: Option<f64>,
}

impl Loaded {
    /// What a report needs of it.
    pub fn summary(&self) -> LoadSummary {
        LoadSummary {
            plan: self.plan.clone(),
            layout: match self.layout {
                hypura_llama::Layout::Plain => "plain",
                hypura_llama::Layout::Fast => "fast",
            },
            model_bytes: self.gguf.weight_bytes(),
            threads: self.threads,
            load_ms: self.load_time.as_secs_f64() * 1e3,
            load_read_bytes: self.load_stats.resident_bytes_read,
            load_streamed_read_bytes: self.load_stats.streamed_bytes_read,
            gpu: self.gpu.clone(),
            link_bytes_per_s: self.link_bytes_per_s,
        }
    }
}

impl LoadSummary {
    /// Bytes of all weights.
    pub fn model_bytes(&self) -> u64 {
        self.model_bytes
    }

    /// The plan, as it was carried out.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn gpu_stats(
        &self,
        prompt: Option<DeviceStats>,
        decode: Option<DeviceStats>,
    ) -> Option<GpuRunStats> {
        let plan = self.plan.gpu.as_ref()?;
        Some(GpuRunStats {
            name: self.gpu.clone().unwrap_or_default(),
            budget_bytes: plan.budget_bytes,
            planned_bytes: plan.bytes.total(),
            slots: plan.slots.iter().map(|&slots| u64::from(slots)).sum(),
            tier: prompt.zip(decode).map(|(prompt, decode)| prompt.plus(&decode)),
            decode_tier: decode,
            link_bytes_per_s: self.link_bytes_per_s,
        })
    }

    /// The numbers of one answer, and of the tiers of attention state when they have settled.
    pub fn run_stats(&self, answer: &Generated, settled: Option<&Settled>) -> RunStats {
        use sha2::Digest;
        let computed = answer.prompt_tokens - answer.reused_tokens;
        let after_first = answer.tokens.len().saturating_sub(1);
        let (prompt, decode) = (&answer.prompt_stream, &answer.decode_stream);
        let none = (answer.decode_time, *decode);
        let (fill_time, fill) = answer.filling.unwrap_or(none);
        let rest = decode.since(&fill);
        let n_rest = answer.tokens.len().saturating_sub(FILL_TOKENS);
        let rest_time = answer.decode_time.saturating_sub(fill_time);
        let n_fill = if answer.filling.is_some() { FILL_TOKENS - 1 } else { 0 };
        let kv = &answer.kv;
        let none = StoreStats::default();
        let tiers = settled.map_or(&none, |settled| &settled.stats);
        let digest = sha2::Sha256::digest(answer.text.as_bytes());
        RunStats {
            mode: mode_name(self.plan.mode),
            layout: self.layout,
            model_bytes: self.model_bytes,
            budget_bytes: self.plan.budget_bytes,
            peak_rss_bytes: hypura_llama::process::peak_rss_bytes(),
            threads: self.threads,
            n_ctx: self.plan.n_ctx,
            n_ubatch: self.plan.n_ubatch,
            load_ms: self.load_ms,
            load_read_bytes: self.load_read_bytes,
            load_streamed_read_bytes: self.load_streamed_read_bytes,
            prompt_tokens: answer.prompt_tokens,
            prompt_tokens_per_s: rate(computed, answer.prompt_time.as_secs_f64()),
            generated_tokens: answer.tokens.len(),
            decode_tokens_per_s: rate(after_first, answer.decode_time.as_secs_f64()),
            decode_first_tokens_per_s: rate(n_fill, fill_time.as_secs_f64()),
            decode_rest_tokens_per_s: rate(n_rest, rest_time.as_secs_f64()),
            decode_rest_read_bytes: rest.read_bytes,
            decode_rest_lookups: rest.unit_lookups,
            decode_rest_hits: rest.unit_hits,
            ttft_ms: answer.ttft.as_secs_f64() * 1e3,
            weights_read_bytes: prompt.read_bytes + decode.read_bytes,
            decode_read_bytes: decode.read_bytes,
            unit_lookups: prompt.unit_lookups + decode.unit_lookups,
            unit_hits: prompt.unit_hits + decode.unit_hits,
            evictions: prompt.evictions + decode.evictions,
            passes: prompt.passes + decode.passes,
            ahead: decode.ahead,
            gpu: self.gpu_stats(prompt.device, decode.device),
            decode_segments: answer.decode_segments.clone(),
            read_wait_ms: (prompt.read_wait + decode.read_wait).as_secs_f64() * 1e3,
            drive_busy_ms: (prompt.drive_busy + decode.drive_busy).as_secs_f64() * 1e3,
            compute_ms: (prompt.compute + decode.compute).as_secs_f64() * 1e3,
            kv_tokens_reused: answer.reused_tokens,
            kv_known_tokens: kv.known_tokens,
            kv_cold_tokens: kv.cold_tokens,
            kv_hot_tokens: kv.hot_tokens,
            kv_restore_ms: kv.restore_time.as_secs_f64() * 1e3,
            kv_restore_bytes_per_s: if kv.restore_time.is_zero() {
                0.0
            } else {
                (kv.read_bytes + kv.copied_bytes) as f64 / kv.restore_time.as_secs_f64()
            },
            prompt_ms: answer.prompt_time.as_secs_f64() * 1e3,
            kv_declined: kv.declined,
            kv_expected_restore_ms: kv.expected_restore_s * 1e3,
            kv_expected_compute_ms: kv.expected_compute_s * 1e3,
            kv_lost_blocks: kv.lost_blocks,
            kv_export_ms: kv.export_time.as_secs_f64() * 1e3,
            kv_read_bytes: kv.read_bytes,
            kv_written_bytes: tiers.bytes_written,
            kv_unwritten_blocks: tiers.blocks_dropped + tiers.blocks_refused,
            kv_cold_bytes: tiers.cold_bytes,
            kv_wear_today_bytes: tiers.wear_today_bytes,
            kv_wear_total_bytes: tiers.wear_total_bytes,
            predicted_tokens_per_s: self.plan.speed.decode_tokens_per_s,
            finish: match answer.finish {
                Finish::EndOfText => "end-of-text",
                Finish::Stop(_) => "stop",
                Finish::Length => "length",
                Finish::ContextFull => "context-full",
                Finish::Interrupted => "interrupted",
            },
            text_sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

fn rate(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// The name of a mode.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::FullResident => "full-resident",
        Mode::ExpertStreaming => "expert-streaming",
        Mode::DenseStreaming => "dense-streaming",
    }
}
