//! Which speeds of computing a plan needs, and measuring those that are not known.

use std::collections::BTreeSet;
use std::path::Path;

use hypura_llama::Layout as LlamaLayout;
use hypura_llama::calibrate::{self, Calibrator};
use hypura_plan::{Layout, Machine, Product, WeightUse};
use hypura_profile::{Compute, ComputeKind, ComputeStep, Profile, keep_compute};

use crate::machine::{Survey, library, names, now_unix_s};

/// Kinds of weights that make out less of a token than one part in this many are not measured.
const SHARE_MIN: f64 = 1.0 / 32.0;
/// Kinds measured for one estimate, at most.
const KINDS_MAX: usize = 8;
/// Rows shorter than this are another kind than longer ones: their fixed costs count.
const SHORT_ROW_ELEMENTS: u64 = 1024;
/// Measuring takes memory; with less than this free it is left out.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// What was measured, and what could not be.
#[derive(Debug, Default)]
pub(super) struct Calibrated {
    /// In words.
    pub(super) measured: Vec<String>,
    /// Whether other programs were in the way.
    pub(super) disturbed: bool,
}

/// Measures what the plan's weights need and the survey does not know (or all of it, `again`), and
/// keeps it in the profile. What can't be measured, or was disturbed, is left to what was known
/// before or the planner assumes.
pub(super) fn add(
    survey: &mut Survey,
    profile: &mut Profile,
    cache_dir: &Path,
    uses: &[WeightUse],
    again: bool,
) -> Calibrated {
    let mut done = Calibrated::default();
    let wanted = wanted(uses, &survey.machine, again);
    let wants_step = again || survey.machine.step_s <= 0.0;
    if (wanted.is_empty() && !wants_step) || survey.machine.free_memory_bytes < FREE_BYTES_MIN {
        return done;
    }
    let mut calibrator = match Calibrator::new(survey.threads) {
        Ok(calibrator) => calibrator,
        Err(error) => {
            tracing::debug!("computing was not measured: {error}");
            return done;
        }
    };
    let (library, threads, taken_unix_s) = (library(), survey.threads, now_unix_s());
    // The cheapest measurement tells whether the others make sense.
    let step = match calibrator.step() {
        Ok(step) if step.disturbed => {
            done.disturbed = true;
            return done;
        }
        Ok(step) => {
            let (library, seconds) = (library.clone(), step.seconds);
            Some(ComputeStep { library, threads, seconds, taken_unix_s })
        }
        Err(error) => {
            tracing::debug!("a step was not measured: {error}");
            None
        }
    };
    let mut new = Vec::new();
    for of in wanted {
        match calibrator.rate(&case(&of)) {
            Ok(rate) if rate.disturbed => {
                done.disturbed = true;
                break;
            }
            Ok(rate) => {
                let (layout, product) = names(of.layout, of.product);
                new.push(Compute {
                    library: library.clone(),
                    threads,
                    kind: ComputeKind {
                        ty: of.ty.name().to_owned(),
                        layout: layout.to_owned(),
                        product: product.to_owned(),
                        n_in: of.n_in,
                    },
                    decode_bytes_per_s: rate.decode_bytes_per_s,
                    prompt_flops_per_s: rate.prompt_flops_per_s,
                    taken_unix_s,
                });
            }
            Err(error) => tracing::debug!("{} was not measured: {error}", of.ty),
        }
    }
    let types: BTreeSet<&str> = new.iter().map(|measured| measured.kind.ty.as_str()).collect();
    done.measured = types.iter().map(|ty| format!("computing with {ty}")).collect();
    if let Err(error) = keep_compute(cache_dir, profile, new, step) {
        tracing::debug!("{error}");
    }
    let surveyed = Survey::of_profile(profile, None, Some(survey.threads)).machine;
    (survey.machine.compute, survey.machine.step_s) = (surveyed.compute, surveyed.step_s);
    done
}

/// The kinds to measure: the largest of those that are alike.
fn wanted(uses: &[WeightUse], machine: &Machine, again: bool) -> Vec<WeightUse> {
    let all: f64 = uses.iter().map(|of| of.bytes).sum();
    let is_short = |n_in: u64| n_in < SHORT_ROW_ELEMENTS;
    let mut wanted: Vec<WeightUse> = Vec::new();
    for of in uses.iter().filter(|of| of.bytes >= all * SHARE_MIN) {
        let is_like = |ty: &str, layout: Layout, product: Product, n_in: u64| {
            (ty, layout, product) == (of.ty.name(), of.layout, of.product)
                && is_short(n_in) == is_short(of.n_in)
        };
        let is_known =
            !again && machine.compute.iter().any(|r| is_like(&r.ty, r.layout, r.product, r.n_in));
        let is_wanted = wanted.iter().any(|w| is_like(w.ty.name(), w.layout, w.product, w.n_in));
        if !is_known && !is_wanted && wanted.len() < KINDS_MAX {
            wanted.push(*of);
        }
    }
    wanted
}

fn case(of: &WeightUse) -> calibrate::Case {
    calibrate::Case {
        ty: of.ty.id(),
        layout: match of.layout {
            Layout::Plain => LlamaLayout::Plain,
            Layout::Fast => LlamaLayout::Fast,
        },
        product: match of.product {
            Product::Matrix => calibrate::Product::Matrix,
            Product::Experts => calibrate::Product::Experts,
        },
        n_in: of.n_in,
        n_out: of.n_out,
    }
}

#[cfg(test)]
mod tests {
    use hypura_gguf::GgmlType;
    use hypura_plan::ComputeRate;

    use super::*;

    fn of(ty: GgmlType, product: Product, n_in: u64, bytes: f64) -> WeightUse {
        let layout = Layout::Plain;
        WeightUse { ty, layout, product, n_in, n_out: 512, bytes, elements: bytes }
    }

    #[test]
    fn what_is_large_and_not_known_is_wanted() {
        let (q4, q6) = (GgmlType::Q4_K, GgmlType::Q6_K);
        let (matrix, experts) = (Product::Matrix, Product::Experts);
        let uses = [
            of(q4, experts, 4096, 50.0),
            of(q4, experts, 2048, 20.0),
            of(q4, experts, 512, 10.0),
            of(q4, matrix, 4096, 10.0),
            of(q6, matrix, 4096, 9.0),
            of(GgmlType::F32, matrix, 4096, 1.0),
        ];
        let mut machine = Machine::default();
        assert_eq!(wanted(&uses, &machine, false), [uses[0], uses[2], uses[3], uses[4]]);
        let known = |ty: GgmlType, product, n_in| ComputeRate {
            ty: ty.name().to_owned(),
            layout: Layout::Plain,
            product,
            n_in,
            decode_bytes_per_s: 1.0,
            prompt_flops_per_s: 1.0,
        };
        machine.compute = vec![known(q4, experts, 8192), known(q6, experts, 4096)];
        assert_eq!(wanted(&uses, &machine, false), [uses[2], uses[3], uses[4]]);
        assert_eq!(wanted(&uses, &machine, true).len(), 4);
    }
}
