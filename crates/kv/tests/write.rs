//! Writing: order, bounds, budgets, failures.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use common::{
    ANY, DAY, LONG, TestClock, block, block_files, cold, fetch_all, folder_bytes, node, open,
    put_all, scope, with_bytes_max,
};
use hypura_kv::{
    DiskFault, FaultDisk, Health, Put, RETRY_AFTER, State, Store, StoreConfig, SystemDisk, Tier,
    Token, encode,
};

struct Fixture {
    store: Store,
    disk: Arc<FaultDisk<SystemDisk>>,
    clock: Arc<TestClock>,
    dir: tempfile::TempDir,
}

fn fixture(change: impl FnOnce(&mut StoreConfig)) -> Fixture {
    let dir = tempfile::tempdir().expect("a folder");
    let (disk, clock) = (Arc::new(FaultDisk::new(SystemDisk)), TestClock::new());
    let mut config = cold(&dir.path().join("kv"));
    change(&mut config);
    let store = open(config, &disk, &clock);
    Fixture { store, disk, clock, dir }
}

impl Fixture {
    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("kv")
    }

    /// Waits until the writer is at the folder's lock.
    fn wait_for_writer(&self, operations_before: u64) {
        while self.disk.operations() == operations_before {
            std::thread::yield_now();
        }
    }
}

/// One block that depends on nothing.
fn single(n: Token) -> hypura_kv::Block {
    block(&scope(1), &[n; 10], 0, 1000)
}

/// The size of its file.
const FILE_BYTES: u64 = 8192;
/// Room for the count of what was written.
const WEAR_BYTES: u64 = 256;

#[test]
fn what_is_pending_is_found_and_the_oldest_is_dropped_when_there_is_no_room() {
    let f = fixture(|config| config.pending_bytes_max = 3000);
    let operations = f.disk.operations();
    let held = f.disk.hold_locks();
    assert_eq!(f.store.put(single(0), Vec::new()), Put::Queued);
    f.wait_for_writer(operations);
    for n in 1..=2 {
        assert_eq!(f.store.put(single(n), Vec::new()), Put::Queued);
    }
    assert_eq!(f.store.stats().pending_bytes, 3000);
    let found = f.store.find(&scope(1), &[1; 10], ANY);
    assert_eq!((found.tokens, found.blocks[0].tier), (10, Tier::Pending));
    fetch_all(&f.store, &found).expect("sound");
    assert_eq!(f.store.find(&scope(1), &[1; 7], ANY).tokens, 7);
    assert_eq!(f.store.put(single(1), Vec::new()), Put::Known);
    assert_eq!(f.store.put(single(3), Vec::new()), Put::Queued);
    assert_eq!(f.store.state(&single(1).key), State::Miss);
    fetch_all(&f.store, &found).expect("held, and therefore still there");
    assert_eq!(f.store.put(single(1), Vec::new()), Put::Queued);
    assert_eq!(f.store.state(&single(2).key), State::Miss);
    let large = block(&scope(1), &[9; 10], 0, 3001);
    assert_eq!(f.store.put(large, Vec::new()), Put::TooLarge);
    // The one being written can't be dropped, and then nothing else is either.
    let half = block(&scope(1), &[9; 10], 0, 2001);
    assert_eq!(f.store.put(half, Vec::new()), Put::Refused);
    assert!(!f.store.flush(std::time::Duration::ZERO));
    let stats = f.store.stats();
    assert_eq!((stats.pending_bytes, stats.blocks_dropped, stats.blocks_refused), (3000, 2, 1));
    drop(held);
    assert!(f.store.flush(LONG));
    for (n, state) in [State::Hit, State::Hit, State::Miss, State::Hit].into_iter().enumerate() {
        assert_eq!(f.store.state(&single(Token::try_from(n).expect("few")).key), state);
    }
    let stats = f.store.stats();
    assert_eq!((stats.pending_bytes, stats.blocks_written), (0, 3));
    assert_eq!((stats.tokens_hit_pending, stats.hot_bytes), (20, 0));
}

