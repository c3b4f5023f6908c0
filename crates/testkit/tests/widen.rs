//! A widened model says the same words, and no page of it is empty.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::Runner;
use hypura_gguf::{GgmlType, Model};
use hypura_llama::quants;
use hypura_testkit::text::forced_tokens;
use hypura_testkit::tiny::{self, Mix};
use hypura_testkit::widen::{Options, WidenError, widen};

const PROMPT: &str = "<|im_start|>user\nTell me a story about a fox.<|im_end|>\n\
    <|im_start|>assistant\nOnce upon a time";

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

fn options(times: u32, ffn_type: Option<GgmlType>) -> Options {
    Options { times, ffn_type, requantize: None, seed: 1 }
}

fn widened(model: &Path, out: &Path, options: &Options) -> Model {
    let mut last = (0, 1);
    widen(model, out, options, &mut |done, total| {
        assert!(done >= last.0 && done <= total);
        last = (done, total);
    })
    .unwrap();
    assert_eq!(last.0, last.1, "the progress ends at its end");
    assert_eq!(fs::metadata(out).unwrap().len(), last.1);
    Model::open(out).unwrap()
}

/// The bytes of a tensor, dequantized.
fn values(model: &Model, name: &str) -> (Vec<f32>, usize, usize) {
    let tensor = model.tensor(name).unwrap();
    let bytes = fs::read(&model.files[tensor.file].path).unwrap();
    let start = usize::try_from(tensor.offset).unwrap();
    let bytes = &bytes[start..start + usize::try_from(tensor.bytes).unwrap()];
    let dims = tensor.dims.map(|n| usize::try_from(n).unwrap());
    let mut values = vec![f32::NAN; dims.iter().product()];
    quants::dequantize_row(tensor.ty.id(), bytes, &mut values).unwrap();
    (values, dims[0], dims[1])
}

/// Greedy text of a file and of the same file widened; and the logits of forced tokens, which must
/// be the same bits: new neurons add zeros.
fn assert_same_words(plain: &Path, wide: &Path) {
    let said = |path: &Path| {
        let mut runner = Runner::load(path);
        let prompt = runner.model.vocab().tokenize(PROMPT, true, true);
        let said = runner.greedy(&prompt, 32);
        let text: Vec<u8> =
            said.iter().flat_map(|&token| runner.model.vocab().piece(token, true)).collect();
        (said, String::from_utf8_lossy(&text).into_owned())
    };
    let (expected, found) = (said(plain), said(wide));
    assert_eq!(found, expected);
    let distinct: std::collections::BTreeSet<_> = found.0.iter().collect();
    assert!(distinct.len() > 12, "a trained model says more than {:?}", found.1);
    assert_same_logits(plain, wide);
}

fn assert_same_logits(plain: &Path, wide: &Path) {
    let tokens = forced_tokens(3, 12, 256);
    assert_eq!(Runner::load(wide).logits(&tokens), Runner::load(plain).logits(&tokens));
}

#[test]
fn the_demo_model_says_the_same_words_at_three_times_its_width() {
    let folder = tempfile::tempdir().unwrap();
    let model = shipped("demo-moe-54m-q4_k_m.gguf");
    for ty in [Some(GgmlType::Q8_0), Some(GgmlType::Q4_0), None] {
        let (plain, wide) = (folder.path().join("plain.gguf"), folder.path().join("wide.gguf"));
        widened(&model, &plain, &options(1, ty));
        let written = widened(&model, &wide, &options(3, ty));
        assert_eq!(written.metadata.u32("qwen3moe.expert_feed_forward_length"), Some(3 * 256));
        assert_same_words(&plain, &wide);
    }
}

#[test]
fn the_dense_model_says_the_same_words_at_four_times_its_width() {
    let folder = tempfile::tempdir().unwrap();
    let model = shipped("demo-draft-3m-q8_0.gguf");
    for ty in [None, Some(GgmlType::Q4_0)] {
        let (plain, wide) = (folder.path().join("plain.gguf"), folder.path().join("wide.gguf"));
        widened(&model, &plain, &options(1, ty));
        widened(&model, &wide, &options(4, ty));
        assert_same_words(&plain, &wide);
    }
}

