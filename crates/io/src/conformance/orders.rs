//! What an engine promises about [`promote`](ReadEngine::promote) and
//! [`cancel`](ReadEngine::cancel).

use super::*;

/// Requests of a [`burst`].
const BURST: u64 = 24;

/// How often a burst is tried in which the engine has to be caught with something still unread.
/// Once is enough unless the thread of the test is put to sleep for all the time that a burst
/// takes to be read.
const ATTEMPTS: usize = 20;

pub(super) fn run(make: impl Fn() -> Box<dyn ReadEngine>, sample: &Sample, file: &Arc<File>) {
    ignores_tags_that_it_does_not_have(&mut *make(), sample, file);
    cancels_what_is_unread(&mut *make(), sample, file);
    leaves_alone_what_it_gave_back(make(), sample, file);
    promotes_what_is_unread(&mut *make(), sample, file);
}

/// Submits reads of the whole sample, with tags from 0: far more than can be read meanwhile.
fn burst(engine: &mut dyn ReadEngine, file: &Arc<File>, priority: impl Fn(u64) -> Priority) {
    for tag in 0..BURST {
        let buffer = Buffer::aligned(SAMPLE_BYTES, 4096).expect("memory");
        let request = ReadRequest::new(Arc::clone(file), 0, buffer, tag);
        let request = ReadRequest { priority: priority(tag), ..request };
        engine.submit(request).expect("room for a burst");
    }
}

/// That a request was read, or cancelled; whether it was cancelled.
fn check(done: &Completion, sample: &Sample) -> bool {
    match &done.result {
        Ok(()) => {
            assert!(done.bytes() == Some(sample.bytes(done.offset, done.len)), "wrong bytes");
            false
        }
        Err(ReadError::Cancelled { path, offset, len }) => {
            assert_eq!((path, *offset, *len), (&sample.path(), done.offset, done.len));
            assert_eq!((done.bytes(), done.buffer.len()), (None, SAMPLE_BYTES));
            true
        }
        Err(error) => panic!("{error}"),
    }
}

fn ignores_tags_that_it_does_not_have(
    engine: &mut dyn ReadEngine,
    sample: &Sample,
    file: &Arc<File>,
) {
    let read = |engine: &mut dyn ReadEngine| {
        let buffer = Buffer::aligned(100_000, 4096).expect("memory");
        engine.submit(ReadRequest::new(Arc::clone(file), 7, buffer, 1)).expect("room");
        engine.cancel(2);
        engine.promote(2);
        let mut out = Vec::new();
        drain(engine, &mut out);
        assert_eq!(out.len(), 1);
        assert!(out[0].bytes() == Some(sample.bytes(7, 100_000)), "{:?}", out[0].result);
    };
    engine.cancel(1);
    engine.promote(1);
    assert_eq!(engine.in_flight(), 0);
    read(engine);
    engine.cancel(1); // has come back already
    engine.promote(1);
    read(engine);
    assert_eq!((engine.stats().cancelled, engine.stats().cancelled_bytes), (0, 0));
}

fn cancels_what_is_unread(engine: &mut dyn ReadEngine, sample: &Sample, file: &Arc<File>) {
    let mut cancelled = 0;
    for attempt in 1..=ATTEMPTS {
        // Every third request is left alone; 100 is the tag of two.
        burst(
            engine,
            file,
            |tag| if tag % 2 == 0 { Priority::Demand } else { Priority::ReadAhead },
        );
        for _ in 0..2 {
            let buffer = Buffer::aligned(SAMPLE_BYTES, 4096).expect("memory");
            engine.submit(ReadRequest::new(Arc::clone(file), 0, buffer, 100)).expect("room");
        }
        engine.cancel(100);
        for tag in (0..BURST).filter(|tag| tag % 3 != 0) {
            engine.cancel(tag);
            engine.cancel(tag);
            engine.promote(tag);
        }
        let mut out: Vec<Completion> = Vec::new();
        while engine.in_flight() > 0 {
            let known = out.len();
            engine.complete(&mut out, Wait::Forever);
            for done in &out[known..] {
                if check(done, sample) {
                    assert!(done.tag % 3 != 0, "{} was not cancelled", done.tag);
                    cancelled += 1;
                }
            }
        }
        let mut tags: Vec<u64> = out.iter().map(|done| done.tag).collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq((0..BURST).chain([100, 100])), "each comes back once");

        let stats = engine.stats();
        assert_eq!((stats.failed, stats.cancelled), (0, cancelled));
        assert_eq!(stats.cancelled_bytes > 0, cancelled > 0);
        assert!(stats.cancelled_bytes <= cancelled * SAMPLE_BYTES as u64);
        // What was asked for was read or cancelled, and what was cancelled was not read.
        let read_least = stats.asked_bytes - stats.cancelled_bytes;
        let read_most = read_least + stats.requests * (2 << 20); // alignment, with room
        assert!((read_least..=read_most).contains(&stats.read_bytes), "{stats:?}");
        if cancelled > 0 {
            return;
        }
        assert!(attempt < ATTEMPTS, "nothing is ever cancelled");
    }
}

/// A request that is cancelled while some of its pieces are being read may come back only after
/// these have ended.
fn leaves_alone_what_it_gave_back(
    mut engine: Box<dyn ReadEngine>,
    sample: &Sample,
    file: &Arc<File>,
) {
    const ROUNDS: usize = 5;
    /// Requests after these are not begun so early, and their memory is not looked at.
    const BEGUN_AT_MOST: u64 = 4;
    let mut given_back = Vec::new();
    for round in 0..ROUNDS {
        let read_before = engine.stats().read_bytes;
        burst(&mut *engine, file, |_| Priority::Demand);
        while engine.stats().read_bytes == read_before {
            std::thread::yield_now();
        }
        (0..BURST).for_each(|tag| engine.cancel(tag));
        while engine.in_flight() > 0 {
            let mut out = Vec::new();
            engine.complete(&mut out, Wait::Forever);
            for mut done in out {
                if check(&done, sample) && done.tag < BEGUN_AT_MOST {
                    // From here on the memory is ours. A byte per page shows who writes to it.
                    done.buffer
                        .as_mut_slice()
                        .iter_mut()
                        .step_by(4096)
                        .for_each(|b| *b = UNTOUCHED);
                    given_back.push((round, done));
                }
            }
        }
    }
    drop(engine); // now surely nothing is read any more
    for (round, done) in given_back {
        let mut marks = done.buffer.as_slice().iter().step_by(4096);
        let is_left_alone = marks.all(|&byte| byte == UNTOUCHED);
        assert!(is_left_alone, "{} of round {round} was written to after it came back", done.tag);
    }
}

fn promotes_what_is_unread(engine: &mut dyn ReadEngine, sample: &Sample, file: &Arc<File>) {
    const PROMOTED: u64 = BURST - 1;
    for attempt in 1..=ATTEMPTS {
        burst(engine, file, |_| Priority::ReadAhead);
        engine.promote(PROMOTED);
        // The others would only take time.
        for tag in 2..PROMOTED {
            engine.cancel(tag);
        }
        let mut out = Vec::new();
        drain(engine, &mut out);
        assert_eq!(out.len() as u64, BURST);
        let mut was_promoted = false;
        for done in &out {
            let is_cancelled = check(done, sample);
            assert!(!is_cancelled || (2..PROMOTED).contains(&done.tag));
            if done.priority == Priority::Demand {
                assert_eq!(done.tag, PROMOTED);
                was_promoted = true;
            }
        }
        if was_promoted {
            return;
        }
        assert!(attempt < ATTEMPTS, "nothing is ever promoted");
    }
}
