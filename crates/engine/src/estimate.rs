//! How fast a model should run, without running it.
//!
//! The forecast itself is the planner's. Here it gets what it rests on: the drive and the speed of
//! computing, measured now or taken from the profile, and the router's choices, replayed from
//! recordings of other prompts with the slots that are planned.

mod calibration;
mod replay;

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use hypura_llama as llama;
use hypura_plan::{self as plan, Forecast, Plan, Speed};
use hypura_profile::Profile;
use hypura_tier::{Trace, TraceError, TraceShape};

use crate::gpu;
use crate::hot::Opened;
use crate::load::make_plan;
use crate::machine::{Survey, survey_with};
use crate::options::{LoadError, LoadOptions};
use replay::{Replayed, replay};

/// Of a generated text, so many tokens are forecast apart: meanwhile the slots fill.
pub const FIRST_TOKENS: u32 = 32;

/// Said when measuring was of no use.
const DISTURBED: &str = "assumes free cores: the speed of computing could not be measured, as \
                         other programs keep them busy";

/// What an estimate may rest on.
#[derive(Debug, Clone, Default)]
pub struct EstimateOptions {
    /// Routing that was recorded with other prompts.
    pub traces: Vec<PathBuf>,
    /// Measure drive and computing now, whatever is known of them.
    pub probe: bool,
    /// Estimate for this machine, not for the one that this runs on. Nothing is measured then.
    pub machine: Option<Profile>,
}

/// How fast a model should run, and why.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Estimate {
    /// The plan, with the speed that is expected; once slots are filled if routing was replayed.
    pub plan: Plan,
    /// The speed of the first [`FIRST_TOKENS`] tokens, which fill the slots; only if routing was
    /// replayed.
    pub first: Option<Speed>,
    /// What was assumed for want of knowledge, in sentences.
    pub assumptions: Vec<String>,
    /// What was measured for this estimate, in words.
    pub measured: Vec<String>,
}

/// Why there is no estimate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EstimateError {
    /// The model can't be read or planned.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A recording can't be opened.
    #[error("can't read {}: {source}", path.display())]
    TraceFile {
        /// The recording.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A recording is none, or damaged.
    #[error("{}: {source}", path.display())]
    Trace {
        /// The recording.
        path: PathBuf,
        /// Why.
        source: TraceError,
    },
    /// A recording is of another model.
    #[error(
        "{} was recorded with a model of {} layers of {} experts, {} per token, but this one has \
         {layers} of {experts}, {used} per token; record one with this model", path.display(),
        found.n_layers, found.n_experts, found.top_k
    )]
    OtherModel {
        /// The recording.
        path: PathBuf,
        /// What it is of.
        found: TraceShape,
        /// Layers of the model that have experts.
        layers: u32,
        /// Their experts.
        experts: u32,
        /// Experts that a token uses.
        used: u32,
    },
    /// The recordings hold no generated tokens.
    #[error("the recorded routing has no generated tokens; record an answer of 64 tokens or more")]
    NothingGenerated,
}

/// Estimates how fast the model at `path` runs.
///
/// On this machine, the speed of computing is measured if it is not known (half a second per kind
/// of weights) and there is a folder to keep it in.
///
/// # Errors
/// See [`EstimateError`].
pub fn estimate(
    path: &Path,
    options: &LoadOptions,
    estimate: &EstimateOptions,
) -> Result<Estimate, EstimateError> {
    let opened = Opened::open(path)?;
    let is_hot = opened.hot().is_some();
    let model = opened.into_model();
    let layout = plan_layout(options.layout);
    let cache_dir = options.profile_dir.as_deref();
    let (mut measured, mut disturbed) = (Vec::new(), false);
    let (mut survey, mut profile) = match &estimate.machine {
        Some(profile) => (Survey::of_profile(profile, None, options.threads), None),
        None => survey_with(path, cache_dir, options.threads, estimate.probe),
    };
    // A described machine is described without its GPU.
    if estimate.machine.is_none() {
        survey = gpu::add(survey, profile.as_mut(), &model, options, is_hot)?;
    }
    if estimate.probe && survey.machine.storage_is_fresh {
        measured.push("the drive".to_owned());
    }
    let mut plan = make_plan(&model, &survey, options, &[])?;
    // Whether the recordings fit is known at once; measuring comes after it.
    let traces = read_traces(&estimate.traces)?;
    let mut replayed = replay_on(&plan, &traces)?;
    if let (Some(mut profile), Some(cache_dir)) = (profile, cache_dir) {
        let uses = plan::weight_uses(&model, &plan, layout);
        let again = estimate.probe;
        let done = calibration::add(&mut survey, &mut profile, cache_dir, &uses, again);
        measured.extend(done.measured);
        disturbed = done.disturbed;
        // What was measured may change the size of micro-batches.
        plan = make_plan(&model, &survey, options, &[])?;
        replayed = replay_on(&plan, &traces)?;
    }

    let forecast = |routing: plan::Routing<'_>| {
        plan::forecast(&model, &plan, &survey.machine, layout, routing)
    };
    let (Forecast { speed, mut assumptions, .. }, first) = match &replayed {
        None => (forecast(plan::Routing::Assumed), None),
        Some(Replayed { first, rest }) => {
            let of = |counts: &[Vec<u64>]| forecast(plan::Routing::Replayed(counts));
            (of(rest), first.as_ref().map(|first| of(first).speed))
        }
    };
    plan.speed = speed;
    if disturbed {
        assumptions.push(DISTURBED.to_owned());
    }
    Ok(Estimate { plan, first, assumptions, measured })
}

/// Replays all recordings, each from empty slots; `None` if there are none, or nothing of the model
/// is in slots.
fn replay_on(plan: &Plan, traces: &[Recording]) -> Result<Option<Replayed>, EstimateError> {
    if traces.is_empty() || plan.expert_layers.is_empty() {
        return Ok(None);
    }
    let largest = |of: fn(&plan::ExpertLayer) -> u32| {
        plan.expert_layers.iter().map(of).max().unwrap_or_default()
    };
    let layers = u32::try_from(plan.expert_layers.len()).unwrap_or(u32::MAX);
    let (experts, used) = (largest(|layer| layer.n_experts), largest(|layer| layer.n_used));
    let wanted = TraceShape { n_layers: layers, n_experts: experts, top_k: used };
    for (path, trace) in traces {
        if trace.shape() != wanted {
            let (path, found) = (path.clone(), trace.shape());
            return Err(EstimateError::OtherModel { path, found, layers, experts, used });
        }
    }
    let traces: Vec<&Trace> = traces.iter().map(|(_, trace)| trace).collect();
    replay(plan, &traces, FIRST_TOKENS).map(Some).ok_or(EstimateError::NothingGenerated)
}

/// A recording, and where it is from.
type Recording = (PathBuf, Trace);

fn read_traces(paths: &[PathBuf]) -> Result<Vec<Recording>, EstimateError> {
    let read = |path: &PathBuf| {
        let fail = |source| EstimateError::TraceFile { path: path.clone(), source };
        let file = File::open(path).map_err(fail)?;
        match Trace::read(BufReader::new(file)) {
            Ok(trace) => Ok((path.clone(), trace)),
            Err(TraceError::Io(source)) => Err(fail(source)),
            Err(source) => Err(EstimateError::Trace { path: path.clone(), source }),
        }
    };
    paths.iter().map(read).collect()
}

/// The planner's name of a layout.
pub(crate) fn plan_layout(layout: llama::Layout) -> plan::Layout {
    match layout {
        llama::Layout::Plain => plan::Layout::Plain,
        llama::Layout::Fast => plan::Layout::Fast,
    }
}
