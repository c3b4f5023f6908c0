//! Recording which experts the router chose.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use hypura_llama::tiered::Routing;
use hypura_plan::{ExpertLayer, Plan};
use hypura_tier::{TraceShape, TraceWriter};

use crate::options::{LoadError, LoadOptions};

/// Writes the routing of a run to a file; see [`hypura_tier::TraceWriter`] for its format.
pub(crate) struct Recorder {
    writer: Option<TraceWriter<BufWriter<File>>>,
    path: PathBuf,
    /// Tokens recorded so far, per layer.
    tokens: Vec<u32>,
    experts: Vec<u32>,
}

impl Recorder {
    /// For the experts of a plan, if a trace was asked for.
    pub(crate) fn of(plan: &Plan, options: &LoadOptions) -> Result<Option<Recorder>, LoadError> {
        let Some(path) = &options.trace else { return Ok(None) };
        let largest = |f: fn(&ExpertLayer) -> u32| plan.expert_layers.iter().map(f).max();
        let (Some(n_experts), Some(top_k)) = (largest(|l| l.n_experts), largest(|l| l.n_used))
        else {
            return Err(LoadError::NothingToTrace);
        };
        let n_layers = u32::try_from(plan.expert_layers.len()).unwrap_or(u32::MAX);
        let shape = TraceShape { n_layers, n_experts, top_k };
        Recorder::create(path, shape).map(Some).map_err(LoadError::Trace)
    }

    fn create(path: &Path, shape: TraceShape) -> Result<Recorder, String> {
        let fail = |error: &dyn std::fmt::Display| {
            format!("can't write the trace {}: {error}", path.display())
        };
        let file = File::create(path).map_err(|e| fail(&e))?;
        let writer = TraceWriter::new(BufWriter::new(file), shape).map_err(|e| fail(&e))?;
        Ok(Recorder {
            writer: Some(writer),
            path: path.to_owned(),
            tokens: vec![0; shape.n_layers as usize],
            experts: Vec::new(),
        })
    }

    pub(crate) fn record(&mut self, layer: u32, routing: Routing<'_>) {
        let Some(writer) = &mut self.writer else { return };
        let Some(count) = self.tokens.get_mut(layer as usize) else { return };
        for token in routing.ids.chunks(routing.n_used.max(1)) {
            self.experts.clear();
            self.experts.extend(token.iter().map(|id| id.unsigned_abs()));
            if let Err(error) = writer.record(*count, layer, &self.experts) {
                tracing::warn!("the trace {} ends early: {error}", self.path.display());
                self.writer = None;
                return;
            }
            *count += 1;
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.writer.take().map(TraceWriter::finish) {
            tracing::warn!("the trace {} is incomplete: {error}", self.path.display());
        }
    }
}
