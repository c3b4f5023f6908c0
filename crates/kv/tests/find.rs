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

struct Fixture {
    _dir: tempfile::TempDir,
    store: hypura_kv::Store,
    clock: Arc<TestClock>,
}

fn fixture(hot_bytes_max: u64) -> Fixture {
    let dir = tempfile::tempdir().expect("a folder");
    let clock = TestClock::new();
    let config = hypura_kv::StoreConfig { hot_bytes_max, ..cold(dir.path()) };
    let store = open(config, &Arc::new(SystemDisk), &clock);
    Fixture { _dir: dir, store, clock }
}

#[test]
fn cuts_do_not_matter_and_the_best_reach_wins() {
    let Fixture { store, _dir, .. } = fixture(0);
    let (scope, tokens) = (scope(1), tokens(100));
    put_all(&store, &scope, &tokens, &[10, 10, 10]);
    put_all(&store, &scope, &tokens, &[15, 4]); // longer at first, but reaches less far
    let more = block(&scope, &tokens[..42], 30, 10);
    assert_eq!(store.put(more, Vec::new()), Put::Queued);
    let other = block(&scope, &tokens[..57], 19, 10); // goes on from the other cut
    assert_eq!(store.put(other, Vec::new()), Put::Queued);
    assert!(store.flush(LONG));
    let reach = |n: usize| {
        let found = store.find(&scope, &tokens[..n], ANY);
        fetch_all(&store, &found).expect("sound");
        (found.tokens, found.blocks.iter().map(|block| block.used_tokens).collect::<Vec<_>>())
    };
    assert_eq!(reach(30), (30, vec![10, 10, 10]));
    assert_eq!(reach(100), (57, vec![15, 4, 38]));
    assert_eq!(reach(9), (9, vec![9]));
    assert_eq!(reach(41), (41, vec![10, 10, 10, 11]));
    assert_eq!(reach(0), (0, vec![]));
}

#[test]
fn a_part_of_a_block_is_used_wherever_a_prompt_leaves_a_conversation() {
    for hot_bytes_max in [0, 1 << 20] {
        let Fixture { store, _dir, .. } = fixture(hot_bytes_max);
        let (scope, tokens) = (scope(1), tokens(100));
        put_all(&store, &scope, &tokens, &[20, 20, 20]);
        for leave in [1, 19, 20, 21, 39, 47, 60] {
            let mut prompt = tokens[..leave].to_vec();
            prompt.resize(90, -1);
            let found = store.find(&scope, &prompt, ANY);
            assert_eq!(found.tokens, leave);
            let last = found.blocks.last().expect("a block");
            assert_eq!(last.from as usize + last.used_tokens as usize, leave);
            fetch_all(&store, &found).expect("sound");
            let found = store.find(&scope, &prompt, CHECKPOINT);
            assert_eq!((found.tokens, found.blocks.len()), (0, 0));
        }
        let found = store.find(&scope, &[-1, 5], ANY);
        assert_eq!((found.tokens, found.blocks.len()), (0, 0));
        // One token less than there is, so that something is left to compute.
        for tokens_max in [60, 59, 45, 40, 1, 0] {
            let found = store.find(&scope, &tokens, Want { checkpoint: false, tokens_max });
            assert_eq!(found.tokens, tokens_max);
            fetch_all(&store, &found).expect("sound");
        }
    }
}

#[test]
fn a_long_block_at_the_root_beats_a_short_way() {
    let Fixture { store, _dir, .. } = fixture(0);
    let (scope, tokens) = (scope(1), tokens(100));
    put_all(&store, &scope, &tokens, &[10, 10]);
    let mut other = tokens[..50].to_vec();
    other.extend([-1, -2, -3]);
    put_all(&store, &scope, &other, &[53]);
    let found = store.find(&scope, &tokens, ANY);
    assert_eq!((found.tokens, found.blocks.len()), (50, 1));
    fetch_all(&store, &found).expect("sound");
}

#[test]
fn of_many_forks_the_one_that_goes_on_is_taken() {
    let Fixture { store, _dir, .. } = fixture(0);
    let (scope, tokens) = (scope(1), tokens(20));
    put_all(&store, &scope, &tokens, &[20]);
    for fork in 0..70 {
        let mut fork_tokens = tokens.clone();
        fork_tokens.extend([fork, 1, 2, 3, fork]);
        let fork_block = block(&scope, &fork_tokens, 20, 10);
        assert_eq!(store.put(fork_block, Vec::new()), Put::Queued);
    }
    assert!(store.flush(LONG));
    let prompt = |fork: Token| [tokens.as_slice(), &[fork, 1, 2, 9]].concat();
    assert_eq!(store.find(&scope, &prompt(69), ANY).tokens, 23);
    assert_eq!(store.find(&scope, &prompt(7), ANY).tokens, 23);
    // More of them than are looked at: used longest ago, it is not.
    assert_eq!(store.find(&scope, &prompt(0), ANY).tokens, 20);
    let whole = [tokens.as_slice(), &[0, 1, 2, 3, 0]].concat();
    assert_eq!(store.find(&scope, &whole, ANY).tokens, 25);
    assert_eq!(store.find(&scope, &prompt(0), ANY).tokens, 23);
    // A name needs no look, not even beyond the limit.
    let capped = Want { checkpoint: false, tokens_max: 24 };
    let whole = [tokens.as_slice(), &[1, 1, 2, 3, 1]].concat();
    assert_eq!(store.find(&scope, &whole, capped).tokens, 24);
}

