//! How many tokens an answer took.

use serde_json::{Value, json};

use crate::answer::Summary;

/// Tokens of one or more answers to one or more prompts.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage {
    /// Tokens of each prompt, and how many of them were known when it was first asked.
    prompts: Vec<Option<(usize, usize)>>,
    generated: usize,
    reasoning: usize,
}

impl Usage {
    /// Counts an answer to the prompt at this place. A prompt counts once, however many answers it
    /// gets.
    pub(super) fn add(&mut self, prompt: usize, summary: &Summary) {
        if self.prompts.len() <= prompt {
            self.prompts.resize(prompt + 1, None);
        }
        if let Some(known) = self.prompts.get_mut(prompt) {
            let reused = known.map_or(summary.reused_tokens, |(_, r)| r.min(summary.reused_tokens));
            *known = Some((summary.prompt_tokens, reused));
        }
        self.generated += summary.generated_tokens;
        self.reasoning += summary.reasoning_tokens;
    }

    /// The object `usage`.
    pub(super) fn json(&self) -> Value {
        let prompts = || self.prompts.iter().flatten();
        let prompt: usize = prompts().map(|(tokens, _)| tokens).sum();
        let cached: usize = prompts().map(|(_, reused)| reused).sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": self.generated,
            "total_tokens": prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::blocks::tests::summary;
    use super::*;
    use crate::answer::Finish;

    #[test]
    fn a_prompt_counts_once() {
        let mut usage = Usage::default();
        let first = Summary { reused_tokens: 0, ..summary(Finish::Stop) };
        usage.add(0, &first);
        usage.add(0, &summary(Finish::Stop));
        usage.add(1, &summary(Finish::Stop));
        let expected = json!({
            "prompt_tokens": 20,
            "completion_tokens": 21,
            "total_tokens": 41,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 6},
        });
        assert_eq!(usage.json(), expected);
    }
}
