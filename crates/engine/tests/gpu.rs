//! A device with memory of its own: the same answer, whatever lies there, in host memory, or on the
//! drive. The device is the CPU, which everything is copied to and from as if it were a GPU; so the
//! bits must be llama.cpp's own. `HYPURA_TEST_GPU=CUDA0` takes a real one, for what is exact there.

mod common;

use std::path::Path;

use common::{PLENTY, alone, assert_same, demo, expected, gpu_under_test, logits, options, stats};
use hypura_engine::llama::FlashAttention;
use hypura_engine::plan::{Mode, PlanError};
use hypura_engine::{GpuChoice, LoadError, LoadOptions, Loaded, load};
use hypura_testkit::tiny;

/// Longer than three micro-batches.
const PROMPT: usize = 100;

/// Options for a GPU that is none.
fn emulated(flash: FlashAttention) -> LoadOptions {
    let gpu = match gpu_under_test() {
        GpuChoice::Off => GpuChoice::Named("CPU".to_owned()),
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

/// Compares a model of experts at several numbers of slots there and here.
fn check_experts(name: &str, path: &Path) {
    let _alone = alone();
    for flash in [FlashAttention::On, FlashAttention::Off] {
        let expected = expected(path, &options(flash), PROMPT);
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
            let what = format!("{name}, {slots} slots, {host_share} in memory, {flash:?}");
            let what = if cpu_assists { format!("{what}, with the CPU") } else { what };
            let mut options = LoadOptions { cpu_assists, ..emulated(flash) };
            // Not quite everything, or nothing would stream.
            let smallest = loaded(path, &options).plan.gpu.unwrap();
            options.gpu_memory_bytes = Some(smallest.bytes.total() - 1);
            options.gpu_slots_max = Some(slots);
            if host_share < 1.0 {
                let all = loaded(path, &options).plan.bytes.expert_slots;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let wanted = (all as f64 * host_share) as u64;
                options.weights_memory_bytes = Some(wanted);
            }
            let mut loaded = match load(path, &options, &mut |_| true) {
                Err(LoadError::Plan(PlanError::WeightsBudgetTooSmall {
                    smallest_bytes, ..
                })) => {
                    options.weights_memory_bytes = Some(smallest_bytes);
                    loaded(path, &options)
                }
                other => other.unwrap(),
            };
            assert_eq!(loaded.plan.mode, Mode::ExpertStreaming, "{what}");
            assert_same(&logits(&mut loaded, PROMPT), &expected, &what);
            let device = stats(&loaded).device.unwrap();
            assert!(device.copied_bytes > 0, "{what}: {device:?}");
            assert_eq!(stats(&loaded).passes > 0, slots < 10, "{what}");
            assert_eq!(device.computed_in_place > 0, cpu_assists, "{what}: {device:?}");
            // A link that is fast enough leaves nothing to gain.
            if slots == 6 && !cpu_assists && is_emulated() {
                let ahead = stats(&loaded).ahead;
                assert!(ahead.begun > 0 && ahead.begun_right > 0, "{what}: {ahead:?}");
            }
            if slots < 10 {
                assert!(device.lookups > device.hits, "{what}: no misses, {device:?}");
            }
        }
    }
}

/// Compares a dense model with a part of it there, and the rest in memory or on the drive.
fn check_dense(name: &str, path: &Path) {
    let _alone = alone();
    for flash in [FlashAttention::On, FlashAttention::Off] {
        let expected = expected(path, &options(flash), PROMPT);
        let all = loaded(path, &emulated(flash)).plan.gpu.unwrap();
        for (gpu_share, host_share) in [(0.6, 1.0), (0.6, 0.4), (0.0, 1.0), (0.0, 0.0)] {
            if gpu_share == 0.0 && !is_emulated() {
                continue; // next to nothing beside what the driver rounds up
            }
            let what = format!("{name}, {gpu_share} there, {host_share} here, {flash:?}");
            let mut options = emulated(flash);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // shares of sizes
            let share = |of: u64, share: f64| (of as f64 * share) as u64;
            let weights = all.bytes.resident_weights;
            let less = share(weights, 1.0 - gpu_share) + 1;
            let least = all.smallest_bytes + (1 << 20);
            options.gpu_memory_bytes = Some((all.bytes.total() - less).max(least));
            if host_share < 1.0 {
                let here = loaded(path, &options).plan.bytes.resident_weights;
                options.weights_memory_bytes = Some(share(here, host_share));
            }
            let mut loaded = match load(path, &options, &mut |_| true) {
                Err(LoadError::Plan(PlanError::WeightsBudgetTooSmall {
                    smallest_bytes, ..
                })) => {
                    options.weights_memory_bytes = Some(smallest_bytes);
                    loaded(path, &options)
                }
                other => other.unwrap(),
            };
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
    check_dense("draft", &demo("demo-draft-3m-q8_0.gguf"));
}

fn check_tiny(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let recipe = tiny::find(name).unwrap();
    recipe.model(recipe.default_mix, 3).unwrap().write(&path).unwrap();
    check_experts(name, &path);
}

#[test]
fn experts_of_the_demo_model() {
    check_experts("demo", &demo("demo-moe-54m-q4_k_m.gguf"));
}

#[test]
fn qwen3moe() {
    check_tiny("qwen3moe");
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