#[test]
fn checkpoints_end_a_way() {
    let Fixture { store, _dir, .. } = fixture(0);
    let (scope, tokens) = (scope(1), tokens(100));
    put_all(&store, &scope, &tokens, &[10, 10, 10, 10]);
    assert_eq!(store.find(&scope, &tokens, CHECKPOINT).tokens, 0);
    for at in [10, 30, 37] {
        let checkpoint = checkpoint(&scope, &tokens[..at], 5000);
        assert_eq!(store.put(checkpoint.clone(), Vec::new()), Put::Queued);
        assert_eq!(store.put(checkpoint, Vec::new()), Put::Known);
    }
    assert!(store.flush(LONG));
    for (tokens_max, reach) in [(100, 30), (30, 30), (29, 10), (9, 0)] {
        let found = store.find(&scope, &tokens, Want { checkpoint: true, tokens_max });
        assert_eq!((found.tokens, found.blocks.len()), (reach, reach / 10));
        assert_eq!(found.checkpoint.is_some(), reach > 0);
        fetch_all(&store, &found).expect("sound");
        let mut fetch = store.fetch(&found, 1000);
        let rest: Vec<_> = std::iter::from_fn(|| fetch.next()).collect();
        assert_eq!(rest.len(), usize::from(reach > 0), "the checkpoint is always delivered");
    }
}

#[test]
fn a_foreign_scope_is_never_found() {
    let Fixture { store, _dir, .. } = fixture(1 << 20);
    let tokens = tokens(40);
    put_all(&store, &scope(1), &tokens, &[20, 20]);
    let checkpoint = checkpoint(&scope(1), &tokens, 10);
    assert_eq!(store.put(checkpoint, Vec::new()), Put::Queued);
    for want in [ANY, CHECKPOINT] {
        assert_eq!(store.find(&scope(2), &tokens, want).tokens, 0);
        assert_eq!(store.find(&scope(1), &tokens, want).tokens, 40);
    }
}

#[test]
fn memory_keeps_what_was_used_last_and_what_is_held() {
    let Fixture { store, clock, _dir } = fixture(2500);
    let scope = scope(1);
    let prompts: Vec<Vec<Token>> = (0..4).map(|n| vec![n; 10]).collect();
    let keys: Vec<_> =
        prompts.iter().map(|prompt| put_all(&store, &scope, prompt, &[10])[0]).collect();
    let tier = |n: usize| store.find(&scope, &prompts[n], ANY).blocks[0].tier;
    assert_eq!([0, 1, 2, 3].map(tier), [Tier::Cold, Tier::Cold, Tier::Hot, Tier::Hot]);
    assert_eq!(store.stats().hot_bytes, 2000);
    let held = store.find(&scope, &prompts[2], ANY);
    tier(3);
    let more: Vec<Vec<Token>> = (10..12).map(|n| vec![n; 10]).collect();
    put_all(&store, &scope, &more[0], &[10]);
    put_all(&store, &scope, &more[1], &[10]);
    assert_eq!([2, 3].map(tier), [Tier::Hot, Tier::Cold]);
    store.set_hot_bytes_max(0);
    assert_eq!(store.stats().hot_bytes, 1000, "one is held");
    fetch_all(&store, &held).expect("sound");
    drop(held);
    assert_eq!(store.stats().hot_bytes, 0);
    // What was fetched is kept, if there is room for its file.
    store.set_hot_bytes_max(8192);
    clock.advance(LONG);
    let found = store.find(&scope, &prompts[0], ANY);
    fetch_all(&store, &found).expect("sound");
    drop(found);
    assert_eq!((tier(0), store.stats().hot_bytes), (Tier::Hot, 8192));
    assert!(keys.iter().all(|key| store.state(key) == State::Hit));
}

#[test]
fn without_a_folder_there_is_memory() {
    let config = hypura_kv::StoreConfig {
        cold: None,
        hot_bytes_max: 2500,
        ..cold(std::path::Path::new(""))
    };
    let store = open(config, &Arc::new(SystemDisk), &TestClock::new());
    let (scope, tokens) = (scope(1), tokens(40));
    put_all(&store, &scope, &tokens, &[10, 10]);
    let found = store.find(&scope, &tokens, ANY);
    assert_eq!((found.tokens, found.blocks[0].tier), (20, Tier::Hot));
    fetch_all(&store, &found).expect("sound");
    assert_eq!(store.put(block(&scope, &tokens[..10], 0, 1000), Vec::new()), Put::Known);
    assert_eq!(store.put(block(&scope, &tokens[..30], 20, 3000), Vec::new()), Put::TooLarge);
    // Everything is held.
    let next = block(&scope, &tokens[..30], 20, 1000);
    assert_eq!(store.put(next.clone(), Vec::new()), Put::Refused);
    drop(found);
    assert_eq!(store.put(next, Vec::new()), Put::Queued);
    // The one at the front was looked up last of the two.
    assert_eq!(store.find(&scope, &tokens, ANY).tokens, 10);
    let mut wrong = block(&scope, &tokens[..10], 0, 10);
    wrong.tokens.pop();
    assert_eq!(store.put(wrong, Vec::new()), Put::Malformed);
}
