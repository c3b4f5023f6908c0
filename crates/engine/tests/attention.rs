//! Attention state that was kept elsewhere: after whatever happened to it, the answer is the one of
//! a conversation that went on undisturbed, logits included, bit for bit.

mod common;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{alone, demo, gpu_under_test, greedy, options};
use hypura_engine::kv::{DiskFault, FaultDisk, Session, SystemDisk};
use hypura_engine::llama::{BatchToken, FlashAttention};
use hypura_engine::plan::KvType;
use hypura_engine::{
    Engine, Generated, GpuChoice, HotLimit, KvOptions, LoadOptions, Settled, pack_session,
    unpack_session,
};
use hypura_testkit::text::forced_tokens;
use hypura_testkit::tiny;
use sha2::{Digest, Sha256};

/// Tokens of an answer, and of what is said next.
const ANSWER: usize = 9;
const NEXT: usize = 24;
const VOCABULARY: usize = 256;
const LONG: Duration = Duration::from_secs(60);

fn tiny_model(folder: &Path, name: &str, seed: u64) -> PathBuf {
    let path = folder.join(format!("{name}-{seed}.gguf"));
    if !path.exists() {
        let recipe = tiny::find(name).unwrap();
        recipe.model(recipe.default_mix, seed).unwrap().write(&path).unwrap();
    }
    path
}

/// Options with tiers: nothing in them is left to speed.
fn with_tiers(flash: FlashAttention, cold_dir: Option<PathBuf>) -> LoadOptions {
    LoadOptions {
        all_outputs: false,
        ctx_tokens: 1024,
        kv: Some(KvOptions { cold_dir, always_restore: true, ..KvOptions::default() }),
        ..options(flash)
    }
}

fn start(path: &Path, options: &LoadOptions) -> Engine {
    Engine::start(hypura_engine::load(path, options, &mut |_| true).unwrap()).unwrap()
}

fn generate(engine: &Engine, prompt: &[i32], n: usize) -> Generated {
    engine.generate(greedy(prompt, n), |_| {}).unwrap().unwrap()
}

fn settle(engine: &Engine) -> Settled {
    let settled = engine.settle(LONG).unwrap().unwrap();
    assert!(settled.is_complete);
    settled
}

/// What was said first, and after the answer to it.
fn follow_up(prompt: &[i32], answer: &Generated) -> Vec<i32> {
    [prompt, &answer.tokens, &forced_tokens(9, NEXT, VOCABULARY)].concat()
}

/// A conversation that nothing happens to: the first answer, what is said next, the second answer.
fn undisturbed(
    path: &Path,
    options: &LoadOptions,
    prompt: &[i32],
) -> (Generated, Vec<i32>, Generated) {
    let engine = start(path, options);
    let first = generate(&engine, prompt, ANSWER);
    let next = follow_up(prompt, &first);
    let expected = generate(&engine, &next, ANSWER);
    (first, next, expected)
}

#[track_caller]
fn assert_same(got: &Generated, expected: &Generated, what: &str) {
    assert_eq!(got.tokens, expected.tokens, "{what}");
    assert_eq!(got.logits_sha256, expected.logits_sha256, "{what}: the logits differ");
}

/// A conversation of two turns: undisturbed, and with a restart in between.
fn check_restart(path: &Path, options: &LoadOptions, n_prompt: usize, what: &str) {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let prompt = forced_tokens(7, n_prompt, VOCABULARY);
    let undisturbed = start(path, options);
    let first = generate(&undisturbed, &prompt, ANSWER);
    let next = follow_up(&prompt, &first);
    let expected = generate(&undisturbed, &next, ANSWER);
    assert_eq!(expected.reused_tokens, n_prompt + ANSWER - 1, "{what}");
    drop(undisturbed);

    let mut options = options.clone();
    options.kv.as_mut().unwrap().cold_dir = Some(folder.path().to_owned());
    let before = start(path, &options);
    assert_same(&generate(&before, &prompt, ANSWER), &first, what);
    drop(before);
    let after = start(path, &options);
    let got = generate(&after, &next, ANSWER);
    assert_eq!(got.reused_tokens, n_prompt + ANSWER - 1, "{what}");
    assert_eq!(got.kv.cold_tokens, got.reused_tokens, "{what}");
    assert_same(&got, &expected, what);
}

