//! Measures a model over the sizes of its tiers: one JSON line per case.
//!
//! ```text
//! tiers MODEL KEY=VALUE,KEY=VALUE... [CASE...]
//! ```
//!
//! Keys of a case: `name`; `gpu` (off, auto, a name, or names joined by `+`); `baseline` (read, or experts: llama.cpp's own
//! loader, with the experts on the CPU);
//! `source` (mmap: of a baseline); `layers` (of a baseline: those that the GPU computes); `slots` (experts of a layer on the GPU); `gpu-memory`,
//! `memory`, `weights` (MiB); `threads`; `ubatch`; `rounds`; `tokens`; `warm` (rounds before);
//! `prompts` (lengths, divided by `/`); `assist` (1: the CPU computes
//! in place); `speculate` (0: no guesses); `trace` (a file); `dump` (a file for the logits
//! behind a prompt); `profile` (a folder for what is measured of the machine; else rates are assumed);
//! `history` (a folder for it: then memory with room for all experts is filled with them), `settle`
//! (seconds to wait for that);
//! `chunk` and `depth` (reads are split into pieces of so many KiB, so many at a time);
//! `brief` (1: prompts and sampled tokens only).
//!
//! Each round is a prompt of its own and tokens sampled with a seed of its own, the same in all
//! cases. `scripts/bench-gpu.sh` calls this.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypura_engine::llama::{self, BatchToken, Gpu, Layout};
use hypura_engine::{GpuChoice, LoadOptions, Loaded, StreamStats, load, load_baseline, plan_only};
use hypura_io as io;
use serde_json::{Value, json};
use sha2::Digest;

fn main() {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_default();
    if model == "speed" {
        return speed(&args.next().unwrap_or_default());
    }
    for case in args {
        let line = run(Path::new(&model), &case)
            .unwrap_or_else(|error| json!({ "case": case, "error": error }));
        println!("{line}");
    }
}

/// What the GPU can do: the bounds.
fn speed(name: &str) {
    match Gpu::named(name).map_err(|e| e.to_string()).and_then(|gpu| llama::calibrate::gpu(&gpu)) {
        Ok(speed) => println!(
            "{}",
            json!({
                "host_to_device": speed.host_to_device,
                "device_to_host": speed.device_to_host_bytes_per_s,
                "decode_bytes_per_s": speed.decode_bytes_per_s,
                "prompt_flops_per_s": speed.prompt_flops_per_s,
            })
        ),
        Err(error) => eprintln!("{error}"),
    }
}

struct Case<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Case<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, value)| *value)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.text(key).and_then(|text| text.parse().ok())
    }
}

