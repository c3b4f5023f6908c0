//! Processor and memory on Linux, from `/proc`, `/sys` and control groups.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cgroup;
use crate::cpu::{Cpu, FEATURES, parse_core_list};
use crate::host::{Host, ProbeError};
use crate::memory::Memory;

const MEMINFO: &str = "/proc/meminfo";
const CPUINFO: &str = "/proc/cpuinfo";
const STATUS: &str = "/proc/self/status";

/// # Errors
/// [`ProbeError`] if `/proc/meminfo` is missing or incomplete.
pub(crate) fn memory(host: &dyn Host) -> Result<Memory, ProbeError> {
    let text = read(host, MEMINFO)?;
    let kib = |what: &'static str| -> Result<u64, ProbeError> {
        let missing = ProbeError::Missing { origin: MEMINFO.to_owned(), what };
        let value = field(&text, what).and_then(|value| value.strip_suffix(" kB"));
        let kib: u64 = value.and_then(|value| value.trim().parse().ok()).ok_or(missing)?;
        Ok(kib.saturating_mul(1024))
    };
    let total_bytes = kib("MemTotal")?;
    let limit = cgroup::memory_limit(host, total_bytes);
    Ok(Memory {
        total_bytes,
        available_bytes: kib("MemAvailable")?,
        limit_bytes: limit.map(|limit| limit.limit_bytes),
        used_in_limit_bytes: limit.map_or(0, |limit| limit.used_bytes),
        reclaimable_in_limit_bytes: limit.map_or(0, |limit| limit.reclaimable_bytes),
    })
}

/// # Errors
/// [`ProbeError`] if `/proc/cpuinfo` or `/proc/self/status` is missing or incomplete.
pub(crate) fn cpu(host: &dyn Host) -> Result<Cpu, ProbeError> {
    let info = read(host, CPUINFO)?;
    let status = read(host, STATUS)?;
    let affinity = field(&status, "Cpus_allowed_list").map(parse_core_list).unwrap_or_default();
    if affinity.is_empty() {
        let origin = STATUS.to_owned();
        return Err(ProbeError::Missing { origin, what: "Cpus_allowed_list" });
    }
    let online = host
        .read(Path::new("/sys/devices/system/cpu/online"))
        .map_or_else(|| affinity.clone(), |text| parse_core_list(&text));
    let mut allowed: BTreeSet<u32> = affinity.intersection(&online).copied().collect();
    if let Some(cpuset) = cgroup::cpuset(host) {
        let cpuset = parse_core_list(&cpuset);
        allowed.retain(|core| cpuset.contains(core));
    }
    let quota = cgroup::cpu_quota_cores(host);
    let cores_free = within(quota, allowed.len());
    Ok(Cpu {
        model: model(&info),
        cores_online: count(online.len()),
        cores_free,
        cores_physical: count(physical(host, &allowed)).clamp(1, cores_free),
        features: features(&info),
    })
}

