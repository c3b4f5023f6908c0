//! Reading blocks back into a context.

use std::time::{Duration, Instant};

use hypura_kv::{Found, FoundBlock, Tier, Want};
use hypura_llama::{Context, ImportBytes, StateError, Token};

use super::{Attention, Track};

/// A damaged block may hide a shorter prefix that is sound: so often that is looked for.
const ATTEMPTS_MAX: usize = 4;
/// Blocks on their way to the drive share their memory with those on their way back.
const FLUSH_AT_MOST: Duration = Duration::from_secs(2);

/// What the tiers did for a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct KvUse {
    /// Tokens that the tiers know, from the prompt's beginning.
    pub known_tokens: usize,
    /// Tokens that were restored.
    pub restored_tokens: usize,
    /// Of these, from memory.
    pub hot_tokens: usize,
    /// Of these, from files.
    pub cold_tokens: usize,
    /// Bytes read from files.
    pub read_bytes: u64,
    /// Bytes copied from memory.
    pub copied_bytes: u64,
    /// Time for restoring.
    pub restore_time: Duration,
    /// Whether computing was expected to be faster than restoring.
    pub declined: bool,
    /// Seconds that restoring was expected to take.
    pub expected_restore_s: f64,
    /// Seconds that computing the same tokens was expected to take.
    pub expected_compute_s: f64,
    /// Blocks that were missing or damaged when they were read.
    pub lost_blocks: usize,
    /// Time that prompt and answer waited while their state was taken out of the context.
    pub export_time: Duration,
}

/// What a restoration left in the context.
pub(crate) enum Restored {
    /// Nothing was changed.
    Nothing,
    /// So many tokens of the prompt are in the context, and nothing else.
    Tokens(usize),
}

/// Why a restoration ended early.
enum Trouble {
    /// A block was not there, or not sound.
    Lost,
    /// llama.cpp refused it.
    Refused(StateError),
}

impl Attention {
    /// Restores as much of `prompt` as is known and worth it, if that is more than the first `kept`
    /// tokens, which are in the context and can stay. The last token is always left to be computed:
    /// its logits are needed.
    pub(crate) fn restore(
        &mut self,
        track: &mut Track,
        context: &mut Context,
        prompt: &[Token],
        kept: usize,
        usage: &mut KvUse,
    ) -> Restored {
        let want = Want {
            checkpoint: self.shape.needs_checkpoint(),
            tokens_max: prompt.len().saturating_sub(1),
        };
        let begin = Instant::now();
        let mut changed = false;
        let mut done = kept;
        for _ in 0..ATTEMPTS_MAX {
            if self.failed {
                break;
            }
            let found = self.store.find(&track.scope, prompt, want);
            usage.known_tokens = usage.known_tokens.max(found.tokens);
            if found.tokens <= done || !self.is_worth_it(&found, done, usage) {
                break;
            }
            // Windows and checkpoints belong to one history: begin at the beginning.
            let from = match self.is_windowed || self.shape.needs_checkpoint() {
                true => 0,
                false => found
                    .blocks
                    .iter()
                    .map(|block| block.from as usize)
                    .filter(|&from| from <= done)
                    .max()
                    .unwrap_or(0),
            };
            let is_cut =
                from > 0 && context.forget(track.seq, i32::try_from(from).unwrap_or(0), -1);
            let from = if is_cut { from } else { 0 };
            if from == 0 {
                context.forget(track.seq, -1, -1);
            }
            changed = true;
            match self.read(track.seq, context, prompt, &found, from, usage) {
                Ok(tokens) => {
                    done = tokens;
                    self.restored(track, &prompt[..done], found.blocks.last());
                    break;
                }
                Err((tokens, trouble)) => {
                    usage.lost_blocks += 1;
                    done = tokens;
                    if self.shape.needs_checkpoint() {
                        context.forget(track.seq, -1, -1);
                        done = 0;
                    }
                    self.restored(track, &prompt[..done], None);
                    if let Trouble::Refused(error) = trouble {
                        self.fail(&error);
                    }
                }
            }
        }
        if !changed {
            return Restored::Nothing;
        }
        usage.restore_time = begin.elapsed();
        usage.restored_tokens = done;
        self.rates.read(usage.read_bytes, usage.restore_time);
        Restored::Tokens(done)
    }

    fn is_worth_it(&self, found: &Found, kept: usize, usage: &mut KvUse) -> bool {
        let kept = if self.is_windowed { 0 } else { kept };
        let needed = found.blocks.iter().filter(|b| (b.from + b.used_tokens) as usize > kept);
        let all: Vec<&FoundBlock> = needed.chain(&found.checkpoint).collect();
        let of = |is_cold: bool| all.iter().filter(move |b| (b.tier == Tier::Cold) == is_cold);
        let bytes = |is_cold: bool| of(is_cold).map(|block| block.bytes).sum::<u64>();
        let restore_s = self.rates.restore_s(of(true).count(), bytes(true), bytes(false));
        let compute_s = self.rates.compute_s(found.tokens - kept);
        usage.expected_restore_s = restore_s;
        usage.expected_compute_s = compute_s;
        usage.declined = restore_s >= compute_s && !self.options.always_restore;
        !usage.declined
    }

    /// Reads what was found beyond the first `from` tokens. On trouble also says how many tokens are
    /// in the context then.
    fn read(
        &mut self,
        seq: i32,
        context: &mut Context,
        prompt: &[Token],
        found: &Found,
        from: usize,
        usage: &mut KvUse,
    ) -> Result<usize, (usize, Trouble)> {
        self.store.flush(FLUSH_AT_MOST);
        let mut done = from;
        let mut fetch = self.store.fetch(found, from);
        for block in found.blocks.iter().filter(|b| (b.from + b.used_tokens) as usize > from) {
            let used = block.used_tokens as usize;
            let fetched = match fetch.next() {
                Some(Ok(fetched)) if fetched.key == block.key => fetched,
                _ => return Err((done, Trouble::Lost)),
            };
            if fetched.tokens().get(..used) != prompt.get(done..done + used)
                || fetched.from as usize != done
            {
                return Err((done, Trouble::Lost));
            }
            let mut bytes = ImportBytes::new(fetched.payload());
            context
                .import_tokens(&self.shape, seq, &mut bytes, done, used)
                .map_err(|error| (done, Trouble::Refused(error)))?;
            usage.count(fetched.tier, used, block.bytes);
            done += used;
        }
        if found.checkpoint.is_some() {
            match fetch.next() {
                Some(Ok(fetched)) if fetched.from as usize == done => {
                    context
                        .import_checkpoint(&self.shape, seq, fetched.payload())
                        .map_err(|error| (0, Trouble::Refused(error)))?;
                    usage.count(fetched.tier, 0, fetched.payload().len() as u64);
                }
                _ => return Err((0, Trouble::Lost)),
            }
        }
        Ok(done)
    }
}

impl KvUse {
    fn count(&mut self, tier: Tier, tokens: usize, bytes: u64) {
        if tier == Tier::Cold {
            self.cold_tokens += tokens;
            self.read_bytes += bytes;
        } else {
            self.hot_tokens += tokens;
            self.copied_bytes += bytes;
        }
    }
}
