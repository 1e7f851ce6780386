//! Selects the time source: the TSC, the ACPI PM timer, or reads of the POST port.
#![forbid(unsafe_code)]

use core::fmt;

use super::{Rate, Unusable, measure::PLAUSIBLE};

/// How the TSC's frequency is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Measured against the ACPI PM timer.
    PmTimer,
    /// Measured against counter 2 of the 8254.
    Pit,
    /// CPUID leaf 0x15 says so, and nothing is there to measure against.
    Cpuid,
}

/// What waits go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The TSC.
    Tsc(Rate, By),
    /// The ACPI PM timer itself.
    PmTimer,
    /// Reads of the POST port.
    PostPort,
}

impl Choice {
    /// Takes the first that is usable of: the TSC measured against the PM timer, the TSC measured against the 8254, the TSC by CPUID leaf
    /// 0x15 (only if neither reference moves), the PM timer, the POST port. `pm_timer` is `None` where there is none. `pit` and `cpuid` are
    /// called only if they are needed: the 8254 is slow, and an emulator shows the leaf of the processor that it models.
    ///
    /// That the TSC is the same in all power states is not asked for (CPUID 0x80000007, EDX bit 8): it is on all processors that can run
    /// this hypervisor's guests, and hypervisors below hide the bit.
    pub fn new(
        pm_timer: Option<Result<Rate, Unusable>>,
        pit: impl FnOnce() -> Result<Rate, Unusable>,
        cpuid: impl FnOnce() -> Option<u64>,
    ) -> Self {
        if let Some(Ok(rate)) = pm_timer {
            return Self::Tsc(rate, By::PmTimer);
        }
        let pit = pit();
        if let Ok(rate) = pit {
            return Self::Tsc(rate, By::Pit);
        }
        let nothing_moves =
            [pm_timer, Some(pit)].into_iter().flatten().all(|found| found == Err(Unusable::StandsStill));
        match cpuid().filter(|hertz| nothing_moves && PLAUSIBLE.contains(hertz)) {
            Some(hertz) => Self::Tsc(Rate { hertz, error: 0 }, By::Cpuid),
            None if pm_timer.is_some_and(|found| found != Err(Unusable::StandsStill)) => Self::PmTimer,
            None => Self::PostPort,
        }
    }

    /// The word for it on the console.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tsc(..) => "tsc",
            Self::PmTimer => "pm-timer",
            Self::PostPort => "post-port",
        }
    }

    /// The TSC's frequency in Hz, for guests; `None` if waits go by something else.
    pub const fn tsc_hertz(&self) -> Option<u64> {
        match self {
            Self::Tsc(rate, _) => Some(rate.hertz),
            _ => None,
        }
    }

    /// The TSC's frequency in MHz, to the nearest; 0 if waits go by something else.
    pub const fn tsc_mhz(&self) -> u64 {
        match self {
            Self::Tsc(rate, _) => (rate.hertz + 500_000) / 1_000_000,
            _ => 0,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, by) = match self {
            Self::Tsc(rate, by) => (rate, by),
            Self::PmTimer => return f.write_str("the ACPI PM timer: the TSC cannot be used"),
            Self::PostPort => {
                return f.write_str("reads of port 0x80: neither the TSC nor the ACPI PM timer can be used");
            }
        };
        let tenths = (rate.hertz + 50_000) / 100_000;
        let how = match by {
            By::PmTimer => "measured against the ACPI PM timer",
            By::Pit => "measured against the 8254",
            By::Cpuid => "as CPUID says",
        };
        write!(f, "TSC at {}.{} MHz, {how}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { hertz: 199_960_000, error: 1000 };
    const STILL: Result<Rate, Unusable> = Err(Unusable::StandsStill);
    const ODD: Result<Rate, Unusable> = Err(Unusable::Implausible(5));

    #[test]
    fn what_is_measured_goes_before_what_is_told() {
        let asked = || -> ! { panic!("nobody has to be asked") };
        assert_eq!(Choice::new(Some(Ok(RATE)), || asked(), || asked()), Choice::Tsc(RATE, By::PmTimer));
        for pm_timer in [None, Some(STILL), Some(ODD), Some(Err(Unusable::Unsteady))] {
            assert_eq!(Choice::new(pm_timer, || Ok(RATE), || asked()), Choice::Tsc(RATE, By::Pit));
        }
    }

    #[test]
    fn cpuid_is_believed_only_where_nothing_moves_and_it_can_be() {
        let told = Choice::Tsc(Rate { hertz: 3_500_000_000, error: 0 }, By::Cpuid);
        for pm_timer in [None, Some(STILL)] {
            assert_eq!(Choice::new(pm_timer, || STILL, || Some(3_500_000_000)), told);
            assert_eq!(Choice::new(pm_timer, || STILL, || Some(35)), Choice::PostPort);
            assert_eq!(Choice::new(pm_timer, || STILL, || None), Choice::PostPort);
            // The 8254 moves: the TSC is to blame.
            assert_eq!(Choice::new(pm_timer, || ODD, || Some(3_500_000_000)), Choice::PostPort);
        }
    }

    #[test]
    fn a_tsc_that_cannot_be_used_leaves_a_pm_timer_that_moves() {
        for pit in [STILL, ODD] {
            assert_eq!(Choice::new(Some(ODD), || pit, || Some(3_500_000_000)), Choice::PmTimer);
        }
    }

    #[test]
    fn it_says_what_it_is() {
        let choice = Choice::Tsc(RATE, By::PmTimer);
        assert_eq!(choice.to_string(), "TSC at 200.0 MHz, measured against the ACPI PM timer");
        assert_eq!((choice.name(), choice.tsc_mhz()), ("tsc", 200));
        assert_eq!((Choice::PmTimer.name(), Choice::PostPort.tsc_mhz()), ("pm-timer", 0));
    }
}
