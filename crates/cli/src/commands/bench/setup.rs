//! What is going to be measured, decided and checked before anything runs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use hypura_engine::profile::{Drive, probe_cpu, probe_memory};
use hypura_engine::{GpuChoice, LoadOptions, plan_only};
use serde_json::json;

use super::args::BenchArgs;
use super::device::Device;
use super::fence::Fence;
use super::json_file;
use super::record::Side;
use crate::args::LayoutArg;
use crate::commands::check_thread_count;
use crate::commands::run::check_writable;
use crate::failure::UsageError;
use crate::size::{show, show_enough};

/// What is left to the rest of the system when something runs without a limit.
const LEFT_TO_SYSTEM_BYTES: u64 = 4_000_000_000;

/// What the model continues if nothing else is asked for.
const PROMPT: &str = "\
The lighthouse keeper had counted ships for thirty years, and he wrote each of them into a book \
with a green cover. One evening in October a ship came that had no name on its bow and no flag at \
its stern. It lay still outside the harbour while the wind pushed every other boat towards the \
rocks. He lit the lamp, though it was early, and opened the book at a new page. Then he saw that \
somebody had already written on it, in his own hand, the date of that day and a single line. He \
read it twice, put on his coat, and went down to the water. The line said:";

/// A comparison that can begin.
pub(super) struct Setup<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) model: PathBuf,
    /// All of its files.
    pub(super) files: Vec<PathBuf>,
    /// What it is called.
    pub(super) title: String,
    pub(super) weight_bytes: u64,
    pub(super) file_bytes: u64,
    /// Budgets, smallest first.
    pub(super) memory_bytes: Vec<u64>,
    /// Who runs at each budget, in this order.
    pub(super) sides: Vec<Side>,
    pub(super) fence: Option<Fence>,
    /// The GPU that computes, if one does.
    pub(super) device: Option<Device>,
    /// Where JSON goes.
    pub(super) json: Option<PathBuf>,
    pub(super) machine: serde_json::Value,
    /// What a reader of the numbers has to know, as sentences without a full stop.
    pub(super) notes: Vec<String>,
}

impl<'a> Setup<'a> {
    /// # Errors
    /// Whatever is wrong with what was asked for, before any time is spent on it.
    pub(super) fn of(args: &'a BenchArgs) -> anyhow::Result<Setup<'a>> {
        check_thread_count(args.threads)?;
        let model = crate::home::stores(args.models_dir.as_ref()).resolve(&args.model)?;
        let mut memory_bytes = args.memory.clone();
        memory_bytes.sort_unstable();
        memory_bytes.dedup();
        let options = |memory| {
            let mut options = LoadOptions {
                memory_bytes: Some(memory),
                ubatch_tokens: args.ubatch,
                threads: args.threads,
                ctx_tokens: args.ctx.unwrap_or_else(|| LoadOptions::default().ctx_tokens),
                profile_dir: crate::home::cache(),
                ..LoadOptions::default()
            };
            args.gpu.set(&mut options);
            options
        };
        // The smallest budget that was asked for is refused first. Surveys the machine, so that the
        // first run does not have to.
        for &memory in &memory_bytes {
            plan_only(&model, &options(memory))?;
        }
        let (gguf, whole) = plan_only(&model, &options(u64::MAX >> 4))?;
        let device = Device::of(&args.gpu, &gguf, &whole)?;
        let json = args.json.as_ref().map(|path| json_file(path, &model));
        for path in [&json, &args.svg].into_iter().flatten() {
            check_writable(path)?;
        }
        let mut notes = Vec::new();
        let fence = match Fence::find() {
            Ok(fence) => Some(fence),
            Err(reason) => {
                notes.push(format!(
                    "no control group can be made ({reason}), so neither side is held to its memory \
                     and there is no ratio to mmap; where systemd runs, try \
                     `systemd-run --user --scope hypura bench ...`"
                ));
                None
            }
        };
        notes.extend(device.as_ref().map(Device::note));
        if fence.is_some() && has_swap() {
            notes.push("swap is on; the control groups forbid it to both sides".to_owned());
        }
        let mut sides = vec![Side::Hypura];
        if fence.is_some() || args.force {
            sides.push(Side::Mmap);
        }
        let unlimited_bytes = whole.bytes.total().max(whole.load_peak_bytes);
        if args.also_resident {
            if !args.force {
                check_fits(unlimited_bytes)?;
            }
            sides.push(Side::Resident);
        }
        Ok(Setup {
            args,
            files: gguf.files.iter().map(|file| file.path.clone()).collect(),
            title: title(&gguf, &model),
            weight_bytes: gguf.weight_bytes(),
            file_bytes: gguf.file_bytes(),
            machine: machine(&model),
            model,
            memory_bytes,
            sides,
            fence,
            device,
            json,
            notes,
        })
    }

    /// Whether all sides compute with the weights as they lie in the file, and so alike.
    pub(super) fn layout_is_plain(&self) -> bool {
        matches!(self.args.layout, LayoutArg::Plain)
    }

    pub(super) fn layout(&self) -> String {
        let value = self.args.layout.to_possible_value();
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What a side's process is told of what computes.
    pub(super) fn device_arguments(&self, side: Side) -> Vec<OsString> {
        match &self.device {
            Some(device) => device.arguments(&self.args.gpu, side),
            None => match self.args.gpu.choice() {
                GpuChoice::Auto => Vec::new(),
                GpuChoice::Off => ["--gpu", "off"].map(OsString::from).to_vec(),
                // It computes with our memory.
                GpuChoice::Named(name) => ["--gpu", name].map(OsString::from).to_vec(),
            },
        }
    }

    pub(super) fn prompt(&self) -> &str {
        self.args.prompt.as_deref().unwrap_or(PROMPT)
    }
}

/// Refuses what might leave the machine without memory.
fn check_fits(needed_bytes: u64) -> anyhow::Result<()> {
    let memory = probe_memory()?;
    let all = memory.limit_bytes.unwrap_or(memory.total_bytes).min(memory.total_bytes);
    let room = all.saturating_sub(LEFT_TO_SYSTEM_BYTES);
    if needed_bytes <= room {
        return Ok(());
    }
    Err(UsageError(format!(
        "the whole model in memory would take {} of this machine's {}, of which 4 GB are kept for \
         others; leave out --also-resident, or insist with --force",
        show_enough(needed_bytes),
        show(all)
    ))
    .into())
}

fn title(gguf: &hypura_engine::gguf::Model, path: &Path) -> String {
    let name = gguf.metadata.str("general.name").map(str::to_owned);
    name.unwrap_or_else(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
}

/// Whether anything may be swapped out, see proc_swaps(5).
fn has_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// What it runs on. Says nothing about whose machine it is.
fn machine(model: &Path) -> serde_json::Value {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "kernel": kernel.trim(),
        "cpu": probe_cpu().ok(),
        "memory": probe_memory().ok(),
        "drive": Drive::of(model).ok(),
        "swap": has_swap(),
    })
}