fn check_family(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), name, 3);
    for (flash, ty) in [
        (FlashAttention::On, KvType::F16),
        (FlashAttention::On, KvType::Q8_0),
        (FlashAttention::Off, KvType::F16),
    ] {
        for n_prompt in [200, 700] {
            let options = LoadOptions { kv_type_k: ty, kv_type_v: ty, ..with_tiers(flash, None) };
            check_restart(
                &path,
                &options,
                n_prompt,
                &format!("{name} {flash:?} {ty:?} {n_prompt}"),
            );
        }
    }
}

macro_rules! families {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { check_family($name); })*
    };
}

families! {
    dense: "llama",
    sliding_window: "gemma3",
    experts: "qwen3moe",
    latent_attention: "deepseek2",
    sinks_and_window: "gpt-oss",
    hybrid: "qwen3next",
    hybrid_experts: "qwen35moe",
}

#[test]
fn the_demo_model() {
    for flash in [FlashAttention::On, FlashAttention::Off] {
        let path = demo("demo-moe-54m-q4_k_m.gguf");
        check_restart(&path, &with_tiers(flash, None), 700, &format!("demo {flash:?}"));
    }
}

#[test]
fn a_long_conversation() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen3moe", "gemma3", "qwen3next"] {
        let path = tiny_model(folder.path(), name, 3);
        let options = LoadOptions { ctx_tokens: 4608, ..with_tiers(FlashAttention::On, None) };
        check_restart(&path, &options, 4096 + 137, &format!("{name}, long"));
    }
}

#[test]
fn weights_may_be_streamed_meanwhile() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "qwen3moe", 3);
    let cold = folder.path().join("kv");
    let prompt = forced_tokens(7, 300, VOCABULARY);
    let options = with_tiers(FlashAttention::On, None);
    let (_, next, expected) = undisturbed(&path, &options, &prompt);
    // Written by a resident model, read by one that streams, and the other way round.
    let options = with_tiers(FlashAttention::On, Some(cold));
    let streamed = || Engine::start(common::load_share(&path, &options, 0.3)).unwrap();
    generate(&start(&path, &options), &prompt, ANSWER);
    let got = generate(&streamed(), &next, ANSWER);
    assert_eq!(got.kv.cold_tokens, 300 + ANSWER - 1);
    assert_same(&got, &expected, "streamed after resident");
    let other = tempfile::tempdir().unwrap();
    let options = with_tiers(FlashAttention::On, Some(other.path().to_owned()));
    let streamed = Engine::start(common::load_share(&path, &options, 0.3)).unwrap();
    generate(&streamed, &prompt, ANSWER);
    drop(streamed);
    assert_same(&generate(&start(&path, &options), &next, ANSWER), &expected, "the other way");
}

