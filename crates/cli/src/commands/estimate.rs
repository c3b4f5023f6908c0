//! `hypura estimate`: how fast a model should run.

use std::io::Write;

use hypura_engine::{Survey, estimate, mode_name, profile::Profile};

use crate::args::EstimateArgs;
use crate::commands::{check_threads, model_path};
use crate::failure::{UsageError, reason};
use crate::size::show;

pub(crate) fn run(args: &EstimateArgs) -> anyhow::Result<()> {
    let path = model_path(&args.model)?;
    let options = args.model.load_options();
    let survey = match &args.profile {
        None => {
            check_threads(&args.model)?;
            hypura_engine::survey(&path, options.profile_dir.as_deref(), options.threads)
        }
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| {
                UsageError(format!("can't read {}: {}", file.display(), reason(&e)))
            })?;
            let profile = Profile::from_json(&text)
                .map_err(|e| UsageError(format!("{}: {e}", file.display())))?;
            Survey::of_profile(&profile, None, options.threads)
        }
    };
    let plan = estimate(&path, &survey, &options)?;
    let speed = &plan.speed;
    let mut out = std::io::stdout().lock();
    if args.json {
        let json = serde_json::json!({
            "mode": mode_name(plan.mode),
            "budget_bytes": plan.budget_bytes,
            "smallest_bytes": plan.smallest_bytes,
            "speed": speed,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    writeln!(
        out,
        "{:.2} tokens/s, between {:.2} and {:.2}; prompts {:.1} tokens/s",
        speed.decode_tokens_per_s,
        speed.decode_tokens_per_s_low,
        speed.decode_tokens_per_s_high,
        speed.prompt_tokens_per_s
    )?;
    let limit = serde_json::to_value(speed.limit)?;
    write!(
        out,
        "{} in {}; {} read per token; limited by {}",
        mode_name(plan.mode),
        show(plan.budget_bytes),
        show(speed.read_bytes_per_token),
        limit.as_str().unwrap_or_default().replace('-', " ")
    )?;
    match speed.assumed_hit_rate {
        Some(rate) => {
            writeln!(out, "; assumes that {:.0}% of experts are found in memory", rate * 100.0)?;
        }
        None => writeln!(out)?,
    }
    Ok(())
}
