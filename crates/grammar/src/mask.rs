use llguidance::toktrie::SimpleVob;

/// Bits per word of a [`SimpleVob`].
const WORD_BITS: usize = 32;

/// Which tokens may come next.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    bits: &'a SimpleVob,
}

impl<'a> Mask<'a> {
    pub(crate) fn new(bits: &'a SimpleVob) -> Self {
        Self { bits }
    }

    /// Whether `token` may come next; never if the vocabulary has no such token.
    #[must_use]
    pub fn allows(&self, token: u32) -> bool {
        (token as usize) < self.bits.len() && self.bits.is_allowed(token)
    }

    /// The allowed tokens, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + 'a {
        self.bits.iter()
    }

    /// Sets the logits of all tokens that may not come next to negative infinity; those beyond the
    /// vocabulary too.
    pub fn apply(&self, logits: &mut [f32]) {
        let known = self.bits.len().min(logits.len());
        let (known, beyond) = logits.split_at_mut(known);
        beyond.fill(f32::NEG_INFINITY);
        for (&word, logits) in self.bits.as_slice().iter().zip(known.chunks_mut(WORD_BITS)) {
            match word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => logits
                    .iter_mut()
                    .enumerate()
                    .filter(|(bit, _)| word & (1 << bit) == 0)
                    .for_each(|(_, logit)| *logit = f32::NEG_INFINITY),
            }
        }
    }
}
