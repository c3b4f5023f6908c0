//! A sequence of the context, and what is in it.

use hypura_llama::{Context, Token};

use super::active::Active;
use crate::attention::{Attention, KvUse, Restored, Track};

/// A sequence.
pub(super) struct Slot {
    pub(super) seq: i32,
    pub(super) tokens: Vec<Token>,
    /// Whether the state holds these tokens and no other ones.
    whole: bool,
    /// Whether no other sequence had state when this one's was made: its cells are those of a
    /// context of its own.
    pub(super) is_alone: bool,
    /// Whose state it is.
    pub(super) tenant: String,
    /// What of it is kept elsewhere.
    pub(super) track: Option<Track>,
    /// What is answered in it.
    pub(super) active: Option<Box<Active>>,
    /// When it was used last, in requests.
    pub(super) used_at: u64,
}

impl Slot {
    pub(super) fn new(seq: i32, attention: Option<&Attention>, tenant: &str) -> Slot {
        Slot {
            seq,
            tokens: Vec::new(),
            whole: true,
            is_alone: true,
            tenant: tenant.to_owned(),
            track: attention.map(|attention| attention.track(seq, tenant)),
            active: None,
            used_at: 0,
        }
    }

    /// Whether nothing is answered in it.
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_none()
    }

    /// How many tokens it shares with a prompt of this tenant.
    pub(super) fn shared(&self, prompt: &[Token], tenant: &str) -> usize {
        if self.tenant != tenant {
            return 0;
        }
        self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count()
    }

    /// Cuts the state back to what it shares with `prompt`, less the last token, whose logits are
    /// needed. Returns how many tokens stay.
    /// What is kept elsewhere is restored if that is more.
    pub(super) fn keep_prefix(
        &mut self,
        context: &mut Context,
        attention: Option<&mut Attention>,
        prompt: &[Token],
        tenant: &str,
        usage: &mut KvUse,
    ) -> usize {
        if self.tenant != tenant {
            self.clear(context);
            tenant.clone_into(&mut self.tenant);
            self.track = attention.as_ref().map(|attention| attention.track(self.seq, tenant));
        }
        let shared = self.shared(prompt, tenant).min(prompt.len() - 1);
        let kept = if self.can_keep(context, shared) { shared } else { 0 };
        let Some(attention) = attention else {
            self.cut(context, None, shared);
            return self.tokens.len();
        };
        let restored = match &mut self.track {
            Some(track) => attention.restore(track, context, prompt, kept, usage),
            None => Restored::Nothing,
        };
        match restored {
            Restored::Nothing => self.cut(context, Some(attention), shared),
            Restored::Tokens(n) => {
                self.tokens = prompt[..n].to_vec();
                self.whole = true;
                if usage.lost_blocks > 0 {
                    tracing::warn!(
                        "some of the attention state that was kept is missing or damaged; \
                         it is computed again"
                    );
                }
            }
        }
        self.tokens.len()
    }

    /// Forgets all tokens from `keep` on; all of them when the model's state can't be cut, or when
    /// layers with a sliding window have forgotten what the next token looks back at.
    fn cut(&mut self, context: &mut Context, attention: Option<&Attention>, keep: usize) {
        let untouched = keep == self.tokens.len() && self.whole;
        let is_cut = keep > 0 && (untouched || context.forget(self.seq, position(keep), -1));
        if is_cut && self.has_window(context, keep) {
            if let (Some(attention), Some(track)) = (attention, &mut self.track) {
                attention.cut(track, &self.tokens, keep);
            }
            self.tokens.truncate(keep);
        } else {
            self.clear(context);
        }
        self.whole = true;
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self, context: &mut Context) {
        if !context.is_released() {
            context.forget(self.seq, -1, -1);
        }
        self.cleared();
    }

    /// Everything was forgotten.
    pub(super) fn cleared(&mut self) {
        self.tokens.clear();
        self.whole = true;
        self.is_alone = true;
        if let Some(track) = &mut self.track {
            track.cleared();
        }
    }

    /// A computation failed: part of it may be in the state, and goes.
    pub(super) fn mend(&mut self, context: &mut Context, attention: Option<&Attention>) {
        self.whole = false;
        self.cut(context, attention, self.tokens.len());
    }

    /// Whether the first `keep` tokens can stay without the others.
    fn can_keep(&self, context: &Context, keep: usize) -> bool {
        let info = context.model().info();
        let untouched = keep == self.tokens.len() && self.whole;
        keep > 0
            && (untouched || !info.is_recurrent && !info.is_hybrid)
            && self.has_window(context, keep)
    }

    /// Whether layers with a sliding window still have what a token at `keep` looks back at.
    fn has_window(&self, context: &Context, keep: usize) -> bool {
        let n_swa = context.model().info().n_swa as usize;
        let first = || context.first_position(self.seq);
        n_swa == 0
            || usize::try_from(first()).is_ok_and(|first| first <= keep.saturating_sub(n_swa))
    }

    /// Whether all of it can be read back.
    pub(super) fn is_kept(&self, attention: &Attention) -> bool {
        let has_all = |track| attention.has_all(track, &self.tokens);
        self.tokens.is_empty() || self.track.as_ref().is_some_and(has_all)
    }
}

/// As llama.cpp counts.
pub(super) fn position(i: usize) -> i32 {
    i32::try_from(i).unwrap_or(i32::MAX)
}
