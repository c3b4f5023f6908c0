//! `/ui/status`: what the page draws.

use std::fmt::Write;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use hypura_engine::{EngineStatus, ExpertMap, StreamStats};
use serde::Serialize;

use super::rates::Rate;
use super::sessions::{self, Session};
use crate::app::{App, Shared};
use crate::models::{self, LoadedModel};

/// The server, as the page shows it.
#[derive(Serialize)]
pub(super) struct Status {
    version: &'static str,
    uptime_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vram_budget_bytes: Option<u64>,
    rss_bytes: u64,
    requests: Requests,
    models: Vec<Model>,
    sessions: Vec<Session>,
}

#[derive(Serialize)]
struct Requests {
    active: u64,
    waiting: u64,
    total: u64,
    queue_max: usize,
}

/// A loaded model.
#[derive(Serialize)]
struct Model {
    name: String,
    architecture: String,
    mode: String,
    n_ctx: usize,
    parallel: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<DateTime<Utc>>,
    model_bytes: u64,
    memory_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    vram_bytes: Option<u64>,
    tiers: Tiers,
    stream: Stream,
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Rate>,
    totals: Totals,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
    sequences: Vec<Sequence>,
}

/// Where its bytes are: as planned, and attention state as it is.
#[derive(Serialize)]
struct Tiers {
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    vram: Option<Vram>,
    ram_weights_bytes: u64,
    ram_slots_bytes: u64,
    ram_kv_bytes: u64,
    ram_buffers_bytes: u64,
    drive_weights_bytes: u64,
    kv_cold_bytes_max: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_hot_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_cold_bytes: Option<u64>,
}

/// What is in GPU memory.
#[derive(Serialize)]
struct Vram {
    vram_weights_bytes: u64,
    vram_slots_bytes: u64,
    vram_kv_bytes: u64,
    vram_buffers_bytes: u64,
}

#[derive(Serialize)]
struct Stream {
    lookups: u64,
    hits: u64,
    read_bytes: u64,
    read_wait_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<GpuStream>,
}

/// What happened between memory and the GPU.
#[derive(Serialize)]
struct GpuStream {
    lookups: u64,
    hits: u64,
    memory_hits: u64,
    copied_bytes: u64,
    computed_in_place: u64,
}

#[derive(Serialize)]
struct Totals {
    prompt_tokens: u64,
    reused_tokens: u64,
    generated_tokens: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Experts {
    layers: usize,
    experts: usize,
    uses: Vec<Vec<u64>>,
    /// For each layer one bit per expert, see [`bits`].
    resident: Vec<String>,
}

#[derive(Serialize)]
struct Sequence {
    id: usize,
    state: &'static str,
    tokens: usize,
    model: String,
}

/// What goes on.
pub(super) async fn show(State(app): State<Shared>) -> Json<Status> {
    let folder = app.config.sessions_dir.clone();
    let listed = tokio::task::spawn_blocking(move || folder.map(|folder| sessions::list(&folder)));
    let sessions = listed.await.ok().flatten().unwrap_or_default();
    let loaded = app.models.loaded();
    app.rates.keep(|name| loaded.iter().any(|model| model.entry.name == name));
    let now = Instant::now();
    // The models' bytes are those on all of their GPUs, the budget is that of one.
    let on_gpus = loaded.iter().filter(|model| model.vram_bytes > 0);
    let gpus = on_gpus.map(|model| model.runner.facts().tiers.gpus.max(1)).max();
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: app.started.elapsed().as_secs(),
        budget_bytes: app.config.memory_bytes,
        vram_budget_bytes: app
            .config
            .gpu_memory_bytes
            .zip(gpus)
            .map(|(of_each, gpus)| of_each.saturating_mul(u64::from(gpus))),
        rss_bytes: hypura_engine::llama::process::rss_bytes(),
        requests: Requests {
            active: app.metrics.active(),
            waiting: app.metrics.waiting(),
            total: app.metrics.answered(),
            queue_max: app.config.limits.queue_max,
        },
        models: loaded.iter().map(|model| Model::of(model, &app, now)).collect(),
        sessions,
    })
}