#[test]
fn widening_without_a_type_keeps_the_old_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let model = shipped("demo-moe-54m-q4_k_m.gguf");
    let copy = folder.path().join("copy.gguf");
    widened(&model, &copy, &options(1, None));
    let (old, new) = (Model::open(&model).unwrap(), Model::open(&copy).unwrap());
    assert_eq!(old.metadata, new.metadata);
    let (old_bytes, new_bytes) = (fs::read(&model).unwrap(), fs::read(&copy).unwrap());
    for (a, b) in old.tensors.iter().zip(&new.tensors) {
        let slice = |bytes: &[u8], t: &hypura_gguf::Tensor| {
            bytes[usize::try_from(t.offset).unwrap()..][..usize::try_from(t.bytes).unwrap()]
                .to_vec()
        };
        assert_eq!((&a.name, a.ty, a.dims), (&b.name, b.ty, b.dims));
        assert!(slice(&old_bytes, a) == slice(&new_bytes, b), "{}", a.name);
    }
}

#[test]
fn new_gate_rows_are_zero_others_random_and_no_page_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let model = shipped("demo-moe-54m-q4_k_m.gguf");
    let old = Model::open(&model).unwrap();
    for ty in [GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_K] {
        let out = folder.path().join("wide.gguf");
        let new = widened(&model, &out, &options(4, Some(ty)));

        let bytes = fs::read(&out).unwrap();
        let data = usize::try_from(new.files[0].data_offset).unwrap();
        let empty = bytes[data..].chunks(4096).filter(|page| page.iter().all(|&b| b == 0)).count();
        assert_eq!(empty, 0, "{ty}: empty pages");

        for name in ["blk.0.ffn_gate_exps.weight", "blk.7.ffn_gate_exps.weight"] {
            let ((old, ..), (new, columns, rows)) = (values(&old, name), values(&new, name));
            assert_eq!((columns, rows), (256, 1024));
            for (old, new) in old.chunks(256 * 256).zip(new.chunks(columns * rows)) {
                let (kept, zero) = new.split_at(256 * 256);
                assert!(zero.iter().all(|&v| v == 0.0), "{ty} {name}");
                assert_close(old, kept, ty);
            }
        }
        let (up, columns, rows) = values(&new, "blk.3.ffn_up_exps.weight");
        for expert in up.chunks(columns * rows) {
            assert_random(&expert[256 * 256..], 1.0 / 16.0);
        }
        let ((old, ..), (down, columns, rows)) = (
            values(&old, "blk.3.ffn_down_exps.weight"),
            values(&new, "blk.3.ffn_down_exps.weight"),
        );
        assert_eq!((columns, rows), (1024, 256));
        let kept: Vec<f32> = down.chunks(columns).flat_map(|row| row[..256].to_vec()).collect();
        let random: Vec<f32> = down.chunks(columns).flat_map(|row| row[256..].to_vec()).collect();
        assert_close(&old, &kept, ty);
        assert_random(&random, 1.0 / 32.0);
    }
}

/// As close as the quantization allows.
fn assert_close(old: &[f32], new: &[f32], ty: GgmlType) {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    let error = norm(&mut old.iter().zip(new).map(|(a, b)| a - b)) / norm(&mut old.iter().copied());
    let most = if ty == GgmlType::Q8_0 { 0.01 } else { 0.12 };
    assert!(error < most, "{ty}: relative error {error}");
}

#[allow(clippy::cast_precision_loss)]
fn assert_random(values: &[f32], rms: f32) {
    let found = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
    assert!((0.9..1.1).contains(&(found / rms)), "rms {found}, wanted {rms}");
}

