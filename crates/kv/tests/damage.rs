//! Files and drives that deliver something else than was written.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{
    ANY, CHECKPOINT, LONG, TestClock, block, block_files, checkpoint, cold, fetch_all, open,
    put_all, reader, scope,
};
use hypura_io::{Fault, FaultEngine, FaultPlan};
use hypura_kv::{
    BlockError, FetchError, Found, Put, State, Store, StoreConfig, SystemDisk, Token, decode,
    encode,
};

const LENGTHS: [usize; 4] = [10, 10, 10, 10];

fn tokens() -> Vec<Token> {
    (0..40).collect()
}

/// A store with one conversation of four blocks in its folder.
fn fixture(dir: &Path) -> (StoreConfig, Arc<TestClock>) {
    let (config, clock) = (cold(dir), TestClock::new());
    put_all(&open(config.clone(), &Arc::new(SystemDisk), &clock), &scope(1), &tokens(), &LENGTHS);
    (config, clock)
}

/// The file of the block that begins after so many tokens.
fn file(dir: &Path, from: usize) -> PathBuf {
    let names = block_files(dir);
    let name = names.iter().find(|name| name.contains(&format!("-{from}-")));
    dir.join(name.expect("a file"))
}

/// What comes of a fetch: how many blocks, and then which error, after which nothing comes.
fn outcome(store: &Store, found: &Found) -> (usize, Option<FetchError>) {
    let mut fetch = store.fetch(found, 0);
    let mut delivered = 0;
    while let Some(fetched) = fetch.next() {
        match fetched {
            Ok(_) => delivered += 1,
            Err(error) => {
                assert!(fetch.next().is_none());
                return (delivered, Some(error));
            }
        }
    }
    (delivered, None)
}

#[test]
fn faults_of_the_drive_are_never_delivered() {
    for fault in [Fault::Corrupt, Fault::Short, Fault::Fail] {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut config, clock) = fixture(dir.path());
        let engines = Arc::new(Mutex::new(0));
        let count = Arc::clone(&engines);
        config.reader = Arc::new(move || {
            *count.lock().expect("a count") += 1;
            let plan = FaultPlan { at: BTreeMap::from([(2, fault)]), ..FaultPlan::default() };
            Ok(Box::new(FaultEngine::new(reader()?, plan)))
        });
        let store = open(config, &Arc::new(SystemDisk), &clock);
        let found = store.find(&scope(1), &tokens(), ANY);
        assert_eq!(found.tokens, 40);
        let path = file(dir.path(), 20);
        let (delivered, error) = outcome(&store, &found);
        assert_eq!(delivered, 2);
        match (fault, error) {
            (Fault::Fail, Some(FetchError::Io { path: found, .. })) => {
                assert_eq!(found, path);
                assert!(path.exists());
            }
            (_, Some(FetchError::Damaged { path: found, .. })) => {
                assert_eq!(found, path);
                assert!(!path.exists());
            }
            (_, error) => panic!("{fault:?}: {error:?}"),
        }
        assert_eq!(store.stats().blocks_damaged, u64::from(fault != Fault::Fail));
        let found = store.find(&scope(1), &tokens(), ANY);
        assert_eq!(found.tokens, 20, "{fault:?}");
        fetch_all(&store, &found).expect("sound");
        // Computed again, it is accepted again.
        let again = block(&scope(1), &tokens()[..30], 20, 1000);
        assert_eq!(store.state(&again.key), State::Miss);
        assert_eq!(store.put(again, Vec::new()), Put::Queued);
        assert!(store.flush(LONG));
        let found = store.find(&scope(1), &tokens(), ANY);
        assert_eq!(found.tokens, 40);
        fetch_all(&store, &found).expect("sound");
        assert_eq!(store.stats().cold_files, 4);
        assert_eq!(*engines.lock().expect("a count"), 1, "an engine is used again");
    }
}

#[test]
fn files_that_are_damaged_are_removed_and_the_way_is_shorter() {
    type Spoil = fn(&mut Vec<u8>);
    let spoil: [Spoil; 7] = [
        |image| image[100] ^= 1,
        |image| image[5000] ^= 128,
        |image| image[8191] = 1,
        |image| image.truncate(4096),
        |image| image.truncate(5000),
        |image| image.clear(),
        |image| image.resize(12288, 0),
    ];
    for (n, spoil) in spoil.into_iter().enumerate() {
        let dir = tempfile::tempdir().expect("a folder");
        let (config, clock) = fixture(dir.path());
        let path = file(dir.path(), 30);
        let mut image = fs::read(&path).expect("an image");
        spoil(&mut image);
        fs::write(&path, image).expect("written");
        let store = open(config, &Arc::new(SystemDisk), &clock);
        let found = store.find(&scope(1), &tokens(), ANY);
        let (delivered, error) = outcome(&store, &found);
        assert!(matches!(error, Some(FetchError::Damaged { .. })), "{n}: {error:?}");
        assert_eq!((delivered, path.exists()), (3, false), "{n}");
        let found = store.find(&scope(1), &tokens(), ANY);
        assert_eq!(found.tokens, 30);
        assert_eq!((store.stats().blocks_damaged, store.stats().cold_files), (1, 3));
    }
}

