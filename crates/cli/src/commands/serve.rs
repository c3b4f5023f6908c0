//! `hypura serve`: Ollama's, OpenAI's and Anthropic's APIs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hypura_server::models::{Budget, EngineLoader, Models};
use hypura_server::{App, Config, Server};

use crate::args::ServeArgs;
use crate::failure::UsageError;
use crate::{home, output};

/// A file of keys is no larger than this.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    super::check_thread_count(args.threads)?;
    let api_keys = keys(args)?;
    let has_keys = !api_keys.is_empty();
    let config = Config {
        address: SocketAddr::new(args.host, args.port),
        api_keys,
        hosts: args.allow_host.clone(),
        origins: args.allow_origin.clone(),
        tls: args.tls(),
        keep_alive: args.keep_alive,
        memory_bytes: args.memory,
        gpu_memory_bytes: args.load_options().gpu_memory_bytes,
        manage: !args.read_only,
        pull: super::library::pull_config(),
        // Names of conversations are nobody's business who only has a key.
        sessions_dir: home::sessions().filter(|_| !has_keys),
        shutdown: args.limits.shutdown_timeout,
        limits: args.limits.limits(),
    };
    if !args.host.is_loopback() && config.api_keys.is_empty() {
        tracing::warn!(
            "everybody who can reach {} may use this server; set --api-key-file",
            args.host
        );
    }
    hypura_engine::llama::process::share_allocator();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start threads")?;
    let result = runtime.block_on(serve(args, config));
    // What is still blocked (a read, a download) ends with the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(args: &ServeArgs, config: Config) -> anyhow::Result<()> {
    let stores = home::stores(args.models_dir.as_ref());
    let loader = Arc::new(EngineLoader::new(args.load_options()));
    let budget =
        Budget { memory_bytes: config.memory_bytes, gpu_memory_bytes: config.gpu_memory_bytes };
    let models = Models::new(stores, loader, config.keep_alive, budget);
    let (is_tls, has_keys) = (config.tls.is_some(), !config.api_keys.is_empty());
    let app = App::new(config, models);
    tokio::spawn(app.models.reaper());
    let server = Server::bind(Arc::clone(&app)).await?;
    let scheme = if is_tls { "https" } else { "http" };
    let address = server.local_addr();
    output::say(format_args!(
        "hypura: serving at {scheme}://{address}, with a page at {scheme}://{address}/ui"
    ));
    if has_keys {
        output::say(format_args!("hypura: clients have to send a key"));
    }
    let draining = Arc::clone(&app);
    let server = server.on_drain(move || async move { draining.models.close().await });
    if let Some(name) = &args.preload {
        let loaded = app.models.load(name, None, None).await;
        loaded.map_err(|error| UsageError(error.to_string()))?;
        output::say(format_args!("hypura: {name} is loaded"));
    }
    server.run_until_signalled().await?;
    Ok(())
}

/// The keys of the command line and of the file.
fn keys(args: &ServeArgs) -> anyhow::Result<Vec<String>> {
    let mut keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = read_keys(path)
            .map_err(|error| UsageError(format!("can't read the keys in {path:?}: {error}")))?;
        let lines = text.lines().map(str::trim);
        keys.extend(lines.filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
        if keys.is_empty() {
            return Err(UsageError(format!("there is no key in {path:?}")).into());
        }
    }
    if keys.iter().any(|key| key.trim().is_empty() || key.contains(|c: char| c.is_control())) {
        let message = "an API key is empty or has control characters; nobody could send it";
        return Err(UsageError(message.to_owned()).into());
    }
    Ok(keys)
}

fn read_keys(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
