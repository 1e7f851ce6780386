//! Bus locks of a guest: an atomic access over the end of a cache line, or to memory that is not cached, stops the memory accesses of all
//! processors while it lasts (Intel, bus-lock detection: SDM vol. 3, 27.2 and 18.3.1.6).

/// Ticks of the TSC in which a guest's bus locks are counted: milliseconds on any processor.
const PERIOD: u64 = 1 << 24;
/// Bus locks of a guest in a period. Each takes a few microseconds at the most, so this many take a twentieth of the period.
const MOST: u32 = 64;

/// The bus locks of one guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct BusLocks {
    /// The first one of the period.
    began: u64,
    count: u32,
}

impl BusLocks {
    /// A virtual processor of the guest has locked the bus at `now`. Returns until when it has to wait, if the guest has locked it too often.
    pub fn count(&mut self, now: u64) -> Option<u64> {
        // Another processor's clock may be a little behind.
        if now.saturating_sub(self.began) >= PERIOD || self.count == 0 {
            *self = Self { began: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        (self.count > MOST).then(|| self.began.saturating_add(PERIOD))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_guest_that_locks_the_bus_now_and_then_never_waits() {
        let mut locks = BusLocks::default();
        assert!((0..10_000).all(|n| locks.count(1 + n * PERIOD / u64::from(MOST)).is_none()));
    }

    #[test]
    fn a_guest_that_locks_the_bus_without_end_waits_until_the_period_is_over() {
        let mut locks = BusLocks::default();
        assert!((0..MOST).all(|n| locks.count(1000 + u64::from(n)).is_none()));
        assert_eq!(locks.count(2000), Some(1000 + PERIOD));
        assert_eq!(locks.count(1000 + PERIOD - 1), Some(1000 + PERIOD), "another virtual processor's counts as well");
        assert_eq!(locks.count(1000 + PERIOD), None);
    }

    proptest! {
        /// A guest of `vcpus` that each lock the bus as soon as they may.
        #[test]
        fn no_number_of_virtual_processors_locks_the_bus_more_often(vcpus in 1_usize..9, step in 1_u64..10_000) {
            let mut locks = BusLocks::default();
            let (mut now, mut done, mut may) = (1, 0_u64, vec![0; vcpus]);
            while now < 20 * PERIOD && done < 100_000 {
                for at in may.iter_mut().filter(|at| **at <= now) {
                    done += 1;
                    *at = locks.count(now).unwrap_or(0);
                }
                // Nothing happens before the first one may go on.
                now = may.iter().copied().min().unwrap_or(0).max(now + step);
            }
            let periods = now / PERIOD + 1;
            prop_assert!(done <= periods * (u64::from(MOST) + vcpus as u64));
        }
    }
}
