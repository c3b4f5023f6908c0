//! An engine that fails on purpose.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::{Completion, QueueFull, ReadEngine, ReadError, ReadRequest, ReadStats, Wait};

/// What a [`FaultEngine`] does to the requests that pass through it.
///
/// Faults depend on the seed and on the number of the request alone (the first one submitted is
/// number 0), not on timing. The default injects nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FaultPlan {
    pub seed: u64,
    /// Faults of single requests, by number; these take precedence over the rates.
    pub at: BTreeMap<u64, Fault>,
    /// Share of requests, 0 to 1, that fail like a broken drive.
    pub fail_rate: f64,
    /// Share of requests, 0 to 1, that end too early.
    pub short_rate: f64,
    /// Share of requests, 0 to 1, that deliver one wrong bit and claim success.
    pub corrupt_rate: f64,
    /// Share of requests, 0 to 1, that come back `delay` late.
    pub delay_rate: f64,
    /// At least this long after submission a delayed request comes back.
    pub delay: Duration,
    /// Hands completions out in random order, and some of them later than they could be.
    pub reorder: bool,
}

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Comes back as [`ReadError::Io`] with `EIO`.
    Fail,
    /// Only the first half is read; comes back as [`ReadError::UnexpectedEof`].
    Short,
    /// One bit of the destination is flipped; comes back as a success.
    Corrupt,
}

/// Wraps a [`ReadEngine`] and injects the faults of a [`FaultPlan`].
#[derive(Debug)]
pub struct FaultEngine<E> {
    inner: E,
    plan: FaultPlan,
    /// Requests accepted; also the tag under which the inner engine knows the next one.
    submitted: u64,
    /// What was changed about each request that the inner engine has.
    disguises: HashMap<u64, Disguise>,
    /// Done, but not handed out yet.
    held: Vec<Held>,
    /// Position in the random sequence that orders completions.
    order: u64,
    asked_bytes: u64,
    failed: u64,
    cancelled: u64,
}

/// A request as it was before the inner engine got it.
#[derive(Debug)]
struct Disguise {
    tag: u64,
    len: usize,
    path: PathBuf,
    fault: Option<Fault>,
    due: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    /// Not to be handed out before.
    due: Option<Instant>,
    completion: Completion,
}

/// Completions held back at most; beyond that the queue counts as full.
const HELD_MAX: usize = 4096;

/// Which random sequence a number is drawn from.
#[derive(Clone, Copy)]
enum Draw {
    Fault = 1,
    Delay,
    Bit,
    Order,
}

impl<E: ReadEngine> FaultEngine<E> {
    pub fn new(inner: E, plan: FaultPlan) -> FaultEngine<E> {
        FaultEngine {
            inner,
            plan,
            submitted: 0,
            disguises: HashMap::new(),
            held: Vec::new(),
            order: 0,
            asked_bytes: 0,
            failed: 0,
            cancelled: 0,
        }
    }

    /// The fault of request `number`, if any.
    fn fault(&self, number: u64) -> Option<Fault> {
        if let Some(&fault) = self.plan.at.get(&number) {
            return Some(fault);
        }
        let mut left = share(self.plan.seed, Draw::Fault, number);
        for (rate, fault) in [
            (self.plan.fail_rate, Fault::Fail),
            (self.plan.short_rate, Fault::Short),
            (self.plan.corrupt_rate, Fault::Corrupt),
        ] {
            if left < rate {
                return Some(fault);
            }
            left -= rate;
        }
        None
    }

    /// Takes what the inner engine has finished and makes it what the plan says.
    fn take_from_inner(&mut self, wait: Wait) {
        let mut done = Vec::new();
        self.inner.complete(&mut done, wait);
        for mut completion in done {
            let number = completion.tag;
            let Some(disguise) = self.disguises.remove(&number) else { continue };
            completion.tag = disguise.tag;
            let read = completion.len;
            completion.len = disguise.len;
            match &mut completion.result {
                Ok(()) => self.spoil(number, &disguise, read, &mut completion),
                Err(ReadError::Cancelled { len, .. }) => *len = disguise.len,
                Err(_) => {}
            }
            self.held.push(Held { due: disguise.due, completion });
        }
    }

    /// Applies the fault to a request of which the inner engine has read `read` bytes.
    fn spoil(&self, number: u64, disguise: &Disguise, read: usize, completion: &mut Completion) {
        let path = disguise.path.clone();
        let (offset, len) = (completion.offset, disguise.len);
        match disguise.fault {
            None => {}
            Some(Fault::Fail) => {
                let source = io::Error::from_raw_os_error(libc::EIO);
                completion.result = Err(ReadError::Io { path, offset, len, source });
            }
            Some(Fault::Short) => {
                completion.result =
                    Err(ReadError::UnexpectedEof { path, offset, wanted: len, got: read });
            }
            Some(Fault::Corrupt) => {
                let start = completion.buffer_offset;
                let bytes = completion.buffer.as_mut_slice();
                let bytes = bytes.get_mut(start..).and_then(|rest| rest.get_mut(..len));
                let drawn = random(self.plan.seed, Draw::Bit, number);
                let at = usize::try_from((drawn >> 8) % (len.max(1) as u64)).unwrap_or(0);
                if let Some(byte) = bytes.and_then(|bytes| bytes.get_mut(at)) {
                    *byte ^= 1 << (drawn & 7);
                }
            }
        }
    }

