//! Each operation of the drive fails once, or is the last one before a crash.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{
    ANY, CHECKPOINT, LONG, TestClock, block, block_files, checkpoint, cold, fetch_all,
    folder_bytes, scope, with_bytes_max,
};
use hypura_kv::{
    BlockKey, DiskFault, FaultDisk, Health, Put, RETRY_AFTER, State, Store, SystemDisk, Token,
};

/// Four blocks of two pages and the count of what was written.
const CAP: u64 = 4 * 8192 + 256;

fn tokens() -> Vec<Token> {
    (0..60).collect()
}

fn put(store: &Store, block: hypura_kv::Block, replaces: Vec<BlockKey>) {
    store.put(block, replaces);
    assert!(store.flush(LONG));
}

/// Opens a store, writes more than fits, replaces, finds, reads. Nothing in it may panic or deliver
/// a wrong byte, whatever the drive does.
fn scenario(dir: &Path, disk: &Arc<FaultDisk<SystemDisk>>, clock: &Arc<TestClock>) {
    let config = with_bytes_max(cold(dir), CAP);
    let Ok(store) = Store::open(config, disk.clone(), clock.clone()) else {
        return;
    };
    let (scope, tokens) = (scope(1), tokens());
    let check = || {
        assert!(folder_bytes(dir) <= CAP);
        clock.advance(RETRY_AFTER);
    };
    for end in [10, 20, 30, 40, 50] {
        put(&store, block(&scope, &tokens[..end], end - 10, 1000), Vec::new());
        check();
    }
    let tail = block(&scope, &tokens[..55], 50, 1000);
    let tail_key = tail.key;
    put(&store, tail, Vec::new());
    check();
    put(&store, block(&scope, &tokens[..60], 50, 1000), vec![tail_key]);
    check();
    put(&store, block(&scope, &tokens[..10], 0, 1000), Vec::new());
    put(&store, checkpoint(&scope, &tokens[..10], 1000), Vec::new());
    check();
    for want in [ANY, CHECKPOINT] {
        for prompt in [&tokens[..], &tokens[..7]] {
            let found = store.find(&scope, prompt, want);
            let _ = fetch_all(&store, &found);
        }
    }
    assert!(store.flush(LONG));
    check();
}

/// Opens the folder with a sound drive: everything in it is whole, and writing works.
fn check_sound(dir: &Path, clock: &Arc<TestClock>) {
    let config = with_bytes_max(cold(dir), CAP);
    let store = Store::open(config, Arc::new(SystemDisk), clock.clone()).expect("a store");
    assert_eq!(store.health(), Health::Healthy);
    let files = block_files(dir);
    assert_eq!(store.stats().cold_files, files.len() as u64);
    for name in files {
        let image = std::fs::read(dir.join(&name)).expect("an image");
        hypura_kv::decode(&image).expect("it is whole");
    }
    let (scope, tokens) = (scope(1), tokens());
    let found = store.find(&scope, &tokens, ANY);
    fetch_all(&store, &found).expect("sound");
    drop(found);
    let new = block(&scope, &[-7; 10], 0, 1000);
    let key = new.key;
    assert_eq!(store.put(new, Vec::new()), Put::Queued);
    assert!(store.flush(LONG));
    assert_eq!(store.state(&key), State::Hit);
    assert!(folder_bytes(dir) <= CAP);
    let temporary = std::fs::read_dir(dir).expect("a folder").filter(|file| {
        let name = file.as_ref().expect("a file").file_name();
        name.to_string_lossy().starts_with("tmp-")
    });
    assert_eq!(temporary.count(), 0);
}

/// Lets the scenario run with each of its operations failing once.
fn fail_each(fault: DiskFault) {
    let mut at = 0;
    loop {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("kv");
        std::fs::create_dir(&path).expect("a folder");
        let (disk, clock) = (Arc::new(FaultDisk::unsynced(SystemDisk)), TestClock::new());
        disk.fail_after(at, fault);
        scenario(&path, &disk, &clock);
        check_sound(&path, &clock);
        assert_eq!(disk.unlocked_writes(), 0);
        if disk.operations() <= at {
            assert!(at > 80, "the scenario has {at} operations");
            return;
        }
        at += 1;
    }
}

#[test]
fn each_operation_fails() {
    fail_each(DiskFault::Error);
}

#[test]
fn the_drive_is_full_at_each_operation() {
    fail_each(DiskFault::Full);
}

#[test]
fn the_machine_stops_at_each_operation() {
    fail_each(DiskFault::Crash);
}

#[test]
fn a_failure_is_over_at_the_next_success() {
    let dir = tempfile::tempdir().expect("a folder");
    let (disk, clock) = (Arc::new(FaultDisk::unsynced(SystemDisk)), TestClock::new());
    let store = Store::open(cold(dir.path()), disk.clone(), clock.clone()).expect("a store");
    // A lock, two looks, and so on: each of the first ones is part of a write.
    for skip in 0..9 {
        disk.fail_after(skip, DiskFault::Error);
        let n = Token::try_from(skip).expect("few");
        let new = block(&scope(1), &[n; 10], 0, 1000);
        put(&store, new.clone(), Vec::new());
        assert!(matches!(store.health(), Health::Failed { .. }), "{skip}");
        assert_eq!(store.state(&new.key), State::Miss);
        assert_eq!(store.put(new.clone(), Vec::new()), Put::Refused);
        clock.advance(RETRY_AFTER);
        assert_eq!(store.put(new.clone(), Vec::new()), Put::Queued);
        assert!(store.flush(LONG));
        assert_eq!(store.health(), Health::Healthy);
        assert_eq!(store.state(&new.key), State::Hit);
    }
}
