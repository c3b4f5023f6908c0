//! Token sequences for tests.
//!
//! A random model falls into repeating one token, and with it one set of experts. Tests of
//! streaming therefore force a varied sequence on the model instead of letting it speak.

use crate::rng::Rng;

/// `n` tokens below `n_vocab`, always the same for a seed.
///
/// Tokens are drawn uniformly, except that every fourth or so repeats one of the last eight:
/// neither the routing nor an n-gram is ever constant, and still something can hit a cache.
///
/// # Panics
/// When `n_vocab` is 0 or does not fit an `i32`, as llama.cpp counts tokens.
#[must_use]
pub fn forced_tokens(seed: u64, n: usize, n_vocab: usize) -> Vec<i32> {
    const REPEAT_FROM: u32 = 8;
    assert!(n_vocab > 0, "a vocabulary has tokens");
    let limit = u32::try_from(i32::try_from(n_vocab).expect("token ids fit an i32")).unwrap_or(0);
    let mut rng = Rng::stream(seed, 0x7e47);
    let mut tokens: Vec<i32> = Vec::with_capacity(n);
    for _ in 0..n {
        let is_repeat = rng.below(4) == 0;
        let fresh = i32::try_from(rng.below(limit)).unwrap_or(0);
        let back = rng.below(REPEAT_FROM) as usize;
        let earlier = tokens.iter().rev().nth(back).copied();
        tokens.push(earlier.filter(|_| is_repeat).unwrap_or(fresh));
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_fixed_varied_and_in_range() {
        let tokens = forced_tokens(7, 512, 256);
        assert_eq!(tokens, forced_tokens(7, 512, 256));
        assert_ne!(tokens, forced_tokens(8, 512, 256));
        assert_eq!(tokens[..64], forced_tokens(7, 64, 256)[..], "a longer one goes on");
        assert!(tokens.iter().all(|t| (0..256).contains(t)));
        let mut distinct = tokens.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() > 150, "{}", distinct.len());
        let repeats = tokens.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((1..64).contains(&repeats), "{repeats}");
    }
}