#[test]
fn idle_memory_is_given_back_and_filled_again() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for (name, share) in
        [("qwen3moe", 1.0), ("qwen3moe", 0.3), ("llama", 0.5), ("gemma3", 1.0), ("qwen3next", 0.3)]
    {
        let what = format!("{name}, {share}");
        let path = tiny_model(folder.path(), name, 3);
        let prompt = forced_tokens(7, 400, VOCABULARY);
        let mut options = with_tiers(FlashAttention::On, None);
        let (_, next, expected) = undisturbed(&path, &options, &prompt);

        let kv = options.kv.as_mut().unwrap();
        kv.cold_dir = Some(folder.path().join(format!("kv-{what}")));
        kv.hot = Some(HotLimit::Tokens(64));
        kv.idle = Duration::ZERO;
        kv.block_tokens = Some(32);
        let engine = Engine::start(common::load_share(&path, &options, share)).unwrap();
        generate(&engine, &prompt, ANSWER);
        let begin = Instant::now();
        while !settle(&engine).is_released {
            assert!(begin.elapsed() < LONG, "{what}: the context is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
        let got = generate(&engine, &next, ANSWER);
        assert_eq!(got.kv.restored_tokens, 400 + ANSWER - 1, "{what}");
        assert!(name == "qwen3next" || got.kv.hot_tokens > 0, "{what}: {:?}", got.kv);
        assert_same(&got, &expected, &what);
    }
}

#[test]
fn models_of_the_same_shape_share_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let cold = folder.path().join("kv");
    let options = with_tiers(FlashAttention::On, Some(cold));
    let (ours, theirs) =
        (tiny_model(folder.path(), "llama", 3), tiny_model(folder.path(), "llama", 4));
    // One bit of one weight is another model too.
    let nearly = folder.path().join("nearly.gguf");
    let mut bytes = std::fs::read(&ours).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&nearly, bytes).unwrap();

    let prompt = forced_tokens(7, 300, VOCABULARY);
    let first = generate(&start(&ours, &options), &prompt, ANSWER);
    let next = follow_up(&prompt, &first);
    for other in [&theirs, &nearly] {
        let got = generate(&start(other, &options), &next, ANSWER);
        assert_eq!((got.reused_tokens, got.kv.known_tokens), (0, 0), "{}", other.display());
    }
    // Other models in between change nothing. A copy elsewhere is the same model.
    let copy = folder.path().join("copy.gguf");
    std::fs::copy(&ours, &copy).unwrap();
    let got = generate(&start(&copy, &options), &next, ANSWER);
    assert_eq!(got.kv.cold_tokens, 300 + ANSWER - 1);
    // Other settings are other state, and so are other people.
    let with = |change: &dyn Fn(&mut LoadOptions)| {
        let mut options = options.clone();
        change(&mut options);
        generate(&start(&ours, &options), &next, 1).kv.known_tokens
    };
    assert_eq!(with(&|options| options.kv_type_k = KvType::Q8_0), 0);
    assert_eq!(with(&|options| options.flash_attention = FlashAttention::Off), 0);
    if gpu_under_test() == GpuChoice::Off {
        // A GPU knows one layout.
        assert_eq!(with(&|options| options.layout = hypura_engine::llama::Layout::Fast), 0);
    }
    assert_eq!(with(&|options| options.kv.as_mut().unwrap().tenant = "them".into()), 0);
    assert!(with(&|_| {}) > 300);
}

/// What a model says that has computed `live` in some way, is cut back to its first `keep` tokens,
/// and then gets `prompt`; computed on a bare context.
fn cut_and_go_on(
    path: &Path,
    options: &LoadOptions,
    prompts: [&[i32]; 2],
    keep: usize,
) -> (Vec<i32>, String) {
    let mut loaded = hypura_engine::load(path, options, &mut |_| true).unwrap();
    let context = &mut loaded.context;
    let mut done = 0;
    let mut said = (Vec::new(), String::new());
    for (turn, prompt) in prompts.into_iter().enumerate() {
        if turn == 1 {
            assert!(context.forget(0, i32::try_from(keep).unwrap(), -1));
            done = keep;
        }
        let mut tokens = prompt.to_vec();
        let mut hash = Sha256::new();
        let mut chosen = Vec::new();
        while chosen.len() < ANSWER {
            let to = tokens.len().min(done + context.n_ubatch());
            let batch: Vec<BatchToken> = (done..to)
                .map(|i| BatchToken {
                    token: tokens[i],
                    pos: i32::try_from(i).unwrap(),
                    seq: 0,
                    output: i + 1 == tokens.len(),
                })
                .collect();
            context.decode(&batch).unwrap();
            done = to;
            if done < tokens.len() {
                continue;
            }
            let row = context.logits(-1).unwrap();
            row.iter().for_each(|logit| hash.update(logit.to_le_bytes()));
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            chosen.push(i32::try_from(best).unwrap());
            tokens.push(chosen[chosen.len() - 1]);
        }
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        said = (chosen, hash);
    }
    said
}