#[test]
fn a_damaged_header_is_noticed_when_it_is_looked_at() {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, clock) = fixture(dir.path());
    let path = file(dir.path(), 20);
    let mut image = fs::read(&path).expect("an image");
    image[170] ^= 1;
    fs::write(&path, image).expect("written");
    let store = open(config, &Arc::new(SystemDisk), &clock);
    let mut prompt = tokens();
    prompt.truncate(25);
    assert_eq!(store.find(&scope(1), &prompt, ANY).tokens, 20);
    assert_eq!((path.exists(), store.stats().blocks_damaged), (false, 1));
}

#[test]
fn a_forged_file_is_another_block() {
    type Forge = fn(&mut hypura_kv::Block);
    let forge: [(Forge, &str); 4] = [
        (|block| block.tokens[3] += 1, "tokens"),
        (|block| block.scope = scope(2), "scope"),
        (|block| block.from += 1, "position"),
        (|block| block.key.node = block.key.parent, "name"),
    ];
    for (forge, wanted) in forge {
        let dir = tempfile::tempdir().expect("a folder");
        let (config, clock) = fixture(dir.path());
        let path = file(dir.path(), 20);
        let mut block = decode(&fs::read(&path).expect("an image")).expect("a block");
        forge(&mut block);
        fs::write(&path, encode(&block)).expect("written");
        let store = open(config.clone(), &Arc::new(SystemDisk), &clock);
        let found = store.find(&scope(1), &tokens(), ANY);
        let (delivered, error) = outcome(&store, &found);
        let Some(FetchError::Damaged { source: BlockError::OtherBlock { what }, .. }) = error
        else {
            panic!("{error:?}");
        };
        assert_eq!((delivered, what, path.exists()), (2, wanted, false));
        // The same by a look at the header alone.
        fs::write(&path, encode(&block)).expect("written");
        let store = open(config, &Arc::new(SystemDisk), &clock);
        assert_eq!(store.find(&scope(1), &tokens()[..25], ANY).tokens, 20, "{wanted}");
        assert!(!path.exists());
    }
}

#[test]
fn a_file_that_vanished_is_a_miss() {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, clock) = fixture(dir.path());
    let store = open(config, &Arc::new(SystemDisk), &clock);
    assert_eq!(store.put(checkpoint(&scope(1), &tokens()[..20], 10), Vec::new()), Put::Queued);
    assert!(store.flush(LONG));
    let found = store.find(&scope(1), &tokens(), ANY);
    fs::remove_file(file(dir.path(), 10)).expect("removed");
    let (delivered, error) = outcome(&store, &found);
    assert!(matches!(error, Some(FetchError::Missing { .. })), "{error:?}");
    assert_eq!(delivered, 1);
    assert_eq!(store.find(&scope(1), &tokens(), ANY).tokens, 10);
    assert_eq!(store.find(&scope(1), &tokens(), CHECKPOINT).tokens, 0);
    // A look at a header notices it too.
    fs::remove_file(file(dir.path(), 0)).expect("removed");
    assert_eq!(store.find(&scope(1), &tokens()[..5], ANY).tokens, 0);
    assert_eq!(store.stats().blocks_damaged, 0);
}

#[test]
fn a_fetch_that_is_dropped_reads_no_more_and_its_engine_is_used_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, clock) = fixture(dir.path());
    let store = open(config, &Arc::new(SystemDisk), &clock);
    let found = store.find(&scope(1), &tokens(), ANY);
    for _ in 0..3 {
        let mut fetch = store.fetch(&found, 0);
        let first = fetch.next().expect("a block").expect("sound");
        drop(fetch);
        assert_eq!(first.tokens(), &tokens()[..10], "what was delivered stays");
    }
    fetch_all(&store, &found).expect("sound");
    let mut broken = cold(dir.path());
    broken.reader = Arc::new(|| Err("no engine today".into()));
    let store = open(broken, &Arc::new(SystemDisk), &clock);
    let (delivered, error) = outcome(&store, &found);
    assert_eq!(delivered, 0);
    assert!(error.expect("an error").to_string().contains("no engine today"));
    assert_eq!(store.find(&scope(1), &tokens(), ANY).tokens, 40);
}
