use std::net::SocketAddr;

/// The two ends of the connection that a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The client's end.
    pub(crate) remote: SocketAddr,
    /// Our end: the address of this machine that the client chose.
    pub(crate) local: SocketAddr,
    /// Whether it is encrypted.
    pub(crate) tls: bool,
}