/// The cold tier's blocks of tokens: path and first token, in order.
fn blocks(cold: &Path) -> Vec<(PathBuf, usize)> {
    let mut blocks: Vec<(PathBuf, usize)> = std::fs::read_dir(cold)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "kv"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let from = name.split('-').nth(2).unwrap().parse().unwrap();
            (path, from)
        })
        .collect();
    blocks.sort_by_key(|(_, from)| *from);
    blocks
}

type Harm = (&'static str, fn(&Path, &[(PathBuf, usize)]));

#[test]
fn harmed_blocks_are_computed_again() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "qwen3moe", 3);
    let prompt = forced_tokens(7, 300, VOCABULARY);
    let mut bare = with_tiers(FlashAttention::On, None);
    bare.kv.as_mut().unwrap().block_tokens = Some(64);
    let first = generate(&start(&path, &bare), &prompt, ANSWER);
    let next = follow_up(&prompt, &first);
    let harms: [Harm; 5] = [
        ("cut off", |block, _| {
            let bytes = std::fs::read(block).unwrap();
            std::fs::write(block, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("one bit", |block, _| {
            let mut bytes = std::fs::read(block).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            std::fs::write(block, bytes).unwrap();
        }),
        ("missing", |block, _| std::fs::remove_file(block).unwrap()),
        ("another block", |block, all| {
            std::fs::copy(&all[1].0, block).unwrap();
        }),
        ("empty", |block, _| std::fs::write(block, b"").unwrap()),
    ];
    for (what, harm) in harms {
        let cold = tempfile::tempdir().unwrap();
        let mut options = bare.clone();
        options.kv.as_mut().unwrap().cold_dir = Some(cold.path().to_owned());
        generate(&start(&path, &options), &prompt, ANSWER);
        let all = blocks(cold.path());
        let (block, from) = &all[3];
        assert_eq!(*from, 192);
        harm(block, &all);
        let engine = start(&path, &options);
        let got = generate(&engine, &next, ANSWER);
        assert_eq!(got.reused_tokens, 192, "{what}");
        let (tokens, logits) = cut_and_go_on(&path, &bare, [&prompt, &next], 192);
        assert_eq!(got.tokens, tokens, "{what}");
        assert_eq!(got.logits_sha256, Some(logits), "{what}");
        // What was computed again is there again.
        drop(engine);
        let engine = start(&path, &options);
        assert_eq!(generate(&engine, &next, 1).reused_tokens, next.len() - 1, "{what}");
    }
}

#[test]
fn a_damaged_checkpoint_is_computed_again() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "qwen3next", 3);
    let prompt = forced_tokens(7, 300, VOCABULARY);
    let cold = folder.path().join("kv");
    let options = with_tiers(FlashAttention::On, Some(cold.clone()));
    let fresh = start(&path, &with_tiers(FlashAttention::On, None));
    let first = generate(&start(&path, &options), &prompt, ANSWER);
    let next = follow_up(&prompt, &first);
    let expected = generate(&fresh, &next, ANSWER);
    for entry in std::fs::read_dir(&cold).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "ck") {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let got = generate(&start(&path, &options), &next, ANSWER);
    assert_eq!(got.reused_tokens, 0);
    assert!(got.kv.lost_blocks > 0);
    assert_same(&got, &expected, "from the beginning");
}

