//! Clocks for tests.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Clock;

/// Each look takes a tick, whoever looks: no test depends on the host's time.
#[derive(Clone, Copy, Debug)]
pub struct TickingClock {
    /// Ticks in a second.
    pub hertz: u64,
}

impl Clock for TickingClock {
    fn advance(&self, _: &mut u64) -> u64 {
        1
    }

    fn hertz(&self) -> u64 {
        self.hertz
    }
}

/// Each look takes a millisecond.
pub static MILLISECONDS: TickingClock = TickingClock { hertz: 1000 };

/// A clock that can be asked what time it is: it moves by so many ticks with each look.
#[derive(Debug)]
pub struct Counting {
    hertz: u64,
    step: u64,
    now: AtomicU64,
}

impl Counting {
    /// At 0.
    pub const fn new(hertz: u64, step: u64) -> Self {
        Self { hertz, step, now: AtomicU64::new(0) }
    }

    /// The ticks so far. This is no look.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

impl Clock for Counting {
    fn advance(&self, last: &mut u64) -> u64 {
        let now = self.now.fetch_add(self.step, Ordering::Relaxed) + self.step;
        now - core::mem::replace(last, now)
    }

    fn hertz(&self) -> u64 {
        self.hertz
    }
}

/// A clock at a plausible rate that stands still.
#[derive(Clone, Copy, Debug)]
pub struct Still;

impl Clock for Still {
    fn advance(&self, _: &mut u64) -> u64 {
        0
    }

    fn hertz(&self) -> u64 {
        1_000_000
    }
}

/// A clock with these values, whatever they mean.
#[derive(Clone, Copy, Debug)]
pub struct Broken {
    /// What it says of its rate.
    pub hertz: u64,
    /// What has gone by at each look.
    pub ticks: u64,
}

impl Clock for Broken {
    fn advance(&self, _: &mut u64) -> u64 {
        self.ticks
    }

    fn hertz(&self) -> u64 {
        self.hertz
    }
}
