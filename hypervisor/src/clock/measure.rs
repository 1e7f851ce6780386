//! Measures the frequency of the TSC against a counter whose frequency is known.
//!
//! In a virtual machine each read of the reference is an exit of several thousand cycles, so the reference is read a few times only; in
//! between the TSC says how long to wait. Each read lies between two reads of the TSC. They give the read's duration, and so a bound of the
//! result's error: SMM or a hypervisor below may interrupt the processor in the middle.
#![forbid(unsafe_code)]

use core::hint::spin_loop;

use super::Clock;

/// What the TSC of a processor may have: 10 MHz (emulators count instructions) to 20 GHz.
pub const PLAUSIBLE: core::ops::RangeInclusive<u64> = 10_000_000..=20_000_000_000;

/// The part of a second that the reference has to move on: 2 ms.
const WINDOW: u64 = 500;
/// Ticks of the TSC before the second look: at 20 GHz, 8 ticks of the PM timer.
const FIRST_STEP: u64 = 50_000;
/// Ticks of the TSC between two looks at most.
const LONGEST_STEP: u64 = 10_000_000;
/// Looks at the reference in all. Three or four do where nothing is odd.
const LOOKS: u32 = 64;
/// Looks at a reference that has not moved at all.
const PATIENCE: u32 = 8;
/// The two looks together may take one part in this number of the time that was measured.
const SHARPNESS: u64 = 64;

/// A frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The measured frequency, in Hz.
    pub hertz: u64,
    /// The largest error of `hertz`, in Hz.
    pub error: u64,
}

/// Why a frequency could not be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The reference does not move.
    StandsStill,
    /// Something takes the processor away at almost every look.
    Unsteady,
    /// The result is not [`PLAUSIBLE`].
    Implausible(u64),
}

/// A moment by both counters.
#[derive(Clone, Copy)]
struct Sample {
    before: u64,
    after: u64,
}

impl Sample {
    fn take(tsc: &dyn Fn() -> u64, reference: &dyn Clock, last: &mut u64) -> (Self, u64) {
        let before = tsc();
        let ticks = reference.advance(last);
        (Self { before, after: tsc() }, ticks)
    }

    const fn width(self) -> u64 {
        self.after.saturating_sub(self.before)
    }

    const fn middle(self) -> u64 {
        self.before.saturating_add(self.width() / 2)
    }
}

/// The frequency of `tsc` against `reference`. It takes 2 ms where all goes well, and a bounded number of reads of both in any case.
pub fn measure(tsc: &dyn Fn() -> u64, reference: &dyn Clock) -> Result<Rate, Unusable> {
    let window = (reference.hertz() / WINDOW).max(1);
    let mut last = 0;
    let (mut first, _) = Sample::take(tsc, reference, &mut last);
    let (mut elapsed, mut step) = (0u64, FIRST_STEP);
    for looks in 1..=LOOKS {
        spin(tsc, step);
        let (sample, ticks) = Sample::take(tsc, reference, &mut last);
        elapsed = elapsed.saturating_add(ticks);
        let passed = sample.middle().saturating_sub(first.middle());
        let width = first.width().saturating_add(sample.width());
        step = if elapsed == 0 && looks == PATIENCE {
            return Err(Unusable::StandsStill);
        } else if elapsed < window {
            next_step(passed, elapsed, window)
        } else if width.saturating_mul(SHARPNESS) <= passed || passed == 0 {
            return rate(passed, width, elapsed, reference.hertz());
        } else if sample.width() < first.width() / 2 {
            // The first look was disturbed, this one was not: from here on once more.
            (first, elapsed) = (sample, 0);
            FIRST_STEP
        } else {
            passed
        }
        .clamp(FIRST_STEP / 16, LONGEST_STEP);
    }
    if elapsed == 0 { Err(Unusable::StandsStill) } else { Err(Unusable::Unsteady) }
}

