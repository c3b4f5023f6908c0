//! Making room for a model, and loading it.

use std::sync::Arc;

use hypura_hub::Entry;

use super::lease::{Lease, Loaded};
use super::{Budget, Inner, Needs, Settings, Want, load_failed, release};
use crate::answer::{KeepAlive, blocking};
use crate::error::{ApiError, ErrorKind};

/// The turn to load: one has it at a time. Gives it back when it is dropped.
pub(super) struct Turn {
    models: Arc<Inner>,
}

impl Turn {
    /// For whoever has just marked that it is loading.
    pub(super) fn new(models: &Arc<Inner>) -> Turn {
        Turn { models: Arc::clone(models) }
    }

    /// Makes room, and loads.
    pub(super) async fn load(
        self,
        entry: Arc<Entry>,
        want: Want,
        settings: Settings,
        keep_alive: KeepAlive,
    ) -> Result<Lease, ApiError> {
        self.models.state().is_making_room = true;
        self.drop_older(&entry).await?;
        let needs = {
            let (models, entry, want) = (Arc::clone(&self.models), entry.clone(), want.clone());
            blocking(move || models.loader.needs(&entry, &want).map_err(|e| load_failed(&e)))
                .await?
        };
        let budget = self.make_room(&needs).await?;
        self.models.state().is_making_room = false;
        self.models.changed.notify_waiters();
        let (models, of, asked) = (Arc::clone(&self.models), entry.clone(), want.clone());
        let begin = std::time::Instant::now();
        let runner = blocking(move || {
            let progress = &mut |_| !models.state().is_closed;
            models.loader.load(&of, &asked, budget, progress).map_err(|e| load_failed(&e))
        })
        .await?;
        let facts = runner.facts();
        let vram_bytes = Some(facts.tiers.vram_bytes()).filter(|&bytes| bytes > 0);
        tracing::info!(
            model = %entry.name, mode = %facts.mode, memory_bytes = facts.memory_bytes,
            vram_bytes, n_ctx = facts.n_ctx, elapsed = ?begin.elapsed(), "loaded"
        );
        let mut state = self.models.state();
        if state.is_closed {
            return Err(ApiError::new(ErrorKind::Unavailable, "the server is stopping"));
        }
        let memory = state.memory(&entry);
        let loaded = Arc::new(Loaded::new(entry, runner, settings, memory, want, keep_alive));
        state.loaded.push(Arc::clone(&loaded));
        Ok(Lease::new(&self.models, &loaded, keep_alive, true))
    }

    /// The same model with less context, or as it was before its file was changed, goes first.
    async fn drop_older(&self, entry: &Entry) -> Result<(), ApiError> {
        self.drop_idle(|loaded| loaded.entry.name == entry.name, true).await?;
        Ok(())
    }

    /// Unloads until the model fits beside the others, into memory and into that of the GPU, or is
    /// alone. Returns what it may take.
    async fn make_room(&self, needs: &Needs) -> Result<Budget, ApiError> {
        loop {
            let (used, vram_used) = self.models.state().used();
            let all = self.models.budget;
            let left = Budget {
                memory_bytes: all.memory_bytes.map(|all| all.saturating_sub(used)),
                gpu_memory_bytes: all.gpu_memory_bytes.map(|all| all.saturating_sub(vram_used)),
            };
            let fits = needs.resident_bytes <= left.memory_bytes.unwrap_or(needs.free_bytes);
            let vram = needs.vram_resident_bytes;
            let vram_fits = match left.gpu_memory_bytes {
                Some(of_each) => vram.div_ceil(u64::from(needs.gpus.max(1))) <= of_each,
                None => vram <= needs.vram_free_bytes,
            };
            let is_alone = used == 0 && vram_used == 0;
            if is_alone || fits && vram_fits {
                return Ok(left);
            }
            self.drop_idle(|_| true, false).await?;
        }
    }

    /// Unloads the model that was used longest ago of those that `which` names, or all of them; waits
    /// until it is idle.
    async fn drop_idle(&self, which: impl Fn(&Loaded) -> bool, all: bool) -> Result<(), ApiError> {
        loop {
            let changed = self.models.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (victim, is_left) = {
                let mut state = self.models.state();
                if state.is_closed {
                    return Err(ApiError::new(ErrorKind::Unavailable, "the server is stopping"));
                }
                let named = || state.loaded.iter().enumerate().filter(|(_, l)| which(l));
                let is_left = named().next().is_some();
                let idle = named().filter(|(_, l)| l.is_idle());
                let oldest = idle.min_by_key(|(_, l)| l.used_at()).map(|(i, _)| i);
                (oldest.map(|i| state.loaded.remove(i)), is_left)
            };
            match victim {
                Some(victim) => {
                    tracing::info!(model = %victim.entry.name, "unloaded: another one needs its memory");
                    release(victim).await;
                    if !all {
                        return Ok(());
                    }
                }
                None if !is_left => return Ok(()),
                None => changed.await,
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.models.state();
        (state.is_loading, state.is_making_room) = (false, false);
        drop(state);
        self.models.changed.notify_waiters();
    }
}
