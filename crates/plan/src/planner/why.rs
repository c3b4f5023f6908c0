//! Why a plan is as it is, in sentences.

use super::{Draft, Planner, Pooling};
use crate::number::total;
use crate::plan::{Mode, Plan};

impl Planner<'_> {
    /// Each choice in one sentence.
    pub(super) fn reasons(&self, plan: &Plan, draft: &Draft) -> Vec<String> {
        let mut why = vec![self.n_ctx_why.clone(), self.mode_reason(plan)];
        let inventory = &self.inventory;
        if plan.mode == Mode::ExpertStreaming {
            let slots: u64 = draft.allocation.slots.iter().sum();
            let units = total(inventory.classes.iter().map(|class| class.n_units()));
            why.push(format!(
                "{slots} of {units} experts have a slot at a time, {:.0}% of {}; {:.0}% of lookups \
                 are assumed to hit",
                100.0 * slots as f64 / units.max(1) as f64,
                size(inventory.expert_bytes()),
                100.0 * plan.speed.assumed_hit_rate.unwrap_or(1.0),
            ));
            why.push(match draft.pooling {
                Pooling::Global => "layers of one shape share a pool, so that slots go to the \
                                    layers that need them"
                    .to_owned(),
                Pooling::PerLayer => format!(
                    "each layer has a pool of its own, because the row mappings of a shared one \
                     would take {} of work memory",
                    size(self.widths.routing_bytes(
                        plan.n_ubatch.into(),
                        draft.allocation.slots.iter().copied().max().unwrap_or(0)
                    )),
                ),
            });
        }
        if plan.mode != Mode::FullResident {
            why.extend(self.streaming_reasons(plan, draft));
        }
        why.push(match self.request.ubatch_tokens {
            Some(n_ubatch) => format!("the micro-batch of {n_ubatch} tokens was asked for"),
            None if plan.n_ubatch == self.ubatch_max() => {
                format!("a micro-batch of {} tokens fits, a larger one gains little", plan.n_ubatch)
            }
            None => format!(
                "the micro-batch is {} tokens, because a larger one takes memory that weights need",
                plan.n_ubatch
            ),
        });
        let unmeasured = self.machine.unmeasured();
        if !unmeasured.is_empty() {
            why.push(format!(
                "the expected speed is a guess: {} was not measured",
                unmeasured.join(" and ")
            ));
        }
        why
    }

    fn mode_reason(&self, plan: &Plan) -> String {
        let weights = size(self.inventory.used_bytes);
        let budget = size(plan.budget_bytes);
        let room = match self.request.weights_memory_bytes {
            Some(limit) => format!("the {} that weights may take", size(limit)),
            None => budget.clone(),
        };
        match plan.mode {
            Mode::FullResident => {
                format!(
                    "full-resident, because all {weights} of weights fit into {budget} with the rest"
                )
            }
            Mode::ExpertStreaming => format!(
                "expert-streaming, because {weights} of weights do not fit into {room}, and a token \
                 needs only a few experts of each layer"
            ),
            Mode::DenseStreaming => format!(
                "dense-streaming, because {weights} of weights do not fit into {room}, and every \
                 token needs all of them"
            ),
        }
    }

    fn streaming_reasons(&self, plan: &Plan, draft: &Draft) -> Vec<String> {
        let mut why = Vec::new();
        let streamed = draft.allocation.streamed_dense_bytes(&self.inventory);
        if streamed > 0 {
            let n_streamed = draft.allocation.pinned.iter().filter(|pinned| !**pinned).count();
            why.push(format!(
                "{n_streamed} matrices of {} stream through a ring of {} for every token, spread \
                 evenly over the layers so that reading and computing overlap",
                size(streamed),
                size(plan.ring_bytes),
            ));
        }
        if self.inventory.rows_bytes > 0 {
            why.push(if draft.allocation.rows_pinned {
                "the input embedding stays in memory, because there is room for it".to_owned()
            } else {
                format!(
                    "the input embedding of {} stays on storage, because a token reads only {} of it",
                    size(self.inventory.rows_bytes),
                    size(self.inventory.row_bytes),
                )
            });
        }
        why
    }
}

/// A size for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = Some(next);
    }
    let digits = if bytes < 1024 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", unit.unwrap_or(&"B"))
}