#[test]
fn blocks_are_written_in_the_order_in_which_they_came() {
    let f = fixture(|_| ());
    put_all(&f.store, &scope(1), &[10; 10], &[10]);
    let before = f.disk.operations();
    put_all(&f.store, &scope(1), &[11; 10], &[10]);
    let of_a_write = f.disk.operations() - before;
    let before = f.disk.operations();
    let held = f.disk.hold_locks();
    // The writer takes this one at once, and the rest when it is done.
    assert_eq!(f.store.put(single(0), Vec::new()), Put::Queued);
    f.wait_for_writer(before);
    for n in 1..4 {
        assert_eq!(f.store.put(single(n), Vec::new()), Put::Queued);
    }
    f.disk.fail_after(2 * of_a_write - 1, DiskFault::Error);
    drop(held);
    assert!(f.store.flush(LONG));
    let states = [0, 1, 2, 3].map(|n| f.store.state(&single(n).key));
    assert_eq!(states, [State::Hit, State::Hit, State::Miss, State::Miss]);
}

#[test]
fn dropping_the_store_writes_what_is_pending() {
    let f = fixture(|_| ());
    let operations = f.disk.operations();
    let held = f.disk.hold_locks();
    for n in 0..5 {
        assert_eq!(f.store.put(single(n), Vec::new()), Put::Queued);
    }
    f.wait_for_writer(operations);
    let path = f.path();
    assert!(block_files(&path).is_empty());
    let Fixture { store, .. } = &f;
    let clone = store.clone();
    drop(held);
    drop(clone);
    let Fixture { store, dir: _dir, .. } = f;
    drop(store);
    assert_eq!(block_files(&path).len(), 5);
}

#[test]
fn files_are_for_the_user_alone_and_others_are_left_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a/kv");
    let store = open(cold(&path), &Arc::new(SystemDisk), &TestClock::new());
    store.put(single(0), Vec::new());
    assert!(store.flush(LONG));
    let mode =
        |path: &std::path::Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&dir.path().join("a"))), (0o700, 0o700));
    let mut names = Vec::new();
    for file in fs::read_dir(&path).expect("a folder") {
        let file = file.expect("a file");
        assert_eq!(mode(&file.path()), 0o600, "{:?}", file.path());
        names.push(file.file_name().into_string().expect("text"));
    }
    assert_eq!(names.len(), 3, "{names:?}");
    drop(store);
    fs::write(path.join("tmp-1-2"), "torn").expect("written");
    fs::write(path.join("notes.txt"), "mine").expect("written");
    let store = open(cold(&path), &Arc::new(SystemDisk), &TestClock::new());
    assert!(!path.join("tmp-1-2").exists() && path.join("notes.txt").exists());
    assert_eq!(store.state(&single(0).key), State::Hit);
}

#[test]
fn the_folder_stays_within_its_cap_and_keeps_what_was_used_last() {
    let cap = 3 * FILE_BYTES + WEAR_BYTES + 1000;
    let f = fixture(|config| *config = with_bytes_max(config.clone(), cap));
    fs::write(f.path().join("other"), [0; 1000]).expect("written");
    let put = |n| {
        f.clock.advance(RETRY_AFTER);
        assert_eq!(f.store.put(single(n), Vec::new()), Put::Queued);
        assert!(f.store.flush(LONG));
        assert!(folder_bytes(&f.path()) <= cap);
    };
    let states = || (0..5).map(|n| f.store.state(&single(n).key) == State::Hit).collect::<Vec<_>>();
    (0..3).for_each(put);
    f.clock.advance(RETRY_AFTER);
    assert_eq!(f.store.find(&scope(1), &[0; 10], ANY).tokens, 10);
    put(3);
    assert_eq!(states(), [true, false, true, true, false]);
    // What is held stays.
    let held = f.store.find(&scope(1), &[2; 10], ANY);
    f.store.find(&scope(1), &[0; 10], ANY);
    put(4);
    assert_eq!(states(), [true, false, true, false, true]);
    drop(held);
    assert_eq!(f.store.stats().blocks_evicted, 2);
    // All are held: the new one isn't written.
    let held = [0, 2, 4].map(|n| f.store.find(&scope(1), &[n; 10], ANY));
    put(1);
    assert_eq!(states(), [true, false, true, false, true]);
    assert_eq!(f.store.stats().blocks_refused, 1);
    assert_eq!(f.store.health(), Health::Healthy);
    drop(held);
    let large = usize::try_from(Store::payload_bytes_max(cap) + 1).expect("small");
    let large = block(&scope(1), &[9; 10], 0, large);
    assert_eq!(f.store.put(large, Vec::new()), Put::TooLarge);
    // The use is known after a restart too, and a smaller cap holds at once.
    f.clock.advance(RETRY_AFTER * 2);
    f.store.find(&scope(1), &[0; 10], ANY);
    assert!(f.store.flush(LONG));
    let config = with_bytes_max(cold(&f.path()), FILE_BYTES + WEAR_BYTES + 1000);
    drop(f.store);
    let store = open(config, &f.disk, &f.clock);
    assert_eq!(store.state(&single(0).key), State::Hit);
    assert_eq!(store.stats().cold_files, 1);
}