/// How many ticks of the TSC are still to wait for, if `elapsed` of the reference have taken `passed`: a little more than those that are
/// missing, or as many again while nothing is known.
fn next_step(passed: u64, elapsed: u64, window: u64) -> u64 {
    if elapsed == 0 || passed == 0 {
        return passed.max(FIRST_STEP);
    }
    let missing = u128::from(passed) * u128::from(window - elapsed) / u128::from(elapsed);
    u64::try_from(missing + missing / 32).unwrap_or(u64::MAX)
}

/// `passed` ticks of the TSC, of which the looks took `width`, in `elapsed` ticks at `hertz`.
fn rate(passed: u64, width: u64, elapsed: u64, hertz: u64) -> Result<Rate, Unusable> {
    let scaled = |ticks: u64| u64::try_from(u128::from(ticks) * u128::from(hertz) / u128::from(elapsed));
    let measured = scaled(passed).unwrap_or(u64::MAX);
    if !PLAUSIBLE.contains(&measured) {
        return Err(Unusable::Implausible(measured));
    }
    // Each look was half its width away from the middle at most, and both ticks may have been under way.
    let error = scaled(width / 2).unwrap_or(u64::MAX).saturating_add(measured / elapsed);
    Ok(Rate { hertz: measured, error })
}

/// Waits for so many ticks of the TSC. With one that is slower than this loop the wait is shorter, and with one that stands still it ends.
fn spin(tsc: &dyn Fn() -> u64, ticks: u64) {
    let begin = tsc();
    for _ in 0..ticks {
        if tsc().wrapping_sub(begin) >= ticks {
            break;
        }
        spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::{super::elapsed, *};

    const PM_TIMER: u64 = 3_579_545;
    const NANOSECONDS: u64 = 1_000_000_000;

    /// A machine with a TSC and a reference, and the time it is in it.
    #[derive(Debug)]
    struct Machine {
        tsc_hertz: u64,
        reference_hertz: u64,
        /// Bits of the reference.
        bits: u32,
        /// What the reference shows at the beginning.
        begin: u64,
        /// Nanoseconds that a look at the reference takes.
        cost: u64,
        /// The look with this number takes a tenth of a second; it is counted from 1.
        disturbed: u64,
        now: AtomicU64,
        looks: AtomicU64,
    }

    const fn usual() -> Machine {
        Machine {
            tsc_hertz: 2_100_000_000,
            reference_hertz: PM_TIMER,
            bits: 24,
            begin: 0,
            cost: 700,
            disturbed: 0,
            now: AtomicU64::new(0),
            looks: AtomicU64::new(0),
        }
    }

    impl Machine {
        fn counted(&self, hertz: u64) -> u64 {
            (u128::from(self.now.load(Ordering::Relaxed)) * u128::from(hertz) / u128::from(NANOSECONDS)) as u64
        }

        /// A read of the TSC takes 10 ns.
        fn tsc(&self) -> u64 {
            self.now.fetch_add(10, Ordering::Relaxed);
            self.counted(self.tsc_hertz)
        }

        fn measure(&self) -> Result<Rate, Unusable> {
            measure(&|| self.tsc(), self)
        }
    }

    impl Clock for Machine {
        fn advance(&self, last: &mut u64) -> u64 {
            let sample = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
            let cost = if sample == self.disturbed { NANOSECONDS / 10 } else { self.cost };
            self.now.fetch_add(cost / 2, Ordering::Relaxed);
            let now = self.begin.wrapping_add(self.counted(self.reference_hertz)) & u64::MAX >> (64 - self.bits);
            self.now.fetch_add(cost / 2, Ordering::Relaxed);
            elapsed(last, now, self.bits)
        }

        fn hertz(&self) -> u64 {
            // What it is taken for, even if it stands still.
            PM_TIMER
        }
    }

    /// Whether a rate is right: within its own error, which is small.
    fn is_right(rate: Result<Rate, Unusable>, hertz: u64) -> bool {
        rate.is_ok_and(|rate| rate.hertz.abs_diff(hertz) <= rate.error && rate.error <= hertz / 50)
    }

    #[test]
    fn the_frequency_is_what_it_is_within_the_error() {
        for tsc_hertz in [10_100_000, 200_000_000, 1_900_000_000, 5_000_000_000, 19_000_000_000] {
            let machine = Machine { tsc_hertz, ..usual() };
            let rate = machine.measure();
            assert!(is_right(rate, tsc_hertz), "{tsc_hertz}: {rate:?}");
        }
    }

    #[test]
    fn the_measurement_is_short_and_looks_at_the_reference_a_few_times() {
        for tsc_hertz in [200_000_000, 4_000_000_000] {
            let machine = Machine { tsc_hertz, cost: 20_000, ..usual() };
            assert!(is_right(machine.measure(), tsc_hertz));
            let (looks, took) = (machine.looks.into_inner(), machine.now.into_inner());
            assert!(looks <= 6 && took < 5_000_000, "{looks} looks, {took} ns");
        }
    }

    #[test]
    fn a_reference_that_wraps_around_meanwhile_does_no_harm() {
        for before in [1, 100, 7_000, 0x00ff_ffff] {
            let machine = Machine { begin: 0x0100_0000 - before, ..usual() };
            assert!(is_right(machine.measure(), machine.tsc_hertz), "{before}");
        }
        // The 8254: 16 bits.
        let machine = Machine { bits: 16, begin: 0xfff0, ..usual() };
        assert!(is_right(machine.measure(), machine.tsc_hertz));
    }

    #[test]
    fn a_reference_that_does_not_move_is_found_out() {
        let machine = Machine { reference_hertz: 0, ..usual() };
        assert_eq!(machine.measure(), Err(Unusable::StandsStill));
        assert!(machine.now.into_inner() < NANOSECONDS, "soon");
    }

    #[test]
    fn a_tsc_that_does_not_move_or_is_too_slow_or_too_fast_is_not_plausible() {
        for tsc_hertz in [0, 1_000, 9_000_000, 22_000_000_000, 100_000_000_000] {
            let rate = Machine { tsc_hertz, ..usual() }.measure();
            assert!(matches!(rate, Err(Unusable::Implausible(_))), "{tsc_hertz}: {rate:?}");
        }
        assert!(Machine { tsc_hertz: 1 << 50, ..usual() }.measure().is_err());
    }

    #[test]
    fn a_look_that_was_disturbed_is_made_up_for() {
        for disturbed in 1..=4 {
            let machine = Machine { disturbed, ..usual() };
            let rate = machine.measure();
            assert!(is_right(rate, machine.tsc_hertz), "{disturbed}: {rate:?}");
        }
    }

    #[test]
    fn when_every_look_takes_too_long_it_is_given_up_or_the_error_is_small() {
        let slow = Machine { cost: 400_000, ..usual() };
        let rate = slow.measure();
        assert!(rate == Err(Unusable::Unsteady) || is_right(rate, slow.tsc_hertz), "{rate:?}");
        let worse = Machine { cost: 80_000_000, ..usual() };
        assert_eq!(worse.measure(), Err(Unusable::Unsteady));
    }

    /// Anything: whatever comes next.
    #[derive(Debug)]
    struct Hostile(Vec<u64>, AtomicU64);

    impl Hostile {
        fn next(&self) -> u64 {
            self.0[self.1.fetch_add(1, Ordering::Relaxed) as usize % self.0.len()]
        }
    }

    impl Clock for Hostile {
        fn advance(&self, _: &mut u64) -> u64 {
            self.next()
        }

        fn hertz(&self) -> u64 {
            PM_TIMER
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn counters_that_show_anything_are_survived(
            tsc in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..20_000_000_000], 2..9),
            reference in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..10_000], 1..9),
        ) {
            let (tsc, reference) = (Hostile(tsc, AtomicU64::new(0)), Hostile(reference, AtomicU64::new(0)));
            if let Ok(rate) = measure(&|| tsc.next(), &reference) {
                prop_assert!(PLAUSIBLE.contains(&rate.hertz));
            }
        }
    }
}
