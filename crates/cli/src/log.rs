//! What is said on the way: warnings always, more with `-v`.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::args::LogFormat;

/// Warnings are always shown; `-v` adds what happens, `-vv` and more what llama.cpp says.
///
/// A server says what happens without being asked, with the time, or as JSON, one object per line.
pub(crate) fn start(verbose: u8, server: Option<LogFormat>) {
    let quiet = usize::from(verbose) + usize::from(server.is_some());
    let level = ["warn", "info", "debug", "trace"][quiet.min(3)];
    let filter = EnvFilter::try_from_env("HYPURA_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would panic where standard error can't be written.
        .log_internal_errors(false);
    match server {
        Some(LogFormat::Json) => return log.json().flatten_event(true).init(),
        Some(LogFormat::Text) => return log.init(),
        None => {}
    }
    let log = log.without_time();
    if verbose > 1 {
        log.init();
    } else {
        log.event_format(Sentences).init();
    }
}

/// Events as the command line's other sentences: `hypura: warning: ...`.
struct Sentences;

impl<S, N> FormatEvent<S, N> for Sentences
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let prefix = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        write!(writer, "hypura: {prefix}")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
