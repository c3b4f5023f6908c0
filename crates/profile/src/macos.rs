//! Processor and memory on macOS, from `sysctl` and `vm_stat`. Tested on output written by hand;
//! not verified on a Mac.

use crate::cpu::Cpu;
use crate::host::{Host, ProbeError};
use crate::memory::Memory;

/// # Errors
/// [`ProbeError`] if the commands fail or print something else.
pub(crate) fn cpu(host: &dyn Host) -> Result<Cpu, ProbeError> {
    let cores_online = u32_of(host, "hw.logicalcpu")?;
    // Threads on efficiency cores hold the others up; Intel Macs have one level only.
    let cores_physical = u32_of(host, "hw.perflevel0.physicalcpu")
        .or_else(|_| u32_of(host, "hw.physicalcpu"))?
        .max(1);
    Ok(Cpu {
        model: sysctl(host, "machdep.cpu.brand_string")?,
        cores_online,
        cores_free: cores_online.max(1),
        cores_physical: cores_physical.min(cores_online.max(1)),
        features: Vec::new(),
    })
}

/// # Errors
/// [`ProbeError`] if the commands fail or print something else.
pub(crate) fn memory(host: &dyn Host) -> Result<Memory, ProbeError> {
    let total = sysctl(host, "hw.memsize")?;
    let missing = |origin: &str, what| ProbeError::Missing { origin: origin.to_owned(), what };
    let total_bytes = total.parse().map_err(|_| missing("hw.memsize", "a number"))?;
    let origin = "vm_stat";
    let text = host
        .run(&["/usr/bin/vm_stat"])
        .ok_or_else(|| ProbeError::Unreadable { origin: origin.to_owned() })?;
    let page_bytes = page_bytes(&text).ok_or_else(|| missing(origin, "its page size"))?;
    // What could be had without swapping: nothing on it, or nothing that isn't on the drive too.
    let free = pages(&text, "Pages free").ok_or_else(|| missing(origin, "Pages free"))?;
    let inactive =
        pages(&text, "Pages inactive").ok_or_else(|| missing(origin, "Pages inactive"))?;
    let available = free.saturating_add(inactive).saturating_mul(page_bytes);
    Ok(Memory {
        total_bytes,
        available_bytes: available.min(total_bytes),
        limit_bytes: None,
        used_in_limit_bytes: 0,
        reclaimable_in_limit_bytes: 0,
    })
}

fn sysctl(host: &dyn Host, name: &str) -> Result<String, ProbeError> {
    let text = host.run(&["/usr/sbin/sysctl", "-n", name]);
    let text = text.ok_or_else(|| ProbeError::Unreadable { origin: format!("sysctl {name}") })?;
    Ok(text.trim().to_owned())
}

fn u32_of(host: &dyn Host, name: &str) -> Result<u32, ProbeError> {
    let missing = ProbeError::Missing { origin: format!("sysctl {name}"), what: "a number" };
    sysctl(host, name)?.parse().map_err(|_| missing)
}

/// From `Mach Virtual Memory Statistics: (page size of 16384 bytes)`.
fn page_bytes(vm_stat: &str) -> Option<u64> {
    let (_, rest) = vm_stat.split_once("page size of ")?;
    rest.split_once(' ')?.0.parse().ok()
}

/// From lines like `Pages free:            12345.`.
fn pages(vm_stat: &str, name: &str) -> Option<u64> {
    let line = vm_stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches('.').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::Fixture;

    const VM_STAT: (&str, &str) = (
        "/usr/bin/vm_stat",
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n\
         Pages free:                               10000.\n\
         Pages active:                            400000.\n\
         Pages inactive:                          390000.\n",
    );

    #[test]
    fn apple_silicon() {
        let host = Fixture::new(&[
            ("/usr/sbin/sysctl -n machdep.cpu.brand_string", "Apple M1 Max\n"),
            ("/usr/sbin/sysctl -n hw.logicalcpu", "10\n"),
            ("/usr/sbin/sysctl -n hw.physicalcpu", "10\n"),
            ("/usr/sbin/sysctl -n hw.perflevel0.physicalcpu", "8\n"),
            ("/usr/sbin/sysctl -n hw.memsize", "34359738368\n"),
            VM_STAT,
        ]);
        let cpu = cpu(&host).expect("a CPU");
        assert_eq!(
            (cpu.model.as_str(), cpu.cores_free, cpu.cores_physical),
            ("Apple M1 Max", 10, 8)
        );
        let memory = memory(&host).expect("memory");
        assert_eq!((memory.total_bytes, memory.available_bytes), (32 << 30, 400_000 * 16384));
    }

    #[test]
    fn intel_has_one_level_of_cores() {
        let host = Fixture::new(&[
            ("/usr/sbin/sysctl -n machdep.cpu.brand_string", "Intel(R) Core(TM) i7\n"),
            ("/usr/sbin/sysctl -n hw.logicalcpu", "8\n"),
            ("/usr/sbin/sysctl -n hw.physicalcpu", "4\n"),
        ]);
        assert_eq!(cpu(&host).expect("a CPU").cores_physical, 4);
    }

    #[test]
    fn what_is_missing_is_an_error() {
        assert!(cpu(&Fixture::new(&[])).is_err());
        assert!(memory(&Fixture::new(&[VM_STAT])).is_err());
        let odd = ("/usr/bin/vm_stat", "something else\n");
        let size = ("/usr/sbin/sysctl -n hw.memsize", "34359738368\n");
        let found = memory(&Fixture::new(&[size, odd]));
        assert!(matches!(found, Err(ProbeError::Missing { what: "its page size", .. })));
    }
}
