//! Ctrl-C.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

/// Presses after which the process ends at once, whatever it is doing.
const PRESSES_MAX: u32 = 3;

/// Ctrl-C sets a flag that work in progress looks at.
pub(crate) struct Interrupt {
    pressed: Arc<AtomicBool>,
    presses: Arc<AtomicU32>,
    idle: Arc<AtomicBool>,
    also: Arc<Mutex<Option<Arc<AtomicBool>>>>,
}

impl Interrupt {
    /// Takes over Ctrl-C. To be called once.
    pub(crate) fn install() -> anyhow::Result<Interrupt> {
        let interrupt = Interrupt {
            pressed: Arc::default(),
            presses: Arc::default(),
            idle: Arc::default(),
            also: Arc::default(),
        };
        let (pressed, presses) = (Arc::clone(&interrupt.pressed), Arc::clone(&interrupt.presses));
        let (idle, also) = (Arc::clone(&interrupt.idle), Arc::clone(&interrupt.also));
        ctrlc::set_handler(move || {
            pressed.store(true, Ordering::SeqCst);
            if let Some(flag) = &*also.lock().unwrap_or_else(PoisonError::into_inner) {
                flag.store(true, Ordering::SeqCst);
            }
            let presses = presses.fetch_add(1, Ordering::SeqCst) + 1;
            if presses >= PRESSES_MAX || idle.load(Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .context("can't take over Ctrl-C")?;
        Ok(interrupt)
    }

    /// Whether it was pressed since the last [`Interrupt::reset`].
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::SeqCst)
    }

    /// Sets this flag too when it is pressed, or was since the last [`Interrupt::reset`].
    pub(crate) fn also_set(&self, flag: Arc<AtomicBool>) {
        let mut also = self.also.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_pressed() {
            flag.store(true, Ordering::SeqCst);
        }
        *also = Some(flag);
    }

    /// Whether there is nothing to stop but the process itself, as while it waits for input from a
    /// pipe.
    pub(crate) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::SeqCst);
    }

    /// Forgets that it was pressed.
    pub(crate) fn reset(&self) {
        self.pressed.store(false, Ordering::SeqCst);
        self.presses.store(0, Ordering::SeqCst);
        if let Some(flag) = &*self.also.lock().unwrap_or_else(PoisonError::into_inner) {
            flag.store(false, Ordering::SeqCst);
        }
    }
}
