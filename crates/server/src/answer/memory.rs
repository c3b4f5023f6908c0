//! What was said, as text and as tokens.
//!
//! Clients send the whole conversation again with each request, as text, and text can be cut into
//! tokens in more than one way: a model does not always choose those that a tokenizer would. So the
//! tokens of what was said are remembered with their text. A later prompt gets the tokens that its
//! beginning came as, up to the last place where both texts are the same and text is always cut (a
//! control token, or an end of what was said); from there on it is tokenized. So the attention state
//! of answers is found again, and where a template changes what was said before (it drops old
//! reasoning), what follows is tokenized as if nothing was known.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use hypura_engine::llama::Token;

use crate::models::Runner;

/// Conversations that are remembered at most, of all tenants of a model.
const ENTRIES_MAX: usize = 512;
/// Bytes that they take at most, tokens included.
const BYTES_MAX: usize = 64 << 20;

/// What was said lately to a model, and by it.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// How many entries each tenant has.
    tenants: HashMap<String, usize>,
}

#[derive(Debug)]
struct Entry {
    tenant: String,
    text: String,
    tokens: Vec<Token>,
    /// Places where text is always cut: bytes of text before, tokens before; in order.
    cuts: Vec<(usize, usize)>,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.text.len() + 4 * self.tokens.len() + 16 * self.cuts.len() + self.tenant.len() + 128
    }
}

impl Memory {
    /// Tokens of a text, which begins as the model's template begins it: what is remembered of its
    /// beginning, and new ones.
    pub(crate) fn tokenize(
        &self,
        runner: &dyn Runner,
        tenant: &str,
        text: &str,
        add_special: bool,
    ) -> Vec<Token> {
        if let Some((tokens, bytes)) = self.longest(tenant, text) {
            let rest = &text[bytes..];
            let new = runner.tokenize(rest, false);
            // Some tokenizers put a space in front of what they are given.
            if runner.spells(&new, rest) {
                return [tokens, new].concat();
            }
        }
        runner.tokenize(text, add_special)
    }

    /// The tokens of the longest known beginning of a text, and its bytes.
    fn longest(&self, tenant: &str, text: &str) -> Option<(Vec<Token>, usize)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let own = inner.entries.iter().filter(|entry| entry.tenant == tenant);
        let cuts = own.filter_map(|entry| {
            let same = common(entry.text.as_bytes(), text.as_bytes());
            let at = entry.cuts.partition_point(|&(bytes, _)| bytes <= same);
            entry.cuts[..at].last().map(|&cut| (entry, cut))
        });
        let (entry, (bytes, tokens)) = cuts.max_by_key(|(_, (bytes, _))| *bytes)?;
        (bytes > 0).then(|| (entry.tokens[..tokens].to_vec(), bytes))
    }

    /// Remembers that `text` came as `tokens`: a prompt of `prompt_bytes` and `prompt_tokens`, and
    /// what was answered.
    pub(crate) fn remember(
        &self,
        runner: &dyn Runner,
        tenant: &str,
        text: String,
        tokens: Vec<Token>,
        prompt: (usize, usize),
    ) {
        let Some(cuts) = cuts(runner, &text, &tokens, prompt) else { return };
        let entry = Entry { tenant: tenant.to_owned(), text, tokens, cuts };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // What this one continues says nothing more.
        let replaced = inner.entries.iter().position(|old| {
            old.tenant == entry.tenant
                && entry.text.starts_with(&old.text)
                && entry.tokens.starts_with(&old.tokens)
        });
        if let Some(replaced) = replaced {
            inner.drop_entry(replaced);
        }
        inner.bytes += entry.bytes();
        *inner.tenants.entry(entry.tenant.clone()).or_default() += 1;
        inner.entries.push_back(entry);
        while inner.bytes > BYTES_MAX || inner.entries.len() > ENTRIES_MAX {
            let Some(victim) = inner.victim() else { break };
            inner.drop_entry(victim);
        }
    }
}

impl Inner {
    /// The oldest entry of whoever has most: nobody can push out what others said.
    fn victim(&self) -> Option<usize> {
        let most = self.tenants.iter().max_by_key(|(name, n)| (**n, *name))?.0;
        self.entries.iter().position(|entry| entry.tenant == *most)
    }

    fn drop_entry(&mut self, at: usize) {
        let Some(entry) = self.entries.remove(at) else { return };
        self.bytes -= entry.bytes();
        if let Some(n) = self.tenants.get_mut(&entry.tenant) {
            *n -= 1;
            if *n == 0 {
                self.tenants.remove(&entry.tenant);
            }
        }
    }
}

/// Places where the text is always cut; `None` if the tokens don't spell it.
fn cuts(
    runner: &dyn Runner,
    text: &str,
    tokens: &[Token],
    (prompt_bytes, prompt_tokens): (usize, usize),
) -> Option<Vec<(usize, usize)>> {
    let mut cuts = Vec::new();
    let mut bytes = 0;
    let mut first = true;
    for (i, &token) in tokens.iter().enumerate() {
        let piece = runner.piece(token);
        let rest = text.as_bytes().get(bytes..)?;
        if !rest.starts_with(&piece) {
            // A beginning-of-text token that the tokenizer put in front.
            if std::mem::take(&mut first) && runner.is_boundary(token) {
                continue;
            }
            return None;
        }
        first = false;
        bytes += piece.len();
        let is_end = i + 1 == tokens.len() || i + 1 == prompt_tokens && bytes == prompt_bytes;
        if (is_end || runner.is_boundary(token)) && text.is_char_boundary(bytes) {
            cuts.push((bytes, i + 1));
        }
    }
    (bytes == text.len()).then_some(cuts)
}

/// Bytes that both begin with.
fn common(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 256;
    let whole = a.chunks(STEP).zip(b.chunks(STEP)).take_while(|(a, b)| a == b);
    let done: usize = whole.map(|(a, b)| a.len().min(b.len())).sum();
    let rest = a.iter().skip(done).zip(b.iter().skip(done));
    done + rest.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_beginnings_are_counted() {
        let long = vec![7_u8; 1000];
        let mut other = long.clone();
        other[600] = 1;
        for (a, b, n) in [
            (&long[..], &long[..], 1000),
            (&long, &other, 600),
            (&long[..300], &long, 300),
            (b"", &long, 0),
            (b"ab", b"ac", 1),
        ] {
            assert_eq!(common(a, b), n);
            assert_eq!(common(b, a), n);
        }
    }
}
