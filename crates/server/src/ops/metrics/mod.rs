//! What is counted, and `/metrics`, which shows it to Prometheus.
//!
//! The number of time series is bounded: routes are those that the router knows, statuses those
//! that are sent, models those that are loaded when it is asked.

mod histogram;
mod show;
mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::access;
use crate::answer::{Finish, Summary};
use crate::http::Api;

use histogram::Histogram;
pub(crate) use show::show;

/// Counters of everything that is not a model's: models count for themselves.
#[derive(Debug)]
pub(crate) struct Metrics {
    draining: AtomicBool,
    in_flight: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    waiting: Arc<AtomicU64>,
    active: Arc<AtomicU64>,
    connections_accepted: AtomicU64,
    connections_refused: AtomicU64,
    requests: Mutex<BTreeMap<(Api, String, u16), u64>>,
    /// By API.
    durations: Mutex<BTreeMap<Api, Histogram>>,
    answers: Mutex<Answers>,
}

/// What was asked of models, those that are no longer loaded included.
#[derive(Debug, Clone)]
struct Answers {
    ended: BTreeMap<&'static str, u64>,
    embeddings: u64,
    prompt_tokens: u64,
    reused_tokens: u64,
    generated_tokens: u64,
    ttft: Histogram,
    queue: Histogram,
    prompt: Histogram,
    /// Loading the model, for the requests that it was loaded for.
    load: Histogram,
    /// Seconds per token after the first.
    token: Histogram,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            draining: AtomicBool::default(),
            in_flight: Arc::default(),
            connections: Arc::default(),
            waiting: Arc::default(),
            active: Arc::default(),
            connections_accepted: AtomicU64::default(),
            connections_refused: AtomicU64::default(),
            requests: Mutex::default(),
            durations: Mutex::default(),
            answers: Mutex::new(Answers {
                ended: BTreeMap::new(),
                embeddings: 0,
                prompt_tokens: 0,
                reused_tokens: 0,
                generated_tokens: 0,
                ttft: Histogram::seconds(),
                queue: Histogram::seconds(),
                prompt: Histogram::seconds(),
                load: Histogram::seconds(),
                token: Histogram::token_seconds(),
            }),
        }
    }
}

/// Something that goes on, counted until it is dropped.
#[derive(Debug)]
#[must_use = "it counts until it is dropped"]
pub(crate) struct Counted(Arc<AtomicU64>);

impl Counted {
    fn one_more(of: &Arc<AtomicU64>) -> Counted {
        of.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(of))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// From now on `/health` says that the server stops.
    pub(crate) fn begin_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the server was asked to stop.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A connection was accepted.
    pub(crate) fn connection_begins(&self) -> Counted {
        self.connections_accepted.fetch_add(1, Ordering::Relaxed);
        Counted::one_more(&self.connections)
    }

    /// A connection was one too many.
    pub(crate) fn connection_refused(&self) {
        self.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has come; it is in flight until its answer's last byte.
    pub(crate) fn request_begins(&self) -> Counted {
        Counted::one_more(&self.in_flight)
    }

    /// An answer's last byte was handed over, or the client left.
    pub(crate) fn request_ended(&self, api: Api, route: &str, status: u16, took: Duration) {
        let mut requests = lock(&self.requests);
        *requests.entry((api, route.to_owned(), status)).or_default() += 1;
        drop(requests);
        lock(&self.durations).entry(api).or_insert_with(Histogram::seconds).add(took);
    }

    /// A request waits for a model, to be loaded or to have a place.
    pub(crate) fn begin_waiting(&self) -> Counted {
        Counted::one_more(&self.waiting)
    }

    /// A request is being answered by a model.
    pub(crate) fn begin_answering(&self) -> Counted {
        Counted::one_more(&self.active)
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests whose answers have not ended.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that wait for a model.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Requests that are being answered by a model.
    pub(crate) fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Answers and embeddings so far.
    pub(crate) fn answered(&self) -> u64 {
        let answers = lock(&self.answers);
        answers.ended.values().sum::<u64>() + answers.embeddings
    }

    /// An answer has ended. Where it is called inside a request, the access log gets the model and
    /// the tokens as well.
    pub(crate) fn answer_ended(&self, model: &str, summary: &Summary) {
        access::note(|noted| {
            noted.model = Some(model.to_owned());
            add(&mut noted.prompt_tokens, summary.prompt_tokens);
            add(&mut noted.generated_tokens, summary.generated_tokens);
        });
        let mut answers = lock(&self.answers);
        *answers.ended.entry(finish_name(&summary.finish)).or_default() += 1;
        answers.prompt_tokens += summary.prompt_tokens as u64;
        answers.reused_tokens += summary.reused_tokens as u64;
        answers.generated_tokens += summary.generated_tokens as u64;
        answers.queue.add(summary.queue_time);
        answers.prompt.add(summary.prompt_time);
        if !summary.load_time.is_zero() {
            answers.load.add(summary.load_time);
        }
        if summary.generated_tokens > 0 {
            answers.ttft.add(summary.ttft);
        }
        let after_first = summary.generated_tokens.saturating_sub(1);
        if let Ok(after_first @ 1..) = u32::try_from(after_first) {
            answers.token.add(summary.decode_time / after_first);
        }
    }

    /// An answer has ended before its end: an error, or nobody waits for it any more.
    pub(crate) fn answer_broke_off(&self, model: &str) {
        access::note(|noted| noted.model = Some(model.to_owned()));
        *lock(&self.answers).ended.entry("broke_off").or_default() += 1;
    }

    /// Embeddings were computed.
    pub(crate) fn embedded(&self, model: &str, prompt_tokens: usize) {
        access::note(|noted| {
            noted.model = Some(model.to_owned());
            add(&mut noted.prompt_tokens, prompt_tokens);
        });
        let mut answers = lock(&self.answers);
        answers.embeddings += 1;
        answers.prompt_tokens += prompt_tokens as u64;
    }
}

fn add(to: &mut Option<usize>, tokens: usize) {
    *to = Some(to.unwrap_or_default() + tokens);
}

fn finish_name(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::StopText(_) => "stop_text",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
        Finish::Cancelled => "cancelled",
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
