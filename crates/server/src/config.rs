//! What a server may be told, and its limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hypura_hub::PullConfig;

use crate::answer::KeepAlive;

/// How a server runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub address: SocketAddr,
    /// Keys of which one has to be sent; none: everybody may ask.
    pub api_keys: Vec<String>,
    /// Names under which it is reached, beside loopback names and the address it listens at.
    pub hosts: Vec<String>,
    /// Origins of pages that may call it, such as `https://chat.example`; `*` is all.
    pub origins: Vec<String>,
    /// Certificate and key, for HTTPS.
    pub tls: Option<TlsConfig>,
    /// How long a model stays loaded after its last answer.
    pub keep_alive: KeepAlive,
    /// Bytes that the whole process may take; `None` is what is free when a model is loaded.
    pub memory_bytes: Option<u64>,
    /// Bytes of GPU memory that it may take; `None` as above.
    pub gpu_memory_bytes: Option<u64>,
    /// Whether models may be pulled, copied, created and deleted through the API.
    pub manage: bool,
    /// Where models are pulled from, and how large a model or an uploaded file may be.
    pub pull: PullConfig,
    /// Where conversations of the command line are kept, for the page to list; `None` lists none.
    pub sessions_dir: Option<PathBuf>,
    /// How long requests that are being answered may go on after the server was asked to stop.
    pub shutdown: Duration,
    /// What one client can't exceed.
    pub limits: Limits,
}

impl Default for Config {
    /// Loopback, Ollama's port, no keys.
    fn default() -> Config {
        Config {
            address: SocketAddr::from(([127, 0, 0, 1], 11434)),
            api_keys: Vec::new(),
            hosts: Vec::new(),
            origins: Vec::new(),
            tls: None,
            keep_alive: KeepAlive::For(Duration::from_secs(300)),
            memory_bytes: None,
            gpu_memory_bytes: None,
            manage: true,
            pull: PullConfig::default(),
            sessions_dir: None,
            shutdown: Duration::from_secs(30),
            limits: Limits::default(),
        }
    }
}

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The certificate and those it depends on.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Everything that a client could have too much of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time.
    pub connections_max: usize,
    /// Bytes of a request's line and headers.
    pub headers_bytes_max: usize,
    /// Headers of a request.
    pub headers_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// Bytes of all bodies that are being read or worked on, together.
    pub bodies_bytes_max: usize,
    /// From the connection, or from the last answer, to the end of the headers.
    pub headers_timeout: Duration,
    /// From the headers to the end of the body.
    pub body_timeout: Duration,
    /// How long a client may not take what it is sent.
    pub write_timeout: Duration,
    /// From a request to the first byte of its answer, waiting and reading the prompt included.
    pub first_byte_timeout: Duration,
    /// Requests that wait for a model, per model; more are answered with 503.
    pub queue_max: usize,
    /// How long a request waits for its turn at most.
    pub queue_timeout: Duration,
    /// Messages of a conversation.
    pub messages_max: usize,
    /// Tools of a request.
    pub tools_max: usize,
    /// Inputs of a request for embeddings.
    pub inputs_max: usize,
    /// Answers to one prompt (`n`).
    pub choices_max: usize,
    /// Stop texts of a request, and bytes of each.
    pub stops_max: usize,
    /// As above.
    pub stop_bytes_max: usize,
}

impl Default for Limits {
    /// Wide for people, narrow for attackers.
    fn default() -> Limits {
        Limits {
            connections_max: 1024,
            headers_bytes_max: 32 << 10,
            headers_max: 100,
            body_bytes_max: 32 << 20,
            bodies_bytes_max: 256 << 20,
            headers_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            first_byte_timeout: Duration::from_secs(3600),
            queue_max: 64,
            queue_timeout: Duration::from_secs(1800),
            messages_max: 10_000,
            tools_max: 256,
            inputs_max: 2048,
            choices_max: 16,
            stops_max: 32,
            stop_bytes_max: 1024,
        }
    }
}
