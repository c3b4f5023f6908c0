//! The limits that control groups put on this process: cgroup v1, v2, and both at once.
//!
//! Limits nest: a process is bound by its own group and by each group above it, so all levels are
//! looked at. In a container the levels above may be invisible; then what is visible is the mount
//! point, which is the container's own group.

use std::path::{Component, Path, PathBuf};

use crate::host::Host;
use crate::mount::{Mount, parse_mountinfo};

/// A limit on memory, of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    pub(crate) limit_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) reclaimable_bytes: u64,
}

impl MemoryLimit {
    fn room_bytes(&self) -> u64 {
        let pinned = self.used_bytes.saturating_sub(self.reclaimable_bytes);
        self.limit_bytes.saturating_sub(pinned)
    }
}

/// The limit below `total_bytes` that leaves least room, if there is any.
pub(crate) fn memory_limit(host: &dyn Host, total_bytes: u64) -> Option<MemoryLimit> {
    let limits = groups(host, "memory").into_iter().filter_map(|group| group.memory_limit(host));
    // v1 writes "no limit" as a huge number.
    limits.filter(|limit| limit.limit_bytes < total_bytes).min_by_key(MemoryLimit::room_bytes)
}

/// How many cores' worth of time the tightest quota pays for, such as 1.5.
pub(crate) fn cpu_quota_cores(host: &dyn Host) -> Option<f64> {
    let quotas = groups(host, "cpu").into_iter().filter_map(|group| group.cpu_quota_cores(host));
    quotas.min_by(f64::total_cmp)
}

/// The cores that the process's own group may use, as the kernel lists them.
pub(crate) fn cpuset(host: &dyn Host) -> Option<String> {
    let mut lists = groups(host, "cpuset").into_iter().filter_map(|group| {
        let name = match group.version {
            GroupVersion::V1 => "cpuset.effective_cpus",
            GroupVersion::V2 => "cpuset.cpus.effective",
        };
        host.read(&group.dir.join(name))
    });
    lists.find(|list| !list.trim().is_empty())
}

/// Which of the two interfaces of control groups, see cgroups(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupVersion {
    V1,
    V2,
}

/// A control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub version: GroupVersion,
    /// Its folder.
    pub dir: PathBuf,
}

/// The groups that the process is in for a controller, its own first, then those above.
pub(crate) fn groups(host: &dyn Host, controller: &str) -> Vec<Group> {
    let read = |path| host.read(Path::new(path)).unwrap_or_default();
    let mounts = parse_mountinfo(&read("/proc/self/mountinfo"));
    let mut groups = Vec::new();
    for membership in read("/proc/self/cgroup").lines() {
        let Some((version, path)) = membership_of(membership, controller) else { continue };
        let mount = mounts.iter().find(|mount| match version {
            GroupVersion::V1 => {
                mount.fs_type == "cgroup"
                    && mount.super_options.split(',').any(|option| option == controller)
            }
            GroupVersion::V2 => mount.fs_type == "cgroup2",
        });
        if let Some(mount) = mount {
            groups.extend(levels(mount, path).map(|dir| Group { version, dir }));
        }
    }
    groups
}

