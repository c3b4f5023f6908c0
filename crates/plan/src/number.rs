//! Arithmetic on sizes that come from files and may be absurd: it saturates, and an absurd size then
//! fits no budget.

/// The product, at most `u64::MAX`.
pub(crate) fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

/// The sum, at most `u64::MAX`.
pub(crate) fn total(terms: impl IntoIterator<Item = u64>) -> u64 {
    terms.into_iter().fold(0, u64::saturating_add)
}

/// `value` rounded up to a multiple of `to`, at most `u64::MAX`.
pub(crate) fn pad(value: u64, to: u64) -> u64 {
    value.div_ceil(to).saturating_mul(to)
}
