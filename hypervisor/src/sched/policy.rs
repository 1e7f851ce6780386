//! The scheduling policy: of the virtual processors that can run, the one that has run least runs next. Nothing here touches hardware;
//! times are ticks of the TSC.
#![forbid(unsafe_code)]

/// Ticks that a virtual processor runs before another one is selected.
pub const SLICE: u64 = 4_000_000;

/// Ticks that a slice lasts in any case, whatever timers others have set.
pub const MIN_SLICE: u64 = 100_000;

/// Ticks that a virtual processor that wakes may be ahead of the others: it runs soon, and cannot save up more than this.
pub const SLEEPER_CREDIT: u64 = SLICE / 2;

/// The virtual processor that has run least. Each has a number, and the ticks that it has run.
pub fn next(ready: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
    ready.min_by_key(|(_, ran)| *ran).map(|(number, _)| number)
}

/// The ticks that a virtual processor counts as run when it wakes. It has run `ran` ticks, and the others that can run have run at least
/// `least`. Time that it has slept is lost, except for the credit.
pub fn wake(ran: u64, least: u64) -> u64 {
    ran.max(least.saturating_sub(SLEEPER_CREDIT))
}

/// The end of a slice that begins `now`. The slice ends in time for `timer`, when others have work, but not before a minimum, because a
/// timer that fires without end would leave the others no time.
pub fn slice_end(now: u64, timer: Option<u64>) -> u64 {
    let timer = timer.map_or(u64::MAX, |timer| timer.max(now.saturating_add(MIN_SLICE)));
    timer.min(now.saturating_add(SLICE))
}

#[cfg(test)]
mod tests;