/// A line of `/proc/self/cgroup` (`id:controllers:path`, see cgroups(7)), if it is about the
/// controller. v2 has the id 0, no list of controllers, and all of them.
fn membership_of<'a>(line: &'a str, controller: &str) -> Option<(GroupVersion, &'a str)> {
    let (id, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    if id == "0" && controllers.is_empty() {
        return Some((GroupVersion::V2, path));
    }
    controllers.split(',').any(|one| one == controller).then_some((GroupVersion::V1, path))
}

/// The folders of a group and of the groups above it, as far as they are mounted.
fn levels(mount: &Mount, path: &str) -> impl Iterator<Item = PathBuf> {
    let path = Path::new(path);
    let is_outside = path.components().any(|part| part == Component::ParentDir);
    let inside = match path.strip_prefix(&mount.root) {
        Ok(inside) if !is_outside => inside.to_owned(),
        _ => PathBuf::new(),
    };
    let top = mount.mount_point.clone();
    let mut levels = Vec::new();
    for level in inside.ancestors() {
        // Joining nothing would leave a slash at the end.
        levels.push(if level.as_os_str().is_empty() { top.clone() } else { top.join(level) });
    }
    levels.into_iter()
}

impl Group {
    fn memory_limit(&self, host: &dyn Host) -> Option<MemoryLimit> {
        let number = |name: &str| number(&host.read(&self.dir.join(name))?);
        let stat = host.read(&self.dir.join("memory.stat")).unwrap_or_default();
        let reclaimable = |names: &[&str]| {
            let values = names.iter().filter_map(|name| field(&stat, name));
            values.fold(0, u64::saturating_add)
        };
        Some(match self.version {
            // Above memory.high the group is slowed down to a crawl, so it binds as well.
            GroupVersion::V2 => MemoryLimit {
                limit_bytes: [number("memory.max"), number("memory.high")]
                    .into_iter()
                    .flatten()
                    .min()?,
                used_bytes: number("memory.current").unwrap_or(0),
                reclaimable_bytes: reclaimable(&[
                    "active_file",
                    "inactive_file",
                    "slab_reclaimable",
                ]),
            },
            GroupVersion::V1 => MemoryLimit {
                limit_bytes: number("memory.limit_in_bytes")?,
                used_bytes: number("memory.usage_in_bytes").unwrap_or(0),
                reclaimable_bytes: reclaimable(&["total_active_file", "total_inactive_file"]),
            },
        })
    }

    fn cpu_quota_cores(&self, host: &dyn Host) -> Option<f64> {
        let read = |name: &str| host.read(&self.dir.join(name));
        let (quota_us, period_us) = match self.version {
            GroupVersion::V2 => {
                let text = read("cpu.max")?;
                let (quota, period) = text.trim().split_once(' ')?;
                (number(quota)?, number(period)?)
            }
            // No quota is written as -1, which is no number here.
            GroupVersion::V1 => {
                (number(&read("cpu.cfs_quota_us")?)?, number(&read("cpu.cfs_period_us")?)?)
            }
        };
        (period_us > 0 && quota_us > 0).then(|| quota_us as f64 / period_us as f64)
    }
}

/// A number; `None` for `max`, which is no limit, and for what is no number.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The value of a `name value` line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| number(value)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::Fixture;

    const GIB: u64 = 1 << 30;
    const V2_MOUNT: (&str, &str) = (
        "/proc/self/mountinfo",
        "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
    );
    const V1_MOUNTS: (&str, &str) = (
        "/proc/self/mountinfo",
        "31 23 0:28 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
         32 23 0:29 / /cg/memory rw - cgroup cgroup rw,memory\n\
         33 23 0:30 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n\
         34 23 0:31 / /cg/unified rw - cgroup2 cgroup2 rw\n",
    );
    const V1_SELF: (&str, &str) =
        ("/proc/self/cgroup", "5:cpuset:/\n4:memory:/job/a\n2:cpu,cpuacct:/job\n0::/\n");

    /// The memory limit in a machine of 16 GiB, as (limit, used, reclaimable).
    #[track_caller]
    fn check_memory(texts: &[(&str, &str)], expected: Option<(u64, u64, u64)>) {
        let found = memory_limit(&Fixture::new(texts), 16 * GIB);
        let found =
            found.map(|limit| (limit.limit_bytes, limit.used_bytes, limit.reclaimable_bytes));
        assert_eq!(found, expected);
    }

    #[track_caller]
    fn check_quota(texts: &[(&str, &str)], expected: Option<f64>) {
        assert_eq!(cpu_quota_cores(&Fixture::new(texts)), expected);
    }

    #[test]
    fn memory_without_groups_or_limits() {
        check_memory(&[], None);
        check_memory(&[("/proc/self/cgroup", "0::/a\n")], None);
        check_memory(
            &[
                V2_MOUNT,
                ("/proc/self/cgroup", "0::/a\n"),
                ("/sys/fs/cgroup/a/memory.max", "max\n"),
                ("/sys/fs/cgroup/a/memory.high", "max\n"),
            ],
            None,
        );
        check_memory(
            &[
                V1_MOUNTS,
                V1_SELF,
                ("/cg/memory/job/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ],
            None,
        );
    }

    #[test]
    fn memory_v2() {
        let group = [
            V2_MOUNT,
            ("/proc/self/cgroup", "0::/user/app\n"),
            ("/sys/fs/cgroup/user/app/memory.max", "4294967296\n"),
            ("/sys/fs/cgroup/user/app/memory.high", "max\n"),
            ("/sys/fs/cgroup/user/app/memory.current", "1000\n"),
            (
                "/sys/fs/cgroup/user/app/memory.stat",
                "anon 500\nfile 400\nshmem 100\nactive_file 100\ninactive_file 200\n\
                 slab_reclaimable 7\nslab 9\n",
            ),
        ];
        check_memory(&group, Some((4 * GIB, 1000, 307)));

        let mut high = group.to_vec();
        high[3].1 = "3221225472";
        check_memory(&high, Some((3 * GIB, 1000, 307)));
    }

    #[test]
    fn memory_nested_v2_takes_the_level_with_least_room() {
        let mut texts = vec![
            V2_MOUNT,
            ("/proc/self/cgroup", "0::/a/b/c\n"),
            ("/sys/fs/cgroup/a/b/c/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "4294967296\n"),
            ("/sys/fs/cgroup/a/b/memory.current", "100\n"),
            ("/sys/fs/cgroup/a/memory.max", "8589934592\n"),
            ("/sys/fs/cgroup/a/memory.current", "1000\n"),
        ];
        check_memory(&texts, Some((4 * GIB, 100, 0)));
        // Its siblings use up what the larger group has.
        texts[6].1 = "8589930000";
        check_memory(&texts, Some((8 * GIB, 8_589_930_000, 0)));
        // Unless that is page cache.
        texts.push(("/sys/fs/cgroup/a/memory.stat", "active_file 8000000000\n"));
        check_memory(&texts, Some((4 * GIB, 100, 0)));
    }

    #[test]
    fn memory_v1_and_hybrid() {
        let mut texts = vec![
            V1_MOUNTS,
            V1_SELF,
            ("/cg/memory/job/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/cg/memory/job/memory.limit_in_bytes", "2147483648\n"),
            ("/cg/memory/job/memory.usage_in_bytes", "5000\n"),
            (
                "/cg/memory/job/memory.stat",
                "cache 1\nactive_file 1\ntotal_active_file 1000\ntotal_inactive_file 2000\n",
            ),
        ];
        check_memory(&texts, Some((2 * GIB, 5000, 3000)));
        // Both versions at once: the tighter one binds.
        texts.push(("/cg/unified/memory.max", "1073741824\n"));
        check_memory(&texts, Some((GIB, 0, 0)));
    }

    #[test]
    fn memory_in_a_container() {
        // Without a cgroup namespace: the mount shows the container's part of the tree.
        check_memory(
            &[
                (
                    "/proc/self/mountinfo",
                    "32 23 0:29 /docker/0123 /cg/memory ro - cgroup cgroup rw,memory\n",
                ),
                ("/proc/self/cgroup", "4:memory:/docker/0123/inner\n"),
                ("/cg/memory/memory.limit_in_bytes", "1073741824\n"),
                ("/cg/memory/inner/memory.limit_in_bytes", "536870912\n"),
            ],
            Some((GIB / 2, 0, 0)),
        );
        // In a namespace, seen from outside of its root: only the mount point is of use.
        for path in ["0::/../other", "0::/elsewhere", "0::/"] {
            check_memory(
                &[
                    (
                        "/proc/self/mountinfo",
                        "32 23 0:29 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
                    ),
                    ("/proc/self/cgroup", path),
                    ("/sys/fs/cgroup/memory.max", "1073741824\n"),
                ],
                Some((GIB, 0, 0)),
            );
        }
    }

    #[test]
    fn quotas() {
        check_quota(&[], None);
        let v2 = |quota| {
            [V2_MOUNT, ("/proc/self/cgroup", "0::/a/b\n"), ("/sys/fs/cgroup/a/cpu.max", quota)]
        };
        check_quota(&v2("max 100000\n"), None);
        check_quota(&v2("150000 100000\n"), Some(1.5));
        check_quota(&v2("50000 100000\n"), Some(0.5));
        check_quota(&v2("0 100000\n"), None);
        check_quota(&v2("100000 0\n"), None);
        check_quota(&v2("100000\n"), None);
        check_quota(&v2("garbage here\n"), None);
        let mut nested = v2("400000 100000\n").to_vec();
        nested.push(("/sys/fs/cgroup/a/b/cpu.max", "300000 200000\n"));
        check_quota(&nested, Some(1.5));

        let v1 = |quota| {
            [
                V1_MOUNTS,
                V1_SELF,
                ("/cg/cpu,cpuacct/job/cpu.cfs_quota_us", quota),
                ("/cg/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n"),
            ]
        };
        check_quota(&v1("-1\n"), None);
        check_quota(&v1("250000\n"), Some(2.5));
    }

    #[test]
    fn cpusets() {
        let check = |texts: &[(&str, &str)], expected| {
            assert_eq!(cpuset(&Fixture::new(texts)).as_deref(), expected);
        };
        check(&[], None);
        check(&[V1_MOUNTS, V1_SELF, ("/cg/cpuset/cpuset.effective_cpus", "0-1\n")], Some("0-1\n"));
        let v2 = [
            V2_MOUNT,
            ("/proc/self/cgroup", "0::/a\n"),
            ("/sys/fs/cgroup/a/cpuset.cpus.effective", "\n"),
            ("/sys/fs/cgroup/cpuset.cpus.effective", "0-7\n"),
        ];
        check(&v2, Some("0-7\n"));
    }
}