impl Model {
    fn of(model: &LoadedModel, app: &App, now: Instant) -> Model {
        let name = &model.entry.name;
        let facts = model.runner.facts();
        let status = model.runner.status();
        Model {
            name: name.clone(),
            architecture: facts.architecture.clone(),
            mode: facts.mode.clone(),
            n_ctx: model.context_length,
            parallel: facts.parallel,
            expires_at: model.expires_at,
            model_bytes: facts.weight_bytes,
            memory_bytes: model.memory_bytes,
            vram_bytes: Some(model.vram_bytes).filter(|&bytes| bytes > 0),
            tiers: Tiers::of(&facts.tiers, &status),
            stream: Stream::of(&status.stream),
            rates: app.rates.of(name, &status, now),
            totals: Totals {
                prompt_tokens: status.totals.prompt_tokens,
                reused_tokens: status.totals.reused_tokens,
                generated_tokens: status.totals.generated_tokens,
            },
            sequences: sequences(name, &status),
            experts: status.experts.as_deref().map(Experts::of),
        }
    }
}

impl Stream {
    fn of(stats: &StreamStats) -> Stream {
        Stream {
            lookups: stats.unit_lookups,
            hits: stats.unit_hits,
            read_bytes: stats.read_bytes,
            read_wait_ms: stats.read_wait.as_secs_f64() * 1000.0,
            gpu: stats.device.map(|device| GpuStream {
                lookups: device.lookups,
                hits: device.hits,
                memory_hits: device.host_hits,
                copied_bytes: device.copied_bytes,
                computed_in_place: device.computed_in_place,
            }),
        }
    }
}

impl Tiers {
    fn of(planned: &models::Tiers, status: &EngineStatus) -> Tiers {
        let vram = (planned.vram_bytes() > 0).then_some(Vram {
            vram_weights_bytes: planned.vram_weights_bytes,
            vram_slots_bytes: planned.vram_slots_bytes,
            vram_kv_bytes: planned.vram_kv_bytes,
            vram_buffers_bytes: planned.vram_buffers_bytes,
        });
        Tiers {
            vram,
            ram_weights_bytes: planned.ram_weights_bytes,
            ram_slots_bytes: planned.ram_slots_bytes,
            ram_kv_bytes: planned.ram_kv_bytes,
            ram_buffers_bytes: planned.ram_buffers_bytes,
            drive_weights_bytes: planned.drive_weights_bytes,
            kv_cold_bytes_max: planned.kv_cold_bytes_max,
            kv_hot_bytes: status.kv.as_ref().map(|kv| kv.hot_bytes),
            kv_cold_bytes: status.kv.as_ref().map(|kv| kv.cold_bytes),
        }
    }
}

fn sequences(model: &str, status: &EngineStatus) -> Vec<Sequence> {
    let of = |(id, sequence): (usize, &hypura_engine::SequenceStatus)| Sequence {
        id,
        state: sequence.state.name(),
        tokens: sequence.tokens,
        model: model.to_owned(),
    };
    status.sequences.iter().enumerate().map(of).collect()
}

impl Experts {
    fn of(map: &ExpertMap) -> Experts {
        Experts {
            layers: map.uses.len(),
            experts: map.uses.iter().map(Vec::len).max().unwrap_or_default(),
            resident: map.resident.iter().map(|layer| bits(layer)).collect(),
            uses: map.uses.clone(),
        }
    }
}

/// Bits as pairs of hexadecimal digits: bit `i` is bit `i % 8` of pair `i / 8`.
fn bits(set: &[bool]) -> String {
    set.chunks(8).fold(String::with_capacity(set.len().div_ceil(8) * 2), |mut digits, chunk| {
        let byte = chunk.iter().rev().fold(0_u8, |byte, &bit| byte << 1 | u8::from(bit));
        let _infallible = write!(digits, "{byte:02x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_in_bytes_from_the_lowest_up() {
        let mut set = [false; 11];
        assert_eq!(bits(&set), "0000");
        set[0] = true;
        set[5] = true;
        set[9] = true;
        assert_eq!(bits(&set), "2102");
        assert_eq!(bits(&[]), "");
    }

    #[test]
    fn layers_may_have_different_numbers_of_experts() {
        let map = ExpertMap {
            uses: vec![vec![1, 2], vec![3]],
            resident: vec![vec![true, true], vec![false]],
        };
        let experts = Experts::of(&map);
        assert_eq!((experts.layers, experts.experts), (2, 2));
        assert_eq!(experts.resident, ["03", "00"]);
    }
}
