//! Rounds, marks, and their report.

use core::arch::asm;

use guests::bare::take_once::TakeOnce;
use guests::bare::{apic, idle};
use guests::samples::Samples;
use guests::{command_line, println};

/// Rounds that are timed, unless the command line says `rounds=`.
const ROUNDS: u32 = 256;
/// Most rounds.
const MOST_ROUNDS: usize = 4096;
/// Ticks in which the hypervisor's console takes what a scenario told, so that no round waits for it.
const CONSOLE_TICKS: u64 = 20_000_000;

static SAMPLES: TakeOnce<Samples<MOST_ROUNDS>> = TakeOnce::new(Samples::new());

/// What is measured.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Which way of doing it.
    pub variant: &'static str,
    /// Slots that are live meanwhile.
    pub slots: usize,
    /// Processors that work on it.
    pub vcpus: usize,
    /// Operations of a round.
    pub ops: usize,
    /// Rounds between the marks. Where there are several, their preparation must not exit.
    pub marked: usize,
}

impl Scenario {
    /// With one round between the marks.
    pub const fn new(name: &'static str, variant: &'static str, slots: usize, ops: usize) -> Self {
        Self { name, variant, slots, vcpus: 1, ops, marked: 1 }
    }
}

/// Measures scenarios.
pub struct Bench {
    samples: &'static mut Samples<MOST_ROUNDS>,
    rounds: u32,
    only: &'static str,
    /// What `timed` counts of nothing.
    overhead: u64,
}

impl Bench {
    /// As the command line says.
    pub fn new(line: &'static str) -> Self {
        let samples = SAMPLES.take();
        (0..ROUNDS).for_each(|_| samples.push(timed(|| {})));
        let overhead = samples.spread().median;
        let rounds = command_line::number(line, "rounds").unwrap_or(ROUNDS).clamp(1, MOST_ROUNDS as u32);
        Self { samples, rounds, only: command_line::option(line, "only").unwrap_or(""), overhead }
    }

    /// Times rounds, each after `prepare`, and counts the exits of some more. `round` returns the ticks that count.
    pub fn measure<S>(
        &mut self,
        scenario: Scenario,
        state: &mut S,
        prepare: impl Fn(&mut S),
        round: impl Fn(&mut S) -> u64,
    ) {
        let Scenario { name, variant, slots, vcpus, ops, marked } = scenario;
        // The floor is what everything is compared with.
        if !name.contains(self.only) && name != "null-exit" {
            return;
        }
        idle::wait_until(CONSOLE_TICKS, || false);
        self.samples.clear();
        for _ in 0..self.rounds {
            prepare(state);
            self.samples.push(round(state).saturating_sub(self.overhead));
        }
        let spread = self.samples.spread();
        prepare(state);
        println!("@mark begin");
        round(state);
        for _ in 1..marked {
            prepare(state);
            round(state);
        }
        println!(
            "@mark scenario={name} variant={variant} slots={slots} vcpus={vcpus} ops={ops} rounds={} marked={marked} min={} median={} p99={}",
            self.rounds, spread.min, spread.median, spread.p99
        );
    }
}

/// The TSC, when everything before is done.
pub fn now() -> u64 {
    // SAFETY: changes nothing.
    unsafe { asm!("lfence", options(nostack, preserves_flags)) };
    apic::tsc()
}

/// How long `what` takes.
pub fn timed(what: impl FnOnce()) -> u64 {
    let before = now();
    what();
    now() - before
}