/// At most as many cores as a quota keeps busy, rounded down: a thread more would be stopped in
/// each period while the others wait for it.
fn within(quota_cores: Option<f64>, cores: usize) -> u32 {
    let paid = (1..=cores).rev().find(|&n| quota_cores.is_none_or(|quota| n as f64 <= quota));
    count(paid.unwrap_or(1))
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Distinct physical cores; a core whose place is unknown counts as one of its own.
fn physical(host: &dyn Host, allowed: &BTreeSet<u32>) -> usize {
    let place = |core: &u32| {
        let read = |name| {
            let path = format!("/sys/devices/system/cpu/cpu{core}/topology/{name}");
            host.read(Path::new(&path)).map(|text| text.trim().to_owned())
        };
        match (read("physical_package_id"), read("core_id")) {
            (Some(package), Some(core)) => (package, core),
            _ => ("unknown".to_owned(), core.to_string()),
        }
    };
    allowed.iter().map(place).collect::<BTreeSet<_>>().len()
}

fn model(cpuinfo: &str) -> String {
    // ARM kernels name the board or nothing at all.
    let named = ["model name", "Model", "Hardware"].iter().find_map(|key| field(cpuinfo, key));
    named.map_or_else(|| std::env::consts::ARCH.to_owned(), str::to_owned)
}

fn features(cpuinfo: &str) -> Vec<String> {
    let flags = field(cpuinfo, "flags").or_else(|| field(cpuinfo, "Features")).unwrap_or_default();
    let flags: BTreeSet<&str> = flags.split_whitespace().collect();
    FEATURES.iter().filter(|name| flags.contains(*name)).map(|name| (*name).to_owned()).collect()
}

fn read(host: &dyn Host, path: &str) -> Result<String, ProbeError> {
    host.read(Path::new(path)).ok_or_else(|| ProbeError::Unreadable { origin: path.to_owned() })
}

/// The value of the first `key: value` line, spaces around both left out.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::Fixture;

    const INFO: (&str, &str) = (
        CPUINFO,
        "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu avx2 vme f16c avx\n\n\
         processor\t: 1\nmodel name\t: Some CPU @ 3 GHz\n",
    );

    /// Cores as (online, free, physical), for an affinity mask, an online list and more texts.
    #[track_caller]
    fn check_cores(allowed: &str, online: &str, more: &[(&str, &str)], expected: (u32, u32, u32)) {
        let status = format!("Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{allowed}\n");
        let mut texts =
            vec![INFO, (STATUS, status.as_str()), ("/sys/devices/system/cpu/online", online)];
        texts.extend_from_slice(more);
        let cpu = cpu(&Fixture::new(&texts)).expect("a CPU");
        assert_eq!((cpu.cores_online, cpu.cores_free, cpu.cores_physical), expected);
    }

    #[test]
    fn cores() {
        check_cores("0-7", "0-7\n", &[], (8, 8, 8));
        check_cores("2-3", "0-7\n", &[], (8, 2, 2));
        check_cores("0-63", "0-3\n", &[], (4, 4, 4));
        let group = [
            ("/proc/self/mountinfo", "1 1 0:1 / /cg rw - cgroup2 cgroup2 rw\n"),
            ("/proc/self/cgroup", "0::/\n"),
        ];
        let with = |more: &[(&'static str, &'static str)]| [group.as_slice(), more].concat();
        check_cores("0-7", "0-7\n", &with(&[("/cg/cpu.max", "250000 100000")]), (8, 2, 2));
        check_cores("0-7", "0-7\n", &with(&[("/cg/cpu.max", "20000 100000")]), (8, 1, 1));
        check_cores("0-1", "0-7\n", &with(&[("/cg/cpu.max", "400000 100000")]), (8, 2, 2));
        check_cores("0-7", "0-7\n", &with(&[("/cg/cpuset.cpus.effective", "4-6\n")]), (8, 3, 3));
        // Nothing in common can't be true, and one core is always there.
        check_cores("0-7", "0-7\n", &with(&[("/cg/cpuset.cpus.effective", "9\n")]), (8, 1, 1));
    }

    #[test]
    fn threads_of_one_core_count_once() {
        let place = |cpu: u32, name: &str, value: &str| {
            (format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}"), value.to_owned())
        };
        let mut texts = Vec::new();
        // Two packages of two cores of two threads.
        for cpu in 0..8 {
            texts.push(place(cpu, "physical_package_id", &(cpu / 4).to_string()));
            texts.push(place(cpu, "core_id", &format!("{}\n", cpu % 2)));
        }
        let texts: Vec<_> = texts.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        check_cores("0-7", "0-7", &texts, (8, 8, 4));
        check_cores("0,2", "0-7", &texts, (8, 2, 1));
        check_cores("0-3", "0-7", &texts, (8, 4, 2));
    }

    #[test]
    fn what_it_is() {
        let status = (STATUS, "Cpus_allowed_list:\t0\n");
        let found = cpu(&Fixture::new(&[INFO, status])).expect("a CPU");
        assert_eq!(found.model, "Some CPU @ 3 GHz");
        assert_eq!(found.features, ["avx", "avx2", "f16c"]);
        let arm = (CPUINFO, "processor : 0\nFeatures : fp asimd asimddp i8mm\nCPU part : 0xd40\n");
        let found = cpu(&Fixture::new(&[arm, status])).expect("a CPU");
        assert_eq!(found.model, std::env::consts::ARCH);
        assert_eq!(found.features, ["asimd", "asimddp", "i8mm"]);
    }

    #[test]
    fn memory_from_meminfo() {
        let text = "MemTotal:       24684092 kB\nMemFree:  1 kB\nMemAvailable:   24330876 kB\n";
        let found = memory(&Fixture::new(&[(MEMINFO, text)])).expect("memory");
        assert_eq!(found.total_bytes, 24_684_092 * 1024);
        assert_eq!(found.available_bytes, 24_330_876 * 1024);
        assert_eq!((found.limit_bytes, found.free_for_us()), (None, found.available_bytes));
    }

    #[test]
    fn memory_within_a_limit() {
        let found = memory(&Fixture::new(&[
            (MEMINFO, "MemTotal: 100 kB\nMemAvailable: 90 kB\n"),
            ("/proc/self/mountinfo", "1 1 0:1 / /cg rw - cgroup2 cgroup2 rw\n"),
            ("/proc/self/cgroup", "0::/\n"),
            ("/cg/memory.max", "51200"),
            ("/cg/memory.current", "10240"),
            ("/cg/memory.stat", "inactive_file 1024\n"),
        ]));
        let found = found.expect("memory");
        assert_eq!((found.limit_bytes, found.free_for_us()), (Some(51_200), 51_200 - 9 * 1024));
    }

    #[test]
    fn what_is_missing_is_an_error_that_names_it() {
        let missing = |origin: &str, what| {
            let origin = origin.to_owned();
            Err(ProbeError::Missing { origin, what })
        };
        let of = |text| memory(&Fixture::new(&[(MEMINFO, text)]));
        assert_eq!(of("MemTotal: 5 kB\n"), missing(MEMINFO, "MemAvailable"));
        assert_eq!(of("MemTotal: x kB\nMemAvailable: 5 kB\n"), missing(MEMINFO, "MemTotal"));
        let nothing = Fixture::new(&[]);
        let unreadable = ProbeError::Unreadable { origin: MEMINFO.to_owned() };
        assert_eq!(memory(&nothing), Err(unreadable));
        assert!(cpu(&nothing).is_err());
        let no_mask = Fixture::new(&[INFO, (STATUS, "Name: x\n")]);
        assert!(matches!(
            cpu(&no_mask),
            Err(ProbeError::Missing { what: "Cpus_allowed_list", .. })
        ));
    }
}
