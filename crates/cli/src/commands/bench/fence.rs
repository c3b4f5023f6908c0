//! Control groups that hold a child to so many bytes of memory, page cache counted.
//!
//! A group is a folder. With cgroup v1 it is made in the memory controller's folder of our own group;
//! with v2 beside our own group or above, in a group that hands the memory controller down, since
//! a group with processes of its own may not (cgroups(7), "no internal processes"). Where we may not
//! make one, there is no fence.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hypura_engine::profile::{Group, GroupVersion, memory_groups};

use super::child::Guard;

/// How our groups are called: this, our process, a number.
const PREFIX: &str = "hypura-bench-";

/// A group can't be removed while a process that has just ended is still leaving it.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// The limit of a group that is only made to see whether one can be made.
const TRIAL_BYTES: u64 = 64 << 20;

/// Where groups can be made.
#[derive(Debug)]
pub(super) struct Fence {
    parent: Group,
}

/// A group for one child. It is removed when this is dropped, by when the child must have ended.
#[derive(Debug)]
pub(super) struct Enclosure {
    group: Group,
}

impl Fence {
    /// Finds a place for groups, and tries it out.
    ///
    /// # Errors
    /// Why there is none, as part of a sentence.
    pub(super) fn find() -> Result<Fence, String> {
        Fence::find_among(memory_groups())
    }

    fn find_among(groups: Vec<Group>) -> Result<Fence, String> {
        let mut reason = "this system has no control groups for memory".to_owned();
        for parent in groups {
            if !hands_memory_down(&parent) {
                reason = "no control group here hands the memory controller down".to_owned();
                continue;
            }
            remove_left_behind(&parent.dir);
            let fence = Fence { parent };
            match fence.try_out() {
                Ok(()) => return Ok(fence),
                Err(error) => {
                    let what = crate::failure::reason(&error);
                    reason = format!("{}: {what}", fence.parent.dir.display());
                }
            }
        }
        Err(reason)
    }

    /// Makes a group and puts a process into it, which may be refused too.
    fn try_out(&self) -> io::Result<()> {
        let enclosure = self.enclose(TRIAL_BYTES)?;
        // Waits for input that never comes.
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let child = Guard(child);
        let entered = enclosure.enter(child.0.id());
        drop(child);
        entered
    }

    /// Makes a group whose processes may take `bytes` together, and may not swap.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn enclose(&self, bytes: u64) -> io::Result<Enclosure> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = self.parent.dir.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&dir)?;
        let enclosure = Enclosure { group: Group { dir, version: self.parent.version } };
        let (limit, swap) = match self.parent.version {
            // In v1 memory and swap are limited together; the file is there if swap is accounted.
            GroupVersion::V1 => {
                ("memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", bytes.to_string()))
            }
            GroupVersion::V2 => ("memory.max", ("memory.swap.max", "0".to_owned())),
        };
        fs::write(enclosure.group.dir.join(limit), bytes.to_string())?;
        let swap_file = enclosure.group.dir.join(swap.0);
        if swap_file.exists() {
            fs::write(swap_file, swap.1)?;
        }
        Ok(enclosure)
    }
}

impl Enclosure {
    /// Puts a process into the group.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn enter(&self, pid: u32) -> io::Result<()> {
        fs::write(self.group.dir.join("cgroup.procs"), pid.to_string())
    }

    /// The most that the group had, page cache counted; `None` where the kernel doesn't say.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        let name = match self.group.version {
            GroupVersion::V1 => "memory.max_usage_in_bytes",
            GroupVersion::V2 => "memory.peak",
        };
        fs::read_to_string(self.group.dir.join(name)).ok()?.trim().parse().ok()
    }

    /// How many of its processes the kernel ended for want of memory.
    pub(super) fn oom_kills(&self) -> Option<u64> {
        let name = match self.group.version {
            GroupVersion::V1 => "memory.oom_control",
            GroupVersion::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.group.dir.join(name)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        if self.group.version == GroupVersion::V1 {
            // Page cache that is still charged would pass to the group above. Not every kernel
            // offers it, and nothing depends on it.
            let _ = fs::write(self.group.dir.join("memory.force_empty"), "0");
        }
        for _ in 0..REMOVE_TRIES {
            match fs::remove_dir(&self.group.dir) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(_) => std::thread::sleep(REMOVE_PAUSE),
            }
        }
        tracing::warn!("the control group {} could not be removed", self.group.dir.display());
    }
}

