//! `hypura inspect`: what a model is made of, and where its bytes would go.

use std::io::Write;

use anyhow::Context;
use hypura_engine::plan::{Placement, Tier, explain};
use hypura_engine::{gguf, mode_name, plan_only};

use crate::args::InspectArgs;
use crate::commands::{check_threads, model_path, picture};
use crate::size::show;
use crate::table::{bar, table};

const BAR_WIDTH: usize = 40;

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    check_threads(&args.model)?;
    let path = model_path(&args.model)?;
    let (model, plan) = plan_only(&path, &args.model.load_options())?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let json = serde_json::json!({
            "architecture": model.architecture(),
            "weight_bytes": model.weight_bytes(),
            "tensors": model.tensors.iter().map(|t| &t.name).collect::<Vec<_>>(),
            "plan": plan,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    let explained = explain(&plan, &model);
    if let Some(file) = &args.svg {
        let title = format!(
            "{} ({}) in {}: {}",
            model.metadata.str("general.name").unwrap_or(model.architecture()),
            show(model.weight_bytes()),
            show(plan.budget_bytes),
            mode_name(plan.mode)
        );
        let speed = format!(
            "Expected: {:.1} tokens/s, {} read from the drive per token",
            plan.speed.decode_tokens_per_s,
            show(plan.speed.read_bytes_per_token)
        );
        std::fs::write(file, picture::draw(&explained, &title, &speed))
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    describe(&mut out, &model)?;

    writeln!(out, "\nMade of")?;
    let mut rows = vec![
        ["", "tensors", "bytes", "in memory", "in slots", "streamed"].map(String::from).to_vec(),
    ];
    for row in &explained.roles {
        let cell = |bytes: u64| if bytes == 0 { "-".to_owned() } else { show(bytes) };
        rows.push(vec![
            row.role.clone(),
            row.tensors.to_string(),
            show(row.bytes),
            cell(row.resident_bytes),
            cell(row.expert_bytes),
            cell(row.ring_bytes + row.rows_bytes),
        ]);
    }
    write!(out, "{}", table(&rows))?;

    writeln!(out, "\nPlan for {}: {}", show(plan.budget_bytes), mode_name(plan.mode))?;
    let rows: Vec<_> = explained
        .budget
        .iter()
        .map(|row| vec![row.what.clone(), show(row.bytes), format!("{:.1}%", row.share * 100.0)])
        .collect();
    write!(out, "{}", table(&rows))?;
    if !explained.pools.is_empty() {
        writeln!(out, "\nSlots for experts")?;
        let mut rows =
            vec![["layers", "of bytes", "slots", "experts", "share"].map(String::from).to_vec()];
        for pool in &explained.pools {
            rows.push(vec![
                pool.layers.to_string(),
                show(pool.slot_bytes),
                pool.slots.to_string(),
                pool.units.to_string(),
                format!("{:.0}%", pool.slots as f64 / pool.units.max(1) as f64 * 100.0),
            ]);
        }
        write!(out, "{}", table(&rows))?;
    }

    writeln!(out, "\nWhere the weights are")?;
    let rows: Vec<_> = explained
        .tiers
        .iter()
        .map(|tier| {
            let name = match tier.tier {
                Tier::Resident => "memory, always",
                Tier::Cache => "memory, as needed",
                Tier::Storage => "drive only",
            };
            let bar = bar(tier.share, BAR_WIDTH);
            vec![
                format!("{name:18} {bar}"),
                show(tier.bytes),
                format!("{:.0}%", tier.share * 100.0),
            ]
        })
        .collect();
    write!(out, "{}", table(&rows))?;

    let speed = &plan.speed;
    writeln!(
        out,
        "\nExpected: {:.1} tokens/s ({:.1} to {:.1}), prompts {:.0} tokens/s; {} read per token",
        speed.decode_tokens_per_s,
        speed.decode_tokens_per_s_low,
        speed.decode_tokens_per_s_high,
        speed.prompt_tokens_per_s,
        show(speed.read_bytes_per_token)
    )?;
    writeln!(out, "Smallest budget that works: {}", show(plan.smallest_bytes))?;
    writeln!(out, "\nWhy")?;
    for reason in &explained.why {
        writeln!(out, "  {reason}")?;
    }
    if args.tensors {
        writeln!(out, "\nTensors")?;
        let rows: Vec<_> = model
            .tensors
            .iter()
            .zip(&plan.placements)
            .map(|(tensor, placement)| {
                let place = match placement {
                    Placement::Resident => "memory".to_owned(),
                    Placement::ExpertPool { pool } => format!("slots of pool {pool}"),
                    Placement::Ring => "streamed".to_owned(),
                    Placement::Rows => "rows read".to_owned(),
                    Placement::Unused => "unused".to_owned(),
                };
                let dims = tensor.dims[..tensor.n_dims as usize].iter().map(u64::to_string);
                let dims = dims.collect::<Vec<_>>().join(" x ");
                vec![
                    tensor.name.clone(),
                    tensor.ty.name().to_owned(),
                    dims,
                    show(tensor.bytes),
                    place,
                ]
            })
            .collect();
        write!(out, "{}", table(&rows))?;
    }
    Ok(())
}

fn describe(out: &mut impl Write, model: &gguf::Model) -> std::io::Result<()> {
    let hparams = model.hparams();
    let name = model.metadata.str("general.name").unwrap_or("(no name)");
    writeln!(out, "{name}: {}, {}", model.architecture(), show(model.weight_bytes()))?;
    let mut facts =
        vec![format!("{} layers", hparams.n_layer), format!("width {}", hparams.n_embd)];
    facts.extend(hparams.n_vocab.map(|n| format!("vocabulary {n}")));
    facts.extend(hparams.n_ctx_train.map(|n| format!("trained for {n} tokens of context")));
    if hparams.n_expert > 0 {
        facts.push(format!(
            "{} experts, {} per token",
            hparams.n_expert,
            hparams.n_expert_used_max()
        ));
    }
    writeln!(out, "  {}", facts.join(", "))?;
    for file in &model.files {
        writeln!(out, "  {} ({})", file.path.display(), show(file.len))?;
    }
    Ok(())
}
