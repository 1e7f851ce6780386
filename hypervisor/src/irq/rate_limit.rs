//! Masks events of a remapping unit (its faults) or of a parent function (its errors) while they come too fast.
//!
//! A guest's device can cause faults and errors at any rate, and an interrupt for each would take the processor from all others. So a burst
//! of events masks them. From then on the records are polled from time to time; when a poll finds nothing, the events are unmasked.
#![forbid(unsafe_code)]

/// Ticks in which events are counted together, and between two polls while they are masked.
pub const WINDOW: u64 = 1_000_000;
/// Events in a window before they are masked. The processor that gets an event spends some thousand ticks on it. A unit keeps few records
/// while its events are masked, so fewer here are more faults that nobody is told of.
const MOST: u32 = 32;

/// The rate limit of one unit's or device's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// When the window began, or when the records were last read.
    since: u64,
    events: u32,
    masked: bool,
}

impl RateLimit {
    /// Counts an event. `endless` is set if more was recorded than could be read, because no other event comes then. Returns whether the
    /// caller has to mask events now.
    pub fn event(&mut self, now: u64, endless: bool) -> bool {
        if now.saturating_sub(self.since) >= WINDOW {
            (self.since, self.events) = (now, 0);
        }
        self.events = self.events.saturating_add(1);
        let mask = (endless || self.events >= MOST) && !self.masked;
        if mask {
            (self.since, self.masked) = (now, true);
        }
        mask
    }

    /// When the next poll of the records is due, while events are masked.
    pub fn due(&self) -> Option<u64> {
        self.masked.then(|| self.since.saturating_add(WINDOW))
    }

    /// Whether a poll of the records is due.
    pub fn is_due(&self, now: u64) -> bool {
        self.due().is_some_and(|due| now >= due)
    }

    /// Notes a poll of the records, and whether it `found` any. Returns whether the caller has to unmask events: if there were none.
    pub fn looked(&mut self, now: u64, found: bool) -> bool {
        self.since = now;
        if !found {
            (self.events, self.masked) = (0, false);
        }
        !found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked_at(now: u64) -> RateLimit {
        let mut rate_limit = RateLimit::default();
        assert_eq!((1..=MOST).filter(|_| rate_limit.event(now, false)).count(), 1, "once");
        rate_limit
    }

    #[test]
    fn events_with_time_between_them_are_never_masked() {
        let mut rate_limit = RateLimit::default();
        assert!((0..10_000).all(|n| !rate_limit.event(n * WINDOW / 2, false)));
        assert!(!rate_limit.is_due(u64::MAX));
    }

    #[test]
    fn a_burst_masks_until_a_look_finds_nothing() {
        let mut rate_limit = masked_at(5);
        assert!(!rate_limit.is_due(5 + WINDOW - 1) && rate_limit.is_due(5 + WINDOW));
        assert!(!rate_limit.looked(5 + WINDOW, true), "it goes on");
        assert!(!rate_limit.is_due(5 + WINDOW + 1) && rate_limit.is_due(5 + 2 * WINDOW));
        assert!(rate_limit.looked(5 + 2 * WINDOW, false));
        assert!(!rate_limit.is_due(u64::MAX));
        assert!(!rate_limit.event(6 + 2 * WINDOW, false), "it begins anew");
    }

    #[test]
    fn one_that_was_under_way_when_they_were_masked_changes_nothing() {
        let mut rate_limit = masked_at(0);
        assert!(!rate_limit.event(1, false));
        assert!(rate_limit.is_due(WINDOW));
    }

    #[test]
    fn what_cannot_be_taken_whole_masks_at_once() {
        let mut rate_limit = RateLimit::default();
        assert!(rate_limit.event(3, true) && rate_limit.is_due(3 + WINDOW));
    }
}
