//! Where facts about the machine come from; replaced in tests.

use std::path::Path;
use std::process::Command;

/// Largest file or output that is looked at, in bytes; what is longer counts as unreadable.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// Texts that the operating system offers about itself.
pub(crate) trait Host {
    /// The content of a file such as `/proc/meminfo`; `None` if it can't be read.
    fn read(&self, path: &Path) -> Option<String>;

    /// What a command such as `sysctl -n hw.memsize` prints; `None` if it fails.
    fn run(&self, command: &[&str]) -> Option<String>;
}

/// The operating system doesn't say what it has to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeError {
    #[error("{origin} can't be read; mount /proc and /sys, or give the budget by hand")]
    Unreadable { origin: String },
    #[error("{origin} doesn't tell {what}; give the budget by hand")]
    Missing { origin: String, what: &'static str },
    /// For measuring how fast memory is.
    #[error(transparent)]
    Alloc(#[from] hypura_io::AllocError),
}

/// The machine that this runs on.
pub(crate) struct System;

impl Host for System {
    fn read(&self, path: &Path) -> Option<String> {
        use std::io::Read;
        let mut text = Vec::new();
        let file = std::fs::File::open(path).ok()?;
        file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut text).ok()?;
        if text.len() as u64 > TEXT_BYTES_MAX {
            return None;
        }
        // Paths in mountinfo need not be UTF-8; the rest of the file is still of use.
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    fn run(&self, command: &[&str]) -> Option<String> {
        let (program, arguments) = command.split_first()?;
        let output = Command::new(program).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A machine made of (path or command line, text) pairs.
    pub(crate) struct Fixture(BTreeMap<String, String>);

    impl Fixture {
        pub(crate) fn new(texts: &[(&str, &str)]) -> Fixture {
            Fixture(texts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        }
    }

    impl Host for Fixture {
        fn read(&self, path: &Path) -> Option<String> {
            self.0.get(path.to_str()?).cloned()
        }

        fn run(&self, command: &[&str]) -> Option<String> {
            self.0.get(&command.join(" ")).cloned()
        }
    }

    #[test]
    fn the_system_answers_or_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("text");
        std::fs::write(&path, "hello").expect("written");
        assert_eq!(System.read(&path).as_deref(), Some("hello"));
        assert_eq!(System.read(&folder.path().join("missing")), None);
        assert_eq!(System.run(&["/nowhere/no-such-program"]), None);
        assert_eq!(System.run(&[]), None);
    }
}
