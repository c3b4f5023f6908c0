//! Attention state in pieces: taken out of one context and put into another, the next tokens get the
//! same logits, bit for bit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypura_llama::{
    BatchToken, Context, ContextParams, FlashAttention, ImportBytes, Layout, Threadpool, plain,
};

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo-moe-54m-q4_k_m.gguf")
}

fn decode(context: &mut Context, tokens: &[i32], from: usize) -> Vec<f32> {
    let n = tokens.len();
    let batch: Vec<BatchToken> = (0..n)
        .map(|i| BatchToken {
            token: tokens[i],
            pos: i32::try_from(from + i).unwrap(),
            seq: 0,
            output: i + 1 == n,
        })
        .collect();
    context.decode(&batch).unwrap();
    context.logits(-1).unwrap().to_vec()
}

/// The logits of what follows `n` tokens: some one by one, and a batch.
fn follow(context: &mut Context, tokens: &[i32], n: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for i in n..n + 8 {
        all.extend(decode(context, &tokens[i..=i], i));
    }
    all.extend(decode(context, &tokens[n + 8..n + 20], n + 8));
    for i in n + 20..n + 24 {
        all.extend(decode(context, &tokens[i..=i], i));
    }
    all
}

fn check(path: &Path, flash: FlashAttention, type_kv: u32, n_prompt: usize, block: usize) {
    let model =
        plain::load(path, plain::Source::Mmap, Layout::Plain, plain::On::Cpu, &mut |_| true)
            .unwrap();
    let params = ContextParams {
        n_ctx: 1024,
        n_batch: 256,
        n_ubatch: 64,
        n_seq_max: 2,
        flash_attention: flash,
        type_k: type_kv,
        type_v: type_kv,
        ..ContextParams::default()
    };
    let threads = Arc::new(Threadpool::new(2, 50).unwrap());
    let mut context = Context::new(&model, &params, &threads).unwrap();
    let n_vocab = i32::try_from(model.vocab().n_tokens()).unwrap();
    let tokens: Vec<i32> = (0..1100).map(|i| (i * 7919 + 13) % n_vocab.min(251)).collect();
    let shape = context.state_shape().unwrap();
    let what = format!("{}, {flash:?}, type {type_kv}, {n_prompt}", path.display());

    let n = n_prompt + 9;
    let mut pieces = Vec::new();
    let mut at = 0;
    let keep_up = |context: &mut Context, now: usize, pieces: &mut Vec<(usize, usize, Vec<u8>)>| {
        let mut from: usize = pieces.iter().map(|p| p.1).sum();
        while from + block <= now || now == n && from < now {
            let to = now.min(from + block);
            let mut bytes = Vec::new();
            context.export_tokens(&shape, 0, from, to, &mut bytes).unwrap();
            pieces.push((from, to - from, bytes));
            from = to;
        }
    };
    while at < n_prompt {
        let to = n_prompt.min(at + 64);
        decode(&mut context, &tokens[at..to], at);
        at = to;
        keep_up(&mut context, at, &mut pieces);
    }
    while at < n {
        decode(&mut context, &tokens[at..=at], at);
        at += 1;
        keep_up(&mut context, at, &mut pieces);
    }
    let mut checkpoint = Vec::new();
    if shape.needs_checkpoint() {
        context.export_checkpoint(&shape, 0, &mut checkpoint).unwrap();
    }
    let expected = follow(&mut context, &tokens, n);

    context.release();
    context.revive().unwrap();
    for (from, len, bytes) in &pieces {
        context.import_tokens(&shape, 0, &mut ImportBytes::new(bytes), *from, *len).unwrap();
    }
    if shape.needs_checkpoint() {
        context.import_checkpoint(&shape, 0, &checkpoint).unwrap();
    }
    let got = follow(&mut context, &tokens, n);
    let differs = got.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differs, None, "{what}");
}

const F16: u32 = 1;
const Q8_0: u32 = 8;

#[test]
fn what_follows_is_the_same() {
    let mut paths = vec![demo()];
    if let Ok(more) = std::env::var("HYPURA_STATE_MODELS") {
        paths.extend(more.split(':').map(PathBuf::from));
    }
    for path in paths {
        for n in [200, 700] {
            for (flash, ty) in
                [(FlashAttention::On, F16), (FlashAttention::On, Q8_0), (FlashAttention::Off, F16)]
            {
                eprintln!("{} {n} {flash:?} {ty}", path.display());
                check(&path, flash, ty, n, 32);
            }
        }
    }
}
