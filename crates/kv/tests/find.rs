//! Finding and fetching: which blocks, in which order, from where.

mod common;

use std::sync::Arc;

use common::{
    ANY, CHECKPOINT, LONG, TestClock, block, checkpoint, cold, fetch_all, open, put_all, scope,
};
use hypura_kv::{Put, State, SystemDisk, Tier, Token, Want};

fn tokens(n: Token) -> Vec<Token> {
    (0..n).map(|token| token * 31 % 1009).collect()
}

#[test]
fn a_conversation_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let (disk, clock, scope, tokens) =
        (Arc::new(SystemDisk), TestClock::new(), scope(1), tokens(600));
    let store = open(cold(dir.path()), &disk, &clock);
    let keys = put_all(&store, &scope, &tokens, &[256, 256, 88]);
    assert!(keys.iter().all(|key| store.state(key) == State::Hit));
    drop(store);
    let store = open(cold(dir.path()), &disk, &clock);
    let found = store.find(&scope, &tokens, ANY);
    assert_eq!((found.tokens, found.blocks.len()), (600, 3));
    assert!(found.blocks.iter().all(|block| block.tier == Tier::Cold && block.bytes == 8192));
    assert_eq!(fetch_all(&store, &found).expect("sound"), keys);
    let stats = store.stats();
    assert_eq!((stats.tokens_hit_cold, stats.bytes_read), (600, 3 * 8192));
    assert_eq!((stats.cold_files, stats.cold_bytes), (3, 3 * 8192));
    // What reaches no further than what is skipped is not delivered.
    for (skip, delivered) in [(0, 3), (255, 3), (256, 2), (599, 1), (600, 0), (700, 0)] {
        let mut fetch = store.fetch(&found, skip);
        let count = std::iter::from_fn(|| fetch.next()).filter(|fetched| fetched.is_ok()).count();
        assert_eq!(count, delivered, "{skip}");
    }
}
