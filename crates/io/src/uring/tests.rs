use std::sync::Arc;

use super::*;
use crate::conformance::{Sample, run};
use crate::{Access, Buffer, DIRECT_ALIGN_MAX, Slack};

/// An engine; `None` where io_uring is forbidden, which other tests can't help.
fn engine(config: UringConfig) -> Option<UringEngine> {
    match UringEngine::new(config) {
        Ok(engine) => Some(engine),
        Err(UringError::Unavailable { source }) => {
            eprintln!("not tested, io_uring can't be used here: {source}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn small(depth: usize) -> UringConfig {
    UringConfig {
        depth,
        read_ahead_depth: depth.div_ceil(2),
        chunk_bytes: 64 << 10,
        queue_requests: 64,
    }
}

#[test]
fn conforms() {
    for config in [UringConfig::default(), small(1), small(3), small(64)] {
        if engine(config).is_some() {
            run(|| Box::new(engine(config).expect("an engine")));
        }
    }
}

#[test]
fn refuses_absurd_configs() {
    let fine = UringConfig::default();
    for config in [
        UringConfig { depth: 0, ..fine },
        UringConfig { depth: 257, ..fine },
        UringConfig { read_ahead_depth: 0, ..fine },
        UringConfig { read_ahead_depth: 17, ..fine },
        UringConfig { chunk_bytes: 0, ..fine },
        UringConfig { chunk_bytes: 1 << 40, ..fine },
        UringConfig { queue_requests: 0, ..fine },
    ] {
        assert!(matches!(UringEngine::new(config), Err(UringError::BadConfig { .. })));
    }
    assert_eq!(fine.memory_bytes(), 16 * (128 << 10) + 8 * (1 << 20 | 128 << 10));
    let deepest = UringConfig { depth: UringConfig::DEPTH_MAX, ..fine };
    if let Some(engine) = engine(deepest) {
        assert_eq!((engine.config(), engine.name()), (deepest, "io_uring"));
    }
}

#[test]
fn short_reads_go_on() {
    let sample = Sample::new(700_000);
    for longest in [4096, 3 * 4096, 5000] {
        for access in [Access::Direct, Access::Buffered] {
            let file = Arc::new(sample.open(access));
            let was_direct = file.is_direct();
            crate::sys::tests::LONGEST.set(longest);
            let made = engine(small(4));
            crate::sys::tests::LONGEST.set(usize::MAX);
            let Some(mut engine) = made else { return };
            let buffer = Buffer::aligned(600_000, 4096).expect("memory");
            engine.submit(ReadRequest::new(Arc::clone(&file), 77, buffer, 0)).expect("room");
            let mut out = Vec::new();
            engine.complete(&mut out, Wait::Forever);
            let bytes = out.first().and_then(Completion::bytes).expect("a success");
            assert!(bytes == sample.bytes(77, 600_000), "wrong bytes at {longest}");
            assert_eq!(file.is_direct(), was_direct);
            assert!(engine.stats().system_calls >= 600_000 / longest as u64);
        }
    }
}

#[test]
fn more_detours_than_whole_bounce_buffers() {
    let sample = Sample::new(4_000_000);
    let file = Arc::new(sample.open(Access::Direct));
    let config = UringConfig { chunk_bytes: 256 << 10, ..small(16) };
    let Some(mut engine) = engine(config) else { return };
    // An address that suits no direct read, and no slack: every byte takes the detour.
    let mut buffer = Buffer::aligned(4_000_000 + 1, DIRECT_ALIGN_MAX).expect("memory");
    buffer.as_mut_slice().fill(0xa5);
    let request = ReadRequest {
        len: 4_000_000,
        buffer_offset: 1,
        slack: Slack::NONE,
        ..ReadRequest::new(Arc::clone(&file), 0, buffer, 0)
    };
    engine.submit(request).expect("room");
    let mut out = Vec::new();
    engine.complete(&mut out, Wait::Forever);
    let done = out.first().expect("a completion");
    assert!(done.bytes().expect("a success") == sample.bytes(0, 4_000_000));
    assert_eq!(done.buffer.as_slice().first(), Some(&0xa5), "nothing in front of it");
    if file.is_direct() && file.alignment().memory > 1 {
        assert_eq!(engine.stats().bounced_bytes, 4_000_000);
    }
}
