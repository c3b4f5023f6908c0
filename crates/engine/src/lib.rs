//! A loaded model: planned, loaded, streamed, and made to generate.
//!
//! One thread owns the model and consumes [`EngineEvent`]s; nothing else changes its state. Who
//! wants text holds an [`Engine`] and sends events.
//!
//! This crate joins what the crates below it keep apart: it reads a model's description (`gguf`)
//! and the machine's (`profile`), asks for a plan (`plan`), loads (`llama`), and streams weights by
//! joining slots (`tier`), reads (`io`) and device memory (`llama`). It knows no HTTP and no FFI.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod attention;
mod board;
mod engine;
mod estimate;
mod generate;
mod gpu;
mod history;
mod hot;
mod load;
mod machine;
mod optimize;
mod options;
mod params;
mod pools;
mod report;
mod scheduler;
mod sessions;
mod status;
mod stream;
mod streamed;
mod text;
mod ticket;
mod trace;
mod transcript;

pub use attention::{HotLimit, KvOptions, KvUse, kv_type_name};
pub use engine::{Engine, EngineEvent, EngineGone, Settled};
pub use estimate::{Estimate, EstimateError, EstimateOptions, FIRST_TOKENS, estimate};
pub use generate::{
    Constrained, FILL_TOKENS, Finish, GenerateError, GenerateRequest, Generated, TokenChoice,
    Update,
};
pub use gpu::{GpuChoice, gpu_names};
pub use hypura_chat::{ChatError, ChatTemplate, Message};
pub use hypura_hub::{ResolveError, Stores};
pub use load::{Loaded, free_bytes, load, load_baseline, plan_only};
pub use machine::{Survey, devices, survey};
pub use optimize::{
    OptimizeError, OptimizeOptions, OptimizeProgress, OptimizeStep, Optimized, OtherCpu,
    TensorCount, optimize, suits_this_cpu,
};
pub use options::{LoadError, LoadOptions, Progress, ReaderFactory, reader};
pub use report::{GpuRunStats, LoadSummary, RunStats, mode_name};
pub use sessions::{
    Packed, SessionFileError, Unpacked, fingerprint_of, local_time, pack_session, unpack_session,
};
pub use status::{EngineStatus, ExpertMap, SequenceState, SequenceStatus, Totals};
pub use stream::{AheadStats, DeviceStats, Segment, StreamStats};
pub use text::{Filtered, StopFilter, Utf8Assembler};
pub use ticket::{EmbedReply, Happening, Refused, Sink, Ticket};
pub use transcript::Transcript;

pub use hypura_gguf as gguf;
pub use hypura_hub as hub;
pub use hypura_io as io;
pub use hypura_kv as kv;
pub use hypura_llama as llama;
pub use hypura_plan as plan;
pub use hypura_profile as profile;
pub use hypura_tier as tier;
