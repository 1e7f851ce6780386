//! Detects interrupt storms: a virtual processor's interrupts that come too fast, and the slots that cause them.
//!
//! Interrupts are counted by vector. When one vector exceeds its limit, all slots that lead there are throttled: masked in the device,
//! which keeps their messages pending. Throttling lasts for the time of a few interrupts at the limit. A slot with a pending message after
//! that is suspected: it sends the message and is throttled again. If it has a pending message once more, it is a storm and stays masked.
//! The other slots lose nothing: their pending messages are sent when they are unmasked.
//!
//! A function can write the messages of its slots by DMA as well, and no mask stops that. If interrupts of the vector still come faster
//! than the limit while all slots that lead there are throttled, their remapping entries are blocked. The first half of the time does not
//! count, because interrupts that were on their way arrive in it.
#![forbid(unsafe_code)]

use alloc::boxed::Box;

/// Ticks of the TSC for which a limit holds.
pub const WINDOW: u64 = 1_000_000;
/// The length of throttling, in interrupts at the limit.
const PROBED: u64 = 4;
/// The least ticks of throttling. Interrupts that are on their way arrive in the first half.
const LEAST: u64 = 20_000;
/// How often slots are throttled and checked.
const ROUNDS: u8 = 2;

/// Counts a virtual processor's interrupts.
#[derive(Debug)]
pub struct RateCounter {
    limit: u32,
    /// When the counting window began.
    since: u64,
    counts: Box<[u32; 256]>,
    probe: Option<Probe>,
}

/// A vector whose slots are throttled.
#[derive(Clone, Copy, Debug)]
struct Probe {
    vector: u8,
    round: u8,
    until: u64,
    /// When interrupts of the vector begin to count, and how many have come since.
    counts_from: u64,
    came: u64,
}

/// The result of throttling a vector's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The vector to which the slots lead.
    pub vector: u8,
    /// Whether it was the last time: slots with a pending message are storms. After an earlier time they are throttled once more.
    pub last: bool,
    /// Whether interrupts came faster than the limit although all slots were masked, so that some interrupts do not come through the slots.
    pub passes_by: bool,
}

impl RateCounter {
    /// A counter with a limit of `limit` interrupts of a vector in [`WINDOW`].
    pub fn new(limit: u32) -> Self {
        Self { limit, since: 0, counts: Box::new([0; 256]), probe: None }
    }

    /// Counts an interrupt. Returns whether the caller has to throttle the slots that lead to its vector.
    pub fn count(&mut self, vector: u8, now: u64) -> bool {
        if now.saturating_sub(self.since) >= WINDOW {
            self.since = now;
            self.counts.fill(0);
        }
        let count = &mut self.counts[usize::from(vector)];
        *count = count.saturating_add(1);
        if let Some(probe) = &mut self.probe {
            probe.came += u64::from(probe.vector == vector && now >= probe.counts_from);
            return false;
        }
        if *count <= self.limit {
            return false;
        }
        *count = 0;
        self.probe = Some(self.round(vector, 1, now));
        true
    }

    fn round(&self, vector: u8, round: u8, now: u64) -> Probe {
        let [half, until] = [self.patience() / 2, self.patience()].map(|ticks| now.saturating_add(ticks));
        Probe { vector, round, until, counts_from: half, came: 0 }
    }

    /// Starts the time of throttling, when all slots are masked. Masking all slots of a large store takes as long as that time, and shows
    /// nothing of a slot before it is masked.
    pub fn begin(&mut self, now: u64) {
        self.probe = self.probe.map(|Probe { vector, round, .. }| self.round(vector, round, now));
    }

    /// The time of throttling, in ticks.
    fn patience(&self) -> u64 {
        (PROBED * WINDOW / u64::from(self.limit.max(1))).clamp(LEAST, WINDOW)
    }

    /// When throttling ends, if slots are throttled.
    pub fn due(&self) -> Option<u64> {
        self.probe.map(|probe| probe.until)
    }

