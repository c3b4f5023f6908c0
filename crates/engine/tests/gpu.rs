//! A device with memory of its own: the same answer, whatever lies there, in host memory, or on the
//! drive. The device is the CPU, which everything is copied to and from as if it were a GPU; so the
//! bits must be llama.cpp's own. `HYPURA_TEST_GPU=CUDA0` takes a real one, for what is exact there.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{
    PLENTY, alone, assert_same, demo, expected, faulty_after_load, gpu_under_test, logits, options,
    stats, tiny_model, try_logits,
};
use hypura_engine::io::{Fault, FaultPlan};
use hypura_engine::llama::{DecodeError, FlashAttention};
use hypura_engine::plan::{Mode, PlanError};
use hypura_engine::{GpuChoice, LoadError, LoadOptions, Loaded, load};

/// Longer than three micro-batches.
const PROMPT: usize = 100;

/// Options for a GPU that is none, or for several.
fn emulated(flash: FlashAttention) -> LoadOptions {
    on_gpus(flash, 1)
}

/// The first ones after the one under test, which is `CUDA0` then.
fn on_gpus(flash: FlashAttention, n: usize) -> LoadOptions {
    let gpu = match gpu_under_test() {
        GpuChoice::Named(name) if n > 1 => {
            let kind = name.trim_end_matches('0');
            GpuChoice::Named((0..n).map(|i| format!("{kind}{i}")).collect::<Vec<_>>().join(","))
        }
        GpuChoice::Off => GpuChoice::Named(vec!["CPU"; n].join(",")),
        gpu => gpu,
    };
    LoadOptions { gpu, gpu_memory_bytes: Some(PLENTY), ..options(flash) }
}

fn is_emulated() -> bool {
    gpu_under_test() == GpuChoice::Off
}

fn loaded(path: &Path, options: &LoadOptions) -> Loaded {
    load(path, options, &mut |_| true).unwrap()
}

/// With the smallest share of memory for weights that works, if what was asked for does not.
fn at_least(path: &Path, options: &LoadOptions) -> Loaded {
    match load(path, options, &mut |_| true) {
        Err(LoadError::Plan(PlanError::WeightsBudgetTooSmall { smallest_bytes, .. })) => {
            let weights_memory_bytes = Some(smallest_bytes);
            loaded(path, &LoadOptions { weights_memory_bytes, ..options.clone() })
        }
        other => other.unwrap(),
    }
}

/// `base` with a little less of each GPU's memory than everything takes.
fn not_all(path: &Path, base: LoadOptions) -> LoadOptions {
    let all = loaded(path, &base).plan.gpu.unwrap();
    let of_each = (all.bytes.total() - 1) / u64::from(all.devices);
    LoadOptions { gpu_memory_bytes: Some(of_each), ..base }
}

/// Compares a model of experts at several numbers of slots there and here. `is_plain` if nothing but
/// a gate lies between its products, so that the CPU can compute beside the GPU.
fn check_experts(name: &str, path: &Path, is_plain: bool, n_gpus: usize) {
    let _alone = alone();
    let flash = [FlashAttention::On, FlashAttention::Off];
    for flash in flash.into_iter().take(if n_gpus > 1 { 1 } else { 2 }) {
        let expected = expected(path, &options(flash), PROMPT);
        let (mut kept, mut wrongly_early) = (0, 0);
        for (slots, host_share, cpu_assists) in [
            (1 << 20, 1.0, false),
            (6, 1.0, false),
            (6, 1.0, true),
            (5, 0.5, false),
            (5, 0.5, true),
            (0, 0.0, false),
        ] {
            if cpu_assists && !is_emulated() {
                continue; // it rounds otherwise
            }
            let what =
                format!("{name} on {n_gpus}, {slots} slots, {host_share} in memory, {flash:?}");
            let what = if cpu_assists { format!("{what}, with the CPU") } else { what };
            let mut options = not_all(path, LoadOptions { cpu_assists, ..on_gpus(flash, n_gpus) });
            options.gpu_slots_max = Some(slots);
            let history = tempfile::tempdir().unwrap();
            options.history_dir = Some(history.path().to_owned());
            if host_share < 1.0 {
                let all = loaded(path, &options).plan.bytes.expert_slots;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let wanted = (all as f64 * host_share) as u64;
                options.weights_memory_bytes = Some(wanted);
            }
            let mut loaded = at_least(path, &options);
            assert_eq!(loaded.plan.mode, Mode::ExpertStreaming, "{what}");
            assert_eq!(loaded.plan.gpu.as_ref().unwrap().devices as usize, n_gpus, "{what}");
            let allocated = loaded.context.model().tiered().unwrap().allocated_each();
            assert_eq!(allocated.len(), n_gpus, "{what}");
            // Weights and attention state of its own layers, on each; a third may have no state.
            assert!(allocated.iter().all(|of| of.weights_bytes > 0), "{what}: {allocated:?}");
            let n_with_state = allocated.iter().filter(|of| of.contexts_bytes > 0).count();
            assert!(n_with_state >= n_gpus.min(2), "{what}: {allocated:?}");
            assert_same(&logits(&mut loaded, PROMPT), &expected, &what);
            let device = stats(&loaded).device.unwrap();
            assert!(device.copied_bytes > 0, "{what}: {device:?}");
            assert_eq!(stats(&loaded).passes > 0, slots < 10, "{what}");
            assert_eq!(device.computed_in_place > 0, cpu_assists && is_plain, "{what}: {device:?}");
            // Where memory has room for all, they are read behind everything else.
            assert_eq!(stats(&loaded).ahead.warmed > 0, host_share >= 1.0, "{what}");
            // A link that is fast enough leaves nothing to gain.
            if slots == 6 && !cpu_assists && is_emulated() && n_gpus == 1 {
                let ahead = stats(&loaded).ahead;
                assert!(ahead.begun > 0 && ahead.begun_right > 0, "{what}: {ahead:?}");
            }
            if slots < 10 {
                assert!(device.lookups > device.hits, "{what}: no misses, {device:?}");
            }
            // Of a prompt what memory has is copied before the router has chosen it.
            let is_ahead = slots < 10 && host_share >= 1.0;
            assert_eq!(device.expected_rightly > 0, is_ahead, "{what}: {device:?}");
            assert!(device.expected_rightly <= device.expected, "{what}: {device:?}");
            kept += device.kept;
            // With nearly all of them there, experts are computed before the choice is known.
            assert!(slots < 10 || device.early_rightly > 0, "{what}: {device:?}");
            wrongly_early += device.early - device.early_rightly;
        }
        // What passed and is warmer than what lies there gets its slot.
        assert_eq!(kept > 0, is_plain, "{name} on {n_gpus}, {flash:?}");
        // Of these, some choices are nearly always there, and some then not.
        let is_uneven = name == "demo" || name == "qwen3next";
        assert!(wrongly_early > 0 || !is_uneven, "{name} on {n_gpus}, {flash:?}");
    }
}

