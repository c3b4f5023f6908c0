//! From what a user asked for to tiers that are ready.

use std::sync::Arc;

use hypura_gguf as gguf;
use hypura_io as io;
use hypura_kv::{ColdConfig, Store, StoreConfig, SystemClock, SystemDisk};
use hypura_llama::Context;
use hypura_plan::Plan;

use super::options::{BLOCKS_UNDER_WAY, KvOptions, Sizes, scope_fields};
use super::{Attention, Rates};
use crate::machine::Survey;
use crate::options::{LoadError, LoadOptions, Progress, ReaderFactory};

/// Of the memory that the plan leaves unused, blocks that wait to be written may take one part in
/// this many, and no more than `PENDING_MAX`.
const UNUSED_SHARE: u64 = 4;
const PENDING_MAX: u64 = 256 << 20;

/// Opens the tiers of attention state for a model; `None` where there are none, and, after a
/// warning, where its state can't be divided or the folder can't be used.
pub(crate) fn open(
    context: &mut Context,
    model: &gguf::Model,
    plan: &Plan,
    surveyed: &Survey,
    options: &LoadOptions,
    fingerprint: &str,
) -> Option<Attention> {
    let kv = options.kv.as_ref().filter(|kv| kv.keeps_something())?;
    let sizes = Sizes::of(model, options, kv, surveyed.has_discrete_gpu());
    let (fingerprint, gpus) = (fingerprint.to_owned(), surveyed.gpus());
    let fields = scope_fields(model, fingerprint, options, gpus, plan.n_ctx, &kv.tenant);
    // What a micro-batch computes at once can wait to be written as long as nobody else needs the
    // memory.
    let burst = 2 * u64::from(plan.n_ubatch) * sizes.token_bytes;
    let unused = plan.budget_bytes.saturating_sub(plan.bytes.total());
    let pending = sizes.under_way_bytes().max(burst.min(unused / UNUSED_SHARE).min(PENDING_MAX));
    let store = open_store(kv, &sizes, pending)
        .inspect_err(|reason| tracing::warn!("attention state is not kept: {reason}"))
        .ok()?;
    let machine = &surveyed.machine;
    let rates = Rates::new(plan.speed.prompt_tokens_per_s, machine.stream_bytes_per_s());
    if kv.cold_dir.is_some() && Store::payload_bytes_max(kv.cold_bytes_max) < sizes.block_bytes {
        tracing::warn!(
            "the cold cache is smaller than a block of this model, {} KiB; little is kept there",
            sizes.block_bytes.div_ceil(1024)
        );
    }
    Attention::new(context, store, fields, sizes, kv.clone(), rates)
        .inspect_err(|error| tracing::warn!("attention state is not kept: {error}"))
        .ok()
}

/// The store alone, as for a model.
fn open_store(kv: &KvOptions, sizes: &Sizes, pending_bytes_max: u64) -> Result<Store, String> {
    let config = StoreConfig {
        cold: kv.cold_dir.as_ref().map(|dir| ColdConfig {
            dir: dir.clone(),
            bytes_max: kv.cold_bytes_max,
            writes_per_day_max: kv.cold_writes_per_day_max,
        }),
        hot_bytes_max: sizes.hot_bytes,
        pending_bytes_max,
        read_depth: usize::try_from(BLOCKS_UNDER_WAY).unwrap_or(1),
        reader: kv.reader.clone().unwrap_or_else(reader),
    };
    let disk = kv.disk.clone().unwrap_or_else(|| Arc::new(SystemDisk));
    Store::open(config, disk, Arc::new(SystemClock)).map_err(|error| error.to_string())
}

/// The store for work without a model: blocks of any size pass through it one at a time.
pub(crate) fn open_bare_store(kv: &KvOptions) -> Result<Store, String> {
    let sizes = Sizes {
        block_tokens: 1,
        token_bytes: 1,
        block_bytes: 0,
        checkpoint_bytes: 0,
        hot_bytes: 0,
    };
    open_store(kv, &sizes, Store::payload_bytes_max(kv.cold_bytes_max))
}

/// Reads blocks, several at once and each in pieces.
pub(crate) fn reader() -> ReaderFactory {
    crate::options::reader(io::EngineConfig {
        kind: io::EngineKind::Pread,
        depth: io::EngineConfig::THREADS_MAX,
        ..io::EngineConfig::default()
    })
}

/// What tells a model from all others: a hash of all of its bytes, kept from one run to the next.
pub(crate) fn fingerprint(
    model: &gguf::Model,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<String, LoadError> {
    let Some(kv) = &options.kv else { return Ok(String::new()) };
    crate::sessions::fingerprint_of_model(model, kv, &mut |done, total| {
        #[allow(clippy::cast_possible_truncation)] // a share
        progress((done as f64 / total.max(1) as f64) as f32)
    })
}