#[test]
fn a_conversation_is_evicted_from_its_end() {
    let f = fixture(|config| *config = with_bytes_max(config.clone(), 6 * FILE_BYTES + WEAR_BYTES));
    let tokens: Vec<Token> = (0..60).collect();
    put_all(&f.store, &scope(1), &tokens, &[10; 6]);
    let reach = |store: &Store, n: Token| {
        f.clock.advance(RETRY_AFTER);
        put_all(store, &scope(1), &[-n; 10], &[10]);
        let found = fs::read_dir(f.path()).expect("a folder").count();
        assert_eq!(found, 6 + 2);
        store.find(&scope(2), &[], ANY); // no use of it
        let there = |end: usize| {
            let key = block(&scope(1), &tokens[..end], end - 10, 1000).key;
            store.state(&key) == State::Hit
        };
        (1..=6).filter(|n| there(n * 10)).count()
    };
    assert_eq!(reach(&f.store, 1), 5);
    let config = with_bytes_max(cold(&f.path()), 6 * FILE_BYTES + WEAR_BYTES);
    let store = open(config, &f.disk, &f.clock);
    assert_eq!(reach(&store, 2), 4);
    assert_eq!(store.find(&scope(1), &tokens, ANY).tokens, 40);
}

#[test]
fn a_block_that_is_replaced_goes_once_the_new_one_is_durable() {
    let f = fixture(|config| config.hot_bytes_max = 1 << 20);
    let (scope, tokens) = (scope(1), [5; 40]);
    let tail = put_all(&f.store, &scope, &tokens, &[10])[0];
    let held = f.store.find(&scope, &tokens, ANY);
    let longer = block(&scope, &tokens[..20], 0, 1000);
    assert_eq!(f.store.put(longer.clone(), vec![tail]), Put::Queued);
    assert!(f.store.flush(LONG));
    assert_eq!(f.store.state(&tail), State::Hit, "it is held");
    drop(held);
    let longest = block(&scope, &tokens[..30], 0, 1000);
    f.disk.fail_after(3, DiskFault::Error);
    assert_eq!(f.store.put(longest.clone(), vec![tail, longer.key]), Put::Queued);
    assert!(f.store.flush(LONG));
    assert_eq!(f.store.state(&tail), State::Hit, "the new one is not durable");
    f.clock.advance(RETRY_AFTER);
    assert_eq!(f.store.put(longest.clone(), vec![tail, longer.key]), Put::Queued);
    assert!(f.store.flush(LONG));
    let states = [tail, longer.key, longest.key].map(|key| f.store.state(&key));
    assert_eq!(states, [State::Miss, State::Miss, State::Hit]);
    assert_eq!(block_files(&f.path()).len(), 1);
}

#[test]
fn a_day_has_a_budget() {
    let f = fixture(|config| {
        config.cold.as_mut().expect("a folder").writes_per_day_max = 2 * FILE_BYTES;
        config.hot_bytes_max = 1000;
    });
    let wear = |store: &Store| (store.stats().wear_today_bytes, store.stats().wear_total_bytes);
    assert_eq!(f.store.put(single(0), Vec::new()), Put::Queued);
    assert_eq!(f.store.put(single(1), Vec::new()), Put::Queued);
    assert_eq!(f.store.put(single(2), Vec::new()), Put::Refused);
    assert!(f.store.flush(LONG));
    assert_eq!(wear(&f.store), (2 * FILE_BYTES, 2 * FILE_BYTES));
    // Kept in memory, and offered again it may be written.
    assert_eq!(f.store.put(single(2), Vec::new()), Put::Refused);
    assert_eq!(f.store.find(&scope(1), &[2; 10], ANY).blocks[0].tier, Tier::Hot);
    f.clock.advance(DAY);
    assert_eq!(f.store.put(single(2), Vec::new()), Put::Queued);
    assert!(f.store.flush(LONG));
    assert_eq!(wear(&f.store), (FILE_BYTES, 3 * FILE_BYTES));
    let path = f.path();
    drop(f.store);
    let store = open(cold(&path), &f.disk, &f.clock);
    assert_eq!(wear(&store), (FILE_BYTES, 3 * FILE_BYTES));
}

