//! What the tests of the store share.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hypura_io::{PoolConfig, PreadPool, ReadEngine};
use hypura_kv::{
    Block, BlockKey, Chain, Clock, ColdConfig, Disk, FetchError, Found, NodeId, Put, ReaderFactory,
    Scope, Store, StoreConfig, Token, Want,
};

/// More than any test has to wait.
pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A clock that stands still until it is told.
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn new() -> Arc<TestClock> {
        Arc::new(TestClock(AtomicU64::new(20_000 * 24 * 60 * 60 * 1_000_000_000)))
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).expect("short"), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn unix_time(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

pub(crate) fn reader() -> Result<Box<dyn ReadEngine>, String> {
    let config = PoolConfig {
        threads: 2,
        read_ahead_threads: 1,
        chunk_bytes: 64 << 10,
        ..PoolConfig::default()
    };
    PreadPool::new(config)
        .map(|pool| Box::new(pool) as Box<dyn ReadEngine>)
        .map_err(|e| e.to_string())
}

pub(crate) fn reader_factory() -> ReaderFactory {
    Arc::new(reader)
}

/// A folder without bounds, and no memory beside it.
pub(crate) fn cold(dir: &Path) -> StoreConfig {
    StoreConfig {
        cold: Some(ColdConfig {
            dir: dir.to_owned(),
            bytes_max: 1 << 30,
            writes_per_day_max: u64::MAX,
        }),
        hot_bytes_max: 0,
        pending_bytes_max: 64 << 20,
        read_depth: 4,
        reader: reader_factory(),
    }
}

pub(crate) fn with_bytes_max(mut config: StoreConfig, bytes_max: u64) -> StoreConfig {
    config.cold.as_mut().expect("a folder").bytes_max = bytes_max;
    config
}

pub(crate) fn open(
    config: StoreConfig,
    disk: &Arc<impl Disk + 'static>,
    clock: &Arc<TestClock>,
) -> Store {
    Store::open(config, disk.clone(), clock.clone()).expect("a store")
}

pub(crate) fn scope(n: u8) -> Scope {
    Scope::from_bytes([n; 32])
}

pub(crate) fn node(scope: &Scope, tokens: &[Token]) -> NodeId {
    let mut chain = Chain::new(scope);
    chain.push(tokens);
    chain.node()
}

/// The block of `tokens[from..]`, with a payload that only it has.
pub(crate) fn block(scope: &Scope, tokens: &[Token], from: usize, payload_bytes: usize) -> Block {
    let (before, of) = tokens.split_at(from);
    let n_tokens = u32::try_from(of.len()).expect("few");
    let key = BlockKey::tokens(node(scope, before), node(scope, tokens), n_tokens);
    Block {
        key,
        scope: *scope,
        from: u32::try_from(from).expect("few"),
        tokens: of.to_vec(),
        payload: payload(&key, payload_bytes),
    }
}

pub(crate) fn checkpoint(scope: &Scope, tokens: &[Token], payload_bytes: usize) -> Block {
    let key = BlockKey::checkpoint(node(scope, tokens));
    Block {
        key,
        scope: *scope,
        from: u32::try_from(tokens.len()).expect("few"),
        tokens: Vec::new(),
        payload: payload(&key, payload_bytes),
    }
}

fn payload(key: &BlockKey, bytes: usize) -> Vec<u8> {
    let seed = [key.parent.bytes().as_slice(), key.node.bytes(), &key.n_tokens.to_le_bytes()];
    seed.concat().into_iter().cycle().take(bytes).collect()
}

/// Puts `tokens`, cut into blocks of these lengths, and waits until they are written.
pub(crate) fn put_all(
    store: &Store,
    scope: &Scope,
    tokens: &[Token],
    lengths: &[usize],
) -> Vec<BlockKey> {
    let mut from = 0;
    let keys = lengths
        .iter()
        .map(|n| {
            let block = block(scope, &tokens[..from + n], from, 1000);
            from += n;
            let key = block.key;
            assert_eq!(store.put(block, Vec::new()), Put::Queued);
            key
        })
        .collect();
    assert!(store.flush(LONG));
    keys
}

pub(crate) const ANY: Want = Want { checkpoint: false, tokens_max: usize::MAX };
pub(crate) const CHECKPOINT: Want = Want { checkpoint: true, tokens_max: usize::MAX };

/// Fetches everything; each payload must be the one that was put.
pub(crate) fn fetch_all(store: &Store, found: &Found) -> Result<Vec<BlockKey>, FetchError> {
    let mut fetch = store.fetch(found, 0);
    let mut keys = Vec::new();
    while let Some(fetched) = fetch.next() {
        let fetched = fetched?;
        assert_eq!(fetched.payload(), payload(&fetched.key, fetched.payload().len()));
        assert_eq!(fetched.tokens().len(), fetched.key.n_tokens as usize);
        keys.push(fetched.key);
    }
    let found = found.blocks.iter().chain(&found.checkpoint);
    assert_eq!(keys, found.map(|block| block.key).collect::<Vec<_>>());
    Ok(keys)
}

/// Bytes of everything in a folder. What is renamed meanwhile may be listed twice, and counts once.
pub(crate) fn folder_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).expect("a folder");
    let metadata = files.filter_map(|file| file.expect("a file").metadata().ok());
    let bytes: HashMap<u64, u64> = metadata.map(|file| (file.ino(), file.len())).collect();
    bytes.values().sum()
}

/// Names of the blocks in a folder.
pub(crate) fn block_files(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir).expect("a folder");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("text"));
    let mut names: Vec<String> =
        names.filter(|name| name.ends_with(".kv") || name.ends_with(".ck")).collect();
    names.sort();
    names
}

/// Numbers that look random: SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).expect("below a usize")
    }
}
