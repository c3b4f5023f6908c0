//! Options of the server.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hypura_engine::LoadOptions;
use hypura_server::answer::KeepAlive;
use hypura_server::{Limits, TlsConfig};

use super::{FlashArg, GpuArgs, KvArgs, LayoutArg};
use crate::size;

const ACCESS: &str = "Who may ask";
const MEMORY: &str = "Memory";
const COMPUTING: &str = "Computing";
const LIMITS: &str = "Limits";

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where to listen; 0.0.0.0 is all of the machine's addresses: set a key then
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,

    /// The port; 0 takes a free one. 11434 is Ollama's
    #[arg(long, value_name = "N", default_value_t = 11434)]
    pub(crate) port: u16,

    /// One more folder with GGUF files that can be named without path and ending
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,

    /// Load this model now, rather than when it is asked for
    #[arg(long, value_name = "NAME")]
    pub(crate) preload: Option<String>,

    /// What the whole process may take, all models together [default: what is free when a model is
    /// loaded, less a margin]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = MEMORY)]
    pub(crate) memory: Option<u64>,

    /// Tokens of context, shared by the requests that are computed together; a request may ask for
    /// more (num_ctx) [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = MEMORY)]
    pub(crate) ctx: Option<u32>,

    /// How long a model stays in memory after its last answer: 30s, 5m, 2h, or forever
    #[arg(long, value_name = "TIME", value_parser = keep_alive, default_value = "5m", help_heading = MEMORY)]
    pub(crate) keep_alive: KeepAlive,

    /// Requests of a model that are computed together at most
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64), help_heading = COMPUTING)]
    pub(crate) parallel: u32,

    /// Tokens of a prompt that are computed at once [default: chosen by the planner]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192), help_heading = COMPUTING)]
    pub(crate) ubatch: Option<u32>,

    /// Compute threads, at most one per core [default: the free cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512), help_heading = COMPUTING)]
    pub(crate) threads: Option<u32>,

    /// How weights that stay in memory lie there: rearranged for this CPU, or plain as in the file
    #[arg(long, value_enum, default_value_t = LayoutArg::Fast, help_heading = COMPUTING)]
    pub(crate) layout: LayoutArg,

    /// Whether attention is computed by the fused kernel
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = FlashArg::Auto, help_heading = COMPUTING)]
    pub(crate) flash_attention: FlashArg,

    #[command(flatten)]
    pub(crate) gpu: GpuArgs,

    #[command(flatten)]
    pub(crate) kv: KvArgs,

    /// A key that clients have to send (Authorization: Bearer, or x-api-key); may be given several
    /// times. Conversations of one key are never read for another. Others on this machine can see
    /// it in the list of processes: better a file
    #[arg(long, value_name = "KEY", help_heading = ACCESS)]
    pub(crate) api_key: Vec<String>,

    /// A file with such keys, one per line
    #[arg(long, value_name = "FILE", help_heading = ACCESS)]
    pub(crate) api_key_file: Option<PathBuf>,

    /// A name under which clients reach the server, beside localhost and its address; may be given
    /// several times
    #[arg(long, value_name = "NAME", help_heading = ACCESS)]
    pub(crate) allow_host: Vec<String>,

    /// An origin of web pages that may call it, such as `https://chat.example`; * is all. May be given
    /// several times
    #[arg(long, value_name = "ORIGIN", help_heading = ACCESS)]
    pub(crate) allow_origin: Vec<String>,

    /// A certificate (PEM), for HTTPS
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = ACCESS)]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = ACCESS)]
    pub(crate) tls_key: Option<PathBuf>,

    /// Refuse to pull, copy, create and delete models
    #[arg(long, help_heading = ACCESS)]
    pub(crate) read_only: bool,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    /// How what happens is written to standard error: text, or one JSON object per line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// What one client can't exceed. Defaults are the server's.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Requests of a model that wait at most; more are told to come back later
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue_max, help_heading = LIMITS)]
    queue: usize,

    /// How long one waits for its turn at most
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "30m", help_heading = LIMITS)]
    queue_timeout: Duration,

    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections_max, help_heading = LIMITS)]
    max_connections: usize,

    /// Bytes of a request's body
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "32MiB", help_heading = LIMITS)]
    max_body: u64,

    /// Bytes of all bodies together
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "256MiB", help_heading = LIMITS)]
    max_bodies: u64,

    /// Bytes of a request's headers
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "32KiB", help_heading = LIMITS)]
    max_headers: u64,

    /// How long a client may take to send headers, or stay silent between requests
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "30s", help_heading = LIMITS)]
    header_timeout: Duration,

    /// How long it may take to send a body
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "60s", help_heading = LIMITS)]
    body_timeout: Duration,

    /// How long it may not take what it is sent
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "60s", help_heading = LIMITS)]
    write_timeout: Duration,

    /// From a request to the first byte of its answer
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1h", help_heading = LIMITS)]
    first_byte_timeout: Duration,

    /// How long answers may go on after Ctrl-C
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "30s", help_heading = LIMITS)]
    pub(crate) shutdown_timeout: Duration,
}

impl LimitArgs {
    pub(crate) fn limits(&self) -> Limits {
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Limits {
            connections_max: self.max_connections,
            headers_bytes_max: bytes(self.max_headers),
            body_bytes_max: bytes(self.max_body),
            bodies_bytes_max: bytes(self.max_bodies),
            headers_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            write_timeout: self.write_timeout,
            first_byte_timeout: self.first_byte_timeout,
            queue_max: self.queue,
            queue_timeout: self.queue_timeout,
            ..Limits::default()
        }
    }
}

impl ServeArgs {
    /// How models are loaded.
    pub(crate) fn load_options(&self) -> LoadOptions {
        let mut options = LoadOptions {
            ctx_tokens: self.ctx.unwrap_or_else(|| LoadOptions::default().ctx_tokens),
            ubatch_tokens: self.ubatch,
            threads: self.threads,
            layout: self.layout.layout(),
            flash_attention: self.flash_attention.flash_attention(),
            kv_type_k: self.kv.type_k(),
            kv_type_v: self.kv.type_v(),
            kv: self.kv.options(),
            parallel: self.parallel,
            queue_max: self.limits.limits().queue_max,
            profile_dir: crate::home::cache(),
            history_dir: crate::home::data().map(|data| data.join("history")),
            ..LoadOptions::default()
        };
        self.gpu.set(&mut options);
        options
    }

    /// Certificate and key, if both are given.
    pub(crate) fn tls(&self) -> Option<TlsConfig> {
        let (certificate, key) = (self.tls_cert.clone()?, self.tls_key.clone()?);
        Some(TlsConfig { certificate, key })
    }
}

/// A time such as 30s, 5m or 2h; plain numbers are seconds.
fn time(text: &str) -> Result<Duration, String> {
    const HINT: &str = "use a time such as 30s, 5m or 2h";
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| HINT.to_owned())?;
    let seconds = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(HINT.to_owned()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| HINT.to_owned())
}

fn keep_alive(text: &str) -> Result<KeepAlive, String> {
    match text.trim() {
        "forever" | "-1" => Ok(KeepAlive::Forever),
        other => time(other)
            .map(KeepAlive::For)
            .map_err(|_| "use a time such as 30s, 5m or 2h, or forever".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(time("90"), Ok(Duration::from_secs(90)));
        assert_eq!(time("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "h", "1d", "-5s", "99999999999999999999s"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        assert_eq!(keep_alive("forever"), Ok(KeepAlive::Forever));
        assert_eq!(keep_alive("0"), Ok(KeepAlive::For(Duration::ZERO)));
    }
}
