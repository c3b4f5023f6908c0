//! Two stores on one folder.

mod common;

use std::sync::Arc;

use common::{
    ANY, LONG, TestClock, block, block_files, cold, fetch_all, folder_bytes, open, put_all, scope,
    with_bytes_max,
};
use hypura_kv::{Disk, FaultDisk, FetchError, Health, Put, RETRY_AFTER, State, SystemDisk, Token};

#[test]
fn they_find_each_others_blocks() {
    let dir = tempfile::tempdir().expect("a folder");
    let (disk, clock, scope) = (Arc::new(SystemDisk), TestClock::new(), scope(1));
    let tokens: Vec<Token> = (0..40).collect();
    let a = open(cold(dir.path()), &disk, &clock);
    let b = open(cold(dir.path()), &disk, &clock);
    put_all(&a, &scope, &tokens, &[10, 10]);
    assert!(b.refresh(LONG));
    let found = b.find(&scope, &tokens, ANY);
    assert_eq!(found.tokens, 20);
    fetch_all(&b, &found).expect("sound");
    // A search sees that the folder changed; the next one finds it.
    let more = block(&scope, &tokens[..30], 20, 1000);
    assert_eq!(b.put(more.clone(), Vec::new()), Put::Queued);
    assert!(b.flush(LONG));
    clock.advance(RETRY_AFTER);
    a.find(&scope, &tokens, ANY);
    assert!(a.flush(LONG));
    assert_eq!(a.find(&scope, &tokens, ANY).tokens, 30);
    // What the other one wrote is not written again.
    let written = a.stats().blocks_written;
    assert_eq!(a.put(more, Vec::new()), Put::Known);
    let new = block(&scope, &tokens[..40], 30, 1000);
    assert_eq!(a.put(new.clone(), Vec::new()), Put::Queued);
    assert!(a.flush(LONG));
    assert_eq!(b.put(new, Vec::new()), Put::Queued, "it doesn't know yet");
    assert!(b.flush(LONG));
    assert_eq!((a.stats().blocks_written, b.stats().blocks_written), (written + 1, 1));
    assert_eq!(b.stats().wear_total_bytes, 4 * 8192);
}

#[test]
fn the_cap_and_the_budget_hold_for_both() {
    let dir = tempfile::tempdir().expect("a folder");
    let (disk, clock, scope) = (Arc::new(SystemDisk), TestClock::new(), scope(1));
    let cap = 5 * 8192 + 256;
    let mut config = with_bytes_max(cold(dir.path()), cap);
    config.cold.as_mut().expect("a folder").writes_per_day_max = 20 * 8192;
    let stores = [open(config.clone(), &disk, &clock), open(config, &disk, &clock)];
    for n in 0..24 {
        clock.advance(RETRY_AFTER / 60);
        let store = &stores[usize::try_from(n % 2).expect("few")];
        store.put(block(&scope, &[n; 10], 0, 1000), Vec::new());
        assert!(store.flush(LONG));
        assert!(folder_bytes(dir.path()) <= cap, "{n}");
    }
    // Both at once.
    for n in 0..24 {
        let store = &stores[usize::try_from(n % 2).expect("few")];
        store.put(block(&scope, &[100 + n; 10], 0, 1000), Vec::new());
        assert!(folder_bytes(dir.path()) <= cap, "{n}");
    }
    let written: u64 = stores
        .iter()
        .map(|store| {
            assert!(store.flush(LONG));
            assert_eq!(store.health(), Health::Healthy);
            store.stats().blocks_written
        })
        .sum();
    assert_eq!(written, 20);
    assert_eq!(block_files(dir.path()).len(), 5);
}

#[test]
fn what_one_evicts_the_other_misses() {
    let dir = tempfile::tempdir().expect("a folder");
    let (disk, clock, scope) = (Arc::new(SystemDisk), TestClock::new(), scope(1));
    let config = with_bytes_max(cold(dir.path()), 2 * 8192 + 256);
    let a = open(config.clone(), &disk, &clock);
    let first = put_all(&a, &scope, &[1; 10], &[10])[0];
    let b = open(config, &disk, &clock);
    let found = a.find(&scope, &[1; 10], ANY);
    for n in 2..5 {
        clock.advance(RETRY_AFTER);
        put_all(&b, &scope, &[n; 10], &[10]);
    }
    assert_eq!((a.state(&first), b.state(&first)), (State::Hit, State::Miss));
    let error = fetch_all(&a, &found).expect_err("it is gone");
    assert!(matches!(error, FetchError::Missing { .. }), "{error}");
    assert_eq!(a.state(&first), State::Miss);
    // It counts right again, too.
    drop(found);
    clock.advance(RETRY_AFTER);
    put_all(&a, &scope, &[9; 10], &[10]);
    assert_eq!((a.stats().cold_files, block_files(dir.path()).len()), (2, 2));
}

#[test]
fn a_writer_waits_for_the_lock_and_then_gives_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let (disk, clock) = (Arc::new(FaultDisk::new(SystemDisk)), TestClock::new());
    let store = open(cold(dir.path()), &disk, &clock);
    let lock = SystemDisk.lock(&dir.path().join("lock"), LONG).expect("a lock");
    assert_eq!(store.put(block(&scope(1), &[1; 10], 0, 1000), Vec::new()), Put::Queued);
    assert!(store.flush(LONG));
    assert_eq!((store.stats().blocks_dropped, store.health()), (1, Health::Healthy));
    drop(lock);
    put_all(&store, &scope(1), &[1; 10], &[10]);
}