    /// The numbers under which the inner engine has requests with this tag, in order of submission.
    fn numbers(&self, tag: u64) -> Vec<u64> {
        let with_tag = self.disguises.iter().filter(|(_, disguise)| disguise.tag == tag);
        let mut numbers: Vec<u64> = with_tag.map(|(&number, _)| number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Hands out what may be; whether that was anything.
    fn release(&mut self, out: &mut Vec<Completion>) -> bool {
        let now = Instant::now();
        let (mut ready, waiting): (Vec<Held>, Vec<Held>) =
            self.held.drain(..).partition(|held| held.due.is_none_or(|due| due <= now));
        self.held = waiting;
        if self.plan.reorder {
            self.shuffle(&mut ready);
            let keep = 1 + self.draw_order(ready.len());
            self.held.extend(ready.drain(keep.min(ready.len())..));
        }
        for held in &ready {
            match held.completion.result {
                Ok(()) => {}
                Err(ReadError::Cancelled { .. }) => self.cancelled += 1,
                Err(_) => self.failed += 1,
            }
        }
        let any = !ready.is_empty();
        out.extend(ready.into_iter().map(|held| held.completion));
        any
    }

    /// Fisher and Yates' shuffle.
    fn shuffle(&mut self, held: &mut [Held]) {
        for last in (1..held.len()).rev() {
            let other = self.draw_order(last + 1);
            held.swap(last, other);
        }
    }

    /// A number below `n`; 0 if `n` is 0.
    fn draw_order(&mut self, n: usize) -> usize {
        self.order += 1;
        let drawn = random(self.plan.seed, Draw::Order, self.order);
        usize::try_from(drawn % (n.max(1) as u64)).unwrap_or(0)
    }
}

impl<E: ReadEngine> ReadEngine for FaultEngine<E> {
    fn submit(&mut self, mut request: ReadRequest) -> Result<(), QueueFull> {
        if self.held.len() >= HELD_MAX {
            return Err(QueueFull(request));
        }
        let number = self.submitted;
        let is_sound = request.check().is_ok(); // the inner engine refuses the others by itself
        let fault = self.fault(number).filter(|_| is_sound);
        let is_late = share(self.plan.seed, Draw::Delay, number) < self.plan.delay_rate;
        let slack = request.slack;
        let disguise = Disguise {
            tag: request.tag,
            len: request.len,
            path: request.file.path().to_owned(),
            fault,
            due: is_late.then(|| Instant::now() + self.plan.delay),
        };
        request.tag = number;
        match fault {
            Some(Fault::Fail) => request.len = 0,
            Some(Fault::Short) => request.len /= 2,
            Some(Fault::Corrupt) | None => {}
        }
        // Bytes that are not read any more are no slack either.
        if request.len != disguise.len {
            request.slack.tail = 0;
        }
        if let Err(QueueFull(mut request)) = self.inner.submit(request) {
            request.tag = disguise.tag;
            request.len = disguise.len;
            request.slack = slack;
            return Err(QueueFull(request));
        }
        self.submitted += 1;
        self.asked_bytes = self.asked_bytes.saturating_add(disguise.len as u64);
        self.disguises.insert(number, disguise);
        Ok(())
    }

    fn promote(&mut self, tag: u64) {
        self.numbers(tag).into_iter().for_each(|number| self.inner.promote(number));
    }

    fn cancel(&mut self, tag: u64) {
        self.numbers(tag).into_iter().for_each(|number| self.inner.cancel(number));
    }

    fn complete(&mut self, out: &mut Vec<Completion>, wait: Wait) {
        let deadline = match wait {
            Wait::None => Some(Instant::now()),
            Wait::Forever => None,
            Wait::For(at_most) => Instant::now().checked_add(at_most),
        };
        self.take_from_inner(Wait::None);
        while !self.release(out) && self.in_flight() > 0 {
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return;
            }
            let due = self.held.iter().filter_map(|held| held.due);
            match due.chain(deadline).min().map(|until| until.saturating_duration_since(now)) {
                Some(pause) if self.inner.in_flight() == 0 => std::thread::sleep(pause),
                Some(pause) => self.take_from_inner(Wait::For(pause)),
                None => self.take_from_inner(Wait::Forever),
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len()
    }

    fn stats(&self) -> ReadStats {
        ReadStats {
            requests: self.submitted,
            asked_bytes: self.asked_bytes,
            failed: self.failed,
            cancelled: self.cancelled,
            ..self.inner.stats()
        }
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}

/// A number from 0 to below 1.
fn share(seed: u64, draw: Draw, number: u64) -> f64 {
    // 53 bits are what a double holds.
    (random(seed, draw, number) >> 11) as f64 / (1u64 << 53) as f64
}

fn random(seed: u64, draw: Draw, number: u64) -> u64 {
    mix(mix(seed ^ mix(draw as u64)).wrapping_add(number))
}

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014), a good mixer of 64 bits.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conformance::{Sample, run};
    use crate::{Access, Buffer, PoolConfig, PreadPool};

    fn faulty(plan: FaultPlan) -> FaultEngine<PreadPool> {
        FaultEngine::new(PreadPool::new(PoolConfig::default()).expect("a pool"), plan)
    }

    /// What became of `count` reads of 1000 bytes: Ok, the kind of error, or wrong bytes.
    fn outcomes(plan: FaultPlan, count: u64) -> Vec<(u64, &'static str)> {
        let sample = Sample::new(100_000);
        let file = Arc::new(sample.open(Access::Direct));
        let mut engine = faulty(plan);
        let mut out = Vec::new();
        for tag in 0..count {
            let buffer = Buffer::aligned(1000, 4096).expect("memory");
            engine.submit(ReadRequest::new(Arc::clone(&file), tag, buffer, tag)).expect("room");
        }
        while engine.in_flight() > 0 {
            engine.complete(&mut out, Wait::Forever);
        }
        let failed = out.iter().filter(|done| done.result.is_err()).count() as u64;
        assert_eq!((engine.stats().requests, engine.stats().failed), (count, failed));
        assert_eq!(engine.stats().asked_bytes, 1000 * count);
        let mut outcomes: Vec<_> = out
            .iter()
            .map(|done| {
                assert_eq!((done.offset, done.len, done.buffer.len()), (done.tag, 1000, 1000));
                let outcome = match &done.result {
                    Err(ReadError::Io { .. }) => "fail",
                    Err(ReadError::UnexpectedEof { wanted: 1000, got: 500, .. }) => "short",
                    Err(_) => "other",
                    Ok(()) if done.bytes() == Some(sample.bytes(done.tag, 1000)) => "ok",
                    Ok(()) => "corrupt",
                };
                (done.tag, outcome)
            })
            .collect();
        outcomes.sort_unstable();
        outcomes
    }

    #[test]
    fn conforms_while_it_delays_and_reorders() {
        run(|| {
            Box::new(faulty(FaultPlan {
                seed: 3,
                delay_rate: 0.2,
                delay: Duration::from_millis(1),
                reorder: true,
                ..FaultPlan::default()
            }))
        });
    }

    #[test]
    fn single_faults_hit_the_request_they_name() {
        let at = BTreeMap::from([(1, Fault::Fail), (3, Fault::Short), (4, Fault::Corrupt)]);
        let outcomes = outcomes(FaultPlan { at, ..FaultPlan::default() }, 6);
        let expected = ["ok", "fail", "ok", "short", "corrupt", "ok"];
        assert_eq!(outcomes.iter().map(|&(_, what)| what).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn rates_hold_and_a_seed_replays() {
        let plan = |seed| FaultPlan {
            seed,
            fail_rate: 0.1,
            short_rate: 0.1,
            corrupt_rate: 0.2,
            reorder: true,
            ..FaultPlan::default()
        };
        let first = outcomes(plan(1), 400);
        assert_eq!(first, outcomes(plan(1), 400));
        assert_ne!(first, outcomes(plan(2), 400));
        let count = |wanted| first.iter().filter(|&&(_, what)| what == wanted).count();
        assert!((20..=60).contains(&count("fail")), "{}", count("fail"));
        assert!((20..=60).contains(&count("short")), "{}", count("short"));
        assert!((50..=110).contains(&count("corrupt")), "{}", count("corrupt"));
        assert_eq!(count("other"), 0);
    }

    #[test]
    fn a_request_that_does_not_fit_comes_back_as_it_was() {
        let sample = Sample::new(100_000);
        let file = Arc::new(sample.open(Access::Direct));
        let config = PoolConfig { queue_requests: 1, ..PoolConfig::default() };
        let plan = FaultPlan { short_rate: 1.0, ..FaultPlan::default() };
        let mut engine = FaultEngine::new(PreadPool::new(config).expect("a pool"), plan);
        let request = |tag| ReadRequest {
            len: 1000,
            slack: crate::Slack { head: 0, tail: 3000 },
            ..ReadRequest::new(Arc::clone(&file), 0, Buffer::aligned(4000, 1).unwrap(), tag)
        };
        engine.submit(request(8)).expect("room");
        let QueueFull(back) = engine.submit(request(9)).expect_err("no room");
        assert_eq!((back.tag, back.len, back.slack.tail), (9, 1000, 3000));
    }
}