#[test]
fn after_a_failure_it_waits_and_says_what_to_do() {
    let f = fixture(|config| config.hot_bytes_max = 1 << 20);
    put_all(&f.store, &scope(1), &[0; 10], &[10]);
    f.disk.fail_after(5, DiskFault::Full);
    assert_eq!(f.store.put(single(1), Vec::new()), Put::Queued);
    assert!(f.store.flush(LONG));
    let Health::Failed { reason } = f.store.health() else { panic!("it failed") };
    assert!(reason.contains("is full; make room"), "{reason}");
    assert_eq!(f.store.stats().write_errors, 1);
    assert_eq!(f.store.put(single(2), Vec::new()), Put::Refused);
    for n in 0..3 {
        let found = f.store.find(&scope(1), &[n; 10], ANY);
        assert_eq!(found.blocks.first().map(|block| block.tier), Some(Tier::Hot), "{n}");
        fetch_all(&f.store, &found).expect("sound");
    }
    assert!(
        fs::read_dir(f.path()).expect("a folder").all(|file| {
            !file.expect("a file").file_name().to_string_lossy().starts_with("tmp-")
        })
    );
    f.clock.advance(RETRY_AFTER);
    assert_eq!(f.store.put(single(1), Vec::new()), Put::Queued);
    assert!(f.store.flush(LONG));
    assert_eq!(f.store.health(), Health::Healthy);
    assert_eq!(block_files(&f.path()).len(), 2);
}

#[test]
fn a_file_whose_name_may_not_be_durable_does_not_stay() {
    let f = fixture(|_| ());
    put_all(&f.store, &scope(1), &[10; 10], &[10]);
    let before = f.disk.operations();
    put_all(&f.store, &scope(1), &[11; 10], &[10]);
    let of_a_write = f.disk.operations() - before;
    f.disk.fail_after(of_a_write - 2, DiskFault::Error); // before the last look at the folder
    assert_eq!(f.store.put(single(0), Vec::new()), Put::Queued);
    assert!(f.store.flush(LONG));
    assert!(matches!(f.store.health(), Health::Failed { .. }));
    assert_eq!(f.store.state(&single(0).key), State::Miss);
    assert_eq!((block_files(&f.path()).len(), f.disk.unlocked_writes()), (2, 0));
}

#[test]
fn a_folder_that_vanished_is_made_again() {
    let f = fixture(|_| ());
    put_all(&f.store, &scope(1), &[0; 10], &[10]);
    fs::remove_dir_all(f.path()).expect("removed");
    assert_eq!(f.store.put(single(1), Vec::new()), Put::Queued);
    assert!(f.store.flush(LONG));
    let Health::Failed { reason } = f.store.health() else { panic!("it failed") };
    assert!(reason.contains("vanished"), "{reason}");
    f.clock.advance(RETRY_AFTER);
    assert_eq!(f.store.put(single(1), Vec::new()), Put::Queued);
    assert!(f.store.flush(LONG));
    assert_eq!(f.store.health(), Health::Healthy);
    assert_eq!([0, 1].map(|n| f.store.state(&single(n).key)), [State::Miss, State::Hit]);
}

#[test]
fn what_is_in_the_file_is_the_image() {
    let f = fixture(|_| ());
    put_all(&f.store, &scope(1), &[3; 10], &[10]);
    let name = block_files(&f.path()).pop().expect("a file");
    assert_eq!(fs::read(f.path().join(&name)).expect("bytes"), encode(&single(3)));
    let root = node(&scope(1), &[]);
    assert!(name.starts_with(&hypura_kv::hex(&root.bytes()[..16])), "{name}");
}
