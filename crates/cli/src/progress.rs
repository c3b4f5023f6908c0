//! Progress bars: on anything that takes longer than a second, and only on a terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that ends sooner than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bar that appears when the work turns out to take long.
pub(crate) struct Bar {
    message: &'static str,
    begin: Instant,
    bar: Option<ProgressBar>,
    is_terminal: bool,
}

impl Bar {
    pub(crate) fn new(message: &'static str) -> Bar {
        let is_terminal = std::io::stderr().is_terminal();
        Bar { message, begin: Instant::now(), bar: None, is_terminal }
    }

    /// `done` of `total` units are done.
    pub(crate) fn update(&mut self, done: u64, total: u64) {
        if !self.is_terminal || self.begin.elapsed() < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {percent}%  {eta} left");
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(self.message);
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}