#[test]
fn a_fork_shares_what_it_shares() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "llama", 3);
    let cold = folder.path().join("kv");
    let options = with_tiers(FlashAttention::On, Some(cold));
    let prompt = forced_tokens(7, 300, VOCABULARY);
    generate(&start(&path, &options), &prompt, ANSWER);
    // In the middle of a block.
    for (seed, shared) in [(11, 270), (12, 150), (13, 1)] {
        let other = [&prompt[..shared], &forced_tokens(seed, 40, VOCABULARY)].concat();
        let got = generate(&start(&path, &options), &other, ANSWER);
        assert_eq!(got.reused_tokens, shared);
        let bare = with_tiers(FlashAttention::On, None);
        let (tokens, logits) = cut_and_go_on(&path, &bare, [&prompt, &other], shared);
        assert_eq!((got.tokens, got.logits_sha256), (tokens, Some(logits)), "{shared}");
    }
}

#[test]
fn a_window_can_go_another_way_too() {
    if gpu_under_test() != GpuChoice::Off {
        // Not bit for bit there: CUDA's attention divides the cells in use among its blocks, and
        // rows that the window has left are among them in one process and not in another.
        return;
    }
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "gpt-oss", 3);
    let options = with_tiers(FlashAttention::On, Some(folder.path().join("kv")));
    let prompt = forced_tokens(7, 600, VOCABULARY);
    let engine = start(&path, &options);
    generate(&engine, &prompt, 1);
    // Its window has long moved on; the same in one process and in another.
    let other = [&prompt[..150], &forced_tokens(5, 40, VOCABULARY)].concat();
    let here = generate(&engine, &other, ANSWER);
    assert_eq!(here.reused_tokens, 150);
    drop(engine);
    let there = generate(&start(&path, &options), &other, ANSWER);
    assert_same(&there, &here, "in another process");
    // As if nothing else had been said.
    let bare = start(&path, &with_tiers(FlashAttention::On, None));
    generate(&bare, &prompt[..150], 1);
    assert_same(&generate(&bare, &other, ANSWER), &here, "from a fresh start");
}

#[test]
fn a_tier_that_fails_is_a_tier_that_knows_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "qwen3moe", 3);
    let prompt = forced_tokens(7, 300, VOCABULARY);
    let (first, next, expected) =
        undisturbed(&path, &with_tiers(FlashAttention::On, None), &prompt);

    // Each operation of a conversation fails once, in each way. Whatever is left afterwards, the
    // answer is the one of a conversation whose state was cut back to as much as is known.
    let mut bare = with_tiers(FlashAttention::On, None);
    bare.kv.as_mut().unwrap().block_tokens = Some(64);
    let mut cut = HashMap::new();
    let mut reused = HashSet::new();
    for (n, fault) in
        (0..30).zip([DiskFault::Error, DiskFault::Full, DiskFault::Crash].iter().cycle())
    {
        let cold = folder.path().join(format!("kv-{n}"));
        let mut options = bare.clone();
        let kv = options.kv.as_mut().unwrap();
        kv.cold_dir = Some(cold);
        let healthy = options.clone();
        let disk = Arc::new(FaultDisk::new(SystemDisk));
        options.kv.as_mut().unwrap().disk = Some(disk.clone());
        let engine = start(&path, &options);
        disk.fail_after(n, *fault);
        assert_same(&generate(&engine, &prompt, ANSWER), &first, "with a failing disk");
        drop(engine);
        let got = generate(&start(&path, &healthy), &next, ANSWER);
        let (tokens, logits) = cut
            .entry(got.reused_tokens)
            .or_insert_with(|| cut_and_go_on(&path, &bare, [&prompt, &next], got.reused_tokens));
        assert_eq!(&got.tokens, tokens, "{n}, {fault:?}");
        assert_eq!(got.logits_sha256.as_ref(), Some(&*logits), "{n}, {fault:?}");
        reused.insert(got.reused_tokens);
    }
    assert!(reused.len() > 2, "faults made no difference: {reused:?}");

    // The folder is gone.
    let cold = folder.path().join("gone");
    let options = with_tiers(FlashAttention::On, Some(cold.clone()));
    generate(&start(&path, &options), &prompt, ANSWER);
    let engine = start(&path, &options);
    std::fs::remove_dir_all(&cold).unwrap();
    let got = generate(&engine, &prompt, ANSWER);
    assert_same(&got, &first, "without its folder");
    assert_same(&generate(&engine, &next, ANSWER), &expected, "without its folder");
}

