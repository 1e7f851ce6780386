//! Waits with a time limit.
#![forbid(unsafe_code)]

use core::{hint::spin_loop, time::Duration};

use super::Clock;

const NANOSECONDS: u128 = 1_000_000_000;

/// A time that runs out.
///
/// No processor looks at a clock more often than once in a nanosecond. So after as many looks as the limit has nanoseconds the time is
/// over even if the clock says otherwise: a clock that stands still makes a wait longer, not endless.
#[derive(Clone, Copy, Debug)]
pub struct Timeout<'c> {
    clock: &'c dyn Clock,
    last: u64,
    /// Ticks that are left.
    ticks: u64,
    /// Looks that are left.
    looks: u64,
}

impl<'c> Timeout<'c> {
    /// From now on, by this clock. Not shorter than `limit`; longer by two ticks at most if it is looked at without a break.
    #[inline(never)]
    pub fn new(clock: &'c dyn Clock, limit: Duration) -> Self {
        let nanoseconds = limit.as_nanos();
        let ticks = (nanoseconds * u128::from(clock.hertz())).div_ceil(NANOSECONDS);
        let mut last = 0;
        clock.advance(&mut last);
        // The tick that is under way counts for nothing.
        Self { clock, last, ticks: saturated(ticks + 1), looks: saturated(nanoseconds).max(1) }
    }

    /// Looks at the clock: whether the time is over.
    pub fn is_over(&mut self) -> bool {
        self.ticks = self.ticks.saturating_sub(self.clock.advance(&mut self.last));
        self.looks = self.looks.saturating_sub(1);
        self.ticks == 0 || self.looks == 0
    }
}

fn saturated(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Lets the time go by.
#[inline(never)]
pub fn pause(clock: &dyn Clock, time: Duration) {
    let mut timeout = Timeout::new(clock, time);
    while !timeout.is_over() {
        spin_loop();
    }
}

/// Looks at `done` without a break until it is true. Returns whether it has become true in time. The clock is not looked at when `done` is
/// true at once; and once the time is over there is one look more, because the processor may have been away in between (SMM, a hypervisor
/// below).
#[must_use]
#[inline]
pub fn poll(clock: &dyn Clock, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    done() || keep_looking(clock, limit, &mut done)
}

/// What comes after the first look: once in the image, and out of the way of what is done at once.
#[cold]
#[inline(never)]
fn keep_looking(clock: &dyn Clock, limit: Duration, done: &mut dyn FnMut() -> bool) -> bool {
    let mut timeout = Timeout::new(clock, limit);
    loop {
        let over = timeout.is_over();
        if done() {
            return true;
        }
        if over {
            return false;
        }
        spin_loop();
    }
}

/// As [`poll`], but with a pause of `step` between two looks: for what a look disturbs, or costs much.
#[must_use]
pub fn poll_every(clock: &dyn Clock, limit: Duration, step: Duration, mut done: impl FnMut() -> bool) -> bool {
    let steps = limit.as_nanos().div_ceil(step.as_nanos().max(1));
    for _ in 0..steps {
        if done() {
            return true;
        }
        pause(clock, step);
    }
    done()
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::super::testing::{Broken, Counting, Still};
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const LIMIT: Duration = Duration::from_millis(100);

    /// How long `wait` took by a clock that moves by so many ticks of a microsecond with each look.
    fn took(clock: &Counting, wait: impl FnOnce(&Counting)) -> Duration {
        let begin = clock.now();
        wait(clock);
        Duration::from_micros(clock.now() - begin)
    }

    /// Its ticks are long: in a tick there is time for many looks.
    #[derive(Debug)]
    struct Coarse {
        hertz: u64,
        /// Nanoseconds; a look takes 10.
        now: AtomicU64,
    }

    impl Clock for Coarse {
        fn advance(&self, last: &mut u64) -> u64 {
            let now = self.now.fetch_add(10, Ordering::Relaxed) * self.hertz / 1_000_000_000;
            now - core::mem::replace(last, now)
        }

        fn hertz(&self) -> u64 {
            self.hertz
        }
    }

    #[test]
    fn a_pause_is_never_shorter_than_it_was_told_whenever_it_begins_and_little_longer() {
        for (hertz, tick) in [(1_000_000, 1_000), (3_579_545, 280)] {
            for (begin, nanoseconds) in [(0, 1), (tick - 10, 1_000), (tick / 2, 199_300), (tick - 1, 200_000)] {
                let clock = Coarse { hertz, now: AtomicU64::new(begin) };
                pause(&clock, Duration::from_nanos(nanoseconds));
                let took = clock.now.into_inner() - begin;
                assert!((nanoseconds..=nanoseconds + 2 * tick + 20).contains(&took), "{begin}, {nanoseconds}: {took}");
            }
        }
    }

    #[test]
    fn what_is_done_at_once_costs_no_look_at_the_clock() {
        let clock = Counting::new(1_000_000, 1);
        assert!(poll(&clock, LIMIT, || true) && poll_every(&clock, LIMIT, MILLISECOND, || true));
        assert_eq!(clock.now(), 0);
    }

    #[test]
    fn what_is_never_done_is_given_up_when_the_time_is_over_and_not_before() {
        let clock = Counting::new(1_000_000, 1);
        let waited = took(&clock, |clock| assert!(!poll(clock, LIMIT, || false)));
        assert!(waited >= LIMIT && waited <= LIMIT + MILLISECOND, "{waited:?}");
        let waited = took(&clock, |clock| assert!(!poll_every(clock, LIMIT, MILLISECOND, || false)));
        assert!(waited >= LIMIT && waited <= LIMIT + MILLISECOND, "{waited:?}");
    }

    #[test]
    fn what_is_done_at_the_last_moment_is_in_time() {
        let clock = Counting::new(1_000_000, 1);
        assert!(poll(&clock, LIMIT, || clock.now() >= 100_000));
        let clock = Counting::new(1_000_000, 1);
        assert!(poll_every(&clock, LIMIT, MILLISECOND, || clock.now() >= 100_000));
    }

    /// The processor is away for an hour after the first look: what was done meanwhile counts.
    #[test]
    fn there_is_a_look_after_the_time_is_over() {
        let clock = Counting::new(1_000_000, 3_600_000_000);
        let looks = Cell::new(0);
        let done = || {
            looks.set(looks.get() + 1);
            looks.get() > 1
        };
        assert!(poll(&clock, LIMIT, done));
        looks.set(0);
        assert!(poll_every(&clock, MILLISECOND, MILLISECOND, || {
            looks.set(looks.get() + 1);
            looks.get() > 1
        }));
    }

    #[test]
    fn a_clock_that_stands_still_ends_every_wait_after_a_look_for_each_nanosecond() {
        let micros = Duration::from_micros(50);
        let looks = Cell::new(0u64);
        assert!(!poll(&Still, micros, || {
            looks.set(looks.get() + 1);
            false
        }));
        assert_eq!(looks.get(), 50_000 + 1);
        pause(&Still, micros);
        assert!(!poll_every(&Still, micros, Duration::from_micros(10), || false));
    }

    #[test]
    fn a_clock_without_a_rate_or_with_any_values_ends_every_wait() {
        for (hertz, ticks) in [(0, 0), (u64::MAX, 0), (u64::MAX, 1), (1, u64::MAX)] {
            let clock = Broken { hertz, ticks };
            pause(&clock, Duration::from_micros(50));
            assert!(!poll(&clock, Duration::ZERO, || false));
            assert!(!poll_every(&clock, Duration::from_nanos(5), Duration::ZERO, || false));
        }
    }
}
