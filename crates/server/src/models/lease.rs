//! A model in memory, and those who hold it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use hypura_hub::Entry;

use super::{Inner, LoadedModel, Memory, Runner, Settings, Want};
use crate::answer::KeepAlive;

/// How long somebody who only looks may hold on to a model that is freed.
const LOOK_AT_MOST: Duration = Duration::from_secs(5);

/// A model in memory.
pub(crate) struct Loaded {
    pub(super) entry: Arc<Entry>,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) settings: Settings,
    pub(super) memory: Arc<Memory>,
    /// How it was asked for.
    pub(super) asked: Want,
    active: AtomicUsize,
    /// Whether its engine has stopped: it is of no use any more.
    is_broken: AtomicBool,
    times: Mutex<Times>,
}

struct Times {
    used_at: Instant,
    keep_alive: KeepAlive,
}

impl Loaded {
    pub(super) fn new(
        entry: Arc<Entry>,
        runner: Arc<dyn Runner>,
        settings: Settings,
        memory: Arc<Memory>,
        asked: Want,
        keep_alive: KeepAlive,
    ) -> Loaded {
        let times = Mutex::new(Times { used_at: Instant::now(), keep_alive });
        let (active, is_broken) = (AtomicUsize::new(0), AtomicBool::new(false));
        Loaded { entry, runner, settings, memory, asked, active, is_broken, times }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.active.load(Ordering::Acquire) == 0
    }

    /// How long it stays from now on.
    pub(super) fn keep(&self, keep_alive: KeepAlive) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        *times = Times { used_at: Instant::now(), keep_alive };
    }

    pub(super) fn used_at(&self) -> Instant {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).used_at
    }

    /// When it goes if nobody asks.
    pub(super) fn due(&self) -> Option<Instant> {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        match times.keep_alive {
            KeepAlive::For(duration) => times.used_at.checked_add(duration),
            KeepAlive::Forever => None,
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.is_broken() || self.due().is_some_and(|due| due <= now)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    pub(super) fn describe(&self) -> LoadedModel {
        let facts = self.runner.facts();
        let left = self.due().map(|due| due.saturating_duration_since(Instant::now()));
        LoadedModel {
            entry: Arc::clone(&self.entry),
            runner: Arc::clone(&self.runner),
            expires_at: left.and_then(|left| {
                Utc::now().checked_add_signed(chrono::TimeDelta::from_std(left).ok()?)
            }),
            context_length: facts.n_ctx,
            memory_bytes: facts.memory_bytes,
            vram_bytes: facts.tiers.vram_bytes(),
            active: self.active.load(Ordering::Relaxed),
        }
    }

    /// Frees it, and returns when its memory is free. Blocks.
    pub(super) fn free(self: Arc<Loaded>) {
        let runner = Arc::downgrade(&self.runner);
        drop(self);
        let begin = Instant::now();
        while runner.strong_count() > 0 && begin.elapsed() < LOOK_AT_MOST {
            std::thread::sleep(Duration::from_millis(2));
        }
        hypura_engine::llama::process::trim();
    }
}

/// A model that stays in memory while this lives.
pub struct Lease {
    loaded: Arc<Loaded>,
    models: Arc<Inner>,
    keep_alive: KeepAlive,
    was_loaded: bool,
}

impl Lease {
    /// Must be made under the lock of the models' state, so that it is not unloaded meanwhile.
    pub(super) fn new(
        models: &Arc<Inner>,
        loaded: &Arc<Loaded>,
        keep_alive: KeepAlive,
        was_loaded: bool,
    ) -> Lease {
        loaded.active.fetch_add(1, Ordering::AcqRel);
        Lease { loaded: Arc::clone(loaded), models: Arc::clone(models), keep_alive, was_loaded }
    }

    /// The model.
    pub fn runner(&self) -> &Arc<dyn Runner> {
        &self.loaded.runner
    }

    /// Where it lies.
    pub fn entry(&self) -> &Entry {
        &self.loaded.entry
    }

    /// What its manifest says of how it is asked.
    pub fn settings(&self) -> &Settings {
        &self.loaded.settings
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.loaded.memory
    }

    /// Its engine has stopped: it is loaded anew for the next request.
    pub(crate) fn discard(&self) {
        tracing::error!(model = %self.loaded.entry.name, "internal error: the engine has stopped");
        self.loaded.is_broken.store(true, Ordering::Release);
    }

    /// Whether it was loaded because of this request.
    pub fn was_loaded_for_this(&self) -> bool {
        self.was_loaded
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.loaded.keep(self.keep_alive);
        self.loaded.active.fetch_sub(1, Ordering::AcqRel);
        self.models.changed.notify_waiters();
    }
}
