//! Room for open files: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that the process needs beside its connections: models, attention state, the runtime.
const FILES_RESERVED: u64 = 256;

/// Raises the process's own limit of open files if it is too low for so many connections.
/// Returns how many there may be.
pub(super) fn room_for(connections_max: usize) -> usize {
    let wanted = connections_max as u64 + FILES_RESERVED;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|files| files >= wanted) {
        return connections_max;
    }
    let reachable = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let raised = Rlimit { current: Some(reachable), maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => reachable,
        Err(_) => limit.current.unwrap_or(reachable),
    };
    let fewer = fewer(connections_max, files);
    if fewer < connections_max {
        tracing::warn!(
            "only {files} files may be open, so only {fewer} connections; see ulimit -n"
        );
    }
    fewer
}

/// Half of the files, where there are too few to reserve any.
fn fewer(connections_max: usize, files: u64) -> usize {
    let room = files.saturating_sub(FILES_RESERVED).max(files / 2);
    usize::try_from(room).unwrap_or(usize::MAX).min(connections_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_models() {
        assert_eq!(fewer(1024, 1280), 1024);
        assert_eq!(fewer(1024, 1024), 768);
        assert_eq!(fewer(1024, 100), 50);
        assert_eq!(fewer(10, 100_000), 10);
    }
}
