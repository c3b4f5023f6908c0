//! What can be asked: models that lie here, those that are loaded, and which gives way.
//!
//! A model is loaded when it is asked for, and stays for its keep-alive. All loaded models share one
//! budget of memory, and one of the GPU's: one that would fit into what is left of both is loaded
//! beside the others; else those that are idle go, the one that was used longest ago first, until it
//! fits or is alone. What does not fit alone streams. While somebody waits for room, nobody else is let in to the models that have to go.

mod engine;
mod lease;
mod room;
mod runner;
mod settings;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use hypura_engine::LoadError;
use hypura_hub::{Entry, ResolveError, Stores};
use tokio::sync::Notify;

pub use engine::EngineLoader;
pub use lease::Lease;
pub use runner::{Budget, Facts, Loader, Needs, Runner, Tiers, Want};
pub use settings::Settings;

use crate::answer::{KeepAlive, Memory};
use crate::error::{ApiError, ErrorKind};
use lease::Loaded;

/// Models whose conversations are remembered after they were unloaded, at most.
const MEMORIES_MAX: usize = 16;
/// How long attention state may take to be written before a model goes.
const SETTLE_AT_MOST: Duration = Duration::from_secs(20);

/// Why a model can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// It is not there.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// It can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It can't be used, for another reason.
    #[error("{0}")]
    Other(String),
}

/// The models that a server has.
pub struct Models {
    shared: Arc<Inner>,
}

/// What all who hold a model share.
pub(crate) struct Inner {
    stores: Stores,
    loader: Arc<dyn Loader>,
    keep_alive: KeepAlive,
    budget: Budget,
    state: Mutex<State>,
    /// Told when a model was loaded, released or unloaded.
    changed: Notify,
}

#[derive(Default)]
struct State {
    loaded: Vec<Arc<Loaded>>,
    /// Whether somebody is loading: one at a time.
    is_loading: bool,
    /// Whether it waits for others to go: nobody is let in to them meanwhile.
    is_making_room: bool,
    memories: HashMap<String, Arc<Memory>>,
    /// The server stops: nothing is loaded any more.
    is_closed: bool,
}

/// A model in memory, as others see it.
pub struct LoadedModel {
    /// Where it lies.
    pub entry: Arc<Entry>,
    /// The model.
    pub runner: Arc<dyn Runner>,
    /// When it goes if nobody asks; `None`: when memory is needed.
    pub expires_at: Option<DateTime<Utc>>,
    /// Tokens of context for one request.
    pub context_length: usize,
    /// Bytes of memory that it takes.
    pub memory_bytes: u64,
    /// Bytes of GPU memory that it takes.
    pub vram_bytes: u64,
    /// Requests that hold it.
    pub active: usize,
}

impl Models {
    /// The models of these stores, all loaded ones within this budget.
    pub fn new(
        stores: Stores,
        loader: Arc<dyn Loader>,
        keep_alive: KeepAlive,
        budget: Budget,
    ) -> Models {
        let shared = Inner {
            stores,
            loader,
            keep_alive,
            budget,
            state: Mutex::default(),
            changed: Notify::new(),
        };
        Models { shared: Arc::new(shared) }
    }

    /// Where models lie. Looking there blocks.
    pub fn stores(&self) -> &Stores {
        &self.shared.stores
    }

    /// A loaded model; loads it if need be, and waits until there is room.
    ///
    /// # Errors
    /// When there is no such model, it can't be loaded, or the server stops.
    pub async fn load(
        &self,
        name: &str,
        keep_alive: Option<KeepAlive>,
        num_ctx: Option<u32>,
    ) -> Result<Lease, ApiError> {
        let entry = self.find(name).await?;
        let keep_alive = keep_alive.unwrap_or(self.shared.keep_alive);
        let settings = Settings::of(&entry);
        let want = Want { num_ctx: num_ctx.or(settings.num_ctx) };
        loop {
            // Whoever changes something after this is heard.
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let turn = {
                let mut state = self.shared.state();
                if state.is_closed {
                    return Err(ApiError::new(ErrorKind::Unavailable, "the server is stopping"));
                }
                match state.find(&entry, &want) {
                    Some(loaded) if !state.is_making_room => {
                        return Ok(Lease::new(&self.shared, &loaded, keep_alive, false));
                    }
                    _ if state.is_loading => None,
                    _ => {
                        state.is_loading = true;
                        Some(room::Turn::new(&self.shared))
                    }
                }
            };
            match turn {
                None => changed.await,
                Some(turn) => {
                    return turn.load(entry, want, settings, keep_alive).await;
                }
            }
        }
    }