/// Memory with room for all experts begins to be filled with them at once, with the last ones too.
#[test]
fn memory_with_room_is_filled() {
    let _alone = alone();
    let path = demo("demo-moe-54m-q4_k_m.gguf");
    let history = tempfile::tempdir().unwrap();
    let mut options = not_all(&path, emulated(FlashAttention::On));
    options.gpu_slots_max = Some(6);
    options.history_dir = Some(history.path().to_owned());
    let model = loaded(&path, &options);
    let (n_layers, n_experts) = (8, 32);
    assert_eq!(stats(&model).ahead.warmed, n_layers * n_experts);
}

/// What the GPU looks up by itself outlives the prompts between answers.
#[test]
fn a_second_prompt() {
    let _alone = alone();
    let path = demo("demo-moe-54m-q4_k_m.gguf");
    // Few enough choices that most experts of a micro-batch have slots.
    let few = |base| LoadOptions { ubatch_tokens: Some(16), ..base };
    let expected = expected(&path, &few(options(FlashAttention::On)), PROMPT);
    let options = not_all(&path, few(emulated(FlashAttention::On)));
    let mut model = loaded(&path, &options);
    for turn in ["first", "second", "third"] {
        let early = |loaded: &Loaded| stats(loaded).device.map_or(0, |device| device.early_rightly);
        let before = early(&model);
        assert_same(&logits(&mut model, PROMPT), &expected, turn);
        assert!(early(&model) > before, "{turn}");
    }
}

/// Compares a dense model with a part of it there, and the rest in memory or on the drive.
fn check_dense(name: &str, path: &Path, n_gpus: usize) {
    let _alone = alone();
    let flash = [FlashAttention::On, FlashAttention::Off];
    for flash in flash.into_iter().take(if n_gpus > 1 { 1 } else { 2 }) {
        let expected = expected(path, &options(flash), PROMPT);
        let all = loaded(path, &on_gpus(flash, n_gpus)).plan.gpu.unwrap();
        for (gpu_share, host_share) in [(0.6, 1.0), (0.6, 0.4), (0.0, 1.0), (0.0, 0.0)] {
            if gpu_share == 0.0 && !is_emulated() {
                continue; // next to nothing beside what the driver rounds up
            }
            let what =
                format!("{name} on {n_gpus}, {gpu_share} there, {host_share} here, {flash:?}");
            let mut options = on_gpus(flash, n_gpus);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // shares of sizes
            let share = |of: u64, share: f64| (of as f64 * share) as u64;
            let weights = all.bytes.resident_weights;
            let less = share(weights, 1.0 - gpu_share) + 1;
            let least = all.smallest_bytes + (1 << 20);
            let there = (all.bytes.total() - less).max(least);
            options.gpu_memory_bytes = Some(there.div_ceil(n_gpus as u64));
            if host_share < 1.0 {
                let here = loaded(path, &options).plan.bytes.resident_weights;
                options.weights_memory_bytes = Some(share(here, host_share));
            }
            let mut loaded = at_least(path, &options);
            assert_eq!(loaded.plan.mode, Mode::DenseStreaming, "{what}");
            assert_same(&logits(&mut loaded, PROMPT), &expected, &what);
            let stats = stats(&loaded);
            assert!(stats.device.unwrap().copied_bytes > 0 && stats.matrices > 0, "{what}");
            let is_read = stats.read_bytes > weights;
            assert_eq!(is_read, host_share < 1.0, "{what}: {stats:?}");
        }
    }
}

