//! Random operations against a plain map, while drives fail, files rot and processes restart.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{
    LONG, Random, TestClock, block, block_files, checkpoint, cold, fetch_all, folder_bytes, node,
    open, scope, with_bytes_max,
};
use hypura_kv::{
    Block, BlockKey, BlockKind, DiskFault, FaultDisk, Found, Health, Put, RETRY_AFTER, Scope,
    State, Store, StoreConfig, SystemDisk, Token, Want,
};

const CAP: u64 = 20 * 8192;
const TOKENS_MAX: usize = 24;

/// What was ever put: scope and tokens up to its end, and where it begins.
type Name = (u8, Vec<Token>, usize, bool);

struct Model {
    random: Random,
    dir: PathBuf,
    disk: Arc<FaultDisk<SystemDisk>>,
    clock: Arc<TestClock>,
    store: Option<Store>,
    put: BTreeMap<Name, BlockKey>,
    held: Vec<Found>,
}

impl Model {
    fn config(&mut self) -> StoreConfig {
        let mut config = with_bytes_max(cold(&self.dir), CAP);
        config.hot_bytes_max = [0, 3000, 30_000][self.random.below(3)];
        config.pending_bytes_max = [6000, 1 << 20][self.random.below(2)];
        config.read_depth = 1 + self.random.below(3);
        config
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("a store")
    }

    fn reopen(&mut self) {
        self.held.clear();
        self.store = None;
        self.disk.heal();
        let config = self.config();
        self.store = Some(open(config, &self.disk, &self.clock));
    }

    /// Few different prompts, so that they meet.
    fn prompt(&mut self) -> (u8, Vec<Token>) {
        let scope = u8::try_from(self.random.below(2)).expect("few");
        let n = 1 + self.random.below(TOKENS_MAX);
        let mut tokens: Vec<Token> = (0..).take(n).collect();
        for _ in 0..self.random.below(3) {
            let at = self.random.below(n);
            tokens[at] = Token::try_from(100 + self.random.below(2)).expect("few");
        }
        (scope, tokens)
    }

    /// Puts what a conversation of this length has, cut at random.
    fn put(&mut self) {
        let (n_scope, tokens) = self.prompt();
        let scope = scope(n_scope);
        let mut from = 0;
        let mut last = None;
        while from < tokens.len() {
            let end = tokens.len().min(from + 1 + self.random.below(8));
            let block = block(&scope, &tokens[..end], from, self.random.below(6000));
            let is_replacing = end == tokens.len() && self.random.below(4) == 0;
            let replaces = if is_replacing { last.into_iter().collect() } else { Vec::new() };
            last = Some(block.key);
            self.put_one((n_scope, tokens[..end].to_vec(), from, false), block, replaces);
            from = end;
        }
        if self.random.below(3) == 0 {
            let block = checkpoint(&scope, &tokens, self.random.below(6000));
            self.put_one((n_scope, tokens.clone(), tokens.len(), true), block, Vec::new());
        }
    }

    fn put_one(&mut self, name: Name, block: Block, replaces: Vec<BlockKey>) {
        self.put.insert(name, block.key);
        let put = self.store().put(block, replaces);
        assert!(!matches!(put, Put::Malformed), "{put:?}");
    }

    /// How many tokens the blocks allow that the store says it has.
    fn reach(&self, n_scope: u8, tokens: &[Token], want: Want) -> usize {
        let limit = tokens.len().min(want.tokens_max);
        let there: Vec<(&Name, &BlockKey)> = self
            .put
            .iter()
            .filter(|((scope, ..), key)| {
                *scope == n_scope && self.store().state(key) != State::Miss
            })
            .collect();
        let mut reached = vec![false; limit + 1];
        reached[0] = true;
        let mut best = 0;
        for at in 0..=limit {
            if !reached[at] {
                continue;
            }
            let before = &tokens[..at];
            let is_end = !want.checkpoint
                || there
                    .iter()
                    .any(|((_, of, _, is_checkpoint), _)| *is_checkpoint && of == before);
            if is_end {
                best = best.max(at);
            }
            for ((_, of, from, is_checkpoint), _) in &there {
                if *is_checkpoint || *from != at || of[..at] != *before {
                    continue;
                }
                let common = of.iter().zip(&tokens[..limit]).take_while(|(a, b)| a == b).count();
                if common == of.len() {
                    reached[common] = true;
                } else if !want.checkpoint {
                    best = best.max(common);
                }
            }
        }
        best
    }

    fn find(&mut self, is_sound: bool) {
        let (n_scope, tokens) = self.prompt();
        let scope = scope(n_scope);
        let tokens_max = if self.random.below(3) == 0 { self.random.below(30) } else { usize::MAX };
        let want = Want { checkpoint: self.random.below(3) == 0, tokens_max };
        // Each error removes what it is about.
        for _ in 0..200 {
            assert!(self.store().flush(LONG));
            let expected = self.reach(n_scope, &tokens, want);
            let found = self.store().find(&scope, &tokens, want);
            check_found(&scope, &tokens, want, &found);
            if is_sound {
                assert_eq!(found.tokens, expected, "{tokens:?} {want:?} {found:?}");
            }
            match fetch_all(self.store(), &found) {
                Ok(_) => {
                    if self.random.below(4) == 0 {
                        self.held.push(found);
                        self.held.truncate(2);
                    }
                    return;
                }
                Err(error) => assert!(!is_sound, "{error}"),
            }
        }
        panic!("errors without end");
    }

