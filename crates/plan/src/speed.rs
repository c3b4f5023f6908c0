//! How fast a plan should be: bytes over bandwidth, arithmetic, and how well they overlap.
//!
//! The point of a forecast follows the engine: the ring is read while layers compute; a layer's
//! missing experts are read when its router has run, while those that are there compute, and a part
//! of them earlier, by a guess. The range goes from reading and computing in turn to perfect
//! overlap, and takes in what is not known: routing, the drive, the cores.

mod gpu;
mod hits;
mod time;
mod weights;

use hypura_gguf::Model;
use serde::{Deserialize, Serialize};

use crate::inventory::Inventory;
use crate::machine::{ASSUMED_DECODE_BYTES_PER_S_PER_CORE, ASSUMED_STORAGE_BYTES_PER_S, Machine};
use crate::plan::{Mode, Plan};
use crate::request::Layout;

use gpu::GpuTimes;
#[cfg(test)]
pub(crate) use hits::class_hit_rate;
pub use hits::{HIT_RATE_CURVE, Routing, assumed_hit_rate};
use time::{PREDICTED_SHARE, Times};
pub use weights::{Product, WeightUse, weight_uses};

/// The expected speed, and between what it should lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens generated per second.
    pub decode_tokens_per_s: f64,
    /// The same if reads never overlap with computing, and all that is not known turns out badly.
    pub decode_tokens_per_s_low: f64,
    /// The same if reads always overlap with computing, and all that is not known turns out well.
    pub decode_tokens_per_s_high: f64,
    /// Tokens of a prompt per second, in whole micro-batches.
    pub prompt_tokens_per_s: f64,
    /// As [`Self::decode_tokens_per_s_low`].
    #[serde(default)]
    pub prompt_tokens_per_s_low: f64,
    /// As [`Self::decode_tokens_per_s_high`].
    #[serde(default)]
    pub prompt_tokens_per_s_high: f64,
    /// What a generated token waits for most.
    pub limit: Limit,
    /// Bytes that a generated token reads from storage on average.
    pub read_bytes_per_token: u64,
    /// Share of experts found in their slots, assumed or replayed; `None` if none is in slots. With
    /// a GPU those of GPU memory, always assumed.
    pub assumed_hit_rate: Option<f64>,
    /// Seconds of a token's computing alone.
    #[serde(default)]
    pub compute_s: f64,
    /// Seconds of a token's reads alone.
    #[serde(default)]
    pub read_s: f64,
    /// Bytes that are copied to the GPU for a generated token on average; 0 where the CPU computes.
    #[serde(default, skip_serializing_if = "is_zero_bytes")]
    pub copied_bytes_per_token: u64,
    /// Seconds of a token's copies alone.
    #[serde(default, skip_serializing_if = "is_zero_seconds")]
    pub copy_s: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero_bytes(bytes: &u64) -> bool {
    *bytes == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero_seconds(seconds: &f64) -> bool {
    *seconds == 0.0
}

/// What a generated token waits for most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Arithmetic, or the memory bandwidth under it.
    #[default]
    Compute,
    /// The drive's bytes per second.
    StorageBandwidth,
    /// The time until a read begins to deliver: reads are small, or few at a time.
    StorageLatency,
    /// The bytes per second of copies from main memory to the GPU.
    HostToDevice,
}

/// An expected speed, and what it rests on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Forecast {
    /// The speed.
    pub speed: Speed,
    /// What was assumed for want of knowledge, each in one sentence that begins with "assumes".
    pub assumptions: Vec<String>,
}

/// How fast `model` should run by `plan` on `machine`. Weights that stay in memory lie in `layout`.
pub fn forecast(
    model: &Model,
    plan: &Plan,
    machine: &Machine,
    layout: Layout,
    routing: Routing<'_>,
) -> Forecast {
    let inventory = Inventory::of(model, &model.hparams(), &[]);
    if let Some(gpu) = &plan.gpu {
        let times = GpuTimes::new(model, &inventory, plan, gpu, machine, routing);
        let speed = times.speed();
        let assumptions = times.assumptions(&speed, routing);
        return Forecast { speed, assumptions };
    }
    let times = Times::new(model, &inventory, plan, machine, layout, routing);
    let speed = speed_of(&times, plan);
    let assumptions = assumptions(plan, machine, layout, routing, &speed, &times);
    Forecast { speed, assumptions }
}

