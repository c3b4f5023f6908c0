//! Who is compared: the policies, with the settings that are worth a row.

use hypura_engine::tier::{Coactivation, Learned, Replacement, Source, Trace, half_life_tokens};

/// Half-lives of LRFU, in tokens.
const HALF_LIVES: [f64; 6] = [16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];
/// Tokens from which pins are learned.
const LEARN_TOKENS: u32 = 64;

/// A policy of a comparison.
pub(super) struct Candidate {
    pub(super) name: String,
    /// In a picture there is one line for each family: that of its best member.
    pub(super) family: &'static str,
    replacement: Wanted,
}

enum Wanted {
    Fixed(Replacement),
    /// Pins of what the other traces used most.
    PinsOfOthers {
        share: f64,
        half_life_tokens: Option<f64>,
    },
}

impl Candidate {
    fn new(family: &'static str, replacement: Replacement) -> Self {
        Self { name: replacement.name(), family, replacement: Wanted::Fixed(replacement) }
    }

    fn of_others(share: f64, half_life_tokens: Option<f64>) -> Self {
        let pins =
            Replacement::Pins { learned: Learned::FromUses(Vec::new()), share, half_life_tokens };
        let replacement = Wanted::PinsOfOthers { share, half_life_tokens };
        Self { name: pins.name(), family: "pins", replacement }
    }

    /// The policy for one of `traces`, which starts empty.
    pub(super) fn alone(&self, traces: &[Trace], index: usize) -> Replacement {
        match &self.replacement {
            Wanted::Fixed(replacement) => replacement.clone(),
            Wanted::PinsOfOthers { share, half_life_tokens } => {
                let others = traces.iter().enumerate().filter(|(other, _)| *other != index);
                let mut uses: Vec<u64> = Vec::new();
                for (_, trace) in others {
                    let more = trace.unit_uses();
                    uses.resize(more.len(), 0);
                    uses.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                }
                Replacement::Pins {
                    learned: Learned::FromUses(uses),
                    share: *share,
                    half_life_tokens: *half_life_tokens,
                }
            }
        }
    }

    /// The policy for all traces in a row; `None` if there would be no others to learn from.
    pub(super) fn in_a_row(&self) -> Option<Replacement> {
        match &self.replacement {
            Wanted::Fixed(replacement) => Some(replacement.clone()),
            Wanted::PinsOfOthers { .. } => None,
        }
    }
}

/// All policies that are compared; pins of others only if there are others. What is compared for
/// something else than its half-life, or period of halving, has the one that is built in.
pub(super) fn candidates(traces: &[Trace]) -> Vec<Candidate> {
    let shape = traces[0].shape();
    let half_life_tokens = half_life_tokens(shape.n_experts, shape.top_k);
    let period_tokens = half_life_tokens;
    let mut all = vec![
        Candidate::new("LRU", Replacement::Lru),
        Candidate::new("LFU", Replacement::Lfu),
        Candidate::new("LFU", Replacement::AgedLfu { period_tokens }),
    ];
    all.extend(
        HALF_LIVES
            .map(|half_life_tokens| Candidate::new("LRFU", Replacement::Lrfu { half_life_tokens })),
    );
    // A model whose pairs are too many to count goes without that row.
    let has_pairs = Coactivation::new(shape, Source::TokenBefore).is_ok();
    for with_pairs in [false, true].into_iter().filter(|with| has_pairs || !with) {
        let own = Replacement::OwnLayerFirst { half_life_tokens, with_pairs };
        all.push(Candidate::new("own layer first", own));
    }
    all.push(Candidate::new("SLRU", Replacement::Slru { protected_share: 0.5 }));
    all.push(Candidate::new("LFRU", Replacement::Lfru { privileged_share: 0.2, period_tokens }));
    let half_life = Some(half_life_tokens);
    for half_life_tokens in [None, half_life] {
        let learned = Learned::FromStart { tokens: LEARN_TOKENS };
        let pins = Replacement::Pins { learned, share: 0.5, half_life_tokens };
        all.push(Candidate::new("pins", pins));
    }
    if traces.len() > 1 {
        all.push(Candidate::of_others(0.5, None));
        all.push(Candidate::of_others(0.5, half_life));
    }
    all
}
