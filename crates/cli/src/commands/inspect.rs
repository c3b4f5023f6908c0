//! `hypura inspect`: what a model is made of, and where its bytes would go.

use std::io::Write;

use anyhow::Context;
use hypura_engine::plan::{BudgetRow, Explanation, Plan, explain};
use hypura_engine::{gguf, mode_name, plan_only};

use crate::args::InspectArgs;
use crate::commands::places::{Place, place_of, places};
use crate::commands::{check_threads, model_path, picture, within};
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
    let places = places(&explained, &plan);
    if let Some(file) = &args.svg {
        let mode = mode_name(plan.mode);
        let title = format!(
            "{} ({}) in {}",
            model.metadata.str("general.name").unwrap_or(model.architecture()),
            show(model.weight_bytes()),
            within(&plan)
        );
        let speed = format!(
            "Expected: {:.1} tokens/s, {} read from the drive{} per token",
            plan.speed.decode_tokens_per_s,
            show(plan.speed.read_bytes_per_token),
            copied(&plan)
        );
        // Two budgets leave no room for it above.
        let (title, speed) = match &plan.gpu {
            None => (format!("{title}: {mode}"), speed),
            Some(_) => (title, format!("{speed} ({mode})")),
        };
        std::fs::write(file, picture::draw(&explained, &places, &title, &speed))
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    describe(&mut out, &model)?;
    writeln!(out, "\nMade of")?;
    write!(out, "{}", table(&roles(&explained, &plan)))?;
    writeln!(out, "\nPlan for {}: {}", within(&plan), mode_name(plan.mode))?;
    write!(out, "{}", table(&budgets(&explained)))?;
    if !explained.pools.is_empty() {
        writeln!(out, "\nSlots for experts")?;
        write!(out, "{}", table(&slots(&explained, plan.gpu.is_some())))?;
    }
    writeln!(out, "\nWhere the weights are")?;
    write!(out, "{}", table(&bars(&places)))?;
    write_expectation(&mut out, &plan)?;
    writeln!(out, "\nWhy")?;
    for reason in &explained.why {
        writeln!(out, "  {reason}")?;
    }
    if args.tensors {
        writeln!(out, "\nTensors")?;
        write!(out, "{}", table(&tensors(&model, &plan)))?;
    }
    Ok(())
}

