//! Models in the memory of a GPU: what is shown of them, and which gives way.

mod common;

use common::Served;
use hypura_engine::DeviceStats;
use hypura_server::Config;
use hypura_server::models::{Budget, Lease, Needs, Tiers};
use serde_json::{Value, json};

/// 60 bytes of GPU memory.
const TIERS: Tiers = Tiers {
    vram_weights_bytes: 30,
    vram_slots_bytes: 15,
    vram_kv_bytes: 10,
    vram_buffers_bytes: 5,
    gpus: 1,
    ram_weights_bytes: 20,
    ram_slots_bytes: 40,
    ram_kv_bytes: 0,
    ram_buffers_bytes: 40,
    drive_weights_bytes: 25,
    kv_cold_bytes_max: 0,
};

/// A server whose models take 100 bytes of memory and 60 of a GPU's.
fn served(config: Config, budget: Budget, vram_free_bytes: u64) -> Served {
    let served = Served::within(config, budget);
    *served.stage.tiers.lock().unwrap() = TIERS;
    *served.stage.needs.lock().unwrap() = Some(Needs {
        resident_bytes: 100,
        free_bytes: 1 << 30,
        vram_resident_bytes: 60,
        vram_free_bytes,
        gpus: 1,
    });
    served
}

async fn load(served: &Served, name: &str) -> Lease {
    served.app.models.load(name, None, None).await.unwrap()
}

fn loaded(served: &Served) -> Vec<String> {
    served.app.models.loaded().into_iter().map(|model| model.entry.name.clone()).collect()
}

/// What each load was given of GPU memory.
fn given(served: &Served) -> Vec<Option<u64>> {
    served.stage.budgets.lock().unwrap().iter().map(|budget| budget.gpu_memory_bytes).collect()
}

#[tokio::test]
async fn a_budget_of_gpu_memory_is_shared() {
    for (all, expected, names) in [
        (120, [Some(120), Some(60)], &["demo:latest", "other:latest"][..]),
        (119, [Some(119), Some(119)], &["other:latest"]),
    ] {
        let budget = Budget { memory_bytes: Some(1 << 30), gpu_memory_bytes: Some(all) };
        let served = served(Config::default(), budget, 0);
        drop(load(&served, "demo").await);
        drop(load(&served, "other").await);
        assert_eq!(given(&served), expected, "of {all}");
        assert_eq!(loaded(&served), names, "of {all}");
    }
}

/// A budget is one of each GPU, and a model on two has half of its bytes on each.
#[tokio::test]
async fn models_on_two_gpus_take_half_of_each() {
    for (of_each, expected, names) in [
        (60, [Some(60), Some(30)], &["demo:latest", "other:latest"][..]),
        (59, [Some(59), Some(59)], &["other:latest"]),
    ] {
        let budget = Budget { memory_bytes: Some(1 << 30), gpu_memory_bytes: Some(of_each) };
        let served = served(Config::default(), budget, 0);
        served.stage.tiers.lock().unwrap().gpus = 2;
        if let Some(needs) = served.stage.needs.lock().unwrap().as_mut() {
            needs.gpus = 2;
        }
        drop(load(&served, "demo").await);
        drop(load(&served, "other").await);
        assert_eq!(given(&served), expected, "of {of_each}");
        assert_eq!(loaded(&served), names, "of {of_each}");
    }
}

#[tokio::test]
async fn without_a_budget_it_is_what_the_driver_has() {
    for (free, names) in [(60, &["demo:latest", "other:latest"][..]), (59, &["other:latest"])] {
        let budget = Budget { memory_bytes: Some(1 << 30), gpu_memory_bytes: None };
        let served = served(Config::default(), budget, free);
        drop(load(&served, "demo").await);
        drop(load(&served, "other").await);
        // The engine asks again when it plans.
        assert_eq!(given(&served), [None, None]);
        assert_eq!(loaded(&served), names, "{free} free");
    }
}

