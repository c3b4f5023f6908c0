//! Ids of tool calls: nine letters and digits, the only form that every template takes (Mistral's
//! refuse others). They are hashes, so that the same text gives the same ids.

use std::fmt::Write as _;

/// Letters and digits of an id.
const LENGTH: usize = 9;

/// FNV-1a, 64 bits (RFC 9923). Nothing depends on its strength.
pub(crate) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The id of the call `index` of an answer to a prompt with this hash.
pub(crate) fn of_call(prompt: u64, index: usize) -> String {
    write(hash(prompt, &index.to_le_bytes()))
}

/// A short id in place of another; one that is short already stays.
pub(crate) fn short(id: &str) -> String {
    if id.len() == LENGTH && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    write(hash(0, id.as_bytes()))
}

fn write(mut hash: u64) -> String {
    const DIGITS: u64 = 36;
    let mut id = String::with_capacity(LENGTH);
    for _ in 0..LENGTH {
        let digit = u32::try_from(hash % DIGITS).ok().and_then(|digit| char::from_digit(digit, 36));
        // A digit of base 36 always is one.
        let _ = write!(id, "{}", digit.unwrap_or('0'));
        hash /= DIGITS;
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_stable() {
        assert_eq!(short("abcdefgh1"), "abcdefgh1");
        assert_eq!(short("call_1"), short("call_1"));
        assert_ne!(short("call_1"), short("call_2"));
        assert_ne!(of_call(1, 0), of_call(1, 1));
        assert_eq!(of_call(1, 0).len(), 9);
    }
}
