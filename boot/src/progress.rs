//! Steps that take a while: a spinner or bar on a terminal, one line each elsewhere.

use std::time::{Duration, Instant};

use console::style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::words::harmless;

/// A step under way. Dropped without [`Step::done`] it vanishes from the terminal.
pub struct Step {
    bar: ProgressBar,
    what: String,
    began: Instant,
    announced: bool,
}

/// A step shorter than this says nothing where there is no terminal, unless it did something.
const QUICK: Duration = Duration::from_millis(1500);

impl Step {
    /// Begins a step; `what` is a phrase like "building the hypervisor".
    pub fn new(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(spinner());
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, what: what.to_owned(), began: Instant::now(), announced: false }
    }

    /// Says what the step is at.
    pub fn at(&mut self, message: &str) {
        self.bar.set_message(harmless(message));
        if self.bar.is_hidden() && !self.announced && self.began.elapsed() > QUICK {
            eprintln!("   … {}", self.what);
            self.announced = true;
        }
    }

    /// Turns the spinner into a bar: `part` of `whole`.
    pub fn part(&mut self, part: u64, whole: u64) {
        if self.bar.length() != Some(whole) {
            self.bar.set_length(whole);
            self.bar.set_style(bar());
        }
        self.bar.set_position(part);
    }

    /// The step is complete; `result` says what came of it.
    pub fn done(self, result: &str) {
        self.bar.finish_and_clear();
        let seconds = self.began.elapsed().as_secs_f32();
        eprintln!(
            "{} {}: {result} {}",
            style("✔").green().for_stderr(),
            self.what,
            style(format!("({seconds:.1} s)")).dim().for_stderr()
        );
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:.cyan} {prefix} {wide_msg:.dim}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bar() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:.cyan} {prefix} [{bar:30.cyan}] {percent:>3} % {wide_msg:.dim}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
