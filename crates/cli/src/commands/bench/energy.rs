//! Energy of the processor packages, where the machine lets it be read.

use std::fs;
use std::path::{Path, PathBuf};

/// The kernel's counters, see its `Documentation/power/powercap/powercap.rst`.
const POWERCAP: &str = "/sys/class/powercap";

/// One counter for each package; none if there are none or we may not read them.
pub(super) struct Meter {
    packages: Vec<Package>,
}

struct Package {
    energy: PathBuf,
    /// Where the counter begins again, in microjoules.
    range_uj: u64,
}

/// Counters at one moment, in microjoules.
pub(super) struct Reading(Vec<u64>);

impl Meter {
    pub(super) fn find() -> Meter {
        Meter::find_in(Path::new(POWERCAP))
    }

    fn find_in(root: &Path) -> Meter {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        // `intel-rapl:0` is a package (on AMD as well); `intel-rapl:0:1` is a part of one.
        let is_package = |dir: &PathBuf| {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix("intel-rapl:").unwrap_or_default();
            !number.is_empty()
                && number.chars().all(|c| c.is_ascii_digit())
                // `psys` counts the packages once more.
                && fs::read_to_string(dir.join("name")).is_ok_and(|n| n.starts_with("package"))
        };
        let packages = entries.map(|entry| entry.path()).filter(is_package).filter_map(|dir| {
            let energy = dir.join("energy_uj");
            number(&energy)?;
            Some(Package { energy, range_uj: number(&dir.join("max_energy_range_uj"))? })
        });
        Meter { packages: packages.collect() }
    }

    /// `None` where energy can't be measured.
    pub(super) fn read(&self) -> Option<Reading> {
        if self.packages.is_empty() {
            return None;
        }
        let values = self.packages.iter().map(|package| number(&package.energy));
        values.collect::<Option<_>>().map(Reading)
    }

    /// Joules since `before`. A counter that has begun again did so once at most: they last for
    /// many minutes at full power.
    pub(super) fn joules_since(&self, before: &Reading) -> Option<f64> {
        let now = self.read()?;
        let used = self.packages.iter().zip(before.0.iter().zip(&now.0)).map(
            |(package, (&before, &now))| {
                if now >= before {
                    now - before
                } else {
                    package.range_uj - before.min(package.range_uj) + now
                }
            },
        );
        Some(used.sum::<u64>() as f64 / 1e6)
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_added_and_counters_begin_again() {
        let folder = tempfile::tempdir().unwrap();
        let set = |dir: &str, name: &str, energy: u64| {
            let dir = folder.path().join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("name"), name).unwrap();
            fs::write(dir.join("energy_uj"), format!("{energy}\n")).unwrap();
            fs::write(dir.join("max_energy_range_uj"), "10000000\n").unwrap();
        };
        set("intel-rapl:0", "package-0\n", 1_000_000);
        set("intel-rapl:1", "package-1\n", 9_000_000);
        set("intel-rapl:0:0", "core\n", 5);
        set("intel-rapl:2", "psys\n", 5);
        set("dtpm", "x\n", 5);
        let meter = Meter::find_in(folder.path());
        let before = meter.read().unwrap();
        assert_eq!(before.0.len(), 2);
        set("intel-rapl:0", "package-0\n", 3_500_000);
        set("intel-rapl:1", "package-1\n", 500_000);
        // 2.5 J, and 1 J up to the counter's end with 0.5 J after it.
        assert_eq!(meter.joules_since(&before), Some(4.0));
        assert!(Meter::find_in(&folder.path().join("none")).read().is_none());
    }
}