fn run(path: &Path, text: &str) -> Result<Value, String> {
    let case = Case(text.split(',').filter_map(|pair| pair.split_once('=')).collect());
    let mib = |key| case.number(key).map(|mib| mib << 20);
    let small = |key| case.number(key).and_then(|n| u32::try_from(n).ok());
    let mut options = LoadOptions {
        gpu: match case.text("gpu").unwrap_or("auto") {
            "off" => GpuChoice::Off,
            "auto" => GpuChoice::Auto,
            names => GpuChoice::Named(names.replace('+', ",")),
        },
        gpu_memory_bytes: mib("gpu-memory"),
        gpu_slots_max: small("slots"),
        speculate: case.number("speculate") != Some(0),
        cpu_assists: case.number("assist") == Some(1),
        experts_on_cpu: case.text("baseline") == Some("experts"),
        gpu_layers: small("layers"),
        memory_bytes: mib("memory"),
        weights_memory_bytes: mib("weights"),
        threads: small("threads"),
        ubatch_tokens: small("ubatch"),
        ctx_tokens: 2560,
        layout: Layout::Plain,
        profile_dir: case.text("profile").map(Into::into),
        history_dir: case.text("history").map(Into::into),
        trace: case.text("trace").map(Into::into),
        ..LoadOptions::default()
    };
    if case.text("chunk").or(case.text("depth")).is_some() {
        let plain = io::PoolConfig::default();
        let threads = case.number("depth").and_then(|n| n.try_into().ok()).unwrap_or(plain.threads);
        let chunk = case.number("chunk").and_then(|kib| usize::try_from(kib << 10).ok());
        let config = io::PoolConfig {
            threads,
            read_ahead_threads: threads.saturating_sub(1).max(1),
            chunk_bytes: chunk.unwrap_or(plain.chunk_bytes),
            ..plain
        };
        options.reader = Arc::new(move || {
            let pool = io::PreadPool::new(config).map_err(|error| error.to_string())?;
            Ok(Box::new(pool))
        });
    }
    if options.gpu_slots_max.is_some() && options.ubatch_tokens.is_none() {
        // As plain llama.cpp.
        let plain = LoadOptions { gpu_slots_max: None, ..options.clone() };
        let (_, plan) = plan_only(path, &plain).map_err(|error| error.to_string())?;
        options.ubatch_tokens = Some(plan.n_ubatch);
    }
    let free_before = Gpu::first().map_or(0, |gpu| gpu.memory_free_bytes);
    let begin = Instant::now();
    let mut loaded = match case.text("baseline") {
        Some(_) if case.text("source") == Some("mmap") => {
            load_baseline(path, llama::plain::Source::Mmap, &options, &mut |_| true)
        }
        Some(_) => load_baseline(path, llama::plain::Source::Read, &options, &mut |_| true),
        None => load(path, &options, &mut |_| true),
    }
    .map_err(|error| error.to_string())?;
    let load_s = begin.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(case.number("settle").unwrap_or(0)));
    let n_tokens = case.number("tokens").unwrap_or(64);
    let (warm, rounds) = (case.number("warm").unwrap_or(2), case.number("rounds").unwrap_or(5));

    let is_brief = case.number("brief") == Some(1);
    let (hash, greedy) =
        if is_brief { (String::new(), Vec::new()) } else { greedy(&mut loaded, 48)? };
    if let Some(file) = case.text("dump") {
        // What a prompt comes to, to be compared between cases.
        let tokens = prompt(&loaded, 200, 5);
        loaded.context.clear();
        feed(&mut loaded, &tokens)?;
        let logits = loaded.context.logits(-1).ok_or("no logits")?;
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        std::fs::write(file, bytes).map_err(|error| error.to_string())?;
    }
    let mut prompts = Vec::new();
    for length in case.text("prompts").unwrap_or("512").split('/') {
        let length: usize = length.parse().map_err(|_| "a length of a prompt".to_owned())?;
        let mut times = Vec::new();
        let mut copied = Vec::new();
        for round in 0..warm + rounds {
            let before = loaded.stream_stats();
            let tokens = prompt(&loaded, length, 1000 + round);
            loaded.context.clear();
            let begin = Instant::now();
            feed(&mut loaded, &tokens)?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            copied.push(moved(&loaded, &before));
        }
        let counted = usize::try_from(warm).unwrap_or(0)..;
        let read: u64 =
            copied[counted.clone()].iter().filter_map(|m: &Value| m["read"].as_u64()).sum();
        prompts.push(json!({
            "tokens": length,
            "ms": spread(&times[counted]),
            "read": read,
            "moved_last": copied.last(),
        }));
    }
    // Always the same few tokens: a trace that soon misses nothing, and no sampling.
    let mut forced = Vec::new();
    let few = prompt(&loaded, 4, 9);
    loaded.context.clear();
    let mut missed = 0;
    for round in 0..if is_brief { 0 } else { 12 } {
        let begin = Instant::now();
        let at = loaded.stream_stats();
        for i in 0..64 {
            step(&mut loaded, few[i % few.len()], round * 64 + i32::try_from(i).unwrap_or(0))?;
        }
        if round >= 4 {
            forced.push(begin.elapsed().as_secs_f64() * 1e3 / 64.0);
            let of = |s: &StreamStats| s.device.map_or(0, |d| d.lookups - d.hits);
            missed += of(&loaded.stream_stats()) - of(&at);
        }
    }
    let mut decode = Vec::new();
    let mut sampled = sha2::Sha256::new();
    let mut before = loaded.stream_stats();
    for round in 0..if n_tokens == 0 { 0 } else { warm + rounds } {
        if round == warm {
            before = loaded.stream_stats();
        }
        let tokens = prompt(&loaded, 32, round);
        loaded.context.clear();
        let at = loaded.stream_stats();
        feed(&mut loaded, &tokens)?;
        let prompt_part = loaded.stream_stats();
        let mut random = Random(round + 1);
        let first = i32::try_from(tokens.len()).unwrap_or(0);
        let begin = Instant::now();
        for (pos, _) in (first..).zip(0..n_tokens) {
            let token = sample(&mut loaded, &mut random)?;
            sampled.update(token.to_le_bytes());
            step(&mut loaded, token, pos)?;
        }
        decode.push(begin.elapsed().as_secs_f64() * 1e3 / n_tokens as f64);
        // The prompt's share is taken out of the sums.
        add_back(&mut before, &at, &prompt_part);
    }
    let warm = usize::try_from(warm).unwrap_or(0);
    let n = (rounds * n_tokens).max(1);
    let now = loaded.stream_stats();
    let wait = (now.read_wait - before.read_wait).as_secs_f64() * 1e3;
    let busy = (now.drive_busy - before.drive_busy).as_secs_f64() * 1e3;
    let device = now.device.unwrap_or_default();
    let old = before.device.unwrap_or_default();
    let plan = &loaded.plan;
    Ok(json!({
        "case": text,
        "name": case.text("name"),
        "mode": hypura_engine::mode_name(plan.mode),
        "load_s": load_s,
        "greedy": greedy,
        "logits": hash,
        "sampled": short(sampled),
        "decode_ms": spread(decode.get(warm..).unwrap_or(&[])),
        "forced_ms": (!is_brief).then(|| spread(&forced)),
        "forced_missed": missed,
        "guesses": [now.ahead.begun - before.ahead.begun, now.ahead.begun_right - before.ahead.begun_right],
        "prompts": prompts,
        "copied_bytes_per_token": (device.copied_bytes - old.copied_bytes) / n,
        "device_lookups": (device.lookups - old.lookups) as f64 / n as f64,
        "device_hits": (device.hits - old.hits) as f64 / n as f64,
        "in_place": (device.computed_in_place - old.computed_in_place) as f64 / n as f64,
        "early": [device.early - old.early, device.early_rightly - old.early_rightly],
        "host_hits": (device.host_hits - old.host_hits) as f64 / n as f64,
        "read_bytes_per_token": (now.read_bytes - before.read_bytes) / n,
        "read_wait_ms_per_token": wait / n as f64,
        "drive_busy_ms_per_token": busy / n as f64,
        "n_ubatch": plan.n_ubatch,
        "devices": plan.gpu.as_ref().map(|gpu| gpu.devices),
        "gpu_slots": plan.gpu.as_ref().map(|gpu| &gpu.slots),
        "gpu_bytes": plan.gpu.as_ref().map(|gpu| gpu.bytes),
        "slots": plan.pools.iter().map(|pool| pool.slots).collect::<Vec<_>>(),
        "bytes": plan.bytes,
        "predicted_ms": 1e3 / plan.speed.decode_tokens_per_s,
        "rss": llama::process::rss_bytes(),
        "gpu_taken": free_before
            .saturating_sub(Gpu::first().map_or(0, |gpu| gpu.memory_free_bytes)),
    }))
}