#[test]
fn a_conversation_moves_to_another_machine() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen3next"] {
        let path = tiny_model(folder.path(), name, 3);
        let here = KvOptions {
            cold_dir: Some(folder.path().join(format!("here-{name}"))),
            always_restore: true,
            ..KvOptions::default()
        };
        let there = KvOptions {
            cold_dir: Some(folder.path().join(format!("there-{name}"))),
            ..here.clone()
        };
        let with = |kv: &KvOptions| LoadOptions {
            kv: Some(kv.clone()),
            ..with_tiers(FlashAttention::On, None)
        };
        let prompt = forced_tokens(7, 300, VOCABULARY);
        let (_, next, expected) =
            undisturbed(&path, &with_tiers(FlashAttention::On, None), &prompt);

        let engine = start(&path, &with(&here));
        generate(&engine, &prompt, ANSWER);
        let scope = engine.kv_fields().unwrap().clone();
        drop(engine);
        let session = Session {
            model_name: name.to_owned(),
            model_fingerprint: scope.model.clone(),
            scope: scope.clone(),
            messages: Vec::new(),
            tokens: next[..next.len() - NEXT].to_vec(),
            text: String::new(),
            created_unix_s: 1,
            updated_unix_s: 2,
        };
        let mut file = Vec::new();
        let packed = pack_session(&session, &here, &mut file).unwrap();
        assert_eq!(packed.tokens, 300 + ANSWER - 1);
        assert_eq!(packed.bytes, file.len() as u64);
        let unpacked = unpack_session(file.as_slice(), &scope.model, &there).unwrap();
        assert_eq!((unpacked.tokens, &unpacked.note), (packed.tokens, &None));
        assert_eq!(unpacked.session.tokens, session.tokens);

        // Its state is its own: others don't get it.
        let stranger = start(&path, &with(&there));
        assert_eq!(generate(&stranger, &next, 1).kv.known_tokens, 0);
        drop(stranger);
        let tenant = unpacked.session.scope.tenant;
        let engine = start(&path, &with(&KvOptions { tenant, ..there.clone() }));
        let got = generate(&engine, &next, ANSWER);
        assert_eq!(got.kv.cold_tokens, 300 + ANSWER - 1);
        assert_same(&got, &expected, name);

        let refused = unpack_session(file.as_slice(), "ff", &there).unwrap_err();
        assert!(refused.to_string().contains("another model"), "{refused}");
        let cut = unpack_session(&file[..file.len() - 40], &scope.model, &there);
        assert!(cut.is_err());
    }
}

#[test]
fn computing_is_chosen_where_it_is_faster() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(folder.path(), "llama", 3);
    let mut options = with_tiers(FlashAttention::On, Some(folder.path().join("kv")));
    options.kv.as_mut().unwrap().always_restore = false;
    let prompt = forced_tokens(7, 700, VOCABULARY);
    generate(&start(&path, &options), &prompt, ANSWER);
    let engine = start(&path, &options);
    for n in [2, 700] {
        let got = generate(&engine, &prompt[..n], 1);
        let expected = got.kv.expected_restore_s >= got.kv.expected_compute_s;
        assert_eq!(got.kv.declined, expected, "{n}: {:?}", got.kv);
        assert_eq!(got.kv.known_tokens, n - 1);
        assert_eq!(got.kv.restored_tokens > 0, !expected, "{n}: {:?}", got.kv);
    }
}
