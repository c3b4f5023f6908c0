use std::fmt;

use llguidance::Matcher;
use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::toktrie::SimpleVob;

use crate::error::ConstraintError;
use crate::mask::Mask;
use crate::rule::Rule;
use crate::stack::with_stack;
use crate::vocabulary::Vocabulary;

/// A rule applied to one text, token by token.
pub struct Constraint {
    vocabulary: Vocabulary,
    matcher: Matcher,
    mask: SimpleVob,
    ignored: Vec<String>,
}

impl Constraint {
    /// Compiles `rule`. That takes milliseconds for an ordinary schema and up to a second for the
    /// largest: no work for a thread that others wait for.
    ///
    /// # Errors
    /// [`ConstraintError::Invalid`] and [`ConstraintError::TooComplex`], both the rule's fault.
    pub fn new(vocabulary: &Vocabulary, rule: &Rule) -> Result<Self, ConstraintError> {
        with_stack(|| {
            let written = rule.write()?;
            let mut matcher = compile(vocabulary, written.grammar)?;
            let mut ignored = written.ignored;
            ignored.extend(matcher.grammar_warnings());
            Ok(Self { vocabulary: vocabulary.clone(), matcher, mask: SimpleVob::new(), ignored })
        })
    }

    /// What of a schema is not enforced, in sentences for its author; empty if all of it is.
    #[must_use]
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Which tokens may come next: bit i is token i. End tokens are among them when the text may
    /// end here, and nothing else is when it must.
    ///
    /// # Errors
    /// [`ConstraintError::Failed`] if no token may come, or a limit per token was reached.
    pub fn mask(&mut self) -> Result<Mask<'_>, ConstraintError> {
        self.mask = next(&mut self.matcher, &self.vocabulary)
            .map_err(|message| ConstraintError::failed(&message))?;
        Ok(Mask::new(&self.mask))
    }

    /// Continues the text by `token`.
    ///
    /// # Errors
    /// [`ConstraintError::Refused`] if the mask doesn't allow the token; the constraint is as
    /// before then. [`ConstraintError::Failed`] as for [`Self::mask`].
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        let refused = ConstraintError::Refused { token };
        if token as usize >= self.vocabulary.tokens() {
            return Err(refused);
        }
        if self.must_end() {
            return if self.vocabulary.ends().contains(&token) { Ok(()) } else { Err(refused) };
        }
        match self.matcher.try_consume_tokens(&[token]) {
            Ok(0) => Err(refused),
            Ok(_) => Ok(()),
            Err(error) => Err(ConstraintError::failed(&error.to_string())),
        }
    }

    /// Whether the text may end here; never after a failure.
    pub fn may_end(&mut self) -> bool {
        may_end(&mut self.matcher)
    }

    /// Whether only end tokens may come; never after a failure.
    pub fn must_end(&mut self) -> bool {
        must_end(&self.matcher)
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint")
            .field("vocabulary", &self.vocabulary)
            .field("ignored", &self.ignored)
            .finish_non_exhaustive()
    }
}

fn compile(vocabulary: &Vocabulary, grammar: TopLevelGrammar) -> Result<Matcher, ConstraintError> {
    let parser = vocabulary
        .factory()
        .create_parser(grammar)
        .map_err(|error| ConstraintError::refused_rule(&format!("{error:#}")))?;
    let mut matcher = Matcher::new(Ok(parser));
    // A rule that only the empty text obeys is noticed at a token, even at none; a rule that no
    // text obeys, at a mask.
    matcher
        .consume_tokens(&[])
        .map_err(|error| format!("{error:#}"))
        .and_then(|()| next(&mut matcher, vocabulary))
        .map_err(|message| ConstraintError::refused_rule(&message))?;
    Ok(matcher)
}

/// The tokens that may come next, or what `llguidance` says. A grammar may name an end token, or
/// any token, but that isn't where the text ends: there `llguidance` takes no end token either.
fn next(matcher: &mut Matcher, vocabulary: &Vocabulary) -> Result<SimpleVob, String> {
    let mut mask = matcher.compute_mask_or_eos().map_err(|error| format!("{error:#}"))?;
    if !may_end(matcher) {
        vocabulary.ends().iter().for_each(|&end| mask.disallow_token(end));
        if mask.is_zero() {
            return Err("it asks for an end token before its end".to_owned());
        }
    }
    Ok(mask)
}

fn may_end(matcher: &mut Matcher) -> bool {
    must_end(matcher) || matcher.is_accepting().unwrap_or(false)
}

fn must_end(matcher: &Matcher) -> bool {
    matches!(matcher.stop_reason(), StopReason::NoExtension | StopReason::EndOfSentence)
}
