//! `hypura estimate`: how fast a model should run.

use std::io::Write;

use hypura_engine::llama::Gpu;
use hypura_engine::plan::{Plan, Speed};
use hypura_engine::profile::Profile;
use hypura_engine::{EstimateError, EstimateOptions, FIRST_TOKENS, GpuChoice, estimate, mode_name};

use crate::args::EstimateArgs;
use crate::commands::{check_threads, model_path, within};
use crate::failure::{UsageError, reason};
use crate::output::say;
use crate::size::show;

pub(crate) fn run(args: &EstimateArgs) -> anyhow::Result<()> {
    let path = model_path(&args.model)?;
    let options = args.model.load_options();
    let machine = match &args.profile {
        None => {
            check_threads(&args.model)?;
            None
        }
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| {
                UsageError(format!("can't read {}: {}", file.display(), reason(&e)))
            })?;
            let profile = Profile::from_json(&text)
                .map_err(|e| UsageError(format!("{}: {e}", file.display())))?;
            Some(profile)
        }
    };
    let rest_on = EstimateOptions { traces: args.trace.clone(), probe: args.probe, machine };
    let estimate = match estimate(&path, &options, &rest_on) {
        Ok(estimate) => estimate,
        // As every other command says it.
        Err(EstimateError::Load(error)) => return Err(error.into()),
        Err(EstimateError::TraceFile { path, source }) => {
            let (path, reason) = (path.display(), reason(&source));
            return Err(UsageError(format!("can't read {path}: {reason}")).into());
        }
        Err(error) => return Err(error.into()),
    };
    if !args.trace.is_empty() && estimate.first.is_none() && estimate.plan.pools.is_empty() {
        tracing::warn!("--trace changes nothing: no experts are streamed at this budget");
    }
    // One that shares our memory needs no other plan.
    if let GpuChoice::Named(_) = &options.gpu
        && options.gpu.gpus().is_ok_and(|gpus| !gpus.iter().any(Gpu::is_unified))
        && estimate.plan.gpu.is_none()
    {
        tracing::warn!("--gpu changes nothing: this is how fast the CPU computes");
    }
    if !estimate.measured.is_empty() {
        say(format_args!("measured {}", estimate.measured.join(", ")));
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let plan = &estimate.plan;
        let mut json = serde_json::json!({
            "mode": mode_name(plan.mode),
            "budget_bytes": plan.budget_bytes,
            "smallest_bytes": plan.smallest_bytes,
            "speed": plan.speed,
            "first_tokens": FIRST_TOKENS,
            "first_speed": estimate.first,
            "measured": estimate.measured,
            "assumptions": estimate.assumptions,
        });
        if let Some(gpu) = &plan.gpu {
            json["gpu"] = serde_json::to_value(gpu)?;
        }
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    describe(&mut out, &estimate.plan, estimate.first.as_ref(), &estimate.assumptions)
}

/// `first` is the speed of the first tokens, if it is known.
fn describe(
    out: &mut impl Write,
    plan: &Plan,
    first: Option<&Speed>,
    assumptions: &[String],
) -> anyhow::Result<()> {
    let speed = &plan.speed;
    writeln!(out, "{} tokens/s; prompts {} tokens/s", decode_range(speed), prompt_range(speed))?;
    if let Some(first) = first {
        let place = if plan.gpu.is_some() { "GPU memory" } else { "memory" };
        let hits = first.assumed_hit_rate.map_or(String::new(), |rate| {
            format!(", with {:.0}% of experts found in {place}", rate * 100.0)
        });
        let range = decode_range(first);
        writeln!(out, "the first {FIRST_TOKENS} tokens, from an empty cache: {range}{hits}")?;
    }
    let limit = serde_json::to_value(speed.limit)?;
    writeln!(
        out,
        "{} in {}; {}; limited by {}",
        mode_name(plan.mode),
        within(plan),
        costs(plan),
        limit.as_str().unwrap_or_default().replace('-', " ")
    )?;
    for assumption in assumptions {
        writeln!(out, "  {assumption}")?;
    }
    Ok(())
}

/// What a token reads, copies and computes.
fn costs(plan: &Plan) -> String {
    let speed = &plan.speed;
    let (read, compute_ms) = (show(speed.read_bytes_per_token), speed.compute_s * 1e3);
    let read_ms = speed.read_s * 1e3;
    if plan.gpu.is_none() {
        return format!(
            "{read} read per token ({read_ms:.0} ms beside {compute_ms:.0} ms of computing)"
        );
    }
    // A GPU's are short.
    format!(
        "{read} read per token ({read_ms:.2} ms) and {} copied to the GPU ({:.2} ms) beside          {compute_ms:.2} ms of computing",
        show(speed.copied_bytes_per_token),
        speed.copy_s * 1e3
    )
}

fn decode_range(speed: &Speed) -> String {
    let (low, high) = (speed.decode_tokens_per_s_low, speed.decode_tokens_per_s_high);
    format!("{:.2} ({low:.2} to {high:.2})", speed.decode_tokens_per_s)
}

fn prompt_range(speed: &Speed) -> String {
    let (low, high) = (speed.prompt_tokens_per_s_low, speed.prompt_tokens_per_s_high);
    format!("{:.1} ({low:.1} to {high:.1})", speed.prompt_tokens_per_s)
}

#[cfg(test)]
mod tests {
    use super::super::places::tests::{planned, streamed};
    use super::*;

    fn said(plan: &Plan) -> String {
        let mut out = Vec::new();
        describe(&mut out, plan, Some(&plan.speed), &["assumes much".to_owned()]).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_gpu_has_its_part_in_what_is_said() {
        let (_, plan) = planned(1 << 30, None);
        let text = said(&plan);
        assert!(text.contains("\nfull-resident in 1.00 GiB; 0 B read per token (0 ms"), "{text}");
        assert!(!text.contains("GPU") && text.ends_with("\n  assumes much\n"), "{text}");
        let (_, plan) = streamed();
        let text = said(&plan);
        for words in [
            "% of experts found in GPU memory\n",
            "expert-streaming in 1.00 GiB and ",
            " of GPU memory; ",
            " copied to the GPU (",
            " ms) beside ",
        ] {
            assert!(text.contains(words), "no {words:?} in {text}");
        }
    }
}