/// All ways in which llama.cpp derives a width: own keys, shared experts, fused gate and up.
#[test]
fn tiny_models_keep_their_logits_when_widened() {
    let folder = tempfile::tempdir().unwrap();
    let with_experts = ["llama-moe", "qwen3moe", "qwen2moe", "deepseek2", "deepseek2-fused"];
    for name in with_experts.into_iter().chain(["qwen3next", "qwen35moe", "gemma3", "llama"]) {
        for mix in [Mix::Q8_0, Mix::Q4_K_M] {
            let (plain, wide) = (folder.path().join("plain.gguf"), folder.path().join("wide.gguf"));
            tiny::find(name).unwrap().model(mix, 1).unwrap().write(&plain).unwrap();
            widened(&plain, &wide, &options(3, None));
            assert_same_logits(&plain, &wide);
        }
    }
}

#[test]
fn matrices_take_the_type_asked_for_where_it_fits() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    let model = shipped("demo-moe-54m-q4_k_m.gguf");
    for (ffn_type, expected) in [(Some(GgmlType::Q8_0), GgmlType::Q8_0), (None, GgmlType::Q5_0)] {
        let requantize = Some(GgmlType::Q5_0);
        let new = widened(&model, &out, &Options { requantize, ..options(2, ffn_type) });
        let ty = |name: &str| new.tensor(name).unwrap().ty;
        assert_eq!(ty("token_embd.weight"), GgmlType::Q5_0);
        assert_eq!(ty("blk.2.attn_q.weight"), GgmlType::Q5_0);
        assert_eq!(ty("blk.2.ffn_gate_exps.weight"), expected);
        assert_eq!(ty("blk.2.ffn_gate_inp.weight"), GgmlType::F32);
        assert_eq!(ty("blk.2.attn_norm.weight"), GgmlType::F32);
        Runner::load(&out).logits(&forced_tokens(1, 4, 256));
    }
    // Rows of 192 values are no blocks of Q4_K: the matrices of the dense model stay as they are.
    let draft = shipped("demo-draft-3m-q8_0.gguf");
    let requantize = Some(GgmlType::Q4_K);
    let new = widened(&draft, &out, &Options { requantize, ..options(1, None) });
    assert_eq!(new.tensor("blk.0.ffn_up.weight").unwrap().ty, GgmlType::Q8_0);
}

#[test]
fn a_split_model_is_widened_into_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny::find("qwen3moe").unwrap().model(Mix::Q8_0, 1).unwrap();
    let whole = folder.path().join("whole.gguf");
    model.write(&whole).unwrap();
    let parts = model.write_split(&folder.path().join("split"), 3).unwrap();
    let (a, b) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
    widened(&whole, &a, &options(2, None));
    widened(&parts[0], &b, &options(2, None));
    assert!(fs::read(a).unwrap() == fs::read(b).unwrap());
}

#[test]
fn what_can_not_be_widened_is_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = |name: &str, mix| {
        let path = folder.path().join(format!("{name}.gguf"));
        tiny::find(name).unwrap().model(mix, 1).unwrap().write(&path).unwrap();
        path
    };
    let out = folder.path().join("out.gguf");
    let check = |model: &Path, out: &Path, options: Options, words: &str| {
        let error = widen(model, out, &options, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        error
    };
    let q8 = tiny("qwen3moe", Mix::Q8_0);
    check(&tiny("gpt-oss", Mix::Q8_0), &out, options(2, None), "one value per neuron");
    check(&tiny("llama", Mix::F16), &out, options(2, None), "F16, which can't be made up");
    check(&q8, &out, options(2, Some(GgmlType::Q4_K)), "no whole blocks of Q4_K (256 values)");
    check(&q8, &out, options(0, None), "1 to 4096 times, not 0 times");
    check(&q8, &q8, options(2, None), "is the model that is read");
    let missing = check(&folder.path().join("no.gguf"), &out, options(2, None), "there is no file");
    assert!(matches!(missing, WidenError::Open(_)));
    let bytes = fs::read(&q8).unwrap();
    fs::write(&q8, &bytes[..bytes.len() / 2]).unwrap();
    let cut = check(&q8, &out, options(2, None), "");
    assert!(matches!(cut, WidenError::Open(_)), "{cut}");
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("out"))
        .collect();
    assert_eq!(left, [""; 0]);
}
