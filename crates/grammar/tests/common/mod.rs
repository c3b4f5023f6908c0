//! A small vocabulary, and ways to run a constraint.
#![allow(dead_code, reason = "each test file uses a part")]

use hypura_grammar::{Constraint, ConstraintError, Rule, TokenText, Vocabulary};

/// The token that ends.
pub(crate) const END: u32 = 256;
/// Another one.
pub(crate) const END_OF_TURN: u32 = 257;
/// A control token named `<tool_call>`.
pub(crate) const TOOL_CALL: u32 = 258;
/// A number without a meaning.
pub(crate) const UNUSED: u32 = 259;
/// Plain text that spells `<tool_call>`.
pub(crate) const SPELLED: u32 = 260;

/// All bytes as tokens of the same number, special tokens, and some longer tokens.
pub(crate) fn vocabulary() -> Vocabulary {
    let words = ["{\"", "\": ", "\": \"", "\", \"", "\"}", ", ", "true", "null", "}}", "]}", "00"];
    let mut tokens: Vec<TokenText> = (0..=255).map(|byte| TokenText::Text(vec![byte])).collect();
    tokens.push(TokenText::Control(b"<|end|>".to_vec()));
    tokens.push(TokenText::Control(b"<|turn|>".to_vec()));
    tokens.push(TokenText::Control(b"<tool_call>".to_vec()));
    tokens.push(TokenText::Unused);
    tokens.push(TokenText::Text(b"<tool_call>".to_vec()));
    tokens.extend(words.iter().map(|word| TokenText::Text(word.as_bytes().to_vec())));
    // A character of four bytes, halved.
    tokens.push(TokenText::Text(vec![0xf0, 0x9f]));
    tokens.push(TokenText::Text(vec![0x98, 0x80]));
    Vocabulary::new(tokens, END, &[END_OF_TURN]).expect("a vocabulary")
}

pub(crate) fn constraint(rule: &Rule) -> Constraint {
    Constraint::new(&vocabulary(), rule).unwrap_or_else(|error| panic!("{rule:?}: {error}"))
}

pub(crate) fn refused(rule: &Rule) -> ConstraintError {
    match Constraint::new(&vocabulary(), rule) {
        Ok(_) => panic!("{rule:?} was not refused"),
        Err(error) => error,
    }
}

/// How far `text` is accepted, byte by byte, each of which is allowed by the mask if and only if
/// it is accepted; and whether the text may end there.
pub(crate) fn accepted<'a>(constraint: &mut Constraint, text: &'a str) -> (&'a str, bool) {
    for (at, &byte) in text.as_bytes().iter().enumerate() {
        let token = u32::from(byte);
        let allowed = constraint.mask().expect("a mask").allows(token);
        let result = constraint.accept(token);
        assert_eq!(result.is_ok(), allowed, "{token} after {:?}: {result:?}", &text[..at]);
        if !allowed {
            return (&text[..at], constraint.may_end());
        }
    }
    (text, constraint.may_end())
}

/// Xorshift (Marsaglia, 2003), of 64 bits.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).expect("below a usize")
    }
}