/// While a plan is made: [`forecast`] with nothing known of routing.
pub(crate) fn planned_speed(
    model: &Model,
    inventory: &Inventory,
    plan: &Plan,
    machine: &Machine,
    layout: Layout,
) -> Speed {
    if let Some(gpu) = &plan.gpu {
        return GpuTimes::new(model, inventory, plan, gpu, machine, Routing::Assumed).speed();
    }
    speed_of(&Times::new(model, inventory, plan, machine, layout, Routing::Assumed), plan)
}

fn speed_of(times: &Times<'_>, plan: &Plan) -> Speed {
    Speed {
        limit: times.limit(),
        read_bytes_per_token: times.read_bytes_per_token(),
        assumed_hit_rate: times.hit_rate(),
        compute_s: times.compute_s(),
        read_s: times.read_s(),
        ..rates(plan.n_ubatch, times.token(), times.micro_batch())
    }
}

/// From the seconds of a token and of a micro-batch of `n_ubatch` tokens, nothing else known.
fn rates(n_ubatch: u32, token: time::Range, micro_batch: time::Range) -> Speed {
    let per_second = |tokens: f64, seconds: f64| if seconds > 0.0 { tokens / seconds } else { 0.0 };
    let rates = |tokens: f64, range: time::Range| {
        let point = per_second(tokens, range.point);
        let low = per_second(tokens, range.slow).min(point);
        (point, low, per_second(tokens, range.fast).max(point))
    };
    let (decode, decode_low, decode_high) = rates(1.0, token);
    let (prompt, prompt_low, prompt_high) = rates(f64::from(n_ubatch), micro_batch);
    Speed {
        decode_tokens_per_s: decode,
        decode_tokens_per_s_low: decode_low,
        decode_tokens_per_s_high: decode_high,
        prompt_tokens_per_s: prompt,
        prompt_tokens_per_s_low: prompt_low,
        prompt_tokens_per_s_high: prompt_high,
        ..Speed::default()
    }
}

fn assumptions(
    plan: &Plan,
    machine: &Machine,
    layout: Layout,
    routing: Routing<'_>,
    speed: &Speed,
    times: &Times<'_>,
) -> Vec<String> {
    let mut assumed = Vec::new();
    let streams = plan.mode != Mode::FullResident;
    if let Some(rate) = speed.assumed_hit_rate {
        let percent = 100.0 * rate;
        assumed.push(match routing {
            Routing::Assumed => format!(
                "assumes that {percent:.0}% of experts are found in memory, as no routing was \
                 recorded"
            ),
            Routing::Replayed(_) => format!(
                "assumes routing like the recorded one, by which {percent:.0}% of experts are \
                 found in memory"
            ),
        });
        assumed.push(format!(
            "assumes that {:.0}% of missing experts are guessed before their router has run",
            100.0 * PREDICTED_SHARE
        ));
    }
    if streams {
        assumed.extend(drive_assumption(machine));
    }
    let types = times.unmeasured_types();
    if !types.is_empty() {
        let layout = match layout {
            Layout::Plain => "plain",
            Layout::Fast => "fast",
        };
        assumed.push(format!(
            "assumes {:.0} GB/s of weights per core, or what is known of a similar product, for \
             {} in {layout} layout, as it was not measured",
            ASSUMED_DECODE_BYTES_PER_S_PER_CORE / 1e9,
            types.join(" and "),
        ));
    }
    assumed.push(format!(
        "assumes a short context, and prompts in whole micro-batches of {} tokens",
        plan.n_ubatch
    ));
    assumed
}

fn drive_assumption(machine: &Machine) -> Option<String> {
    if machine.storage_bytes_per_s(1, 1).is_none() {
        Some(format!(
            "assumes a drive that reads {:.1} GB/s, as it was not measured",
            ASSUMED_STORAGE_BYTES_PER_S / 1e9
        ))
    } else if !machine.storage_is_fresh {
        Some(
            "assumes that the drive is as fast as when it was measured, and nobody else uses it"
                .to_owned(),
        )
    } else {
        None
    }
}