    async fn find(&self, name: &str) -> Result<Arc<Entry>, ApiError> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        crate::answer::blocking(move || {
            shared.stores.find(&name).map(Arc::new).map_err(|error| not_found(&name, &error))
        })
        .await
    }

    /// Unloads a model as soon as nobody uses it; false if it is not loaded.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn unload(&self, name: &str) -> Result<bool, ApiError> {
        let entry = self.find(name).await?;
        let loaded: Vec<Arc<Loaded>> = {
            let state = self.shared.state();
            state.loaded.iter().filter(|l| l.entry.name == entry.name).cloned().collect()
        };
        let was_loaded = !loaded.is_empty();
        // Nothing may hold on to a model that is to be freed.
        for loaded in loaded {
            loaded.keep(KeepAlive::For(Duration::ZERO));
        }
        self.shared.expire().await;
        Ok(was_loaded)
    }

    /// What is in memory, by name.
    pub fn loaded(&self) -> Vec<LoadedModel> {
        let state = self.shared.state();
        let mut all: Vec<LoadedModel> = state.loaded.iter().map(|l| l.describe()).collect();
        all.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
        all
    }

    /// Unloads models whose time has come, until the last holder of these models is gone. To be
    /// spawned once.
    pub fn reaper(&self) -> impl Future<Output = ()> + Send + 'static {
        reap(Arc::downgrade(&self.shared))
    }

    /// Unloads everything, attention state written; nothing is loaded from now on.
    pub async fn close(&self) {
        let all = {
            let mut state = self.shared.state();
            state.is_closed = true;
            std::mem::take(&mut state.loaded)
        };
        self.shared.changed.notify_waiters();
        for loaded in all {
            release(loaded).await;
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unloads what is idle and whose time has come. Returns when the next one is due.
    async fn expire(&self) -> Option<Instant> {
        loop {
            let due = {
                let mut state = self.state();
                let now = Instant::now();
                let due = state.loaded.iter().position(|l| l.is_idle() && l.is_due(now));
                match due {
                    Some(due) => state.loaded.remove(due),
                    None => {
                        let idle = state.loaded.iter().filter(|l| l.is_idle());
                        return idle.filter_map(|l| l.due()).min();
                    }
                }
            };
            tracing::info!(model = %due.entry.name, "unloaded: nobody asked for it any more");
            release(due).await;
            self.changed.notify_waiters();
        }
    }
}

impl State {
    fn find(&self, entry: &Entry, want: &Want) -> Option<Arc<Loaded>> {
        let is_same = |loaded: &&Arc<Loaded>| {
            !loaded.is_broken()
                && loaded.entry.digest == entry.digest
                && loaded.entry.name == entry.name
        };
        let n_ctx = want.num_ctx.map_or(0, |n| n as usize);
        let is_enough = |loaded: &&Arc<Loaded>| {
            let has = loaded.runner.facts().n_ctx;
            has >= n_ctx || loaded.asked.num_ctx.is_some_and(|asked| asked as usize >= n_ctx)
        };
        self.loaded.iter().filter(is_same).find(is_enough).cloned()
    }

    /// Bytes that the loaded models take of memory, and of a GPU's: of each, as if all models were on
    /// the same ones.
    fn used(&self) -> (u64, u64) {
        let facts = || self.loaded.iter().map(|loaded| loaded.runner.facts());
        (facts().map(|f| f.memory_bytes).sum(), facts().map(|f| f.tiers.vram_bytes_of_each()).sum())
    }

    /// What was said to a model, also before it was loaded this time.
    fn memory(&mut self, entry: &Entry) -> Arc<Memory> {
        if self.memories.len() >= MEMORIES_MAX && !self.memories.contains_key(&entry.digest) {
            let in_use = |digest: &String| self.loaded.iter().any(|l| l.entry.digest == *digest);
            let unused = self.memories.keys().find(|digest| !in_use(digest)).cloned();
            if let Some(unused) = unused {
                self.memories.remove(&unused);
            }
        }
        Arc::clone(self.memories.entry(entry.digest.clone()).or_default())
    }
}

/// Writes what is left to write of a model's attention state, and frees it.
async fn release(loaded: Arc<Loaded>) {
    let freed = tokio::task::spawn_blocking(move || {
        loaded.runner.settle(SETTLE_AT_MOST);
        loaded.free();
    });
    if freed.await.is_err() {
        tracing::error!("internal error: unloading a model panicked");
    }
}

async fn reap(models: Weak<Inner>) {
    /// There is a look this often, whatever is said.
    const AT_LEAST_EVERY: Duration = Duration::from_secs(10);
    loop {
        let Some(shared) = models.upgrade() else { return };
        let due = shared.expire().await;
        let sleep = due.map_or(AT_LEAST_EVERY, |due| {
            due.saturating_duration_since(Instant::now()).min(AT_LEAST_EVERY)
        });
        let changed = shared.changed.notified();
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// What Ollama's clients look for when there is no such model.
fn not_found(name: &str, error: &ResolveError) -> ApiError {
    match error {
        ResolveError::Unusable { .. } => ApiError::bad(error.to_string()),
        _ => ApiError::new(ErrorKind::NotFound, format!("model '{name}' not found")),
    }
}

/// A model that can't be loaded, as a client is told.
pub(crate) fn load_failed(error: &ModelError) -> ApiError {
    let kind = match error {
        ModelError::Load(
            LoadError::Plan(_)
            | LoadError::BudgetTooSmall { .. }
            | LoadError::GpuBudgetTooSmall { .. },
        ) => ErrorKind::Unavailable,
        ModelError::Resolve(_) => ErrorKind::NotFound,
        ModelError::Load(LoadError::Open(_) | LoadError::Llama(_)) => ErrorKind::BadRequest,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}
