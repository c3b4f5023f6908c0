//! `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hypura_engine::EngineStatus;

use super::text::{self, Text};
use super::{Metrics, lock};
use crate::app::{App, Shared};
use crate::models::LoadedModel;

/// All that is counted, as Prometheus reads it.
pub(crate) async fn show(State(app): State<Shared>) -> Response {
    let kind = HeaderValue::from_static(text::CONTENT_TYPE);
    ([(CONTENT_TYPE, kind)], all(&app)).into_response()
}

fn all(app: &App) -> String {
    let mut text = Text::default();
    process(app, &mut text);
    text.gauge("hypura_connections_max", "Connections that may be open.")
        .value(&[], app.config.limits.connections_max);
    requests(&app.metrics, &mut text);
    answers(&app.metrics, &mut text);
    models(&app.models.loaded(), &mut text);
    text.finish()
}

fn process(app: &App, text: &mut Text) {
    text.gauge("hypura_build_info", "The version that runs.")
        .value(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.gauge("hypura_uptime_seconds", "Time since the server began.")
        .value(&[], app.started.elapsed().as_secs_f64());
    text.gauge("process_resident_memory_bytes", "Memory of the process that is resident.")
        .value(&[], hypura_engine::llama::process::rss_bytes());
    if let Some(budget_bytes) = app.config.memory_bytes {
        text.gauge("hypura_memory_budget_bytes", "Memory that the process may take.")
            .value(&[], budget_bytes);
    }
}

fn requests(metrics: &Metrics, text: &mut Text) {
    let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
    text.gauge("hypura_connections", "Connections that are open.")
        .value(&[], metrics.connections());
    text.counter("hypura_connections_accepted_total", "Connections accepted.")
        .value(&[], get(&metrics.connections_accepted));
    text.counter("hypura_connections_refused_total", "Connections beyond the limit.")
        .value(&[], get(&metrics.connections_refused));
    text.gauge("hypura_requests_in_flight", "Requests whose answers have not ended.")
        .value(&[], metrics.in_flight());

    let counts = lock(&metrics.requests).clone();
    let mut counter = text.counter("hypura_requests_total", "Requests that were answered.");
    for ((api, route, status), count) in &counts {
        let status = status.to_string();
        counter.value(&[("api", api.name()), ("path", route), ("status", &status)], count);
    }
    let durations = lock(&metrics.durations).clone();
    let help = "Time from a request to the last byte of its answer.";
    let mut histogram = text.histogram("hypura_request_duration_seconds", help);
    for (api, durations) in &durations {
        histogram.distribution(&[("api", api.name())], durations);
    }
}

fn answers(metrics: &Metrics, text: &mut Text) {
    let answers = lock(&metrics.answers).clone();
    text.gauge("hypura_answers_active", "Requests that models are answering.")
        .value(&[], metrics.active());
    text.gauge("hypura_answers_waiting", "Requests that wait for a model.")
        .value(&[], metrics.waiting());
    let mut ended = text.counter("hypura_answers_total", "Answers that ended, by how.");
    for (finish, count) in &answers.ended {
        ended.value(&[("finish", finish)], count);
    }
    text.counter("hypura_embeddings_total", "Requests for embeddings that were answered.")
        .value(&[], answers.embeddings);
    text.counter("hypura_prompt_tokens_total", "Tokens of prompts.")
        .value(&[], answers.prompt_tokens);
    text.counter("hypura_reused_tokens_total", "Tokens of prompts that were known already.")
        .value(&[], answers.reused_tokens);
    text.counter("hypura_generated_tokens_total", "Tokens of answers.")
        .value(&[], answers.generated_tokens);
    text.histogram("hypura_ttft_seconds", "Time from a request to its first token.")
        .distribution(&[], &answers.ttft);
    text.histogram("hypura_queue_seconds", "Time that requests waited for a place.")
        .distribution(&[], &answers.queue);
    text.histogram("hypura_prompt_seconds", "Time to read a prompt.")
        .distribution(&[], &answers.prompt);
    text.histogram("hypura_model_load_seconds", "Time to load a model that a request asked for.")
        .distribution(&[], &answers.load);
    text.histogram("hypura_token_seconds", "Time per token after the first, answer by answer.")
        .distribution(&[], &answers.token);
}

/// What each loaded model says of itself. Its counters begin anew when it is loaded anew.
fn models(loaded: &[LoadedModel], text: &mut Text) {
    let rows: Vec<(&LoadedModel, EngineStatus)> =
        loaded.iter().map(|model| (model, model.runner.status())).collect();
    text.gauge("hypura_models_loaded", "Models that are loaded.").value(&[], rows.len());
    if rows.is_empty() {
        return;
    }
    let has_gpu = loaded.iter().any(|model| model.vram_bytes > 0);
    let of_gpu = if has_gpu { GPU_METRICS } else { &[] };
    for (name, help, kind, value) in MODEL_METRICS.iter().chain(of_gpu) {
        let mut metric = match kind {
            Kind::Counter => text.counter(name, help),
            Kind::Gauge => text.gauge(name, help),
        };
        for (model, status) in &rows {
            if let Some(value) = value(model, status) {
                metric.value(&[("model", &model.entry.name)], value);
            }
        }
    }
}

enum Kind {
    Counter,
    Gauge,
}

type Value = fn(&LoadedModel, &EngineStatus) -> Option<f64>;

#[allow(clippy::cast_precision_loss)] // beyond 2^53 bytes the last digits don't matter
const MODEL_METRICS: &[(&str, &str, Kind, Value)] = &[
    ("hypura_model_memory_bytes", "Memory that the model takes.", Kind::Gauge, |model, _| {
        Some(model.memory_bytes as f64)
    }),
    ("hypura_model_weight_bytes", "Bytes of the model's weights.", Kind::Gauge, |model, _| {
        Some(model.runner.facts().weight_bytes as f64)
    }),
    ("hypura_model_requests", "Requests that use the model.", Kind::Gauge, |model, _| {
        Some(model.active as f64)
    }),
    ("hypura_model_waiting", "Requests that wait for a sequence.", Kind::Gauge, |_, status| {
        Some(status.waiting as f64)
    }),
    ("hypura_model_context_tokens", "Tokens in the context.", Kind::Gauge, |_, status| {
        Some(status.sequences.iter().map(|sequence| sequence.tokens).sum::<usize>() as f64)
    }),
    ("hypura_model_prompt_seconds_total", "Time spent on prompts.", Kind::Counter, |_, status| {
        Some(status.totals.prompt_s)
    }),
    ("hypura_model_decode_seconds_total", "Time spent on answers.", Kind::Counter, |_, status| {
        Some(status.totals.decode_s)
    }),
    ("hypura_model_stream_read_bytes_total", "Weights read.", Kind::Counter, |_, status| {
        Some(status.stream.read_bytes as f64)
    }),
    (
        "hypura_model_stream_wait_seconds_total",
        "Time that computing waited for weights.",
        Kind::Counter,
        |_, status| Some(status.stream.read_wait.as_secs_f64()),
    ),
    ("hypura_model_expert_lookups_total", "Experts looked up.", Kind::Counter, |_, status| {
        Some(status.stream.unit_lookups as f64)
    }),
    ("hypura_model_expert_hits_total", "Experts found in memory.", Kind::Counter, |_, status| {
        Some(status.stream.unit_hits as f64)
    }),
    ("hypura_model_kv_hot_bytes", "Attention state in memory.", Kind::Gauge, |_, status| {
        status.kv.as_ref().map(|kv| kv.hot_bytes as f64)
    }),
    ("hypura_model_kv_cold_bytes", "Attention state on the drive.", Kind::Gauge, |_, status| {
        status.kv.as_ref().map(|kv| kv.cold_bytes as f64)
    }),
    ("hypura_model_kv_hot_tokens_total", "Tokens from memory.", Kind::Counter, |_, status| {
        status.kv.as_ref().map(|kv| (kv.tokens_hit_hot + kv.tokens_hit_pending) as f64)
    }),
    ("hypura_model_kv_cold_tokens_total", "Tokens from the drive.", Kind::Counter, |_, status| {
        status.kv.as_ref().map(|kv| kv.tokens_hit_cold as f64)
    }),
    ("hypura_model_kv_written_bytes_total", "State written.", Kind::Counter, |_, status| {
        status.kv.as_ref().map(|kv| kv.bytes_written as f64)
    }),
];

/// Only written while a GPU computes.
#[allow(clippy::cast_precision_loss)] // as above
const GPU_METRICS: &[(&str, &str, Kind, Value)] = &[
    ("hypura_model_vram_bytes", "GPU memory that the model takes.", Kind::Gauge, |model, _| {
        Some(model.vram_bytes as f64)
    }),
    (
        "hypura_model_vram_weight_bytes",
        "GPU memory for weights, slots included.",
        Kind::Gauge,
        |model, _| {
            let tiers = &model.runner.facts().tiers;
            Some(tiers.vram_weights_bytes.saturating_add(tiers.vram_slots_bytes) as f64)
        },
    ),
    (
        "hypura_model_ram_weight_bytes",
        "Memory for weights, slots included.",
        Kind::Gauge,
        |model, _| {
            let tiers = &model.runner.facts().tiers;
            Some(tiers.ram_weights_bytes.saturating_add(tiers.ram_slots_bytes) as f64)
        },
    ),
    (
        "hypura_model_drive_weight_bytes",
        "Weights that are read from the drive as they are needed.",
        Kind::Gauge,
        |model, _| Some(model.runner.facts().tiers.drive_weights_bytes as f64),
    ),
    (
        "hypura_model_gpu_expert_lookups_total",
        "Experts looked up in GPU memory.",
        Kind::Counter,
        |_, status| status.stream.device.map(|device| device.lookups as f64),
    ),
    (
        "hypura_model_gpu_expert_hits_total",
        "Experts found in GPU memory.",
        Kind::Counter,
        |_, status| status.stream.device.map(|device| device.hits as f64),
    ),
    (
        "hypura_model_gpu_expert_memory_hits_total",
        "Experts not found in GPU memory, but in memory.",
        Kind::Counter,
        |_, status| status.stream.device.map(|device| device.host_hits as f64),
    ),
    (
        "hypura_model_gpu_copied_bytes_total",
        "Weights copied to the GPU.",
        Kind::Counter,
        |_, status| status.stream.device.map(|device| device.copied_bytes as f64),
    ),
];
