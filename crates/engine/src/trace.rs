//! Recording which experts the router chose.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use hypura_llama::tiered::Routing;
use hypura_tier::{TraceShape, TraceWriter};

/// Writes the routing of a run to a file; see [`hypura_tier::TraceWriter`] for its format.
pub(crate) struct Recorder {
    writer: Option<TraceWriter<BufWriter<File>>>,
    path: PathBuf,
    /// Tokens recorded so far, per layer.
    tokens: Vec<u32>,
    experts: Vec<u32>,
}

impl Recorder {
    pub(crate) fn create(path: &Path, shape: TraceShape) -> Result<Recorder, String> {
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