#[tokio::test]
async fn a_model_in_use_keeps_its_gpu_memory() {
    let budget = Budget { memory_bytes: Some(1 << 30), gpu_memory_bytes: Some(100) };
    let served = served(Config::default(), budget, 0);
    let lease = load(&served, "demo").await;
    let waits = load(&served, "other");
    tokio::pin!(waits);
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), &mut waits).await;
    assert!(early.is_err(), "it waits for the other's end");
    drop(lease);
    drop(waits.await);
    assert_eq!(
        (loaded(&served), given(&served)),
        (vec!["other:latest".to_owned()], vec![Some(100); 2])
    );
}

#[tokio::test]
async fn ollama_is_told_what_is_in_gpu_memory() {
    let served = served(Config::default(), Budget::default(), 0);
    drop(load(&served, "demo").await);
    let model = &served.get("/api/ps").await.json()["models"][0];
    assert_eq!((&model["size"], &model["size_vram"]), (&json!(160), &json!(60)));
}

#[tokio::test]
async fn the_page_is_told_only_where_there_is_some() {
    let config = Config { gpu_memory_bytes: Some(200), ..Config::default() };
    let budget = Budget { memory_bytes: None, gpu_memory_bytes: Some(200) };
    let there = served(config, budget, 0);
    let mut device = DeviceStats::default();
    (device.lookups, device.hits, device.host_hits, device.copied_bytes) = (9, 5, 3, 4096);
    there.stage.status.lock().unwrap().stream.device = Some(device);
    drop(load(&there, "demo").await);
    let status = there.get("/ui/status").await.json();
    assert_eq!(status["vram_budget_bytes"], 200);
    let model = &status["models"][0];
    assert_eq!(model["vram_bytes"], 60);
    for (field, bytes) in [
        ("vram_weights_bytes", 30),
        ("vram_slots_bytes", 15),
        ("vram_kv_bytes", 10),
        ("vram_buffers_bytes", 5),
        ("ram_slots_bytes", 40),
        ("drive_weights_bytes", 25),
    ] {
        assert_eq!(model["tiers"][field], bytes, "{field}");
    }
    let expected = json!({
        "lookups": 9, "hits": 5, "memory_hits": 3, "copied_bytes": 4096, "computed_in_place": 0,
    });
    assert_eq!(model["stream"]["gpu"], expected);

    // On two of them, which have the budget each.
    there.stage.tiers.lock().unwrap().gpus = 2;
    drop(load(&there, "other").await);
    assert_eq!(there.get("/ui/status").await.json()["vram_budget_bytes"], 400);

    let none = Served::new();
    drop(load(&none, "demo").await);
    let status: Value = none.get("/ui/status").await.json();
    let text = status.to_string();
    assert!(!text.contains("vram") && !text.contains("gpu"), "{text}");
}

#[tokio::test]
async fn tiers_are_measured_only_where_there_is_a_gpu() {
    let there = served(Config::default(), Budget::default(), 0);
    let mut device = DeviceStats::default();
    (device.lookups, device.hits, device.host_hits, device.copied_bytes) = (9, 5, 3, 4096);
    there.stage.status.lock().unwrap().stream.device = Some(device);
    drop(load(&there, "demo").await);
    let text = there.get("/metrics").await.text();
    for (name, value) in [
        ("vram_bytes", 60),
        ("vram_weight_bytes", 45),
        ("ram_weight_bytes", 60),
        ("drive_weight_bytes", 25),
        ("gpu_expert_lookups_total", 9),
        ("gpu_expert_hits_total", 5),
        ("gpu_expert_memory_hits_total", 3),
        ("gpu_copied_bytes_total", 4096),
    ] {
        let line = format!("hypura_model_{name}{{model=\"demo:latest\"}} {value}\n");
        assert!(text.contains(&line), "no {line} in {text}");
    }
    let none = Served::new();
    drop(load(&none, "demo").await);
    let text = none.get("/metrics").await.text();
    assert!(!text.contains("gpu") && !text.contains("vram"), "{text}");
}
