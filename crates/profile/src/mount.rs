//! Which drive a file is on.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::{Host, System};

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What is mounted, such as `/dev/nvme0n1p2`; `unknown` where the system doesn't say.
    pub source: String,
    /// Such as `ext4`; `unknown` where the system doesn't say.
    pub fs_type: String,
    /// The device's number as the file system reports it for its files.
    pub device: u64,
}

impl Drive {
    /// The drive that holds `file`.
    ///
    /// # Errors
    /// If the file doesn't exist or can't be looked at.
    pub fn of(file: &Path) -> io::Result<Drive> {
        let file = fs::canonicalize(file)?;
        let device = fs::metadata(&file)?.dev();
        let mounts = System.read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
        let drive = match holding(&parse_mountinfo(&mounts), &file) {
            Some(mount) => Drive {
                mount: mount.mount_point.clone(),
                source: mount.source.clone(),
                fs_type: mount.fs_type.clone(),
                device,
            },
            None => Drive {
                mount: highest_on_device(&file, device)?,
                source: "unknown".to_owned(),
                fs_type: "unknown".to_owned(),
                device,
            },
        };
        Ok(drive)
    }
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The folder inside the file system that is mounted.
    pub(crate) root: PathBuf,
    pub(crate) mount_point: PathBuf,
    pub(crate) fs_type: String,
    pub(crate) source: String,
    /// Comma-separated options of the file system, such as a cgroup's controllers.
    pub(crate) super_options: String,
}

/// Parses `/proc/self/mountinfo`, see proc_pid_mountinfo(5). Lines that don't fit are left out.
///
/// ```text
/// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
/// id parent dev root point options  optional... - type source super options
/// ```
pub(crate) fn parse_mountinfo(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (place, what) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, mount_point) = (place.next()?, place.next()?);
    let mut what = what.split(' ');
    let (fs_type, source) = (what.next()?, what.next()?);
    Some(Mount {
        root: PathBuf::from(unescape(root)),
        mount_point: PathBuf::from(unescape(mount_point)),
        fs_type: fs_type.to_owned(),
        source: unescape(source),
        super_options: what.next().unwrap_or_default().to_owned(),
    })
}

/// Undoes the escapes of mountinfo: `\040` (octal) for a space, and so on.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let escaped = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(part.get(3..).unwrap_or_default().as_bytes());
            }
            None => {
                bytes.push(b'\\');
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The mount that a file lies in: the longest mount point above it, and of several mounts on the
/// same point the last one, which hides the others.
fn holding<'a>(mounts: &'a [Mount], file: &Path) -> Option<&'a Mount> {
    let above = mounts.iter().filter(|mount| file.starts_with(&mount.mount_point));
    above.max_by_key(|mount| mount.mount_point.components().count())
}

/// Where there is no list of mounts: the highest folder that is still on the same device.
fn highest_on_device(file: &Path, device: u64) -> io::Result<PathBuf> {
    let mut highest = file;
    while let Some(parent) = highest.parent() {
        if fs::metadata(parent)?.dev() != device {
            break;
        }
        highest = parent;
    }
    Ok(highest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:25 / /models rw shared:1 master:2 - btrfs /dev/nvme0n1p2 rw,subvol=/@models
31 27 0:26 / /models rw - xfs /dev/nvme1n1 rw
32 27 0:27 /sub /my\\040files rw - nfs4 server:/with\\134slash rw
garbage
33 27 0:28 - short
";

    #[test]
    fn the_drive_of_a_file() {
        let mounts = parse_mountinfo(MOUNTINFO);
        assert_eq!(mounts.len(), 5);
        let check = |file: &str, point: &str, source: &str| {
            let mount = holding(&mounts, Path::new(file)).expect("a mount");
            assert_eq!(
                (mount.mount_point.as_path(), mount.source.as_str()),
                (Path::new(point), source)
            );
        };
        check("/home/a.gguf", "/", "/dev/vda");
        check("/models/a.gguf", "/models", "/dev/nvme1n1");
        check("/models2/a.gguf", "/", "/dev/vda");
        check("/my files/deep/a.gguf", "/my files", "server:/with\\slash");
        assert_eq!(holding(&mounts, Path::new("relative")), None);
        assert_eq!(mounts[4].root, Path::new("/sub"));
        assert_eq!(mounts[2].super_options, "rw,subvol=/@models");
    }

    #[test]
    fn escapes() {
        for (text, expected) in [
            ("a\\040b", "a b"),
            ("\\011", "\t"),
            ("a\\", "a\\"),
            ("\\9", "\\9"),
            ("\\777x", "\\777x"),
        ] {
            assert_eq!(unescape(text), expected);
        }
    }

    #[test]
    fn this_machine_has_a_drive_for_a_file_and_none_for_a_missing_one() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let drive = Drive::of(file.path()).expect("a drive");
        assert!(fs::canonicalize(file.path()).expect("a path").starts_with(&drive.mount));
        let highest = highest_on_device(file.path(), drive.device).expect("a folder");
        assert!(file.path().starts_with(highest));
        assert!(Drive::of(Path::new("/nowhere/at/all")).is_err());
    }
}
