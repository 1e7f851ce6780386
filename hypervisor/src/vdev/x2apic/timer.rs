//! The timer of the virtual local APIC (SDM vol. 3, 12.5.4).
//!
//! It counts at the rate of the time stamp counter, as CPUID leaf 0x15 says ([`crate::vdev::cpuid`]). All times are in ticks of the guest's
//! TSC.

/// Shortest period of the periodic timer, in TSC ticks. A shorter one is stretched to it, so that a guest cannot make its own
/// timer fire faster than the hypervisor can inject it.
pub const MIN_PERIOD: u64 = 2000;

/// LVT timer bits 18:17.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Counts down once.
    #[default]
    OneShot,
    /// Counts down and starts anew.
    Periodic,
    /// Fires when the TSC reaches IA32_TSC_DEADLINE.
    TscDeadline,
}

impl Mode {
    /// From bits 18:17; 3 is reserved.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            0 => Some(Self::OneShot),
            1 => Some(Self::Periodic),
            2 => Some(Self::TscDeadline),
            _ => None,
        }
    }
}

/// The counting part of the timer; the LVT entry's mask and vector belong to the APIC.
#[derive(Clone, Debug)]
pub struct Timer {
    mode: Mode,
    initial: u32,
    divide: u32,
    deadline: Option<u64>,
}

impl Default for Timer {
    fn default() -> Self {
        Self { mode: Mode::OneShot, initial: 0, divide: 0, deadline: None }
    }
}

impl Timer {
    /// What a count of 1 lasts: the divide configuration, bits 3, 1 and 0 (SDM vol. 3, figure 12-10).
    const fn divisor(&self) -> u64 {
        match (self.divide >> 1 & 4) | (self.divide & 3) {
            7 => 1,
            bits => 2 << bits,
        }
    }

    fn period(&self) -> u64 {
        (self.initial as u64 * self.divisor()).max(MIN_PERIOD)
    }

    /// When it fires next, if it runs.
    pub const fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// The divide configuration register.
    pub const fn divide(&self) -> u32 {
        self.divide
    }

    /// The initial count register.
    pub const fn initial_count(&self) -> u32 {
        self.initial
    }

    /// A change to or from TSC-deadline mode disarms it (SDM vol. 3, 12.5.4.1).
    pub fn set_mode(&mut self, mode: Mode) {
        if (mode == Mode::TscDeadline) != (self.mode == Mode::TscDeadline) {
            self.deadline = None;
            self.initial = 0;
        }
        self.mode = mode;
    }