/// Counts what lies between two moments as if it had been before `base`.
fn add_back(base: &mut StreamStats, from: &StreamStats, to: &StreamStats) {
    base.read_bytes += to.read_bytes - from.read_bytes;
    base.read_wait += to.read_wait - from.read_wait;
    base.drive_busy += to.drive_busy - from.drive_busy;
    if let (Some(base), Some(from), Some(to)) = (&mut base.device, from.device, to.device) {
        base.copied_bytes += to.copied_bytes - from.copied_bytes;
        base.lookups += to.lookups - from.lookups;
        base.hits += to.hits - from.hits;
        base.host_hits += to.host_hits - from.host_hits;
        base.computed_in_place += to.computed_in_place - from.computed_in_place;
    }
}

fn moved(loaded: &Loaded, before: &StreamStats) -> Value {
    let now = loaded.stream_stats();
    let device = |stats: &StreamStats| stats.device.unwrap_or_default();
    let (then, since) = (device(before), device(&now));
    json!({
        "copied": since.copied_bytes - then.copied_bytes,
        "expected": since.expected - then.expected,
        "expected_rightly": since.expected_rightly - then.expected_rightly,
        "read": now.read_bytes - before.read_bytes,
        "passes": now.passes - before.passes,
    })
}

/// Median, least and most.
fn spread(times: &[f64]) -> [f64; 3] {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
    [at(sorted.len() / 2), at(0), at(sorted.len().saturating_sub(1))]
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// English text, from a place that the seed names.
fn prompt(loaded: &Loaded, n_tokens: usize, seed: u64) -> Vec<i32> {
    let text = TEXT.repeat(1 + n_tokens * 8 / TEXT.len());
    let vocab = loaded.context.model().vocab();
    let words: Vec<&str> = text.split(' ').collect();
    let start = usize::try_from(seed).unwrap_or(0) * 17 % words.len();
    let turned: Vec<&str> = words[start..].iter().chain(&words[..start]).copied().collect();
    let mut tokens = vocab.tokenize(&turned.join(" "), true, false);
    let mut i = 0;
    while tokens.len() < n_tokens {
        tokens.push(tokens[i]);
        i += 1;
    }
    tokens.truncate(n_tokens);
    tokens
}

fn feed(loaded: &mut Loaded, tokens: &[i32]) -> Result<(), String> {
    let n_batch = loaded.context.n_batch();
    let last = tokens.len() - 1;
    for (k, chunk) in tokens.chunks(n_batch).enumerate() {
        let batch: Vec<BatchToken> = chunk
            .iter()
            .enumerate()
            .map(|(i, &token)| {
                let at = k * n_batch + i;
                BatchToken {
                    token,
                    pos: i32::try_from(at).unwrap_or(0),
                    seq: 0,
                    output: at == last,
                }
            })
            .collect();
        loaded.context.decode(&batch).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn step(loaded: &mut Loaded, token: i32, pos: i32) -> Result<(), String> {
    let token = BatchToken { token, pos, seq: 0, output: true };
    loaded.context.decode(&[token]).map_err(|error| error.to_string())
}

/// At temperature 0.8.
fn sample(loaded: &mut Loaded, random: &mut Random) -> Result<i32, String> {
    let logits = loaded.context.logits(-1).ok_or("no logits")?;
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    let sums: Vec<f64> = logits
        .iter()
        .map(|&logit| {
            let x = f64::from((logit - most) / 0.8);
            sum += if x > -12.0 { x.exp() } else { 0.0 };
            sum
        })
        .collect();
    let at = random.next() * sum;
    Ok(i32::try_from(sums.partition_point(|&s| s < at)).unwrap_or(0))
}

/// The likeliest tokens after a short prompt, and a hash of all logits on the way.
fn greedy(loaded: &mut Loaded, n: usize) -> Result<(String, Vec<i32>), String> {
    let tokens = prompt(loaded, 24, 3);
    loaded.context.clear();
    // One by one: more at once may need more experts than a GPU has slots, and rounds differently.
    for (pos, &token) in (0..).zip(&tokens) {
        step(loaded, token, pos)?;
    }
    let mut hash = sha2::Sha256::new();
    let mut said = Vec::new();
    let first = i32::try_from(tokens.len()).unwrap_or(0);
    for (pos, _) in (first..).zip(0..n) {
        let logits = loaded.context.logits(-1).ok_or("no logits")?;
        for logit in logits {
            hash.update(logit.to_le_bytes());
        }
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        let token = i32::try_from(best.unwrap_or(0)).unwrap_or(0);
        said.push(token);
        step(loaded, token, pos)?;
    }
    Ok((short(hash), said))
}

fn short(hash: sha2::Sha256) -> String {
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

const TEXT: &str = "The harbour lay quiet under a thin grey sky, and the boats that had come in \
with the tide were already empty. A woman with a basket of bread walked along the wall, counting \
her steps as she had done when she was a child. She had promised her brother to be home before the \
lamps were lit, but there was a letter to post and a debt to pay, and neither of them could wait \
until the morning. \"You are late again,\" said the man at the gate. He did not look up from his \
newspaper. \"The ferry has left, and the next one goes at seven.\" She put the basket down and \
thought about what to say. I would like to book a table for two people on Friday evening, please, \
somewhere near the station and not too expensive. Certainly, what kind of food would you like? To \
install the program, copy the folder to a place of your choice and run the script that lies in it; \
it will ask for a name and a password, and write both to a file that only you can read. If the \
connection is lost, wait for a minute and try once more before you call for help. ";