/// What a token copies, as part of a sentence; empty without a GPU.
fn copied(plan: &Plan) -> String {
    let bytes = plan.speed.copied_bytes_per_token;
    plan.gpu.as_ref().map_or(String::new(), |_| format!(" and {} copied to the GPU", show(bytes)))
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn roles(explained: &Explanation, plan: &Plan) -> Vec<Vec<String>> {
    let stays = if plan.gpu.is_some() { "stay" } else { "in memory" };
    let mut rows = vec![row(["", "tensors", "bytes", stays, "in slots", "streamed"])];
    for role in &explained.roles {
        let cell = |bytes: u64| if bytes == 0 { "-".to_owned() } else { show(bytes) };
        rows.push(vec![
            role.role.clone(),
            role.tensors.to_string(),
            show(role.bytes),
            cell(role.resident_bytes),
            cell(role.expert_bytes),
            cell(role.ring_bytes + role.rows_bytes),
        ]);
    }
    rows
}

/// What each budget goes to: memory's and, beside it, that of GPU memory.
fn budgets(explained: &Explanation) -> Vec<Vec<String>> {
    let cells = |row: Option<&BudgetRow>| match row {
        Some(row) => [show(row.bytes), format!("{:.1}%", row.share * 100.0)],
        None => ["-".to_owned(), String::new()],
    };
    let (memory, gpu) = (&explained.budget, &explained.gpu_budget);
    if gpu.is_empty() {
        let row =
            |row: &BudgetRow| [std::slice::from_ref(&row.what), &cells(Some(row))[..]].concat();
        return memory.iter().map(row).collect();
    }
    let of = |rows: &[BudgetRow], what: &str| rows.iter().find(|row| row.what == what).cloned();
    let mut rows = vec![row(["", "memory", "", "GPU memory", ""])];
    for what in in_order(memory, gpu) {
        let (here, there) = (of(memory, what), of(gpu, what));
        rows.push(
            [&[what.to_owned()], &cells(here.as_ref())[..], &cells(there.as_ref())[..]].concat(),
        );
    }
    rows
}

/// All uses of two budgets, each once, in the order in which both name them.
fn in_order<'a>(first: &'a [BudgetRow], second: &'a [BudgetRow]) -> Vec<&'a str> {
    let mut names = Vec::new();
    let mut rest = first;
    for row in second {
        if let Some(at) = rest.iter().position(|other| other.what == row.what) {
            let (before, after) = rest.split_at(at);
            names.extend(before.iter().map(|row| row.what.as_str()));
            rest = after.get(1..).unwrap_or_default();
        }
        names.push(row.what.as_str());
    }
    names.extend(rest.iter().map(|row| row.what.as_str()));
    names
}

fn slots(explained: &Explanation, has_gpu: bool) -> Vec<Vec<String>> {
    let share =
        |slots: u64, units: u64| format!("{:.0}%", slots as f64 / units.max(1) as f64 * 100.0);
    let mut rows = vec![if has_gpu {
        row(["layers", "of bytes", "in memory", "share", "in GPU memory", "share", "experts"])
    } else {
        row(["layers", "of bytes", "slots", "experts", "share"])
    }];
    for pool in &explained.pools {
        let (slots, units) = (pool.slots.to_string(), pool.units.to_string());
        let mut cells = vec![pool.layers.to_string(), show(pool.slot_bytes), slots];
        if has_gpu {
            cells.push(share(pool.slots, pool.units));
            cells.extend([pool.gpu_slots.to_string(), share(pool.gpu_slots, pool.units), units]);
        } else {
            cells.extend([units, share(pool.slots, pool.units)]);
        }
        rows.push(cells);
    }
    rows
}

fn bars(places: &[Place]) -> Vec<Vec<String>> {
    let widest = places.iter().map(|place| place.name().len()).max().unwrap_or(0);
    let bar = |place: &Place| {
        let (name, bar) = (place.name(), bar(place.share, BAR_WIDTH));
        vec![
            format!("{name:widest$}  {bar}"),
            show(place.bytes),
            format!("{:.0}%", place.share * 100.0),
        ]
    };
    places.iter().map(bar).collect()
}

fn write_expectation(out: &mut impl Write, plan: &Plan) -> std::io::Result<()> {
    let speed = &plan.speed;
    writeln!(
        out,
        "\nExpected: {:.1} tokens/s ({:.1} to {:.1}), prompts {:.0} tokens/s; {} read{} per token",
        speed.decode_tokens_per_s,
        speed.decode_tokens_per_s_low,
        speed.decode_tokens_per_s_high,
        speed.prompt_tokens_per_s,
        show(speed.read_bytes_per_token),
        copied(plan)
    )?;
    let smallest = show(plan.smallest_bytes);
    match &plan.gpu {
        None => writeln!(out, "Smallest budget that works: {smallest}"),
        Some(gpu) => writeln!(
            out,
            "Smallest budgets that work: {smallest}, {} of GPU memory",
            show(gpu.smallest_bytes)
        ),
    }
}

fn tensors(model: &gguf::Model, plan: &Plan) -> Vec<Vec<String>> {
    let row = |(index, tensor): (usize, &gguf::Tensor)| {
        let dims = tensor.dims[..tensor.n_dims as usize].iter().map(u64::to_string);
        vec![
            tensor.name.clone(),
            tensor.ty.name().to_owned(),
            dims.collect::<Vec<_>>().join(" x "),
            show(tensor.bytes),
            place_of(model, plan, index),
        ]
    };
    model.tensors.iter().enumerate().map(row).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_of_two_budgets_are_named_once_and_in_order() {
        let rows = |names: &str| -> Vec<BudgetRow> {
            let row = |what: &str| BudgetRow { what: what.to_owned(), bytes: 1, share: 0.5 };
            names.split(' ').map(row).collect()
        };
        for (first, second, all) in [
            (
                "slots compute base unused",
                "weights slots driver unused",
                "weights slots driver compute base unused",
            ),
            ("slots unused", "weights", "weights slots unused"),
        ] {
            let (first, second) = (rows(first), rows(second));
            assert_eq!(in_order(&first, &second).join(" "), all);
        }
    }
}