    /// The vector whose throttling has ended by `now`, if there is one.
    pub fn suspect(&mut self, now: u64) -> Option<Suspect> {
        let probe = self.probe.filter(|probe| now >= probe.until)?;
        let last = probe.round == ROUNDS;
        let passes_by = probe.came > PROBED / 2;
        self.probe = (!last && !passes_by).then(|| self.round(probe.vector, probe.round + 1, now));
        Some(Suspect { vector: probe.vector, last, passes_by })
    }

    /// Ends throttling, because no slot is throttled any more.
    pub fn nobody_held(&mut self) {
        self.probe = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_limit_nothing_is_held_and_beyond_it_once() {
        let mut rate_counter = RateCounter::new(10);
        assert!(!(0..10).any(|n| rate_counter.count(0x40, n)));
        assert!(!(0..10).any(|n| rate_counter.count(0x41, n)), "another vector counts by itself");
        assert!(rate_counter.count(0x40, 11));
        assert!(!(0..100).any(|n| rate_counter.count(0x40, 12 + n)), "while slots are held nobody else is");
        let mut slow = RateCounter::new(10);
        assert!(!(0..1000).any(|n| slow.count(0x40, n * (WINDOW / 10))), "ten in each window");
    }

    #[test]
    fn slots_are_looked_at_twice_each_after_some_times_the_limits_distance() {
        let mut rate_counter = RateCounter::new(100);
        assert!((0..101).any(|n| rate_counter.count(0x40, n)));
        assert_eq!(rate_counter.due(), Some(100 + 40_000));
        assert_eq!(rate_counter.suspect(100 + 39_999), None);
        assert_eq!(rate_counter.suspect(50_000), Some(Suspect { vector: 0x40, last: false, passes_by: false }));
        assert_eq!(rate_counter.due(), Some(90_000));
        assert_eq!(rate_counter.suspect(90_000), Some(Suspect { vector: 0x40, last: true, passes_by: false }));
        assert_eq!((rate_counter.due(), rate_counter.suspect(u64::MAX)), (None, None));
    }

    #[test]
    fn interrupts_that_come_although_slots_are_held_pass_them_by() {
        let passes_by = |from: u64, number: u64, vector: u8| {
            let mut rate_counter = RateCounter::new(100);
            assert!((0..101).any(|n| rate_counter.count(0x40, n)));
            assert!(!(0..number).any(|n| rate_counter.count(vector, 100 + from + n)));
            let suspect = rate_counter.suspect(100 + 40_000).unwrap();
            assert_eq!(rate_counter.due().is_none(), suspect.passes_by, "there is nothing more to find out");
            suspect.passes_by
        };
        assert!(passes_by(20_000, 3, 0x40));
        assert!(!passes_by(20_000, 2, 0x40), "at the limit's pace");
        assert!(!passes_by(10_000, 1_000, 0x40), "they were on their way");
        assert!(!passes_by(20_000, 1_000, 0x41), "of another vector");
    }

    #[test]
    fn when_nobody_is_held_any_more_the_count_begins_anew() {
        let mut rate_counter = RateCounter::new(1);
        assert!(!rate_counter.count(0x40, 0) && rate_counter.count(0x40, 1));
        rate_counter.nobody_held();
        assert!(rate_counter.due().is_none());
        assert!(!rate_counter.count(0x40, 2) && rate_counter.count(0x40, 3));
    }

    #[test]
    fn the_time_begins_when_the_slots_are_held() {
        let mut rate_counter = RateCounter::new(50);
        assert!((0..51).any(|n| rate_counter.count(0x40, n)));
        let first = rate_counter.due().unwrap();
        rate_counter.begin(70_000);
        assert_eq!(rate_counter.due(), Some(first - 50 + 70_000));
        assert_eq!(rate_counter.suspect(first), None);
        let until = rate_counter.due().unwrap();
        assert_eq!(rate_counter.suspect(until), Some(Suspect { vector: 0x40, last: false, passes_by: false }));
        rate_counter.begin(until + 60_000);
        assert!(rate_counter.suspect(until + 60_000 + WINDOW).is_some_and(|suspect| suspect.last));
        rate_counter.begin(9 * WINDOW);
        assert_eq!(rate_counter.due(), None, "nothing is held");
    }
}
