//! The best read engine that the system has.

use crate::{PoolConfig, PoolError, PreadPool, ReadEngine};
#[cfg(target_os = "linux")]
use crate::{UringConfig, UringEngine, UringError};

/// How an engine is to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EngineKind {
    /// Through io_uring where that is allowed, with threads elsewhere.
    #[default]
    Auto,
    /// Through io_uring, or not at all.
    Uring,
    /// With a pool of threads.
    Pread,
}

/// What an engine is made for, whichever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    pub kind: EngineKind,
    /// Reads that the drive sees at once; 1 to [`PoolConfig::THREADS_MAX`]. A pool has as many
    /// threads, but at most [`EngineConfig::THREADS_MAX`].
    pub depth: usize,
    /// How many of them may be read-ahead; 1 to `depth`.
    pub read_ahead_depth: usize,
    /// Larger requests are split into pieces of about this size, in bytes;
    /// [`PoolConfig::CHUNK_BYTES_MIN`] to [`PoolConfig::CHUNK_BYTES_MAX`].
    pub chunk_bytes: usize,
    /// Requests in flight at most; 1 to [`PoolConfig::QUEUE_REQUESTS_MAX`].
    pub queue_requests: usize,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            kind: EngineKind::Auto,
            depth: 16,
            read_ahead_depth: 4,
            chunk_bytes: 1 << 20,
            queue_requests: 4096,
        }
    }
}

impl EngineConfig {
    /// Memory that the engine takes for itself at most, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let pread = self.pread().memory_bytes();
        #[cfg(target_os = "linux")]
        let memory_bytes = match self.kind {
            EngineKind::Auto => pread.max(self.uring().memory_bytes()),
            EngineKind::Uring => self.uring().memory_bytes(),
            EngineKind::Pread => pread,
        };
        #[cfg(not(target_os = "linux"))]
        let memory_bytes = pread;
        memory_bytes
    }

    /// More threads than this read no faster from any drive that was seen, and each has a buffer.
    pub const THREADS_MAX: usize = 8;

    fn pread(&self) -> PoolConfig {
        let threads = self.depth.min(Self::THREADS_MAX);
        PoolConfig {
            threads,
            read_ahead_threads: self.read_ahead_depth.min(threads),
            chunk_bytes: self.chunk_bytes,
            queue_requests: self.queue_requests,
        }
    }

    #[cfg(target_os = "linux")]
    fn uring(&self) -> UringConfig {
        UringConfig {
            depth: self.depth,
            read_ahead_depth: self.read_ahead_depth,
            chunk_bytes: self.chunk_bytes,
            queue_requests: self.queue_requests,
        }
    }
}

/// No engine can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    #[error(transparent)]
    Pread(#[from] PoolError),
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Uring(#[from] UringError),
    #[cfg(not(target_os = "linux"))]
    #[error("only Linux has io_uring; read with pread instead")]
    NoUring,
}

/// Makes the engine that is asked for; [`ReadEngine::name`] says which one it is.
///
/// # Errors
/// If the configuration makes no sense, memory or threads are short, or io_uring is demanded where
/// it can't be had.
pub fn open_engine(config: EngineConfig) -> Result<Box<dyn ReadEngine>, EngineError> {
    match config.kind {
        EngineKind::Pread => open_pread(config),
        EngineKind::Uring => open_uring(config),
        EngineKind::Auto => open_best(config),
    }
}

fn open_pread(config: EngineConfig) -> Result<Box<dyn ReadEngine>, EngineError> {
    Ok(Box::new(PreadPool::new(config.pread())?))
}

#[cfg(target_os = "linux")]
fn open_uring(config: EngineConfig) -> Result<Box<dyn ReadEngine>, EngineError> {
    Ok(Box::new(UringEngine::new(config.uring())?))
}

#[cfg(target_os = "linux")]
fn open_best(config: EngineConfig) -> Result<Box<dyn ReadEngine>, EngineError> {
    or_pread(open_uring(config), config)
}

/// The ring, or a pool if io_uring can't be had here. Other errors would hit a pool as well.
#[cfg(target_os = "linux")]
fn or_pread(
    uring: Result<Box<dyn ReadEngine>, EngineError>,
    config: EngineConfig,
) -> Result<Box<dyn ReadEngine>, EngineError> {
    match uring {
        Err(EngineError::Uring(error @ UringError::Unavailable { .. })) => {
            tracing::info!("reading with a pool of threads: {error}");
            open_pread(config)
        }
        other => other,
    }
}

#[cfg(not(target_os = "linux"))]
fn open_uring(_config: EngineConfig) -> Result<Box<dyn ReadEngine>, EngineError> {
    Err(EngineError::NoUring)
}

#[cfg(not(target_os = "linux"))]
fn open_best(config: EngineConfig) -> Result<Box<dyn ReadEngine>, EngineError> {
    open_pread(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_what_is_asked_for_and_says_what_it_is() {
        let open = |kind| open_engine(EngineConfig { kind, ..EngineConfig::default() });
        assert_eq!(open(EngineKind::Pread).expect("a pool").name(), "pread");
        let auto = open(EngineKind::Auto).expect("an engine").name();
        match open(EngineKind::Uring) {
            Ok(engine) => assert_eq!([engine.name(), auto], ["io_uring"; 2]),
            Err(error) => {
                assert!(error.to_string().contains("io_uring"), "{error}");
                assert_eq!(auto, "pread");
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn falls_back_only_where_that_helps() {
        let config = EngineConfig::default();
        let source = std::io::Error::from_raw_os_error(libc::EPERM);
        let forbidden = EngineError::from(UringError::Unavailable { source });
        assert_eq!(or_pread(Err(forbidden), config).expect("a pool").name(), "pread");
        let alloc = EngineError::from(UringError::Alloc(crate::AllocError::OutOfMemory { len: 1 }));
        assert!(matches!(or_pread(Err(alloc), config), Err(EngineError::Uring(_))));
    }

    #[test]
    fn refuses_absurd_configs_of_all_kinds() {
        for kind in [EngineKind::Auto, EngineKind::Pread] {
            let config = EngineConfig { kind, depth: 0, ..EngineConfig::default() };
            assert!(open_engine(config).is_err());
        }
    }

    #[test]
    fn knows_the_memory_of_the_larger_one() {
        let bytes = |kind| EngineConfig { kind, ..EngineConfig::default() }.memory_bytes();
        let threads = EngineConfig::THREADS_MAX;
        assert_eq!(bytes(EngineKind::Pread), threads * (1 << 20 | 128 << 10));
        assert_eq!(bytes(EngineKind::Auto), bytes(EngineKind::Pread).max(bytes(EngineKind::Uring)));
    }
}
