//! `hypura profile`: what this machine is.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use hypura_engine::devices;
use hypura_engine::profile::{Effort, Latency, Profile, Query, Storage, load_or_probe};

use crate::args::ProfileArgs;
use crate::failure::UsageError;
use crate::size::show;
use crate::table::table;

pub(crate) fn run(args: &ProfileArgs) -> anyhow::Result<()> {
    let cache_dir = crate::home::cache()
        .ok_or_else(|| UsageError("there is no home folder; set HYPURA_HOME".into()))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if let Some(file) = &args.file
        && !file.is_file()
    {
        return Err(UsageError(format!("{} is no file; name a large one", file.display())).into());
    }
    let loaded = load_or_probe(&Query {
        cache_dir: &cache_dir,
        model_file: args.file.as_deref(),
        devices: devices(),
        effort: Effort::Full,
        refresh: args.fresh,
        now_unix_s: now.as_secs(),
    })?;
    if let Err(error) = &loaded.saved {
        tracing::warn!("{error}");
    }
    if let Some(Err(error)) = loaded.storage {
        return Err(error).context("the drive could not be measured");
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", loaded.profile.to_json())?;
        return Ok(());
    }
    describe(&mut out, &loaded.profile, now)?;
    if args.file.is_none() {
        writeln!(out, "\nName a model file to measure its drive: hypura profile FILE")?;
    }
    Ok(())
}

fn describe(out: &mut impl Write, profile: &Profile, now: Duration) -> std::io::Result<()> {
    let (cpu, memory) = (&profile.cpu, &profile.memory);
    let mut rows = vec![
        vec!["processor".to_owned(), cpu.model.clone()],
        vec![
            "cores".to_owned(),
            format!(
                "{} free ({} physical) of {}",
                cpu.cores_free, cpu.cores_physical, cpu.cores_online
            ),
        ],
        vec![
            "memory".to_owned(),
            format!("{} free for us of {}", show(memory.free_for_us()), show(memory.total_bytes)),
        ],
    ];
    if let Some(limit) = memory.limit_bytes {
        rows.push(vec!["memory limit".to_owned(), show(limit)]);
    }
    rows.push(vec![
        "copying memory".to_owned(),
        format!("{:.1} GB/s with one thread", profile.memory_copy.bytes_per_s / 1e9),
    ]);
    for device in &profile.devices {
        let memory = if device.memory_total_bytes > 0 {
            format!(", {}", show(device.memory_total_bytes))
        } else {
            String::new()
        };
        rows.push(vec![
            format!("device {}", device.name),
            format!("{}{memory}", device.description),
        ]);
    }
    write!(out, "{}", table(&rows))?;
    describe_compute(out, profile)?;
    describe_gpus(out, profile)?;
    for storage in &profile.storage {
        describe_drive(out, storage, now)?;
    }
    Ok(())
}

/// How fast it multiplies, as far as `hypura estimate` has measured that.
fn describe_compute(out: &mut impl Write, profile: &Profile) -> std::io::Result<()> {
    if profile.compute.is_empty() {
        return Ok(());
    }
    let mut rows = vec![
        ["computing with", "layout", "threads", "one token", "prompts"].map(str::to_owned).to_vec(),
    ];
    for measured in &profile.compute {
        let kind = &measured.kind;
        rows.push(vec![
            format!("{} {}, rows of {}", kind.ty, kind.product, kind.n_in),
            kind.layout.clone(),
            measured.threads.to_string(),
            format!("{:.1} GB/s", measured.decode_bytes_per_s / 1e9),
            format!("{:.0} Gflop/s", measured.prompt_flops_per_s / 1e9),
        ]);
    }
    write!(out, "\n{}", table(&rows))
}

