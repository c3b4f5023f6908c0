//! Body of a fuzz test: given any bytes, it must neither panic, hang, nor take memory out of
//! proportion. `fuzz/` runs it under cargo-fuzz, `tests/fuzz.rs` on mutated rules in every build.

use std::sync::LazyLock;

use crate::{Constraint, ConstraintError, Rule, TokenText, Vocabulary};

/// Tokens of a text at most.
const STEPS: usize = 40;
/// The token that ends.
const END: u32 = 256;

/// All bytes, an end, and a few longer tokens.
static VOCABULARY: LazyLock<Option<Vocabulary>> = LazyLock::new(|| {
    let mut tokens: Vec<TokenText> = (0..=255).map(|byte| TokenText::Text(vec![byte])).collect();
    tokens.push(TokenText::Control(b"<|end|>".to_vec()));
    tokens.extend(
        ["{\"", "\": \"", "\",\n  ", "<|end|>", "aaaaaaaaaa"]
            .map(|text| TokenText::Text(text.as_bytes().to_vec())),
    );
    Vocabulary::new(tokens, END, &[]).ok()
});

/// Reads `data` as a rule, whose kind the first byte chooses, and writes a text by it, in which the
/// same bytes choose among the allowed tokens.
///
/// # Panics
/// If a token that the mask allows is refused, or the library panicked.
pub fn fuzz_rule(data: &[u8]) {
    let (Some(vocabulary), Some((kind, text))) = (&*VOCABULARY, data.split_first()) else { return };
    let text_lossy = String::from_utf8_lossy(text).into_owned();
    let rule = match kind % 3 {
        0 => match serde_json::from_slice(text) {
            Ok(schema) => Rule::JsonSchema(schema),
            Err(_) => return,
        },
        1 => Rule::Regex(text_lossy),
        _ => Rule::Lark(text_lossy),
    };
    match Constraint::new(vocabulary, &rule) {
        Ok(mut constraint) => write(&mut constraint, text),
        Err(error) => check_failure(&error),
    }
}

fn write(constraint: &mut Constraint, choices: &[u8]) {
    for &choice in choices.iter().cycle().take(STEPS) {
        let may_end = constraint.may_end();
        let mask = match constraint.mask() {
            Ok(mask) => mask,
            Err(error) => return check_failure(&error),
        };
        assert_eq!(mask.allows(END), may_end, "the mask and the end differ");
        let count = mask.iter().count();
        let Some(token) = mask.iter().nth(usize::from(choice) % count.max(1)) else {
            panic!("a mask allows nothing");
        };
        match constraint.accept(token) {
            Ok(()) => {}
            Err(ConstraintError::Refused { token }) => panic!("{token} was allowed, and refused"),
            Err(error) => return check_failure(&error),
        }
    }
}

fn check_failure(error: &ConstraintError) {
    if let ConstraintError::Failed { reason } = error {
        assert!(!reason.starts_with("panic: "), "{reason}");
    }
}
