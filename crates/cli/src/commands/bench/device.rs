//! The GPU that computes on all sides, and what llama.cpp does with it.

use std::ffi::OsString;

use hypura_engine::gguf::{Model, Role, Tensor};
use hypura_engine::llama::Gpu;
use hypura_engine::plan::{Mode, Plan};
use hypura_engine::{GpuChoice, LoadError, gpu_names};
use serde::Serialize;

use super::record::Side;
use crate::args::GpuArgs;
use crate::size::show;

/// GPUs, and how much of each one's memory a side may take.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Device {
    pub(super) name: String,
    description: String,
    pub(super) memory_bytes: u64,
    baseline: Baseline,
    #[serde(skip)]
    is_emulated: bool,
}

/// How llama.cpp runs beside us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Baseline {
    /// With all weights in GPU memory.
    Gpu,
    /// With the experts left to the CPU.
    ExpertsOnCpu,
    /// With so many of the last layers on the GPU, the output counted, the others on the CPU.
    Layers(u32),
    /// Without the GPU.
    Cpu,
}

impl Baseline {
    /// What people use without us. `whole` is the plan within all main memory that there could be.
    fn of(model: &Model, whole: &Plan, is_emulated: bool) -> Baseline {
        let fits_without_experts = whole.gpu.as_ref().is_some_and(|gpu| gpu.ring_bytes == 0);
        let n_layers = layers_that_fit(model, whole);
        match whole.mode {
            _ if is_emulated => Baseline::Cpu,
            Mode::FullResident => Baseline::Gpu,
            Mode::ExpertStreaming if fits_without_experts => Baseline::ExpertsOnCpu,
            _ if n_layers > 0 => Baseline::Layers(n_layers),
            _ => Baseline::Cpu,
        }
    }
}

/// How many of a model's last layers GPU memory holds in the place of what we hold of its weights;
/// the output is the last one.
fn layers_that_fit(model: &Model, whole: &Plan) -> u32 {
    let room = whole.gpu.as_ref().map_or(0, |gpu| gpu.bytes.weights() + gpu.bytes.transit);
    // An embedding that is the output too is there as that.
    let is_tied = model.tensor("output.weight").is_none();
    let is_output = |tensor: &&Tensor| {
        let is_tied_one = is_tied && tensor.role == Role::TokenEmbedding;
        tensor.layer.is_none() && (is_tied_one || !tensor.role.is_input())
    };
    let bytes = |tensors: &mut dyn Iterator<Item = &Tensor>| tensors.map(|t| t.bytes).sum::<u64>();
    let n_blocks = model.tensors.iter().filter_map(|t| t.layer).max().map_or(0, |last| last + 1);
    let output = bytes(&mut model.tensors.iter().filter(is_output));
    let of_block = |block| bytes(&mut model.tensors.iter().filter(|t| t.layer == Some(block)));
    let sizes = std::iter::once(output).chain((0..n_blocks).rev().map(of_block));
    let mut taken = 0;
    let fitting = sizes.take_while(|bytes| {
        taken += bytes;
        taken <= room
    });
    u32::try_from(fitting.count()).unwrap_or(0)
}

impl Device {
    /// The GPU that `whole` was planned for; `None` if the CPU computes.
    ///
    /// # Errors
    /// If it has gone.
    pub(super) fn of(
        args: &GpuArgs,
        model: &Model,
        whole: &Plan,
    ) -> Result<Option<Device>, LoadError> {
        let Some(plan) = &whole.gpu else { return Ok(None) };
        let mut gpus = match args.choice() {
            GpuChoice::Off => return Ok(None),
            choice => choice.gpus()?,
        };
        gpus.truncate(plan.devices as usize);
        let is_emulated = gpus.iter().any(Gpu::is_emulated);
        let names: Vec<&str> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
        Ok(Some(Device {
            name: names.join(","),
            description: gpu_names(&gpus),
            memory_bytes: plan.budget_bytes / u64::from(plan.devices.max(1)),
            baseline: Baseline::of(model, whole, is_emulated),
            is_emulated,
        }))
    }

    /// What a side's process is told of it.
    pub(super) fn arguments(&self, args: &GpuArgs, side: Side) -> Vec<OsString> {
        let mut out = match (side, self.baseline) {
            (Side::Hypura, _) => return args.arguments(&self.name, self.memory_bytes),
            (_, Baseline::Cpu) => return vec!["--gpu".into(), "off".into()],
            _ => vec!["--gpu".into(), OsString::from(&self.name)],
        };
        match self.baseline {
            Baseline::ExpertsOnCpu => out.push("--baseline-experts-on-cpu".into()),
            Baseline::Layers(n) => {
                out.extend(["--baseline-gpu-layers".into(), n.to_string().into()]);
            }
            Baseline::Gpu | Baseline::Cpu => {}
        }
        out
    }

