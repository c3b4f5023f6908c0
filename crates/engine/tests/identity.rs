//! The same answer: logits of streamed models are llama.cpp's own, bit for bit, at every budget.

mod common;

use common::{alone, assert_same, demo, expected, load_share, logits, options, stats};
use hypura_engine::gguf::{Model, Writer};
use hypura_engine::llama::{FlashAttention, Layout};
use hypura_engine::plan::{Mode, Placement};
use hypura_engine::{LoadOptions, plan_only};
use hypura_testkit::{tiny, widen};
use std::path::Path;

/// Shares of the weights' bytes; 0 is the smallest that works.
const SHARES: [f64; 5] = [1.0, 0.99, 0.6, 0.3, 0.0];
/// Longer than three micro-batches.
const PROMPT: usize = 100;

/// Compares a model at all shares, with flash attention on and off.
fn check(name: &str, path: &Path) {
    let _alone = alone();
    for flash in [FlashAttention::On, FlashAttention::Off] {
        let options = options(flash);
        let expected = expected(path, &options, PROMPT);
        for share in SHARES {
            let mut loaded = load_share(path, &options, share);
            let what = format!("{name}, {share} of the weights, {flash:?}");
            assert_same(&logits(&mut loaded, PROMPT), &expected, &what);
            assert_eq!(loaded.load_stats.streamed_bytes_read, 0, "{what}");
            let stats = stats(&loaded);
            let slots: usize = loaded.plan.pools.iter().map(|p| p.slots as usize).sum();
            let units: usize =
                loaded.plan.pools.iter().map(|p| p.n_experts as usize * p.layers.len()).sum();
            match loaded.plan.mode {
                Mode::FullResident => assert_eq!(share, 1.0, "{what}: nothing is streamed"),
                Mode::DenseStreaming => {
                    assert!(stats.read_bytes > 0, "{what}: {stats:?}");
                    // With nearly all of the memory the input embedding alone is streamed.
                    assert!(stats.matrices > 0 || share > 0.6, "{what}: {stats:?}");
                }
                Mode::ExpertStreaming => {
                    assert!(stats.unit_lookups > stats.unit_hits, "{what}: no misses, {stats:?}");
                    if share <= 0.6 {
                        assert!(slots < units, "{what}");
                        assert!(stats.evictions > 0, "{what}: no evictions, {stats:?}");
                    }
                    assert!(share > 0.0 || stats.passes > 0, "{what}: no passes, {stats:?}");
                }
            }
        }
    }
}

fn check_tiny(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let recipe = tiny::find(name).unwrap();
    recipe.model(recipe.default_mix, 3).unwrap().write(&path).unwrap();
    check(name, &path);
}

macro_rules! tiny_tests {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { check_tiny($name); })*

        #[test]
        fn every_recipe_is_tested() {
            let tested = [$($name),*];
            for recipe in tiny::RECIPES {
                assert!(tested.contains(&recipe.name), "{} is not tested", recipe.name);
            }
        }
    };
}

tiny_tests! {
    llama_dense: "llama",
    qwen3_dense: "qwen3",
    gemma3_sliding_window: "gemma3",
    mixtral: "llama-moe",
    qwen3moe: "qwen3moe",
    qwen2moe_shared_expert: "qwen2moe",
    deepseek2_mla: "deepseek2",
    fused_gate_up: "deepseek2-fused",
    gpt_oss: "gpt-oss",
    qwen3next_hybrid: "qwen3next",
    qwen35moe_hybrid: "qwen35moe",
}

#[test]
fn a_split_set() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny::find("qwen3moe").unwrap();
    let model = recipe.model(recipe.default_mix, 5).unwrap();
    let parts = model.write_split(&folder.path().join("split"), 3).unwrap();
    assert_eq!(parts.len(), 3);
    check("split qwen3moe", &parts[0]);
}

#[test]
fn the_demo_model() {
    check("demo", &demo("demo-moe-54m-q4_k_m.gguf"));
}

#[test]
fn the_draft_model() {
    check("draft", &demo("demo-draft-3m-q8_0.gguf"));
}

#[test]
fn the_fast_layout_says_the_same_at_every_number_of_slots() {
    let _alone = alone();
    let path = demo("demo-moe-54m-q4_k_m.gguf");
    let options = LoadOptions { layout: Layout::Fast, ..options(FlashAttention::On) };
    // What is not an expert is resident in all of them, and repacked where llama.cpp can.
    let mut all = load_share(&path, &options, 0.99);
    let expected = logits(&mut all, PROMPT);
    for share in [0.6, 0.3] {
        let mut loaded = load_share(&path, &options, share);
        assert_eq!(loaded.plan.mode, Mode::ExpertStreaming);
        assert_same(&logits(&mut loaded, PROMPT), &expected, &format!("fast, {share}"));
        assert!(stats(&loaded).evictions > 0);
    }
}

#[test]
fn layers_of_multi_token_prediction_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, with_mtp) = (folder.path().join("plain.gguf"), folder.path().join("mtp.gguf"));
    let recipe = tiny::find("deepseek2").unwrap();
    recipe.model(recipe.default_mix, 3).unwrap().write(&plain).unwrap();
    let mut bytes = std::fs::read(&plain).unwrap();
    let model = Model::open(&plain).unwrap();
    let mut metadata = model.metadata.clone();
    metadata.insert("deepseek2.nextn_predict_layers", 1u32);
    let mut writer = Writer::new(metadata, model.files[0].alignment).unwrap();
    for tensor in &model.tensors {
        writer.add_tensor(&tensor.name, tensor.ty, &tensor.dims[..tensor.n_dims as usize]).unwrap();
    }
    let data = bytes.split_off(usize::try_from(model.files[0].data_offset).unwrap());
    let start = |i: usize| usize::try_from(model.tensors[i].offset - model.files[0].data_offset);
    let mut out = Vec::new();
    writer
        .write(&mut out, |i, sink| {
            let from = start(i).unwrap();
            let len = usize::try_from(model.tensors[i].bytes).unwrap();
            sink.write_all(&data[from..from + len])
        })
        .unwrap();
    std::fs::write(&with_mtp, out).unwrap();
    let unused = plan_only(&with_mtp, &options(FlashAttention::On)).unwrap().1.placements;
    assert!(unused.contains(&Placement::Unused));
    let _alone = alone();
    let options = options(FlashAttention::On);
    let expected = expected(&with_mtp, &options, PROMPT);
    for share in [0.5, 0.0] {
        let mut loaded = load_share(&with_mtp, &options, share);
        assert_eq!(loaded.plan.mode, Mode::ExpertStreaming, "{share}");
        assert_same(&logits(&mut loaded, PROMPT), &expected, &format!("MTP, {share}"));
    }
}

#[test]
fn widened_models() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for (file, times) in [("demo-moe-54m-q4_k_m.gguf", 3), ("demo-draft-3m-q8_0.gguf", 6)] {
        let path = folder.path().join(file);
        let how = widen::Options { times, ffn_type: None, requantize: None, seed: 1 };
        widen::widen(&demo(file), &path, &how, &mut |_, _| {}).unwrap();
        let options = options(FlashAttention::On);
        let expected = expected(&path, &options, PROMPT);
        for share in [0.6, 0.0] {
            let mut loaded = load_share(&path, &options, share);
            let what = format!("{file} x {times}, {share}");
            assert_same(&logits(&mut loaded, PROMPT), &expected, &what);
            assert!(stats(&loaded).read_bytes > 0, "{what}");
        }
    }
}
