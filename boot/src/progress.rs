//! Steps that take a while: a spinner or bar on a terminal, one line each elsewhere.

use std::ops::Range;
use std::time::{Duration, Instant};

use console::style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::words::harmless;

/// A step under way. Dropped without [`Step::done`] it vanishes from the terminal.
pub struct Step {
    bar: ProgressBar,
    /// The part of the bar that the phase under way fills, in percent.
    phase: Range<u64>,
    what: String,
    began: Instant,
    announced: bool,
}

/// A bar's length.
const WHOLE: u64 = 100;

/// A step shorter than this says nothing where there is no terminal, unless it did something.
const QUICK: Duration = Duration::from_millis(1500);

impl Step {
    /// Begins a step; `what` is a phrase like "building the hypervisor".
    pub fn new(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(spinner());
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, phase: 0..WHOLE, what: what.to_owned(), began: Instant::now(), announced: false }
    }

    /// Says what the step is at.
    pub fn at(&mut self, message: &str) {
        self.bar.set_message(harmless(message));
        if self.bar.is_hidden() && !self.announced && self.began.elapsed() > QUICK {
            eprintln!("   … {}", self.what);
            self.announced = true;
        }
    }

    /// What follows fills this part of the bar, in percent: so a bar of several phases goes from left to right once.
    pub fn phase(&mut self, part: Range<u64>) {
        self.phase = part;
    }

    /// Turns the spinner into a bar: `part` of `whole` of the phase under way.
    pub fn part(&mut self, part: u64, whole: u64) {
        if self.bar.length() != Some(WHOLE) {
            self.bar.set_length(WHOLE);
            self.bar.set_style(bar());
        }
        self.bar.set_position(self.bar.position().max(place(&self.phase, part, whole)));
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

/// Where a bar stands when `part` of `whole` of a phase is done.
fn place(phase: &Range<u64>, part: u64, whole: u64) -> u64 {
    let width = phase.end.saturating_sub(phase.start);
    phase.start + (width * part.min(whole)).checked_div(whole).unwrap_or(0)
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:.cyan} {prefix} {wide_msg:.dim}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bar() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:.cyan} {prefix} [{bar:30.cyan}] {percent:>3} % {wide_msg:.dim}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_of_several_phases_never_goes_back() {
        let mut step = Step::new("testing");
        let mut seen = Vec::new();
        for (phase, parts) in [(0..10, [0, 50, 100]), (10..70, [0, 31, 100]), (70..100, [1, 2, 175])] {
            step.phase(phase);
            for part in parts {
                step.part(part, *parts.last().unwrap());
                seen.push(step.bar.position());
            }
        }
        assert!(seen.is_sorted(), "{seen:?}");
        assert_eq!((seen[2], seen[5], seen[8]), (10, 70, 100));
        assert_eq!((place(&(10..20), 5, 0), place(&(10..20), 9, 3)), (10, 20));
    }
}
