use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a server can't run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Somebody else listens there.
    #[error(
        "port {port} of {ip} is in use; stop what listens there (perhaps Ollama, or another \
         Hypura) or choose another port",
        port = address.port(),
        ip = address.ip()
    )]
    AddressInUse {
        /// Where.
        address: SocketAddr,
    },
    /// Ports below 1024 are not for everybody.
    #[error(
        "this user may not listen at port {port}; choose one above 1023 or grant the right to",
        port = address.port()
    )]
    NoPermission {
        /// Where.
        address: SocketAddr,
    },
    /// No network interface has the address.
    #[error(
        "this machine has no address {ip}; choose one of its own, or 0.0.0.0 for all of them",
        ip = address.ip()
    )]
    NoSuchAddress {
        /// Where.
        address: SocketAddr,
    },
    /// It can't listen for another reason.
    #[error("can't listen at {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// A file for HTTPS is of no use.
    #[error("can't use {path} for HTTPS: {reason}")]
    Tls {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Signals can't be watched.
    #[error("can't watch for signals to stop: {0}")]
    Signals(io::Error),
}

impl ServeError {
    pub(super) fn listen(address: SocketAddr, error: io::Error) -> ServeError {
        match error.kind() {
            io::ErrorKind::AddrInUse => ServeError::AddressInUse { address },
            io::ErrorKind::PermissionDenied => ServeError::NoPermission { address },
            io::ErrorKind::AddrNotAvailable => ServeError::NoSuchAddress { address },
            _ => ServeError::Listen { address, error },
        }
    }
}