/// Whether groups made in this one get the memory controller.
fn hands_memory_down(group: &Group) -> bool {
    match group.version {
        GroupVersion::V1 => true,
        GroupVersion::V2 => {
            let list = fs::read_to_string(group.dir.join("cgroup.subtree_control"));
            list.is_ok_and(|list| list.split_whitespace().any(|name| name == "memory"))
        }
    }
}

/// Removes groups of ours whose process was ended before it could.
fn remove_left_behind(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let left: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
            pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
        })
        .collect();
    for path in left {
        // Another run may be doing the same.
        let _ = fs::remove_dir(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(dir: &Path, version: GroupVersion) -> Group {
        Group { dir: dir.to_owned(), version }
    }

    #[test]
    fn where_no_group_can_be_made_the_reason_is_given() {
        assert!(Fence::find_among(Vec::new()).unwrap_err().contains("no control groups"));
        let folder = tempfile::tempdir().unwrap();
        let v2 = || vec![group(folder.path(), GroupVersion::V2)];
        assert!(Fence::find_among(v2()).unwrap_err().contains("hands the memory controller down"));
        fs::write(folder.path().join("cgroup.subtree_control"), "cpu pids\n").unwrap();
        assert!(Fence::find_among(v2()).unwrap_err().contains("hands the memory controller down"));
        let missing = vec![group(&folder.path().join("none"), GroupVersion::V1)];
        let reason = Fence::find_among(missing).unwrap_err();
        assert!(reason.contains("none: no such file"), "{reason}");
    }

    #[test]
    fn limits_are_written_and_counters_read() {
        let folder = tempfile::tempdir().unwrap();
        for (version, limit, peak, kills) in [
            (
                GroupVersion::V1,
                "memory.limit_in_bytes",
                ("memory.max_usage_in_bytes", "4096\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ),
            (
                GroupVersion::V2,
                "memory.max",
                ("memory.peak", "4096\n"),
                ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
            ),
        ] {
            let fence = Fence { parent: group(folder.path(), version) };
            let enclosure = fence.enclose(12345).unwrap();
            let dir = enclosure.group.dir.clone();
            assert_eq!(fs::read_to_string(dir.join(limit)).unwrap(), "12345");
            assert_eq!((enclosure.peak_bytes(), enclosure.oom_kills()), (None, None));
            fs::write(dir.join(peak.0), peak.1).unwrap();
            fs::write(dir.join(kills.0), kills.1).unwrap();
            assert_eq!((enclosure.peak_bytes(), enclosure.oom_kills()), (Some(4096), Some(2)));
            // A plain folder with files in it can't be removed as a group can.
            fs::remove_dir_all(&dir).unwrap();
        }
    }

    #[test]
    fn who_takes_more_than_the_limit_is_ended() {
        use std::io::Write;
        let fence = match Fence::find() {
            Ok(fence) => fence,
            Err(reason) => {
                eprintln!("not tested: no control group can be made here ({reason})");
                return;
            }
        };
        let enclosure = fence.enclose(16 << 20).unwrap();
        // A line without end is kept in memory; 256 MB of it, in case nothing stops it.
        let script = "read go; head -c 256000000 /dev/zero | tail -n 1 >/dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = Guard(command.spawn().unwrap());
        enclosure.enter(child.0.id()).unwrap();
        child.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert!(!child.0.wait().unwrap().success());
        assert!(enclosure.oom_kills().is_none_or(|kills| kills > 0), "{enclosure:?}");
        assert!(enclosure.peak_bytes().is_none_or(|peak| peak <= 16 << 20), "{enclosure:?}");
        let dir = enclosure.group.dir.clone();
        drop(enclosure);
        assert!(!dir.exists(), "{dir:?}");
    }

    #[test]
    fn groups_of_processes_that_are_gone_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join(format!("{PREFIX}4294967295-0"));
        let ours = folder.path().join(format!("{PREFIX}{}-7", std::process::id()));
        let other = folder.path().join("somebody-4294967295-0");
        for dir in [&gone, &ours, &other] {
            fs::create_dir(dir).unwrap();
        }
        remove_left_behind(folder.path());
        assert!(ours.exists() && other.exists());
        assert_eq!(gone.exists(), !Path::new("/proc/self").exists());
    }
}
