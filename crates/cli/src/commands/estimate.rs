//! `hypura estimate`: how fast a model should run.

use std::io::Write;

use hypura_engine::plan::Speed;
use hypura_engine::profile::Profile;
use hypura_engine::{Estimate, EstimateError, EstimateOptions, FIRST_TOKENS, estimate, mode_name};

use crate::args::EstimateArgs;
use crate::commands::{check_threads, model_path};
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
    if !estimate.measured.is_empty() {
        say(format_args!("measured {}", estimate.measured.join(", ")));
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let plan = &estimate.plan;
        let json = serde_json::json!({
            "mode": mode_name(plan.mode),
            "budget_bytes": plan.budget_bytes,
            "smallest_bytes": plan.smallest_bytes,
            "speed": plan.speed,
            "first_tokens": FIRST_TOKENS,
            "first_speed": estimate.first,
            "measured": estimate.measured,
            "assumptions": estimate.assumptions,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    describe(&mut out, &estimate)
}

fn describe(out: &mut impl Write, estimate: &Estimate) -> anyhow::Result<()> {
    let plan = &estimate.plan;
    let speed = &plan.speed;
    writeln!(out, "{} tokens/s; prompts {} tokens/s", decode_range(speed), prompt_range(speed))?;
    if let Some(first) = &estimate.first {
        let hits = first.assumed_hit_rate.map_or(String::new(), |rate| {
            format!(", with {:.0}% of experts found in memory", rate * 100.0)
        });
        let range = decode_range(first);
        writeln!(out, "the first {FIRST_TOKENS} tokens, from an empty cache: {range}{hits}")?;
    }
    let limit = serde_json::to_value(speed.limit)?;
    writeln!(
        out,
        "{} in {}; {} read per token ({:.0} ms beside {:.0} ms of computing); limited by {}",
        mode_name(plan.mode),
        show(plan.budget_bytes),
        show(speed.read_bytes_per_token),
        speed.read_s * 1e3,
        speed.compute_s * 1e3,
        limit.as_str().unwrap_or_default().replace('-', " ")
    )?;
    for assumption in &estimate.assumptions {
        writeln!(out, "  {assumption}")?;
    }
    Ok(())
}

fn decode_range(speed: &Speed) -> String {
    let (low, high) = (speed.decode_tokens_per_s_low, speed.decode_tokens_per_s_high);
    format!("{:.2} ({low:.2} to {high:.2})", speed.decode_tokens_per_s)
}

fn prompt_range(speed: &Speed) -> String {
    let (low, high) = (speed.prompt_tokens_per_s_low, speed.prompt_tokens_per_s_high);
    format!("{:.1} ({low:.1} to {high:.1})", speed.prompt_tokens_per_s)
}
