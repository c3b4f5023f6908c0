//! What the engine's thread and those who ask it know of each other without waiting.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::status::EngineStatus;

/// Of the newest measurement, so much counts.
const NEW_SHARE: f64 = 0.25;
/// Nobody is asked to come back later than this.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Requests that are under way, and what is told of them.
pub(crate) struct Board {
    requests: Mutex<Requests>,
    /// Requests that were asked and have not ended.
    open: AtomicUsize,
    status: Mutex<EngineStatus>,
    /// Stops the present computation.
    abort: Arc<AtomicBool>,
}

#[derive(Default)]
struct Requests {
    next_id: u64,
    states: HashMap<u64, Request>,
    /// Whether the computation was stopped because nobody waits for it.
    cancels: bool,
    /// How long answers took lately, from their first computation.
    answer_s: f64,
    began: HashMap<u64, Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    Waiting,
    Begun,
    Cancelled { begun: bool },
}

impl Board {
    pub(crate) fn new(abort: Arc<AtomicBool>) -> Board {
        Board {
            requests: Mutex::default(),
            open: AtomicUsize::new(0),
            status: Mutex::default(),
            abort,
        }
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that were asked and have not ended.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// A request is asked; `None` if there are `most` already.
    pub(crate) fn enter(&self, most: usize) -> Option<u64> {
        let mut requests = self.requests();
        if requests.states.len() >= most {
            return None;
        }
        requests.next_id += 1;
        let id = requests.next_id;
        requests.states.insert(id, Request::Waiting);
        self.open.store(requests.states.len(), Ordering::Relaxed);
        Some(id)
    }

    /// It is being computed.
    pub(crate) fn began(&self, id: u64) {
        let mut requests = self.requests();
        requests.began.entry(id).or_insert_with(Instant::now);
        if let Some(state) = requests.states.get_mut(&id) {
            *state = match *state {
                Request::Cancelled { .. } => Request::Cancelled { begun: true },
                _ => Request::Begun,
            };
        }
    }

    /// When one of those that wait should have ended, if so many are computed together.
    pub(crate) fn expected_wait(&self, parallel: usize) -> Duration {
        let requests = self.requests();
        let rounds = requests.states.len() as f64 / parallel.max(1) as f64;
        Duration::try_from_secs_f64(rounds * requests.answer_s)
            .unwrap_or_default()
            .clamp(Duration::from_secs(1), WAIT_MAX)
    }

    /// It waits again.
    pub(crate) fn waits(&self, id: u64) {
        if let Some(state) = self.requests().states.get_mut(&id)
            && *state == Request::Begun
        {
            *state = Request::Waiting;
        }
    }

    /// It is answered.
    pub(crate) fn ended(&self, id: u64) {
        let mut requests = self.requests();
        requests.states.remove(&id);
        if let Some(began) = requests.began.remove(&id) {
            let new = began.elapsed().as_secs_f64();
            requests.answer_s += NEW_SHARE * (new - requests.answer_s);
        }
        self.open.store(requests.states.len(), Ordering::Relaxed);
    }

    /// Nobody waits for it any more. If nobody waits for anything that is computed now, the
    /// computation is stopped: a long prompt has long steps.
    pub(crate) fn cancel(&self, id: u64) {
        let mut requests = self.requests();
        let Some(state) = requests.states.get_mut(&id) else { return };
        *state = Request::Cancelled { begun: *state == Request::Begun };
        let is_vain = requests.states.values().any(|s| *s == Request::Cancelled { begun: true })
            && requests.states.values().all(|s| *s != Request::Begun);
        if is_vain && !self.abort.load(Ordering::Relaxed) {
            requests.cancels = true;
            self.abort.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_cancelled(&self, id: u64) -> bool {
        matches!(self.requests().states.get(&id), Some(Request::Cancelled { .. }))
    }

    /// Whether the computation was stopped by [`Board::cancel`]; it may go on then.
    pub(crate) fn take_cancel(&self) -> bool {
        let mut requests = self.requests();
        let cancels = std::mem::take(&mut requests.cancels);
        if cancels {
            self.abort.store(false, Ordering::Relaxed);
        }
        cancels
    }

    pub(crate) fn status(&self) -> EngineStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut EngineStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> (Board, Arc<AtomicBool>) {
        let abort = Arc::new(AtomicBool::new(false));
        (Board::new(Arc::clone(&abort)), abort)
    }

    #[test]
    fn a_computation_stops_when_nobody_waits_for_it() {
        let (board, abort) = board();
        let [a, b, waiting] = [(); 3].map(|()| board.enter(8).unwrap());
        board.began(a);
        board.began(b);
        board.cancel(a);
        assert!(!abort.load(Ordering::Relaxed), "b is wanted");
        board.cancel(waiting);
        board.cancel(b);
        assert!(abort.load(Ordering::Relaxed));
        assert!(board.take_cancel() && !board.take_cancel());
        assert!(!abort.load(Ordering::Relaxed), "it may go on");
    }

    #[test]
    fn an_interruption_is_no_cancellation() {
        let (board, abort) = board();
        abort.store(true, Ordering::Relaxed);
        let a = board.enter(8).unwrap();
        board.began(a);
        board.cancel(a);
        assert!(!board.take_cancel());
        assert!(abort.load(Ordering::Relaxed), "whoever set it takes it back");
    }

    #[test]
    fn places_are_bounded() {
        let (board, _) = board();
        let first = board.enter(1).unwrap();
        assert_eq!(board.enter(1), None);
        assert_eq!(board.open(), 1);
        board.ended(first);
        assert!(board.enter(1).is_some());
    }
}