    fn spoil_a_file(&mut self) {
        assert!(self.store().flush(LONG)); // or a file might come back that was just evicted
        let files = block_files(&self.dir);
        if files.is_empty() {
            return;
        }
        let path = self.dir.join(&files[self.random.below(files.len())]);
        let mut image = fs::read(&path).expect("an image");
        match self.random.below(4) {
            0 => fs::remove_file(&path).expect("removed"),
            1 => fs::write(&path, &image[..self.random.below(image.len())]).expect("written"),
            _ => {
                let at = self.random.below(image.len());
                image[at] ^= 1 << self.random.below(8);
                fs::write(&path, image).expect("written");
            }
        }
    }

    fn step(&mut self, with_faults: bool) {
        self.clock.advance(Duration::from_secs(1));
        match self.random.below(if with_faults { 12 } else { 9 }) {
            0..4 => self.put(),
            4..7 => self.find(!with_faults),
            7 => {
                if self.random.below(4) == 0 {
                    self.reopen();
                }
            }
            8 => {
                let bytes = [0, 5000, 50_000][self.random.below(3)];
                self.store().set_hot_bytes_max(bytes);
                self.held.pop();
            }
            9 => {
                let fault = [DiskFault::Error, DiskFault::Full, DiskFault::Crash];
                let fault = fault[self.random.below(3)];
                self.disk.fail_after(self.random.below(30) as u64, fault);
            }
            10 => self.spoil_a_file(),
            _ => {
                self.disk.heal();
                self.clock.advance(RETRY_AFTER);
            }
        }
        assert!(folder_bytes(&self.dir) <= CAP);
        assert_eq!(self.disk.unlocked_writes(), 0);
    }
}

/// What every answer has to satisfy.
fn check_found(scope: &Scope, tokens: &[Token], want: Want, found: &Found) {
    assert!(found.tokens <= tokens.len().min(want.tokens_max));
    let mut at = 0;
    for (n, block) in found.blocks.iter().enumerate() {
        assert_eq!((block.from as usize, block.key.kind), (at, BlockKind::Tokens));
        assert_eq!(block.key.parent, node(scope, &tokens[..at]));
        at += block.used_tokens as usize;
        if block.used_tokens == block.key.n_tokens {
            assert_eq!(block.key.node, node(scope, &tokens[..at]));
        } else {
            assert!(!want.checkpoint && n + 1 == found.blocks.len());
        }
    }
    assert_eq!(at, found.tokens);
    assert_eq!(found.checkpoint.is_some(), want.checkpoint && at > 0);
    if let Some(checkpoint) = &found.checkpoint {
        assert_eq!(checkpoint.key, BlockKey::checkpoint(node(scope, &tokens[..at])));
    }
}

fn model(dir: &Path, seed: u64) -> Model {
    let mut model = Model {
        random: Random::new(seed),
        dir: dir.to_owned(),
        disk: Arc::new(FaultDisk::unsynced(SystemDisk)),
        clock: TestClock::new(),
        store: None,
        put: BTreeMap::new(),
        held: Vec::new(),
    };
    model.reopen();
    model
}

#[test]
fn without_faults_everything_that_is_there_is_found() {
    for seed in 0..12 {
        let dir = tempfile::tempdir().expect("a folder");
        let mut model = model(dir.path(), seed);
        for _ in 0..120 {
            model.step(false);
        }
        assert!(model.store().flush(LONG));
        let stats = model.store().stats();
        assert_eq!((stats.blocks_damaged, stats.write_errors), (0, 0));
        // What is in the folder is what the next process has.
        let durable = block_files(dir.path()).len();
        model.reopen();
        assert_eq!(model.store().stats().cold_files, durable as u64);
        let there = model.put.values().filter(|key| model.store().state(key) == State::Hit);
        assert_eq!(there.count(), durable, "each file is a block that was put");
        for _ in 0..30 {
            model.find(true);
        }
    }
}

#[test]
fn with_faults_nothing_wrong_is_delivered() {
    for seed in 100..130 {
        let dir = tempfile::tempdir().expect("a folder");
        let mut model = model(dir.path(), seed);
        for _ in 0..120 {
            model.step(true);
        }
        // On a sound drive it recovers, and after what is damaged was met, all is as it should be.
        model.reopen();
        for _ in 0..60 {
            model.find(false);
        }
        model.put();
        assert!(model.store().flush(LONG));
        assert_eq!(model.store().health(), Health::Healthy);
        assert!(folder_bytes(dir.path()) <= CAP);
    }
}
