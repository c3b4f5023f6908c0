//! The pinned llama.cpp loads and computes each tiny model.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use common::{Runner, argmax};
use hypura_gguf::{ExpertPart, GgmlType, Role};
use hypura_testkit::text::forced_tokens;
use hypura_testkit::tiny::{self, Mix, RECIPES, TinyError};

/// llama.cpp's last error is one for the process: loads in turn keep its messages apart.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Loads a file and decodes 8 tokens: 4 as a prompt, 4 one by one.
fn check(path: &Path, what: &str) -> Vec<Vec<f32>> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut runner = Runner::load(path);
    let tokens = forced_tokens(7, 8, 256);
    let mut logits = runner.logits(&tokens[..4]);
    tokens[4..].iter().for_each(|&token| logits.extend(runner.logits(&[token])));

    for row in &logits {
        assert_eq!(row.len(), 320, "{what}");
        assert!(row.iter().all(|v| v.is_finite()), "{what}: not finite");
        #[allow(clippy::cast_precision_loss)]
        let mean = row.iter().sum::<f32>() / row.len() as f32;
        #[allow(clippy::cast_precision_loss)]
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / row.len() as f32;
        assert!((0.25..100.0).contains(&variance), "{what}: variance {variance}");
    }
    let likeliest: BTreeSet<_> = logits.iter().map(|row| argmax(row)).collect();
    assert!(likeliest.len() >= 4, "{what}: says {likeliest:?}");
    logits
}

#[test]
fn every_recipe_computes_in_its_own_mix() {
    let folder = tempfile::tempdir().unwrap();
    for recipe in RECIPES {
        let path = folder.path().join(format!("{}.gguf", recipe.name));
        recipe.model(recipe.default_mix, 1).unwrap().write(&path).unwrap();
        check(&path, recipe.name);
    }
}

#[test]
fn every_recipe_computes_in_k_quants_of_several_sizes() {
    let folder = tempfile::tempdir().unwrap();
    for recipe in RECIPES {
        let path = folder.path().join(format!("{}.gguf", recipe.name));
        let model = recipe.model(Mix::Q4_K_M, 1).unwrap();
        assert!(model.weight_bytes() < 6 << 20, "{}: {}", recipe.name, model.weight_bytes());
        model.write(&path).unwrap();
        check(&path, recipe.name);
    }
}

#[test]
fn every_mix_computes_and_says_about_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen3moe"] {
        let logits = |mix: Mix| {
            let path = folder.path().join(format!("{name}-{}.gguf", mix.name()));
            tiny::find(name).unwrap().model(mix, 3).unwrap().write(&path).unwrap();
            check(&path, &format!("{name} {}", mix.name()))
        };
        let first = |rows: Vec<Vec<f32>>| rows.into_iter().next().unwrap();
        let exact = first(logits(Mix::F32));
        // The first token's logits: later ones may be routed otherwise. K-quants have other sizes.
        for (mix, least) in
            [(Mix::F16, 0.99), (Mix::Q8_0, 0.95), (Mix::MXFP4, 0.5), (Mix::Q4_0, 0.5)]
        {
            let cosine = cosine(&exact, &first(logits(mix)));
            assert!(cosine > least, "{name} {}: {cosine}", mix.name());
        }
        logits(Mix::Q4_K);
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn a_split_set_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen3moe", "qwen35moe"] {
        let model = tiny::find(name).unwrap().model(Mix::Q8_0, 5).unwrap();
        let whole = folder.path().join(format!("{name}.gguf"));
        model.write(&whole).unwrap();
        let parts = model.write_split(&folder.path().join(name), 3).unwrap();
        let names: Vec<_> =
            parts.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        let expected = [1, 2, 3].map(|no| format!("{name}-0000{no}-of-00003.gguf"));
        assert_eq!(names, expected);
        assert_eq!(check(&parts[0], name), check(&whole, name));

        let opened = hypura_gguf::Model::open(&parts[0]).unwrap();
        assert_eq!(opened.files.len(), 3);
        assert_eq!(opened.weight_bytes(), model.weight_bytes());
        let error = model.write_split(&folder.path().join(name), 1000).unwrap_err();
        assert!(matches!(error, TinyError::Split { .. }), "{error}");
    }
    let left = std::fs::read_dir(folder.path()).unwrap();
    let partial = |name: &std::ffi::OsString| name.to_string_lossy().contains("partial");
    assert!(!left.map(|entry| entry.unwrap().file_name()).any(|name| partial(&name)));
}

#[test]
fn a_seed_gives_one_file_and_another_seed_another() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |seed| {
        let path = folder.path().join("m.gguf");
        tiny::find("gpt-oss").unwrap().model(Mix::MXFP4, seed).unwrap().write(&path).unwrap();
        std::fs::read(&path).unwrap()
    };
    assert_eq!(bytes(1), bytes(1));
    assert_ne!(bytes(1), bytes(2));
}

#[test]
fn recipes_have_what_they_are_there_for() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let path = folder.path().join(format!("{name}.gguf"));
        let recipe = tiny::find(name).unwrap();
        recipe.model(recipe.default_mix, 1).unwrap().write(&path).unwrap();
        hypura_gguf::Model::open(&path).unwrap()
    };
    let has = |name: &str, role: Role| open(name).tensors.iter().any(|t| t.role == role);
    assert!(has("deepseek2-fused", Role::Expert(ExpertPart::GateUp)));
    assert!(has("qwen35moe", Role::Expert(ExpertPart::GateUp)));
    assert!(has("qwen3next", Role::Recurrent) && has("qwen3next", Role::Attention));
    assert!(has("qwen2moe", Role::SharedExpert) && has("deepseek2", Role::DenseFfn));
    let oss = open("gpt-oss");
    assert!(oss.tensors.iter().filter(|t| t.role.is_expert()).all(|t| t.ty == GgmlType::MXFP4));
    assert!(oss.tensor("blk.0.ffn_up_exps.bias").is_some());
}