    /// Which baseline it is, without a full stop.
    pub(super) fn note(&self) -> String {
        let (name, memory) = (&self.description, show(self.memory_bytes));
        let whose = if self.name.contains(',') { "each one's" } else { "its" };
        let here = format!("hypura computes on {name}, within {memory} of {whose} memory");
        let layers;
        let there = match self.baseline {
            Baseline::Gpu => "llama.cpp on the same GPU, with all weights in its memory",
            Baseline::Layers(n) => {
                layers = format!(
                    "llama.cpp with as many layers on the same GPU as fit into that (--n-gpu-layers \
                     {n}), and the others on the CPU"
                );
                layers.as_str()
            }
            Baseline::ExpertsOnCpu => {
                "llama.cpp on the same GPU, with all experts left to the CPU (--cpu-moe), as not all \
                 weights fit into GPU memory"
            }
            Baseline::Cpu if self.is_emulated => {
                "llama.cpp on the CPU, which the GPU is as well, with memory of its own"
            }
            Baseline::Cpu => "llama.cpp on the CPU alone, as not one layer fits into GPU memory",
        };
        format!("{here}; each other side is {there}")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hypura_engine::plan::Breakdown;

    use super::super::super::places::tests::{planned, streamed};
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        gpu: GpuArgs,
    }

    fn device(baseline: Baseline) -> Device {
        Device {
            name: "CUDA0".to_owned(),
            description: "NVIDIA H200".to_owned(),
            memory_bytes: 1 << 30,
            baseline,
            is_emulated: false,
        }
    }

    #[test]
    fn all_sides_are_told_of_the_same_device() {
        let line = ["bench", "--gpu", "auto", "--cpu-assist", "--gpu-slots", "6"];
        let args = Line::try_parse_from(line).unwrap().gpu;
        for (baseline, side, expected) in [
            (
                Baseline::Gpu,
                Side::Hypura,
                "--gpu CUDA0 --gpu-memory 1073741824 --cpu-assist --gpu-slots 6",
            ),
            (Baseline::Gpu, Side::Mmap, "--gpu CUDA0"),
            (Baseline::ExpertsOnCpu, Side::Mmap, "--gpu CUDA0 --baseline-experts-on-cpu"),
            (Baseline::ExpertsOnCpu, Side::Resident, "--gpu CUDA0 --baseline-experts-on-cpu"),
            (Baseline::Layers(17), Side::Mmap, "--gpu CUDA0 --baseline-gpu-layers 17"),
            (Baseline::Cpu, Side::Mmap, "--gpu off"),
        ] {
            let arguments = device(baseline).arguments(&args, side);
            let arguments: Vec<_> = arguments.iter().map(|a| a.to_str().unwrap()).collect();
            assert_eq!(arguments.join(" "), expected);
        }
    }

    #[test]
    fn the_baseline_is_what_people_use_without_us() {
        let (model, whole) = planned(1 << 40, Some(1 << 40));
        assert_eq!(Baseline::of(&model, &whole, false), Baseline::Gpu);
        assert_eq!(Baseline::of(&model, &whole, true), Baseline::Cpu, "there is none");
        let (_, mut part) = streamed();
        assert_eq!(Baseline::of(&model, &part, false), Baseline::ExpertsOnCpu);
        assert!(device(Baseline::ExpertsOnCpu).note().contains("(--cpu-moe)"));
        // Matrices stream too. The output takes 2.2 MB, each of the 8 layers about 4.
        let gpu = part.gpu.as_mut().unwrap();
        (gpu.bytes.resident_weights, gpu.bytes.expert_slots) = (8 << 20, 7 << 20);
        (gpu.ring_bytes, gpu.bytes.ring, gpu.bytes.transit) = (1, 0, 0);
        assert_eq!(Baseline::of(&model, &part, false), Baseline::Layers(4));
        assert!(device(Baseline::Layers(4)).note().contains("(--n-gpu-layers 4)"));
        part.mode = Mode::DenseStreaming;
        assert_eq!(Baseline::of(&model, &part, false), Baseline::Layers(4));
        part.gpu.as_mut().unwrap().bytes = Breakdown::default();
        assert_eq!(Baseline::of(&model, &part, false), Baseline::Cpu);
    }
}