/// How fast GPUs and the links to them are, as far as a model was planned for one.
fn describe_gpus(out: &mut impl Write, profile: &Profile) -> std::io::Result<()> {
    if profile.gpus.is_empty() {
        return Ok(());
    }
    let mut rows = vec![
        ["GPU", "copies to it", "and back", "one token", "prompts"].map(str::to_owned).to_vec(),
    ];
    for gpu in &profile.gpus {
        let fastest = gpu.host_to_device.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        rows.push(vec![
            format!("{}, {}", gpu.name, gpu.description),
            fastest.map_or("-".to_owned(), |&(bytes, bytes_per_s)| {
                format!("{:.1} GB/s by {}", bytes_per_s / 1e9, show(bytes))
            }),
            format!("{:.1} GB/s", gpu.device_to_host_bytes_per_s / 1e9),
            format!("{:.0} GB/s", gpu.decode_bytes_per_s / 1e9),
            format!("{:.1} Tflop/s", gpu.prompt_flops_per_s / 1e12),
        ]);
    }
    write!(out, "\n{}", table(&rows))
}

fn describe_drive(out: &mut impl Write, storage: &Storage, now: Duration) -> std::io::Result<()> {
    let drive = &storage.drive;
    let age_hours = now.as_secs().saturating_sub(storage.taken_unix_s) / 3600;
    writeln!(
        out,
        "\nDrive of {} ({}{}), measured {}",
        drive.mount.display(),
        drive.fs_type,
        if storage.direct { ", direct reads" } else { ", through the page cache" },
        if age_hours == 0 { "just now".to_owned() } else { format!("{age_hours} h ago") }
    )?;
    if let Some(reason) = &storage.direct_refused {
        writeln!(out, "  no direct reads: {reason}")?;
    }
    if let Some(note) = &storage.note {
        writeln!(out, "  {note}")?;
    }
    let mut depths: Vec<u32> = storage.points.iter().map(|p| p.depth).collect();
    depths.sort_unstable();
    depths.dedup();
    let mut sizes: Vec<u64> = storage.points.iter().map(|p| p.read_bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    if sizes.is_empty() {
        return Ok(());
    }
    let mut rows = vec![vec!["MB/s by read size".to_owned()]];
    rows[0].extend(depths.iter().map(|d| format!("{d} at a time")));
    for size in sizes {
        let mut row = vec![show(size)];
        for depth in &depths {
            let point = storage.points.iter().find(|p| (p.read_bytes, p.depth) == (size, *depth));
            row.push(point.map_or("-".to_owned(), |p| format!("{:.0}", p.bytes_per_s / 1e6)));
        }
        rows.push(row);
    }
    write!(out, "{}", table(&rows))?;
    print_latency(out, storage.small_read.as_ref())?;
    Ok(())
}

/// A line about small reads, if they were measured.
pub(super) fn print_latency(
    out: &mut impl Write,
    latency: Option<&Latency>,
) -> std::io::Result<()> {
    let Some(latency) = latency else { return Ok(()) };
    writeln!(
        out,
        "  a read of {} takes {:.0} µs (99 in 100: {:.0} µs)",
        show(latency.read_bytes),
        latency.p50_s * 1e6,
        latency.p99_s * 1e6
    )
}

#[cfg(test)]
mod tests {
    use hypura_engine::profile::GpuSpeed;

    use super::*;

    #[test]
    fn gpus_are_listed_with_their_links() {
        let gpu = GpuSpeed {
            library: "llama.cpp 1".into(),
            name: "CUDA0".into(),
            description: "NVIDIA H200".into(),
            host_to_device: vec![(1 << 20, 4.2e10), (4 << 20, 5.2e10)],
            device_to_host_bytes_per_s: 5e10,
            decode_bytes_per_s: 1.5e12,
            prompt_flops_per_s: 3e13,
            taken_unix_s: 1,
        };
        let mut out = Vec::new();
        let cache = tempfile::tempdir().unwrap();
        let query = Query {
            cache_dir: cache.path(),
            model_file: None,
            devices: Vec::new(),
            effort: Effort::Quick,
            refresh: false,
            now_unix_s: 1,
        };
        let mut profile = load_or_probe(&query).unwrap().profile;
        describe_gpus(&mut out, &profile).unwrap();
        assert!(out.is_empty(), "there is none");
        profile.gpus.push(gpu);
        describe_gpus(&mut out, &profile).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("\n  CUDA0, NVIDIA H200  52.0 GB/s by 4.00 MiB  50.0 GB/s"),
            "{text}"
        );
        assert!(text.ends_with("1500 GB/s  30.0 Tflop/s\n"), "{text}");
    }
}
