//! What this machine is: its processor, its memory and the limits on it, its devices, and how fast
//! its drive really reads. Describes; decides nothing.
//!
//! [`load_or_probe`] gives a [`Profile`]. What is cheap to find out and changes by the minute
//! (memory, free cores) is looked up every time; what has to be measured (the drive, the speed of
//! memory) is kept as JSON in a cache folder, with its age.
//!
//! [`fingerprint()`] says what the files of a model are: a hash of their bytes, cached likewise.
//!
//! Nothing here knows what is in a model, budgets or plans.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

mod cache;
mod cgroup;
mod compute;
mod copy;
mod cpu;
mod fingerprint;
mod gpu;
mod host;
mod linux;
mod macos;
mod memory;
mod mount;
mod storage;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use cache::{
    AGE_MAX_S, AGE_QUICK_MAX_S, Loaded, Query, SaveError, keep_compute, keep_gpu, load_or_probe,
};
pub use cgroup::{Group, GroupVersion};
pub use compute::{Compute, ComputeKind, ComputeStep};
pub use copy::probe_memory_copy;
pub use cpu::Cpu;
pub use fingerprint::{FINGERPRINT_BUFFER_BYTES_MAX, Fingerprint, FingerprintError, fingerprint};
pub use gpu::GpuSpeed;
pub use host::ProbeError;
pub use memory::Memory;
pub use mount::Drive;
pub use storage::{
    Curve, Effort, FILE_BYTES_MIN, Grid, Latency, Point, Storage, StorageError, best, probe_curve,
    probe_storage,
};

/// The version of the JSON form that this code writes and reads.
pub const VERSION: u32 = 1;

/// What a machine is. Can be written as JSON and read back, also on another machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// [`VERSION`] of the code that wrote it.
    pub version: u32,
    /// When it was put together, in seconds since 1970.
    pub taken_unix_s: u64,
    /// Tells machines apart; a hash that gives nothing away.
    pub machine: String,
    pub cpu: Cpu,
    pub memory: Memory,
    /// What the compute library found; handed in by the caller.
    pub devices: Vec<Device>,
    /// Drives measured so far.
    pub storage: Vec<Storage>,
    pub memory_copy: MemoryCopy,
    /// How fast it multiplies, as far as that was measured; handed in by the caller.
    #[serde(default)]
    pub compute: Vec<Compute>,
    /// How long a step of computing takes; likewise.
    #[serde(default)]
    pub compute_steps: Vec<ComputeStep>,
    /// How fast GPUs are; likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuSpeed>,
}

/// How fast one thread copies memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MemoryCopy {
    /// Bytes copied per second; each is read once and written once.
    pub bytes_per_s: f64,
    /// When it was measured, in seconds since 1970.
    pub taken_unix_s: u64,
}

/// Something that computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// As the compute library calls it, such as `CUDA0`.
    pub name: String,
    /// As people call it, such as `NVIDIA H200`.
    pub description: String,
    pub kind: DeviceKind,
    pub memory_total_bytes: u64,
    pub memory_free_bytes: u64,
}

/// What kind of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    Cpu,
    /// With memory of its own.
    Gpu,
    /// Shares the memory of the host.
    IntegratedGpu,
    /// Helps the CPU with some operations.
    Accelerator,
}

/// A profile can't be read from text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    #[error("this is no profile: {source}; make one with `hypura profile --json`")]
    Malformed {
        #[from]
        source: serde_json::Error,
    },
    #[error(
        "this profile has version {found}, and version {VERSION} is needed; make a new one with \
         `hypura profile --json`"
    )]
    Version { found: u32 },
}

impl Profile {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// See [`ParseError`].
    pub fn from_json(text: &str) -> Result<Profile, ParseError> {
        /// Read first, since other versions may differ in everything else.
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let Header { version } = serde_json::from_str(text)?;
        if version != VERSION {
            return Err(ParseError::Version { found: version });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The JSON form, for people and programs.
    pub fn to_json(&self) -> String {
        // Fails only for maps with odd keys and types that refuse, and there are none in it.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// The measurement of the drive that holds `file`, if there is one.
    pub fn storage_of(&self, file: &Path) -> Option<&Storage> {
        let drive = Drive::of(file).ok()?;
        self.storage.iter().find(|storage| storage.drive == drive)
    }
}

/// The control groups that this process is in and whose memory is accounted for, its own first,
/// then those above; none where the system has no such groups.
pub fn memory_groups() -> Vec<Group> {
    cgroup::groups(&host::System, "memory")
}

/// The processor of this machine, and what of it is free for this process.
///
/// # Errors
/// [`ProbeError`] if the system doesn't say what it has to.
pub fn probe_cpu() -> Result<Cpu, ProbeError> {
    match cfg!(target_os = "macos") {
        true => macos::cpu(&host::System),
        false => linux::cpu(&host::System),
    }
}

/// The memory of this machine, and the tightest limit on this process.
///
/// # Errors
/// [`ProbeError`] if the system doesn't say what it has to.
pub fn probe_memory() -> Result<Memory, ProbeError> {
    match cfg!(target_os = "macos") {
        true => macos::memory(&host::System),
        false => linux::memory(&host::System),
    }
}
