//! Progress: on anything that takes longer than a second, and only on a terminal.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that ends sooner than this shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the time that has passed is drawn anew.
const TICK: Duration = Duration::from_millis(200);

/// A line that appears when work turns out to take long: the time that has passed and, once it is
/// known how much is done, a bar.
pub(crate) struct Bar {
    bar: ProgressBar,
    is_counting: bool,
    /// Shows the line in time; ends when the sender goes.
    timer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Bar {
    pub(crate) fn new(message: &'static str) -> Bar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(style("{msg}, {elapsed}"));
        bar.set_message(message);
        let timer = std::io::stderr().is_terminal().then(|| {
            let (stop, stopped) = channel();
            let bar = bar.clone();
            let thread = std::thread::Builder::new().name("hypura-progress".into());
            let thread = thread.spawn(move || {
                if stopped.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.enable_steady_tick(TICK);
                }
            });
            // Without a thread there is no bar, and no harm.
            thread.ok().map(|thread| (stop, thread))
        });
        Bar { bar, is_counting: false, timer: timer.flatten() }
    }

    /// `done` of `total` units are done.
    pub(crate) fn update(&mut self, done: u64, total: u64) {
        if self.timer.is_none() {
            return;
        }
        if !self.is_counting {
            self.is_counting = true;
            self.bar.set_length(total);
            self.bar.set_style(style("{msg} [{bar:30}] {percent}%, {elapsed}, {eta} left"));
        }
        self.bar.set_position(done);
    }

    /// Takes the line away.
    pub(crate) fn finish(&mut self) {
        if let Some((stop, thread)) = self.timer.take() {
            drop(stop);
            // It only draws: what it may have failed at is not worth a word.
            let _ = thread.join();
            self.bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
