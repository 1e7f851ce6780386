//! The scheduling policy: of the virtual processors that can run, the one that has run least runs next. Nothing here touches hardware;
//! times are ticks of the TSC.
#![forbid(unsafe_code)]

/// Ticks that a virtual processor runs before another one's turn.
pub const SLICE: u64 = 4_000_000;

/// Ticks that a turn lasts in any case, whatever timers others have set.
pub const MIN_SLICE: u64 = 100_000;

/// Ticks that a virtual processor that wakes may be ahead of the others: it gets its turn soon, and cannot save up more than this.
pub const SLEEPER_CREDIT: u64 = SLICE / 2;

/// The one of these that has run least: each has a number, and the ticks that it has run.
pub fn next(ready: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
    ready.min_by_key(|(_, ran)| *ran).map(|(number, _)| number)
}

/// What a virtual processor that has run `ran` ticks counts as when it wakes, while the others that can run have run at least `least`: what it
/// has slept through is lost but for the head start.
pub fn wake(ran: u64, least: u64) -> u64 {
    ran.max(least.saturating_sub(SLEEPER_CREDIT))
}

/// When a turn that begins `now` ends: in time for `timer`, when others have to be looked at, though not before a least turn, or a timer
/// that fires without end would leave the others nothing.
pub fn slice_end(now: u64, timer: Option<u64>) -> u64 {
    let timer = timer.map_or(u64::MAX, |timer| timer.max(now.saturating_add(MIN_SLICE)));
    timer.min(now.saturating_add(SLICE))
}

#[cfg(test)]
mod tests;