    /// Writes the initial count: starts it, or stops it with 0. Ignored in TSC-deadline mode.
    pub fn set_initial_count(&mut self, count: u32, now: u64) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = count;
        self.deadline = match (count, self.mode) {
            (0, _) => None,
            (_, Mode::Periodic) => Some(now.saturating_add(self.period())),
            _ => Some(now.saturating_add(count as u64 * self.divisor())),
        };
    }

    /// Reads the current count; 0 when it does not run, and in TSC-deadline mode.
    pub fn current_count(&self, now: u64) -> u32 {
        match self.deadline {
            Some(deadline) if self.mode != Mode::TscDeadline => {
                let left = deadline.saturating_sub(now).div_ceil(self.divisor());
                u32::try_from(left).unwrap_or(u32::MAX).min(self.initial)
            }
            _ => 0,
        }
    }

    /// Writes the divide configuration. The rest of the count continues at the new rate.
    pub fn set_divide(&mut self, divide: u32, now: u64) {
        let left = self.current_count(now) as u64;
        self.divide = divide;
        if self.mode != Mode::TscDeadline && self.deadline.is_some() {
            self.deadline = Some(now.saturating_add(left * self.divisor()));
        }
    }

    /// Writes IA32_TSC_DEADLINE: 0 disarms. Ignored outside of TSC-deadline mode.
    pub fn set_tsc_deadline(&mut self, deadline: u64) {
        if self.mode == Mode::TscDeadline {
            self.deadline = (deadline != 0).then_some(deadline);
        }
    }

    /// Follows a jump of the guest's TSC from `before` to `now`. The count-down has as many ticks left as before; a TSC deadline keeps its value.
    pub fn tsc_jumped(&mut self, before: u64, now: u64) {
        if self.mode != Mode::TscDeadline {
            self.deadline = self.deadline.map(|deadline| now.saturating_add(deadline.saturating_sub(before)));
        }
    }

    /// Reads IA32_TSC_DEADLINE: 0 when disarmed, and outside of TSC-deadline mode.
    pub fn tsc_deadline(&self) -> u64 {
        match self.mode {
            Mode::TscDeadline => self.deadline.unwrap_or(0),
            _ => 0,
        }
    }

    /// Returns whether it has fired by `now`. A periodic timer that expired more than once since the last call fires once.
    pub fn expire(&mut self, now: u64) -> bool {
        let Some(deadline) = self.deadline.filter(|deadline| *deadline <= now) else { return false };
        self.deadline = match self.mode {
            Mode::Periodic if self.initial != 0 => {
                let missed = (now - deadline) / self.period() + 1;
                Some(deadline.saturating_add(missed.saturating_mul(self.period())))
            }
            _ => None,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(mode: Mode) -> Timer {
        let mut timer = Timer::default();
        timer.set_mode(mode);
        timer
    }

    #[test]
    fn divide_configuration_is_that_of_the_manual() {
        for (bits, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
            let mut timer = timer(Mode::OneShot);
            timer.set_divide(bits, 0);
            timer.set_initial_count(10, 0);
            assert_eq!(timer.deadline(), Some(10 * divisor), "divide {bits:#x}");
        }
    }

    #[test]
    fn a_count_does_not_go_by_a_tsc_that_jumps_and_a_deadline_does() {
        for now in [0, 1 << 62] {
            let mut counts = timer(Mode::Periodic);
            counts.set_initial_count(5000, 1000);
            counts.tsc_jumped(2000, now);
            assert_eq!((counts.deadline(), counts.current_count(now)), (Some(now + 9000), 4500));
        }
        let mut deadline = timer(Mode::TscDeadline);
        deadline.set_tsc_deadline(700);
        deadline.tsc_jumped(600, 0);
        assert_eq!(deadline.deadline(), Some(700));
    }

    #[test]
    fn one_shot_fires_once() {
        let mut timer = timer(Mode::OneShot);
        timer.set_initial_count(100, 1000);
        assert_eq!((timer.current_count(1000), timer.current_count(1100)), (100, 50));
        assert!(!timer.expire(1199));
        assert!(timer.expire(1200));
        assert!(!timer.expire(9999));
        assert_eq!(timer.current_count(9999), 0);
    }

    #[test]
    fn a_periodic_timer_catches_up_without_a_burst() {
        let mut timer = timer(Mode::Periodic);
        timer.set_initial_count(5000, 0);
        assert!(timer.expire(10_000));
        assert_eq!(timer.deadline(), Some(20_000));
        assert!(timer.expire(75_000) && !timer.expire(75_000));
        assert_eq!(timer.deadline(), Some(80_000));
    }

    #[test]
    fn a_period_is_never_shorter_than_the_least_one() {
        let mut timer = timer(Mode::Periodic);
        timer.set_initial_count(1, 0);
        assert_eq!(timer.deadline(), Some(MIN_PERIOD));
    }

    #[test]
    fn tsc_deadline_ignores_the_counter_and_clears_itself() {
        let mut timer = timer(Mode::TscDeadline);
        timer.set_initial_count(5, 0);
        assert_eq!(timer.deadline(), None);
        timer.set_tsc_deadline(700);
        assert_eq!(timer.tsc_deadline(), 700);
        assert!(timer.expire(700));
        assert_eq!(timer.tsc_deadline(), 0);
        timer.set_tsc_deadline(900);
        timer.set_mode(Mode::OneShot);
        assert_eq!(timer.deadline(), None, "a change of mode disarms");
    }

    #[test]
    fn another_divisor_keeps_the_count() {
        let mut timer = timer(Mode::OneShot);
        timer.set_initial_count(100, 0);
        timer.set_divide(0xb, 100);
        assert_eq!(timer.current_count(100), 50);
        assert_eq!(timer.deadline(), Some(150));
    }

    #[test]
    fn the_end_of_time_does_not_wrap() {
        let mut timer = timer(Mode::Periodic);
        timer.set_initial_count(u32::MAX, u64::MAX - 1);
        assert!(timer.expire(u64::MAX));
        assert_eq!(timer.deadline(), Some(u64::MAX));
    }
}
