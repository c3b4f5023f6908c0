//! Options of the GPU.

use std::ffi::OsString;

use clap::Args;
use hypura_engine::{GpuChoice, LoadOptions};

use crate::size;

/// Which GPU computes, and within what.
#[derive(Debug, Clone, Args)]
pub(crate) struct GpuArgs {
    /// What computes: auto (as few GPUs as hold the model, all if they don't, or the CPU), off (the
    /// CPU), or names as `hypura profile` lists them, such as CUDA0 or CUDA0,CUDA1
    #[arg(long, value_name = "WHICH", default_value = "auto", value_parser = choice, help_heading = "GPU")]
    gpu: GpuChoice,

    /// What may be used of each GPU's memory, such as 8GiB [default: what is free, less a margin]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = "GPU")]
    gpu_memory: Option<u64>,

    /// Let the CPU compute experts that lie in memory, beside the GPU, where that is sooner than
    /// copying them. It rounds otherwise: the same prompt may then be answered in other words
    #[arg(long, help_heading = "GPU")]
    cpu_assist: bool,

    /// Experts of a layer that the GPU holds at most, for measuring
    #[arg(long, value_name = "N", hide = true)]
    gpu_slots: Option<u32>,
}

impl GpuArgs {
    /// Which one was asked for.
    pub(crate) fn choice(&self) -> &GpuChoice {
        &self.gpu
    }

    /// The same for another process of this program, which then takes just these devices and this
    /// much of each one's memory.
    pub(crate) fn arguments(&self, device: &str, memory_bytes: u64) -> Vec<OsString> {
        let memory = memory_bytes.to_string();
        let mut out: Vec<OsString> =
            ["--gpu", device, "--gpu-memory", &memory].map(OsString::from).to_vec();
        if self.cpu_assist {
            out.push("--cpu-assist".into());
        }
        if let Some(slots) = self.gpu_slots {
            out.extend(["--gpu-slots".into(), slots.to_string().into()]);
        }
        out
    }

    /// Says it to the engine.
    pub(crate) fn set(&self, options: &mut LoadOptions) {
        options.gpu.clone_from(&self.gpu);
        options.gpu_memory_bytes = self.gpu_memory;
        options.gpu_slots_max = self.gpu_slots;
        options.cpu_assists = self.cpu_assist;
    }
}

#[allow(clippy::unnecessary_wraps)] // clap asks for it
fn choice(text: &str) -> Result<GpuChoice, String> {
    Ok(match text {
        "auto" => GpuChoice::Auto,
        "off" | "none" => GpuChoice::Off,
        name => GpuChoice::Named(name.to_owned()),
    })
}