#[test]
fn matrices_of_a_dense_model() {
    check_dense("draft", &demo("demo-draft-3m-q8_0.gguf"), 1);
}

#[test]
fn experts_of_the_demo_model() {
    check_experts("demo", &demo("demo-moe-54m-q4_k_m.gguf"), true, 1);
}

/// Layers divided among two and three GPUs: with experts, and without.
#[test]
fn several_gpus() {
    let folder = tempfile::tempdir().unwrap();
    let is_real = !is_emulated();
    check_experts("demo", &demo("demo-moe-54m-q4_k_m.gguf"), true, 2);
    check_experts("gpt-oss", &tiny_model(folder.path(), "gpt-oss"), false, 2);
    if !is_real {
        check_experts("qwen3next", &tiny_model(folder.path(), "qwen3next"), true, 3);
    }
    check_dense("draft", &demo("demo-draft-3m-q8_0.gguf"), 2);
}

/// Gate and up apart and as one, biases between the products, recurrent layers.
#[test]
fn experts_of_other_shapes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, is_plain) in
        [("qwen3moe", true), ("deepseek2-fused", false), ("gpt-oss", false), ("qwen3next", true)]
    {
        check_experts(name, &tiny_model(folder.path(), name), is_plain, 1);
    }
}

/// Options for as little memory as works, with a reader that fails as planned once the model is loaded.
fn faulty(path: &Path, plan: FaultPlan) -> LoadOptions {
    let slots = LoadOptions { gpu_slots_max: Some(5), ..emulated(FlashAttention::On) };
    // As little as works: every byte is read again and again.
    let options = LoadOptions { weights_memory_bytes: Some(0), ..not_all(path, slots) };
    let smallest = match load(path, &options, &mut |_| true) {
        Err(LoadError::Plan(PlanError::WeightsBudgetTooSmall { smallest_bytes, .. })) => {
            smallest_bytes
        }
        other => panic!("{:?}", other.map(|_| ())),
    };
    faulty_after_load(plan, LoadOptions { weights_memory_bytes: Some(smallest), ..options })
}

#[test]
fn reads_that_come_late_or_wrong() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen3moe"] {
        let path = tiny_model(folder.path(), name);
        let expected = expected(&path, &options(FlashAttention::On), PROMPT);
        let late = FaultPlan {
            seed: 3,
            delay_rate: 0.1,
            delay: Duration::from_micros(300),
            reorder: true,
            ..FaultPlan::default()
        };
        let mut loaded = load(&path, &faulty(&path, late), &mut |_| true).unwrap();
        assert_same(&logits(&mut loaded, PROMPT), &expected, &format!("{name}, late"));
        drop(loaded);
        let wrong = FaultPlan { seed: 1, corrupt_rate: 0.05, ..FaultPlan::default() };
        let mut loaded = load(&path, &faulty(&path, wrong), &mut |_| true).unwrap();
        let got = logits(&mut loaded, PROMPT);
        let differs = got.iter().zip(&expected).any(|(a, b)| a.to_bits() != b.to_bits());
        assert!(differs, "{name}: a corrupted read was not noticed");
    }
}

#[test]
fn a_failed_read_ends_one_answer_and_nothing_else() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen3moe"] {
        let path = tiny_model(folder.path(), name);
        let expected = expected(&path, &options(FlashAttention::On), PROMPT);
        let mut failed = 0;
        for number in [0, 3, 17, 40, 111] {
            let plan = FaultPlan { at: [(number, Fault::Fail)].into(), ..FaultPlan::default() };
            let mut loaded = load(&path, &faulty(&path, plan), &mut |_| true).unwrap();
            let what = format!("{name}, read {number} fails");
            match try_logits(&mut loaded, PROMPT) {
                // What was read ahead gets a second chance.
                Ok(got) => assert_same(&got, &expected, &what),
                Err(DecodeError::Residency(_)) => failed += 1,
                Err(other) => panic!("{what}: {other}"),
            }
            assert_same(&logits(&mut loaded, PROMPT), &expected, &format!("{what}, once more"));
        }
        assert!(failed > 0 || name == "llama", "{name}: no read failed");
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let gpu = GpuChoice::Named("CUDA7".to_owned());
    let options = LoadOptions { gpu, ..options(FlashAttention::On) };
    let error = load(&demo("demo-draft-3m-q8_0.gguf"), &options, &mut |_| true).map(|_| ());
    let Err(LoadError::Gpu(error)) = error else { panic!("{error:?}") };
    let text = error.to_string();
    assert!(
        text.starts_with("there is no device CUDA7; there are: ") && text.ends_with("CPU"),
        "{text}"
    );
}
